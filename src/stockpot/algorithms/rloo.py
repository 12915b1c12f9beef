"""RLOO: each rollout against the mean of the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from stockpot import ops
from stockpot.algorithms.base import Algorithm, Normalise, Terms, check_prefix_clip, clipped_surrogate, for_prefix
from stockpot.types import Batch, Group, StockpotError


@dataclass(frozen=True)
class RLOO(Algorithm):
    """A_i = r_i - mean of the other rewards of the group = K / (K - 1) * (r_i - mean r)  (arXiv 2402.14740).

    Differs from the paper: the whole response is one action there; here `level="rollout"` gives that (the ratio is the
    product of the tokens' ratios), and the default keeps one ratio per token, as every other algorithm here.
    """

    weighs_by_ratio: ClassVar[bool] = True

    clip_low: float = 0.2
    """Floor of the ratio is 1 - this."""
    clip_high: float = 0.2
    """Ceiling of the ratio is 1 + this."""
    level: Literal["token", "rollout"] = "token"
    """One ratio per token, or the product over the rollout."""
    normalise: Normalise = "token"
    """What terms are averaged over."""
    prefix_clip_low: float | None = None
    """The floor for tokens of a prefix, where it is another one: they are older, so their ratios spread wider."""
    prefix_clip_high: float | None = None
    """The ceiling for tokens of a prefix, where it is another one."""

    def __post_init__(self) -> None:
        check_prefix_clip(self.prefix_clip_low, self.prefix_clip_high, self.level)

    def advantages(self, group: Group) -> list[float]:
        rewards = group.rewards
        if len(rewards) < 2:
            raise StockpotError("RLOO compares rollouts of a group: group_size must be at least 2.")
        total = sum(rewards)
        return [reward - (total - reward) / (len(rewards) - 1) for reward in rewards]

    def loss(self, log_probs: Tensor, batch: Batch) -> Terms:
        log_ratios = ops.log_ratio(log_probs, batch.author_log_probs, batch.known)
        if self.level == "rollout":
            sums = ops.per_rollout(log_ratios * batch.trained, batch.rollout, batch.size)
            terms = clipped_surrogate(sums[batch.rollout], batch.advantages, self.clip_low, self.clip_high)
            return replace(terms, loss=terms.loss / batch.lengths.clamp_min(1)[batch.rollout])
        return clipped_surrogate(
            log_ratios,
            batch.advantages,
            for_prefix(batch, self.clip_low, self.prefix_clip_low),
            for_prefix(batch, self.clip_high, self.prefix_clip_high),
        )
