"""The history in a process of its own, seen as the history."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stockpot.engines.ray.crew import reason
from stockpot.engines.ray.session import Died, fetch
from stockpot.history import History, Score
from stockpot.types import Candidate, Rollout, StockpotError

TRIES = 40
"""Deaths over one call after which the store is given up."""


class RemoteHistory(History):
    """Asks an actor that Ray restarts. A call that was lost is made again: each leaves the same behind, made twice."""

    def __init__(self, path: Path, run: str, vocabulary: str, actor: Any) -> None:
        self.path, self.run, self.vocabulary = path, run, vocabulary
        self._actor = actor

    def _ask(self, name: str, *args: Any, **options: Any) -> Any:
        return self._again("ask", name, args, options)

    def _again(self, name: str, *args: Any) -> Any:
        """Call, and again where the actor dies over it."""
        try:
            return fetch(getattr(self._actor, name).options(max_task_retries=TRIES).remote(*args))
        except Died as error:
            why = reason(error)
        raise StockpotError(f"{self.path}: the process of the history is gone for good ({why}).")

    def append(self, step: int, rollouts: Sequence[Rollout], scores: Sequence[Score] = ()) -> list[int]:
        found: list[int] = self._again("append", step, list(rollouts), list(scores))
        return found

    def scores(self, rollouts: Sequence[Rollout], reference: str) -> dict[bytes, array[float]]:
        found: dict[bytes, array[float]] = self._ask("scores", list(rollouts), reference)
        return found

    def candidates(self, prompts: Sequence[str], **options: Any) -> dict[str, list[Candidate]]:
        found: dict[str, list[Candidate]] = self._ask("candidates", list(prompts), **options)
        return found

    def read(self, ids: Sequence[int]) -> list[Rollout]:
        found: list[Rollout] = self._ask("read", list(ids))
        return found

    def find(self, **options: Any) -> Iterator[Rollout]:
        return iter(self._ask("find", **options))

    def uses(self, ids: Sequence[int]) -> dict[int, int]:
        found: dict[int, int] = self._ask("uses", list(ids))
        return found

    def truncate(self, step: int) -> int:
        return int(self._ask("truncate", step))

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = self._ask("summary")
        return found

    def to_parquet(self, path: Path) -> int:
        return int(self._ask("to_parquet", path))

    def close(self) -> None:
        """Nothing: the actor lives as long as the engine, which may open it again."""
