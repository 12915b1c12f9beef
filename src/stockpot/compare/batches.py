"""What the losses are compared on: batches of stored rollouts, drawn once from a frozen history."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from stockpot.history import History
from stockpot.prefixes import Replay
from stockpot.types import Group, Prompt, StockpotError

Band = tuple[int, int]
"""Youngest and oldest age, both included."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    prompts: int = 32
    """Prompts of each batch: always the same ones."""
    group_size: int = 8
    """K: rollouts of each prompt in a batch."""
    batches: int = 2
    """Batches of each age band, no rollout in two of them."""
    fresh: int = 256
    """Fresh samples of each prompt for the yardstick; half of them for each half."""

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.group_size < 2 or self.batches < 2:
            raise StockpotError("--prompts must be at least 1, --group-size and --batches at least 2.")
        if self.fresh < 4 or self.fresh % 2:
            raise StockpotError(f"--fresh must be an even number, at least 4, not {self.fresh}: it is cut in halves.")


@dataclass(frozen=True)
class Choice:
    """Batches of stored rollouts for each age band, and what was left out."""

    bands: tuple[Band, ...]
    prompts: tuple[Prompt, ...]
    batches: tuple[tuple[tuple[Group, ...], ...], ...]
    """[band][batch][prompt]"""
    known: int
    """Training prompts."""
    fit: int
    """Those with enough stored rollouts in every band."""


def ages(text: str, version: int) -> tuple[Band, ...]:
    """ "1-3,4-15,16-" -> pairs of ages; empty: what is older than `version`, in thirds where that is many steps."""
    if not text:
        if version < 1:
            raise StockpotError("at version 0 nothing in the history is older than the policy: take a later --step.")
        ends = [0, version // 3, 2 * version // 3, version] if version >= 24 else [0, version]
        return tuple((low + 1, high) for low, high in pairwise(ends))
    bands = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or not dash or not (high.isdecimal() or not high) or int(high or low) < int(low):
            raise StockpotError(f"--ages {text}: {part!r} is no band of ages; write them as 1-3,4-15,16-")
        bands.append((int(low), int(high) if high else max(version, int(low))))
    return tuple(bands)


def draw(
    history: History, known: Sequence[Prompt], version: int, bands: Sequence[Band], sizes: Sizes, seed: int
) -> Choice:
    """Prompts that have rollouts enough in every band, and their rollouts dealt to batches; all read at once.

    A rollout is taken whole and as it is stored, so each token keeps its author: one that began with a prefix has two.
    """
    keys = [prompt.key for prompt in known]
    need = sizes.batches * sizes.group_size
    pools = [history.candidates(keys, oldest=version - old, newest=version - young) for young, old in bands]
    fit = [key for key in keys if all(len(pool[key]) >= need for pool in pools)]
    told = ",".join(f"{young}-{old}" for young, old in bands)
    if not fit:
        most = max(min(len(pool[key]) for pool in pools) for key in keys)
        raise StockpotError(
            f"{history.path}: no training prompt has {sizes.batches} x {sizes.group_size} stored rollouts of each of "
            f"the ages {told} at version {version} (the most is {most}); give wider --ages, or a smaller --group-size."
        )
    rng = random.Random(repr((seed, "draw")))
    chosen = sorted(rng.sample(range(len(fit)), min(sizes.prompts, len(fit))))
    dealt = []
    for pool in pools:
        rows = []
        for place in chosen:
            ids = rng.sample([candidate.id for candidate in pool[fit[place]]], need)
            stored = [Replay().begin(rollout, version, rng) for rollout in history.read(ids)]
            rows.append(
                [
                    Group(stored[0].prompt, tuple(stored[first : first + sizes.group_size]))
                    for first in range(0, need, sizes.group_size)
                ]
            )
        dealt.append(tuple(zip(*rows, strict=True)))
    prompts = tuple(group.prompt for group in dealt[0][0])
    return Choice(tuple(bands), prompts, tuple(dealt), len(keys), len(fit))
