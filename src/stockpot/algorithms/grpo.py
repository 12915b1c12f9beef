"""GRPO and its relatives: group-normalised advantages and a clipped ratio. The relatives are arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from stockpot import ops
from stockpot.algorithms.base import (
    Algorithm,
    Normalise,
    Terms,
    check_prefix_clip,
    clipped_surrogate,
    for_prefix,
    group_normalised,
)
from stockpot.types import Batch, Group, StockpotError


@dataclass(frozen=True)
class GRPO(Algorithm):
    """A_i = (r_i - mean r) / (std r + 1e-4);  loss_t = -min(w_t A_i, clip(w_t, 1 - low, 1 + high) A_i).

    w_t = pi(y_t) / author(y_t): each token against whoever wrote it. On rollouts with a prefix from history this *is*
    SOUP's objective (arXiv 2601.21476); there is no other loss to write. GRPO: arXiv 2402.03300.

    Differs from the paper: terms are averaged over the update's tokens (DAPO's choice) unless `normalise="rollout"`;
    the KL term is a regulariser of its own (`regularizers.KL`), off by default.
    """

    weighs_by_ratio: ClassVar[bool] = True

    scale_by_std: bool = True
    """Divide advantages by the group's standard deviation; Dr. GRPO does not."""
    compare: Literal["group", "kind"] = "group"
    """Compare each rollout with its whole group, or those with a prefix and those without among themselves."""
    clip_low: float = 0.2
    """Ratios below 1 - this earn no gradient when the advantage is negative."""
    clip_high: float = 0.2
    """Ratios above 1 + this earn no gradient when the advantage is positive; DAPO takes 0.28."""
    level: Literal["token", "rollout"] = "token"
    """One ratio per token, or one per rollout: the geometric mean of its tokens' ratios (GSPO)."""
    normalise: Normalise = "token"
    """What terms are averaged over."""
    prefix_clip_low: float | None = None
    """The floor for tokens of a prefix, where it is another one: they are older, so their ratios spread wider."""
    prefix_clip_high: float | None = None
    """The ceiling for tokens of a prefix, where it is another one."""

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low <= 1 or self.clip_high < 0:
            raise StockpotError("clip_low must lie in 0..1 and clip_high must be 0 or more.")
        check_prefix_clip(self.prefix_clip_low, self.prefix_clip_high, self.level)

    def advantages(self, group: Group) -> list[float]:
        return group_normalised(group, self.scale_by_std, by_kind=self.compare == "kind")

    def loss(self, log_probs: Tensor, batch: Batch) -> Terms:
        log_ratios = ops.log_ratio(log_probs, batch.author_log_probs, batch.known)
        if self.level == "rollout":
            log_ratios = rollout_log_ratio(log_ratios, batch)
        return clipped_surrogate(
            log_ratios,
            batch.advantages,
            for_prefix(batch, self.clip_low, self.prefix_clip_low),
            for_prefix(batch, self.clip_high, self.prefix_clip_high),
        )


def rollout_log_ratio(log_ratios: Tensor, batch: Batch) -> Tensor:
    """The mean log-ratio of a rollout's trained tokens, at each of its tokens (GSPO, arXiv 2507.18071)."""
    sums = ops.per_rollout(log_ratios * batch.trained, batch.rollout, batch.size)
    return (sums / batch.lengths.clamp_min(1))[batch.rollout]


def dr_grpo() -> GRPO:
    """Dr. GRPO (arXiv 2503.20783): no standard deviation, no length in the denominator."""
    return GRPO(scale_by_std=False, normalise="constant")


def dapo() -> GRPO:
    """DAPO's loss (arXiv 2503.14476): a higher ceiling than floor, averaged over tokens."""
    return GRPO(clip_low=0.2, clip_high=0.28, normalise="token")


def gspo() -> GRPO:
    """GSPO (arXiv 2507.18071): one ratio per rollout, with its paper's tight clips."""
    return GRPO(level="rollout", clip_low=3e-4, clip_high=4e-4, normalise="rollout")
