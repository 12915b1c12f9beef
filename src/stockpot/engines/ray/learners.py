"""The learners as one: all of them live, or none does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray

from stockpot.engines.base import Lost
from stockpot.engines.ray.actors import LearnerActor
from stockpot.engines.ray.crew import Office, reason
from stockpot.engines.ray.session import Died, Session, fetch
from stockpot.types import StockpotError

GRACE = 10.0
"""Seconds that learners may still work after one of them has failed: the others may wait for it for ever."""
GONE = "a learner died: all of them start again from the last checkpoint"
LIVES = 40
"""Times that the learners may be lost without the run getting any further."""


class Learners:
    """A group that is called alike. When one is gone the others, who may be waiting for it, are ended too."""

    def __init__(self, session: Session, office: Office) -> None:
        self.session, self.office = session, office
        self.actors: list[Any] = []
        self.life = -1
        """How often the group has been started, from 0."""
        self.processes: list[int] = []
        """Their numbers on their machines."""
        self.seconds = 0.0
        """Time that it was at work."""
        self._furthest, self._lives = -1, 0

    def start(self, weights: str, version: int) -> None:
        """A new group, from a checkpoint's folder or from where the run begins; tried again if it dies on the way."""
        config = self.session.config
        while True:
            self.stop()
            self.life += 1
            self._lives += 1
            if self._lives > LIVES:
                raise StockpotError(
                    f"the learners died {LIVES} times without getting any further: look for what kills them (memory?)."
                )
            self.actors = [
                self.session.spawn(LearnerActor, cpus=config.threads, restarts=0, gpu=True)
                for _ in range(config.learners)
            ]
            try:
                meeting = self._answers([self.actors[0].meeting.remote()])[0] if config.learners > 1 else ""
                self.processes = self._answers(
                    [
                        actor.join.remote(weights, version, rank, config.learners, meeting)
                        for rank, actor in enumerate(self.actors)
                    ]
                )
                return
            except Lost:
                continue

    def got_to(self, version: int) -> None:
        """The run has come this far: that gives the learners new lives."""
        if version > self._furthest:
            self._furthest, self._lives = version, 0

    def call(self, name: str, *args: Any) -> Any:
        """Have all of them do it; the answer of the first. `Lost` where one of them is gone."""
        began = time.perf_counter()
        try:
            return self._answers(self.begin(name, *args))[0]
        finally:
            self.seconds += time.perf_counter() - began

    def begin(self, name: str, *args: Any) -> list[Any]:
        """Have all of them do it, without waiting."""
        return [getattr(actor, name).remote(*args) for actor in self.actors]

    def _answers(self, calls: Sequence[Any]) -> list[Any]:
        """What they answer, once all have. That one died counts for more than what others say of it."""
        left, answers, wrong = list(calls), dict[Any, Any](), None
        while left:
            if wrong is None:
                self.office.until(lambda: bool(over(left)), left)
            elif not over(left, GRACE):
                break  # they wait for one that has failed
            for call in over(left):
                left.remove(call)
                try:
                    answers[call] = fetch(call)
                except Died as error:
                    self.stop()
                    if getattr(error, "actor_init_failed", False):
                        raise StockpotError(f"a learner does not start: {reason(error)}") from error
                    raise Lost(GONE) from error
                except Exception as error:
                    wrong = wrong or error
        if wrong is not None:
            if self._one_is_gone():  # it had answered before it died; another needed it still
                self.stop()
                raise Lost(GONE) from wrong
            raise wrong
        return [answers[call] for call in calls]

    def _one_is_gone(self) -> bool:
        """Whether a learner is dead; one that does not answer in time is at work."""
        calls = [actor.hello.remote() for actor in self.actors]
        for call in ray.wait(calls, num_returns=len(calls), timeout=GRACE)[0]:
            try:
                fetch(call)
            except Died:
                return True
        return False

    def stop(self) -> None:
        """End them all."""
        for actor in self.actors:
            self.session.kill(actor)
        self.actors, self.processes = [], []


def over(calls: Sequence[Any], seconds: float = 0.0) -> list[Any]:
    """Those of the calls that have ended; waits so long for the first."""
    found: list[Any] = ray.wait(list(calls), num_returns=1, timeout=seconds)[0]
    return found
