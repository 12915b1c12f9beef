"""Where requests lie before a sampler, and how one thread writes them.

Calls are written one after the other, each answered as soon as it is whole. A fixed version's go before those that
follow the newest weights.

A GPU writes many rows in the time of few. There, what follows the weights is written together: those that wait join
when few rows are left, so that nobody's long response keeps the others waiting, and whenever everything is read again
for newer weights. On a CPU more rows take longer, and what is needed first is written first (measured: LOG.md).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from stockpot.samplers.base import ModelSampler, Underway, Until
from stockpot.types import Request, Rollout

Stamp = tuple[int, int]
"""Whose weights: the life of the learners, which a restart ends, and the version."""
News = tuple[Stamp, Any]
"""A stamp, and where the weights are."""
LOOK = 8
"""Tokens between looks at which rollouts are whole."""
FEW = 1 / 2
"""On a GPU others join when no more rows are left than this share of what comes in (ours): all are read again then."""


@dataclass(eq=False)
class Job:
    """One call: what is asked, and what there is of it."""

    requests: Sequence[Request]
    seed: int
    news: News
    follow: bool
    """Whether newer weights are taken while it is written."""
    rollouts: dict[int, Rollout] = field(default_factory=dict)
    """Those that are whole, by their places."""
    left: dict[int, Request] = field(default_factory=dict)
    seconds: float = 0.0
    error: BaseException | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.left = dict(enumerate(self.requests))


class Desk:
    """The jobs of one sampler, which has up to `rows` rollouts under way. `wide`: more of them cost it little."""

    def __init__(
        self, sampler: ModelSampler, rows: int, threads: int, wide: bool, fetch: Callable[[Any], Mapping[str, Tensor]]
    ) -> None:
        self.sampler, self.rows, self.threads, self.wide, self.fetch = sampler, rows, threads, wide, fetch
        self.news: News = ((-1, -1), None)
        self.stamp: Stamp = (-1, -1)
        self.jobs: list[Job] = []
        self.bell = threading.Condition()
        self.mark = self.worked = 0.0
        threading.Thread(target=self._work, daemon=True).start()

    def tell(self, news: News) -> None:
        """There are these weights; older ones are no news."""
        with self.bell:
            self.news = max(self.news, news, key=lambda some: some[0])

    def write(self, job: Job) -> tuple[list[Rollout], float]:
        """Its rollouts, and seconds of work since the last answer. Of a life that has ended: nothing, in no time."""
        if job.follow:
            self.tell(job.news)
        with self.bell:
            self.jobs.append(job)
            self.bell.notify()
        job.ended.wait()
        if job.error is not None:
            raise job.error
        return [job.rollouts[i] for i in sorted(job.rollouts)], job.seconds

    # --- the one thread that writes ---------------------------------------------------------------------------------

    def _work(self) -> None:
        torch.set_num_threads(self.threads)  # is a thread's own
        while True:
            with self.bell:
                self.bell.wait_for(lambda: bool(self.jobs))
                party = self._party()
            self.mark = time.perf_counter()
            try:
                self._round(party)
            except BaseException as error:
                for job in [job for job in party if not job.ended.is_set()]:
                    job.error = error
                    self._end(job)
            self._count()

    def _party(self) -> list[Job]:
        """Who is written now: the first that waits for a fixed version, else all that find room."""
        for job in [job for job in self.jobs if job.follow and job.news[0][0] != self.news[0][0]]:
            self._end(job)  # the learners have begun anew: nobody waits for this any more
        fixed = [job for job in self.jobs if not job.follow]
        if fixed:
            return fixed[:1]
        party, taken = list[Job](), 0
        for job in self.jobs:
            if not party or self._fits(job, taken, again=True):
                party.append(job)
                taken += len(job.left)
        return party

    def _round(self, party: Sequence[Job]) -> None:
        """One stretch; it ends with all of them whole, or because something is to change."""
        if not party:
            return
        follow = party[0].follow
        self._wear(self.news if follow else party[0].news)
        asked = [(job, i, request) for job in party for i, request in job.left.items()]
        requests, seeds = [request for _, _, request in asked], [job.seed for job, _, _ in asked]
        again = any(r.prefix and r.prefix[-1].kind == "continuation" for r in requests)
        until = self._watch(party, asked) if follow else None
        made = self.sampler.stretch(requests, seeds, until, again)
        for (job, i, request), (rollout, whole) in zip(asked, made, strict=True):
            if i in job.left and whole:
                job.rollouts[i] = rollout
                del job.left[i]
            elif i in job.left:
                job.left[i] = replace(request, prefix=rollout.spans)
        for job in party:
            if not job.left:
                self._end(job)

    def _watch(self, party: Sequence[Job], asked: Sequence[tuple[Job, int, Request]]) -> Until:
        """What looks at a stretch: it hands out who is whole, and says when to stop."""
        looks = 0

        def until(flight: Underway) -> bool:
            nonlocal looks
            looks += 1
            if self.news[0] > self.stamp:
                return True
            if looks % LOOK:
                return False
            left = set(flight.left())
            open_ = {asked[place][0] for place in left}
            for job in [job for job in party if job.left and job not in open_]:
                places = [place for place, (owner, _, _) in enumerate(asked) if owner is job]
                job.rollouts |= {asked[p][1]: r for p, r in zip(places, flight.made(places), strict=True)}
                job.left.clear()
                self._end(job)
            return self._wanted(len(left), party)

        return until

    def _wanted(self, left: int, party: Sequence[Job]) -> bool:
        """Whether to stop for somebody who waits: at once for a fixed version, for others when few are left."""
        with self.bell:
            waiting = [job for job in self.jobs if job not in party]
        if any(not job.follow for job in waiting):
            return True
        return any(self._fits(job, left) for job in waiting[:1])

    def _fits(self, job: Job, left: int, again: bool = False) -> bool:
        """Whether it joins those that are left; `again`: they are read again anyway."""
        return self.wide and left + len(job.left) <= self.rows and (again or left <= FEW * len(job.left))

    def _wear(self, news: News) -> None:
        """Take these weights."""
        stamp, box = news
        if stamp != self.stamp:
            self.stamp = (-1, -1)  # should it fail half way
            self.sampler.load(self.fetch(box), stamp[1])
            self.stamp = stamp

    def _count(self) -> None:
        now = time.perf_counter()
        self.worked, self.mark = self.worked + now - self.mark, now

    def _end(self, job: Job) -> None:
        """Answer it; it takes with it the seconds of work that nobody has been told."""
        self._count()
        job.seconds, self.worked = self.worked, 0.0
        with self.bell:
            if job in self.jobs:
                self.jobs.remove(job)
        job.ended.set()
