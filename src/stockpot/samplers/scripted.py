"""The fake that is shipped: answers by heart, so that loops, rewards and histories can be tried without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stockpot.samplers.base import Sampler
from stockpot.types import Author, Finish, Request, Rollout, Span, StockpotError

Answer = Sequence[int]


class ScriptedSampler(Sampler):
    """Answers a prompt with the whole response that `answers` holds under its key, or else under its text.

    Where there are several answers, a request's key and the seed choose among them, as they do in every sampler. A
    prefix is kept and the answer goes on behind as many tokens as the prefix has; `max_tokens` cuts it short. Every
    token gets `log_prob`: 0 says that it was certain.

    >>> from stockpot.types import Prompt
    >>> sampler = ScriptedSampler({"2+2": [[4, 9], [5, 9]]}, author=Author("my-run", 0))
    >>> [list(rollout.tokens) for rollout in sampler.continue_([Request(Prompt("2+2", [1]), key=k) for k in (0, 1)], 0)]
    [[4, 9], [5, 9]]
    """

    def __init__(
        self, answers: Mapping[str, Answer | Sequence[Answer]], *, author: Author, log_prob: float = 0.0
    ) -> None:
        self.answers, self.author, self.log_prob = answers, author, log_prob

    def continue_(self, requests: Sequence[Request], seed: int) -> list[Rollout]:
        return [self._continue(request, seed) for request in requests]

    def _continue(self, request: Request, seed: int) -> Rollout:
        answer = self._answer(request, seed)
        done = sum(len(span) for span in request.prefix)
        tokens = answer[done : request.max_tokens]
        if not tokens:
            raise StockpotError(
                f"nothing follows a prefix of {done} tokens to {request.prompt.key!r}: the scripted answer has "
                f"{len(answer)} tokens, max_tokens is {request.max_tokens}."
            )
        span = Span(self.author, tokens, [self.log_prob] * len(tokens), sampling=request.sampling)
        finish: Finish = "stop" if len(answer) <= request.max_tokens else "length"
        return Rollout(request.prompt, (*request.prefix, span), finish=finish)

    def _answer(self, request: Request, seed: int) -> Answer:
        prompt = request.prompt
        found = self.answers.get(prompt.key, self.answers.get(prompt.text))
        if not found:
            raise StockpotError(f"no scripted answer to prompt {prompt.key!r}.")
        if isinstance(found[0], int):
            return found  # type: ignore[return-value]
        return found[(request.key + seed) % len(found)]  # type: ignore[return-value]
