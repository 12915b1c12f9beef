"""What a finished run says last: a table, a picture, a folder."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from stockpot.record import Run
from stockpot.report import curves


def finish(run: Run) -> None:
    """Print the table before and after, draw the curves, name the folder."""
    measured = [row for row in run.metrics() if "test/pass@1" in row]
    out = Console(highlight=False)
    if measured:
        out.print(table(measured[0], measured[-1]))
    picture = run.folder / "curves.png"
    if curves.draw(run.metrics(), picture, run.name):
        out.print(f"curves  {picture}", soft_wrap=True)
    else:
        out.print(
            'no curves drawn: matplotlib is missing, `pip install "stockpot[plots]"`', markup=False, soft_wrap=True
        )
    out.print(f"run     {run.folder}   (stockpot show {run.folder} | stockpot history {run.folder})", soft_wrap=True)


def table(before: dict[str, Any], after: dict[str, Any]) -> Table:
    """Held-out figures at the first and the last evaluation."""
    made = Table(title="held-out prompts: mean and 95 % interval over problems", title_justify="left")
    for name, justify in (
        ("", "left"),
        (f"step {before['step']}", "right"),
        (f"step {after['step']}", "right"),
        ("change", "right"),
    ):
        made.add_column(name, justify=justify)  # type: ignore[arg-type]
    widest = max(int(key.split("@")[1]) for key in before if key.startswith("test/pass@") and key.count("/") == 1)
    for label, key in (
        ("pass@1", "test/pass@1"),
        (f"pass@{widest}", f"test/pass@{widest}"),
        ("entropy", "test/entropy"),
        ("length", "test/length"),
    ):
        made.add_row(label, cell(before, key), cell(after, key), f"{after[key] - before[key]:+.3f}")
    return made


def cell(row: dict[str, Any], key: str) -> str:
    """A figure with its interval, where one was recorded."""
    if f"{key}/low" in row:
        return f"{row[key]:.3f} [{row[f'{key}/low']:.3f}, {row[f'{key}/high']:.3f}]"
    return f"{row[key]:.3f}"
