"""LUFFY: GRPO on what the live policy wrote, a shaped probability on what others wrote."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stockpot import ops
from stockpot.algorithms.base import Algorithm, Normalise, Terms, clipped_surrogate, group_normalised
from stockpot.types import Batch, Group, StockpotError


@dataclass(frozen=True)
class LUFFY(Algorithm):
    """loss_t = -f(p_t) A_i on tokens that the live policy did not write, f(p) = p / (p + gamma); GRPO's on the others.

    p_t = pi(y_t), so d f / d log p = gamma p / (p + gamma)^2: most for tokens about as likely as gamma, where plain
    importance weights would leave unlikely tokens nearly without gradient (LUFFY, arXiv 2504.14945). There is no clip
    on them. Who wrote such a token, and how likely it was to them, plays no part: public code too takes the
    author's probability as 1. Advantages are GRPO's, over the group with the demonstrations in it.

    Differs from the paper: there "others" is one stronger model; here it is every author but the live policy, prefixes
    and replayed rollouts from history included. Whether the advantages are divided by the deviation, and over what
    terms are averaged, is ours.
    """

    weighs_by_ratio: ClassVar[bool] = True

    gamma: float = 0.1
    """Where the shaped weight reaches a half."""
    scale_by_std: bool = True
    """Divide advantages by the group's standard deviation."""
    clip_low: float = 0.2
    """Floor of a live token's ratio is 1 - this."""
    clip_high: float = 0.2
    """Ceiling of a live token's ratio is 1 + this."""
    normalise: Normalise = "token"
    """What terms are averaged over."""

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise StockpotError("gamma must be above 0: at 0 every shaped weight is 1 and has no gradient.")

    def advantages(self, group: Group) -> list[float]:
        return group_normalised(group, self.scale_by_std)

    def loss(self, log_probs: Tensor, batch: Batch) -> Terms:
        log_ratios = ops.log_ratio(log_probs, batch.author_log_probs, batch.known)
        live = clipped_surrogate(log_ratios, batch.advantages, self.clip_low, self.clip_high)
        shaped = -(log_probs - math.log(self.gamma)).sigmoid() * batch.advantages  # sigmoid(log p - log g) = p / (p+g)
        return elsewhere(shaped, live, batch)


def elsewhere(shaped: Tensor, live: Terms, batch: Batch) -> Terms:
    """`shaped` on tokens by anyone but the live policy (age 0), the live terms on its own."""
    own = batch.age == 0
    return Terms(loss=torch.where(own, live.loss, shaped), ratio=live.ratio, clipped=live.clipped & own)
