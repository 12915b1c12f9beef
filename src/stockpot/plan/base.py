"""The words of a plan: what it takes for granted, what is not known before a run, and the lines of its account."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stockpot.types import StockpotError

GB = 10**9
MASTER = 4
"""Bytes of a weight, a gradient, and of each of AdamW's two moments: float32, whatever matrices are multiplied in."""
MOMENTS = 2
"""AdamW's moments per parameter."""
HALF = 2
"""Bytes of a number in bfloat16."""
KINDS = {HALF: "bfloat16", MASTER: "float32"}
DRAWN = 24
"""Bytes per logit of a decoding step: logits, probabilities and their sums (float64) while tokens are drawn."""
LOOK = 8
"""Columns of the cache beyond the longest row: the sampler looks for finished rows every eight steps on a GPU."""
WORKING_LAYERS = 1
"""Layers whose activations exist once more while their gradients are made."""

DEVICES = {"a100": 80 * GB, "a100-40": 40 * GB, "h100": 80 * GB, "h200": 141 * GB, "b200": 180 * GB, "l40s": 48 * GB}
"""Memory by the maker's data sheet; `cpu` is this machine's."""

Phase = Literal["always", "sampling", "learning"]


@dataclass(frozen=True)
class Assumed:
    """What nobody knows before a run."""

    longest_prompt: int = 1024
    """Tokens of the longest prompt (what is left of the model's context, where that is less)."""
    mean_prompt: int = 128
    """Tokens of a prompt, in the mean."""
    response: float = 0.5
    """Share of max_tokens that a response has, in the mean."""
    reserve: float = 0.08
    """Share of the device's memory kept for its driver, and for gaps between tensors."""

    def __post_init__(self) -> None:
        if not 0 < self.response <= 1 or not 0 <= self.reserve < 1:
            raise StockpotError("--response must lie above 0 and up to 1, --reserve in 0..1.")
        if self.longest_prompt < 1 or self.mean_prompt < 1:
            raise StockpotError("--longest-prompt and --mean-prompt must be at least 1.")


@dataclass(frozen=True)
class Part:
    """One line of the account of memory."""

    name: str
    phase: Phase
    bytes: float
    how: str
    """The product that it is."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of one step."""

    rollouts: int
    prefixed: int
    """Rollouts that begin with a prefix, once there is a history."""
    decoded_most: float
    decoded: float
    saved: float
    """Prefix tokens, which are not decoded."""
    prefilled: float
    learned: float


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one step; a multiplication and an addition are two."""

    decode: float
    prefill: float
    learn: float
