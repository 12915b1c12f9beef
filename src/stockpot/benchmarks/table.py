"""The figures as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from stockpot.benchmarks.figures import Figures, Line


def show(settings: Mapping[str, Any], found: Mapping[str, Figures]) -> None:
    """One table per benchmark, to stdout."""
    console = Console(highlight=False)
    for name, figures in found.items():
        console.print(table(name, settings, figures))


def table(name: str, settings: Mapping[str, Any], figures: Figures) -> Table:
    """A benchmark's figures, in percent."""
    title = (
        f"{name}: {settings['model']}, {figures.problems} problems x {figures.k} samples, "
        f"template {settings['template']}, temperature {settings['temperature']}, top-p {settings['top_p']}"
    )
    made = Table(title=title, title_justify="left")
    made.add_column("")
    made.add_column("%", justify="right")
    made.add_column("95 % over problems", justify="right")
    made.add_column("95 % over samples", justify="right")
    for k, line in figures.pass_at.items():
        made.add_row(f"pass@{k}" + (f" = mean@{figures.k}" if k == 1 else ""), *_cells(line))
    if figures.majority is not None:
        made.add_row(f"majority@{figures.k}", *_cells(figures.majority))
    length = figures.length
    made.add_row("tokens", f"{length['mean']:.1f}", f"median {length['median']:.0f}", f"longest {length['max']:.0f}")
    made.add_row("truncated", f"{100 * figures.truncated:.1f}", "", "")
    made.add_row("without an answer", f"{100 * figures.unanswered:.1f}", "", "")
    made.add_row("not judged (samples)", str(figures.unjudged), "", "")
    return made


def _cells(line: Line) -> tuple[str, str, str]:
    spans = [f"{100 * e.low:.1f} - {100 * e.high:.1f}" for e in (line.problems, line.samples)]
    return f"{100 * line.mean:.1f}", spans[0], spans[1]
