"""The words of a plan: what it takes for granted, what is not known before a run, and the lines of its account."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stockpot.plan.devices import SHEETS
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

DEVICES = {name: round(sheet.memory * GB) for name, sheet in SHEETS.items()}
"""Memory by the maker's data sheet; `cpu` is this machine's."""

STEP_MS = {"engine": 0.05, "reference": 0.5, "cpu": 0.15}
"""Overhead of a decoding step for each layer: of an engine that replays kernels, the reference sampler, and a CPU."""
PASS_MS = {"gpu": 1.0, "cpu": 0.5}
"""Overhead of a pass, forward and backward, for each layer."""
ENGINE_TOKENS = 8192
"""Tokens of a pass in which an engine reads contexts."""

Phase = Literal["always", "sampling", "learning"]


@dataclass(frozen=True)
class Assumed:
    """What nobody knows before a run, and what a device makes of its peaks. Printed with every plan."""

    longest_prompt: int = 1024
    """Tokens of the longest prompt (what is left of the model's context, where that is less)."""
    mean_prompt: int = 128
    """Tokens of a prompt, in the mean."""
    response: float = 0.5
    """Share of max_tokens that a response has, in the mean."""
    reserve: float = 0.08
    """Share of the device's memory kept for its driver, and for gaps between tensors."""
    lengths: Literal["lognormal", "geometric", "fixed"] = "lognormal"
    """How lengths spread around their mean; cut at max_tokens."""
    spread: float = 0.7
    """Standard deviation of the logarithm of a length, with lognormal."""
    mfu: float = 0.4
    """Share of the peak that learning reaches, recomputation counted as work."""
    reached: float = 0.7
    """Share of peak and bandwidth that decoding and reading contexts reach."""
    step_ms: float | None = None
    """Milliseconds of overhead for each decoding step; None: so much for each layer (`STEP_MS`)."""
    pass_ms: float | None = None
    """Milliseconds of overhead for each pass over contexts or rollouts; None: so much for each layer (`PASS_MS`)."""
    reward_ms: float = 1.0
    """Milliseconds of judging a rollout, on one processor for each device."""
    peak_tflops: float = 0.0
    """10^12 operations a second of the device; 0: by its data sheet, of the processor here measured."""
    bandwidth: float = 0.0
    """GB a second of the device's memory; 0 as above."""
    link: float = 0.0
    """GB a second between devices; 0 as above."""

    def __post_init__(self) -> None:
        if not 0 < self.response <= 1 or not 0 <= self.reserve < 1:
            raise StockpotError("--response must lie above 0 and up to 1, --reserve in 0..1.")
        if self.longest_prompt < 1 or self.mean_prompt < 1:
            raise StockpotError("--longest-prompt and --mean-prompt must be at least 1.")
        if not 0 < self.mfu <= 1 or not 0 < self.reached <= 1:
            raise StockpotError("--mfu and --reached are shares of a peak: they must lie above 0 and up to 1.")
        others = (self.step_ms or 0, self.pass_ms or 0, self.reward_ms, self.peak_tflops, self.bandwidth, self.link)
        if not self.spread > 0 or min(others) < 0:
            raise StockpotError("--spread must be above 0; times, peaks and bandwidths must not be below 0.")


@dataclass(frozen=True)
class Part:
    """One line of the account of memory."""

    name: str
    phase: Phase
    bytes: float
    how: str
    """The product that it is."""


class State(Part):
    """A part that belongs to the learner's own state, which FSDP2 divides among learners."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of one step."""

    rollouts: int
    prefixed: int
    """Rollouts that begin with a prefix, once there is a history."""
    decoded_most: float
    decoded: float
    saved: float
    """Prefix tokens that need no decoding: from the history, or from outside."""
    heads: float
    """Prefix tokens that past policies decode in the same step."""
    prefilled: float
    learned: float


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one step; a multiplication and an addition are two."""

    decode: float
    prefill: float
    learn: float
