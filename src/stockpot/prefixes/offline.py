"""Whole rollouts from elsewhere: an earlier run's history, or a file of anybody's solutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stockpot.prefixes.base import OutsideRule
from stockpot.types import StockpotError


@dataclass(frozen=True)
class Offline(OutsideRule):
    """A share of each group comes from a file; the policy writes the rest.

    Half-online learning of SPO (arXiv 2503.05453) is share 0.5; at share 1 nothing is generated. The file is the
    history of an earlier run, or JSONL with a line for each solution::

        {"prompt": "3 5 8 make 55 :", "completion": "8 + 3 = 11 ...", "reward": 1.0}

    `prompt` is the text or the key of a training prompt. `reward` may be missing: the task judges then. In place of a
    completion, or beside it, `tokens` may give its ids, stop token included, and `log_probs` what its author gave
    them. Log-probs that nobody knows are legal; whose loss asks for none is `algorithm=SPO()`.

    Differs from the paper: there half of the batch is offline data, here half of each group where a prompt has it.
    """

    path: str = ""
    """A history.sqlite, or a JSONL file."""
    share: float = 0.5
    """Share of each group that comes from the file."""
    prompts: Literal["all", "known"] = "all"
    """Ask all training prompts, or only those that the file has solutions of; with share 1 it is always those."""
    warmup: int = 0
    """Steps before the first."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.warmup < 0:
            raise StockpotError("prefixes.share must lie above 0 and at most at 1, prefixes.warmup be 0 or more.")
        if self.prompts not in ("all", "known"):
            raise StockpotError("prefixes.prompts is one of all, known.")

    def wanted(self, group_size: int, now: int) -> int:
        return int(self.share * group_size + 0.5) if now >= self.warmup else 0

    @property
    def only(self) -> bool:
        """Whether nothing is generated: then each group is filled from the file, with repetition where it must be."""
        return self.share == 1
