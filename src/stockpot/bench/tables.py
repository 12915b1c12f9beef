"""Tables as Markdown, so that they can go into a log as they are printed; and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stockpot.passk import Estimate


@dataclass(frozen=True)
class Claim:
    """That one method's figure lies above another's (`sign` 1) or below it (-1)."""

    text: str
    better: str
    than: str
    figure: str
    sign: int

    def verdict(self, difference: Estimate) -> str:
        """From the interval of the difference, seed by seed: undecided when it holds 0."""
        return verdict(difference, self.sign)


def verdict(difference: Estimate, sign: int = 1) -> str:
    """Whether a difference has that sign: by its interval, undecided when it holds 0."""
    low, high = sorted((sign * difference.low, sign * difference.high))
    return "holds" if low > 0 else "does not hold" if high < 0 else "undecided"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table under its title; nothing where there are no rows."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
             for row in [head, *rows]]  # fmt: skip
    return "\n".join([f"**{title}**", "", lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
