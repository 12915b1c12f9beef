"""Our losses, advantages and KL estimates against verl's `core_algos`, on the same tensors."""

from __future__ import annotations

from typing import Any

import pytest

verl = pytest.importorskip("verl", reason="parity with verl needs the environment of `make parity`")

import numpy  # noqa: E402
import torch  # noqa: E402
from flat import ROOM, TOLERANCE, Step, assert_parity  # noqa: E402
from torch import Tensor  # noqa: E402
from verl.trainer.ppo import core_algos  # noqa: E402
from verl.workers.config import FSDPActorConfig  # noqa: E402

from stockpot import ops  # noqa: E402
from stockpot.algorithms import GRPO, PPO, RLOO, Algorithm, dapo, dr_grpo, gspo  # noqa: E402
from stockpot.critic import value_terms  # noqa: E402
from stockpot.types import Group, Prompt, Rollout  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
REWARDS = [0.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, -0.25, 0.75, 0.1, 0.0]
GROUP = 4


def theirs(step: Step, loss: Any, mode: str, low: float, high: float) -> tuple[Tensor, Tensor]:
    """verl's policy loss, with its dual clip out of reach, and the gradient with respect to our flat log-probs."""
    config = FSDPActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=low,
        clip_ratio_high=high,
        clip_ratio_c=1e9,
    )
    config.global_batch_info.update({"loss_scale_factor": ROOM})
    value, _ = loss(
        old_log_prob=step.rectangle(step.batch.author_log_probs),
        log_prob=step.rectangle(step.log_probs),
        advantages=step.rectangle(step.batch.advantages),
        response_mask=step.mask.double(),
        loss_agg_mode=mode,
        config=config,
    )
    return value.detach(), torch.autograd.grad(value, step.log_probs)[0]


@pytest.mark.parametrize(
    ("mode", "algorithm"),
    [
        ("token-mean", GRPO()),
        ("token-mean", dapo()),
        ("seq-mean-token-mean", GRPO(normalise="rollout")),
        ("seq-mean-token-sum-norm", dr_grpo()),
        ("token-mean", GRPO(clip_low=0.05, clip_high=0.6)),
    ],
    ids=["grpo", "dapo", "grpo as published", "dr_grpo", "asymmetric"],
)
def test_losses_and_aggregations_are_verls(mode: str, algorithm: GRPO) -> None:
    step = Step.make(3)
    peer = theirs(step, core_algos.compute_policy_loss_vanilla, mode, algorithm.clip_low, algorithm.clip_high)
    assert_parity(step.ours(algorithm), peer)


def test_gspos_gradient_is_verls() -> None:
    """verl writes the same gradient as one ratio per token around a detached mean; clips are decided alike."""
    step, algorithm = Step.make(4, spread=2e-4), gspo()
    peer = theirs(
        step, core_algos.compute_policy_loss_gspo, "seq-mean-token-mean", algorithm.clip_low, algorithm.clip_high
    )
    assert_parity(step.ours(algorithm), peer)


@pytest.mark.parametrize(
    ("name", "algorithm", "options"),
    [
        ("grpo_outcome", GRPO(), {"epsilon": 1e-4}),
        ("grpo_outcome", dr_grpo(), {"norm_adv_by_std_in_grpo": False}),
        ("rloo_outcome", RLOO(), {}),
    ],
    ids=["grpo", "dr_grpo", "rloo"],
)
def test_advantages_are_verls(name: str, algorithm: Algorithm, options: dict[str, Any]) -> None:
    """verl's own epsilon is 1e-6 where TRL's and ours is 1e-4: handed over, so that the rest is compared."""
    rewards = torch.zeros(len(REWARDS), 5, dtype=torch.float64)
    rewards[:, -1] = torch.tensor(REWARDS, dtype=torch.float64)
    index = numpy.array([i // GROUP for i in range(len(REWARDS))])
    peer, _ = getattr(core_algos, f"compute_{name}_advantage")(rewards, torch.ones(len(REWARDS), 5), index, **options)
    ours = []
    for start in range(0, len(REWARDS), GROUP):
        prompt = Prompt("p", [1])
        rollouts = tuple(Rollout(prompt, (), reward) for reward in REWARDS[start : start + GROUP])
        ours += algorithm.advantages(Group(prompt, rollouts))
    torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), peer[:, 0].double(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("gamma", "trace"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5)])
def test_generalised_advantages_and_returns_are_verls(gamma: float, trace: float) -> None:
    """Rewards at the last token, costs at every token; verl always whitens."""
    step = Step.make(6)
    lengths = [len(r) for r in step.rollouts]
    values, costs = (0.5 * torch.randn(sum(lengths), dtype=torch.float64) for _ in range(2))
    rewards = step.rectangle(-costs)
    for row, (written, length) in enumerate(zip(step.rollouts, lengths, strict=True)):
        rewards[row, length - 1] += written.reward or 0.0
    mask = step.mask.double()
    peer, peer_returns = core_algos.compute_gae_advantage_return(rewards, step.rectangle(values), mask, gamma, trace)
    advantages, returns = PPO(gamma=gamma, trace=trace).judge(
        step.rollouts, values.split(lengths), costs.split(lengths)
    )
    torch.testing.assert_close(torch.cat(advantages), peer[step.mask], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(torch.cat(returns), peer_returns[step.mask], rtol=0, atol=TOLERANCE)


def test_the_clipped_value_loss_is_verls() -> None:
    """On average over tokens, with the share of clipped ones."""
    step = Step.make(7)
    old, returns = (torch.randn(len(step.log_probs), dtype=torch.float64) for _ in range(2))
    values = (old + 0.3 * torch.randn_like(old)).requires_grad_()
    terms, clipped = value_terms(values, old, returns, 0.2)
    rows = (step.rectangle(x) for x in (values, returns, old))
    peer, share = core_algos.compute_value_loss(*rows, step.mask.double(), 0.2)
    ours = terms.mean()
    gradients = [torch.autograd.grad(x, values)[0] for x in (ours, peer)]
    assert_parity((ours.detach(), gradients[0]), (peer.detach(), gradients[1]))
    assert clipped.double().mean().item() == pytest.approx(float(share)) and 0 < float(share) < 1


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimates_and_their_gradients_are_verls(estimator: str) -> None:
    step = Step.make(5)
    ours, peer = (f(step.log_probs, step.reference, estimator) for f in (ops.kl, core_algos.kl_penalty))
    gradients = [torch.autograd.grad(x.sum(), step.log_probs)[0] for x in (ours, peer)]
    torch.testing.assert_close(ours, peer, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(*gradients, rtol=0, atol=TOLERANCE)
