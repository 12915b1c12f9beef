"""The intervals of benchmark figures hold the truth as often as they say; a smaller `bench/intervals.py`."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from stockpot.benchmarks import intervals
from stockpot.benchmarks.figures import Graded, figures, pass_line
from stockpot.benchmarks.intervals import Votes


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[1] / "bench" / "intervals.py"
    spec = importlib.util.spec_from_file_location("bench_intervals", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["bench_intervals"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pass_at_k_is_the_closed_form_on_random_tables(bench: ModuleType) -> None:
    assert bench.closed_form(2000, seed=1) < 1e-12


@pytest.mark.parametrize(("problems", "k"), [(40, 1), (164, 4)])
def test_intervals_hold_the_truth_as_often_as_they_say(bench: ModuleType, problems: int, k: int) -> None:
    """150 trials: 95 % give or take 4 by luck."""
    cell = bench.passes("contest", problems, 8, k, 150, seed=2)
    assert 0.91 <= cell.share("problems") <= 0.99, str(cell)
    assert 0.91 <= cell.share("samples") <= 0.99, str(cell)


def test_pass_at_all_samples_is_not_resampled(bench: ModuleType) -> None:
    """Where 1 of 8 is right, a bootstrap says that pass@8 is 0.66; and with 40 problems the percentile one is short."""
    cell = bench.passes("even", 40, 8, 8, 100, seed=3)
    assert 0.86 <= cell.share("samples") <= 1.0 and cell.share("problems") >= 0.89, str(cell)


def test_where_all_are_right_or_wrong_there_is_still_an_interval() -> None:
    """As many problems as were seen may hide a rare one: for 30, about three thirtieths."""
    for count, mean in ((0, 0.0), (8, 1.0)):
        line = pass_line([count] * 30, 8, 8)
        for estimate in (line.problems, line.samples):
            reach = estimate.high - estimate.low
            assert estimate.mean == pytest.approx(mean) and 0.05 < reach < 0.2
    assert pass_line([3], 8, 1).problems.high - pass_line([3], 8, 1).problems.low > 0.99, "one problem proves nothing"


def test_the_spread_of_difficulty_is_found_again() -> None:
    """Half of the problems are never solved, half are solved 6 times in 10: EM finds two heaps."""
    rng = np.random.default_rng(0)
    counts = rng.binomial(16, rng.choice([0.0, 0.6], 400)).tolist()
    spread = intervals.difficulties(counts, 16)
    assert spread.weights.sum() == pytest.approx(1)
    assert spread.weights[spread.chances < 0.1].sum() == pytest.approx(counts.count(0) / 400, abs=0.02)
    assert spread.weights[(spread.chances > 0.5) & (spread.chances < 0.7)].sum() > 0.4
    assert spread.weights @ spread.counts == pytest.approx(np.bincount(counts, minlength=17) / 400, abs=0.03)


@pytest.mark.parametrize(
    ("groups", "right", "expected"),
    [
        ([0, 0, 1], [True, True, False], 1.0),
        ([0, 1, 1], [True, False, False], 0.0),
        ([0, 1], [True, False], 0.5),
        ([-1, -1, -1, 0], [False, False, False, True], 1.0),
        ([-1, -1], [False, False], 0.0),
        ([0, 1, 2], [True, False, False], 1 / 3),
    ],
)
def test_the_majority_is_that_of_answers_given(groups: list[int], right: list[bool], expected: float) -> None:
    assert intervals.majority(Votes(groups, right)) == pytest.approx(expected)


def test_votes_drawn_again_vary_as_a_binomial_does() -> None:
    """Two answers, 5 right of 9: the chance that 9 fresh votes have a right majority is a sum of binomials."""
    votes = Votes([0] * 5 + [1] * 4, [True] * 5 + [False] * 4)
    chance = sum(math.comb(9, c) * (5 / 9) ** c * (4 / 9) ** (9 - c) for c in range(5, 10))
    ballots = [votes] * 60 + [Votes([1] * 4 + [0] * 5, [True] * 4 + [False] * 5)] * 60
    estimate = intervals.votes_again(ballots)
    reach = intervals.NORMAL * math.sqrt(chance * (1 - chance) / 120)
    assert estimate.mean == 0.5 and estimate.high - 0.5 == pytest.approx(reach, rel=0.05)
    assert estimate.high - 0.5 == pytest.approx(0.5 - estimate.low)


def test_students_quantiles_go_on_where_the_table_ends() -> None:
    assert intervals.student(1) == 12.706 and intervals.student(0) == math.inf
    for freedom, known in ((11, 2.2010), (29, 2.0452), (120, 1.9799)):
        assert intervals.student(freedom) == pytest.approx(known, abs=3e-3)


def test_figures_refuse_problems_of_unequal_samples() -> None:
    one = Graded("a", True, True, 0, 3, False, -1.0)
    with pytest.raises(ValueError, match="same number of samples"):
        figures([one, one, Graded("b", False, True, -1, 2, True, -1.0)], votes=True)
