"""What the learners of a group do together, as one that has no others does it: the seam at which groups come in.

`Policy` is written once. Where several processes share its work (`engines/ranks`) they hold pieces of the weights, run
the same number of passes, add up gradients and figures, and agree on a step; alone, all of that is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from stockpot.diagnostics import View

T = TypeVar("T")


@dataclass
class Found:
    """What the passes of one update have found so far."""

    sums: dict[str, float]
    """Metrics that are sums over the update."""
    views: list[View] = field(default_factory=list)
    notes: list[Mapping[str, Tensor]] = field(default_factory=list)
    """What the loss told of each rollout."""
    values: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    """What the critic said, was to say, and where it was clipped."""
    skipped: str = ""
    """Why there is no step to take."""

    def add(self, loss: float) -> bool:
        """Count a pass's loss; whether all is finite so far."""
        self.sums["loss"] += loss
        if not math.isfinite(self.sums["loss"]):
            self.skipped = f"the loss is {self.sums['loss']}"
        return not self.skipped


class Alone:
    """One learner without others."""

    rank, world = 0, 1

    def settle(self, model: Any) -> None:
        """Bring a model, the policy's or a frozen one, to where it lives, in pieces where that is the way."""

    def on_cpu(self, model: Any) -> bool:
        """Whether the model will compute on a CPU."""
        return bool(next(model.parameters()).device.type == "cpu")

    def passes(self, work: Sequence[T]) -> Iterator[T | None]:
        """One after the other; None where another learner still has work that this one must take part in."""
        yield from work

    def backward(self, loss: Tensor) -> None:
        """Gradients of what is summed over all learners."""
        loss.backward()  # type: ignore[no-untyped-call]

    def pool(self, found: Found) -> Found:
        """What all learners found."""
        return found

    def reduce(self, parameters: Iterable[Tensor]) -> None:
        """Add up the gradients of parameters that `settle` has not seen."""

    def clip(self, model: Any, limit: float) -> float:
        """The norm of the whole gradient, which is then cut to `limit`."""
        return float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))

    def rest(self, *models: Any) -> None:
        """After passes: let go of what only passes need."""
