"""One process, one device: the policy samples with the reference sampler and learns in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stockpot import batching
from stockpot.config import Config
from stockpot.engines.base import Engine, Lesson
from stockpot.models import load_model, load_tokenizer, pick_device, stop_tokens
from stockpot.policy import Policy, Update
from stockpot.samplers.torch import TorchSampler
from stockpot.types import Request, Rollout


class LocalEngine(Engine):
    """`weights` is the folder or hub id that the policy starts from; `origin` the one a frozen reference is."""

    def __init__(self, config: Config, run: str, weights: str, origin: str, version: int = 0) -> None:
        self.config = config
        self.tokenizer = load_tokenizer(origin)
        device = pick_device(config.device)
        self.pad = self.tokenizer.pad_token_id or 0
        self.policy = Policy(load_model(weights, device), config.learner, run=run, pad=self.pad)
        self.version = self.policy.version = version
        if version > 0:
            self.policy.restore(Path(weights))
        if config.kl.active and self.policy.reference is None:
            self.policy.reference = load_model(origin, device).eval().requires_grad_(False)
        self.context = getattr(self.policy.model.config, "max_position_embeddings", 0) or 0
        self.sampler = TorchSampler(
            self.policy.model,
            author=self.policy.author,
            stop_tokens=stop_tokens(self.policy.model, self.tokenizer),
            pad=self.pad,
            max_rows=config.decode_rows,
        )

    def sample(self, requests: Sequence[Request], seed: int) -> list[Rollout]:
        self.sampler.author = self.policy.author
        return self.sampler.continue_(requests, seed)

    def score(self, rollouts: Sequence[Rollout], of: Literal["policy", "reference"]) -> list[Tensor]:
        return self.policy.score(rollouts, of)

    def learn(self, lesson: Lesson, seed: int) -> Update:
        torch.manual_seed(seed)
        lengths = [len(r.prompt.tokens) + len(r) for r in lesson.rollouts]
        batches = [
            self._collate(lesson, chosen) for chosen in batching.split(lengths, self.config.learner.tokens_per_pass)
        ]
        totals = batching.totals(lesson.rollouts, self.config.max_tokens)
        return self.policy.update(batches, self.config.algorithm, totals, self.config.entropy, self.config.kl)

    def _collate(self, lesson: Lesson, chosen: Sequence[int]) -> Any:
        reference = lesson.reference_log_probs
        return batching.collate(
            [lesson.rollouts[i] for i in chosen],
            [lesson.advantages[i] for i in chosen],
            run=self.policy.run,
            now=self.version,
            groups=[lesson.groups[i] for i in chosen],
            reference_log_probs=None if reference is None else [reference[i] for i in chosen],
            pad=self.pad,
            device=self.policy.device,
        )

    def advance(self, version: int) -> None:
        kl = self.config.kl
        if kl.active and kl.reference == "ema" and version % kl.every == 0:
            self.policy.move_reference(kl.rate)
        self.version = self.policy.version = version

    def save(self, folder: Path) -> None:
        self.policy.save(folder)
        self.tokenizer.save_pretrained(folder)
