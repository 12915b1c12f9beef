"""Which past rollout, and where to cut it: the old head of a SOUP sample (arXiv 2601.21476).

The history remembers, snapshots write, and a rule decides. Rules are pure: candidates and a random generator in,
choices out. A new rule is a new subclass of one of the three kinds below; `heads` carries it out.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from stockpot.types import Candidate, Rollout, Span


class PrefixRule(ABC):
    """Says how many rollouts of a group begin with something old. Where that comes from is the subclass's kind."""

    @abstractmethod
    def wanted(self, group_size: int, now: int) -> int:
        """How many prefixes a group should get when they can be had: what falls short is counted."""

    def total(self, prompts: int, group_size: int, now: int) -> int:
        """The same for a step of so many prompts."""
        return prompts * self.wanted(group_size, now)


@dataclass(frozen=True)
class NoPrefixes(PrefixRule):
    """Every rollout is written by the live policy alone."""

    def wanted(self, group_size: int, now: int) -> int:
        return 0


class StoredRule(PrefixRule):
    """Old heads from the history: which versions may serve, which rollouts to take, where to cut each."""

    @abstractmethod
    def versions(self, now: int) -> tuple[int, int] | None:
        """Oldest and newest version that may write a prefix at step `now`; None when there can be none yet."""

    @abstractmethod
    def choose(self, candidates: Sequence[Candidate], group_size: int, now: int, rng: random.Random) -> list[int]:
        """Ids of the rollouts to cut for one prompt's group, no rollout twice; the rest of the group starts afresh."""

    @abstractmethod
    def cut(self, rollout: Rollout, now: int, rng: random.Random, ends: Set[int] = frozenset()) -> tuple[Span, ...]:
        """The head of a stored rollout, as prefix spans: all but at least the last token, or everything (replay).

        `ends` are the tokens that end a step of the task, for rules that cut there.
        """

    def prefer(self, rollouts: Sequence[Rollout], group_size: int, now: int) -> list[Rollout]:
        """A last choice among the rollouts chosen, for rules that must see their tokens; by default all of them."""
        return list(rollouts)

    def invite(self, known: Mapping[str, Sequence[Candidate]], count: int, now: int, rng: random.Random) -> list[str]:
        """Keys of prompts to ask in place of some of the dataset's next `count`: those known best for experience."""
        return []

    @property
    def invites(self) -> bool:
        """Whether the rule ever invites: then it is shown the candidates of all prompts, at every step."""
        return False

    def begin(self, stored: Rollout, now: int, rng: random.Random, ends: Set[int] = frozenset()) -> Rollout:
        """The stored rollout, cut. It keeps its reward only where all of it was taken and nothing is left to write."""
        begun = replace(stored, spans=self.cut(stored, now, rng, ends))
        return begun if len(begun) == len(stored) else replace(begun, reward=None)


class LiveRule(PrefixRule):
    """Old heads written on the spot by snapshots of the policy's own past."""

    keep: int
    every: int
    where: Literal["memory", "disk"]

    @abstractmethod
    def writers(self, versions: Sequence[int], now: int, rng: random.Random) -> list[int]:
        """Which of the snapshots at hand write at step `now`; none when all are too young or too old."""

    @abstractmethod
    def length(self, rng: random.Random) -> int:
        """How many tokens a snapshot writes at most."""

    @abstractmethod
    def begin(self, written: Rollout) -> Rollout:
        """What it wrote, as a prefix that leaves the end to the live policy."""


class OutsideRule(PrefixRule):
    """Whole rollouts by an outsider, from the task's demonstrations."""


def head(rollout: Rollout, length: int, *, trained: Set[int] | bool = True) -> tuple[Span, ...]:
    """The first `length` response tokens of a finished rollout as prefix spans: each token keeps its author.

    At least one token is left to the continuation, so that a stop token never ends up inside a prefix. `trained` says
    which tokens may carry gradient: all, none, or those at these places of the response. What was never to be trained
    stays so.
    """
    return first(rollout, max(0, min(length, len(rollout) - 1)), trained=trained)


def first(rollout: Rollout, length: int, *, trained: Set[int] | bool = True) -> tuple[Span, ...]:
    """The first `length` response tokens as prefix spans, though they be all."""
    spans: list[Span] = []
    done = 0
    for span in rollout.spans:
        piece = span[: length - done]
        for start, end, carries in runs(range(done, done + len(piece)), trained):
            part = piece[start:end]
            spans.append(replace(part, kind="prefix", source=rollout.id, trained=carries and piece.trained))
        done += len(piece)
    return tuple(spans)


Gradient = Literal["ratio", "none", "surprise"]


def carrying(rollout: Rollout, length: int, gradient: Gradient, surprising: float) -> Set[int] | bool:
    """Which of the first `length` tokens carry gradient: all, none, or the share that surprised their authors most."""
    if gradient != "surprise":
        return gradient == "ratio"
    tokens = [(s, i) for s in first(rollout, length) for i in range(len(s))]
    known = [(s.log_probs[i], n, s.trained) for n, (s, i) in enumerate(tokens) if s.log_probs is not None]
    count = math.ceil(surprising * len(known) - 1e-9)  # exactly so many, though many log-probs may be equal
    return frozenset([n for _, n, trained in sorted(known) if trained][:count])


def runs(places: range, trained: Set[int] | bool) -> Iterator[tuple[int, int, bool]]:
    """Stretches of places that are all trained or all not: (start, end, trained), counted from the first place."""
    start = 0
    for mark, stretch in groupby(places, key=lambda place: trained if isinstance(trained, bool) else place in trained):
        end = start + len(list(stretch))
        yield start, end, mark
        start = end
