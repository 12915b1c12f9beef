"""ExGRPO: GRPO on what the live policy wrote, a shaped ratio on what its past selves wrote."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stockpot import ops
from stockpot.algorithms.base import Algorithm, Normalise, Terms, clipped_surrogate, group_normalised
from stockpot.algorithms.luffy import elsewhere
from stockpot.types import Batch, Group, StockpotError


@dataclass(frozen=True)
class ExGRPO(Algorithm):
    """loss_t = -f(w_t) A_i on replayed tokens, f(w) = w / (w + beta); GRPO's clipped ratio on live ones.

    w_t = pi(y_t) / author(y_t). f is bounded by 1, and d f / d log w = beta w / (w + beta)^2 is largest at w = beta:
    experience that became unlikely gets the gradient, experience as likely as ever (w = 1) gets 0.083 of what a fresh
    token gets with beta 0.1 (ExGRPO, arXiv 2510.02245). Advantages are GRPO's over fresh and replayed together.

    This is the loss alone. Which experience is replayed (in the paper: prompts drawn by their success count, of each
    the success of least entropy) is the business of a prefix rule: `prefixes.Replay(outcome="success")` is the nearest.

    Differs from the paper: "replayed" is every author but the live policy, prefixes included. Whether advantages are
    divided by the deviation, and over what terms are averaged, is ours.
    """

    weighs_by_ratio: ClassVar[bool] = True

    beta: float = 0.1
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
        if not self.beta > 0:
            raise StockpotError("beta must be above 0: at 0 every shaped weight is 1 and has no gradient.")

    def advantages(self, group: Group) -> list[float]:
        return group_normalised(group, self.scale_by_std)

    def loss(self, log_probs: Tensor, batch: Batch) -> Terms:
        log_ratios = ops.log_ratio(log_probs, batch.author_log_probs, batch.known)
        live = clipped_surrogate(log_ratios, batch.advantages, self.clip_low, self.clip_high)
        shaped = -(log_ratios - math.log(self.beta)).sigmoid() * batch.advantages  # = w / (w + beta) * -A
        return elsewhere(shaped, live, batch)
