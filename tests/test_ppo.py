"""PPO and its critic: the advantages against their definition, the critic in a real update, runs with both kinds."""

from __future__ import annotations

import copy
import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import LIVE, OLD, collate, mixed, rollout, somewhere_else, span, tiny_model, totals
from runs import assert_same_bits, metrics, stockpot, trained, weights
from stockpot import batching
from stockpot.algorithms import GRPO, PPO
from stockpot.algorithms.base import CriticOptions
from stockpot.algorithms.ppo import generalised
from stockpot.as_json import to_json
from stockpot.config import Config, load_recipe
from stockpot.critic import Critic, value_terms
from stockpot.plan.account import Plan
from stockpot.policy import Learner, Policy, Update
from stockpot.prefixes import NoPrefixes
from stockpot.regularizers import KL
from stockpot.shapes import measure
from stockpot.types import Author, Batch, Rollout, StockpotError
from test_loop import documented, plain

PLAIN = PPO(trace=1.0, whiten=False)
KINDS: Any = ("head", "separate")
both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def rng() -> random.Random:
    return random.Random(3)


def numbers(rng: random.Random, rollouts: Sequence[Rollout]) -> list[Tensor]:
    """A number for each response token, as a critic would give them."""
    return [torch.tensor([rng.uniform(-1, 1) for _ in r.tokens], dtype=torch.float64) for r in rollouts]


def trained_of(rollout: Rollout) -> Tensor:
    return torch.tensor([s.trained for s in rollout.spans for _ in s.tokens], dtype=torch.bool)


# --- advantages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("trace", [1.0, 0.95, 0.4, 0.0])
def test_gae_is_the_mean_of_all_n_step_advantages(gamma: float, trace: float, rng: random.Random) -> None:
    """By definition: (1 - lambda) sum of lambda^(k-1) (k steps of reward, then V, less V now), the rest at the end."""
    rewards, values = ([rng.uniform(-1, 1) for _ in range(7)] for _ in range(2))
    end = len(values)

    def steps(t: int, k: int) -> float:
        """The k-step advantage at t: what is earned in k steps, and what is expected behind them."""
        earned = sum(gamma**i * rewards[t + i] for i in range(min(k, end - t)))
        return earned + (gamma**k * values[t + k] if t + k < end else 0.0) - values[t]

    expected = []
    for t in range(end):
        left = end - t
        mixture = sum((1 - trace) * trace ** (k - 1) * steps(t, k) for k in range(1, left))
        expected.append(mixture + trace ** (left - 1) * steps(t, left))
    assert generalised(rewards, values, gamma, trace).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_with_lambda_one_the_advantage_is_the_reward_less_the_value(rng: random.Random) -> None:
    rollouts = mixed(rng)
    values = numbers(rng, rollouts)
    advantages, returns = PLAIN.judge(rollouts, values)
    for written, value, advantage, due in zip(rollouts, values, advantages, returns, strict=True):
        mask, reward = trained_of(written), written.reward
        torch.testing.assert_close(advantage, torch.where(mask, reward - value, 0.0), rtol=0, atol=1e-14)
        torch.testing.assert_close(due, mask * torch.tensor(reward, dtype=torch.float64), rtol=0, atol=1e-14)


def test_truncated_responses_end_with_their_reward_like_the_others(rng: random.Random) -> None:
    whole = rollout(rng, span(rng, LIVE, 5))
    values = numbers(rng, [whole])
    for algorithm in (PPO(whiten=False), PLAIN):
        one, cut = (algorithm.judge([replace(whole, finish=how)], values) for how in ("stop", "length"))  # type: ignore[arg-type]
        assert torch.equal(one[0][0], cut[0][0]) and torch.equal(one[1][0], cut[1][0])


def test_tokens_that_are_not_trained_are_the_worlds(rng: random.Random) -> None:
    """The others are as if those were not there: whatever is expected before them, they earn and expect nothing."""
    tool = span(rng, Author("a tool"), 3, known=False, trained=False)
    first, last = span(rng, LIVE, 2), span(rng, LIVE, 4)
    head = span(rng, OLD, 2, kind="prefix", trained=False)
    whole = rollout(rng, head, first, tool, last, tool, reward=0.7)
    bare = rollout(rng, first, last, reward=0.7)
    mask, (value,) = trained_of(whole), numbers(rng, [whole])
    algorithm = PPO(gamma=0.9, trace=0.6, whiten=False)
    advantages, returns = algorithm.judge([whole], [value])
    wanted = algorithm.judge([bare], [value[mask]])
    torch.testing.assert_close(advantages[0][mask], wanted[0][0], rtol=0, atol=0)
    torch.testing.assert_close(returns[0][mask], wanted[1][0], rtol=0, atol=0)
    assert not advantages[0][~mask].any() and not returns[0][~mask].any()
    nothing = rollout(rng, tool)
    assert not algorithm.judge([nothing], numbers(rng, [nothing]))[0][0].any()


@pytest.mark.parametrize("trace", [1.0, 0.95, 0.0])
def test_a_critic_that_knows_a_certain_reward_leaves_no_advantage(trace: float, rng: random.Random) -> None:
    rollouts = [rollout(rng, span(rng, LIVE, n), reward=r) for n, r in ((4, 1.0), (1, 0.25), (6, -2.0))]
    for whiten in (False, True):
        certain = [torch.full((len(r),), float(r.reward or 0), dtype=torch.float64) for r in rollouts]
        advantages, returns = PPO(trace=trace, whiten=whiten).judge(rollouts, certain)
        assert max(float(a.abs().max()) for a in advantages) == 0.0
        assert all(torch.equal(due, value) for due, value in zip(returns, certain, strict=True))
    fading = [torch.tensor([0.9**k for k in reversed(range(len(r)))], dtype=torch.float64) for r in rollouts]
    ones = [replace(r, reward=1.0) for r in rollouts]
    for advantage in PPO(gamma=0.9, trace=trace, whiten=False).judge(ones, fading)[0]:
        assert float(advantage.abs().max()) < 1e-15, "a reward that fades on its way back"


def test_whitened_advantages_have_mean_nought_and_deviation_one_over_the_trained_tokens(rng: random.Random) -> None:
    rollouts = mixed(rng)
    values = numbers(rng, rollouts)
    plain, whitened = (PPO(whiten=w).judge(rollouts, values) for w in (False, True))
    masks = [trained_of(r) for r in rollouts]
    chosen, before = (torch.cat([a[m] for a, m in zip(found[0], masks, strict=True)]) for found in (whitened, plain))
    assert float(chosen.mean()) == pytest.approx(0, abs=1e-12) and float(chosen.std()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(chosen, (before - before.mean()) / before.std(), rtol=1e-6, atol=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(plain[1], whitened[1], strict=True)), "returns stay as they are"
    assert not any(a[~m].any() for a, m in zip(whitened[0], masks, strict=True))


def test_the_returns_may_have_a_lambda_of_their_own(rng: random.Random) -> None:
    rollouts = [rollout(rng, span(rng, LIVE, 5))]
    values = numbers(rng, rollouts)
    found = PPO(trace=0.5, returns_trace=1.0, whiten=False).judge(rollouts, values)
    assert torch.equal(found[0][0], PPO(trace=0.5, whiten=False).judge(rollouts, values)[0][0])
    assert torch.equal(found[1][0], PLAIN.judge(rollouts, values)[1][0])


def test_a_kl_in_the_reward_is_a_cost_of_each_token(rng: random.Random) -> None:
    rollouts = mixed(rng)
    values, own, reference = (numbers(rng, rollouts) for _ in range(3))
    costs = KL(0.3, estimator="k1").costs(own, reference)
    advantages, _ = PPO(gamma=0.9, trace=0.8, whiten=False).judge(rollouts, values, costs)
    for i, written in enumerate(rollouts):
        mask = trained_of(written)
        if not mask.any():
            continue
        rewards = (-0.3 * (own[i] - reference[i]))[mask].tolist()
        rewards[-1] += written.reward or 0.0
        expected = generalised(rewards, values[i][mask].tolist(), 0.9, 0.8)
        torch.testing.assert_close(advantages[i][mask], expected, rtol=1e-12, atol=1e-14)


def test_a_centred_kl_and_senseless_numbers_are_refused() -> None:
    with pytest.raises(StockpotError, match="centred"):
        Config(algorithm=PPO(), kl=KL(0.1, estimator="k1", centred=True))
    for wrong in ({"gamma": 1.1}, {"trace": -0.1}, {"returns_trace": 2.0}, {"clip_low": 2.0}):
        with pytest.raises(StockpotError):
            PPO(**wrong)  # type: ignore[arg-type]
    for wrong in ({"learning_rate": 0.0}, {"coefficient": 0.0}, {"warmup": -1}, {"clip": -0.1}):
        with pytest.raises(StockpotError):
            CriticOptions(**wrong)  # type: ignore[arg-type]


# --- the value loss -------------------------------------------------------------------------------------------------


def test_the_value_clip_number_by_number() -> None:
    """Clipped towards the return: no gradient further that way. Beyond it, or away from it: the plain square."""
    old = torch.zeros(6, dtype=torch.float64)
    values = torch.tensor([0.1, 0.5, -0.5, 0.5, 0.5, -0.1], dtype=torch.float64, requires_grad=True)
    returns = torch.tensor([1.0, 1.0, 1.0, 0.1, -1.0, 1.0], dtype=torch.float64)
    terms, clipped = value_terms(values, old, returns, 0.2)
    (slope,) = torch.autograd.grad(terms.sum(), values)
    by_hand = [
        max((v - r) ** 2, (min(max(v, -0.2), 0.2) - r) ** 2) / 2
        for v, r in zip(values.tolist(), returns.tolist(), strict=True)
    ]
    assert terms.tolist() == pytest.approx(by_hand)
    assert clipped.tolist() == [False, True, False, False, False, False]
    assert slope.tolist() == pytest.approx([-0.9, 0.0, -1.5, 0.4, 1.5, -1.1])
    terms, clipped = value_terms(values, old, returns, None)
    assert terms.tolist() == pytest.approx(((values - returns) ** 2 / 2).tolist()) and not clipped.any()


# --- in an update ---------------------------------------------------------------------------------------------------


@cache
def model() -> Any:
    return tiny_model(0)


def policy(kind: Any = None, **options: Any) -> Policy:
    """A tiny policy; with a critic whose head is not all nought, so that its loss reaches what lies below."""
    made = Policy(copy.deepcopy(model()), Learner(learning_rate=1e-3, max_grad_norm=1e9, tokens_per_pass=64))
    if kind is not None:
        made.critic = Critic(CriticOptions(**{"kind": kind, "max_grad_norm": 1e9} | options), made.model)
        with torch.no_grad():
            made.critic.head.weight.copy_(torch.sin(torch.arange(16.0)).unsqueeze(0))
            made.critic.head.bias.fill_(0.3)
    return made


class Experience:
    """Rollouts of every kind with what one update needs to know of them."""

    def __init__(self, algorithm: PPO, learner: Policy, seed: int = 5) -> None:
        rng = random.Random(seed)
        self.rollouts = [*mixed(rng), *mixed(rng)]
        made = learner.critic is not None
        self.values = learner.score(self.rollouts, "critic") if made else numbers(rng, self.rollouts)
        old = [v + 0.3 * torch.sin(torch.arange(len(v)) + i) for i, v in enumerate(self.values)]  # so that clips bite
        self.values = old if made else self.values
        self.advantages, self.returns = algorithm.judge(self.rollouts, self.values)

    def batch(self, chosen: Sequence[int], **options: Any) -> Batch:
        return collate(
            [self.rollouts[i] for i in chosen],
            [self.advantages[i].tolist() for i in chosen],
            values=[self.values[i] for i in chosen],
            returns=[self.returns[i] for i in chosen],
            **options,
        )


def stepped(learner: Policy, batches: Sequence[Batch], rollouts: Sequence[Rollout], algorithm: PPO) -> Any:
    """The update, the policy's gradient and the critic's own."""
    seen: list[Tensor] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]))

    if learner.critic is not None:
        learner.critic.optimizer.register_step_pre_hook(look)
    learner.optimizer.register_step_pre_hook(look)
    update = learner.update(batches, algorithm, totals(rollouts))
    return update, *reversed(seen)


def test_with_lambda_one_the_step_is_reinforces_with_the_values_as_baseline() -> None:
    """Written down once more, without the library's loss: the mean of -(r - V_t) grad log pi(y_t)."""
    learner = policy("separate")
    taught = Experience(PLAIN, learner)
    own = [i for i, r in enumerate(taught.rollouts) if trained_of(r).any()]
    rollouts = [taught.rollouts[i] for i in own]
    fresh = [  # by the policy as it is, so that every ratio is 1
        replace(r, spans=tuple(replace(s, log_probs=None) for s in r.spans)) for r in rollouts
    ]
    taught.rollouts, taught.values = fresh, [taught.values[i] for i in own]
    taught.advantages, taught.returns = PLAIN.judge(fresh, taught.values)
    _, found, _ = stepped(learner, [taught.batch(range(len(fresh)))], fresh, PLAIN)
    plain, total, tokens = copy.deepcopy(model()), 0.0, 0
    for written, values in zip(fresh, taught.values, strict=True):
        ids = torch.tensor([[*written.prompt.tokens, *written.tokens]])
        logits = plain(ids).logits[0, len(written.prompt.tokens) - 1 : -1]
        log_probs = logits.log_softmax(-1)[range(len(written)), torch.tensor(list(written.tokens))]
        mask = trained_of(written)
        total = total - ((written.reward - values) * log_probs)[mask].sum()
        tokens += int(mask.sum())
    (total / tokens).backward()  # type: ignore[attr-defined]
    expected = torch.cat([p.grad.flatten() for p in plain.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_a_separate_critic_leaves_the_policys_gradient_alone_and_a_head_adds_the_value_loss() -> None:
    algorithm = PPO()
    learner = policy("head", coefficient=0.7)
    taught = Experience(algorithm, learner)
    batches = [taught.batch(range(len(taught.rollouts)))]
    found = {kind: stepped(policy(kind, coefficient=0.7), batches, taught.rollouts, algorithm) for kind in KINDS}
    _, alone = stepped(policy(), batches, taught.rollouts, algorithm)
    assert torch.equal(found["separate"][1], alone)
    values = learner.values(batches[0])
    terms, _ = value_terms(values, batches[0].values, batches[0].returns, 0.2)  # type: ignore[arg-type]
    (0.7 * terms[batches[0].trained].mean()).backward()  # type: ignore[no-untyped-call]
    below = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.model.parameters()]
    added = torch.cat([grad.flatten() for grad in below])
    assert added.abs().max() > 1e-3
    torch.testing.assert_close(found["head"][1] - alone, added, rtol=1e-9, atol=1e-12)
    head = torch.cat([p.grad.flatten() for _, p in learner.critic.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(found["head"][2], head, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found["separate"][2][: len(head)], head, rtol=1e-9, atol=1e-12)
    assert found["head"][0].metrics["value/loss"] == pytest.approx(terms[batches[0].trained].mean().item())
    for kind in KINDS:
        assert 0 < found[kind][0].metrics["value/clipped"] < 1


@both
def test_micro_batches_padding_and_packing_change_nothing(kind: Any) -> None:
    algorithm = PPO()
    taught = Experience(algorithm, policy(kind))
    everything = list(range(len(taught.rollouts)))
    update, of_policy, of_critic = stepped(policy(kind), [taught.batch(everything)], taught.rollouts, algorithm)
    assert of_policy.norm() > 1e-3 and of_critic.norm() > 1e-3
    layouts = (
        [taught.batch([i], pad=7) for i in reversed(everything)],
        [taught.batch(everything[:4]), taught.batch(everything[4:])],
        [taught.batch(random.Random(1).sample(everything, len(everything)), pack_to=40)],
    )
    for layout in layouts:
        other = stepped(policy(kind), layout, taught.rollouts, algorithm)
        torch.testing.assert_close(other[1], of_policy, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(other[2], of_critic, rtol=1e-9, atol=1e-12)
        assert other[0].metrics == pytest.approx(update.metrics, rel=1e-9, abs=1e-12)
        assert {"value/loss", "value/mean", "value/explained_variance", "value/clipped"} <= other[0].metrics.keys()


@both
def test_scoring_in_passes_gives_the_values_of_one_pass(kind: Any) -> None:
    learner = policy(kind)
    rollouts = mixed(random.Random(2))
    batch = collate(rollouts)
    with torch.no_grad():
        once = learner.values(batch)
    torch.testing.assert_close(torch.cat(learner.score(rollouts, "critic")), once, rtol=1e-9, atol=1e-12)
    ids = torch.tensor([[*rollouts[1].prompt.tokens, *rollouts[1].tokens]])
    states = learner.backbone(input_ids=ids).last_hidden_state[0, len(rollouts[1].prompt.tokens) - 1 : -1]
    by_hand = states @ torch.sin(torch.arange(16.0)).double() + 0.3
    torch.testing.assert_close(once[batch.rollout == 1], by_hand, rtol=1e-6, atol=1e-6)


@both
def test_tokens_that_are_not_trained_earn_no_value_loss(kind: Any) -> None:
    """Neither an untrained prefix nor a tool's words: whatever value and return stand there."""
    algorithm = PPO()
    taught = Experience(algorithm, policy(kind))
    batch = taught.batch(range(len(taught.rollouts)))
    assert (~batch.trained).sum() > 3
    update, of_policy, of_critic = stepped(policy(kind), [batch], taught.rollouts, algorithm)
    for opinion in (7.0, -1e6):
        odd = replace(
            batch,
            values=torch.where(batch.trained, batch.values, opinion),  # type: ignore[arg-type]
            returns=torch.where(batch.trained, batch.returns, -opinion),  # type: ignore[arg-type]
        )
        again = stepped(policy(kind), [odd], taught.rollouts, algorithm)
        assert again[0].metrics == update.metrics
        assert torch.equal(again[1], of_policy) and torch.equal(again[2], of_critic)
    untrained = [rollout(random.Random(1), span(random.Random(2), OLD, 3, trained=False))]
    nothing = collate(untrained, values=[torch.ones(3)], returns=[torch.zeros(3)])
    told, _, moved = stepped(policy(kind), [nothing], untrained, algorithm)
    assert not moved.any() and told.metrics["value/loss"] == 0.0 and "value/mean" not in told.metrics


def parts(learner: Policy) -> tuple[list[Tensor], list[Tensor]]:
    """Copies of the policy's weights and of the critic's."""
    assert learner.critic is not None
    own = [p.detach().clone() for _, p in learner.critic.parameters()]
    return [p.detach().clone() for p in learner.model.parameters()], own


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@both
def test_in_the_warm_up_the_critic_alone_moves(kind: Any) -> None:
    learner = policy(kind, warmup=2)
    taught = Experience(PPO(), learner)
    for version, alone in ((0, True), (1, True), (2, False)):
        learner.version = version
        before = parts(learner)
        update = learner.update([taught.batch(range(len(taught.rollouts)))], PPO(), totals(taught.rollouts))
        after = parts(learner)
        assert not update.skipped
        assert same(before[0], after[0]) == alone and not same(before[1], after[1])
    assert learner.skipped_steps == 0


@both
@pytest.mark.parametrize("spoilt", ["advantages", "returns"])
def test_what_is_not_finite_moves_neither_policy_nor_critic(kind: Any, spoilt: str) -> None:
    learner = policy(kind)
    taught = Experience(PPO(), learner)
    batch = taught.batch(range(len(taught.rollouts)))
    before = parts(learner)
    bad = replace(batch, **{spoilt: torch.full_like(getattr(batch, spoilt), math.nan)})
    update = learner.update([bad], PPO(), totals(taught.rollouts))
    assert update.skipped and update.metrics["skipped_steps"] == 1
    after = parts(learner)
    assert same(before[0], after[0]) and same(before[1], after[1])
    assert not learner.update([batch], PPO(), totals(taught.rollouts)).skipped, "and the next update is a good one"


@both
def test_a_critic_begins_with_nought_and_asks_for_its_returns(kind: Any) -> None:
    learner = policy()
    learner.critic = Critic(CriticOptions(kind=kind), learner.model)
    rollouts = mixed(random.Random(1))
    assert not torch.cat(learner.score(rollouts, "critic")).any()
    with pytest.raises(StockpotError, match="values and returns"):
        learner.update([collate(rollouts)], PPO(), totals(rollouts))


@both
def test_a_critic_saved_and_restored_goes_on_in_the_same_bits(kind: Any, tmp_path: Path) -> None:
    learner = policy(kind)
    taught = Experience(PPO(), learner)
    batches = [taught.batch(range(len(taught.rollouts)))]
    learner.update(batches, PPO(), totals(taught.rollouts))
    learner.save(tmp_path)
    twin = policy(kind)
    twin.model.load_state_dict(learner.model.state_dict())
    twin.restore(tmp_path)
    for one in (learner, twin):
        one.update(batches, PPO(), totals(taught.rollouts))
    assert same(parts(learner)[0], parts(twin)[0]) and same(parts(learner)[1], parts(twin)[1])
    other = policy("separate" if kind == "head" else "head")
    with pytest.raises(StockpotError, match="another"):
        other.restore(tmp_path)
    (tmp_path / "critic.safetensors").unlink()
    with pytest.raises(StockpotError, match="cannot be read"):
        policy(kind).restore(tmp_path)


# --- a critic that learns -------------------------------------------------------------------------------------------


@both
def test_the_critic_learns_what_can_be_known(kind: Any) -> None:
    """The reward is told by the prompt's first token: loss falls, and on prompts not seen before it is explained."""
    options = CriticOptions(kind=kind, learning_rate=3e-3, clip=None)
    algorithm = PPO(trace=1.0, critic=options)
    learner = Policy(copy.deepcopy(model()), Learner(learning_rate=3e-3 if kind == "head" else 1e-6))
    learner.critic = Critic(options, learner.model)
    rng = random.Random(0)
    told: list[Update] = []
    for _ in range(120):
        rollouts = [rollout(rng, span(rng, LIVE, rng.randrange(2, 6))) for _ in range(32)]
        rollouts = [replace(r, reward=float(r.prompt.tokens[0] < 9)) for r in rollouts]
        values = learner.score(rollouts, "critic")
        _, returns = algorithm.judge(rollouts, values)
        given: list[Any] = [[0.0] * len(r) for r in rollouts]  # the critic is what is looked at
        batch = collate(rollouts, given, values=values, returns=returns)
        told.append(learner.update([batch], algorithm, batching.totals(rollouts, 16), watch=False))
        assert not told[-1].skipped

    def mean(name: str, some: Sequence[Update]) -> float:
        return sum(u.metrics[name] for u in some) / len(some)

    first, last = told[:5], told[-5:]
    assert mean("value/loss", last) < 0.3 * mean("value/loss", first)
    assert mean("value/explained_variance", first) < 0.3 < 0.8 < mean("value/explained_variance", last)


# --- runs -----------------------------------------------------------------------------------------------------------

RUN = ("--algorithm", "ppo", "--algorithm.critic.learning-rate", "1e-2", "--algorithm.critic.warmup", "1")
RUNS = {
    "head": (*RUN, "--epochs", "2"),
    "separate": (*RUN, "--algorithm.critic.kind", "separate", "--kl.estimator", "k1", "--updates-per-step", "2"),
}


@pytest.fixture(scope="module")
def whole(started: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind that nothing stopped."""
    folder = tmp_path_factory.mktemp("ppo")
    for kind, words in RUNS.items():
        trained("--model", started, "--out", folder / kind, *words)
    return {kind: folder / kind for kind in RUNS}


@both
def test_a_resumed_run_ends_in_the_same_bits(kind: str, whole: dict[str, Path], tmp_path: Path) -> None:
    """From step 4, where the critic has moments and a value to remember; and from the very start."""
    run = Path(shutil.copytree(whole[kind], tmp_path / kind))
    stored = [(run / "checkpoints" / f"step-{n}" / "critic.safetensors").read_bytes() for n in (0, 4, 6)]
    assert len(set(stored)) == 3, "the critic moved: a resume that forgot it would be seen"
    shutil.rmtree(run / "checkpoints" / "step-6")
    assert stockpot("resume", run).code == 0
    assert_same_bits(whole[kind], run)
    for folder in (run / "checkpoints").glob("step-[1-9]*"):
        shutil.rmtree(folder)
    assert stockpot("resume", run).code == 0
    assert_same_bits(whole[kind], run)


@both
def test_a_run_tells_its_critics_figures_and_the_page_explains_them(kind: str, whole: dict[str, Path]) -> None:
    rows, known = metrics(whole[kind])[1:], documented("metric")
    wanted = {"value/loss", "value/mean", "value/explained_variance", "value/clipped"}
    for row in rows:
        assert wanted <= row.keys() and row["value/loss"] > 0
    assert rows[0]["value/explained_variance"] <= 0.5 and abs(rows[-1]["value/mean"]) > 0.05
    seen = {name for row in rows for name in row}
    assert not {name for name in seen if name not in known and plain(name) not in known}
    assert weights(whole[kind])["critic.safetensors"]


def test_the_warm_up_of_a_run_leaves_the_policy_where_it_was(started: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained("--model", started, "--out", run, *RUN[:-1], "2", "--steps", "2", "--checkpoint-every", "1")
    stored = [(run / "checkpoints" / f"step-{n}" / "model.safetensors").read_bytes() for n in (0, 1, 2)]
    assert stored[0] == stored[1] == stored[2]
    critics = [(run / "checkpoints" / f"step-{n}" / "critic.safetensors").read_bytes() for n in (0, 1, 2)]
    assert len(set(critics)) == 3


def test_epochs_are_passes_over_the_same_rollouts(started: str, tmp_path: Path) -> None:
    """For any algorithm: the first pass is on-policy, so with a second one the step's mean ratios spread."""
    runs = {}
    for epochs in (1, 2):
        words = ("--algorithm", "grpo", "--prefixes", "none", "--steps", "1", "--epochs", epochs)
        trained("--model", started, "--out", tmp_path / str(epochs), *words)
        runs[epochs] = metrics(tmp_path / str(epochs))[1]
    assert runs[1]["reward/mean"] == runs[2]["reward/mean"] and runs[1]["all/tokens"] == runs[2]["all/tokens"]
    assert runs[1]["all/ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert runs[2]["all/ratio_max"] > 1.001
    with pytest.raises(StockpotError, match="epochs"):
        Config(epochs=0)


def test_the_recipe_differs_from_plain_grpo_in_its_algorithm_alone() -> None:
    ppo, grpo = load_recipe("countdown_ppo"), load_recipe("countdown_grpo")
    assert isinstance(ppo.algorithm, PPO) and isinstance(ppo.prefixes, NoPrefixes)
    assert to_json(replace(ppo, algorithm=GRPO())) == to_json(grpo)


def test_comparing_losses_leaves_out_what_needs_a_critic(whole: dict[str, Path]) -> None:
    told = stockpot("compare-losses", whole["head"], "--losses", "ppo")
    assert told.code == 2 and "critic" in told.err and len(told.complaints) == 1


def test_a_run_with_a_critic_can_be_evaluated(whole: dict[str, Path]) -> None:
    told = stockpot("eval", whole["separate"], "--samples", 2, "--prompts", 2)
    assert told.code == 0, told.err


def test_a_plan_counts_the_critic_and_the_epochs() -> None:
    """A separate critic takes as much again as the policy: weights, two moments, gradients; values take a pass."""
    shape = measure(model().config, "tiny", "here")
    plans = {
        kind: Plan(
            Config(algorithm=PPO(critic=CriticOptions(kind=kind)), prefixes=NoPrefixes(), max_tokens=32), shape, "cpu"
        )
        for kind in KINDS
    }
    bare = Plan(Config(prefixes=NoPrefixes(), max_tokens=32), shape, "cpu")
    alone = Critic(CriticOptions(kind="separate"), model())
    size = sum(p.numel() for name, p in alone.parameters() if name.startswith("backbone"))
    assert plans["separate"].critic_size == size
    assert plans["separate"].peak("learning") - bare.peak("learning") == 16 * size
    assert plans["head"].peak("learning") == bare.peak("learning")
    once, twice = (replace(bare, config=replace(bare.config, epochs=n)).operations().learn for n in (1, 2))
    assert twice == 2 * once
    head, separate = (plans[kind].operations().learn for kind in KINDS)
    one_pass = head - once
    assert one_pass > 0 and separate - head == pytest.approx(3 * one_pass)


def test_the_ratio_and_its_clip_are_grpos(rng: random.Random) -> None:
    batch = collate(mixed(rng))
    log_probs = somewhere_else(batch)
    ours, theirs = (a.loss(log_probs, batch) for a in (PPO(clip_high=0.3), GRPO(clip_high=0.3)))
    assert torch.equal(ours.loss, theirs.loss) and torch.equal(ours.clipped, theirs.clipped)
