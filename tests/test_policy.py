"""The learner: bounded memory, exact gradients, any family's head, steps that are skipped, states that come back."""

from __future__ import annotations

import copy
import importlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers import LIVE, OLD, collate, mixed, rollout, span, totals
from stockpot import batching, fused, ops
from stockpot.algorithms import GRPO, Algorithm
from stockpot.algorithms.base import Terms
from stockpot.policy import Learner, Policy, Update
from stockpot.regularizers import KL, EntropyBonus
from stockpot.types import Batch, Rollout, Sampling, StockpotError

SHAPE: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3": {"tie_word_embeddings": True},
    "Llama": {"tie_word_embeddings": False},
    "GPT2": {"n_positions": 64, "n_head": 2, "n_embd": 16, "n_layer": 2, "n_inner": 24},
    "Gemma2": {"final_logit_softcapping": 3.0, "attn_implementation": "eager"},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 8.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
}


def make(family: str = "Qwen3", seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**SHAPE | FAMILIES[family] | changes)
    return getattr(transformers, f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")(config)


def lesson(seed: int = 0) -> tuple[list[Rollout], list[float]]:
    rng = random.Random(seed)
    rollouts = [*mixed(rng), *mixed(rng), *(rollout(rng, span(rng, OLD, n)) for n in (1, 9, 14, 11))]
    return rollouts, [rng.uniform(-1, 1) for _ in rollouts]


def learn(policy: Policy, seed: int = 0, algorithm: Algorithm | None = None, **more: Any) -> Update:
    """One update in the micro-batches that the policy's budget asks for."""
    rollouts, advantages = lesson(seed)
    lengths = [len(r.prompt.tokens) + len(r) for r in rollouts]
    dtype = next(policy.model.parameters()).dtype
    batches = [
        collate([rollouts[i] for i in chosen], [advantages[i] for i in chosen], dtype=dtype)
        for chosen in batching.split(lengths, policy.learner.tokens_per_pass)
    ]
    return policy.update(batches, algorithm or GRPO(), totals(rollouts), **more)


def weights(policy: Policy) -> Tensor:
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()]).clone()


# --- log-probs in bounded memory ------------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Sees every operation: the largest tensor of [tokens x vocabulary], and the most bytes in such at one time."""

    def __init__(self, vocabulary: int, weight: int) -> None:
        super().__init__()
        self.row, self.weight, self.largest, self.most = vocabulary, weight, 0, 0
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            size = tensor.untyped_storage().nbytes() if isinstance(tensor, Tensor) else 0
            if size >= self.row and size != self.weight:
                reference = StorageWeakRef(tensor.untyped_storage())
                self.alive[reference.cdata] = (reference, size)
                self.largest = max(self.largest, size)
        self.alive = {key: held for key, held in self.alive.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return result


@pytest.mark.parametrize(
    ("sampling", "tokens", "logits_mb", "cap"),
    [
        (Sampling(), 2048, 256, None),
        (Sampling(temperature=0.7), 256, 64, 30.0),
        (Sampling(top_p=0.9), 32, 16, None),
        (Sampling(top_k=50, top_p=0.9, min_p=0.01), 32, 16, None),
    ],
    ids=["plain", "warm and capped", "top-p", "everything"],
)
def test_logits_and_their_gradients_stay_within_their_budget(
    sampling: Sampling, tokens: int, logits_mb: int, cap: float | None
) -> None:
    """A vocabulary of 151,936: one float32 tensor for all tokens would be many times the budget."""
    model = make(vocab_size=151_936, hidden_size=8, num_hidden_layers=1, tie_word_embeddings=False)
    model.config.final_logit_softcapping = cap
    model.forward = lambda input_ids, **_: transformers.modeling_outputs.CausalLMOutputWithPast(
        logits=policy_logits(model, input_ids, cap)
    )
    policy = Policy(model, Learner(logits_mb=logits_mb))
    rng = random.Random(0)
    rollouts = [rollout(rng, span(rng, LIVE, tokens // 16, sampling=sampling)) for _ in range(16)]
    batch = batching.collate(rollouts, [1.0] * 16)
    budget = logits_mb * 2**20
    assert tokens * 151_936 * 4 > budget, "the test would prove nothing"
    with Watch(vocabulary=151_936, weight=151_936 * 8 * 4) as watch:
        log_probs, entropy = policy.log_probs(batch, entropy_grad=True)
        (log_probs.sum() + entropy.sum()).backward()
    assert budget / 16 < watch.largest <= budget
    assert budget / 2 < watch.most <= budget
    assert model.lm_head.weight.grad.abs().sum() > 0


def policy_logits(model: Any, ids: Tensor, cap: float | None) -> Tensor:
    logits: Tensor = model.lm_head(model.model(input_ids=ids).last_hidden_state)
    return logits if cap is None else torch.tanh(logits / cap) * cap


@pytest.mark.parametrize("entropy_grad", [False, True])
@pytest.mark.parametrize(
    "samplings",
    [
        [Sampling()],
        [Sampling(0.7)],
        [Sampling(0.9, top_k=700, top_p=0.8)],
        [Sampling(0.7), Sampling(), Sampling(top_p=0.5)],
    ],
    ids=["plain", "warm", "cut", "mixed"],
)
def test_chunks_give_the_values_and_gradients_of_the_whole(samplings: list[Sampling], entropy_grad: bool) -> None:
    """Against the formulas in `ops` on all logits at once, in float64."""
    rng = random.Random(1)
    size = 2000  # 1 MB holds 16 rows of it, four times over
    model = make(vocab_size=size, tie_word_embeddings=False).double()
    policy = Policy(model, Learner(logits_mb=1))
    batch = collate([
        rollout(rng, span(rng, LIVE, 5, sampling=rng.choice(samplings)), span(rng, OLD, 3, sampling=samplings[-1]))
        for _ in range(9)
    ])  # fmt: skip
    upstream = torch.randn(2, len(batch.tokens), dtype=torch.float64)

    def gradients(log_probs: Tensor, entropy: Tensor) -> list[Tensor]:
        model.zero_grad()
        value = (upstream[0] * log_probs).sum() + ((upstream[1] * entropy).sum() if entropy_grad else 0.0)
        value.backward()
        return [p.grad.clone() for p in model.parameters()]

    chunked = policy.log_probs(batch, entropy_grad=entropy_grad)
    found = gradients(*chunked)
    logits = model(input_ids=batch.ids).logits[batch.row, batch.column - 1]
    rows = [
        ops.process_logits(logits[n : n + 1], batch.samplings[int(batch.sampling[n])], keep=batch.tokens[n : n + 1])
        for n in range(len(batch.tokens))
    ]
    whole = ops.log_prob_and_entropy(torch.cat(rows), batch.tokens)
    for ours, theirs in zip(chunked, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert chunked[1].requires_grad == entropy_grad
    for ours, theirs in zip(found, gradients(*whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "changes",
    [{"tokens_per_pass": 16}, {"gradient_checkpointing": True}, {"logits_mb": 1, "tokens_per_pass": 40}],
    ids=["micro-batches", "checkpoints", "chunks"],
)
def test_micro_batches_and_recomputing_change_nothing(changes: dict[str, Any]) -> None:
    """Plain SGD's worth of difference would hide behind AdamW's signs, so the gradient itself is looked at."""

    def gradient(**options: Any) -> Tensor:
        policy = Policy(make(vocab_size=3000).double(), Learner(max_grad_norm=1e9, **options))
        seen: list[Tensor] = []
        policy.optimizer.register_step_pre_hook(
            lambda *_: seen.append(torch.cat([p.grad.flatten() for p in policy.model.parameters()]))
        )
        learn(policy, entropy_bonus=EntropyBonus(0.01))
        return seen[0]

    torch.testing.assert_close(gradient(**changes), gradient(), rtol=1e-9, atol=1e-12)


# --- any family -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_the_whole_model(family: str) -> None:
    """Scales and caps after the head included, and padding or not."""
    policy = Policy(make(family), Learner())
    batch = batching.collate(lesson()[0], lesson()[1])
    log_probs, _ = policy.log_probs(batch)
    logits = policy.model(input_ids=batch.ids).logits[batch.row, batch.column - 1]
    assert logits.std() > 0.05
    expected = logits.log_softmax(-1).gather(1, batch.tokens[:, None]).squeeze(1)
    torch.testing.assert_close(log_probs, expected, rtol=1e-4, atol=1e-5)
    alone = [policy.score([r], "policy")[0] for r in lesson()[0]]
    torch.testing.assert_close(torch.cat(alone), log_probs.detach(), rtol=1e-4, atol=1e-5)


def test_a_model_that_does_something_unknown_after_its_head_is_refused() -> None:
    class Odd(transformers.Qwen3ForCausalLM):
        def forward(self, *args: Any, **options: Any) -> Any:
            output = super().forward(*args, **options)
            output.logits = output.logits * 1.01
            return output

    with pytest.raises(StockpotError, match="Odd does something to its logits"):
        Policy(Odd(make().config), Learner())


@pytest.mark.parametrize("family", ["Qwen3", "Llama", "Gemma2", "Granite"])
def test_what_is_replaced_for_speed_gives_the_same_numbers(family: str) -> None:
    """Values and gradients of the model as transformers wrote it, which other tests may have changed already."""
    ids = torch.randint(3, 48, (3, 17))
    module = importlib.import_module(f"transformers.models.{family.lower()}.modeling_{family.lower()}")

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, ...]:
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return tuple(x * cos + torch.cat((-x.chunk(2, -1)[1], x.chunk(2, -1)[0]), -1) * sin for x in (q, k))

    def run(model: Any) -> list[Tensor]:
        loss = model(input_ids=ids).logits.log_softmax(-1)[..., 5].sum()
        loss.backward()
        return [loss.detach()] + [p.grad for p in model.parameters()]

    theirs, ours = make(family), make(family)
    module.apply_rotary_pos_emb = rotate  # type: ignore[attr-defined]
    expected = run(theirs)
    fused.speed_up(ours)
    assert module.apply_rotary_pos_emb is not rotate
    changed = [m for m in ours.modules() if "forward" in vars(m)]
    assert (len(changed) > 0) == (family != "Gemma2"), "Gemma adds 1 to the weights of its norms"
    found = run(ours)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5 * float(other.abs().max()))


def test_the_gradients_written_by_hand_are_right() -> None:
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(3, 4, dtype=torch.float64).repeat(1, 2)
    assert torch.autograd.gradcheck(lambda x, w: fused.RMSNorm.apply(x, w, 1e-3, torch.float64), (x, weight))
    assert torch.autograd.gradcheck(lambda x: fused.Rotary.apply(x, angles.cos(), angles.sin()), (x,))
    strided = torch.randn(3, 8, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w: fused.RMSNorm.apply(x.transpose(1, 2), w, 1e-3, torch.float64), (strided, weight)
    )


# --- bfloat16 and dropout -------------------------------------------------------------------------------------------


def test_bfloat16_learns_about_the_same_with_float32_weights() -> None:
    def gradient(dtype: Any, logits_mb: int = 256) -> Tensor:
        policy = Policy(make(vocab_size=3000).bfloat16(), Learner(dtype=dtype, logits_mb=logits_mb, max_grad_norm=1e9))
        assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
        seen: list[Tensor] = []
        policy.optimizer.register_step_pre_hook(
            lambda *_: seen.append(torch.cat([p.grad.flatten() for p in policy.model.parameters()]))
        )
        learn(policy)
        assert policy.model.config._attn_implementation == "sdpa"
        return seen[0]

    exact, rounded = gradient("float32"), gradient("bfloat16")
    assert exact.dtype == rounded.dtype == torch.float32
    assert 1e-4 < (rounded - exact).norm() / exact.norm() < 0.1
    torch.testing.assert_close(gradient("bfloat16", 1), rounded, rtol=0.05, atol=0.02 * float(rounded.abs().max()))


def test_dropout_follows_the_callers_seed_while_learning_and_is_off_while_scoring() -> None:
    def after(seed: int, **changes: Any) -> tuple[Tensor, Tensor]:
        policy = Policy(make(**changes), Learner())
        scored = torch.cat(policy.score(lesson()[0], "policy"))
        torch.manual_seed(seed)
        learn(policy)
        assert not policy.model.training
        return scored, weights(policy)

    plain, one, again, other = after(1), *(after(seed, attention_dropout=0.3) for seed in (1, 1, 2))
    assert torch.equal(plain[0], one[0])
    assert torch.equal(one[1], again[1])
    assert not torch.equal(one[1], other[1]) and not torch.equal(one[1], plain[1])
    assert torch.equal(plain[1], after(2)[1])


# --- steps that are not taken ---------------------------------------------------------------------------------------


class Broken(GRPO):
    """A loss that goes wrong in the last micro-batch."""

    wrong: Callable[[Tensor], Tensor]

    def loss(self, log_probs: Tensor, batch: Batch) -> Terms:
        terms = super().loss(log_probs, batch)
        last = bool((batch.lengths <= 1).any())
        return Terms(type(self).wrong(terms.loss) if last else terms.loss, terms.ratio, terms.clipped)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda loss: loss / 0.0, "the loss is"),
        (lambda loss: loss * torch.nan, "the loss is nan"),
        (lambda loss: loss + (loss * 0.0).sqrt(), "the gradient's norm is nan"),  # 0 with a slope of 0 x infinity
    ],
    ids=["infinite loss", "loss that is no number", "gradient that is no number"],
)
def test_a_step_that_is_not_finite_is_skipped_and_leaves_no_trace(wrong: Callable[[Tensor], Tensor], said: str) -> None:
    policy, twin = (Policy(make(), Learner(tokens_per_pass=32, weight_decay=0.1)) for _ in range(2))
    for one in (policy, twin):
        assert not learn(one).skipped
    before, state = weights(policy), copy.deepcopy(policy.optimizer.state_dict()["state"])
    Broken.wrong = staticmethod(wrong)  # type: ignore[method-assign]
    update = learn(policy, seed=1, algorithm=Broken())
    assert said in update.skipped
    assert policy.skipped_steps == 1 and update.metrics["skipped_steps"] == 1.0
    assert torch.equal(before, weights(policy))
    after = policy.optimizer.state_dict()["state"]
    assert all(torch.equal(state[i][key], after[i][key]) for i in state for key in state[i])
    assert all(p.grad is None for p in policy.model.parameters())
    for one in (policy, twin):
        assert not learn(one, seed=2).skipped
    assert torch.equal(weights(policy), weights(twin)) and not torch.equal(weights(policy), before)


# --- save and restore -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["none", "frozen", "ema"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_restored_policy_goes_on_in_the_same_bits(tied: bool, reference: str, tmp_path: Path) -> None:
    learner = Learner(learning_rate=1e-2, warmup=5, weight_decay=0.1)
    kl = KL() if reference == "none" else KL(0.1, reference=reference)  # type: ignore[arg-type]

    def step(policy: Policy, seed: int) -> list[Tensor]:
        rollouts, advantages = lesson(seed)
        scored = policy.score(rollouts, "reference") if kl.active else None
        batch = batching.collate(rollouts, advantages, reference_log_probs=scored)
        update = policy.update([batch], GRPO(), totals(rollouts), kl=kl)
        policy.version += 1
        if reference == "ema":
            policy.move_reference(0.3)
        state = policy.optimizer.state_dict()["state"]
        kept = [] if policy.reference is None else [p.clone() for p in policy.reference.parameters()]
        figures = torch.tensor([value for _, value in sorted(update.metrics.items())])
        return [weights(policy), figures, *kept, *(state[i][key] for i in sorted(state) for key in sorted(state[i]))]

    policy = Policy(make(tie_word_embeddings=tied), learner)
    if kl.active:
        policy.reference = copy.deepcopy(policy.model)
    for seed in range(3):
        step(policy, seed)
    policy.skipped_steps = 2
    policy.save(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    restored = Policy(loaded, learner)
    restored.restore(tmp_path)
    assert (restored.version, restored.skipped_steps) == (3, 2)
    for seed in range(3, 6):
        for one, other in zip(step(policy, seed), step(restored, seed), strict=True):
            assert torch.equal(one, other)


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    policy = Policy(make(), Learner())
    learn(policy)
    for name in ("one", "two"):
        policy.save(tmp_path / name)
    one, two = ((tmp_path / name / "optimizer.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("harm", ["cut", "garbage", "missing", "other model"])
@pytest.mark.parametrize("file", ["optimizer.safetensors", "reference.safetensors"])
def test_a_damaged_state_is_told_in_one_line_and_changes_nothing(file: str, harm: str, tmp_path: Path) -> None:
    policy = Policy(make(), Learner())
    policy.reference = copy.deepcopy(policy.model)
    learn(policy)
    policy.save(tmp_path)
    path = tmp_path / file
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif harm == "garbage":
        path.write_bytes(b"\xff" * 1000)
    elif harm == "other model":
        other = Policy(make(intermediate_size=40), Learner())
        other.reference = copy.deepcopy(other.model)
        learn(other)
        other.save(tmp_path / "other")
        path.write_bytes((tmp_path / "other" / file).read_bytes())
    else:
        path.unlink()
        if file.startswith("reference"):
            return  # a run without a KL has none
    fresh = Policy(make(), Learner())
    with pytest.raises(StockpotError, match=file) as caught:
        fresh.restore(tmp_path)
    assert "\n" not in str(caught.value)
    assert not fresh.optimizer.state_dict()["state"] and fresh.reference is None
