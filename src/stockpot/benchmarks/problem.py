"""What a benchmark asks, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["maths", "functions", "programs"]
"""How answers are judged: by the value in the box, by calling a function, by what a program prints."""


@dataclass(frozen=True)
class Problem:
    """One problem of a benchmark.

    >>> Problem("7", "What is 3 + 4?", {"answer": "7"}).columns["answer"]
    '7'
    """

    key: str
    """Its name within the benchmark."""
    question: str
    """What is asked, without any template."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What the grader gets beside the response."""


class LeftOut(Exception):
    """A row that makes no problem; its text says why. It is counted, never silent."""
