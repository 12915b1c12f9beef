"""What a person sees: a bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)


def tell(line: str) -> None:
    """One line of news."""
    console.print(line, markup=False, soft_wrap=True)


class Bar:
    """Progress of one stretch of work, with the figures that matter beside it."""

    def __init__(self, title: str, total: int, progress: Progress | None) -> None:
        self._title, self._total, self._progress = title, total, progress
        self._task = progress.add_task(title, total=total, figures="") if progress else None
        self._done, self._told = 0, time.monotonic()

    def advance(self, by: int = 1, **figures: float | str) -> None:
        """Move on; figures are shown as given, numbers with three digits."""
        self._done += by
        text = "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=by, figures=text)
        elif self._done >= self._total or time.monotonic() - self._told > 10:
            self._told = time.monotonic()
            tell(f"{self._title} {self._done}/{self._total}  {text}")


@contextmanager
def bar(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A bar for `total` pieces of work, of which `done` are behind us."""
    if not console.is_terminal:
        made = Bar(title, total, None)
        made._done = done
        yield made
        return
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as progress:
        made = Bar(title, total, progress)
        if done:
            made.advance(done)
        yield made
