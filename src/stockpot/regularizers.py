"""What is added to any algorithm's loss: an entropy bonus, and a KL that holds the policy near a reference.

Both are averaged over the update's trained tokens, and both are exactly nothing at coefficient 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from stockpot import ops
from stockpot.types import Batch, StockpotError


@dataclass(frozen=True)
class EntropyBonus:
    """loss_t = -coefficient * H_t, the entropy of the policy's next-token distribution at sampling temperature (T1)."""

    coefficient: float = 0.0
    """Weight; T1 uses one but does not state it, so there is no default but off."""

    def term(self, entropy: Tensor) -> Tensor:
        return -self.coefficient * entropy


@dataclass(frozen=True)
class KL:
    """Holds the policy near a reference: frozen at the start, a moving average of the policy, or a late copy of it.

    Three estimators (see `ops.kl`) and two ways to use them, since differentiating an estimate is not estimating a
    gradient:

    in the loss (k2, k3):  loss_t = coefficient * k(log pi - log ref), differentiated as it stands. On fresh tokens k2
    gives the gradient of each token's KL(pi || ref), k3 (GRPO's choice) that of each token's KL(ref || pi);
    in the advantage (k1):  A_i -= coefficient * d_i, d_i = the sum of log pi - log ref over the rollout's tokens: the
    gradient of the whole response's KL. `centred` subtracts the mean of d over the prompt's rollouts (T1's normalised
    KL, arXiv 2501.11651).

    k1 is never put into the loss, where its gradient is noise around zero, nor k2 and k3 into the advantage, where
    they are flat around the reference: `docs/biases.md` has the sizes.
    """

    coefficient: float = 0.0
    """Weight; T1 uses 2e-4 (centred)."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Which estimate of the KL."""
    centred: bool = False
    """Compare a rollout's KL with its group's mean, as an advantage."""
    reference: Literal["frozen", "ema", "lagged"] = "frozen"
    """The policy at the start, its moving average, or a copy of it made every few steps. SPO takes the same one."""
    rate: float = 0.01
    """EMA: share of the policy that flows into the reference at each move (ours: T1 states none)."""
    every: int = 1
    """EMA and lagged: steps between moves."""

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1 or self.every < 1:
            raise StockpotError("kl.rate must lie in 0..1 and kl.every must be at least 1.")
        if self.centred and self.estimator != "k1":
            raise StockpotError("kl.centred makes the KL an advantage, which only kl.estimator k1 estimates: set both.")

    @property
    def active(self) -> bool:
        return self.coefficient != 0.0

    def move(self, version: int) -> float:
        """Share of the policy that flows into the reference when the policy reaches `version`; 0 for no move."""
        if self.reference == "frozen" or version % self.every:
            return 0.0
        return self.rate if self.reference == "ema" else 1.0

    def name(self, now: int) -> str:
        """Which reference it is at step `now`: what it gave a token holds as long as the name does."""
        return "start" if self.reference == "frozen" else f"{self.reference}-{now - now % self.every}"

    @property
    def in_advantage(self) -> bool:
        """Whether it changes advantages, for which the policy's own log-probs are needed before the update."""
        return self.active and self.estimator == "k1"

    def credit(self, log_probs: Sequence[Tensor], reference: Sequence[Tensor]) -> list[float]:
        """What to add to the advantages of one group, from the log-probs of each of its rollouts' tokens."""
        sums = [float(ops.kl(p, r, self.estimator).sum()) for p, r in zip(log_probs, reference, strict=True)]
        base = sum(sums) / len(sums) if self.centred else 0.0
        return [-self.coefficient * (d - base) for d in sums]

    def costs(self, log_probs: Sequence[Tensor], reference: Sequence[Tensor]) -> list[Tensor]:
        """What each token costs, where advantages are made token by token: coefficient * (log pi - log ref)."""
        pairs = zip(log_probs, reference, strict=True)
        return [self.coefficient * ops.kl(p.cpu(), r.cpu(), self.estimator) for p, r in pairs]

    def term(self, log_probs: Tensor, batch: Batch) -> Tensor:
        """Per-token terms [N] for the loss; only for the two estimators that belong there."""
        if batch.reference_log_probs is None:
            raise StockpotError("the KL needs the reference's log-probs in the batch.")
        return self.coefficient * ops.kl(log_probs, batch.reference_log_probs, self.estimator)
