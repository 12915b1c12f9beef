"""TOPR: what went well is imitated, what went badly is forgotten only while the policy would still write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stockpot import ops
from stockpot.algorithms.base import Algorithm, Normalise, Terms
from stockpot.types import Batch, Group


@dataclass(frozen=True)
class TOPR(Algorithm):
    """loss_t = -c_i A_i log pi(y_t), with c_i = 1 where A_i >= 0, else clip(w_i, 0, 1)  (TOPR, arXiv 2503.14286).

    w_i = pi(y_i) / author(y_i), a number without gradient. A rollout that the policy has already unlearnt has a small
    ratio and stops pushing; one that it came to like more pushes no harder than a fresh one.

    As in the paper, w_i is the ratio of the whole rollout; one public implementation (ROLL) takes each token's own,
    which is `level="token"`. Differs from the paper: its rewards are +1 and -1, less a constant that sets the share of
    positives; here the group's mean reward is subtracted, and the sign of what is left decides. Terms are averaged
    over tokens.
    """

    level: Literal["rollout", "token"] = "rollout"
    """One ratio per rollout, the product over its trained tokens, or each token's own."""
    normalise: Normalise = "token"
    """What terms are averaged over."""

    def advantages(self, group: Group) -> list[float]:
        rewards = group.rewards
        mean = sum(rewards) / len(rewards)
        return [reward - mean for reward in rewards]

    def loss(self, log_probs: Tensor, batch: Batch) -> Terms:
        log_ratios = ops.log_ratio(log_probs, batch.author_log_probs, batch.known).detach()
        if self.level == "rollout":
            log_ratios = ops.per_rollout(log_ratios * batch.trained, batch.rollout, batch.size)[batch.rollout]
        ratio = ops.ratio(log_ratios)
        weight = torch.where(batch.advantages >= 0, torch.ones_like(ratio), ratio.clamp(max=1.0))
        return Terms(
            loss=-weight * batch.advantages * log_probs, ratio=ratio, clipped=ratio.new_zeros(ratio.shape).bool()
        )
