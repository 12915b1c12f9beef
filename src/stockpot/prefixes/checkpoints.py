"""Prefixes written on the spot by snapshots of the policy's own past: for prompts that were never asked before."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stockpot.prefixes.base import Gradient, LiveRule, carrying, first
from stockpot.prefixes.history import FromHistory
from stockpot.types import Rollout, StockpotError


@dataclass(frozen=True)
class FromCheckpoints(LiveRule):
    """SOUP's old heads (arXiv 2601.21476), decoded by live past policies.

    A snapshot of the weights is taken every few steps and the newest few are kept. What they write is stored with
    its log-probs like anything else. It costs what `FromHistory` saves: their tokens are decoded, in a pass of their
    own, and the snapshots take room. The paper leaves number, age, length and share open; the values here are ours.
    """

    share: float = 0.25
    """Share of each group that gets a prefix."""
    exactly: int = 0
    """This many of each group instead of a share; 0 goes by the share."""
    warmup: int = 0
    """Steps before the first prefix."""
    every: int = 10
    """Steps between snapshots; the first is the policy before training."""
    keep: int = 8
    """How many of the newest snapshots are kept."""
    where: Literal["memory", "disk"] = "memory"
    """Where they are kept: in the machine's memory, or as files in the run folder. Checkpoints hold them either way."""
    min_age: int = 4
    """Steps that must lie between a snapshot and the live policy."""
    max_age: int = 1000
    """Steps that may lie between them."""
    ages: Literal["uniform", "recent"] = "uniform"
    """Among the ages allowed: each snapshot alike, or young ones likelier."""
    half_life: float = 10.0
    """With ages "recent": a snapshot this many steps older is half as likely."""
    writers_per_step: int = 1
    """Snapshots that write in one step; the prompts are dealt to them. Each further one costs a pass of decoding."""
    shortest: int = 4
    """A prefix's length is drawn between this many tokens ..."""
    longest: int = 24
    """... and this many. A snapshot that ends its response earlier leaves its stop token to the live policy."""
    gradient: Gradient = "ratio"
    """Which prefix tokens carry gradient, as for prefixes from history."""
    surprising: float = 0.2
    """With gradient "surprise": the share of a prefix's tokens that carries it."""

    def __post_init__(self) -> None:
        self._shared()
        if self.ages not in ("uniform", "recent") or self.where not in ("memory", "disk"):
            raise StockpotError("prefixes.ages is one of uniform, recent, and prefixes.where one of memory, disk.")
        if min(self.every, self.keep, self.writers_per_step) < 1:
            raise StockpotError("prefixes.every, keep and writers_per_step must be at least 1: else nobody writes.")
        if not 1 <= self.shortest <= self.longest:
            raise StockpotError("prefixes.shortest and longest are numbers of tokens: 1 <= shortest <= longest.")
        if self.min_age >= self.every * self.keep:
            raise StockpotError(
                f"prefixes.min_age is {self.min_age}, but the oldest of {self.keep} snapshots, one every {self.every} "
                f"steps, is never older than {self.every * self.keep - 1}: raise prefixes.keep or every."
            )

    def _shared(self) -> FromHistory:
        """The rule for stored prefixes, which counts alike and refuses the same."""
        names = ("share", "exactly", "warmup", "min_age", "max_age", "half_life", "gradient", "surprising")
        return FromHistory(**{name: getattr(self, name) for name in names})

    def wanted(self, group_size: int, now: int) -> int:
        return self._shared().wanted(group_size, now)

    def writers(self, versions: Sequence[int], now: int, rng: random.Random) -> list[int]:
        fit = [version for version in versions if self.min_age <= now - version <= self.max_age]
        if self.ages == "uniform":
            return rng.sample(fit, min(len(fit), self.writers_per_step))
        waits = {v: rng.expovariate(2 ** (-(now - v) / self.half_life) or 1e-300) for v in fit}
        return sorted(fit, key=lambda version: waits[version])[: self.writers_per_step]

    def length(self, rng: random.Random) -> int:
        return rng.randint(self.shortest, self.longest)

    def begin(self, written: Rollout) -> Rollout:
        length = len(written) - (written.finish == "stop")
        trained = carrying(written, length, self.gradient, self.surprising)
        return replace(written, spans=first(written, length, trained=trained), reward=None)
