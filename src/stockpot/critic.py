"""The critic: how much reward a prompt and the tokens written so far are worth. It learns beside the policy.

`head` reads the policy's own last hidden states, so that its loss reaches the policy's layers; `separate` has a model
of its own, a copy of the policy at the start. Either way the critic owns an optimiser for what is its own.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from stockpot import moments, ops
from stockpot.algorithms.base import CriticOptions
from stockpot.alone import Found
from stockpot.scoring import split_model
from stockpot.types import Batch, StockpotError, Totals

FILE, WEIGHT = "critic.safetensors", "weight/"
LOSS = "value/loss"


class Critic:
    """A value for each context. It begins with 0 everywhere, and needs no random numbers."""

    def __init__(self, options: CriticOptions, model: Any) -> None:
        self.options = options
        embedding = model.get_output_embeddings().weight
        self.backbone: Any = copy.deepcopy(split_model(model)[0]) if options.kind == "separate" else None
        """Its own model without a head; None where it reads the policy's."""
        dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)  # frozen weights may have less
        self.head = torch.nn.Linear(embedding.shape[1], 1, device=embedding.device, dtype=dtype)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.total = 0.0
        self.optimizer = torch.optim.AdamW(
            [p for _, p in self.parameters()], lr=options.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )

    def parameters(self) -> list[tuple[str, Tensor]]:
        """What its optimiser moves, by name."""
        own = [] if self.backbone is None else list(self.backbone.named_parameters(prefix="backbone"))
        return [(name, p) for name, p in [*self.head.named_parameters(prefix="head"), *own] if p.requires_grad]

    def __call__(self, hidden: Tensor) -> Tensor:
        """Hidden states [N, H] -> values [N], in full precision whatever the model ran in."""
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.head(hidden.to(self.head.weight.dtype)).squeeze(-1)
        return values

    # --- learning ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before an update: forget the last one."""
        self.optimizer.zero_grad(set_to_none=True)
        self.seen, self.total = [], 0.0
        if self.backbone is not None:
            self.backbone.train()

    def loss(self, values: Tensor, batch: Batch, totals: Totals) -> Tensor:
        """coefficient * the mean over the update's trained tokens of `value_terms`."""
        if batch.values is None or batch.returns is None:
            raise StockpotError("a critic learns from values and returns: the batch has none.")
        terms, clipped = value_terms(values, batch.values, batch.returns, self.options.clip)
        loss = ops.reduce(terms, batch.trained, float(max(totals.tokens, 1)))
        self.total += loss.item()
        rows = (values.detach(), batch.returns, clipped)
        self.seen.append(tuple(row[batch.trained].double().cpu() for row in rows))  # type: ignore[arg-type]
        return self.options.coefficient * loss

    def norm(self) -> float:
        """The norm of the gradient of its own weights, before it is cut."""
        own = [p for _, p in self.parameters()]
        return float(torch.nn.utils.clip_grad_norm_(own, self.options.max_grad_norm))

    def tell(self, found: Found) -> Found:
        """Put what this learner's critic saw beside what else its passes found."""
        found.values, found.sums[LOSS] = self.seen, self.total
        return found

    def end(self, found: Found) -> dict[str, float]:
        """After an update: what it did, out of what all learners found. `docs/metrics.md` explains each figure."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.backbone is not None:
            self.backbone.eval()
        metrics = {LOSS: found.sums.pop(LOSS)}
        if not found.values:
            return {}
        values, returns, clipped = (torch.cat(column) for column in zip(*found.values, strict=True))
        if len(values):
            metrics |= {"value/mean": float(values.mean()), "value/clipped": float(clipped.mean())}
            spread = float((returns - returns.mean()).square().mean())
            left = returns - values
            missed = float((left - left.mean()).square().mean())
            if spread > 1e-12 and math.isfinite(missed):
                metrics["value/explained_variance"] = 1 - missed / spread
        return metrics

    # --- save and restore -------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Its weights and its optimiser's state, in one file."""
        own = self.parameters()
        weights = {WEIGHT + name: p.detach() for name, p in own}
        save_file(weights | moments.named(self.optimizer, own), folder / FILE)

    def restore(self, folder: Path) -> None:
        """All that `save` wrote, or an error."""
        own, stored, path = self.parameters(), moments.read(folder / FILE), folder / FILE
        weights = {key[len(WEIGHT) :]: stored.pop(key) for key in list(stored) if key.startswith(WEIGHT)}
        state = moments.sorted_out(stored, own, path)
        moments.copy_into(own, weights, path)
        moments.remember(self.optimizer, state)


def value_terms(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """max((V - R)^2, (clip(V, V_old +- clip) - R)^2) / 2 for each entry, and where the clip took the gradient away."""
    plain = (values - returns).square() / 2
    if clip is None:
        return plain, torch.zeros_like(plain, dtype=torch.bool)
    bounded = (old + (values - old).clamp(-clip, clip) - returns).square() / 2
    return plain.maximum(bounded), (bounded > plain).detach()
