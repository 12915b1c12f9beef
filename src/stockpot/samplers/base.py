"""What a sampler is: one method. And what those of a model can do beside it, have to check and to sign."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from stockpot.types import Author, Finish, Request, Rollout, Span, StockpotError


class Sampler(ABC):
    """Continues prompts and prefixes.

    The contract that tests hold every sampler to: log-probs are *processed* (of the distribution that was really
    sampled from); prefix tokens are only prefilled, never decoded again, and keep their authors; rollouts come back
    in the order of the requests; the same seed gives the same tokens, in whatever batch a request stands.
    """

    @abstractmethod
    def continue_(self, requests: Sequence[Request], seed: int) -> list[Rollout]:
        """One rollout per request: its prefix spans, then one span by the current policy."""


class Underway(Protocol):
    """Requests while they are decoded, by their places among those asked: what `until` is shown."""

    def left(self) -> Sequence[int]:
        """Those that are not whole yet; on a GPU, asking waits for it."""

    def made(self, places: Sequence[int]) -> list[Rollout]:
        """What there is of these."""


Until = Callable[[Underway], bool]
"""Says when to stop."""
Seed = int | Sequence[int]
"""That of a call, or one for each request."""


class ModelSampler(Sampler):
    """A sampler of a model with `vocabulary` tokens that reads `limit` of them.

    `author` signs the new spans; set it whenever the policy moves on. `stop_tokens` end a response and are part of it.
    """

    def __init__(self, author: Author, stop_tokens: Sequence[int], limit: int, vocabulary: int) -> None:
        self.author, self.limit, self.vocabulary = author, limit, vocabulary
        self.stop_tokens = frozenset(stop_tokens)
        if not all(0 <= token < vocabulary for token in self.stop_tokens):
            raise StockpotError(f"stop_tokens {sorted(self.stop_tokens)} reach outside the model's vocabulary.")

    @abstractmethod
    def stretch(
        self, requests: Sequence[Request], seed: Seed, until: Until | None = None, again: bool = False
    ) -> list[tuple[Rollout, bool]]:
        """Decode until all are done or `until`, asked after every token, says stop: rollouts, and whether each is done.

        What is not done is as it was then, and is continued as a prefix. `again`: that is what these requests are.
        """

    @abstractmethod
    def load(self, weights: Mapping[str, Tensor], version: int | None) -> None:
        """Take these weights, by the model's own names (an adapter's where it has one), and sign as this version."""

    def continue_(self, requests: Sequence[Request], seed: int) -> list[Rollout]:
        """Decode all requests; rollouts come back in their order."""
        return [rollout for rollout, _ in self.stretch(requests, seed)]

    def context(self, request: Request) -> array[int]:
        """What the model reads before the first new token: the prompt and the prefix, found fit to be continued."""
        context, name = array("i", request.prompt.tokens), f"prompt {request.prompt.key!r}"
        if not context:
            raise StockpotError(f"{name} is empty: a model needs at least one token to continue.")
        longest = len(context) + request.max_tokens
        for span in request.prefix:
            context.extend(span.tokens)
        length = len(context) - len(request.prompt.tokens)
        if length >= request.max_tokens:
            raise StockpotError(f"{name}: max_tokens={request.max_tokens} leaves no room after {length} prefix tokens.")
        if longest > self.limit:
            raise StockpotError(
                f"{name}: prompt and max_tokens make {longest}, but the model reads {self.limit} tokens."
            )
        if length and context[-1] in self.stop_tokens:
            raise StockpotError(f"{name}: the prefix already ends with a stop token; cut it before that.")
        if not 0 <= min(context) <= max(context) < self.vocabulary:
            raise StockpotError(f"{name} has token ids outside the model's vocabulary of {self.vocabulary}.")
        return context

    def rollout(self, request: Request, tokens: Sequence[int], log_probs: Sequence[float]) -> Rollout:
        """The prefix of the request and the new tokens, if there are any, signed."""
        new = (Span(self.author, tokens, log_probs, sampling=request.sampling),) if tokens else ()
        finish: Finish = "stop" if tokens and tokens[-1] in self.stop_tokens else "length"
        return Rollout(request.prompt, (*request.prefix, *new), finish=finish)


def seeds_of(seed: Seed, count: int) -> Sequence[int]:
    """One for each request."""
    return [seed] * count if isinstance(seed, int) else seed


def over(rollout: Rollout, request: Request) -> bool:
    """Whether a response is whole: it has stopped, or is out of room."""
    return rollout.finish == "stop" or len(rollout) >= request.max_tokens
