"""Where the thinking of a response ends, and the response with its thinking cut short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stockpot.types import Author, Rollout, Span

CLOSING = Author("closing")
"""Who writes the words that close a thinking that was cut: nobody's policy."""


@dataclass(frozen=True)
class Closing:
    """What ends the thinking of a task's responses: the words, as text and as tokens."""

    text: str
    ids: tuple[int, ...]
    tokenizer: Any

    @classmethod
    def of(cls, text: str, tokenizer: Any) -> Closing:
        """The closing words as the tokenizer writes them on their own."""
        return cls(text, tuple(tokenizer(text, add_special_tokens=False)["input_ids"]), tokenizer)

    def thinking(self, response: Rollout) -> tuple[int, bool]:
        """(tokens of the thinking, whether it ended by itself), which it does at the words or at a stop token.

        Words of one token are looked for as that token. Others are looked for in the text, since a tokenizer may
        write them otherwise where other words stand before them.
        """
        tokens = list(response.tokens)
        if len(self.ids) == 1:
            found = tokens.index(self.ids[0]) if self.ids[0] in tokens else None
        else:
            found = self._in_text(tokens)
        if found is not None:
            return found, True
        stopped = response.finish == "stop"
        return len(tokens) - stopped, stopped

    def _in_text(self, tokens: Sequence[int]) -> int | None:
        """How many tokens stand whole before the words; None where there are no such words."""

        def text(count: int) -> str:
            return str(self.tokenizer.decode(tokens[:count], skip_special_tokens=False))

        place = text(len(tokens)).find(self.text)
        if place < 0:
            return None
        low, high = 0, len(tokens)
        while low < high:  # the most tokens whose text does not reach beyond the place
            middle = (low + high + 1) // 2
            low, high = (middle, high) if len(text(middle)) <= place else (low, middle - 1)
        return low

    def cut(self, response: Rollout, budget: int) -> tuple[Span, ...] | None:
        """The first `budget` tokens of the thinking and the closing words, to be answered after.

        None where the thinking ended by itself within the budget: then the response keeps its own answer.
        """
        length, ended = self.thinking(response)
        if length < budget or (ended and length == budget):
            return None
        kept: list[Span] = []
        for span in response.spans:
            room = budget - sum(map(len, kept))
            if room > 0:
                kept.append(replace(span[:room], kind="prefix"))
        return (*kept, Span(CLOSING, self.ids, kind="prefix", trained=False))
