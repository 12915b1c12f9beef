"""How a policy takes a step, and what a step did: options and results, without a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from stockpot.lora import LoRA
from stockpot.types import StockpotError


@dataclass(frozen=True)
class Learner:
    """How a policy takes a step."""

    learning_rate: float = 1e-4
    """AdamW's learning rate."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    beta1: float = 0.9
    """AdamW's memory of gradients."""
    beta2: float = 0.99
    """AdamW's memory of squared gradients."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    tokens_per_pass: int = 8192
    """Budget of one pass, padding included; never changes the result. A CPU likes a thousand or two, a GPU more."""
    logits_mb: int = 256
    """Most memory for logits and their gradients at any time: longer streams go in chunks, recomputed backward."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What matrices are multiplied in; weights and optimiser stay in float32. auto: bfloat16 on a GPU, else float32."""
    gradient_checkpointing: bool = False
    """Recompute activations backward: less memory, a third more time."""
    lora: LoRA = LoRA()
    """Train an adapter, not the model's own weights."""
    parallel: Literal["fsdp", "ddp"] = "fsdp"
    """Of several learners. fsdp: each holds a part of weights, gradients and optimiser state; ddp: each holds all."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.tokens_per_pass < 1 or self.logits_mb < 1:
            raise StockpotError("learner.learning_rate, tokens_per_pass and logits_mb must be above 0.")

    def mixed(self, device: str) -> bool:
        """Whether matrices are multiplied in bfloat16 on this kind of device."""
        return self.dtype == "bfloat16" or (self.dtype == "auto" and device == "cuda")


@dataclass
class Update:
    """What one optimiser step did."""

    metrics: dict[str, float] = field(default_factory=dict)
    skipped: str = ""
    """Why no step was taken; empty when one was."""
