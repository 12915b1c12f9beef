"""Stored samples -> grades: reward, and for mathematics the answer that it votes for."""

from __future__ import annotations

import asyncio
import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stockpot.benchmarks.problem import Kind, Problem
from stockpot.rewards import maths, programs
from stockpot.rewards.score import RewardFunction
from stockpot.types import StockpotError

UNSEEN = ("reference",)
"""Columns that no grader gets."""
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)")


@dataclass(frozen=True)
class Response:
    """What a grader sees of a sample."""

    problem: Problem
    prompt: str
    text: str


@dataclass(frozen=True)
class Grade:
    """What it says."""

    reward: float | None
    """None where it cannot tell."""
    answer: str | None
    """What stands in the box; None where there is none, and for programs."""


def grade(kind: Kind, responses: Sequence[Response], reward: RewardFunction) -> list[Grade]:
    """Judge responses of one kind by its `grader`, or by any other reward function of TRL's shape."""
    names = dict.fromkeys(name for r in responses for name in r.problem.columns if name not in UNSEEN)
    columns = {name: [r.problem.columns.get(name) for r in responses] for name in names}
    prompts = columns.pop("prompt", None) or [r.prompt for r in responses]
    values = reward(prompts=prompts, completions=[r.text for r in responses], **columns)
    if inspect.isawaitable(values):
        values = asyncio.run(_finish(values))
    if len(values) != len(responses):
        raise StockpotError(f"the grader gave {len(values)} numbers for {len(responses)} responses.")
    answers = [maths.extract(r.text) if kind == "maths" else None for r in responses]
    numbers = [None if value is None or not math.isfinite(value) else float(value) for value in values]
    return [
        Grade(_near(r, number, answer), answer) for r, number, answer in zip(responses, numbers, answers, strict=True)
    ]


def _near(response: Response, reward: float | None, answer: str | None) -> float | None:
    """Where the benchmark allows an absolute error, a number within it is right; graders know relative ones only."""
    tolerance = response.problem.columns.get("absolute")
    if not tolerance or reward is None or answer is None:
        return reward
    found = NUMBER.match(answer.strip().removeprefix("$"))
    gold = NUMBER.match(str(response.problem.columns["answer"]))
    if found and gold and abs(float(found[0]) - float(gold[0])) <= tolerance:
        return max(reward, 1.0)
    return reward


def grader(kind: Kind, bare: bool = False) -> Callable[..., Any]:
    """The reward function of a kind of benchmark; `bare` programs may stand without a fenced block."""
    if kind == "maths":
        return maths.reward
    return programs.Programs(bare=True) if bare else programs.reward


def groups(answers: Sequence[str | None], same: Callable[[str, str], bool]) -> list[int]:
    """Which answers are equal: a number for each, -1 where there is none. Each is compared with one of every group.

    >>> groups(["1/2", "0.5", None, "3"], lambda a, b: {a, b} <= {"1/2", "0.5"})
    [0, 0, -1, 1]
    """
    first: list[str] = []
    known: dict[str, int] = {}
    found = []
    for answer in answers:
        if answer is None:
            found.append(-1)
            continue
        if answer not in known:
            known[answer] = next((i for i, other in enumerate(first) if same(other, answer)), len(first))
            if known[answer] == len(first):
                first.append(answer)
        found.append(known[answer])
    return found


async def _finish(values: Any) -> Any:
    return await values
