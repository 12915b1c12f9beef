"""The learners as one: all of them live, or none does."""

from __future__ import annotations

import time
from typing import Any

from stockpot.engines.base import Lost
from stockpot.engines.ray.actors import LearnerActor
from stockpot.engines.ray.crew import Office, reason
from stockpot.engines.ray.session import Died, Session, fetch
from stockpot.types import StockpotError

LIVES = 40
"""Times that the learners may be lost without the run getting any further."""


class Learners:
    """A group that is called alike. When one is gone the others, who may be waiting for it, are ended too."""

    def __init__(self, session: Session, office: Office, origin: str) -> None:
        self.session, self.office, self.origin = session, office, origin
        self.actors: list[Any] = []
        self.life = -1
        """How often the group has been started, from 0."""
        self.seconds = 0.0
        """Time that it was at work."""
        self._furthest, self._lives = -1, 0

    def start(self, weights: str, version: int) -> None:
        """A new group, from a checkpoint's folder or from where the run begins; not waited for."""
        config = self.session.config
        self.stop()
        self.life += 1
        self._lives += 1
        if self._lives > LIVES:
            raise StockpotError(
                f"the learners died {LIVES} times without getting any further: look for what kills them."
            )
        self.actors = [
            self.session.spawn(
                LearnerActor, weights, version, rank, config.learners, "", cpus=config.threads, restarts=0, gpu=True
            )
            for rank in range(config.learners)
        ]

    def settle(self, weights: str, version: int) -> None:
        """Start and wait until all are there, again and again if need be."""
        self.start(weights, version)
        while True:
            try:
                self.call("hello")
                return
            except Lost:
                self.start(weights, version)

    def got_to(self, version: int) -> None:
        """The run has come this far: that gives the learners new lives."""
        if version > self._furthest:
            self._furthest, self._lives = version, 0

    def call(self, name: str, *args: Any) -> Any:
        """Have all of them do it; the answer of the first. `Lost` where one of them is gone."""
        began = time.perf_counter()
        try:
            references = [getattr(actor, name).remote(*args) for actor in self.actors]
            self.office.until(lambda: True, references)
            answers = [fetch(reference) for reference in references]
        except Died as error:
            self.stop()
            if getattr(error, "actor_init_failed", False):
                raise StockpotError(f"a learner does not start: {reason(error)}") from error
            raise Lost("a learner died: all of them start again from the last checkpoint") from error
        finally:
            self.seconds += time.perf_counter() - began
        return answers[0]

    def begin(self, name: str, *args: Any) -> Any:
        """The first one's answer, not waited for."""
        return getattr(self.actors[0], name).remote(*args)

    def stop(self) -> None:
        """End them all."""
        for actor in self.actors:
            self.session.kill(actor)
        self.actors = []
