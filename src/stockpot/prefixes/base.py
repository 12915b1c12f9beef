"""Which past rollout, and where to cut it: the old head of a SOUP sample (arXiv 2601.21476).

The history remembers and this file decides. Rules are pure: candidates and a random generator in, choices out.
A new rule of any sort is a new subclass of `PrefixRule`.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby

from stockpot.types import Candidate, Rollout, Span


class PrefixRule(ABC):
    """Answers three questions: which versions may serve, which rollouts to take, where to cut each."""

    @abstractmethod
    def versions(self, now: int) -> tuple[int, int] | None:
        """Oldest and newest version that may write a prefix at step `now`; None when there can be none yet."""

    @abstractmethod
    def choose(self, candidates: Sequence[Candidate], group_size: int, now: int, rng: random.Random) -> list[int]:
        """Ids of the rollouts to cut for one prompt's group, no rollout twice; the rest of the group starts afresh."""

    @abstractmethod
    def wanted(self, group_size: int, now: int) -> int:
        """How many prefixes a group should get when there are candidates enough: what falls short is counted."""

    @abstractmethod
    def cut(self, rollout: Rollout, now: int, rng: random.Random, ends: Set[int] = frozenset()) -> tuple[Span, ...]:
        """The head of a stored rollout, as prefix spans: all but at least the last token, or everything (replay).

        `ends` are the tokens that end a step of the task, for rules that cut there.
        """

    def begin(self, stored: Rollout, now: int, rng: random.Random, ends: Set[int] = frozenset()) -> Rollout:
        """The stored rollout, cut. It keeps its reward only where all of it was taken and nothing is left to write."""
        begun = replace(stored, spans=self.cut(stored, now, rng, ends))
        return begun if len(begun) == len(stored) else replace(begun, reward=None)


@dataclass(frozen=True)
class NoPrefixes(PrefixRule):
    """Every rollout is written by the live policy alone."""

    def versions(self, now: int) -> None:
        return None

    def choose(self, candidates: Sequence[Candidate], group_size: int, now: int, rng: random.Random) -> list[int]:
        return []

    def wanted(self, group_size: int, now: int) -> int:
        return 0

    def cut(self, rollout: Rollout, now: int, rng: random.Random, ends: Set[int] = frozenset()) -> tuple[Span, ...]:
        return ()


def head(rollout: Rollout, length: int, *, trained: Set[int] | bool = True) -> tuple[Span, ...]:
    """The first `length` response tokens of a stored rollout as prefix spans: each token keeps its author.

    At least one token is left to the continuation, so that a stop token never ends up inside a prefix. `trained` says
    which tokens may carry gradient: all, none, or those at these places of the response. What was never to be trained
    stays so.
    """
    length = max(0, min(length, len(rollout) - 1))
    spans: list[Span] = []
    done = 0
    for span in rollout.spans:
        piece = span[: length - done]
        for start, end, carries in runs(range(done, done + len(piece)), trained):
            part = piece[start:end]
            spans.append(replace(part, kind="prefix", source=rollout.id, trained=carries and piece.trained))
        done += len(piece)
    return tuple(spans)


def runs(places: range, trained: Set[int] | bool) -> Iterator[tuple[int, int, bool]]:
    """Stretches of places that are all trained or all not: (start, end, trained), counted from the first place."""
    start = 0
    for mark, stretch in groupby(places, key=lambda place: trained if isinstance(trained, bool) else place in trained):
        end = start + len(list(stretch))
        yield start, end, mark
        start = end
