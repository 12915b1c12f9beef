"""From grades to figures: pass@k, mean@K, majority@K, each with two intervals; lengths and truncation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stockpot.benchmarks import intervals
from stockpot.benchmarks.intervals import Votes
from stockpot.passk import Estimate, pass_at_k


@dataclass(frozen=True)
class Line:
    """One figure with two 95 % intervals, which answer two questions."""

    problems: Estimate
    """Would it be so with other problems of this kind? Covers the choice of problems and the luck of sampling."""
    samples: Estimate
    """Would it be so if these same problems were sampled again?"""

    @property
    def mean(self) -> float:
        """The figure itself."""
        return self.problems.mean


@dataclass(frozen=True)
class Figures:
    """What an evaluation found on one benchmark."""

    problems: int
    k: int
    pass_at: dict[int, Line]
    """For k = 1, 2, 4, ... K; at 1 it is mean@K."""
    majority: Line | None
    """The share of problems whose most frequent answer among K is right; None for programs."""
    length: dict[str, float]
    """Response tokens: mean, median, p95, max, and the mean of right and of wrong responses."""
    truncated: float
    """Share of responses that ran out of room."""
    entropy: float
    """Nats per token, estimated from the log-probs of what was drawn."""
    unanswered: float
    """Share of responses without an answer in a box; 0 for programs."""
    unjudged: int
    """Responses that the grader could not judge, counted as wrong."""

    def to_json(self) -> dict[str, Any]:
        """As results.json has it."""
        lines = {f"pass@{k}": line for k, line in self.pass_at.items()}
        lines[f"mean@{self.k}"] = self.pass_at[1]
        if self.majority is not None:
            lines[f"majority@{self.k}"] = self.majority
        return {
            "problems": self.problems,
            "samples": self.k,
            **{
                name: {
                    "value": line.mean,
                    "over_problems": [line.problems.low, line.problems.high],
                    "over_samples": [line.samples.low, line.samples.high],
                }
                for name, line in lines.items()
            },
            "length": self.length,
            "truncated": self.truncated,
            "entropy": self.entropy,
            "unanswered": self.unanswered,
            "unjudged": self.unjudged,
        }


@dataclass(frozen=True)
class Graded:
    """All that figures need to know of a sample."""

    problem: str
    right: bool
    judged: bool
    group: int
    """Which of its problem's answers it votes for; -1 for none."""
    length: int
    truncated: bool
    log_prob: float


def figures(graded: Sequence[Graded], *, votes: bool) -> Figures:
    """Count. Every problem must have the same number of samples."""
    by_problem: dict[str, list[Graded]] = {}
    for sample in graded:
        by_problem.setdefault(sample.problem, []).append(sample)
    k = len(next(iter(by_problem.values())))
    if any(len(samples) != k for samples in by_problem.values()):
        raise ValueError("every problem must have the same number of samples")
    counts = [sum(s.right for s in samples) for samples in by_problem.values()]
    spread = intervals.difficulties(counts, k)
    lengths = [s.length for s in graded]
    ballots = [Votes([s.group for s in group], [s.right for s in group]) for group in by_problem.values()]
    return Figures(
        problems=len(by_problem),
        k=k,
        pass_at={n: pass_line(counts, k, n, spread) for n in sizes(k)},
        majority=majority_line(ballots) if votes else None,
        length={
            "mean": statistics.fmean(lengths),
            "median": float(np.median(lengths)),
            "p95": float(np.quantile(lengths, 0.95)),
            "max": float(max(lengths)),
            **{
                name: statistics.fmean(found)
                for name, want in (("right", True), ("wrong", False))
                if (found := [s.length for s in graded if s.right is want])
            },
        },
        truncated=statistics.fmean(s.truncated for s in graded),
        entropy=-sum(s.log_prob for s in graded) / max(1, sum(lengths)),
        unanswered=statistics.fmean(s.group < 0 for s in graded) if votes else 0.0,
        unjudged=sum(not s.judged for s in graded),
    )


def sizes(samples: int) -> list[int]:
    """The k of pass@k: 1, 2, 4, ... and the number of samples itself."""
    return sorted({2**i for i in range(20) if 2**i < samples} | {samples})


def pass_line(counts: Sequence[int], samples: int, k: int, spread: intervals.Spread | None = None) -> Line:
    """pass@k over problems of which so many samples were right."""
    spread = spread or intervals.difficulties(counts, samples)
    table = np.array([pass_at_k(samples, c, k) for c in range(samples + 1)])
    return Line(intervals.over_problems(table[list(counts)]), intervals.over_samples(counts, table, spread, k))


def majority_line(ballots: Sequence[Votes]) -> Line:
    """majority@K over problems."""
    values = np.array([intervals.majority(ballot) for ballot in ballots])
    return Line(intervals.over_problems(values), intervals.votes_again(ballots))
