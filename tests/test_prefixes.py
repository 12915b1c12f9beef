"""Which rollouts are cut, where, and that no token forgets its author on the way."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from helpers import NOW, OLD, RUN, rollout, span
from stockpot.prefixes import FromHistory, NoPrefixes, head
from stockpot.types import Author, Candidate, Rollout, StockpotError


@pytest.fixture
def rng() -> random.Random:
    return random.Random(13)


def stored(rng: random.Random) -> Rollout:
    """A rollout by three authors, as the history gives it back: a prefix of its own, a tool's output, a live part."""
    return replace(
        rollout(
            rng,
            span(rng, Author(RUN, 40), 3, kind="prefix", source=17),
            span(rng, Author("a tool"), 2, known=False, trained=False),
            span(rng, OLD, 4),
        ),
        id=4711,
    )


def candidates(count: int, length: int = 9) -> list[Candidate]:
    return [Candidate(id=100 + i, version=i, reward=0.5, length=length) for i in range(count)]


@pytest.mark.parametrize("length", range(-2, 12))
def test_a_head_is_the_first_tokens_each_with_its_author_and_its_log_prob(length: int, rng: random.Random) -> None:
    whole = stored(rng)
    spans = head(whole, length)
    expected = max(0, min(length, len(whole) - 1))
    assert [t for s in spans for t in s.tokens] == list(whole.tokens)[:expected]

    def signed(these: tuple) -> list[tuple]:  # type: ignore[type-arg]
        return [
            (s.author, token, None if s.log_probs is None else s.log_probs[i], s.sampling)
            for s in these
            for i, token in enumerate(s.tokens)
        ]

    assert signed(spans) == signed(whole.spans)[:expected]
    assert all(len(s) and s.kind == "prefix" and s.source == 4711 for s in spans)


def test_a_head_leaves_the_last_token_to_the_continuation(rng: random.Random) -> None:
    """A stop token inside a prefix would ask the sampler to go on after the end."""
    for length in (1, 2, 9):
        whole = rollout(rng, span(rng, OLD, length))
        assert sum(map(len, head(whole, 10**6))) == length - 1


def test_what_was_never_to_be_trained_is_not_trained_as_a_prefix_either(rng: random.Random) -> None:
    """A tool's output keeps its mark through the history and the cut; the rule may only take gradient away."""
    assert [s.trained for s in head(stored(rng), 8)] == [True, False, True]
    assert [s.trained for s in head(stored(rng), 8, trained=False)] == [False, False, False]


def test_cuts_lie_between_the_two_fractions_and_reach_both(rng: random.Random) -> None:
    rule, whole = FromHistory(cut_low=0.25, cut_high=0.5), rollout(rng, span(rng, OLD, 40))
    lengths = Counter(sum(map(len, rule.cut(whole, NOW, rng))) for _ in range(2000))
    assert (min(lengths), max(lengths)) == (10, 20)
    assert lengths.most_common()[-1][1] > 20, "every place between them is cut at"


def test_cuts_and_choices_follow_from_the_generator(rng: random.Random) -> None:
    rule, whole = FromHistory(share=0.5), stored(rng)
    for seed in range(20):
        one, two = random.Random(seed), random.Random(seed)
        assert rule.choose(candidates(12), 8, NOW, one) == rule.choose(candidates(12), 8, NOW, two)
        assert rule.cut(whole, NOW, one) == rule.cut(whole, NOW, two)
    assert len({tuple(rule.choose(candidates(12), 8, NOW, random.Random(seed))) for seed in range(20)}) > 10


@pytest.mark.parametrize("known", [0, 1, 3, 4, 50])
def test_no_rollout_is_taken_twice_and_no_more_than_the_share(known: int, rng: random.Random) -> None:
    rule = FromHistory(share=0.5)
    taken: Counter[int] = Counter()
    for _ in range(300):
        chosen = rule.choose(candidates(known), 8, NOW, rng)
        assert len(chosen) == len(set(chosen)) == min(known, rule.wanted(8, NOW))
        taken.update(chosen)
    assert set(taken) == {c.id for c in candidates(known)}, "every candidate has its chance"


def test_a_rollout_too_short_to_cut_is_not_chosen(rng: random.Random) -> None:
    assert FromHistory(share=1.0).choose(candidates(5, length=1), 8, NOW, rng) == []
    assert len(FromHistory(share=1.0).choose(candidates(5, length=2), 8, NOW, rng)) == 5


def test_ages_are_counted_back_from_now() -> None:
    rule = FromHistory(min_age=4, max_age=10)
    assert rule.versions(now=3) is None
    assert rule.versions(now=4) == (0, 0)
    assert rule.versions(now=9) == (0, 5)
    low, high = rule.versions(now=50) or (0, 0)
    assert [version for version in range(60) if low <= version <= high] == [
        version for version in range(60) if 4 <= 50 - version <= 10
    ]
    assert FromHistory(share=0.0).versions(now=50) is None


def test_no_prefixes_wants_none() -> None:
    assert (NoPrefixes().wanted(8, NOW), NoPrefixes().total(4, 8, NOW)) == (0, 0)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"share": 1.5}, "share"),
        ({"share": float("nan")}, "share"),
        ({"min_age": 0}, "min_age"),
        ({"min_age": 9, "max_age": 8}, "max_age"),
        ({"cut_low": 0.6, "cut_high": 0.5}, "cut_low"),
        ({"cut_high": 1.1}, "cut_high"),
        ({"cut_low": -0.1}, "cut_low"),
        ({"cut_low": float("nan")}, "cut_low"),
        ({"schedule": "linear", "cut_high_end": 0.05}, "cut_low"),
        ({"schedule": "cosine", "cut_high_end": 1.5}, "cut_high"),
        ({"exactly": -1}, "exactly"),
        ({"warmup": -1}, "warmup"),
        ({"over": 0}, "over"),
        ({"cut_tokens": 0}, "cut_tokens"),
        ({"half_life": 0.0}, "half_life"),
        ({"half_life": float("nan")}, "half_life"),
        ({"share_end": -0.5}, "share_end"),
        ({"surprising": 1.01}, "surprising"),
        ({"ages": "old"}, "ages is one of uniform, recent, stratified"),
        ({"outcome": "sucess"}, "outcome"),
        ({"where": "anywhere"}, "where"),
        ({"schedule": "exponential"}, "schedule"),
        ({"gradient": True}, "gradient"),
    ],
    ids=str,
)
def test_an_impossible_rule_is_refused_in_one_line_that_names_the_option(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(StockpotError, match=named) as told:
        FromHistory(**wrong)
    assert "\n" not in str(told.value)
