"""What lies on each device where several share the work.

Two ways to learn together: all of the state on every device (DDP), or divided (FSDP2); whichever needs less memory is
taken. Two ways to stand: sampling and learning in turns on all devices, or samplers and learners apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from stockpot.plan.account import Plan
from stockpot.plan.base import HALF, KINDS, MASTER, Part, Phase, State

GATHERED = 2
"""Layers whose whole weights FSDP2 has at one time: the one at work, and the next."""


@dataclass(frozen=True)
class Place:
    """A device among others, and what lies on it."""

    plan: Plan
    parts: tuple[Part, ...]
    divided: bool = False
    """Whether the learner's state is shared out."""

    def peak(self, phase: Phase) -> float:
        """Most bytes in a phase, with what is always there."""
        return sum(part.bytes for part in self.parts if part.phase in ("always", phase))

    @property
    def needed(self) -> float:
        return max(self.peak("sampling"), self.peak("learning"))


def together(plan: Plan, devices: int) -> Place:
    """A device that samples and learns in turns, one of so many."""
    own = replace(plan, among=devices)
    whole = Place(own, tuple(own.parts()))
    if devices == 1:
        return whole
    own = replace(own, copies=True)
    parts = [part for part in own.parts() if isinstance(part, State) or part.phase != "always"]
    shared = Place(own, (*_divided(own, parts, devices), _copy(own)), divided=True)
    return min(whole, shared, key=lambda place: place.needed)


def learner(plan: Plan, devices: int) -> Place:
    """A device that only learns, one of so many."""
    own = replace(plan, among=devices, copies=True)
    parts = [part for part in own.parts() if isinstance(part, State) or part.phase == "learning"]
    whole = Place(own, tuple(parts))
    if devices == 1:
        return whole
    return min(whole, Place(own, _divided(own, parts, devices), divided=True), key=lambda place: place.needed)


def sampler(plan: Plan, devices: int) -> Place:
    """A device that only samples, one of so many. Older policies come into the place of its weights."""
    own = replace(plan, among=devices, copies=True)
    return Place(own, (_copy(own), *(part for part in own.parts() if part.phase == "sampling")))


def _copy(plan: Plan) -> Part:
    size = plan.shape.parameters
    how = f"{size:,} x {plan.decoding}, whole on every device"
    return Part(f"sampler's weights, {KINDS[plan.decoding]}", "always", plan.decoding * size, how)


def _divided(plan: Plan, parts: Iterable[Part], devices: int) -> tuple[Part, ...]:
    """The parts with the learner's state shared out, and what is gathered while a layer is at work."""
    shape, width = plan.shape, gathered_width(plan)
    made = [
        replace(part, bytes=part.bytes / devices, how=f"{part.how}, of {devices}") if isinstance(part, State) else part
        for part in parts
    ]
    layer = shape.blocks / shape.layers
    gradient = 0.0 if plan.adapter else MASTER * layer
    size = width * (GATHERED * layer + shape.embedding) + gradient
    how = f"{GATHERED} layers and the embedding whole, one layer's gradients"
    return (*made, Part("gathered from others", "learning", size, how))


def gathered_width(plan: Plan) -> int:
    """Bytes of a weight as it is sent between learners."""
    return HALF if plan.mixed else plan.stored
