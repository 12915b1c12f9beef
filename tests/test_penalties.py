"""Penalties: what each function sees, how they are put together, and that held-out figures never feel them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import LIVE, rollout, span
from runs import metrics
from stockpot.rewards.penalties import Penalties, garbled, overlong, repetition
from stockpot.tasks import Countdown
from stockpot.train import train
from stockpot.types import Rollout, StockpotError
from test_loop import short, stored
from tiny import recipe

TOKENIZER = Countdown().tokenizer()


def of(tokens: list[int], reward: float = 1.0, finish: str = "stop") -> Rollout:
    one = rollout(random.Random(0), span(random.Random(0), LIVE, len(tokens)), reward=reward)
    return replace(one, spans=(replace(one.spans[0], tokens=tokens),), finish=finish)  # type: ignore[arg-type]


def test_repetition_is_the_share_of_ngrams_seen_before() -> None:
    assert repetition([1, 2, 3, 4, 5], 2) == 0.0
    assert repetition([7] * 10, 2) == pytest.approx(8 / 9)
    assert repetition([1, 2], 3) == repetition([], 1) == 0.0
    rng = random.Random(0)
    for _ in range(50):
        tokens, size = [rng.randrange(4) for _ in range(rng.randrange(30))], rng.randrange(1, 5)
        grams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
        repeats = sum(gram in grams[:i] for i, gram in enumerate(grams))
        assert repetition(tokens, size) == pytest.approx(repeats / len(grams) if grams else 0.0)


def test_overlong_rises_along_the_margin_and_nowhere_else() -> None:
    values = [overlong(length, 100, 10) for length in (0, 90, 91, 95, 99, 100, 120)]
    assert values == pytest.approx([0, 0, 0.1, 0.5, 0.9, 1, 1])


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("Let θ be x² + 1, so the answer is \\frac{1}{2}.", False),
        ("答えは四十二です。ハングル", False),
        ("the answer это число", True),
        ("so we get 答案是四十二 which is right", True),
        ("\ufffd\ufffd\ufffd ok", True),
        ("bell \x07\x07", True),
        ("", False),
        ("1 + 1 = 2", False),
        ("naïve café, Ærø", False),
    ],
)
def test_garbled_is_broken_or_mixed(text: str, bad: bool) -> None:
    assert (garbled(text) > 0.1) == bad


def test_a_penalty_takes_the_rewards_place_or_is_added_once() -> None:
    looped = of([5] * 20, 1.0, "length")
    for how, expected in (("set", -1.0), ("add", 0.0)):
        rule = Penalties(how=how, repetition=0.5, size=2, overlong=True)  # type: ignore[arg-type]
        (judged,), met = rule([looped], TOKENIZER, 20)
        assert judged.reward == expected
        assert met == {"penalty/repetition": 1.0, "penalty/overlong": 1.0, "penalty/garbled": 0.0}
    (same,), none = Penalties()([looped], TOKENIZER, 20)
    assert same is looped and none == {}


def test_the_slope_is_added_and_the_end_is_the_whole_penalty() -> None:
    rule = Penalties(overlong=True, margin=10)
    judged, met = rule([of([*range(20, 35)], 1.0), of([*range(20, 40)], 1.0, "length"), of([20], 1.0)], TOKENIZER, 20)
    assert [r.reward for r in judged] == [0.5, -1.0, 1.0]
    assert met["penalty/overlong"] == pytest.approx(2 / 3)


def test_a_response_that_stops_on_its_last_token_is_not_overlong_without_a_margin() -> None:
    (judged,), _ = Penalties(overlong=True)([of([20] * 20, 1.0, "stop")], TOKENIZER, 20)
    assert judged.reward == 1.0


def test_training_feels_them_and_the_held_out_prompts_do_not(started: str, tmp_path: Path) -> None:
    penalties = Penalties(overlong=True)
    for name, config in {
        "with": short(started, penalties=penalties),
        "without": short(started, penalties=Penalties()),
    }.items():
        train(replace(config, steps=1), tmp_path / name)
    one, other = metrics(tmp_path / "with"), metrics(tmp_path / "without")
    assert one[0] == other[0]  # the evaluation before training
    row, rollouts = one[1], stored(tmp_path / "with", 0)
    cut = [r for r in rollouts if r.finish == "length"]
    assert cut and len(cut) < len(rollouts) and all(r.reward == -1.0 for r in cut)
    assert row["penalty/overlong"] == row["rollout/truncated"] == len(cut) / len(rollouts)
    assert other[1]["reward/mean"] > row["reward/mean"] and "penalty/overlong" not in other[1]
    assert recipe.max_tokens == max(len(r) for r in cut)


@pytest.mark.parametrize(
    "wrong", [{"value": 1.0}, {"how": "multiply"}, {"repetition": 2.0}, {"garbled": -0.1}, {"size": 0}, {"margin": -1}]
)
def test_impossible_penalties_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(StockpotError, match="penalties"):
        Penalties(**wrong)  # type: ignore[arg-type]
