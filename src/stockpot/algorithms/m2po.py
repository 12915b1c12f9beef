"""M2PO: instead of clipping every ratio, drop the few tokens that carry the second moment of the log-ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stockpot import ops
from stockpot.algorithms.base import Algorithm, Normalise, Terms, group_normalised
from stockpot.types import Batch, Group, StockpotError


@dataclass(frozen=True)
class M2PO(Algorithm):
    """loss_t = -M_t w_t A_i;  M drops the clippable tokens of largest (log w_t)^2 until the mean of the rest is
    at most `threshold` (M2PO, arXiv 2510.01161). Advantages are GRPO's.

    Clippable are the tokens that a clip could touch: w > 1 with A > 0, or w < 1 with A < 0. The others are kept, as
    PPO's clip keeps them, and do not count in the mean. Threshold 0.04 is that of the authors' scripts.

    Differs from the paper: there the mean is taken over the batch (in public code, over whatever part of it is at
    hand); here over each *rollout*, so that the same tokens are dropped however an update is split. As each
    rollout keeps below the threshold, so does the batch; but an outlier's budget cannot be lent from one rollout to
    another, so more may be dropped. A rollout whose smallest clippable token is above the threshold loses them all.
    """

    weighs_by_ratio: ClassVar[bool] = True

    threshold: float = 0.04
    """Largest mean of (log w)^2 over the clippable tokens that a rollout keeps."""
    scale_by_std: bool = True
    """Divide advantages by the group's standard deviation."""
    normalise: Normalise = "token"
    """What terms are averaged over."""

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise StockpotError("threshold is the mean of a square: it must be 0 or more.")

    def advantages(self, group: Group) -> list[float]:
        return group_normalised(group, self.scale_by_std)

    def loss(self, log_probs: Tensor, batch: Batch) -> Terms:
        log_ratios = ops.log_ratio(log_probs, batch.author_log_probs, batch.known)
        ratio = ops.ratio(log_ratios)
        clippable = batch.trained & (log_ratios.detach() * batch.advantages > 0)
        dropped = outliers(log_ratios.detach().square(), clippable, batch, self.threshold)
        return Terms(
            loss=-torch.where(dropped, 0.0, ratio) * batch.advantages, ratio=ratio.detach(), clipped=dropped.detach()
        )


def outliers(squares: Tensor, among: Tensor, batch: Batch, threshold: float) -> Tensor:
    """The largest `squares` [N] of each rollout, as few as leave the mean of its others in `among` <= threshold.

    Sorted in a table with a row for each rollout, so that no sum runs over two of them.
    """
    width = int(batch.index.max()) + 1 if len(batch.index) else 1
    table = squares.new_full((batch.size, width), torch.inf)
    table[batch.rollout, batch.index] = torch.where(among, squares, torch.inf)
    ordered, order = table.sort(dim=-1, stable=True)
    means = ordered.cumsum(-1) / torch.arange(1, width + 1, dtype=squares.dtype, device=squares.device)
    out = torch.zeros_like(table, dtype=torch.bool).scatter(-1, order, means > threshold)
    return out[batch.rollout, batch.index] & among
