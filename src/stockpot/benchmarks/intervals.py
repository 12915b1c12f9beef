"""95 % intervals for shares of problems, also where problems are few and shares near 0 or 1.

A share's variance is estimated, then turned into an interval as Wilson's is: the values that the estimate is not too
far from, with the variance that *they* would have. `m (1 - m) / variance` takes the place of the number of trials, as
it does in surveys. The percentile bootstrap is too short here: with 30 or 40 problems it covers 90 to 93 % where it
should cover 95 (`bench/intervals.py` measures both).

**Over problems** the variance is that of the problems' values, with Student's quantile.

**Over samples**, the problems given, a bootstrap of each problem's samples fails: where 1 of 32 is right, resampling
says that pass@32 is 0.64 and not 1. What is wanted is how much pass@k would vary if the same problems were sampled
again, which depends on their chances of success; how these are spread over the problems is estimated from all of
their counts together (the nonparametric maximum likelihood of a mixture of binomials, by EM on a grid). Student's
quantile has as many degrees of freedom as there are problems that vary, less one. For votes, where answers are
many, samples are drawn again from each problem's own, and only the variance of that is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stockpot.passk import STUDENT_T, Estimate

Floats = NDArray[np.float64]
NORMAL = 1.959964
STEPS, CELLS = 200, 200
RESAMPLES = 400


@dataclass(frozen=True)
class Spread:
    """How chances of success are spread over problems."""

    chances: Floats
    weights: Floats
    counts: Floats
    """[chances, samples + 1] the distribution of the number of right samples at each chance."""


@dataclass(frozen=True)
class Votes:
    """The samples of one problem: which answer each gives, and whether it is right."""

    groups: Sequence[int]
    right: Sequence[bool]


def over_problems(values: Sequence[float] | Floats) -> Estimate:
    """The mean of values in 0..1, one per problem, for problems drawn anew."""
    n, mean = len(values), float(np.mean(values))
    variance = float(np.var(values, ddof=1)) / n if n > 1 else 0.0
    return wilson(mean, variance, trials=n, quantile=student(n - 1))


def over_samples(counts: Sequence[int], table: Floats, spread: Spread, k: int) -> Estimate:
    """The mean of `table[count]`, the estimates of pass@k, for the same problems sampled anew."""
    mean = float(table[list(counts)].mean())
    moves = np.maximum(spread.counts @ table**2 - (spread.counts @ table) ** 2, 0.0)
    joint = spread.counts * spread.weights[:, None]
    by_count = (moves @ joint) / np.maximum(joint.sum(0), 1e-300)
    each = by_count[list(counts)]  # what the estimate of each problem is thought to vary by
    variance = float(spread.weights @ moves) / len(counts)
    freedom = float(each.sum() ** 2 / np.square(each).sum()) if each.any() else math.inf
    trials = len(counts) * max(1, (spread.counts.shape[1] - 1) // k)
    return wilson(mean, variance, trials=trials, quantile=student(max(freedom - 1, 1.0)))


def difficulties(counts: Sequence[int], samples: int) -> Spread:
    """The likeliest spread of chances behind these counts of right samples."""
    chances = np.concatenate([[0.0], (np.arange(CELLS) + 0.5) / CELLS, [1.0]])
    logs = [math.lgamma(samples + 1) - math.lgamma(c + 1) - math.lgamma(samples - c + 1) for c in range(samples + 1)]
    right = np.arange(samples + 1)
    likelihood = np.zeros((len(chances), samples + 1))
    inner = chances[1:-1, None]
    likelihood[1:-1] = np.exp(np.array(logs) + right * np.log(inner) + (samples - right) * np.log1p(-inner))
    likelihood[0, 0] = likelihood[-1, -1] = 1.0
    seen = np.bincount(np.array(counts), minlength=samples + 1) / len(counts)
    weights = np.full(len(chances), 1 / len(chances))
    for _ in range(STEPS):
        joint = likelihood * weights[:, None]
        weights = joint @ (seen / np.maximum(joint.sum(0), 1e-300))
    return Spread(chances, weights, likelihood)


def majority(votes: Votes) -> float:
    """Whether the most frequent answer is right; where several are, the mean over them. No answer has no vote.

    >>> majority(Votes([0, 0, 1, -1, -1, -1], [True, True, False, False, False, False]))
    1.0
    """
    return float(_majorities(votes, np.ones((1, len(votes.groups)), dtype=np.int64))[0])


def votes_again(ballots: Sequence[Votes], seed: int = 0) -> Estimate:
    """Majority over problems, for the same problems sampled anew."""
    draw = np.random.default_rng(seed)
    mean = float(np.mean([majority(votes) for votes in ballots]))
    variance = 0.0
    for votes in ballots:
        k = len(votes.groups)
        if len(set(zip(votes.groups, votes.right, strict=True))) > 1:
            times = draw.multinomial(k, np.full(k, 1 / k), size=RESAMPLES)
            variance += float(np.var(_majorities(votes, times)))
    return wilson(mean, variance / len(ballots) ** 2, trials=len(ballots), quantile=NORMAL)


def _majorities(votes: Votes, times: NDArray[np.int64]) -> Floats:
    """[resamples] of each way to count samples so many times."""
    groups, right = np.array(votes.groups), np.array(votes.right, dtype=float)
    size = int(groups.max()) + 1
    if size == 0:
        return np.zeros(len(times))
    member: Any = np.eye(size)[groups[groups >= 0]]  # [voters, groups]
    tally = times[:, groups >= 0] @ member
    hits = times[:, groups >= 0] @ (member * right[groups >= 0, None])
    top = (tally == tally.max(1, keepdims=True)) & (tally > 0)
    share = np.divide(hits, tally, out=np.zeros_like(hits), where=tally > 0)
    return np.asarray((share * top).sum(1) / np.maximum(top.sum(1), 1))


def wilson(mean: float, variance: float, *, trials: int, quantile: float) -> Estimate:
    """The interval of a share from its variance, where `trials` problems or samples were looked at.

    Near 0 and 1 a variance says little: the rare problem that would have made it is not among those seen. So there
    the effective number of trials is held down to the real one; with f trials' worth on the rarer side, to e^f times
    as many, which is no bound soon.

    >>> print(wilson(0.5, 0.0025, trials=100, quantile=1.96))
    0.500 [0.404, 0.596]
    >>> print(wilson(1.0, 0.0, trials=30, quantile=2.045))
    1.000 [0.878, 1.000]
    """
    inside = mean * (1 - mean)
    most = trials * math.exp(min(trials * min(mean, 1 - mean), 50.0))
    size = min(most, inside / variance) if variance > 0 and inside > 0 else most
    square = quantile**2 / size
    centre = (mean + square / 2) / (1 + square)
    reach = math.sqrt(max(0.0, square * inside + square**2 / 4)) / (1 + square)
    return Estimate(mean, min(max(0.0, centre - reach), mean), max(min(1.0, centre + reach), mean))


def student(freedom: float) -> float:
    """The 97.5 % quantile of Student's t; by its expansion where the table ends."""
    if freedom < 1:
        return math.inf
    if freedom <= len(STUDENT_T):
        return STUDENT_T[int(freedom) - 1]
    z = NORMAL
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2
