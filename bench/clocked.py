"""For benches of whole runs: when each step ended, by the wall's clock, start-up left out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stockpot.train import Loop


@contextmanager
def clocked(marks: list[tuple[float, float]]) -> Iterator[None]:
    """Note when each step ended, and its mean reward; the first mark is the beginning of the first step."""
    real = Loop.step

    def step(loop: Loop, now: int, history: Any) -> Any:
        if not marks:
            marks.append((time.perf_counter(), 0.0))
        metrics, timings = real(loop, now, history)
        marks.append((time.perf_counter(), metrics["reward/mean"]))
        return metrics, timings

    Loop.step = step  # type: ignore[method-assign]
    try:
        yield
    finally:
        Loop.step = real  # type: ignore[method-assign]
