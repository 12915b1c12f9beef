"""Whole rollouts by an outsider beside the policy's own: LUFFY's mixture."""

from __future__ import annotations

from dataclasses import dataclass

from stockpot.prefixes.base import OutsideRule
from stockpot.types import StockpotError


@dataclass(frozen=True)
class Demonstrations(OutsideRule):
    """Some rollouts of each group are demonstrations: the task's, or the dataset's column `demonstration`.

    LUFFY (arXiv 2504.14945) takes 1 of 8. Their log-probs are nobody's, so `algorithm=LUFFY()` goes with it. They are
    judged like any rollout. Knowledge from outside: no fair rival of methods that learn from their own past alone.
    """

    exactly: int = 1
    """Demonstrations in each group."""
    warmup: int = 0
    """Steps before the first."""

    def __post_init__(self) -> None:
        if self.exactly < 1 or self.warmup < 0:
            raise StockpotError("prefixes.exactly must be at least 1 and prefixes.warmup 0 or more.")

    def wanted(self, group_size: int, now: int) -> int:
        return min(self.exactly, group_size) if now >= self.warmup else 0
