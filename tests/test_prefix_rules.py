"""The options of `FromHistory`: which ages and outcomes, where to cut, how many when, and what carries gradient."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, permutations
from typing import Any

import pytest

from helpers import NOW, OLD, RUN, rollout, span
from stockpot.models import load_tokenizer
from stockpot.prefixes import FromHistory
from stockpot.prompts import step_ends
from stockpot.tasks import Countdown, Dataset
from stockpot.types import Author, Candidate, Rollout, Span


@pytest.fixture
def rng() -> random.Random:
    return random.Random(29)


def written(versions: Sequence[int], rewards: Sequence[float] | None = None) -> list[Candidate]:
    """One candidate of each version, its id 100 more."""
    return [
        Candidate(100 + version, version, reward, length=9)
        for version, reward in zip(versions, rewards or [0.0] * len(versions), strict=True)
    ]


def signed(log_probs: Sequence[float], *, first: int = 1) -> Rollout:
    """A stored rollout of one span: tokens first, first + 1, ..., with these log-probs."""
    tokens = range(first, first + len(log_probs))
    return replace(rollout(random.Random(0), Span(OLD, list(tokens), log_probs), reward=1.0), id=4711)


def length(spans: Sequence[Span]) -> int:
    return sum(map(len, spans))


# --- which ages -----------------------------------------------------------------------------------------------------


def chances(weights: dict[int, float], count: int) -> dict[frozenset[int], float]:
    """How likely each set is when `count` are drawn one after the other, in proportion to the weights still there."""
    found: Counter[frozenset[int]] = Counter()
    for order in permutations(weights, count):
        chance, left = 1.0, sum(weights.values())
        for one in order:
            chance *= weights[one] / left
            left -= weights[one]
        found[frozenset(order)] += chance  # type: ignore[assignment]
    return dict(found)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("half_life", [3.0, 50.0])
def test_recent_ages_are_drawn_by_their_weights_without_replacement(
    half_life: float, count: int, rng: random.Random
) -> None:
    """Against every order of drawing, enumerated: half as likely for each half-life older."""
    versions, draws = (70, 78, 83, 84), 6000
    rule = FromHistory(ages="recent", half_life=half_life, exactly=count)
    taken = Counter(
        frozenset(i - 100 for i in rule.choose(written(versions), 8, 87, rng)) for _ in range(draws)
    )  # ids are versions + 100
    expected = chances({version: 0.5 ** ((87 - version) / half_life) for version in versions}, count)
    assert sum(expected.values()) == pytest.approx(1)
    for some, chance in expected.items():
        assert taken[some] / draws == pytest.approx(chance, abs=4 * (chance * (1 - chance) / draws) ** 0.5 + 1e-9)


def test_with_a_tiny_half_life_the_youngest_are_taken(rng: random.Random) -> None:
    """Weights far below the smallest float still have an order."""
    rule = FromHistory(ages="recent", half_life=1e-6, exactly=2)
    for _ in range(50):
        assert set(rule.choose(written([3, 9, 40, 41, 7]), 8, 1000, rng)) == {140, 141}


@pytest.mark.parametrize("known", [1, 3, 4, 7, 30])
def test_stratified_ages_take_one_from_each_equal_stratum(known: int, rng: random.Random) -> None:
    """Sorted by version and dealt into as many strata as there are prefixes: one each."""
    versions = list(range(known))
    rng.shuffle(versions)
    rule = FromHistory(ages="stratified", exactly=4)
    count, taken = min(known, 4), Counter[int]()
    strata = list(pairwise(i * known // count for i in range(count + 1)))
    assert max(b - a for a, b in strata) - min(b - a for a, b in strata) <= 1, "equal, as far as they can be"
    for _ in range(400):
        chosen = sorted(i - 100 for i in rule.choose(written(versions), 8, 99, rng))
        assert len(chosen) == count
        assert all(low <= version < high for version, (low, high) in zip(chosen, strata, strict=True))
        taken.update(chosen)
    assert set(taken) == set(range(known)), "every member of a stratum has its chance"


@pytest.mark.parametrize("ages", ["uniform", "recent", "stratified"])
def test_however_ages_are_drawn_no_rollout_serves_twice_and_none_may_be_missing(ages: Any, rng: random.Random) -> None:
    for known in (0, 1, 2, 5):
        chosen = FromHistory(ages=ages, share=0.5).choose(written(range(known)), 8, NOW, rng)
        assert len(chosen) == len(set(chosen)) == min(known, 4)
    assert FromHistory(ages=ages, share=0.0).choose(written(range(9)), 8, NOW, rng) == []


# --- which outcomes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "rewards", "expected"),
    [
        ("all", [0, 1, 0.5, 0.6], [0, 1, 2, 3]),
        ("success", [0, 1, 0.5, 0.6], [1, 3]),
        ("failure", [0, 1, 0.5, 0.6], [0, 2]),
        ("success", [0, 0.5], []),
        ("failure", [1, 0.6], []),
        ("balance", [0, 0, 1], [2]),
        ("balance", [1, 0, 1], [1]),
        ("balance", [0, 1], [1]),
        ("balance", [0, 0], []),
        ("balance", [1, 1], []),
        ("balance", [], []),
    ],
)
def test_outcomes(outcome: Any, rewards: list[float], expected: list[int], rng: random.Random) -> None:
    """Balance takes successes where at most half succeed, failures elsewhere; with nothing of the kind, no prefix."""
    rule = FromHistory(outcome=outcome, share=1.0)
    assert sorted(rule.choose(written(range(len(rewards)), rewards), 8, NOW, rng)) == [100 + i for i in expected]


# --- where to cut ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 5, 8, 9, 40])
def test_a_fixed_cut_is_that_long_and_leaves_the_last_token(tokens: int, rng: random.Random) -> None:
    whole = signed([-0.5] * 9)
    assert length(FromHistory(where="tokens", cut_tokens=tokens).cut(whole, NOW, rng)) == min(tokens, 8)


def test_a_cut_at_surprise_is_before_the_least_likely_token_between_the_fractions(rng: random.Random) -> None:
    """The continuation begins with the choice that was open; what lies outside the fractions does not count."""
    rule = FromHistory(where="surprise", cut_low=0.2, cut_high=0.6)
    log_probs = [-9.0, -8.0, -1.0, -0.1, -3.0, -0.2, -2.0, -7.0, -8.0, -9.0]
    assert length(rule.cut(signed(log_probs), NOW, rng)) == 4
    log_probs[6] = -3.5  # place 6 is the last allowed
    assert length(rule.cut(signed(log_probs), NOW, rng)) == 6
    log_probs[2] = -4.0  # and place 2 the first
    assert length(rule.cut(signed(log_probs), NOW, rng)) == 2
    for _ in range(200):
        low, high = sorted((rng.random(), rng.random()))
        some = signed([-rng.random() for _ in range(rng.randrange(2, 12))])
        cut = length(FromHistory(where="surprise", cut_low=low, cut_high=high).cut(some, NOW, rng))
        assert cut == 0 or (low * len(some) <= cut <= high * len(some) and 1 <= cut < len(some))


def test_a_first_token_that_surprises_most_is_no_place_to_cut(rng: random.Random) -> None:
    """Before it there is nothing to take: the next best place is taken."""
    rule = FromHistory(where="surprise", cut_low=0.0, cut_high=1.0)
    assert length(rule.cut(signed([-9.0, -1.0, -2.0, -1.0]), NOW, rng)) == 2


def test_a_cut_at_a_step_is_after_one_of_its_ends_each_alike(rng: random.Random) -> None:
    """Tokens 1 to 12; ends outside the fractions do not count."""
    rule, whole = FromHistory(where="step", cut_low=0.25, cut_high=0.75), signed([-0.5] * 12)
    taken = Counter(length(rule.cut(whole, NOW, rng, {1, 3, 5, 9, 11})) for _ in range(600))
    assert set(taken) == {3, 5, 9} and min(taken.values()) > 140
    assert rule.cut(whole, NOW, rng, {1, 2, 10, 11, 12}) == ()
    assert rule.cut(whole, NOW, rng) == ()


def test_a_step_that_ends_with_the_response_is_no_place_to_cut(rng: random.Random) -> None:
    """Else the cut would fall one token before the end of the step."""
    rule = FromHistory(where="step", cut_low=0.0, cut_high=1.0)
    assert rule.cut(signed([-0.5] * 5), NOW, rng, {5}) == ()
    assert {length(rule.cut(signed([-0.5] * 5), NOW, rng, {4, 5})) for _ in range(20)} == {4}


@pytest.mark.parametrize("where", ["surprise", "step"])
def test_no_place_between_the_fractions_is_no_prefix(where: Any, rng: random.Random) -> None:
    rule = FromHistory(where=where, cut_low=0.1, cut_high=0.15)
    assert rule.cut(signed([-0.5] * 6), NOW, rng, set(range(1, 7))) == ()
    assert length(rule.cut(signed([-0.5] * 8), NOW, rng, set(range(1, 9)))) == 1


def test_countdowns_steps_end_with_its_verdict(started: str) -> None:
    tokenizer = load_tokenizer(started)
    assert [tokenizer.decode([token]) for token in step_ends(Countdown(), tokenizer)] == ["no"]
    assert step_ends(Dataset(train="a.jsonl"), tokenizer) == frozenset()


# --- how many, and when ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [("constant", [8, 8, 8, 8, 8]), ("linear", [8, 6, 4, 0, 0]), ("cosine", [8, 7, 4, 0, 0])],
)
def test_schedules_move_share_and_cut_from_the_warm_ups_end(schedule: Any, shares: list[int]) -> None:
    """At their start, a quarter, half, their end and after it; 8 rollouts a group, responses of 100 tokens."""
    rule = FromHistory(
        share=1.0, share_end=0.0, schedule=schedule, warmup=10, over=40, cut_low=0.2, cut_high=0.6, cut_high_end=0.2
    )
    whole, moments = signed([-0.5] * 100), [10, 20, 30, 50, 500]
    assert [rule.wanted(8, now) for now in moments] == shares
    for now, share in zip(moments, shares, strict=True):
        assert len(rule.choose(written(range(9)), 8, now, random.Random(0))) == share
        assert (rule.versions(now) is None) == (share == 0)
        seen = [length(rule.cut(whole, now, random.Random(seed))) for seed in range(600)]
        exact = {"constant": 1.0, "linear": share / 8, "cosine": [1, 0.8535533, 0.5, 0, 0][moments.index(now)]}
        assert min(seen) == 20 and max(seen) == round(20 + 40 * exact[schedule])


def test_schedules_can_rise(rng: random.Random) -> None:
    rule = FromHistory(share=0.0, share_end=1.0, schedule="linear", over=4)
    assert [rule.wanted(8, now) for now in range(6)] == [0, 2, 4, 6, 8, 8]
    assert rule.versions(4) == (0, 0), "at the schedule's start there is none, later there is"


def test_exactly_so_many_of_a_group_whatever_share_and_schedule(rng: random.Random) -> None:
    rule = FromHistory(exactly=3, share=0.0, schedule="linear", over=5)
    for now in (4, 5, 50):
        assert rule.wanted(8, now) == len(rule.choose(written(range(9)), 8, now, rng)) == 3
        assert rule.versions(now) is not None
    assert rule.wanted(2, 4) == 2, "no more than there are rollouts"


@pytest.mark.parametrize("many", [{"share": 0.5}, {"exactly": 4}], ids=str)
def test_before_the_warm_up_is_over_no_prefix_is_wanted(many: dict[str, Any], rng: random.Random) -> None:
    rule = FromHistory(warmup=20, **many)
    assert rule.versions(19) is None and rule.wanted(8, 19) == 0
    assert rule.choose(written(range(9)), 8, 19, rng) == []
    assert rule.versions(20) == (0, 16) and rule.wanted(8, 20) == 4


# --- what carries gradient ------------------------------------------------------------------------------------------


def test_without_gradient_no_prefix_token_is_trained(rng: random.Random) -> None:
    assert [s.trained for s in FromHistory(gradient="none").cut(signed([-0.5] * 9), NOW, rng)] == [False]
    assert [s.trained for s in FromHistory().cut(signed([-0.5] * 9), NOW, rng)] == [True]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.25, 0.5, 1.0])
def test_exactly_the_most_surprising_share_carries_gradient(share: float, rng: random.Random) -> None:
    """Token by token, also where log-probs are equal; authors, log-probs and order stay as they were."""
    rule = FromHistory(gradient="surprise", surprising=share, where="tokens", cut_tokens=12)
    for values in ([-rng.random() for _ in range(15)], [-rng.randrange(3) / 2 for _ in range(15)], [0.0] * 15):
        whole = replace(
            rollout(rng, Span(Author(RUN, 40), [1] * 5, values[:5], kind="prefix"), Span(OLD, [2] * 10, values[5:])),
            id=7,
        )
        spans = rule.cut(whole, NOW, rng)
        marks = [s.trained for s in spans for _ in s.tokens]
        assert [t for s in spans for t in s.tokens] == [1] * 5 + [2] * 7
        assert [p for s in spans for p in s.log_probs or ()] == list(whole.spans[0].log_probs or ()) + list(
            whole.spans[1].log_probs or ()
        )[:7]
        assert [s.author.version for s in spans for _ in s.tokens] == [40] * 5 + [87] * 7
        assert all(s.kind == "prefix" and s.source == 7 and len(s) for s in spans)
        assert sum(marks) == -(-12 * share // 1), "exactly the share, rounded up"
        carried = [p for p, mark in zip(values, marks, strict=False) if mark]
        others = [p for p, mark in zip(values, marks, strict=False) if not mark]
        assert not carried or not others or max(carried) <= min(others)


def test_surprise_trains_nothing_that_was_never_to_be_trained(rng: random.Random) -> None:
    """A masked token gives its place to the next; a token of unknown probability surprises nobody."""
    masked = Span(OLD, [1, 2], [-9.0, -8.0], trained=False)
    whole = rollout(rng, masked, span(rng, Author("a tool"), 3, known=False), Span(OLD, [3, 4, 5], [-0.1, -2.0, -1.0]))
    rule = FromHistory(gradient="surprise", surprising=0.25, where="tokens", cut_tokens=7)
    marks = [s.trained for s in rule.cut(whole, NOW, rng) for _ in s.tokens]
    assert marks == [False] * 6 + [True]
