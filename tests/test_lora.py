"""LoRA: an adapter learns, the model beside it does not, and every part of the house sees an ordinary model."""

from __future__ import annotations

import copy
import random
import shutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import LIVE, collate, mixed, tiny_model, totals
from runs import TINY, assert_same_bits, metrics, snapshot, stockpot, trained
from small import save_model
from stockpot import batching, fused, lora
from stockpot.algorithms import GRPO, PPO, SPO
from stockpot.algorithms.base import CriticOptions
from stockpot.as_json import from_json
from stockpot.config import Config
from stockpot.critic import Critic
from stockpot.engines.local import LocalEngine
from stockpot.history import History
from stockpot.lora import LoRA
from stockpot.models import load_model
from stockpot.plan import Assumed, Plan
from stockpot.policy import Learner, Policy
from stockpot.prefixes import FromCheckpoints, NoPrefixes
from stockpot.record import Run
from stockpot.regularizers import KL
from stockpot.samplers.torch import TorchSampler
from stockpot.shapes import measure, shape_of
from stockpot.snapshots import Snapshots
from stockpot.types import Author, Batch, Prompt, Request, Rollout, Span, StockpotError
from test_plan import figures, most

pytest.importorskip("peft")
CPU = torch.device("cpu")
LOW = Learner(learning_rate=1e-2, max_grad_norm=1e9, tokens_per_pass=64, lora=LoRA(rank=3, alpha=6.0))


@cache
def base() -> Any:
    return tiny_model()


def policy(learner: Learner = LOW, *, stirred: bool = False) -> Policy:
    """A policy with an adapter; `stirred`: one that has left its start."""
    made = Policy(copy.deepcopy(base()), learner)
    if stirred:
        stir(made.model, 1)
    return made


@torch.no_grad()
def stir(model: Any, seed: int) -> None:
    """Give the adapter some values."""
    generator = torch.Generator().manual_seed(seed)
    for _, p in lora.moving(model):
        p.copy_(0.2 * torch.randn(p.shape, generator=generator))


def plain() -> Policy:
    """The model itself, without any adapter."""
    return Policy(copy.deepcopy(base()), replace(LOW, lora=LoRA()))


def experience(seed: int = 3) -> list[Rollout]:
    return mixed(random.Random(seed))


def learn(learner: Policy, rollouts: list[Rollout], **more: Any) -> None:
    update = learner.update([collate(rollouts)], GRPO(), totals(rollouts), **more)
    assert not update.skipped and update.metrics["grad_norm"] > 0


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def bits(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# --- learning --------------------------------------------------------------------------------------------------------


def test_only_the_adapter_moves_and_only_it_has_moments() -> None:
    learner = policy()
    before, own = bits(learner.model), {name for name, _ in lora.moving(learner.model)}
    for seed in (1, 2):
        learn(learner, experience(seed))
    after = bits(learner.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == own and len(own) == 2 * 2 * 7
    assert sum(len(entry) > 0 for entry in learner.optimizer.state.values()) == len(own)
    assert {name.replace(".base_layer", "") for name in set(before) - own} == set(bits(base()))
    assert all(p.requires_grad == (name in own) for name, p in learner.model.named_parameters())


def test_it_begins_as_the_model_it_was_put_into_to_the_bit() -> None:
    rollouts = experience()
    assert same(policy().score(rollouts, "policy"), plain().score(rollouts, "policy"))
    again = [bits(policy().model) for _ in range(2)]
    assert all(torch.equal(p, again[1][name]) for name, p in again[0].items()), "no random numbers of the process"
    other = Policy(copy.deepcopy(base()), replace(LOW, lora=LoRA()))
    lora.adapt(other.model, LOW.lora, seed=1)
    assert not same([p for _, p in lora.moving(other.model)], [p for _, p in lora.moving(policy().model)])


def grads(learner: Policy, batch: Batch) -> dict[str, Tensor]:
    """The gradient of a weighted sum of log-probs, by parameter."""
    learner.model.train().zero_grad(set_to_none=True)  # activations are recomputed in training only
    log_probs, _ = learner.log_probs(batch)
    (log_probs * torch.linspace(-1, 1, len(log_probs), dtype=log_probs.dtype)).sum().backward()
    return {name: p.grad for name, p in learner.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_the_gradient_is_that_of_full_training_seen_through_the_adapter(again: bool) -> None:
    """With W' = W + s B A:  dB = s dW' A^T and dA = s B^T dW', from autograd on the merged weights."""
    learner, batch = policy(replace(LOW, gradient_checkpointing=again), stirred=True), collate(experience())
    merged = copy.deepcopy(learner.model)
    lora.merge(merged)
    whole, own = grads(Policy(merged, replace(LOW, lora=LoRA())), batch), grads(learner, batch)
    scale, checked = LOW.lora.alpha / LOW.lora.rank, 0
    parameters = dict(learner.model.named_parameters())
    assert set(own) == {name for name, _ in lora.moving(learner.model)}
    for name in own:
        if ".lora_A." in name:
            other, layer = name.replace(".lora_A.", ".lora_B."), whole[name.partition(".lora_A.")[0] + ".weight"]
            a, b = parameters[name], parameters[other]
            assert torch.allclose(own[name], scale * b.T @ layer, rtol=1e-8, atol=1e-10)
            assert torch.allclose(own[other], scale * layer @ a.T, rtol=1e-8, atol=1e-10)
            checked += bool(own[name].abs().max() > 1e-6)
    assert checked == 14


def test_any_split_into_micro_batches_takes_the_same_step() -> None:
    rollouts = experience()
    ends = []
    for parts in ([rollouts], [rollouts[:2], rollouts[2:]], [[r] for r in rollouts]):
        learner = policy(stirred=True)
        assert not learner.update([collate(part) for part in parts], GRPO(), totals(rollouts)).skipped
        ends.append(torch.cat([p.detach().flatten() for _, p in lora.moving(learner.model)]))
    assert all(torch.allclose(end, ends[0], rtol=1e-7, atol=1e-9) for end in ends)


def test_a_critics_head_reads_the_adapted_model_and_teaches_the_adapter() -> None:
    options = CriticOptions(kind="head", learning_rate=1e-2)
    learner, rollouts = policy(stirred=True), experience()
    learner.critic = Critic(options, learner.model)
    for _ in range(2):
        values = learner.score(rollouts, "critic")
        _, returns = PPO(critic=options).judge(rollouts, values)
        before = bits(learner.model)
        batch = collate(rollouts, [[0.0] * len(r) for r in rollouts], values=values, returns=returns)
        assert not learner.update([batch], PPO(critic=options), totals(rollouts)).skipped
    assert learner.critic.head.weight.abs().max() > 0 and learner.critic.head.weight.dtype == torch.float64
    moved = {name for name, p in bits(learner.model).items() if not torch.equal(before[name], p)}
    assert moved == {name for name, _ in lora.moving(learner.model)}, "advantages were 0: this came from the values"
    with lora.switched_off(learner.model):
        assert not same(learner.score(rollouts, "critic"), values)


# --- the reference ---------------------------------------------------------------------------------------------------


def test_a_frozen_reference_is_the_base_to_the_bit_and_stays() -> None:
    learner, rollouts = policy(), experience()
    learner.reference = lora.Reference(learner.model, moves=False)
    start = plain().score(rollouts, "policy")
    for seed in (1, 2):
        assert same(learner.score(rollouts, "reference"), start)
        kept = bits(learner.model)
        learn(learner, experience(seed), kl=KL(0.0))
        assert not same(learner.score(rollouts, "policy"), start)
        assert any(not torch.equal(p, kept[name]) for name, p in learner.model.named_parameters())
    kept = bits(learner.model)
    learner.score(rollouts, "reference")
    assert all(torch.equal(p, kept[name]) for name, p in learner.model.named_parameters())
    assert all(p.requires_grad for _, p in lora.moving(learner.model)), "it can still learn"
    assert not dict(learner.reference.named_parameters())
    learn(learner, rollouts)


def test_a_moving_reference_holds_an_adapter_and_no_model(tmp_path: Path) -> None:
    learner, rollouts = policy(), experience()
    learner.reference = lora.Reference(learner.model, moves=True)
    start, first = plain().score(rollouts, "policy"), dict(lora.moving(copy.deepcopy(learner.model)))
    learn(learner, rollouts)
    assert same(learner.score(rollouts, "reference"), start)
    learner.move_reference(0.25)
    for name, p in lora.moving(learner.model):
        expected = first[name] + 0.25 * (p - first[name])
        assert torch.allclose(dict(learner.reference.named_parameters())[name], expected, atol=1e-12)
    assert not same(learner.score(rollouts, "reference"), start)
    learner.save(tmp_path)
    learner.move_reference(1.0)
    assert same(learner.score(rollouts, "reference"), learner.score(rollouts, "policy"))
    fresh = policy()
    fresh.restore(tmp_path)
    stored = dict(fresh.reference.named_parameters())
    assert set(stored) == set(first) and not torch.equal(stored[name], dict(learner.reference.named_parameters())[name])


# --- in and out of a model -------------------------------------------------------------------------------------------


def test_snapshots_hold_the_adapter_alone_and_go_in_and_out() -> None:
    learner, rollouts, kept = policy(stirred=True), experience(), Snapshots(2)
    old = learner.score(rollouts, "policy")
    kept.take(0, learner.model)
    assert set(kept._held[0]) == {name for name, _ in lora.moving(learner.model)}  # type: ignore[arg-type]
    stir(learner.model, 2)
    new = learner.score(rollouts, "policy")
    with lora.borrowed(learner.model):
        kept.load(0, learner.model)
        assert same(learner.score(rollouts, "policy"), old)
    assert same(learner.score(rollouts, "policy"), new) and not same(old, new)
    with pytest.raises(StockpotError, match="of another model"):
        kept.load(0, plain().model)


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_what_the_sampler_says_the_learner_says(weights: Any) -> None:
    """Adapted, and by the reference; with frozen weights in bfloat16 up to its rounding."""
    dtype, slack = {"float32": (torch.float32, 2e-5), "bfloat16": (torch.bfloat16, 0.15)}[weights]
    model = copy.deepcopy(base()).to(dtype)
    learner = Policy(model, replace(LOW, dtype=weights, lora=LoRA(rank=3, weights=weights)))
    stir(model, 4)
    assert {p.dtype for _, p in lora.moving(model)} == {torch.float32}
    frozen = {p.dtype for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {dtype}
    sampler = TorchSampler(model, author=LIVE, stop_tokens=[5])
    prompts = [Prompt(str(i), [1 + i, 7, 3][: 1 + i % 3]) for i in range(6)]
    requests = [Request(p, key=i, max_tokens=10) for i, p in enumerate(prompts)]
    for of in ("policy", "reference"):
        learner.reference = lora.Reference(model, moves=False)
        with lora.dressed(learner.reference if of == "reference" else None):
            written = sampler.continue_(requests, 1)
        scores = learner.score(written, of)  # type: ignore[arg-type]
        for one, scored in zip(written, scores, strict=True):
            assert torch.allclose(scored.float(), torch.tensor(list(one.spans[0].log_probs or ())), atol=slack)
    learn(learner, experience())
    assert {p.dtype for name, p in model.named_parameters() if not p.requires_grad} == {dtype}


def test_targets_can_be_named_and_wrong_ones_are_told() -> None:
    learner = policy(replace(LOW, lora=LoRA(rank=2, targets=("q_proj", "down_proj"))))
    assert {name.split(".")[-4] for name, _ in lora.moving(learner.model)} == {"q_proj", "down_proj"}
    learn(learner, experience())
    for wrong in ("c_attn", "lm_head", "embed_tokens"):
        with pytest.raises(StockpotError, match=rf"no linear layer {wrong} beside its head; it has down_proj, "):
            policy(replace(LOW, lora=LoRA(rank=2, targets=(wrong,))))


# --- on disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_reads_what_is_saved_and_a_merged_model_says_the_same(tmp_path: Path) -> None:
    from peft import PeftModel

    folder = save_model(tmp_path / "base")
    model = load_model(str(folder), CPU)
    lora.adapt(model, LoRA(rank=4, alpha=5.0), base=str(folder))
    fused.speed_up(model)
    stir(model, 3)
    (tmp_path / "run" / "checkpoints" / "step-1").mkdir(parents=True)
    lora.save(model, tmp_path / "run" / "checkpoints" / "step-1")
    ids = torch.arange(1, 30)[None]
    theirs = PeftModel.from_pretrained(load_model(str(folder), CPU), str(tmp_path / "run" / "checkpoints" / "step-1"))
    fused.speed_up(theirs.get_base_model())
    assert torch.equal(theirs(ids).logits, model(ids).logits)
    again = load_model(str(tmp_path / "run" / "checkpoints" / "step-1"), CPU)
    fused.speed_up(again)
    assert torch.equal(again(ids).logits, model(ids).logits)
    with lora.switched_off(model):
        assert not torch.allclose(again(ids).logits, model(ids).logits, atol=0.1)
    lora.merge(again)
    assert not lora.adapted(again) and all(p.requires_grad for p in again.parameters())
    assert set(bits(again)) == set(bits(load_model(str(folder), CPU)))
    one, other = (made(ids).logits.log_softmax(-1) for made in (again, model))
    assert torch.allclose(one, other, atol=1e-5)


OPTIONS = (
    "--learner.lora.rank", 4, "--learner.learning-rate", 1e-2, "--prefixes", "checkpoints", "--prefixes.every", 1,
    "--prefixes.min-age", 1, "--prefixes.longest", 6, "--keep-checkpoints", 9, "--checkpoint-every", 1,
    "--evaluation.every", 3,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that trains an adapter, with an EMA reference and live prefixes by its past. Look, do not touch."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    trained("--out", folder, *OPTIONS)
    return folder


def test_a_checkpoint_holds_no_model_and_is_enough_to_resume_to_the_same_bits(run: Path, tmp_path: Path) -> None:
    last = run / "checkpoints" / "step-6"
    assert not (last / "model.safetensors").exists() and (last / "reference.safetensors").exists()
    model = (run / "start" / "model.safetensors").stat().st_size
    assert sum(path.stat().st_size for path in last.rglob("*.safetensors")) < model
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(run, moved)
    for step in (4, 5, 6):
        shutil.rmtree(moved / "checkpoints" / f"step-{step}")
    told = stockpot("resume", moved)
    assert told.code == 0, told.err
    assert_same_bits(run, moved)
    first, end = metrics(run)[1], metrics(run)[-1]
    assert first["grad_norm"] > 0 and end["kl_to_reference"] > 0 and end["prefix/share"] > 0


def test_live_prefixes_are_priced_by_the_adapter_that_wrote_them(run: Path) -> None:
    """The stored log-probs are those of that version's checkpoint, scored anew; the live policy's are others."""
    with History.open(run / "history.sqlite", read_only=True) as history:
        found = [r for r in history.find() if r.prefix_length]
    versions = {r.spans[0].author.version for r in found}
    assert len(versions) >= 2
    for version in sorted(v for v in versions if v is not None):
        model = load_model(str(run / "checkpoints" / f"step-{version}"), CPU)
        mine = [r for r in found if r.spans[0].author.version == version]
        for one, scored in zip(mine, Policy(model, Learner()).score(mine, "policy"), strict=True):
            head, tail = one.spans
            assert torch.allclose(scored[: len(head)], torch.tensor(list(head.log_probs or ())), atol=1e-4)
            assert not torch.allclose(scored[len(head) :], torch.tensor(list(tail.log_probs or ())), atol=1e-3)


def test_the_engines_past_writes_as_the_loaded_past_does_and_no_model_is_added(run: Path, tmp_path: Path) -> None:
    config = replace(from_json(Run.open(run).config), refresh_every=3)
    last, start = run / "checkpoints" / "step-6", run / "start"
    shutil.copytree(last, tmp_path / "step-6")
    shutil.copytree(run / "start", tmp_path / "start")
    (tmp_path / "step-6" / "writer").mkdir()
    shutil.copy(last / "snapshot-3.safetensors", tmp_path / "step-6" / "writer")
    text = (last / lora.CONFIG).read_text().replace("../../start", str(start))
    (tmp_path / "step-6" / lora.CONFIG).write_text(text)
    engine = LocalEngine(config, "run", str(tmp_path / "step-6"), str(start), 6, tmp_path / "scratch")
    kept, asked = bits(engine.policy.model), [Request(Prompt("a", [5, 6, 7]), key=i, max_tokens=12) for i in range(4)]
    live = engine.sample(asked, 1)
    assert engine.past == [0, 1, 2, 3, 4, 5, 6]
    for version in (1, 3):
        loaded = load_model(str(run / "checkpoints" / f"step-{version}"), CPU)
        fused.speed_up(loaded)
        expected = TorchSampler(loaded, author=Author("run", version), stop_tokens=engine.stops, pad=engine.pad)
        assert engine.sample(asked, 1, version) == expected.continue_(asked, 1)
        assert engine.sample(asked, 1, version) != live
        assert all(torch.equal(p, kept[name]) for name, p in engine.policy.model.named_parameters())
    assert engine.sample(asked, 1) == live and not engine._others


def test_a_checkpoint_is_evaluated_beside_its_past_and_exported(run: Path, tmp_path: Path) -> None:
    beside = stockpot("eval", run, "--prefix-from", "0", "--samples", 4, "--prompts", 2)
    assert beside.code == 0 and "heads by step 0" in beside.out, beside.err
    told = stockpot("export", run, "--out", tmp_path / "out")
    assert told.code == 0 and told.complaints == [
        f"{run / 'checkpoints' / 'step-6'} is in {tmp_path / 'out'}, in float32"
    ]
    names = set(snapshot(tmp_path / "out"))
    assert names == set(snapshot(run / "start"))
    whole, part = load_model(str(tmp_path / "out"), CPU), load_model(str(run / "checkpoints" / "step-6"), CPU)
    with History.open(run / "history.sqlite", read_only=True) as history:
        rollouts = list(history.find())[:12]
    one, other = (Policy(model, Learner()).score(rollouts, "policy") for model in (whole, part))
    assert max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)) < 1e-5
    start = Policy(load_model(str(run / "start"), CPU), Learner()).score(rollouts, "policy")
    assert max(float((a - b).abs().max()) for a, b in zip(one, start, strict=True)) > 0.01
    by_run, by_export, by_folder = (
        stockpot("eval", what, *more, "--samples", 2).out.partition("┏")[2]
        for what, more in (
            (run, ()), (tmp_path / "out", ("--recipe", TINY)), (run / "checkpoints" / "step-6", ("--recipe", TINY)),
        )
    )  # fmt: skip
    assert by_run == by_export == by_folder and "pass@1" in by_run
    twice = stockpot("export", run, "--out", tmp_path / "out")
    assert twice.code == 2 and "already holds something" in twice.err


def test_an_adapter_finds_its_own_base_or_says_so(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "start", tmp_path / "start")
    shutil.copytree(run / "checkpoints" / "step-6", tmp_path / "checkpoints" / "step-6")
    folder = str(tmp_path / "checkpoints" / "step-6")
    assert lora.base_of(Path(folder)) == str(tmp_path / "start"), "a run may be moved"
    assert lora.adapted(load_model(folder, CPU))
    other = load_model(str(tmp_path / "start"), CPU)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1.0
    other.save_pretrained(tmp_path / "start")
    with pytest.raises(StockpotError, match=r"is not the model that the adapter in .* was trained on"):
        load_model(folder, CPU)
    shutil.rmtree(tmp_path / "start")
    with pytest.raises(StockpotError, match="there is no model in"):
        load_model(folder, CPU)
    again = stockpot("train", TINY, "--model", run / "checkpoints" / "step-6", "--learner.lora.rank", 2,
                     "--out", tmp_path / "run")  # fmt: skip
    assert again.code == 2 and "is an adapter itself: `stockpot export` it" in again.err
    assert not (tmp_path / "run").exists()


def test_without_peft_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    told = stockpot("train", TINY, "--learner.lora.rank", 2, "--out", tmp_path / "run")
    assert told.code == 2 and told.err.count("\n") == 1 and 'pip install "stockpot[lora]"' in told.err
    assert not (tmp_path / "run").exists(), "found before a model was taught"


REFUSED = {
    "rank": (lambda: LoRA(rank=-1), "rank is 0 or more"),
    "targets": (lambda: LoRA(rank=1, targets=()), "targets name at least one"),
    "critic": (
        lambda: Config(algorithm=PPO(critic=CriticOptions(kind="separate")), learner=LOW),
        "set algorithm.critic.kind to head",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused(name: str) -> None:
    make, says = REFUSED[name]
    with pytest.raises(StockpotError, match=says):
        make()


# --- the plan --------------------------------------------------------------------------------------------------------


def test_the_plan_counts_frozen_weights_once_and_the_adapter_four_times() -> None:
    """Llama-3.1-8B at rank 16 on all linear layers has 41,943,040 numbers, as everybody's LoRA of it."""
    shape = shape_of("meta-llama/Llama-3.1-8B-Instruct")
    config = Config(
        model=shape.name, algorithm=SPO(), prefixes=NoPrefixes(), learner=Learner(lora=LoRA(rank=16)), max_tokens=512
    )
    plan = Plan(config, shape, "h100")
    found, p, a = figures(plan), shape.parameters, 41_943_040
    assert plan.adapter == a and plan.trained == a
    assert found["weights, frozen, bfloat16"] == 2 * p and found["adapter, float32"] == 4 * a
    assert found["AdamW's moments"] == 8 * a and found["gradients, float32"] == 4 * a
    assert found["weights, bfloat16"] == 2 * a and found["reference's adapter"] == found["adapter put aside"] == 0
    assert "reference model" not in found and "past policy" not in found
    moving = replace(config, algorithm=GRPO(), kl=KL(0.1, reference="ema"), prefixes=FromCheckpoints())
    found = figures(Plan(moving, shape, "h100"))
    assert found["reference's adapter"] == found["adapter put aside"] == 4 * a
    whole = replace(config, learner=replace(config.learner, lora=LoRA(rank=16, weights="float32")))
    found = figures(Plan(whole, shape, "h100"))
    assert found["weights, frozen, float32"] == 4 * p and found["weights, bfloat16"] == 2 * (p - shape.embedding + a)
    few = replace(config, learner=replace(config.learner, lora=LoRA(rank=16, targets=("q_proj", "v_proj"))))
    assert Plan(few, shape, "h100").adapter == 16 * 32 * (4096 + 4096 + 4096 + 1024)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_real_update_of_an_adapter_takes_what_was_planned(dtype: Any) -> None:
    """23 M parameters on the CPU: state to 2 per cent, the peak from 5 below to a third above."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    vocabulary, prompt, room, count = 8192, 16, 48, 16
    made = Qwen2Config(
        vocab_size=vocabulary, hidden_size=512, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, tie_word_embeddings=True, max_position_embeddings=1024,
    )  # fmt: skip
    learner = Learner(tokens_per_pass=512, dtype=dtype, logits_mb=64, lora=LoRA(rank=16))
    config = Config(learner=learner, prompts_per_step=4, group_size=4, max_tokens=room, prefixes=NoPrefixes())
    plan = Plan(config, measure(made, "real", "here"), "cpu", Assumed(prompt, prompt, 1.0))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made).to(getattr(torch, dtype))
    learning = Policy(model, learner, run="x")
    tokens = lambda n: torch.randint(vocabulary, (n,)).tolist()  # noqa: E731
    rollouts = [
        Rollout(Prompt(str(i), tokens(prompt)), (Span(Author("x", 0), tokens(room), [-1.0] * room),), float(i % 2))
        for i in range(count)
    ]

    def update() -> None:
        halves = [batching.collate(half, [1.0, -1.0] * 4, run="x") for half in (rollouts[:8], rollouts[8:])]
        assert not learning.update(halves, GRPO(), batching.totals(rollouts, room)).skipped

    update()
    state = list(model.parameters())
    state += [v for entry in learning.optimizer.state.values() for v in entry.values() if isinstance(v, torch.Tensor)]
    real = sum(t.numel() * t.element_size() for t in state)
    planned = figures(plan)
    assert real == pytest.approx(sum(p.bytes for p in plan.parts() if p.phase == "always"), rel=0.02)
    assert planned[f"weights, frozen, {dtype}"] > 0
    ratio = sum(p.bytes for p in plan.parts() if p.phase == "learning") / most(update)
    print("update: planned over real", ratio)
    assert 0.95 < ratio < 1.33
