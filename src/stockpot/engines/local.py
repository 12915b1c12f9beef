"""One process, one device: the policy samples with the reference sampler and learns in place."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stockpot import batching, fused, lora
from stockpot.algorithms.base import ActorCritic
from stockpot.config import Config
from stockpot.critic import Critic
from stockpot.engines.base import Engine, Lesson
from stockpot.engines.shared import micro_batches, policy_model
from stockpot.models import load_model, load_tokenizer, pick_device, stop_tokens
from stockpot.policy import Policy, Update
from stockpot.prefixes import LiveRule
from stockpot.samplers.torch import TorchSampler
from stockpot.snapshots import Snapshots
from stockpot.types import Author, Request, Rollout, StockpotError

LATE = "writer"
"""Folder, in a checkpoint, of the weights that write where they are refreshed only every few steps."""


class LocalEngine(Engine):
    """`weights` is the folder or hub id that the policy starts from; `origin` the one a frozen reference is.

    Snapshots of the past are kept where the prefix rule wants them, in memory or in `scratch`; without it, never, and
    neither is there a critic: what only reads a run needs none.
    """

    def __init__(
        self, config: Config, run: str, weights: str, origin: str, version: int = 0, scratch: Path | None = None
    ) -> None:
        self.config = config
        self.tokenizer = load_tokenizer(origin)
        device = pick_device(config.device)
        self.pad = self.tokenizer.pad_token_id or 0
        self.policy = Policy(policy_model(config, weights, origin, device), config.learner, run=run, pad=self.pad)
        self.version = self.policy.version = version
        if isinstance(config.algorithm, ActorCritic) and scratch is not None:
            self.policy.critic = Critic(config.algorithm.critic, self.policy.model)
        if version > 0:
            self.policy.restore(Path(weights))
        if config.needs_reference and self.policy.reference is None:
            moves = config.kl.reference != "frozen"
            own = lora.Reference(self.policy.model, moves) if config.learner.lora.rank else load_model(origin, device)
            self.policy.reference = own
        self.context = getattr(self.policy.model.config, "max_position_embeddings", 0) or 0
        self.stops = stop_tokens(self.policy.model, self.tokenizer)
        self.sampler = self._sampler(self.policy.model)
        self.snapshots: Snapshots | None = None
        self._others: dict[int, TorchSampler] = {}
        self.late = Snapshots(1) if config.refresh_every > 1 else None
        if self.late is not None:
            self.late.restore(Path(weights) / LATE) if version > 0 else self.late.take(0, self.policy.model)
        rule = config.prefixes
        if isinstance(rule, LiveRule) and scratch is not None:
            self.snapshots = Snapshots(rule.keep, scratch if rule.where == "disk" else None)
            self.snapshots.restore(Path(weights)) if version > 0 else self.snapshots.take(0, self.policy.model)

    def _sampler(self, model: Any) -> TorchSampler:
        author, rows = self.policy.author, self.config.decode_rows
        return TorchSampler(model, author=author, stop_tokens=self.stops, pad=self.pad, max_rows=rows)

    @property
    def past(self) -> Sequence[int]:
        return self.snapshots.versions if self.snapshots else ()

    def sample(self, requests: Sequence[Request], seed: int, version: int | None = None) -> list[Rollout]:
        if version is None or version == self.version:
            self.sampler.author = self.policy.author
            return self.sampler.continue_(requests, seed)
        if self.late is not None and version in self.late.versions:
            return self._by_past(requests, seed, self.late, version)
        if self.snapshots is None or version not in self.past:
            raise StockpotError(f"version {version} cannot write any more: kept are {list(self.past)}.")
        return self._by_past(requests, seed, self.snapshots, version)

    def _by_past(self, requests: Sequence[Request], seed: int, snapshots: Snapshots, version: int) -> list[Rollout]:
        """Continuations by an older version: in a model of its own, or by the policy's with the older adapter in it."""
        if lora.adapted(self.policy.model):
            with lora.borrowed(self.policy.model):
                snapshots.load(version, self.policy.model)
                self.sampler.author = Author(self.policy.run, version)
                return self.sampler.continue_(requests, seed)
        place = id(snapshots)
        self._others[place] = self._load(self._others.get(place), snapshots, version)
        return self._others[place].continue_(requests, seed)

    def _load(self, sampler: TorchSampler | None, snapshots: Snapshots, version: int) -> TorchSampler:
        """A sampler with the weights of that version: the one given, or a new one with a model of its own."""
        author = Author(self.policy.run, version)
        fresh = sampler is None
        if sampler is None:
            model = copy.deepcopy(self.policy.model).eval().requires_grad_(False)
            fused.speed_up(model)
            sampler = self._sampler(model)
        if fresh or sampler.author != author:
            snapshots.load(version, sampler.model)
            sampler.author = author
        return sampler

    def score(self, rollouts: Sequence[Rollout], of: Literal["policy", "reference", "critic"]) -> list[Tensor]:
        return self.policy.score(rollouts, of)

    def learn(self, lesson: Lesson, seed: int) -> Update:
        torch.manual_seed(seed)
        batches = micro_batches(self.config, self.policy, lesson, range(len(lesson.rollouts)))
        totals = batching.totals(lesson.rollouts, self.config.max_tokens)
        return self.policy.update(batches, self.config.algorithm, totals, self.config.entropy, self.config.kl)

    def advance(self, version: int) -> None:
        kl = self.config.kl
        if self.config.needs_reference and kl.move(version):
            self.policy.move_reference(kl.move(version))
        self.version = self.policy.version = version
        if self.late is not None and version % self.config.refresh_every == 0:
            self.late.take(version, self.policy.model)
        rule = self.config.prefixes
        if self.snapshots is not None and isinstance(rule, LiveRule) and version % rule.every == 0:
            self.snapshots.take(version, self.policy.model)

    def save(self, folder: Path) -> None:
        self.policy.save(folder)
        if self.snapshots is not None:
            self.snapshots.save(folder)
        if self.late is not None:
            (folder / LATE).mkdir()
            self.late.save(folder / LATE)
        self.tokenizer.save_pretrained(folder)
