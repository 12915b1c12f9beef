"""Seconds of decoding, reading and learning on one device: the longer of calculating and moving bytes, and overheads.

A decoding step multiplies every row by every weight and reads weights and cache once. So few rows wait for memory,
many for the processor. What is added to this per step and per pass is a stated overhead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stockpot.plan.stragglers import Lengths, alive
from stockpot.shapes import Shape


@dataclass(frozen=True)
class Crowd:
    """Responses alike: how many, how much of each is to be written, and the tokens that stand before it."""

    count: float
    lengths: Lengths
    context: float

    @property
    def tokens(self) -> float:
        return self.count * self.lengths.mean


@dataclass(frozen=True)
class Sampling:
    """A sampler's device."""

    shape: Shape
    width: int
    """Bytes of a weight, a key and a value."""
    peak: float
    """Operations a second."""
    bandwidth: float
    """Bytes a second."""
    reached: float
    """Share of both that is reached."""
    step: float
    """Seconds of overhead for each decoding step."""
    once: float
    """Seconds of overhead for each pass that reads contexts."""
    pass_tokens: int
    """Tokens of such a pass."""

    @property
    def weights(self) -> float:
        """Bytes read by every step and every pass."""
        return self.width * (self.shape.blocks + self.shape.embedding)

    def decoding(self, rows: Tensor | float, tokens: Tensor | float) -> Tensor:
        """Seconds of one step for so many rows, that see so many tokens of context in all."""
        shape = self.shape
        rows, tokens = torch.as_tensor(rows).double(), torch.as_tensor(tokens).double()
        work = 2 * (shape.blocks + shape.embedding) * rows + 4 * shape.layers * shape.heads * shape.head_dim * tokens
        moved = self.weights + 2 * shape.layers * shape.kv_heads * shape.head_dim * self.width * tokens
        return self.step + torch.maximum(work / self.peak, moved / self.bandwidth) / self.reached

    def reading(self, contexts: float, length: float) -> float:
        """Seconds of reading contexts of this length, weights once a pass."""
        if contexts <= 0 or length <= 0:
            return 0.0
        shape, passes = self.shape, max(1.0, contexts * length / max(self.pass_tokens, length))
        each = 2 * shape.blocks * length + 2 * shape.layers * shape.heads * shape.head_dim * length * (length + 1)
        moved = passes * self.weights
        return passes * self.once + max(contexts * each / self.peak, moved / self.bandwidth) / self.reached

    def batch(self, crowds: list[Crowd], samplers: int, rows: int) -> tuple[float, float]:
        """Seconds that a sampler is busy with its part of a batch, and those until the slowest of all has done.

        Rows are filled again from a queue until it is empty; what then stands in them runs out, from its beginning.
        """
        own = [Crowd(crowd.count / samplers, crowd.lengths, crowd.context) for crowd in crowds if crowd.count > 0]
        asked = sum(crowd.count for crowd in own)
        if not asked:
            return 0.0, 0.0
        queued = max(0.0, 1 - rows / asked)
        full = self.steady([Crowd(c.count * queued, c.lengths, c.context) for c in own], rows)
        last = [Crowd(c.count * (1 - queued), c.lengths, c.context) for c in own]
        steps = max(len(crowd.lengths.survival) for crowd in last)
        places, live, context = torch.arange(steps).double(), torch.zeros(steps).double(), torch.zeros(steps).double()
        for crowd in last:
            survival = torch.zeros(steps).double()
            survival[: len(crowd.lengths.survival)] = crowd.lengths.survival
            live += crowd.count * survival
            context += crowd.count * survival * (crowd.context + places)
        here = alive([(crowd.count, crowd.lengths) for crowd in last], steps)
        anywhere = alive([(crowd.count * samplers, crowd.lengths) for crowd in last], steps)
        seconds = self.decoding(live / here.clamp(min=1e-300), context / here.clamp(min=1e-300))
        return full + float((here * seconds).sum()), full + float((anywhere * seconds).sum())

    def steady(self, crowds: list[Crowd], rows: float) -> float:
        """Seconds of writing these with all rows full all the time."""
        tokens = sum(crowd.tokens for crowd in crowds)
        if tokens <= 0:
            return 0.0
        return tokens / rows * float(self.decoding(rows, rows * seen(crowds)))


def seen(crowds: list[Crowd]) -> float:
    """Tokens that stand before a row's next one, in the mean over all rows and times."""
    tokens = sum(crowd.tokens for crowd in crowds)
    return sum(c.tokens * (c.context + c.lengths.span) for c in crowds) / tokens if tokens else 0.0


@dataclass(frozen=True)
class Learning:
    """A learner's device, and the others that it learns with."""

    peak: float
    """Operations a second."""
    mfu: float
    """Share of them that is reached, recomputation counted as work."""
    bandwidth: float
    """Bytes a second of its memory."""
    line: float
    """Bytes a second between learners."""
    once: float
    """Seconds of overhead for each pass, forward and backward."""
    learners: int
    divided: bool
    """Whether weights, gradients and moments are shared out (FSDP2) or all of them on every learner (DDP)."""

    def seconds(
        self, operations: float, passes: float, updates: int, trained: int, gathered: float
    ) -> tuple[float, float]:
        """Seconds of learning, and those by which talking outlasts it; all of talking goes on beside calculating.

        `operations` and `passes` are of all learners, `gathered` the bytes of the weights as they are multiplied.
        FSDP2 gathers them before a pass forward and again backward, and scatters float32 gradients; DDP adds up
        gradients once an update. AdamW reads weight, gradient and two moments, and writes three of them.
        """
        count, others = self.learners, (self.learners - 1) / self.learners
        each = max(1.0, passes / count)
        state = 28 * trained / (count if self.divided else 1)
        learning = operations / count / (self.peak * self.mfu) + each * self.once + updates * state / self.bandwidth
        talked = each * (2 * gathered + 4 * trained) if self.divided else updates * 2 * 4 * trained
        return learning, max(0.0, others * talked / self.line - learning)
