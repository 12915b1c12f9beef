"""The dry run: its figures against counting by hand, against real allocations, and what it refuses."""

from __future__ import annotations

import gc
import importlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from runs import stockpot
from stockpot import batching, models, reading
from stockpot.algorithms import GRPO, RLOO, SPO
from stockpot.config import Config, Evaluation, load_recipe
from stockpot.engines.local import LocalEngine
from stockpot.models import load_model
from stockpot.options import PlanOptions, parted
from stockpot.plan import DEVICES, Assumed, Plan, cures
from stockpot.policy import Learner, Policy
from stockpot.prefixes import FromCheckpoints, FromHistory, NoPrefixes, Replay
from stockpot.regularizers import KL
from stockpot.samplers.torch import TorchSampler
from stockpot.selection import Select
from stockpot.shapes import PUBLISHED, Shape, measure, published, shape_of
from stockpot.tasks import Dataset
from stockpot.tasks.dataset import load_function
from stockpot.types import Author, Prompt, Request, Rollout, Sampling, Span, StockpotError

PARAMETERS = {
    "Qwen/Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-Math-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-4B-Base": 4_022_468_096,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "THUDM/glm-4-9b-hf": 9_399_951_360,
}
"""As published with the weights."""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "hub_answers", lambda: False)
    monkeypatch.setenv("COLUMNS", "120")


# --- shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_shape_has_the_published_number_of_parameters(name: str) -> None:
    """Counted on the model that transformers makes of it, and again by hand."""
    shape = measure(published(name), name, "table")
    assert shape.parameters == PARAMETERS[name]
    width, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    family = PUBLISHED[name]["model_type"]
    layer = shape.hidden * (2 * width + 2 * narrow + 3 * shape.intermediate) + 2 * shape.hidden
    layer += (width + 2 * narrow) * (family in ("qwen2", "glm")) + 2 * shape.head_dim * (family == "qwen3")
    assert shape.blocks == shape.layers * layer + shape.hidden
    assert shape.parameters == shape.blocks + shape.vocabulary * shape.hidden * (1 if shape.tied else 2)


def test_a_folder_is_asked_before_the_table(started: str) -> None:
    shape = shape_of(started)
    assert shape.source == "its config.json" and shape.positions == 256
    assert shape.parameters == sum(p.numel() for p in load_model(started, torch.device("cpu")).parameters())


# --- by hand --------------------------------------------------------------------------------------------------------

SMALL = LlamaConfig(
    vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, tie_word_embeddings=False, max_position_embeddings=64,
)  # fmt: skip
WEIGHTS = 3 * (32 * (2 * 32 + 2 * 16 + 3 * 48) + 64) + 32 + 2 * 3200
ASSUMED = Assumed(longest_prompt=10, mean_prompt=6, response=0.5, reserve=0.0)


def small(device: str = "h100", **options: Any) -> Plan:
    chosen = {
        "learner": Learner(tokens_per_pass=90, logits_mb=1), "prompts_per_step": 4, "group_size": 4, "max_tokens": 20,
        "decode_rows": 8, "evaluation": Evaluation(samples=2, prompts=2), "prefixes": FromHistory(share=0.5),
    } | options  # fmt: skip
    return Plan(Config(**chosen), measure(SMALL, "small", "here"), device, ASSUMED)


def figures(plan: Plan) -> dict[str, float]:
    return {part.name: part.bytes for part in plan.parts()}


def test_memory_of_a_small_model_by_hand() -> None:
    found = figures(small())
    assert small().shape.parameters == WEIGHTS
    assert found["weights, float32"] == found["gradients, float32"] == 4 * WEIGHTS
    assert found["AdamW's moments"] == 8 * WEIGHTS
    assert found["weights, bfloat16"] == 2 * (WEIGHTS - 3200), "an embedding of its own is looked up, not multiplied"
    # 16 rollouts in 8 rows: longest prompt, prefix of up to 0.6 x 20, two responses, 8 more; 2 x 2 heads x 8 x 4 bytes
    assert found["keys and values"] == 8 * (10 + 12 + 2 * 20 + 8) * 3 * 128
    assert found["prefill, or drawing tokens"] == 8 * 22 * 4 * (4 * 32 + 3 * 48 + 3 * 32) > 8 * 100 * 24
    # stream and norm 4 x 4 x 32, five copies in half precision, q k v and two results, four of the MLP
    layer = 16 * 32 + 10 * 32 + 2 * (3 * 32 + 2 * 16) + 8 * 48
    assert found["activations"] == 90 * 3 * layer
    assert found["reference model"] == found["past policy"] == 0
    checkpointed = small(learner=Learner(tokens_per_pass=90, logits_mb=1, gradient_checkpointing=True))
    assert figures(checkpointed)["activations"] == 90 * 3 * 4 * 32
    assert small().needed == max(sum(p.bytes for p in small().parts() if p.phase != other) for other in
                                 ("sampling", "learning"))  # fmt: skip


def test_what_memory_depends_on() -> None:
    assert figures(small(kl=KL(0.1)))["reference model"] == 4 * WEIGHTS
    assert figures(small(device="cpu"))["weights, bfloat16"] == 0
    live = replace(small(), config=replace(small().config, prefixes=FromCheckpoints(longest=8)))
    assert figures(live)["past policy"] == 4 * WEIGHTS
    assert small(decode_rows=16).columns == 10 + 12 + 20 + 8, "rows are not filled again where all fit"
    assert small(prefixes=NoPrefixes(), decode_rows=16).columns == 10 + 20 + 8
    assert small(learner=Learner(tokens_per_pass=1)).pass_tokens == 30, "a rollout is never split"


def test_tokens_and_operations_of_a_small_model_by_hand() -> None:
    """16 rollouts of 10 response tokens, 8 of them begun by prefixes of 0.35 x 10."""
    plan = small()
    tokens, work = plan.tokens(), plan.operations()
    assert (tokens.rollouts, tokens.prefixed, tokens.decoded_most) == (16, 8, 320)
    assert tokens.saved == pytest.approx(28) and tokens.decoded == pytest.approx(132) and tokens.learned == 160
    assert tokens.prefilled == pytest.approx(4 * 6 + 8 * 9.5)
    blocks, attention = WEIGHTS - 6400, 2 * 3 * 32
    assert work.learn == pytest.approx(16 * (3 * (2 * blocks * 16 + attention * 16 * 17) + 3 * 2 * 3200 * 10))
    assert work.decode == pytest.approx(132 * (2 * blocks + 6400 + 2 * attention * 11))
    forward = lambda n: 2 * blocks * n + attention * n * (n + 1)  # noqa: E731
    assert work.prefill == pytest.approx(4 * forward(6) + 8 * forward(9.5))
    untrained = small(prefixes=FromHistory(share=0.5, gradient="none")).tokens()
    assert untrained.learned == pytest.approx(132)
    part = small(select=Select(2, "random"))
    assert (part.tokens().learned, part.tokens().decoded) == (80, tokens.decoded), "all four are sampled"
    assert part.operations().learn == pytest.approx(work.learn / 2)
    replayed = small(prefixes=Replay(share=0.5)).tokens()
    assert (replayed.decoded, replayed.saved, replayed.prefilled) == (80, 80, 24)


# --- against the real thing -----------------------------------------------------------------------------------------


def most(work: Any) -> int:
    """Most bytes of tensors that `work` has alive at one time beyond those before it."""
    gc.collect()  # what earlier tests left must not be freed in between, and counted off
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as told:
        work()
    events = [e for e in told.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    now = top = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        top = max(top, now)
    return top


@pytest.mark.parametrize(
    "family, dtype, again", [("qwen3", "float32", False), ("qwen2", "float32", True), ("qwen2", "bfloat16", False)]
)
def test_a_real_update_and_real_sampling_take_what_was_planned(family: str, dtype: Any, again: bool) -> None:
    """23 M parameters on the CPU: state to 2 per cent, the peak from 5 below to a third above."""
    vocabulary, prompt, room, count = 8192, 16, 48, 16
    kind = {"qwen3": Qwen3Config, "qwen2": Qwen2Config}[family]
    options = {"head_dim": 64} if family == "qwen3" else {}
    made = kind(
        vocab_size=vocabulary, hidden_size=512, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, tie_word_embeddings=True, max_position_embeddings=1024, **options,
    )  # fmt: skip
    learner = Learner(tokens_per_pass=512, dtype=dtype, gradient_checkpointing=again, logits_mb=64)
    config = Config(
        learner=learner, prompts_per_step=4, group_size=4, max_tokens=room, prefixes=NoPrefixes(),
        evaluation=Evaluation(samples=1, prompts=1),
    )  # fmt: skip
    plan = Plan(config, measure(made, "real", "here"), "cpu", Assumed(prompt, prompt, 1.0))
    torch.manual_seed(0)
    policy = Policy(AutoModelForCausalLM.from_config(made), learner, run="x")
    rollouts = [
        Rollout(
            Prompt(str(i), torch.randint(vocabulary, (prompt,)).tolist()),
            (Span(Author("x", 0), torch.randint(vocabulary, (room,)).tolist(), [-1.0] * room),),
            reward=float(i % 2),
        )
        for i in range(count)
    ]

    def update() -> None:
        halves = [batching.collate(half, [1.0, -1.0] * 4, run="x") for half in (rollouts[:8], rollouts[8:])]
        assert not policy.update(halves, GRPO(), batching.totals(rollouts, room)).skipped

    update()
    held = {phase: sum(p.bytes for p in plan.parts() if p.phase == phase) for phase in ("sampling", "learning")}
    state = list(policy.model.parameters())
    state += [v for entry in policy.optimizer.state.values() for v in entry.values() if isinstance(v, torch.Tensor)]
    planned = figures(plan)
    real = sum(t.numel() * t.element_size() for t in state)
    assert real == pytest.approx(planned["weights, float32"] + planned["AdamW's moments"], rel=0.02)
    ratio = held["learning"] / most(update)
    print("update: planned over real", ratio)
    assert 0.95 < ratio < 1.33
    if dtype == "float32" and not again:
        sampler = TorchSampler(policy.model, author=Author("x", 0), stop_tokens=[])
        requests = [Request(r.prompt, key=i, max_tokens=room) for i, r in enumerate(rollouts)]
        ratio = held["sampling"] / most(lambda: sampler.continue_(requests, 1))
        print("sampling: planned over real", ratio)
        assert 0.95 < ratio < 1.33


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", reading.recipe_names())
def test_every_recipe_has_a_plan(name: str) -> None:
    told = stockpot("plan", name.replace("_", "-"))
    assert told.code == 0 and not told.err, told.err
    for part in ("parameters", "keys and values", "at the peak", "a step ", "TFLOP", "assumed:"):
        assert part in told.out
    assert re.search(r"^(fits|does not fit): [\d.]+ GB at the peak, 73\.6 GB usable on h100$", told.out, re.M)
    config = load_recipe(name)
    if config.model:
        assert f"{PARAMETERS[config.model]:,} parameters" in told.out
        assert config.max_tokens + 1024 <= PUBLISHED[config.model]["max_position_embeddings"]


def test_spos_reference_reads_what_is_left_out_too() -> None:
    """A pass over all that was sampled, and for a Q0 of the group one by the policy; the update sees the part."""
    plain = Config(algorithm=RLOO(), prefixes=NoPrefixes(), max_tokens=32)
    shape = shape_of("Qwen/Qwen3-4B-Base")

    def learn(**changes: Any) -> float:
        return Plan(replace(plain, **changes), shape, "h100").operations().learn

    bare, part = learn(), Select(2, "random")
    one_pass = learn(kl=KL(0.1)) - bare
    assert learn(select=part) == pytest.approx(bare / 4)
    for q0, passes in (("reference", 1), ("online", 1), ("group", 2)):
        assert learn(algorithm=SPO(q0=q0)) == pytest.approx(bare + passes * one_pass)
        assert learn(algorithm=SPO(q0=q0), select=part) == pytest.approx(bare / 4 + passes * one_pass)
    assert learn(kl=KL(0.1), select=part) == pytest.approx((bare + one_pass) / 4)


SOUPS = {"qwen2_5_math_1_5b": "h100", "qwen2_5_math_7b": "b200", "qwen3_4b": "h200"}
BY_T1 = ("glm4_9b", "qwen2_5_14b", "qwen2_5_32b")


@pytest.mark.parametrize("name", BY_T1)
def test_recipes_by_t1_have_its_numbers_and_fit_no_single_device(name: str) -> None:
    """What the paper states, written out; and what their docstrings say of memory."""
    config = load_recipe(name)
    assert isinstance(config.algorithm, RLOO) and config.prefixes == NoPrefixes()
    assert (config.prompts_per_step, config.group_size, config.learner.learning_rate) == (32, 64, 1.5e-6)
    assert config.sampling == Sampling(1.2) and config.entropy.coefficient > 0
    assert (config.kl.coefficient, config.kl.centred, config.kl.reference) == (2e-4, True, "ema")
    assert config.penalties.value == -1 and config.penalties.overlong
    assert config.penalties.repetition and config.penalties.garbled
    assert load_function(config.task.judge)(completions=[r"so \boxed{2}"], answer=["2"]) == [1.0]  # type: ignore[attr-defined]
    shape = shape_of(config.model)
    assert not [gpu for gpu in DEVICES if Plan(config, shape, gpu).fits]
    told = importlib.import_module(f"stockpot.recipes.{name}").__doc__
    assert f"{shape.parameters * 20 / 1e9:.0f} GB" in told


@pytest.mark.parametrize("name", SOUPS)
def test_recipes_of_real_models_say_what_they_can_do(name: str) -> None:
    """Prefixes in more than half of the steps, a judge that is there, and the device named in the docstring."""
    config = load_recipe(name)
    assert isinstance(config.task, Dataset) and isinstance(config.prefixes, FromHistory)
    epoch = config.task.only / config.prompts_per_step
    assert config.prefixes.min_age < epoch < config.steps / 2 and config.prefixes.max_age >= config.steps
    assert load_function(config.task.judge)(completions=[r"so \boxed{\frac{1}{2}}"], answer=[r"\frac{1}{2}"]) == [1.0]
    fitting = [gpu for gpu in DEVICES if Plan(config, shape_of(config.model), gpu).fits]
    assert SOUPS[name] in fitting
    assert ("h100" in fitting) == (name == "qwen2_5_math_1_5b")


@pytest.mark.parametrize("words", [["--decode-rows", "512"], ["--learner.no-gradient-checkpointing"]], ids=str)
def test_what_the_plan_proposes_makes_it_fit(words: list[str]) -> None:
    told = stockpot("plan", "qwen2-5-math-1-5b", *words)
    assert "does not fit" in told.out
    proposed = re.search(r"it would fit with (.*)", told.out)
    assert proposed is not None
    assert "\nfits: " in stockpot("plan", "qwen2-5-math-1-5b", *words, *proposed[1].split()).out


def test_where_nothing_helps_it_says_so() -> None:
    told = stockpot("plan", "qwen2-5-math-1-5b", "--model", "Qwen/Qwen2.5-32B", "--gpu", "l40s")
    assert "alone take 524.2 GB" in told.out and "would fit" not in told.out
    huge = Plan(load_recipe("qwen2-5-math-7b"), shape_of("Qwen/Qwen2.5-32B"), "h200")
    assert cures(huge) == []


def test_options_of_the_plan_reach_it() -> None:
    words = ("--gpu", "cpu", "--longest-prompt=20", "--reserve", 0.5, "--max-tokens", 64)
    out = stockpot("plan", "countdown", *words).out
    assert (
        "usable on cpu" in out
        and "has 20 tokens (--longest-prompt)" in out
        and "one at a time; 8 lie in memory" not in out
    )
    assert "50% of the device" in out and "256 rows x" in out


def test_words_are_parted_between_the_plan_and_the_recipe() -> None:
    words = ["mine.py", "--gpu", "cpu", "--steps", "3", "--reserve=0.1"]
    assert parted(words, PlanOptions) == (["--gpu", "cpu", "--reserve=0.1"], ["mine.py", "--steps", "3"])


REFUSED = {
    "gpu": (("plan", "--gpu", "h1000"), ("--gpu knows no h1000", "h200", "cpu")),
    "recipe": (("plan", "qwen"), ("there is no recipe qwen", "did you mean qwen3_4b")),
    "shape": (("plan", "qwen3-4b", "--model", "nobody/nothing"), ("shape of nobody/nothing is not known", "--model")),
    "folder": (("plan", "--model", "./nowhere"), ("no model in ./nowhere",)),
    "room": (("plan", "qwen2-5-math-7b", "--max-tokens", 4096), ("reads 4096 tokens", "lower --max-tokens")),
    "share": (("plan", "--response", 2), ("--response must lie",)),
    "weights": (
        ("train", "qwen3-4b", "--model", "nobody/nothing", "--out", "run"),
        ("cannot load nobody/nothing", "the Hugging Face hub cannot be reached", "--model"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_planned_is_told_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words, parts = REFUSED[name]
    told = stockpot(*words)
    assert told.code == 2 and told.err.count("\n") == 1 and not told.out, told.err
    assert all(part in told.err for part in parts), told.err
    assert not list(tmp_path.iterdir())


def test_the_engine_decodes_as_many_rows_as_planned(started: str) -> None:
    config = Config(decode_rows=3, device="cpu")
    assert LocalEngine(config, "run", started, started).sampler.max_rows == 3
    with pytest.raises(StockpotError, match="decode_rows must be at least 1"):
        Config(decode_rows=0)


def test_a_shape_is_a_plain_value() -> None:
    assert isinstance(shape_of("Qwen/Qwen2.5-Math-1.5B"), Shape)
