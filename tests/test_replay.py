"""Whole-trajectory replay: what is replayed is what was stored, costs no decoding, and is compared as asked."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import NOW, OLD, RUN, rollout, span
from runs import metrics, stockpot
from stockpot.algorithms import GRPO
from stockpot.algorithms.base import group_normalised
from stockpot.history import History
from stockpot.prefixes import FromHistory, Replay, prefixrl
from stockpot.train import train
from stockpot.types import Author, Candidate, Group, Prompt, Rollout
from test_loop import short, stored


@pytest.fixture
def rng() -> random.Random:
    return random.Random(3)


def test_a_rollout_is_taken_whole_with_its_authors_its_marks_and_its_reward(rng: random.Random) -> None:
    tool = span(rng, Author("a tool"), 2, known=False, trained=False)
    past = replace(rollout(rng, span(rng, Author(RUN, 40), 3), tool, span(rng, OLD, 4), reward=0.75), id=4711)
    begun = Replay().begin(past, NOW, rng)
    assert begun.reward == 0.75 and begun.tokens == past.tokens and begun.prefix_length == len(past)
    for mine, theirs in zip(begun.spans, past.spans, strict=True):
        assert mine == replace(theirs, kind="prefix", source=4711)


def test_a_rollout_that_is_cut_loses_its_reward(rng: random.Random) -> None:
    past = replace(rollout(rng, span(rng, OLD, 9), reward=0.75), id=4711)
    begun = FromHistory(cut_low=0.99, cut_high=1.0).begin(past, NOW, rng)
    assert begun.reward is None and len(begun) == 8


def test_replay_chooses_as_prefixes_from_history_do() -> None:
    known = [Candidate(100 + i, i, float(i % 2), 9) for i in range(20)]
    options = {"share": 0.5, "min_age": 2, "max_age": 30, "ages": "recent", "outcome": "success", "warmup": 3}
    one, two = Replay(**options), FromHistory(**options)  # type: ignore[arg-type]
    for now in (2, 3, 25):
        assert one.versions(now) == two.versions(now)
        assert one.wanted(8, now) == two.wanted(8, now)
        assert one.choose(known, 8, now, random.Random(now)) == two.choose(known, 8, now, random.Random(now))


def test_prefixrl_cuts_successes_and_gives_their_heads_no_gradient(rng: random.Random) -> None:
    rule = prefixrl()
    known = [Candidate(i, 0, float(i % 2), 9) for i in range(8)]
    assert all(i % 2 for i in rule.choose(known, 8, NOW, rng))
    assert not any(piece.trained for piece in rule.cut(rollout(rng, span(rng, OLD, 40)), NOW, rng))


def test_advantages_by_kind_compare_old_with_old_and_new_with_new(rng: random.Random) -> None:
    prompt = Prompt("p", [1])
    old = [Rollout(prompt, (span(rng, OLD, 2, kind="prefix"),), r) for r in (1.0, 1.0, 0.0)]
    new = [Rollout(prompt, (span(rng, OLD, 2),), r) for r in (0.0, 0.25)]
    mixed = Group(prompt, (old[0], new[0], old[1], new[1], old[2]))
    split = GRPO(compare="kind", scale_by_std=False).advantages(mixed)
    assert split == pytest.approx([1 / 3, -0.125, 1 / 3, 0.125, -2 / 3])
    joint = GRPO(scale_by_std=False).advantages(mixed)
    assert joint == pytest.approx([r - 0.45 for r in (1.0, 0.0, 1.0, 0.25, 0.0)])
    scaled = GRPO(compare="kind").advantages(mixed)
    assert [scaled[i] for i in (0, 2, 4)] == group_normalised(Group(prompt, tuple(old)))
    assert GRPO(compare="kind").advantages(Group(prompt, (old[0], new[0]))) == [0.0, 0.0]


@pytest.fixture(scope="module")
def replayed(started: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Replay]:
    rule = Replay(share=0.5)
    folder = tmp_path_factory.mktemp("replay") / "run"
    train(short(started, steps=5, prefixes=rule, algorithm=GRPO(compare="kind")), folder)
    return folder, rule


def test_replayed_rollouts_are_learnt_from_but_neither_decoded_nor_stored_again(replayed: tuple[Path, Replay]) -> None:
    run, _ = replayed
    rows = metrics(run)
    seen = 0
    for step in range(5):
        row, fresh = rows[step + 1], stored(run, step)
        old = round(row["prefix/share"] * 16)
        seen += old
        assert len(fresh) + old == 16, "4 prompts, groups of 4"
        assert old + row["prefix/missing"] == 8
        assert all(r.prefix_length == 0 for r in fresh)
        assert row["rollout/decoded"] == sum(map(len, fresh))
        assert row["all/tokens"] == sum(map(len, fresh)) + row["prefix/tokens"]
        if old:
            total = row["reward/with_prefix"] * old + sum(r.reward or 0.0 for r in fresh)
            assert row["reward/mean"] == pytest.approx(total / 16)
            assert row["prefix/age_mean"] >= 1
            assert row["prefix/ratio_mean"] != 1.0
    assert seen >= 8
    with History.open(run / "history.sqlite", read_only=True) as history:
        assert history.summary()["with_prefix"] == 0


def test_a_step_may_be_all_replay(started: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(short(started, steps=4, prefixes=Replay(share=1.0)), run)
    rows = metrics(run)
    assert any(row.get("prefix/share", 0) > 0 for row in rows)
    assert all(row["rollout/decoded"] == sum(map(len, stored(run, i))) for i, row in enumerate(rows[1:]))


@pytest.mark.parametrize("name", ["replay", "prefixrl"])
def test_the_command_line_knows_it(name: str) -> None:
    assert name in stockpot("train", "--help").out
    told = stockpot("train", "--prefixes", name, "--prefixes.min-age", "0")
    assert told.code == 2 and "min_age" in told.err
