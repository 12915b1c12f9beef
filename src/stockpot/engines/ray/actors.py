"""What runs in processes of its own: a sampler, a learner, a reward worker, the history."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import ray
import torch
from torch import Tensor
from transformers.utils import logging

from stockpot import sandbox
from stockpot.algorithms import Reinforce
from stockpot.as_json import from_json
from stockpot.config import Config
from stockpot.engines import pushed
from stockpot.engines.base import Lesson
from stockpot.engines.local import LocalEngine
from stockpot.engines.ranks import Rank
from stockpot.engines.ray.desk import Desk, Job, Stamp
from stockpot.engines.ray.session import Brief
from stockpot.engines.ray.weights import Box, pack, unpack
from stockpot.history import History
from stockpot.models import load_tokenizer
from stockpot.policy import Update
from stockpot.prefixes import NoPrefixes
from stockpot.regularizers import KL
from stockpot.rewards.score import score
from stockpot.samplers.base import ModelSampler
from stockpot.selection import Select
from stockpot.types import Request, Rollout, StockpotError

PATIENCE = 60.0
"""Seconds that a run waits for the last process of one before it in the same folder."""


class Actor:
    """What all have in common."""

    def __init__(self, brief: Brief) -> None:
        with suppress(OSError):
            os.chdir(brief.home)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        config = from_json(brief.config)
        assert isinstance(config, Config)
        self.brief, self.config = brief, config
        torch.set_num_threads(config.threads)

    def hello(self) -> dict[str, Any]:
        """Says that it is there, and who it is."""
        return {"pid": os.getpid()}


class SamplerActor(Actor):
    """Writes rollouts with weights that it is given; newer ones may come while it writes."""

    def __init__(self, brief: Brief) -> None:
        super().__init__(brief)
        plain = replace(  # the policy alone: no reference, critic or snapshots beside it
            self.config, algorithm=Reinforce(), kl=KL(), prefixes=NoPrefixes(), select=Select(), refresh_every=1
        )
        self.sampler: ModelSampler
        if plain.sampler == "vllm":  # which has the weights for itself: no second copy in torch
            self.sampler, self.context = pushed.alone(plain, brief.run, brief.origin)
        else:
            engine = LocalEngine(plain, brief.run, brief.origin, brief.origin)
            assert engine.sampler is not None
            self.sampler, self.context = engine.sampler, engine.context
        wide = plain.device != "cpu" and torch.cuda.is_available()
        self.desk = Desk(self.sampler, plain.decode_rows, plain.threads, wide, lambda box: unpack(ray.get(box[0])))

    def hello(self) -> dict[str, Any]:
        """With the longest sequence that the model reads."""
        return super().hello() | {"context": self.context}

    def tell(self, stamp: Stamp, box: list[Any]) -> None:
        """There are newer weights: what is being written goes on with them, where it may."""
        self.desk.tell((stamp, box))

    def write(
        self, requests: Sequence[Request], seed: int, stamp: Stamp, box: list[Any], follow: bool
    ) -> tuple[list[Rollout], float]:
        """A rollout for each request, and seconds of work. `follow`: newer weights are taken while it writes.

        Then a rollout has a span for each version that wrote a piece of it.
        """
        return self.desk.write(Job(requests, seed, (stamp, box), follow))


class LearnerActor(Actor):
    """One of the learners: all of them are called alike, and the first one's answer counts."""

    rank: Rank

    def meeting(self) -> str:
        """Where a group could meet: a free port of this machine."""
        with socket.socket() as door:
            door.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{door.getsockname()[1]}"

    def join(self, weights: str, version: int, rank: int, world: int, meeting: str) -> int:
        """Take up the policy, as one of so many; the number of this process."""
        brief = self.brief
        self.rank = Rank(
            self.config, brief.run, weights, brief.origin, version, rank=rank, world=world, meeting=meeting
        )
        return os.getpid()

    def learn(self, lesson: Lesson, seed: int) -> Update:
        """One optimiser step."""
        return self.rank.learn(lesson, seed)

    def score(self, rollouts: Sequence[Rollout], of: Literal["policy", "reference", "critic"]) -> list[Tensor]:
        """As `Engine.score`, on the CPU."""
        scored = [tensor.cpu() for tensor in self.rank.score(rollouts, of)]
        return scored if self.rank.rank == 0 else []

    def advance(self, version: int) -> None:
        """The policy has a new version."""
        self.rank.advance(version)

    def weights(self) -> Box:
        """What training moves, to be taken by samplers; of the first learner."""
        return pack(self.rank.weights())

    def save(self, folder: str) -> None:
        """Weights, optimiser and reference into a checkpoint."""
        self.rank.save(Path(folder))


class RewardActor(Actor):
    """Judges rollouts."""

    def __init__(self, brief: Brief) -> None:
        super().__init__(brief)
        self.tokenizer = load_tokenizer(brief.origin)

    def judge(self, rollouts: Sequence[Rollout]) -> tuple[list[float], int, dict[str, Any] | None]:
        """Their rewards, how many could not be judged, and what held the programs among them."""
        judged, unjudged = score(rollouts, self.config.task.reward, self.tokenizer)
        return [r.reward or 0.0 for r in judged], unjudged, sandbox.in_force()


class HistoryActor(Actor):
    """The one process that writes the store: it waits until one that a killed run has left behind is gone."""

    def __init__(self, brief: Brief, path: str, vocabulary: str) -> None:
        super().__init__(brief)
        self.door = os.open(Path(path).parent, os.O_RDONLY)
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(self.door, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise StockpotError(f"{path} is being written by another run: wait for its end.") from None
                time.sleep(0.05)
        self.store = History.open(Path(path), run=brief.run, vocabulary=vocabulary)

    def ask(self, name: str, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """Any method of the history by its name; a stream comes as a list."""
        found = getattr(self.store, name)(*args, **options)
        return list(found) if isinstance(found, Iterator) else found

    def append(self, step: int, rollouts: Sequence[Rollout], scores: Sequence[Any]) -> list[int]:
        """Store a step, once: where it is there already, the answer to an earlier call was lost on its way."""
        stored = [r.id for r in self.store.find(versions=(step, step)) if r.id is not None]
        return stored or self.store.append(step, rollouts, scores)
