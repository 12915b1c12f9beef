"""What an algorithm is: advantages of a group, and a loss per token. Two methods, and a choice of denominator."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stockpot import ops
from stockpot.types import KINDS, Batch, Group, Rollout, StockpotError, Totals

Normalise = Literal["token", "rollout", "constant"]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a loss returns about each token [N]."""

    loss: Tensor
    """The term to be reduced and minimised."""
    ratio: Tensor
    """The importance ratio before any clip, detached: diagnostics look at the raw one."""
    clipped: Tensor
    """bool: the clip took this token's gradient away."""
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    """What else to tell, a number per rollout [S]; NaN where one has none. The record has the means."""


class Algorithm(ABC):
    """Subclasses are frozen dataclasses with a field `normalise`; none inherits from another."""

    normalise: Normalise
    needs_reference: ClassVar[bool] = False
    """Whether the loss reads the reference's log-probs, as a KL does."""
    weighs_by_ratio: ClassVar[bool] = False
    """Whether the gradient of a token has its own ratio in it, but for a clip, so that the ratio can be bounded."""

    @abstractmethod
    def advantages(self, group: Group) -> list[float]:
        """One number per rollout of the group."""

    @abstractmethod
    def loss(self, log_probs: Tensor, batch: Batch) -> Terms:
        """Terms per token from today's log-probs [N] of the batch's tokens."""


@dataclass(frozen=True)
class CriticOptions:
    """What a critic is made of, and how it learns: AdamW without weight decay, at one learning rate."""

    kind: Literal["head", "separate"] = "head"
    """head: a linear map of the policy's last hidden state, whose loss reaches the policy's layers too. separate: a
    copy of the policy as it was at the start, with weights and optimiser of its own."""
    learning_rate: float = 1e-4
    """Of the head, or of the whole separate model; the policy's layers keep the policy's."""
    clip: float | None = 0.2
    """Values that moved further than this from those before the update earn no gradient by moving on; none: no clip."""
    coefficient: float = 0.5
    """Weight of the value loss, (V - return)^2 / 2 per trained token, beside the policy's loss."""
    warmup: int = 0
    """Training steps at the start in which the critic alone learns, and of the policy nothing moves."""
    max_grad_norm: float = 1.0
    """Gradients of the critic's own weights are scaled down to this norm."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.coefficient <= 0 or self.max_grad_norm <= 0:
            raise StockpotError("critic.learning_rate, coefficient and max_grad_norm must be above 0.")
        if self.warmup < 0 or (self.clip is not None and self.clip < 0):
            raise StockpotError("critic.warmup and critic.clip must be 0 or more.")


class ActorCritic(Algorithm):
    """An algorithm whose advantages come from a critic's values, a number per token."""

    critic: CriticOptions

    @abstractmethod
    def judge(
        self, rollouts: Sequence[Rollout], values: Sequence[Tensor], costs: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Advantages and returns of one update, in double precision, as long as each rollout's response.

        `values` are the critic's before the update, `costs` what each token costs beside the reward at the end.
        """


def group_normalised(group: Group, scale_by_std: bool = True, *, by_kind: bool = False) -> list[float]:
    """(r_i - mean r) / (std r + 1e-4), the deviation with n - 1; without it when not asked for: GRPO's advantages.

    By kind: rollouts that begin with what a past policy wrote, or are all of it, are compared among themselves.
    """
    if by_kind:
        old = [rollout.prefix_length > 0 for rollout in group.rollouts]
        parts = {
            kind: iter(
                group_normalised(
                    Group(group.prompt, tuple(r for r, o in zip(group.rollouts, old, strict=True) if o == kind)),
                    scale_by_std,
                )
            )
            for kind in set(old)
        }
        return [next(parts[kind]) for kind in old]
    rewards = group.rewards
    mean = sum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if not scale_by_std or len(rewards) < 2:
        return centred
    std = math.sqrt(sum(c * c for c in centred) / (len(rewards) - 1))
    return [c / (std + 1e-4) for c in centred]


def denominator(normalise: Normalise, batch: Batch, totals: Totals) -> Tensor | float:
    """What each token's term is divided by, from the sizes of the *whole* update.

    token: all trained tokens (DAPO); rollout: own length, then rollouts (GRPO as published); constant: room for a
    response times rollouts (Dr. GRPO, arXiv 2503.20783), so that length earns nothing.
    """
    if normalise == "token":
        return float(max(totals.tokens, 1))
    if normalise == "constant":
        return float(max(totals.rollouts * totals.max_tokens, 1))
    return batch.lengths.clamp_min(1)[batch.rollout] * float(max(totals.rollouts, 1))


def for_prefix(batch: Batch, live: float, prefix: float | None) -> float | Tensor:
    """A number for every token [N], another one for those that came with a prefix; the one number where None."""
    if prefix is None:
        return live
    value = batch.advantages.new_tensor
    return torch.where(batch.kind == KINDS.index("prefix"), value(prefix), value(live))


def check_prefix_clip(low: float | None, high: float | None, level: str) -> None:
    """Refuse bounds for prefixes that cannot be: one ratio for a whole rollout has no part that is the prefix's."""
    if (low is not None and not 0 <= low <= 1) or (high is not None and high < 0):
        raise StockpotError("prefix_clip_low must lie in 0..1 and prefix_clip_high must be 0 or more.")
    if level == "rollout" and (low is not None or high is not None):
        raise StockpotError("prefix_clip_low and prefix_clip_high bound tokens: they need level token, not rollout.")


def clipped_surrogate(log_ratios: Tensor, advantages: Tensor, low: float | Tensor, high: float | Tensor) -> Terms:
    """-min(w A, clip(w, 1 - low, 1 + high) A) for each entry (PPO, arXiv 1707.06347).

    An entry is clipped, and has no gradient, where w A is the larger of the two.
    """
    ratio = ops.ratio(log_ratios)
    floor, ceiling = (torch.as_tensor(bound, dtype=ratio.dtype, device=ratio.device) for bound in (1 - low, 1 + high))
    bounded = ratio.clamp(floor, ceiling)
    plain, limited = ratio * advantages, bounded * advantages
    return Terms(loss=-plain.minimum(limited), ratio=ratio.detach(), clipped=(limited < plain).detach())
