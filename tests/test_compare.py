"""`stockpot compare-losses`: what must hold of gradients whatever the run, on a real tiny model."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import Told, snapshot, stockpot
from stockpot import batching, reading
from stockpot.algorithms import RLOO, Reinforce
from stockpot.as_json import from_json, to_json
from stockpot.compare import ON_POLICY, VARIANTS, Sizes, ages, draw
from stockpot.compare.gradients import Bench, Spread, dot, interval, measure, student, yardstick
from stockpot.config import Config
from stockpot.engines.local import LocalEngine
from stockpot.history import History
from stockpot.models import vocabulary_of
from stockpot.prompts import load_prompts
from stockpot.record import Run
from stockpot.regularizers import KL
from stockpot.rewards.score import score
from stockpot.types import Prompt, Request, Rollout, Span, StockpotError
from tiny import Chatter


@dataclass(frozen=True)
class Flat(Chatter):
    """Chatter's prompts, but all answers are worth the same."""

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        return [1.0] * len(completions)


@dataclass(frozen=True)
class Digits(Chatter):
    """Chatter's prompts; two characters are worth more than one, so that a single token makes a difference."""

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        return [float(len(completion.split(" ")[0]) == 2) for completion in completions]


DIGITS = Digits(largest=9, train_prompts=8, test_prompts=8)
SMALL = ("--group-size", 2, "--ages", "1-", "--fresh", 64, "--prompts", 8)
SAME_ON_FRESH = ("reinforce", "rloo", "dr-grpo", "reinforce-none", "reinforce-rollout")
"""Losses that differ by a factor alone when every rollout is fresh: they centre by the mean, and divide by nothing."""


def engine_at(run: Path, step: int, **changes: Any) -> tuple[LocalEngine, Config]:
    """The policy of a checkpoint, as the command has it."""
    config = replace(from_json(Run.open(run).config), kl=KL(), **changes)
    engine = LocalEngine(config, run.name, str(run / "checkpoints" / f"step-{step}"), str(run / "start"))
    engine.version = engine.policy.version = step
    return engine, config


def train_prompts(engine: LocalEngine, config: Config) -> list[Prompt]:
    return load_prompts(config.task, "train", engine.tokenizer, context=0, max_tokens=config.max_tokens)


def judged_by_digits(finished: Path, run: Path, *without: str, **learner: Any) -> Path:
    """A copy of a run with a reward that one token decides: the true gradient is large, few samples tell it."""
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("history.sqlite-*", *without))
    made = json.loads((run / "config.json").read_text())
    config = from_json(made["config"])
    config = replace(config, task=DIGITS, max_tokens=2, learner=replace(config.learner, **learner))
    (run / "config.json").write_text(json.dumps(made | {"config": to_json(config)}))
    return run


@pytest.fixture(scope="module")
def own(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose whole history was written by the policy of step 0: 64 rollouts of each prompt, of age 0 there."""
    run = judged_by_digits(finished, tmp_path_factory.mktemp("own") / finished.name, "history*")
    engine, config = engine_at(run, 0)
    asked = [p for p in train_prompts(engine, config) for _ in range(64)]
    fresh = engine.sample([Request(p, i, max_tokens=config.max_tokens) for i, p in enumerate(asked)], 77)
    judged, _ = score(fresh, config.task.reward, engine.tokenizer)
    with History.open(run / "history.sqlite", run=run.name, vocabulary=vocabulary_of(engine.tokenizer)) as history:
        history.append(0, judged)
    return run


@pytest.fixture(scope="module")
def past(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the history that it really wrote."""
    return judged_by_digits(finished, tmp_path_factory.mktemp("past") / finished.name)


def compared(run: Path, out: Path, *words: object) -> tuple[Told, dict[str, Any]]:
    """What the command printed, and what it wrote."""
    told = stockpot("compare-losses", run, *words, "--json", out / "found.json")
    assert told.code == 0, told.err
    return told, json.loads((out / "found.json").read_text())


# --- the yardstick ----------------------------------------------------------------------------------------------------


def test_the_yardstick_is_the_gradient_of_the_expected_reward(finished: Path) -> None:
    """Against enumeration: with room for one token, every response can be written down."""
    engine, config = engine_at(finished, 0, max_tokens=1, task=DIGITS)
    policy, asked = engine.policy, train_prompts(engine, config)[:2]
    bench = Bench(engine, config, seed=3)
    truth = yardstick(bench, asked, 4096, lambda: None)
    every = [Rollout(p, (Span(policy.author, [v]),)) for p in asked for v in range(128)]
    judged, _ = score(every, config.task.reward, engine.tokenizer)
    batch = batching.collate(judged, [0.0] * len(judged), device=policy.device)
    log_probs, _ = policy.log_probs(batch)
    (-(log_probs.exp() * batch.rewards).sum() / len(asked)).backward()  # type: ignore[no-untyped-call]
    exact = bench.take()
    square = dot(exact, exact)
    assert square > 1e-6
    assert dot(truth.gradient, exact) / square == pytest.approx(1.0, abs=0.1)
    assert truth.square / square == pytest.approx(1.0, abs=0.2)
    real = dot(truth.gradient, exact) / math.sqrt(square * dot(truth.gradient, truth.gradient))
    assert real > 0.98 and truth.known == pytest.approx(real, abs=0.01)


def test_a_yardstick_lost_in_noise_is_refused(own: Path) -> None:
    """A reward that is the same for all has no gradient: no number may come of it."""
    engine, config = engine_at(own, 0)
    flat = replace(config, task=Flat(largest=9, train_prompts=8))
    with pytest.raises(StockpotError, match=r"lost in noise.*--fresh"):
        yardstick(Bench(engine, flat, seed=0), train_prompts(engine, config)[:1], 4, lambda: None)


# --- laws -------------------------------------------------------------------------------------------------------------


def test_on_what_the_policy_itself_wrote_they_all_point_to_the_truth(own: Path, tmp_path: Path) -> None:
    """Age 0: losses without a deviation are the same direction batch by batch, and it is the true one."""
    words = ("--step", 0, "--ages", "0-0", "--group-size", 8, "--batches", 6, "--fresh", 128)
    _, found = compared(own, tmp_path, *words, "--losses", ",".join((*SAME_ON_FRESH, "luffy")))
    losses = found["losses"]
    first = losses["rloo"]
    for name in SAME_ON_FRESH:
        for field in ("mean", "low", "high"):
            assert losses[name]["cosine"][field] == pytest.approx(first["cosine"][field], abs=0.01), name
        assert losses[name]["ess"] == pytest.approx(1.0, abs=1e-3) and losses[name]["clip_loss"] == 0.0
        assert losses[name]["direction"] == pytest.approx(1.0, abs=0.15), name
    assert losses[ON_POLICY]["direction"] == pytest.approx(1.0, abs=0.15)
    assert losses[ON_POLICY]["relative_variance"] == pytest.approx(first["relative_variance"], rel=0.5)
    assert found["prompts_with_enough"] == found["training_prompts"] == 8


def test_importance_weights_of_whole_rollouts_point_to_the_truth_on_replay(own: Path) -> None:
    """The one loss that is unbiased on old rollouts; here of one token, so that its noise leaves something to see."""
    engine, config = engine_at(own, 6, max_tokens=1, task=DIGITS)
    writer, _ = engine_at(own, 0, max_tokens=1, task=DIGITS)
    asked = train_prompts(engine, config)
    bench, old = Bench(engine, config, seed=1), Bench(writer, config, seed=2)
    truth = yardstick(bench, asked, 256, lambda: None)
    calls = [[partial(old.sample, asked, 64, number) for number in range(4)]]
    found = measure(bench, VARIANTS["reinforce-rollout"](), calls, truth, lambda: None)
    plain = measure(bench, Reinforce(correction="none"), calls, truth, lambda: None)
    assert found.ess < 0.9, "the policy has moved"
    assert found.direction == pytest.approx(1.0, abs=0.08)
    assert plain.direction < 0.85


def test_equal_batches_have_no_variance(own: Path) -> None:
    engine, config = engine_at(own, 0)
    sizes = Sizes(prompts=4, group_size=8)
    with History.open(own / "history.sqlite", read_only=True) as history:
        choice = draw(history, train_prompts(engine, config), 0, [(0, 0)], sizes, seed=0)
    bench = Bench(engine, config, seed=0)
    truth = yardstick(bench, choice.prompts, 64, lambda: None)
    one, other = choice.batches[0]
    same = measure(bench, RLOO(), [[lambda: one] * 3], truth, lambda: None)
    assert same.relative_variance == 0.0 and same.cosine.low == same.cosine.mean == same.cosine.high
    assert same.direction == pytest.approx(same.cosine.mean, abs=1e-5)
    differing = measure(bench, RLOO(), [[lambda: one, lambda: other]], truth, lambda: None)
    assert not differing.relative_variance <= 0.1, "NaN where noise hides the mean"


def test_passes_of_another_size_give_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    """And each seed its own."""
    results = []
    for budget, seed in ((8192, 0), (40, 0), (8192, 1)):
        run = judged_by_digits(finished, tmp_path / f"{budget}-{seed}" / finished.name, tokens_per_pass=budget)
        results.append(compared(run, run.parent, *SMALL, "--seed", seed)[1])
    one, split, other = results
    assert (
        one["losses"].keys()
        == split["losses"].keys()
        == {ON_POLICY, *VARIANTS, *reading.members("algorithm")} - {"ppo", "spo"}
    )
    for name, row in one["losses"].items():
        assert split["losses"][name]["cosine"]["mean"] == pytest.approx(row["cosine"]["mean"], abs=1e-3), name
        for field in ("norm", "ess", "clip_loss"):
            assert split["losses"][name][field] == pytest.approx(row[field], rel=2e-3, abs=1e-6), (name, field)
    assert other["losses"]["grpo"] != one["losses"]["grpo"]


def test_no_rollout_is_in_two_batches_and_all_are_old_enough(finished: Path) -> None:
    engine, config = engine_at(finished, 6)
    sizes, bands = Sizes(prompts=8, group_size=2), ((1, 3), (4, 6))
    with History.open(finished / "history.sqlite", read_only=True) as history:
        known = train_prompts(engine, config)
        choice = draw(history, known, 6, bands, sizes, seed=0)
        counts = [history.candidates([p.key for p in known], oldest=6 - old, newest=6 - young) for young, old in bands]
    ids = [r.id for band in choice.batches for batch in band for group in batch for r in group.rollouts]
    assert len(ids) == len(set(ids)) == 2 * 2 * 2 * len(choice.prompts)
    assert choice.known == 8 and choice.fit == sum(all(len(c[p.key]) >= 4 for c in counts) for p in known)
    for (young, old), batches in zip(bands, choice.batches, strict=True):
        for group in (group for batch in batches for group in batch):
            for rollout in group.rollouts:
                assert rollout.prompt.key == group.prompt.key and rollout.reward is not None
                assert {span.kind for span in rollout.spans} == {"prefix"}, "every token is old"
                assert young <= 6 - (rollout.spans[-1].author.version or 0) <= old


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_run_is_left_as_it_was(past: Path, tmp_path: Path) -> None:
    before = {name: held for name, held in snapshot(past).items() if "history.sqlite-" not in name}
    compared(past, tmp_path, *SMALL, "--losses", "grpo")
    assert {name: held for name, held in snapshot(past).items() if "history.sqlite-" not in name} == before


def test_the_table_is_sorted_and_says_what_it_stands_on(past: Path, tmp_path: Path) -> None:
    told, found = compared(past, tmp_path, *SMALL[:2], "--ages", "1-3,4-6", "--losses", "GRPO, dr_grpo,reinforce")
    shown = [line.split()[0] for line in told.out.splitlines() if "±" in line]
    assert shown == sorted(found["losses"], key=lambda name: -found["losses"][name]["cosine"]["mean"])
    assert set(shown) == {ON_POLICY, "grpo", "dr-grpo", "reinforce"}
    assert "1-3" in told.out and "4-6" in told.out and "…" not in told.out
    left = 8 - found["prompts_with_enough"]
    assert f"{left} have not and were left out" in told.out and f"halves {found['yardstick']['halves']:.3f}" in told.out
    assert told.complaints == []


CASES: dict[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    "unknown loss": (("--losses", "grpo,rlo"), ("--losses knows no rlo", "did you mean rloo?")),
    "bad ages": (("--ages", "4-1"), ("'4-1' is no band of ages", "1-3,4-15,16-")),
    "no ages": (("--ages", "old"), ("'old' is no band of ages",)),
    "too young": (("--ages", "90-"), ("no training prompt has 2 x 4", "90-90", "wider --ages")),
    "nothing older": (("--step", 0), ("at version 0 nothing", "--step")),
    "no such step": (("--step", 1), ("no checkpoint of step 1", "kept are")),
    "one batch": (("--batches", 1), ("--batches at least 2",)),
    "odd": (("--fresh", 5), ("--fresh must be an even number",)),
}


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_one_line(finished: Path, case: str) -> None:
    words, parts = CASES[case]
    told = stockpot("compare-losses", finished, *words)
    (line,) = told.complaints
    assert told.code == 2 and line.startswith("stockpot: ") and all(part in line for part in parts), line


def test_a_run_without_history_is_refused(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / finished.name
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("history*"))
    told = stockpot("compare-losses", run)
    assert told.code == 2 and "there is no history to read here" in told.complaints[0]
    assert not list(run.glob("history*"))


# --- small parts ------------------------------------------------------------------------------------------------------


def test_ages_are_thirds_of_a_long_history() -> None:
    assert ages("", 100) == ((1, 33), (34, 66), (67, 100)) and ages("", 6) == ((1, 6),)
    assert ages("1-3, 4-15,16-", 100) == ((1, 3), (4, 15), (16, 100)) and ages("0-0", 0) == ((0, 0),)


def test_running_spread_is_the_covariance_s_trace() -> None:
    vectors = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spread = Spread()
    for vector in vectors:
        spread.add([vector[:2].clone(), vector[2:].reshape(3, 1).clone()])
    assert spread.trace == pytest.approx(float(vectors.var(dim=0).sum()))
    assert torch.cat([part.flatten() for part in spread.mean]).allclose(vectors.mean(dim=0))


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (30, 2.042)])
def test_quantiles_of_student(freedom: int, quantile: float) -> None:
    """As every table has them."""
    assert student(freedom) == pytest.approx(quantile, abs=0.01)
    values = [1.0 + (-1) ** i for i in range(freedom + 1)]
    assert interval(values).high - interval(values).mean == pytest.approx(interval(values).mean - interval(values).low)
