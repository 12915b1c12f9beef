"""What was asked of the samplers and what became of it: nothing is lost without being counted."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from stockpot import sandbox
from stockpot.engines.ray.crew import Crew, Office
from stockpot.types import Rollout

Name = tuple[int, int]
"""A request: the seed of its call, and its key."""
SHARE = 4
"""Chunks that each of several workers gets in the mean: the last ones even out who is slow."""


def chunks(items: Sequence[Any], workers: int, share: int = SHARE) -> Iterator[Sequence[Any]]:
    """Stretches of requests or rollouts, cut between prompts; one for a single worker, who is fastest so.

    Who works on a chunk does not matter and how many there are does not change, so a run can be repeated.
    """
    size = len(items) if workers == 1 else -(-len(items) // (share * workers))
    start = 0
    for end in range(1, len(items) + 1):
        if end == len(items) or (end - start >= size and items[end].prompt.key != items[end - 1].prompt.key):
            yield items[start:end]
            start = end


def ages(rollouts: Iterable[Rollout], run: str, now: int) -> dict[int, int]:
    """Tokens of each age among those that the run's policy wrote for this very step: prefixes are old on purpose."""
    found: dict[int, int] = {}
    for rollout in rollouts:
        for span in rollout.spans:
            age = span.author.age(now) if span.author.run == run and span.kind == "continuation" else None
            if age is not None:
                found[age] = found.get(age, 0) + len(span)
    return found


class Ledger:
    """Requests from the moment they are asked until they are handed out, and the figures of a step."""

    def __init__(self, samplers: int) -> None:
        self.samplers = samplers
        self.asked: set[Name] = set()
        self._done: dict[Name, Rollout] = {}
        self._counts = {"asked": 0, "finished": 0, "withdrawn": 0}
        self._ages: dict[int, int] = {}
        self._queue = (0, 0)
        self._busy = 0.0
        self._told, self._learnt = time.perf_counter(), 0.0

    def ask(self, names: Iterable[Name]) -> None:
        """These are on their way to a sampler."""
        for name in names:
            self.asked.add(name)
            self._counts["asked"] += 1

    def finish(self, rollouts: Iterable[tuple[Name, Rollout]], seconds: float) -> None:
        """These are written, in so many seconds of a sampler."""
        for name, rollout in rollouts:
            self._done[name] = rollout
            self._counts["finished"] += 1
        self._busy += seconds

    def has(self, names: Sequence[Name]) -> bool:
        """Whether all of them are written."""
        return all(name in self._done for name in names)

    def hand_out(self, names: Sequence[Name]) -> list[Rollout]:
        """Give them to the loop, and forget them."""
        self.asked.difference_update(names)
        return [self._done.pop(name) for name in names]

    def withdraw(self) -> None:
        """What was asked and not handed out is of no use any more: it will be asked anew."""
        self._counts["withdrawn"] += len(self.asked) - len(self._done)
        self.asked.clear()
        self._done.clear()

    def note_queue(self, waiting: int, dealt: int) -> None:
        """Chunks that wait in the queue, and at samplers, when the loop comes for its rollouts."""
        self._queue = (waiting, dealt)

    def note_ages(self, found: dict[int, int]) -> int:
        """Count tokens that are about to be trained on by their age; the highest."""
        for age, tokens in found.items():
            self._ages[age] = self._ages.get(age, 0) + tokens
        return max(found, default=0)

    def judge(self, rollouts: Sequence[Rollout], judges: Crew, office: Office) -> tuple[list[Rollout], int]:
        """Deal rollouts to reward workers, whole groups to each."""
        rewards: dict[int, list[float]] = {}
        unjudged: list[int] = []
        parts = list(chunks(rollouts, len(judges.members)))
        for i, part in enumerate(parts):

            def done(result: tuple[list[float], int, Any], i: int = i) -> None:
                rewards[i] = result[0]
                unjudged.append(result[1])
                sandbox.heard(result[2])

            def call(actor: Any, part: Sequence[Rollout] = part) -> Any:
                return actor.judge.remote(list(part))

            judges.put(call, done)
        office.until(lambda: len(rewards) == len(parts))
        given = [value for i in range(len(parts)) for value in rewards[i]]
        return [replace(r, reward=value) for r, value in zip(rollouts, given, strict=True)], sum(unjudged)

    def figures(self, now: float, learnt: float) -> dict[str, float]:
        """Of the time since they were last asked for; `learnt`: seconds that the learners have been at work in all."""
        wall, total = max(now - self._told, 1e-9), sum(self._ages.values())
        flying = len(self.asked) - len(self._done)
        told = {
            "requests/asked": float(self._counts["asked"]),
            "requests/finished": float(self._counts["finished"]),
            "requests/in_flight": float(flying),
            "requests/withdrawn": float(self._counts["withdrawn"]),
            "queue/waiting": float(self._queue[0]),
            "queue/dealt": float(self._queue[1]),
            "trained_age/mean": sum(age * n for age, n in self._ages.items()) / total if total else 0.0,
            "trained_age/max": float(max(self._ages, default=0)),
            "idle/learner": max(0.0, 1 - (learnt - self._learnt) / wall),
            "idle/samplers": max(0.0, 1 - self._busy / (wall * self.samplers)),
        }
        self._told, self._learnt, self._busy, self._ages = now, learnt, 0.0, {}
        return told
