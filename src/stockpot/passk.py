"""pass@k without bias, and intervals for it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval.

    >>> print(Estimate(0.5, 0.25, 0.75))
    0.500 [0.250, 0.750]
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self}"

    def __format__(self, how: str) -> str:
        """Three digits; `+` shows the signs, as differences want it."""
        sign = "+" if how == "+" else ""
        return "{0:{3}.3f} [{1:{3}.3f}, {2:{3}.3f}]".format(self.mean, self.low, self.high, sign)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that k of the samples, drawn without replacement, hold a right one (Chen et al., arXiv 2107.03374).

    1 - C(n - c, k) / C(n, k), as a product so that nothing overflows.

    >>> pass_at_k(4, 1, 4)
    1.0
    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k must lie in 1..{samples}, not {k}")
    if samples - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / n for n in range(samples - correct + 1, samples + 1))


def pass_at_budget(samples: int, correct: int, k: float) -> float:
    """pass@k where k is no whole number: on the straight line between its neighbours, pass@0 being 0.

    No approximation: it is what someone gets who draws a sample more or less by chance, so as to draw k on average.

    >>> pass_at_budget(4, 1, 1.5)
    0.375
    """
    whole = math.floor(k)
    below, above = (pass_at_k(samples, correct, n) if n else 0.0 for n in (whole, math.ceil(k)))
    return below + (k - whole) * (above - below)


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """pass@k over problems given as (samples, correct), with a bootstrap interval over problems."""
    return bootstrap([pass_at_k(samples, correct, k) for samples, correct in counts], resamples=resamples, seed=seed)


def bootstrap(values: Sequence[float], *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Mean and 95 % percentile bootstrap interval: for many values, such as problems."""
    rng = random.Random(seed)
    n = len(values)
    means = sorted(math.fsum(rng.choices(values, k=n)) / n for _ in range(resamples))
    return Estimate(math.fsum(values) / n, means[round(0.025 * (resamples - 1))], means[round(0.975 * (resamples - 1))])


def paired(first: Sequence[float], second: Sequence[float], *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Mean of second - first, with a bootstrap interval over problems: each is drawn with both of its values.

    >>> print(paired([0.0, 0.5, 1.0], [0.25, 0.75, 1.25]))
    0.250 [0.250, 0.250]
    """
    return bootstrap([b - a for a, b in zip(first, second, strict=True)], resamples=resamples, seed=seed)


def wilson(samples: int, correct: int) -> Estimate:
    """A share with its 95 % interval after Wilson, which stays within 0..1 and has a width where all are wrong.

    >>> print(wilson(16, 0))
    0.000 [0.000, 0.194]
    """
    share, z = correct / samples, 1.959964
    spread = z * math.sqrt(share * (1 - share) / samples + (z / (2 * samples)) ** 2)
    middle, scale = share + z * z / (2 * samples), 1 + z * z / samples
    low, high = (middle - spread) / scale, (middle + spread) / scale
    return Estimate(share, min(share, max(0.0, low)), max(share, min(1.0, high)))  # rounding, at shares of 0 and 1


STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's t for 1 to 10 degrees of freedom."""


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and 95 % t interval: for few values, such as seeds. One value has no interval, and gets an infinite one.

    >>> print(over_seeds([0.0, 1.0]))
    0.500 [-5.853, 6.853]
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Estimate(mean, -math.inf, math.inf)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    reach = (STUDENT_T[n - 2] if n - 2 < len(STUDENT_T) else 1.96 + 2.5 / (n - 1)) * spread
    return Estimate(mean, mean - reach, mean + reach)
