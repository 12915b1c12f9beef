"""What to do where sampler and learner do not agree on how likely a token was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from stockpot import ops
from stockpot.algorithms.base import Algorithm, Terms
from stockpot.types import KINDS, Batch, Group, StockpotError


@dataclass(frozen=True)
class Correction:
    """Bounds the ratio of the tokens written for the step, which another program may have sampled.

    Elsewhere the ratio is taken against the learner's own log-probs from before the update, and a weight learner /
    sampler beside it mends the mismatch. Here nothing is beside it: a ratio is pi(y_t) / author(y_t), and the author's
    log-prob is what the sampler itself gave the token, so the mismatch is inside the ratio already, and is weighed
    exactly. What is left is that a few ratios may be large. A clip takes the gradient of those above it where the
    advantage is positive, and of those below it where it is negative; on the other side it bounds nothing: a token
    that the sampler found very unlikely and the learner does not is pushed down `ratio` times. This is what the
    correction adds:

    truncate: the weight is min(ratio, cap), whatever the sign (truncated importance sampling; under a clipped ratio
    the same as a second clip at `cap` for negative advantages);
    mask: tokens whose ratio leaves 1 / cap .. cap earn no gradient (masked importance sampling).

    Prefixes and replayed rollouts keep the bounds that the algorithm has for them. What was truncated or masked is
    counted as `mismatch/corrected`.
    """

    kind: Literal["none", "truncate", "mask"] = "none"
    """Whether large ratios are cut to the cap, or their tokens left out."""
    cap: float = 2.0
    """Largest ratio that a token is weighed with."""

    def __post_init__(self) -> None:
        if not self.cap >= 1:
            raise StockpotError(f"correction.cap must be 1 or more, not {self.cap}: 1 is the ratio of a fresh token.")

    def check(self, algorithm: Algorithm) -> None:
        """Refuse a loss whose tokens are not weighed by their own ratios: there is nothing to bound."""
        level = getattr(algorithm, "level", "token")
        if self.kind != "none" and (not algorithm.weighs_by_ratio or level != "token"):
            name = type(algorithm).__name__ + (f" at level {level}" if level != "token" else "")
            raise StockpotError(
                f"correction.{self.kind} bounds the ratio of each token, but {name} does not weigh tokens by it: "
                "set correction.kind to none or take another algorithm."
            )

    def wrap(self, algorithm: Algorithm) -> Algorithm:
        """The algorithm with bounded ratios, or as it is where nothing is to be bounded."""
        return algorithm if self.kind == "none" else Corrected(algorithm, self)

    def __call__(self, terms: Terms, batch: Batch) -> Terms:
        """The terms with the weight of each token of the step's own cut or taken away."""
        own = (batch.kind == KINDS.index("continuation")) & batch.known & batch.trained
        high = own & (terms.ratio > self.cap)
        if self.kind == "truncate":
            touched, factor = high, torch.where(high, self.cap / terms.ratio, 1.0)
            terms = replace(terms, loss=terms.loss * factor)
        else:
            touched = high | (own & (terms.ratio * self.cap < 1))
            loss = torch.where(touched, 0.0, terms.loss)
            terms = replace(terms, loss=loss, clipped=terms.clipped | touched)
        count = ops.per_rollout(touched.to(terms.ratio.dtype), batch.rollout, batch.size)
        figures: Mapping[str, Tensor] = {**terms.figures, "mismatch/corrected": count}
        return replace(terms, figures=figures)


class Corrected(Algorithm):
    """An algorithm whose loss is corrected; in all else the algorithm itself."""

    def __init__(self, plain: Algorithm, correction: Correction) -> None:
        correction.check(plain)
        self.plain, self.correction, self.normalise = plain, correction, plain.normalise
        self.needs_reference = plain.needs_reference  # type: ignore[misc]

    def advantages(self, group: Group) -> list[float]:
        return self.plain.advantages(group)

    def loss(self, log_probs: Tensor, batch: Batch) -> Terms:
        return self.correction(self.plain.loss(log_probs, batch), batch)
