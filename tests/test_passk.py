"""pass@k against counting every subset; intervals against simulation."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from stockpot.config import Evaluation
from stockpot.evaluate import sizes
from stockpot.passk import STUDENT_T, bootstrap, mean_pass_at_k, over_seeds, paired, pass_at_budget, pass_at_k
from stockpot.types import StockpotError


def by_counting(samples: int, correct: int, k: int) -> float:
    """The share of all subsets of k samples that hold a right one."""
    subsets = list(itertools.combinations([i < correct for i in range(samples)], k))
    return sum(any(subset) for subset in subsets) / len(subsets)


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_sample() -> None:
    for samples in range(1, 8):
        for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
            assert pass_at_k(samples, correct, k) == pytest.approx(by_counting(samples, correct, k), abs=1e-14)


def test_pass_at_k_is_unbiased_for_the_chance_that_one_of_k_fresh_samples_is_right() -> None:
    """Summed over how many of 9 samples come out right, at any rate of success."""
    for rate, k in itertools.product((0.0, 0.03, 0.4, 1.0), (1, 2, 9)):
        mean = sum(
            math.comb(9, right) * rate**right * (1 - rate) ** (9 - right) * pass_at_k(9, right, k)
            for right in range(10)
        )
        assert mean == pytest.approx(1 - (1 - rate) ** k, abs=1e-12)


def test_many_samples_overflow_nothing() -> None:
    assert pass_at_k(100_000, 10, 1000) == pytest.approx(1 - 0.99**10, abs=1e-4)


def test_a_budget_between_two_numbers_of_samples_is_spent_on_either_by_chance() -> None:
    for correct, k in itertools.product(range(6), (0.0, 0.25, 1.0, 2.75, 4.5, 5.0)):
        less, share = int(k), k % 1
        expected = (1 - share) * (pass_at_k(5, correct, less) if less else 0.0)
        expected += share * pass_at_k(5, correct, less + 1) if share else 0.0
        assert pass_at_budget(5, correct, k) == pytest.approx(expected, abs=1e-14)


def test_a_paired_difference_draws_both_values_of_a_problem_together() -> None:
    """Problems differ much and the pairs alike: unpaired, the interval would be as wide as the problems differ."""
    first = [i / 40 for i in range(40)]
    second = [value + (0.25 if i % 2 else 0.0) for i, value in enumerate(first)]
    estimate = paired(first, second)
    assert estimate.mean == pytest.approx(0.125)
    assert estimate.high - estimate.low < 0.1 < bootstrap(first).high - bootstrap(first).low
    assert 0 < estimate.low < 0.125 < estimate.high < 0.25
    with pytest.raises(ValueError, match="shorter"):
        paired(first, second[:-1])


@pytest.mark.parametrize("k", [0, 5, -1])
def test_a_k_that_cannot_be_drawn_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.4"):
        pass_at_k(4, 2, k)


def test_the_mean_over_problems_lies_in_its_interval_and_the_same_seed_gives_the_same_one() -> None:
    counts = [(16, i % 5) for i in range(40)]
    one, two = (mean_pass_at_k(counts, 4, seed=3) for _ in range(2))
    assert one == two
    assert one.low < one.mean < one.high
    assert one.mean == pytest.approx(sum(by_counting(16, c, 4) for _, c in counts) / 40)
    assert mean_pass_at_k([(8, 8)] * 5, 2) == mean_pass_at_k([(4, 4)], 1)


def share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


def test_the_bootstrap_over_problems_covers_the_truth_as_often_as_it_says() -> None:
    """Problems of unequal difficulty, 8 samples each, pass@4: the truth is the mean over the whole population."""
    rng = random.Random(0)
    rates = [rng.betavariate(0.5, 1.0) for _ in range(20_000)]
    truth = math.fsum(1 - (1 - rate) ** 4 for rate in rates) / len(rates)
    hits = []
    for trial in range(600):
        counts = [(8, sum(rng.random() < rate for _ in range(8))) for rate in rng.choices(rates, k=80)]
        estimate = mean_pass_at_k(counts, 4, resamples=250, seed=trial)
        hits.append(estimate.low <= truth <= estimate.high)
    assert 0.93 <= share(hits) <= 0.97


@pytest.mark.parametrize("seeds", [2, 3, 5, 11, 12, 30])
def test_the_interval_over_seeds_covers_the_truth_as_often_as_it_says(seeds: int) -> None:
    rng = random.Random(seeds)
    hits = []
    for _ in range(6000):
        estimate = over_seeds([rng.gauss(0.4, 0.1) for _ in range(seeds)])
        hits.append(estimate.low <= 0.4 <= estimate.high)
    assert 0.94 <= share(hits) <= 0.96


def test_the_quantiles_of_students_t_are_right() -> None:
    """By integrating the density: the table is typed in, and a typing error would pass unseen."""
    for freedom, quantile in enumerate(STUDENT_T, start=1):
        scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
        steps = 20_000
        inside = sum(
            scale * (1 + (quantile * (i + 0.5) / steps) ** 2 / freedom) ** (-(freedom + 1) / 2) * quantile / steps
            for i in range(steps)
        )
        assert 0.5 + inside == pytest.approx(0.975, abs=2e-5)


def test_one_seed_proves_nothing() -> None:
    estimate = over_seeds([0.7])
    assert (estimate.mean, estimate.low, estimate.high) == (0.7, -math.inf, math.inf)


def test_a_bootstrap_of_equal_values_has_no_width() -> None:
    estimate = bootstrap([0.25] * 10)
    assert estimate.low == estimate.mean == estimate.high == 0.25


def test_further_k_are_drawn_and_impossible_ones_refused() -> None:
    assert sizes(20, (10,)) == [1, 2, 4, 8, 10, 16, 20]
    with pytest.raises(StockpotError, match="ks"):
        Evaluation(samples=8, ks=(10,))
