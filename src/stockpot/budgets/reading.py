"""How cut thinking is handed to whoever answers: as the policy's tokens, or through text, to another vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stockpot.budgets.thinking import Closing
from stockpot.config import Config
from stockpot.models import load_config, load_tokenizer, vocabulary_of
from stockpot.pens import Writer
from stockpot.prompts import load_prompts
from stockpot.types import Author, Prompt, Request, Rollout, Sampling, Span, StockpotError

READ = Author("re-encoded")
"""Who writes what another tokenizer makes of a thinking: nobody."""
Cut = tuple[Span, ...]
"""Thinking that was cut, and the closing words, in the policy's tokens."""


@dataclass(frozen=True)
class Reading:
    """The policy's own tokens, as they are."""

    tokenizer: Any
    """That of the model that answers."""

    def conditions(self) -> dict[str, Any]:
        """What answers hang on beside the models and the thinking."""
        return {}

    def request(self, asked: Request, cut: Cut, sampling: Sampling, room: int) -> Request:
        """What the model is to go on with, and room for an answer."""
        return replace(asked, prefix=cut, sampling=sampling, max_tokens=sum(map(len, cut)) + room)

    def response(self, answered: Rollout, cut: Cut) -> tuple[str, Sequence[int]]:
        """Thinking and answer as the reward reads them: as text, and in the policy's tokens."""
        return str(self.tokenizer.decode(list(answered.tokens), skip_special_tokens=True)), answered.tokens

    def read_anew(self, answered: Rollout) -> int:
        """Tokens that the model read in place of the policy's."""
        return 0

    def lossy(self, answered: Rollout, cut: Cut) -> bool:
        """Whether the model read other words than the policy wrote."""
        return False


@dataclass(frozen=True)
class ThroughText(Reading):
    """The thinking is decoded by the policy's tokenizer, and encoded by that of the model that answers."""

    closing: Closing
    """The closing words, in the policy's tokens."""
    prompts: dict[str, Prompt]
    """The problems in the model's tokens, by the policy's (see `place`)."""
    name: str
    context: int
    """The model's; 0 when it has no limit."""

    def conditions(self) -> dict[str, Any]:
        return {"through": "text", "vocabulary": vocabulary_of(self.tokenizer)}

    def request(self, asked: Request, cut: Cut, sampling: Sampling, room: int) -> Request:
        prompt = self.prompts[place(asked.prompt)]
        ids = self.tokenizer(self.thought(cut, asked.prompt.tokens), add_special_tokens=False)["input_ids"]
        if self.context and len(prompt.tokens) + len(ids) + room > self.context:
            raise StockpotError(
                f"in the tokens of {self.name} a prompt and its cut thinking are {len(prompt.tokens) + len(ids)}, an "
                f"answer may have {room}, but its context is {self.context}: lower --budgets or --answer-tokens (the "
                "full responses are stored)."
            )
        prefix = (Span(READ, ids, kind="prefix", trained=False),)
        return replace(asked, prompt=prompt, prefix=prefix, sampling=sampling, max_tokens=len(ids) + room)

    def response(self, answered: Rollout, cut: Cut) -> tuple[str, Sequence[int]]:
        text = self.thought(cut) + _behind(self.tokenizer, answered.spans[0].tokens, answered.spans[-1].tokens)
        return text, self.closing.tokenizer(text, add_special_tokens=False)["input_ids"]

    def read_anew(self, answered: Rollout) -> int:
        return len(answered.spans[0])

    def lossy(self, answered: Rollout, cut: Cut) -> bool:
        return _decode(self.tokenizer, answered.spans[0].tokens, special=True).split() != self.thought(cut).split()

    def thought(self, cut: Cut, after: Sequence[int] = ()) -> str:
        """Thinking and closing words as text, with the space that parts them from the tokens that they stand after.

        A letter that the cut tore apart is left out.
        """
        *thinking, last = cut
        ids = [token for span in thinking for token in span.tokens]
        told, both = (_behind(self.closing.tokenizer, after, some) for some in (ids, [*ids, *last.tokens]))
        if both.startswith(told) and both.endswith(self.closing.text) and not told.endswith(TORN):
            return both
        return told.rstrip(TORN) + self.closing.text


TORN = "\N{REPLACEMENT CHARACTER}"
"""What bytes that are no whole letter are decoded to."""


def _decode(tokenizer: Any, ids: Sequence[int], special: bool = False) -> str:
    told = tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False)
    return str(told)


def _behind(tokenizer: Any, first: Sequence[int], then: Sequence[int]) -> str:
    """The text of tokens that stand behind others."""
    head, both = _decode(tokenizer, first), _decode(tokenizer, [*first, *then])
    return both[len(head) :] if both.startswith(head) else _decode(tokenizer, then)


def place(prompt: Prompt) -> str:
    """What tells a problem from all others."""
    return f"{prompt.key}/{list(prompt.tokens)}"


def reading(config: Config, writer: Writer, closing: Closing, asked: Sequence[Prompt], answer_tokens: int) -> Reading:
    """How this model reads what the policy wrote; `asked` are the problems in the policy's tokens."""
    own = load_tokenizer(writer.weights)
    if vocabulary_of(own) == vocabulary_of(closing.tokenizer):
        return Reading(closing.tokenizer)
    if not getattr(own, "chat_template", None) and any("prompt" in prompt.columns for prompt in asked):
        raise StockpotError(
            f"{writer.weights} has no chat template, but the prompts are conversations: take another summariser, or "
            "--how self."
        )
    theirs = load_prompts(config.task, "test", own, context=0, max_tokens=answer_tokens)[: len(asked)]
    context = getattr(load_config(writer.weights).get_text_config(), "max_position_embeddings", 0) or 0
    longest = max(len(prompt.tokens) for prompt in theirs)
    if context and longest + answer_tokens >= context:
        raise StockpotError(
            f"a prompt has {longest} tokens of {writer.name} and an answer may have {answer_tokens}, but its context "
            f"is {context}: lower --answer-tokens, or take another summariser."
        )
    prompts = {place(prompt): their for prompt, their in zip(asked, theirs, strict=True)}
    return ThroughText(own, closing, prompts, writer.name, context)
