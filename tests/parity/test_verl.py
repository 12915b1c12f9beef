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
from stockpot.algorithms import GRPO, RLOO, Algorithm, dapo, dr_grpo, gspo  # noqa: E402
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


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimates_and_their_gradients_are_verls(estimator: str) -> None:
    step = Step.make(5)
    ours, peer = (f(step.log_probs, step.reference, estimator) for f in (ops.kl, core_algos.kl_penalty))
    gradients = [torch.autograd.grad(x.sum(), step.log_probs)[0] for x in (ours, peer)]
    torch.testing.assert_close(ours, peer, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(*gradients, rtol=0, atol=TOLERANCE)
