"""Seconds of a step and memory on several devices: by hand, against simulation, by laws, and as the command prints."""

from __future__ import annotations

import random
import re
from dataclasses import fields, replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from runs import stockpot
from stockpot import models, reading
from stockpot.config import Config, Evaluation, load_recipe
from stockpot.lora import LoRA
from stockpot.plan import DEVICES, Assumed, Fleet, Plan, Seconds
from stockpot.plan.cures import more
from stockpot.plan.devices import SHEETS, here
from stockpot.plan.fleet import cycle
from stockpot.plan.layout import learner, sampler, together
from stockpot.plan.roofline import Crowd, Learning, Sampling
from stockpot.plan.stragglers import Kind, Lengths, drawn, observed
from stockpot.policy import Learner
from stockpot.prefixes import Demonstrations, FromCheckpoints, FromHistory, NoPrefixes
from stockpot.shapes import measure, shape_of
from stockpot.types import StockpotError


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "hub_answers", lambda: False)
    monkeypatch.setenv("COLUMNS", "120")


SMALL = measure(
    LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=False, max_position_embeddings=64,
    ),
    "small", "here",
)  # fmt: skip
BLOCKS = 3 * (32 * (2 * 32 + 2 * 16 + 3 * 48) + 64) + 32
HEAD = 3200


@cache
def shape(name: str) -> Any:
    return shape_of(name)


def of_recipe(name: str, gpus: int, gpu: str = "h100", assumed: Assumed = Assumed(), **changes: Any) -> Fleet:
    config = replace(load_recipe(name), **changes)
    own = shape(config.model) if config.model else measure(config.task.model_config(), "own", "the task")  # type: ignore[attr-defined]
    return Fleet(Plan(config, own, gpu, assumed), gpus)


# --- stragglers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lognormal", "geometric", "fixed"])
def test_lengths_have_the_mean_that_was_asked_for(kind: Kind) -> None:
    for mean in (1, 7.5, 48, 95, 96):
        assert drawn(kind, mean, 0.7, 96).mean == pytest.approx(mean, abs=1e-6)
    assert drawn(kind, 500, 0.7, 96).mean == pytest.approx(96)


def sampled(lengths: Lengths, count: int, rng: random.Random) -> list[int]:
    """Draws by the survival function: the first t that no longer is below the length."""
    survival = lengths.survival.tolist()
    return [
        next((t for t, s in enumerate(survival) if s <= u), len(survival)) for u in (rng.random() for _ in range(count))
    ]


@pytest.mark.parametrize("kind", ["lognormal", "geometric"])
def test_the_expected_longest_is_that_of_a_simulation(kind: Kind) -> None:
    lengths, rng = drawn(kind, 20, 0.6, 200), random.Random(0)
    for draws in (1, 8, 64):
        found = [max(sampled(lengths, draws, rng)) for _ in range(1500 if draws < 64 else 400)]
        assert lengths.longest(draws) == pytest.approx(sum(found) / len(found), rel=0.03)
    assert lengths.longest(1) == pytest.approx(lengths.mean)


def test_by_hand_what_is_left_of_a_response() -> None:
    """Lengths 2 and 4, half each."""
    lengths = observed([2, 4, 4, 2])
    assert lengths.survival.tolist() == [1, 1, 0.5, 0.5] and lengths.mean == 3
    assert lengths.longest(2) == 2 + 2 * 0.75
    assert lengths.span == pytest.approx((0.5 * 1 + 0.5 * (1 + 2 + 3)) / 3)
    assert lengths.after(1).survival.tolist() == [1, 0.5, 0.5]
    assert lengths.scaled(0.5).survival.tolist() == [1, 0.5]
    assert lengths.capped(3, 3).survival.tolist() == [1, 1, 0.5]
    assert lengths.capped(1, 3).survival.tolist() == pytest.approx([1, 2 / 3, 0.5 / 3])


# --- roofline by hand -----------------------------------------------------------------------------------------------

ENGINE = Sampling(SMALL, 2, 1e9, 1e8, 0.5, 1e-3, 2e-3, 100)


def test_a_decoding_step_by_hand() -> None:
    """One row waits for memory, a thousand for the processor."""
    assert SMALL.blocks == BLOCKS and SMALL.embedding == HEAD
    moved = 2 * (BLOCKS + HEAD) + 3 * 2 * 2 * 8 * 2 * 10
    assert float(ENGINE.decoding(1, 10)) == pytest.approx(1e-3 + moved / 1e8 / 0.5)
    work = 1000 * 2 * (BLOCKS + HEAD) + 4 * 3 * 32 * 10000
    assert float(ENGINE.decoding(1000, 10000)) == pytest.approx(1e-3 + work / 1e9 / 0.5)


def test_reading_contexts_by_hand() -> None:
    """Ten contexts of 20 tokens, in two passes of 100."""
    work = 10 * (2 * BLOCKS * 20 + 2 * 3 * 32 * 20 * 21)
    assert ENGINE.reading(10, 20) == pytest.approx(2 * 2e-3 + max(work / 1e9, 2 * 2 * (BLOCKS + HEAD) / 1e8) / 0.5)
    assert ENGINE.reading(10, 0) == ENGINE.reading(0, 10) == 0


def test_a_batch_of_equal_lengths_is_its_steps() -> None:
    """Four rows of five tokens behind a context of ten; half of them at a time: twice."""
    five = drawn("fixed", 5, 1, 8)
    steps = sum(float(ENGINE.decoding(4, 4 * (10 + t))) for t in range(5))
    assert ENGINE.batch([Crowd(4, five, 10)], 1, 4) == pytest.approx((steps, steps))
    half = sum(float(ENGINE.decoding(2, 2 * (10 + t))) for t in range(5))
    assert ENGINE.batch([Crowd(4, five, 10)], 1, 2)[0] == pytest.approx(2 * half, rel=0.01)
    assert ENGINE.batch([Crowd(8, five, 10)], 2, 4) == pytest.approx((steps, steps)), "two samplers, four rows each"


@pytest.mark.parametrize("rows", [16, 64])
def test_a_batch_takes_what_a_simulation_of_it_takes(rows: int) -> None:
    """64 responses in as many rows, or in 16 that are filled again; three samplers, of which the slowest counts."""
    lengths, rng, samplers = drawn("lognormal", 20, 0.6, 100), random.Random(1), 3
    found = []

    def cost(count: int, tokens: int) -> float:
        work, moved = 2 * (BLOCKS + HEAD) * count + 384 * tokens, 2 * (BLOCKS + HEAD) + 192 * tokens
        return 1e-3 + 2 * max(work / 1e9, moved / 1e8)

    for _ in range(60):
        took = []
        for _ in range(samplers):
            waiting, live, seconds = sampled(lengths, 64, rng), list[list[int]](), 0.0
            while waiting or live:
                while waiting and len(live) < rows:
                    live.append([waiting.pop(), 0])
                seconds += cost(len(live), sum(10 + done for _, done in live))
                live = [[left, done + 1] for left, done in live if done + 1 < left]
            took.append(seconds)
        found.append((sum(took) / samplers, max(took)))
    busy, wait = ENGINE.batch([Crowd(64 * samplers, lengths, 10)], samplers, rows)
    close = 0.05 if rows == 64 else 0.12
    assert busy == pytest.approx(sum(b for b, _ in found) / 60, rel=close)
    assert wait == pytest.approx(sum(w for _, w in found) / 60, rel=close)


def test_learning_by_hand() -> None:
    """Three tenths of the peak, two passes on each of four learners; talk counts where it takes longer."""
    made = Learning(1e9, 0.3, 1e8, 1e6, 0.01, 4, True)
    assert made.seconds(1.2e9, 8, 1, 1000, 2000) == pytest.approx((1 + 0.02 + 28 * 250 / 1e8, 0.0))
    learning, talk = replace(made, line=1e4).seconds(1.2e9, 8, 1, 1000, 2000)
    assert learning + talk == pytest.approx(0.75 * 2 * (2 * 2000 + 4 * 1000) / 1e4)
    whole = replace(made, divided=False, line=1e3).seconds(1.2e9, 8, 1, 1000, 2000)
    assert sum(whole) == pytest.approx(0.75 * 8 * 1000 / 1e3)
    assert whole[0] == pytest.approx(1 + 0.02 + 28 * 1000 / 1e8)


def test_a_line_of_stages() -> None:
    assert cycle((3, 2, 1), 1) == 6 and cycle((3, 2), 10) == pytest.approx(3.2) and cycle((3, 2), float("inf")) == 3


# --- laws -----------------------------------------------------------------------------------------------------------

LAWFUL = ("countdown", "qwen2_5_math_7b", "llama3_1_8b_contests_lora", "qwen2_5_32b")
every = pytest.mark.parametrize("name", LAWFUL)


@every
def test_one_device_is_the_account_of_one(name: str) -> None:
    fleet = of_recipe(name, 1)
    place = together(fleet.plan, 1)
    assert list(place.parts) == list(fleet.plan.parts()) and place.needed == fleet.plan.needed
    modes = {mode.name: mode for mode in fleet.modes()}
    assert list(modes) == ["on-policy", "SOUP, history", "SOUP, checkpoints"]
    rule = fleet.plan.config.prefixes
    own = modes["SOUP, history" if isinstance(rule, FromHistory) else "on-policy"]
    assert (own.needed, own.tokens) == (fleet.plan.needed, fleet.plan.tokens())
    assert all(mode.seconds.idle == 0 for mode in modes.values())


@every
def test_more_devices_never_need_more_memory_each(name: str) -> None:
    plan = of_recipe(name, 1).plan
    for kind in (together, learner, sampler):
        needs = [kind(plan, n).needed for n in (1, 2, 3, 4, 8, 16, 64, 500)]
        assert needs == sorted(needs, reverse=True), kind
    less = together(plan, 8).needed < plan.needed
    assert less == (name != "llama3_1_8b_contests_lora"), "frozen weights may as well be whole on all"


@every
def test_what_is_divided_is_divided_and_what_is_copied_is_whole(name: str) -> None:
    plan = of_recipe(name, 1).plan
    place = together(plan, 64)
    parts = {part.name: part.bytes for part in place.parts}
    assert place.divided
    weights = plan.shape.parameters
    assert parts[f"sampler's weights, {'bfloat16'}"] == 2 * weights
    assert parts["AdamW's moments"] == 8 * plan.trained / 64
    assert parts["gradients, float32"] == 4 * plan.trained / 64


@every
@pytest.mark.parametrize("gpus", [1, 8])
def test_the_parts_of_a_step_are_its_seconds_and_none_is_negative(name: str, gpus: int) -> None:
    for mode in of_recipe(name, gpus).modes():
        parts = [getattr(mode.seconds, field.name) for field in fields(Seconds)]
        assert min(parts) >= -1e-9 and sum(parts) == pytest.approx(mode.seconds.step)
        assert mode.samplers + mode.learners == (gpus if mode.apart else 2 * gpus)


@pytest.mark.parametrize("gpus", [1, 4])
def test_prefixes_of_no_rollout_are_on_policy(gpus: int) -> None:
    for rule in (FromHistory(share=0.0), FromCheckpoints(share=0.0)):
        fleet = of_recipe("countdown", gpus, prefixes=rule)
        modes = {mode.name: mode for mode in fleet.modes()}
        for name in ("SOUP, history", "SOUP, checkpoints"):
            assert modes[name].seconds == modes["on-policy"].seconds and modes[name].tokens == modes["on-policy"].tokens


@every
def test_who_does_not_wait_is_not_idle_longer(name: str) -> None:
    """At every division, for lengths that spread little or much."""
    for spread in (0.1, 1.5):
        fleet = of_recipe(name, 6, assumed=Assumed(spread=spread, reward_ms=30), refresh_every=1)
        config = replace(fleet.plan.config, prefixes=NoPrefixes())
        for samplers in range(1, 6):
            turns, free = (fleet.apart("", config, samplers, 6 - samplers, waits).seconds for waits in (True, False))
            assert free.idle <= turns.idle * (1 + 1e-9) and free.step <= turns.step * (1 + 1e-9)


def test_the_division_taken_is_the_fastest_that_fits() -> None:
    fleet = of_recipe("qwen2_5_math_7b", 8)
    config = replace(fleet.plan.config, prefixes=NoPrefixes())
    found = [fleet.apart("", config, n, 8 - n, False) for n in range(1, 8)]
    assert [mode.fits for mode in found].count(False) == 2, "too few learners cannot hold the state"
    best = fleet.best("", config, waits=False)
    assert best.fits and best.seconds.step == min(mode.seconds.step for mode in found if mode.fits)


def test_newer_weights_have_what_is_under_way_read_again() -> None:
    """At a random moment responses of 80 tokens are 39.5 long in the mean; half of the devices sample."""
    told = Assumed(lengths="fixed", response=80 / 96, peak_tflops=1, bandwidth=10)
    fleet = of_recipe("countdown_grpo", 2, "cpu", told)
    config, plan = fleet.plan.config, fleet.plan
    turns, free = (fleet.apart("", config, 1, 1, waits).seconds for waits in (True, False))
    rows = min(sampler(plan, 1).plan.rows, config.prompts_per_step * config.group_size)
    again = fleet.engine(sampler(plan, 1).plan).reading(rows, plan.mean_prompt + 39.5)
    assert again > 0 and free.prefill - turns.prefill == pytest.approx(again / 2)


def test_a_step_is_judged_before_it_is_learned_from() -> None:
    """Learners wait for it, samplers need not."""
    none, much = (of_recipe("countdown_grpo", 2, assumed=Assumed(reward_ms=ms)) for ms in (0, 1000))
    config = none.plan.config
    bare, judged = (fleet.apart("", config, 1, 1, waits=False).seconds for fleet in (none, much))
    seconds = config.prompts_per_step * config.group_size / 2
    assert judged.reward == pytest.approx(seconds / 2), "a processor for each device, in the mean over the two devices"
    assert judged.learn == bare.learn and judged.sync == bare.sync
    assert judged.step == pytest.approx(bare.sync + 2 * bare.learn + seconds), "both devices half of the mean"


def test_late_weights_lie_between_waiting_and_not() -> None:
    plan = of_recipe("countdown_grpo", 2).plan
    turns, ten, hundred = (
        Fleet(plan, 2).apart("", replace(plan.config, refresh_every=n), 1, 1, waits=True).seconds.step
        for n in (1, 10, 10**9)
    )
    assert turns > ten > hundred


def test_what_each_mode_decodes() -> None:
    """From the history tokens are saved, checkpoints decode what the live policy does not."""
    fleet = of_recipe("qwen2_5_math_1_5b", 8)
    bare, history, live = [mode.tokens for mode in fleet.modes()][:3]
    assert history.decoded + history.saved == pytest.approx(bare.decoded) and history.heads == 0
    assert live.decoded + live.heads == pytest.approx(bare.decoded) and live.saved == 0
    assert live.heads == pytest.approx(history.saved, rel=0.01), "heads alike, so that they can be compared"
    modes = {mode.name: mode.seconds for mode in fleet.modes()}
    assert modes["SOUP, history"].decode < modes["on-policy"].decode < modes["SOUP, checkpoints"].decode


def test_outsiders_write_whole_responses() -> None:
    fleet = of_recipe("countdown", 1, prefixes=Demonstrations())
    tokens = fleet.plan.tokens()
    assert tokens.saved == pytest.approx(tokens.prefixed * 48) and tokens.decoded == pytest.approx(12288 - tokens.saved)
    assert [mode.name for mode in fleet.modes()][-1] == "as configured (Demonstrations)"


def test_an_adapter_is_sent_alone_and_the_whole_model_is_not() -> None:
    """By a slow link: what moves from learners to samplers."""
    slow = Assumed(link=1e-3)
    for rank, moved in ((8, None), (0, 2 * SMALL.parameters)):
        config = Config(
            learner=Learner(lora=LoRA(rank)), prefixes=NoPrefixes(), max_tokens=20, evaluation=Evaluation(samples=1),
            prompts_per_step=2, group_size=2,
        )  # fmt: skip
        fleet = Fleet(Plan(config, SMALL, "h100", slow), 2)
        sent = fleet.apart("", config, 1, 1, waits=True).seconds.sync * 1e6
        assert sent == pytest.approx(4 * fleet.plan.adapter if moved is None else moved)


def test_more_counts_devices_until_it_fits() -> None:
    plan = of_recipe("qwen2_5_math_7b", 1).plan
    count = more(plan, 1)
    assert together(plan, count).needed <= plan.usable < together(plan, count - 1).needed
    assert more(replace(of_recipe("qwen2_5_32b", 1).plan, device="l40s"), 1) == 0, "a sampler's copy is not divided"


# --- devices --------------------------------------------------------------------------------------------------------


def test_the_processor_is_measured_or_told() -> None:
    found = here(1)
    assert found.single > 0 and found.half > 0 and found.bandwidth > 0
    assert torch.get_num_threads() >= 1
    told = of_recipe("countdown", 2, "cpu", Assumed(peak_tflops=0.1, bandwidth=10, link=3)).device
    assert (told.single, told.half, told.bandwidth, told.link, told.network) == (0.1, 0.1, 10, 3, 3)
    assert set(SHEETS) == set(DEVICES)
    assert SHEETS["h100"].line(8) == 450e9 and SHEETS["h100"].line(9) == 50e9


def test_processes_share_the_machines_memory() -> None:
    plan = of_recipe("countdown", 1, "cpu").plan
    assert Fleet(plan, 4).usable == plan.usable / 4


# --- the command ----------------------------------------------------------------------------------------------------

MODES = ("on-policy", "SOUP, history", "SOUP, checkpoints", "apart, ", "asynchronous")


@pytest.mark.parametrize("name", reading.recipe_names())
def test_every_recipe_has_a_plan_for_eight(name: str) -> None:
    told = stockpot("plan", name.replace("_", "-"), "--gpus", 8)
    assert told.code == 0 and not told.err, told.err
    for mode in MODES:
        assert len(re.findall(rf"^│ {mode}.*│$", told.out, re.M)) == 2, mode
    assert re.search(r"^(fits|does not fit): [\d.]+ GB at the peak, 73\.6 GB usable on each h100$", told.out, re.M)
    assert "nan" not in told.out and "inf " not in told.out
    if "does not fit" in told.out:
        assert re.search(r"^(it would fit with|as it is it would fit on|nothing in the recipe)", told.out, re.M)


def test_every_assumption_is_told_and_its_option_named() -> None:
    out = stockpot("plan", "countdown", "--gpus", 2).out
    for field in fields(Assumed):
        assert f"--{field.name.replace('_', '-')}" in out, field.name


def test_options_reach_the_seconds() -> None:
    """Twice the overhead of everything, on a processor that is told."""
    words = ("plan", "countdown-grpo", "--gpu", "cpu", "--peak-tflops", 1e6, "--bandwidth", 1e6, "--pass-ms", 0)
    words += ("--lengths", "fixed", "--reward-ms", 0)
    for overhead, seconds in ((10, "0.480"), (20, "0.960")):
        out = stockpot(*words, "--step-ms", overhead).out
        assert re.search(rf"^│ on-policy +│ +{seconds} │", out, re.M), "48 steps"
        assert "lengths are all equal" in out


def test_where_it_does_not_fit_a_cure_is_named() -> None:
    out = stockpot("plan", "qwen2-5-math-7b").out
    count = re.search(r"would fit on (\d+) h100 \(--gpus \1\)", out)
    assert count is not None
    assert "\nfits: " in stockpot("plan", "qwen2-5-math-7b", "--gpus", count[1]).out
    nowhere = stockpot("plan", "qwen2-5-32b", "--gpus", 8, "--gpu", "l40s").out
    assert "take a smaller model or a larger device" in nowhere and "65.5 GB that samplers have" in nowhere


@pytest.mark.parametrize(
    "words, parts",
    [
        (("--gpus", 0), ("--gpus must be at least 1, not 0",)),
        (("--gpus", -3), ("--gpus must be at least 1",)),
        (("--gpu", "tpu", "--gpus", 8), ("--gpu knows no tpu", "h200")),
        (("--mfu", 0), ("--mfu and --reached", "above 0")),
        (("--reached", 1.5), ("--mfu and --reached",)),
        (("--spread", 0), ("--spread must be above 0",)),
        (("--reward-ms", -1), ("must not be below 0",)),
        (("--lengths", "long"), ("--lengths",)),
    ],
)
def test_what_cannot_be_planned_for_is_told_in_one_line(words: tuple[Any, ...], parts: tuple[str, ...]) -> None:
    told = stockpot("plan", *words)
    assert told.code == 2 and told.err.count("\n") == 1 and not told.out, told.err
    assert all(part in told.err for part in parts), told.err


def test_a_fleet_is_refused_without_devices() -> None:
    with pytest.raises(StockpotError, match="--gpus must be at least 1"):
        Fleet(of_recipe("countdown", 1).plan, 0)
