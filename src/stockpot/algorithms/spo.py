"""SPO: the policy is its own soft Q function, so a rollout teaches whoever wrote it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stockpot import ops
from stockpot.algorithms.base import Algorithm, Normalise, Terms
from stockpot.types import Batch, Group, StockpotError

SLACK = 1e-6
"""How far above 0 a shifted reward may come by rounding."""


@dataclass(frozen=True)
class SPO(Algorithm):
    """Soft Policy Optimization (arXiv 2503.05453): Q_t = Q0(x) + sum_{s <= t} beta (log pi(a_s) - log ref(a_s)).

    Soft consistency of Q holds at every token by construction, so only the end is taught: Q_T is held to the reward.

    squared:        L = (Q_T - r)^2;
    cross-entropy:  L = -[y log p + (1 - y) log(1 - p)], p = exp(min(Q_T, 0) / beta), y = exp(r / beta), r <= 0;
    advantage:      L = (beta Delta - (r - V))^2, V the mean reward instead of Q0: as we infer it, no source says.

    L is that of a rollout and the mean is over rollouts. What an author gave its tokens plays no part: replay, other
    runs and people teach like the policy's own samples. Q0 comes from elsewhere (`q0`; stockpot.soft) and reaches the
    loss within the advantage r - Q0. docs/spo.md has the fixed points.

    Differs from the paper: beta, the samples for Q0 and the margin of the clip are ours (it states none); tokens that
    may not be trained count as the world's, with log-ratio 0.
    """

    needs_reference: ClassVar[bool] = True

    form: Literal["squared", "cross-entropy", "advantage"] = "squared"
    """Which of the three losses; sources differ on which the paper found best."""
    beta: float = 1.0
    """What a nat of distance from the reference costs, in rewards (ours). With a small one failures shall lose 1 / beta
    nats, which is more than offline data can steer (LOG.md)."""
    q0: Literal["reference", "online", "group"] = "reference"
    """Where Q0 comes from: samples of the frozen reference before training (the paper), the rollouts written so far,
    each weighed back to the reference, or the mean of r - beta Delta over the prompt's rollouts of the step (VarGrad,
    trajectory balance)."""
    samples: int = 16
    """With q0 reference: samples of each prompt. Online: most stored rollouts of a prompt beside those of the step."""
    shrink: float = 0.0
    """As so many further samples of each prompt count the data set's mean; for prompts with few samples."""
    reward_shift: float = -1.0
    """Added to rewards before the cross-entropy reads them, which must then be 0 or less: -1 for rewards in 0..1, 0
    for rewards in -1..0. The other two do not see it."""
    margin: float = 0.01
    """Cross-entropy: log p is cut to at most minus this, so that log(1 - p) stays finite."""
    beyond: Literal["clip", "line"] = "clip"
    """Cross-entropy above that cut: no gradient (the clip), or for failures the slope that it had there (ours)."""
    length: Literal["sum", "mean"] = "sum"
    """Sum log-ratios over the response, or divide the sum by its length: a deviation with another fixed point."""
    normalise: Normalise = "rollout"
    """What terms are averaged over; with others than "rollout" a long rollout weighs more."""

    def __post_init__(self) -> None:
        if not (self.beta > 0 and self.margin > 0):
            raise StockpotError("algorithm.beta and margin must be above 0.")
        if self.samples < 1 or self.shrink < 0:
            raise StockpotError("algorithm.samples must be at least 1 and algorithm.shrink 0 or more.")

    def advantages(self, group: Group, base: float | None = None) -> list[float]:
        """r - base for each rollout; without a base, the group's own soft value is taken, as if the reference wrote."""
        rewards = group.rewards
        if self.form == "cross-entropy" and max(rewards) + self.reward_shift > SLACK:
            raise StockpotError(
                f"algorithm.form cross-entropy needs rewards of 0 or less, but {max(rewards):g} plus "
                f"algorithm.reward_shift {self.reward_shift:g} is above: set reward_shift to minus the best reward."
            )
        if base is None:
            mean = sum(rewards) / len(rewards)
            base = mean if self.form == "advantage" else soft_value(rewards, beta=self.beta)
        return [reward - base for reward in rewards]

    def distance(self, log_ratios: Tensor, batch: Batch) -> Tensor:
        """Delta [S] from log pi - log ref [N]: a sum over the tokens that may be trained."""
        sums = ops.per_rollout(torch.where(batch.trained, log_ratios, 0.0), batch.rollout, batch.size)
        return sums / batch.lengths.clamp_min(1) if self.length == "mean" else sums

    def loss(self, log_probs: Tensor, batch: Batch) -> Terms:
        if batch.reference_log_probs is None:
            raise StockpotError("SPO needs the reference's log-probs in the batch.")
        log_ratios = log_probs - batch.reference_log_probs
        first = batch.index == 0  # every rollout has the advantage of its first token
        credit = batch.rewards.new_zeros(batch.size).index_add(0, batch.rollout[first], batch.advantages[first])
        gain = self.beta * self.distance(log_ratios, batch)
        ratio = ops.ratio(ops.log_ratio(log_probs, batch.author_log_probs, batch.known)).detach()
        cut = torch.zeros_like(gain, dtype=torch.bool)
        if self.form == "cross-entropy":
            base = batch.rewards - credit + self.reward_shift
            losses, cut = self.cross_entropy((base + gain) / self.beta, batch.rewards + self.reward_shift)
        else:
            losses = (gain - credit).square()
        figures = self.figures(log_ratios.detach(), credit, gain.detach(), batch)
        return Terms(loss=losses[batch.rollout], ratio=ratio, clipped=cut[batch.rollout], figures=figures)

    def cross_entropy(self, log_p: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [S] from Q_T / beta and shifted rewards, and where the clip took the gradient away."""
        y = (rewards.clamp_max(0.0) / self.beta).exp()
        below = log_p.clamp_max(-self.margin)
        losses = -(y * below + (1 - y) * (-torch.expm1(below)).log())
        if self.beyond == "clip":
            return losses, (log_p > -self.margin).detach()
        slope = ((1 - y) / math.expm1(self.margin) - y).clamp_min(0.0)
        return losses + slope * (log_p + self.margin).clamp_min(0.0), ((log_p > -self.margin) & (slope == 0)).detach()

    def figures(self, log_ratios: Tensor, credit: Tensor, gain: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What is told of each rollout [S]: Q before its first token, in its middle, at its end; how far from r."""
        base = batch.rewards - credit
        count = ops.per_rollout(batch.trained.to(gain.dtype), batch.rollout, batch.size)
        before = (count.cumsum(0) - count)[batch.rollout]  # rollouts lie end to end
        early = batch.trained & (batch.trained.cumsum(0) - 1 - before < count[batch.rollout] / 2)
        half = ops.per_rollout(torch.where(early, log_ratios, 0.0), batch.rollout, batch.size)
        half = base + self.beta * (half / count.clamp_min(1) if self.length == "mean" else half)
        end = base + gain
        nobody = torch.full_like(end, torch.nan)
        told = {
            "spo/q0": base,
            "spo/q_half": half,
            "spo/q_end": end,
            "spo/q_end_better": torch.where(credit > 0, end, nobody),
            "spo/q_end_worse": torch.where(credit < 0, end, nobody),
            "spo/error": (end - batch.rewards).square(),
        }
        return {name: torch.where(count > 0, values, nobody) for name, values in told.items()}


def path(log_probs: Tensor, reference: Tensor, q0: float, beta: float) -> Tensor:
    """Q after each token [n] of one rollout: its credit token by token; Q_t - Q_(t-1) is what a_t was worth."""
    return q0 + beta * (log_probs - reference).cumsum(0)


# --- values of the reference ----------------------------------------------------------------------------------------


def log_mean(rewards: Sequence[float], log_weights: Sequence[float] | None = None, *, beta: float) -> float:
    """log of the mean of w exp(r / beta), with w = 1 or exp(log weight): no overflow, however small beta is."""
    weights = [0.0] * len(rewards) if log_weights is None else log_weights
    powers = [r / beta + w for r, w in zip(rewards, weights, strict=True)]
    top = max(powers)
    return top + math.log(sum(math.exp(power - top) for power in powers) / len(powers))


def soft_value(rewards: Sequence[float], log_weights: Sequence[float] | None = None, *, beta: float) -> float:
    """Q0 = beta log E_ref[exp(r / beta)], from rollouts of the reference, or of others with log weights ref / author.

    >>> round(soft_value([0.0, 0.0, 0.0, 1.0], beta=1.0), 6)     # log(3/4 + e/4)
    0.357374
    """
    return beta * log_mean(rewards, log_weights, beta=beta)


def interval(rewards: Sequence[float], *, beta: float) -> tuple[float, float]:
    """95 % interval of `soft_value` by the delta method: beta times the relative error of the mean of exp(r / beta).

    With one sample, or where all rewards are alike, it has no width: nothing was seen of what else may come.
    """
    n, top = len(rewards), max(rewards)
    powers = [math.exp((r - top) / beta) for r in rewards]
    mean = sum(powers) / n
    spread = math.sqrt(sum((p - mean) ** 2 for p in powers) / max(n - 1, 1) / n)
    value = soft_value(rewards, beta=beta)
    return value - 1.96 * beta * spread / mean, value + 1.96 * beta * spread / mean


def mean_reward(rewards: Sequence[float], log_weights: Sequence[float] | None = None) -> float:
    """E_ref[r], the weights made to sum to 1."""
    weights = [0.0] * len(rewards) if log_weights is None else log_weights
    top = max(weights)
    shares = [math.exp(w - top) for w in weights]
    return sum(r * s for r, s in zip(rewards, shares, strict=True)) / sum(shares)


def blend(log_z: float, count: int, prior: float, pseudo: float) -> float:
    """log of (count Z + pseudo Z_prior) / (count + pseudo): a mean shrunk towards another."""
    if not pseudo:
        return log_z
    top = max(log_z, prior)
    return top + math.log((count * math.exp(log_z - top) + pseudo * math.exp(prior - top)) / (count + pseudo))
