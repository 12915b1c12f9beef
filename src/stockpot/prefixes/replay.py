"""Whole-trajectory replay: past rollouts stand in a group as they are, with nothing left to continue."""

from __future__ import annotations

import random
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Literal

from stockpot.prefixes.base import StoredRule
from stockpot.prefixes.history import FromHistory
from stockpot.types import Candidate, Rollout, Span


@dataclass(frozen=True)
class Replay(StoredRule):
    """Past rollouts of the prompt, whole, beside fresh ones: a prefix cut at its end (RePO, arXiv 2506.09340).

    Every token is old, each with its author's stored log-prob; the stored reward is taken, nothing is decoded or
    judged, and the rollout is not stored a second time. `GRPO(compare="kind")` normalises replayed and fresh rollouts
    apart (RePO's split), `compare="group"` jointly.

    Differs from the paper: there 8 rollouts are replayed beside 8 fresh ones, here they take a share of the group, so
    that a step learns from as many rollouts with replay as without. Ages and their defaults are ours.
    """

    share: float = 0.5
    """Share of each group that is replayed."""
    warmup: int = 0
    """Steps before the first replay."""
    min_age: int = 1
    """Steps that must lie between a replayed rollout and the live policy."""
    max_age: int = 1000
    """Steps that may lie between them."""
    ages: Literal["uniform", "recent", "stratified"] = "uniform"
    """Among the ages allowed: each rollout alike, young ones likelier, or spread evenly over the ages."""
    outcome: Literal["all", "success", "failure", "balance"] = "all"
    """Which rollouts, as for prefixes from history; "success" is ExGRPO's (arXiv 2510.02245) and half of its choice."""

    def __post_init__(self) -> None:
        self._history()

    def _history(self) -> FromHistory:
        """The rule for prefixes that chooses alike."""
        return FromHistory(
            share=self.share,
            warmup=self.warmup,
            min_age=self.min_age,
            max_age=self.max_age,
            ages=self.ages,
            outcome=self.outcome,
        )

    def versions(self, now: int) -> tuple[int, int] | None:
        return self._history().versions(now)

    def wanted(self, group_size: int, now: int) -> int:
        return self._history().wanted(group_size, now)

    def choose(self, candidates: Sequence[Candidate], group_size: int, now: int, rng: random.Random) -> list[int]:
        return self._history().choose(candidates, group_size, now, rng)

    def cut(self, rollout: Rollout, now: int, rng: random.Random, ends: Set[int] = frozenset()) -> tuple[Span, ...]:
        return tuple(replace(span, kind="prefix", source=rollout.id) for span in rollout.spans)
