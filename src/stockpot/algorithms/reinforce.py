"""REINFORCE: the honest baseline. Every other algorithm equals it on fresh samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from stockpot import ops
from stockpot.algorithms.base import Algorithm, Normalise, Terms
from stockpot.types import Batch, Group


@dataclass(frozen=True)
class Reinforce(Algorithm):
    """loss_t = -w_t A log pi(y_t), with w_t a weight without gradient (Williams, 1992).

    Differs from the original: the group's mean is the baseline (turn it off for the original), and tokens of older
    authors may be weighed. `correction="token"` uses min(pi / author, cap) of each token: small variance, some bias;
    "rollout" uses the whole response's ratio: unbiased without the cap, and very noisy; "none" ignores the author.
    """

    baseline: bool = True
    """Subtract the group's mean reward."""
    correction: Literal["none", "token", "rollout"] = "token"
    """How tokens of older authors are weighed."""
    cap: float = 2.0
    """Largest weight; a common default of truncated importance sampling, ours here."""
    normalise: Normalise = "token"
    """What terms are averaged over."""

    def advantages(self, group: Group) -> list[float]:
        rewards = group.rewards
        base = sum(rewards) / len(rewards) if self.baseline else 0.0
        return [reward - base for reward in rewards]

    def loss(self, log_probs: Tensor, batch: Batch) -> Terms:
        log_ratios = ops.log_ratio(log_probs, batch.author_log_probs, batch.known).detach()
        if self.correction == "rollout":
            log_ratios = ops.per_rollout(log_ratios * batch.trained, batch.rollout, batch.size)[batch.rollout]
        ratio = ops.ratio(log_ratios)
        weight = ratio.clamp(max=self.cap) if self.correction != "none" else ratio.new_ones(ratio.shape)
        return Terms(
            loss=-weight * batch.advantages * log_probs, ratio=ratio, clipped=ratio.new_zeros(ratio.shape).bool()
        )
