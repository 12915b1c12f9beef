"""Supervised learning as the simplest algorithm: every token is right."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stockpot.algorithms.base import Algorithm, Normalise, Terms
from stockpot.types import Batch, Group


@dataclass(frozen=True)
class Supervised(Algorithm):
    """loss_t = -log pi(y_t): demonstrations, imitated. Rewards and authors play no part."""

    normalise: Normalise = "token"
    """What terms are averaged over."""

    def advantages(self, group: Group) -> list[float]:
        return [1.0] * len(group.rollouts)

    def loss(self, log_probs: Tensor, batch: Batch) -> Terms:
        return Terms(
            loss=-log_probs,
            ratio=log_probs.new_ones(log_probs.shape),
            clipped=log_probs.new_zeros(log_probs.shape).bool(),
        )
