"""What an engine is: the place where the policy lives. The loop speaks to it and never sees a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from stockpot.history import History
from stockpot.policy import Update
from stockpot.rewards.score import RewardFunction, score
from stockpot.types import Request, Rollout, StockpotError


class Lost(StockpotError):
    """The policy is gone, but not the run: `Engine.restart` with a checkpoint, and go on from there."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one optimiser step learns from: rollouts with their advantages, and the group each belongs to."""

    rollouts: tuple[Rollout, ...]
    advantages: tuple[float | Sequence[float], ...]
    """A number per rollout, or one per response token."""
    groups: tuple[int, ...]
    reference_log_probs: tuple[Tensor, ...] | None = None
    values: tuple[Tensor, ...] | None = None
    """Where there is a critic: what it expected before each response token."""
    returns: tuple[Tensor, ...] | None = None
    """What it should have expected."""


class Engine(ABC):
    """Samples, scores, learns and saves, for one process or for many."""

    version: int
    """Steps that the policy has behind it: the author of what it writes next."""
    tokenizer: Any
    context: int
    """Longest sequence the model can read; 0 when it has no limit."""

    @property
    def past(self) -> Sequence[int]:
        """Versions before the live one that can still write, oldest first."""
        return ()

    def begin(self, requests: Sequence[Request], seed: int, step: int) -> None:
        """What `sample` will be asked at that step: an engine that does not wait may begin to write it."""
        return None

    @abstractmethod
    def sample(self, requests: Sequence[Request], seed: int, version: int | None = None) -> list[Rollout]:
        """Continuations by the live policy, or by one of its `past` versions."""

    @abstractmethod
    def score(self, rollouts: Sequence[Rollout], of: Literal["policy", "reference", "critic"]) -> list[Tensor]:
        """Log-probs of each rollout's response tokens; or, of the critic, its values before them."""

    @abstractmethod
    def learn(self, lesson: Lesson, seed: int) -> Update:
        """One optimiser step."""

    @abstractmethod
    def advance(self, version: int) -> None:
        """Close a step: the policy has a new version; the reference moves, and a snapshot is taken, when it is time."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights, optimiser, reference and snapshots into a folder that exists."""

    def judge(self, rollouts: Sequence[Rollout], reward: RewardFunction) -> tuple[list[Rollout], int]:
        """Rollouts with their rewards, and how many could not be judged."""
        return score(rollouts, reward, self.tokenizer)

    def history(self, path: Path, run: str, vocabulary: str) -> History:
        """The run's store, opened."""
        return History.open(path, run=run, vocabulary=vocabulary)

    def figures(self) -> dict[str, float]:
        """What there is to tell about the step that ends, for timings.jsonl."""
        return {}

    def restart(self, weights: str, version: int) -> None:
        """Take the policy up again from a checkpoint, after `Lost`."""
        raise NotImplementedError(f"{type(self).__name__} loses no policy")

    def close(self) -> None:
        """Let go of everything that is outside of this process."""
        return None
