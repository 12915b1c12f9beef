"""The model that learns: log-probs in chunks, the optimiser's step, the reference, saving and restoring."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from stockpot import batching, diagnostics, fused, lora, moments, ops, scoring
from stockpot.algorithms.base import Algorithm, denominator
from stockpot.alone import Alone, Found
from stockpot.critic import Critic
from stockpot.learner import Learner as Learner
from stockpot.learner import Update as Update
from stockpot.regularizers import KL, EntropyBonus
from stockpot.scoring import split_model
from stockpot.types import Author, Batch, Rollout, Totals


class Policy:
    """Any causal language model of transformers, seen as a policy with a version."""

    def __init__(self, model: Any, learner: Learner, *, run: str = "", pad: int = 0, group: Alone = Alone()) -> None:
        self.model, self.learner, self.run, self.pad, self.group = model, learner, run, pad, group
        self.version = 0
        self.skipped_steps = 0
        self._reference: Any = None
        self.critic: Critic | None = None
        lora.adapt(model, learner.lora)
        if any(p.requires_grad and p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()):
            model.float()  # a step of 1e-4 is lost on a weight that has 8 bits
        if group.on_cpu(model):
            fused.speed_up(model)
        group.settle(model)
        self.backbone, self.head = split_model(model)
        if learner.gradient_checkpointing:
            name = "activation_checkpointing_enable"  # the newer of its two names
            getattr(model, name, model.gradient_checkpointing_enable)({"use_reentrant": False})
        model.eval()
        with self.precision():
            scoring.check_head(model)
        group.rest(model)
        parameters = [p for _, p in moments.trained(model)]
        self.optimizer = torch.optim.AdamW(
            parameters,
            lr=learner.learning_rate,
            betas=(learner.beta1, learner.beta2),
            weight_decay=learner.weight_decay,
            fused=parameters[0].device.type in ("cpu", "cuda"),
        )

    @contextmanager
    def precision(self, model: Any = None) -> Iterator[None]:
        """Within, the policy (or `model`) runs as it does for learning: in bfloat16 where `learner.dtype` says so."""
        kind = self.device.type
        half = self.learner.mixed(kind)
        attention = fused.attention(model or self.model) if half and kind == "cpu" else nullcontext()
        with torch.autocast(kind, torch.bfloat16, enabled=half), attention:
            yield

    @property
    def device(self) -> torch.device:
        return torch.device(next(self.model.parameters()).device)

    @property
    def reference(self) -> Any:
        """What a KL is measured against, a model or a `lora.Reference`; None until there is one. A model is frozen."""
        return self._reference

    @reference.setter
    def reference(self, model: Any) -> None:
        """Run by the same code as the policy, so that equal weights give equal bits, and a KL of exactly 0."""
        self._reference = model
        if model is not None and not isinstance(model, lora.Reference):
            model.eval().requires_grad_(False)
            if self.group.on_cpu(model):
                fused.speed_up(model)
            self.group.settle(model)

    @property
    def author(self) -> Author:
        return Author(self.run, self.version)

    # --- log-probs -------------------------------------------------------------------------------------------------

    def hidden(self, batch: Batch, backbone: Any = None) -> Tensor:
        """[N, H] the last hidden state at each position that predicts a response token, of the policy or another."""
        inputs: dict[str, Any] = {"input_ids": batch.ids, "use_cache": False}
        if batch.packed:
            inputs |= {"attention_mask": batching.attention_blocks(batch), "position_ids": batch.positions}
        states: Tensor = (self.backbone if backbone is None else backbone)(**inputs).last_hidden_state
        return states[batch.row, batch.column - 1]

    def log_probs(
        self, batch: Batch, *, model: Any = None, entropy_grad: bool = False, hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """log pi [N] of the batch's tokens under the distribution each was drawn from, and the entropy [N] there.

        Only positions that predict a response token reach the head, a chunk at a time, so that no tensor of
        [tokens x vocabulary] outgrows `logits_mb`; chunks are recomputed in the backward pass.
        """
        backbone, head = (self.backbone, self.head) if model is None else split_model(model)
        with self.precision(model):
            hidden = self.hidden(batch, backbone) if hidden is None else hidden
            return scoring.log_probs_and_entropy(
                head,
                hidden,
                batch.tokens,
                batch.sampling,
                batch.samplings,
                entropy_grad=entropy_grad,
                vocabulary=self.model.get_output_embeddings().weight.shape[0],
                limit=self.learner.logits_mb * 2**20,
            )

    def values(self, batch: Batch, hidden: Tensor | None = None) -> Tensor:
        """[N] what the critic expects before each response token; `hidden` where the policy's are at hand."""
        assert self.critic is not None
        own = self.critic.backbone
        if own is not None or hidden is None:
            with self.precision(own):
                hidden = self.hidden(batch, own)
        return self.critic(hidden)

    @torch.no_grad()
    def score(self, rollouts: Sequence[Rollout], of: Literal["policy", "reference", "critic"]) -> list[Tensor]:
        """Log-probs of each rollout's response tokens, by the policy or its reference; or the critic's values."""
        lengths = [len(r.prompt.tokens) + len(r) for r in rollouts]
        scored: list[Tensor] = [torch.empty(0)] * len(rollouts)
        for chosen in self.group.passes(list(batching.split(lengths, self.learner.tokens_per_pass))):
            some = [rollouts[i] for i in chosen or ()] or [batching.FILLER]
            batch = batching.collate(some, [0.0] * len(some), pad=self.pad, device=self.device)
            with lora.dressed(self.reference if of == "reference" else None) as model:
                found = self.values(batch) if of == "critic" else self.log_probs(batch, model=model)[0]
            for i, piece in zip(chosen or (), torch.split(found, [len(rollout) for rollout in some]), strict=False):
                scored[i] = piece
        self.group.rest(self.model, self.reference)
        return scored

    # --- learning --------------------------------------------------------------------------------------------------

    def update(
        self,
        batches: Sequence[Batch],
        algorithm: Algorithm,
        totals: Totals,
        entropy_bonus: EntropyBonus = EntropyBonus(),
        kl: KL = KL(),
        watch: bool = True,
    ) -> Update:
        """One optimiser step over all micro-batches; `watch` for diagnostics. What is not finite skips it, told so."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        if (critic := self.critic) is not None:
            critic.begin()
        distant = kl.active or algorithm.needs_reference
        found = Found({"loss": 0.0} | ({"kl_to_reference": 0.0} if distant else {}))
        with self.precision():  # around all passes, so that weights are cast to bfloat16 once
            for batch in self.group.passes(batches):
                if batch is None:
                    self._nothing()
                elif not self._learn(batch, algorithm, totals, entropy_bonus, kl, watch, found):
                    break
        self.group.rest(self.model)
        found = self.group.pool(found if critic is None else critic.tell(found))
        norm, skipped = math.nan if found.skipped else self._step(), found.skipped
        if not skipped and not math.isfinite(norm):
            skipped = f"the gradient's norm is {norm}"
        self.optimizer.zero_grad(set_to_none=True)
        self.model.eval()
        self.skipped_steps += bool(skipped)
        values = critic.end(found) if critic is not None else {}
        metrics = found.sums | diagnostics.told(found.notes)
        metrics |= {"grad_norm": norm, "skipped_steps": float(self.skipped_steps)} | values
        return Update(metrics | (diagnostics.summarise(found.views) if found.views and not skipped else {}), skipped)

    def _learn(
        self,
        batch: Batch,
        algorithm: Algorithm,
        totals: Totals,
        entropy_bonus: EntropyBonus,
        kl: KL,
        watch: bool,
        found: Found,
    ) -> bool:
        """One micro-batch, forward and backward; whether to go on to the next."""
        critic = self.critic
        hidden = self.hidden(batch)
        log_probs, entropy = self.log_probs(batch, entropy_grad=entropy_bonus.coefficient != 0, hidden=hidden)
        terms = algorithm.loss(log_probs, batch)
        loss = ops.reduce(terms.loss, batch.trained, denominator(algorithm.normalise, batch, totals))
        loss = loss + self._regularisers(log_probs, entropy, batch, totals, entropy_bonus, kl, found.sums)
        if critic is not None and critic.backbone is None:
            loss = loss + critic.loss(self.values(batch, hidden), batch, totals)
        if not found.add(loss.item()) and self.group.world == 1:  # others wait for this one's gradients
            return False
        found.views += [diagnostics.view(log_probs, entropy, terms, batch)] if watch else []
        found.notes.append(terms.figures)
        self.group.backward(loss)
        if critic is not None and critic.backbone is not None:  # now, when the policy's activations are gone
            self.group.backward(critic.loss(self.values(batch), batch, totals))
        return True

    def _nothing(self) -> None:
        """A pass that changes nothing, where others of the group have one more than this learner."""
        batch = batching.collate([batching.FILLER], [0.0], pad=self.pad, device=self.device)
        self.group.backward(0.0 * self.log_probs(batch, hidden=self.hidden(batch))[0].sum())

    def _regularisers(
        self,
        log_probs: Tensor,
        entropy: Tensor,
        batch: Batch,
        totals: Totals,
        entropy_bonus: EntropyBonus,
        kl: KL,
        sums: dict[str, float],
    ) -> Tensor | float:
        """What the entropy bonus and the KL add to the loss; the KL's size is summed on the way."""
        added: Tensor | float = 0.0
        tokens = float(max(totals.tokens, 1))
        if entropy_bonus.coefficient != 0:
            added = added + ops.reduce(entropy_bonus.term(entropy), batch.trained, tokens)
        if "kl_to_reference" in sums and batch.reference_log_probs is not None:
            distance = ops.kl(log_probs.detach(), batch.reference_log_probs, "k3")
            sums["kl_to_reference"] += float(ops.reduce(distance, batch.trained, tokens))
            if kl.active and not kl.in_advantage:
                added = added + ops.reduce(kl.term(log_probs, batch), batch.trained, tokens)
        return added

    def _step(self) -> float:
        warm = min(1.0, (self.version + 1) / (self.learner.warmup + 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learner.learning_rate * warm
        norm = self.group.clip(self.model, self.learner.max_grad_norm)
        if self.critic is None:
            self.optimizer.step() if math.isfinite(norm) else None
            return norm
        self.group.reduce(p for _, p in self.critic.parameters())
        if not math.isfinite(norm + self.critic.norm()):  # both step, or neither
            return math.nan
        self.critic.optimizer.step()
        if self.version >= self.critic.options.warmup:
            self.optimizer.step()
        return norm

    @torch.no_grad()
    def move_reference(self, rate: float) -> None:
        """reference += rate * (policy - reference)."""
        for (_, old), (_, new) in zip(self.reference.named_parameters(), lora.moving(self.model), strict=True):
            old.lerp_(new, rate)

    # --- save and restore ------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Weights as Hugging Face does, the optimiser's state and the reference beside them; no pickle anywhere."""
        lora.save(self.model, folder) if lora.adapted(self.model) else self.model.save_pretrained(folder)
        tensors = moments.named(self.optimizer, moments.trained(self.model))
        # as tensors, since the order of safetensors' own notes changes from one writing to the next
        counts = {name: torch.tensor(getattr(self, name)) for name in COUNTS}
        save_file(tensors | counts, folder / OPTIMIZER)
        if self.reference is not None and (own := dict(self.reference.named_parameters())):
            save_file(own, folder / REFERENCE)
        if self.critic is not None:
            self.critic.save(folder)

    def restore(self, folder: Path) -> None:
        """Everything that `save` wrote but the weights, which the model was loaded with. All of it, or an error."""
        stored = moments.read(folder / OPTIMIZER)
        counts = {name: int(stored.pop(name, 0)) for name in COUNTS}
        state = moments.sorted_out(stored, moments.trained(self.model), folder / OPTIMIZER)
        reference = None
        if (folder / REFERENCE).exists() and (self.group.world == 1 or self.reference is not None):
            reference = lora.twin(self.model) if self.group.world == 1 else self.reference  # a group's is there
            moments.copy_into(list(reference.named_parameters()), moments.read(folder / REFERENCE), folder / REFERENCE)
        if self.critic is not None:
            self.critic.restore(folder)
        moments.remember(self.optimizer, state)
        self.version, self.skipped_steps = counts["version"], counts["skipped_steps"]
        self.reference = reference if reference is not None else self.reference


OPTIMIZER, REFERENCE = "optimizer.safetensors", "reference.safetensors"
COUNTS = ("version", "skipped_steps")
