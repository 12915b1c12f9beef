"""PPO: a clipped ratio, and advantages that a critic gives, one for each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stockpot import ops
from stockpot.algorithms.base import ActorCritic, CriticOptions, Normalise, Terms, clipped_surrogate
from stockpot.types import Batch, Group, Rollout, StockpotError


@dataclass(frozen=True)
class PPO(ActorCritic):
    """loss_t = -min(w_t A_t, clip(w_t, 1 - low, 1 + high) A_t), with A_t from a critic V (PPO, arXiv 1707.06347).

    A_t = d_t + gamma trace A_(t+1),  d_t = r_t + gamma V_(t+1) - V_t: generalised advantages (arXiv 1506.02438). V_t is
    the worth of the prompt and the tokens before t. The reward comes with the last token, V is 0 behind it. The critic
    learns the returns A_t + V_t, with A_t before it is whitened. w_t = pi(y_t) / author(y_t), each token against
    whoever wrote it.

    A response that ran out of room is judged like any other: its reward is final, nothing is expected behind it.
    Tokens that are not trained (an untrained prefix, what a tool wrote) are part of the world: the next value after a
    token is that of the next trained one, and they have no advantage and no return themselves.

    With `kl.estimator k1` the KL is a cost of each token, r_t = -coefficient * (log pi - log reference); with k2 and k3
    it stays in the loss.

    Differs from the paper: no entropy bonus unless asked for (`--entropy.coefficient`); the ratio's denominator is what
    the sampler gave the token, also in later epochs (`--epochs`); epochs see the same batches in the same order.
    """

    weighs_by_ratio: ClassVar[bool] = True

    gamma: float = 1.0
    """What a token's worth loses with each step back from the reward."""
    trace: float = 0.95
    """GAE's lambda: 1 takes the reward itself and has no bias, 0 the critic's word for all but the next token."""
    returns_trace: float | None = None
    """Another lambda for the returns that the critic learns: with 1 it learns the rewards themselves; none: `trace`."""
    whiten: bool = True
    """Advantages of an update have mean 0 and deviation 1."""
    clip_low: float = 0.2
    """Floor of the ratio is 1 - this."""
    clip_high: float = 0.2
    """Ceiling of the ratio is 1 + this."""
    normalise: Normalise = "token"
    """What terms are averaged over."""
    critic: CriticOptions = CriticOptions()
    """The critic, and how it learns."""

    def __post_init__(self) -> None:
        if not all(0 <= number <= 1 for number in (self.gamma, self.trace, self.returns_trace or 0)):
            raise StockpotError("gamma, trace and returns_trace must lie in 0..1.")
        if not 0 <= self.clip_low <= 1 or self.clip_high < 0:
            raise StockpotError("clip_low must lie in 0..1 and clip_high must be 0 or more.")

    def advantages(self, group: Group) -> list[float]:
        """What is left without a critic: the rewards, as if its values were all 0."""
        return group.rewards

    def judge(
        self, rollouts: Sequence[Rollout], values: Sequence[Tensor], costs: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        advantages, returns = [], []
        masks = [torch.tensor([s.trained for s in r.spans for _ in s.tokens], dtype=torch.bool) for r in rollouts]
        for i, (rollout, mask) in enumerate(zip(rollouts, masks, strict=True)):
            value = values[i].detach().cpu().double()[mask]
            rewards = torch.zeros_like(value) if costs is None else -costs[i].detach().cpu().double()[mask]
            rewards[-1:] += rollout.reward or 0.0
            traces = (self.trace, self.trace if self.returns_trace is None else self.returns_trace)
            gained, due = (generalised(rewards.tolist(), value.tolist(), self.gamma, trace) for trace in traces)
            advantages.append(torch.zeros(len(mask), dtype=torch.float64).masked_scatter(mask, gained))
            returns.append(torch.zeros(len(mask), dtype=torch.float64).masked_scatter(mask, due + value))
        return whitened(advantages, masks) if self.whiten else advantages, returns

    def loss(self, log_probs: Tensor, batch: Batch) -> Terms:
        log_ratios = ops.log_ratio(log_probs, batch.author_log_probs, batch.known)
        return clipped_surrogate(log_ratios, batch.advantages, self.clip_low, self.clip_high)


def generalised(rewards: Sequence[float], values: Sequence[float], gamma: float, trace: float) -> Tensor:
    """A_t = sum over k of (gamma trace)^k d_(t+k), d_t = r_t + gamma V_(t+1) - V_t; V is 0 behind the last token."""
    advantages = [0.0] * len(values)
    following = behind = 0.0
    for t in reversed(range(len(values))):
        behind = rewards[t] + gamma * following - values[t] + gamma * trace * behind
        following, advantages[t] = values[t], behind
    return torch.tensor(advantages, dtype=torch.float64)


def whitened(advantages: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """(A - mean) / (deviation + 1e-8) over the tokens in the masks of all rollouts; the others stay 0."""
    chosen = torch.cat([a[m] for a, m in zip(advantages, masks, strict=True)])
    if len(chosen) < 2:
        return list(advantages)
    mean, deviation = chosen.mean(), chosen.std()
    return [torch.where(m, (a - mean) / (deviation + 1e-8), 0.0) for a, m in zip(advantages, masks, strict=True)]
