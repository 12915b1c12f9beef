"""Which past rollout, and where to cut it: the old head of a SOUP sample (arXiv 2601.21476).

The history remembers and this file decides. Rules are pure: candidates and a random generator in, choices out.
A new rule of any sort is a new subclass of `PrefixRule`.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from stockpot.types import Candidate, Rollout, Span, StockpotError


class PrefixRule(ABC):
    """Answers three questions: which versions may serve, which rollouts to take, where to cut each."""

    @abstractmethod
    def versions(self, now: int) -> tuple[int, int] | None:
        """Oldest and newest version that may write a prefix at step `now`; None when there can be none yet."""

    @abstractmethod
    def choose(self, candidates: Sequence[Candidate], group_size: int, rng: random.Random) -> list[int]:
        """Ids of the rollouts to cut for one prompt's group, no rollout twice; the rest of the group starts afresh."""

    @abstractmethod
    def wanted(self, group_size: int) -> int:
        """How many prefixes a group should get when there are candidates enough: what falls short is counted."""

    @abstractmethod
    def cut(self, rollout: Rollout, rng: random.Random) -> tuple[Span, ...]:
        """The head of a stored rollout, as prefix spans; its last token is never part of it."""


@dataclass(frozen=True)
class NoPrefixes(PrefixRule):
    """Every rollout is written by the live policy alone."""

    def versions(self, now: int) -> None:
        return None

    def choose(self, candidates: Sequence[Candidate], group_size: int, rng: random.Random) -> list[int]:
        return []

    def wanted(self, group_size: int) -> int:
        return 0

    def cut(self, rollout: Rollout, rng: random.Random) -> tuple[Span, ...]:
        return ()


@dataclass(frozen=True)
class FromHistory(PrefixRule):
    """Prefixes cut from stored rollouts, with the log-probs stored beside them: nothing is decoded twice.

    The paper leaves ages, share and cut open; the values here are ours.
    """

    share: float = 0.25
    """Share of each group that gets a prefix."""
    min_age: int = 4
    """Steps that must lie between the prefix's author and the live policy."""
    max_age: int = 1000
    """Steps that may lie between them."""
    cut_low: float = 0.1
    """The cut is drawn uniformly between this fraction of the stored response ..."""
    cut_high: float = 0.6
    """... and this one."""
    trained: bool = True
    """Whether prefix tokens carry gradient, corrected by the ratio to their author (the method), or none."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise StockpotError(f"prefixes.share is a share of the group: it must lie in 0..1, not {self.share}.")
        if self.min_age < 1:
            raise StockpotError("prefixes.min_age must be at least 1: a prefix is written by a past policy.")
        if self.min_age > self.max_age:
            raise StockpotError(
                f"prefixes.min_age ({self.min_age}) is above prefixes.max_age ({self.max_age}): no rollout can be both."
            )
        if not 0 <= self.cut_low <= self.cut_high <= 1:
            raise StockpotError("prefixes.cut_low and cut_high are fractions of a response: 0 <= low <= high <= 1.")

    def versions(self, now: int) -> tuple[int, int] | None:
        newest = now - self.min_age
        return (max(0, now - self.max_age), newest) if newest >= 0 and self.share > 0 else None

    def choose(self, candidates: Sequence[Candidate], group_size: int, rng: random.Random) -> list[int]:
        long_enough = [candidate.id for candidate in candidates if candidate.length >= 2]
        return rng.sample(long_enough, min(len(long_enough), self.wanted(group_size)))

    def wanted(self, group_size: int) -> int:
        return math.floor(self.share * group_size + 0.5)

    def cut(self, rollout: Rollout, rng: random.Random) -> tuple[Span, ...]:
        fraction = rng.uniform(self.cut_low, self.cut_high)
        return head(rollout, round(fraction * len(rollout)), trained=self.trained)


def head(rollout: Rollout, length: int, *, trained: bool = True) -> tuple[Span, ...]:
    """The first `length` response tokens of a stored rollout as prefix spans: each token keeps its author.

    At least one token is left to the continuation, so that a stop token never ends up inside a prefix.
    """
    left = max(0, min(length, len(rollout) - 1))
    spans: list[Span] = []
    for span in rollout.spans:
        piece = span[:left]
        if len(piece):
            spans.append(replace(piece, kind="prefix", source=rollout.id, trained=trained and piece.trained))
        left -= len(piece)
    return tuple(spans)
