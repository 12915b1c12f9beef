"""AsymRE: REINFORCE on anyone's data, with a baseline that is a little too low."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stockpot import ops
from stockpot.algorithms.base import Algorithm, Normalise, Terms
from stockpot.types import Batch, Group, StockpotError


@dataclass(frozen=True)
class AsymRE(Algorithm):
    """A_i = r_i - (mean r - delta);  loss_t = -A_i log pi(y_t), whoever wrote y_t (AsymRE, arXiv 2506.20520).

    The authors' log-probs play no part: there is no ratio to explode. On fresh samples the shift changes nothing on
    average. On old ones it does: below the value of the policy that wrote the data, old failures push less than old
    successes pull, and the policy is proved to improve; above it, it can collapse.

    Differs from the paper: the mean is that of a prompt's rollouts in this step, whoever wrote each of them, so it is
    the value of a mixture of policies; terms are averaged over tokens. For rewards in 0..1.
    """

    delta: float = 0.1
    """How far the baseline lies below the group's mean."""
    normalise: Normalise = "token"
    """What terms are averaged over."""

    def __post_init__(self) -> None:
        if not self.delta >= 0:
            raise StockpotError("delta is how far the baseline is lowered: it must be 0 or more.")

    def advantages(self, group: Group) -> list[float]:
        rewards = group.rewards
        base = sum(rewards) / len(rewards) - self.delta
        return [reward - base for reward in rewards]

    def loss(self, log_probs: Tensor, batch: Batch) -> Terms:
        ratio = ops.ratio(ops.log_ratio(log_probs, batch.author_log_probs, batch.known)).detach()
        return Terms(loss=-batch.advantages * log_probs, ratio=ratio, clipped=ratio.new_zeros(ratio.shape).bool())
