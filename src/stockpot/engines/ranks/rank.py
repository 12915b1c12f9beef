"""One learner process of a group. All of them are told the same, at the same time, and each does its share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from stockpot import batching, lora
from stockpot.algorithms.base import ActorCritic
from stockpot.alone import Alone
from stockpot.config import Config
from stockpot.critic import Critic
from stockpot.engines.base import Lesson
from stockpot.engines.ranks import pieces
from stockpot.engines.ranks.group import Copied, Group, Sharded, meet, place
from stockpot.engines.ranks.shares import shares
from stockpot.engines.shared import micro_batches, policy_model
from stockpot.models import load_model, load_tokenizer, pick_device
from stockpot.policy import Policy, Update
from stockpot.types import Rollout, StockpotError


class Rank:
    """A learner. `weights` is the folder that the policy starts from, `origin` the one a frozen reference is.

    `meeting` is where the processes find each other, as `torch.distributed.init_process_group` takes it:
    "tcp://HOST:PORT" or "file:///PATH". Every method is for all of them to call, with the same arguments, or they wait
    for each other; only one that is alone needs no meeting.
    """

    def __init__(
        self,
        config: Config,
        run: str,
        weights: str,
        origin: str,
        version: int = 0,
        *,
        rank: int = 0,
        world: int = 1,
        meeting: str = "",
    ) -> None:
        critic = config.algorithm.critic if isinstance(config.algorithm, ActorCritic) else None
        if world > 1 and critic is not None and critic.kind == "separate":
            raise StockpotError("a separate critic learns in one process only: set algorithm.critic.kind to head.")
        torch.set_num_threads(config.threads)
        self.config, self.rank, self.world = config, rank, world
        self.tokenizer = load_tokenizer(origin)
        device = place(config.device, rank) if world > 1 else pick_device(config.device)
        sharded = world > 1 and config.learner.parallel == "fsdp"
        home = torch.device("cpu") if sharded else device  # a model in pieces never lies whole on a GPU
        model = policy_model(config, weights, origin, home, device.type)
        self._mark = lora.fingerprint(model) if lora.adapted(model) else ""
        self.group = self._join(device, meeting, sharded)
        pad = self.tokenizer.pad_token_id or 0
        self.policy = Policy(model, config.learner, run=run, pad=pad, group=self.group)
        self.version = self.policy.version = version
        if critic is not None:
            self.policy.critic = Critic(critic, self.policy.model)
        if config.needs_reference:
            moves = config.kl.reference != "frozen"
            own = lora.Reference(self.policy.model, moves) if config.learner.lora.rank else load_model(origin, home)
            self.policy.reference = own
        if version > 0:
            pieces.restore(self.policy, Path(weights)) if sharded else self.policy.restore(Path(weights))

    def _join(self, device: torch.device, meeting: str, sharded: bool) -> Alone:
        if self.world == 1:
            return Alone()
        meet(meeting, self.rank, self.world, device)
        return (Sharded if sharded else Copied)(self.config.learner, device, self.rank, self.world)

    def learn(self, lesson: Lesson, seed: int) -> Update:
        """One optimiser step. Each takes its share of the rollouts; what is not finite on one skips it on all."""
        torch.manual_seed(seed)
        batches = micro_batches(self.config, self.policy, lesson, self._mine(lesson.rollouts)[self.rank])
        totals = batching.totals(lesson.rollouts, self.config.max_tokens)
        return self.policy.update(batches, self.config.algorithm, totals, self.config.entropy, self.config.kl)

    def _mine(self, rollouts: Sequence[Rollout]) -> list[list[int]]:
        return shares([len(r.prompt.tokens) + len(r) for r in rollouts], self.world)

    def score(self, rollouts: Sequence[Rollout], of: Literal["policy", "reference", "critic"]) -> list[Tensor]:
        """Log-probs of each rollout's response tokens, or the critic's values: all of them, on all learners."""
        if not isinstance(self.group, Group):
            return self.policy.score(rollouts, of)
        parts = self._mine(rollouts)
        own = [piece.cpu() for piece in self.policy.score([rollouts[i] for i in parts[self.rank]], of)]
        found = [torch.empty(0)] * len(rollouts)
        for chosen, scored in zip(parts, self.group.gather(own), strict=True):
            for i, piece in zip(chosen, scored, strict=True):
                found[i] = piece
        return found

    def advance(self, version: int) -> None:
        """Close a step: the policy has a new version, and the reference moves when it is time."""
        kl = self.config.kl
        if self.config.needs_reference and kl.move(version):
            self.policy.move_reference(kl.move(version))
        self.version = self.policy.version = version

    def weights(self) -> dict[str, Tensor]:
        """What training moves, whole and on the CPU, by the model's own names: on rank 0, {} elsewhere.

        Of a model with an adapter, the adapter's tensors alone, by the names that `lora.moving` gives them.
        """
        moving = lora.moving(self.policy.model)
        if isinstance(self.group, Group):
            return self.group.whole(moving)
        return {name: p.detach().to("cpu", copy=True) for name, p in moving}

    def save(self, folder: Path) -> None:
        """Write weights, optimiser and reference into a folder that exists and all learners see."""
        if isinstance(self.group, Sharded):
            pieces.save(self.policy, self.group, folder, self._mark)
        elif self.rank == 0:
            self.policy.save(folder)
        if self.rank == 0:
            self.tokenizer.save_pretrained(folder)
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the group."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()
