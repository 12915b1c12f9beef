"""The model that learns: log-probs in chunks, the optimiser's step, the reference, saving and restoring."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stockpot import batching, diagnostics, ops
from stockpot.algorithms.base import Algorithm, denominator
from stockpot.regularizers import KL, EntropyBonus
from stockpot.types import Author, Batch, Rollout, Sampling, StockpotError, Totals


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
    """Budget of one forward and backward pass, padding included; never changes the result."""
    logits_mb: int = 256
    """Most memory for logits and their gradient at any time: longer streams go in chunks, recomputed backward."""
    gradient_checkpointing: bool = False
    """Recompute activations backward: less memory, a third more time."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.tokens_per_pass < 1 or self.logits_mb < 1:
            raise StockpotError("learner.learning_rate, tokens_per_pass and logits_mb must be above 0.")


@dataclass
class Update:
    """What one optimiser step did."""

    metrics: dict[str, float] = field(default_factory=dict)
    skipped: str = ""
    """Why no step was taken; empty when one was."""


class Policy:
    """Any causal language model of transformers, seen as a policy with a version."""

    def __init__(self, model: Any, learner: Learner, *, run: str = "", pad: int = 0) -> None:
        self.model, self.learner, self.run, self.pad = model, learner, run, pad
        self.version = 0
        self.skipped_steps = 0
        self.reference: Any = None
        self.backbone, self.head = split_model(model)
        if learner.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=learner.learning_rate, betas=(learner.beta1, learner.beta2),
            weight_decay=learner.weight_decay, fused=parameters[0].device.type in ("cpu", "cuda"),
        )

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def author(self) -> Author:
        return Author(self.run, self.version)

    # --- log-probs -------------------------------------------------------------------------------------------------

    def log_probs(self, batch: Batch, *, model: Any = None, entropy_grad: bool = False) -> tuple[Tensor, Tensor]:
        """log pi [N] of the batch's tokens under the distribution each was drawn from, and the entropy [N] there.

        Only positions that predict a response token reach the head, a chunk at a time, so that no tensor of
        [tokens x vocabulary] outgrows `logits_mb`; chunks are recomputed in the backward pass.
        """
        backbone, head = (self.backbone, self.head) if model is None else split_model(model)
        inputs: dict[str, Any] = {"input_ids": batch.ids, "use_cache": False}
        if batch.packed:
            inputs |= {"attention_mask": batching.attention_blocks(batch), "position_ids": batch.positions}
        with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=batch.ids.device.type == "cuda"):
            hidden = backbone(**inputs).last_hidden_state[batch.row, batch.column - 1]
            pieces = [
                self._score(head, hidden[part], batch.tokens[part], batch.sampling[part], batch.samplings, entropy_grad)
                for part in self._chunks(len(batch.tokens))
            ]
        return torch.cat([p for p, _ in pieces]), torch.cat([e for _, e in pieces])

    def _chunks(self, count: int) -> Iterator[slice]:
        size = max(1, int(self.learner.logits_mb * 2**20 / (8 * self.model.config.vocab_size)))
        return (slice(start, start + size) for start in range(0, max(count, 1), size))

    def _score(
        self, head: Callable[[Tensor], Tensor], hidden: Tensor, tokens: Tensor, which: Tensor,
        samplings: tuple[Sampling, ...], entropy_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        def score(hidden: Tensor) -> tuple[Tensor, Tensor]:
            logits = head(hidden).float() if hidden.dtype != torch.float64 else head(hidden)
            if len(samplings) == 1:
                logits = ops.process_logits(logits, samplings[0], keep=tokens)
            else:
                processed = torch.empty_like(logits)
                for i, sampling in enumerate(samplings):
                    rows = (which == i).nonzero().squeeze(-1)
                    processed = processed.index_copy(
                        0, rows, ops.process_logits(logits[rows], sampling, keep=tokens[rows])
                    )
                logits = processed
            log_probs, entropy = ops.log_prob_and_entropy(logits, tokens)
            return log_probs, entropy if entropy_grad else entropy.detach()

        if not torch.is_grad_enabled() or len(tokens) * self.model.config.vocab_size * 8 <= 2**24:
            return score(hidden)
        return checkpoint(score, hidden, use_reentrant=False)  # type: ignore[no-any-return]

    @torch.no_grad()
    def score(self, rollouts: Sequence[Rollout], of: Literal["policy", "reference"]) -> list[Tensor]:
        """Log-probs of each rollout's response tokens, by the policy as it is or by its reference."""
        lengths = [len(r.prompt.tokens) + len(r) for r in rollouts]
        scored: list[Tensor] = [torch.empty(0)] * len(rollouts)
        for chosen in batching.split(lengths, self.learner.tokens_per_pass):
            batch = batching.collate([rollouts[i] for i in chosen], [0.0] * len(chosen), pad=self.pad, device=self.device)
            log_probs, _ = self.log_probs(batch, model=None if of == "policy" else self.reference)
            for i, piece in zip(chosen, log_probs.split([len(rollouts[i]) for i in chosen]), strict=True):
                scored[i] = piece
        return scored

    # --- learning --------------------------------------------------------------------------------------------------

    def update(
        self, batches: Sequence[Batch], algorithm: Algorithm, totals: Totals,
        entropy_bonus: EntropyBonus = EntropyBonus(), kl: KL = KL(),
    ) -> Update:
        """One optimiser step over all micro-batches. A loss or gradient that is not finite skips it, and says so."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        views: list[diagnostics.View] = []
        whole_loss, whole_kl, skipped = 0.0, 0.0, ""
        tokens = float(max(totals.tokens, 1))
        for batch in batches:
            log_probs, entropy = self.log_probs(batch, entropy_grad=entropy_bonus.coefficient != 0)
            terms = algorithm.loss(log_probs, batch)
            loss = ops.reduce(terms.loss, batch.trained, denominator(algorithm.normalise, batch, totals))
            if entropy_bonus.coefficient != 0:
                loss = loss + ops.reduce(entropy_bonus.term(entropy), batch.trained, tokens)
            if batch.reference_log_probs is not None:
                distance = ops.kl(log_probs.detach(), batch.reference_log_probs, "k3")
                whole_kl += float(ops.reduce(distance, batch.trained, tokens))
                if kl.active and not kl.in_advantage:
                    loss = loss + ops.reduce(kl.term(log_probs, batch), batch.trained, tokens)
            if not math.isfinite(loss.item()):
                skipped = f"the loss is {loss.item()}"
                break
            loss.backward()
            whole_loss += loss.item()
            views.append(diagnostics.view(log_probs, entropy, terms, batch))
        norm = math.nan if skipped else self._step()
        if not skipped and not math.isfinite(norm):
            skipped = f"the gradient's norm is {norm}"
        self.skipped_steps += bool(skipped)
        metrics = {"loss": whole_loss, "grad_norm": norm, "skipped_steps": float(self.skipped_steps)}
        if kl.active:
            metrics["kl_to_reference"] = whole_kl
        return Update(metrics if skipped else metrics | diagnostics.summarise(views), skipped)

    def _step(self) -> float:
        warm = min(1.0, (self.version + 1) / (self.learner.warmup + 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learner.learning_rate * warm
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.learner.max_grad_norm))
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    # --- the reference ---------------------------------------------------------------------------------------------

    def keep_reference(self) -> None:
        """Remember the policy as it is now as the reference."""
        self.reference = copy.deepcopy(self.model).eval().requires_grad_(False)

    @torch.no_grad()
    def move_reference(self, rate: float) -> None:
        """reference += rate * (policy - reference)."""
        for old, new in zip(self.reference.parameters(), self.model.parameters(), strict=True):
            old.lerp_(new, rate)

    # --- save and restore ------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Weights as Hugging Face does, the optimiser's state and the reference beside them; no pickle anywhere."""
        self.model.save_pretrained(folder)
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        state = self.optimizer.state_dict()["state"]
        tensors = {f"{key}/{names[i]}": value for i, entry in state.items() for key, value in entry.items()}
        save_file(tensors, folder / "optimizer.safetensors")
        if self.reference is not None:
            save_file(dict(self.reference.named_parameters()), folder / "reference.safetensors")

    def restore(self, folder: Path) -> None:
        """Everything that `save` wrote except the weights, which the model was loaded with."""
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(folder / "optimizer.safetensors").items():
            kind, name = key.split("/", 1)
            state.setdefault(names.index(name), {})[kind] = value
        packed = self.optimizer.state_dict()
        self.optimizer.load_state_dict(packed | {"state": state})
        if (folder / "reference.safetensors").exists():
            self.keep_reference()
            stored = load_file(folder / "reference.safetensors")
            with torch.no_grad():
                for name, parameter in self.reference.named_parameters():
                    parameter.copy_(stored[name])


def split_model(model: Any) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """(backbone, head): the head turns hidden states into logits, with the cap or scale some families apply."""
    embedding = model.get_output_embeddings()
    config = model.config
    cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)

    def head(hidden: Tensor) -> Tensor:
        logits = embedding(hidden)
        logits = logits if scale == 1.0 else logits * scale
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return model.get_decoder(), head
