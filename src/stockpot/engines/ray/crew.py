"""Several actors that do the same kind of work: tasks are dealt to whoever is free, and again if one of them dies."""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import exceptions

from stockpot import console
from stockpot.engines.ray.session import Died, fetch
from stockpot.types import StockpotError

TRIES = 40
"""Deaths over one task after which it, and not chance, is to blame."""
PATIENCE = 10.0
"""Seconds for which no task is overdue."""
SLOW = 3.0
"""A task is overdue when it has taken so many times the longest of the last ones (ours)."""


@dataclass(order=True)
class Task:
    """A piece of work; those of low urgency numbers come first, then those that came first."""

    urgency: int
    number: int
    call: Callable[[Any], Any] = field(compare=False)
    """Given an actor, begins the work there."""
    done: Callable[[Any], None] = field(compare=False)
    """Given the result, takes it in."""
    tries: int = field(default=0, compare=False)
    wanted: bool = field(default=True, compare=False)
    """Whether anybody still waits for the result."""
    begun: float = field(default=0.0, compare=False)
    doubled: bool = field(default=False, compare=False)
    """Whether somebody else was given it, too."""


@dataclass
class Member:
    """An actor, and what it has been given."""

    name: str
    actor: Any
    process: int = 0
    """Its number on its machine, once it has been heard of."""
    tasks: dict[Any, Task] = field(default_factory=dict)
    waking: Any = None
    """While it is dead or starting: the call that it answers once it is there."""

    def wake(self) -> None:
        """Wait for it to come up, however often it dies on the way."""
        self.waking = self.actor.hello.options(max_task_retries=-1).remote()


class Crew:
    """A crew may have up to `depth` tasks waiting at each actor, so that it need not wait for the next."""

    def __init__(self, name: str, actors: Sequence[Any], depth: int = 1) -> None:
        self.name, self.depth = name, depth
        self.members = [Member(f"{name} {i}", actor) for i, actor in enumerate(actors)]
        for member in self.members:
            member.wake()
        self.waiting: list[Task] = []
        self.deaths = self.doubled = 0
        self.took: deque[float] = deque(maxlen=32)
        """Seconds of the last tasks."""
        self.facts: dict[str, Any] = {}
        """What the last one that woke up said of itself."""
        self._number = 0

    def put(self, call: Callable[[Any], Any], done: Callable[[Any], None], urgency: int = 0) -> None:
        """A new task."""
        self._number += 1
        heapq.heappush(self.waiting, Task(urgency, self._number, call, done))

    def clear(self) -> None:
        """Nobody wants the results of anything that is waiting or being done."""
        self.waiting.clear()
        for member in self.members:
            for task in member.tasks.values():
                task.wanted = False

    @property
    def references(self) -> list[Any]:
        """What Ray is to be asked about."""
        waking = [member.waking for member in self.members if member.waking is not None]
        return waking + [reference for member in self.members for reference in member.tasks]

    @property
    def awake(self) -> bool:
        """Whether all of them are there."""
        return all(member.waking is None for member in self.members)

    def look(self) -> list[int]:
        """The processes of those who are awake; one that died while it had nothing to do is noticed now."""
        found = []
        for member in self.members:
            if member.waking is None:
                try:
                    process = int(fetch(member.actor.hello.options(max_task_retries=TRIES).remote())["pid"])
                except Died:  # again, just now
                    self.deaths += 1
                    member.wake()
                    continue
                self.deaths += process != member.process
                member.process = process
                found.append(process)
        return found

    def feed(self) -> None:
        """Give tasks to those who are free, the idlest first, and those that are overdue to who has nothing to do."""
        late = self.overdue()
        while free := [m for m in self.members if self._takes(m, late)]:
            member = min(free, key=lambda m: len(m.tasks))
            double = next((task for task in late if task.wanted and not task.doubled), None)
            if self.waiting:
                task = heapq.heappop(self.waiting)
                if not task.wanted:
                    continue
                task.begun = time.monotonic()
            elif double is not None and not member.tasks:
                task, double.doubled = double, True
                self.doubled += 1
                console.tell(f"a {self.name} is slow: another one is given the same work")
            else:
                return
            member.tasks[task.call(member.actor)] = task

    def _takes(self, member: Member, late: Sequence[Task]) -> bool:
        """Whether it may be given anything: it is awake, has little to do, and is not the one that is slow."""
        slow = any(task is other for task in member.tasks.values() for other in late)
        return member.waking is None and len(member.tasks) < self.depth and not slow

    @property
    def limit(self) -> float:
        """Seconds after which a task is overdue: never, where nobody else could do it or none has ended yet."""
        return max(PATIENCE, SLOW * max(self.took)) if self.took and len(self.members) > 1 else math.inf

    def overdue(self) -> list[Task]:
        """Tasks that take too long, also where another one has done them by now."""
        since = time.monotonic() - self.limit
        return [task for m in self.members for task in m.tasks.values() if task.begun < since]

    @property
    def soon(self) -> float:
        """Seconds until the next task that nobody else has been given is overdue."""
        open_ = [task.begun for m in self.members for task in m.tasks.values() if task.wanted and not task.doubled]
        return max(0.05, min(open_) + self.limit - time.monotonic()) if open_ else math.inf

    def take(self, reference: Any) -> None:
        """Something has ended."""
        for member in self.members:
            if reference is member.waking or reference == member.waking:
                self._woken(member, reference)
                return
            if reference in member.tasks:
                task = member.tasks.pop(reference)
                try:
                    result = fetch(reference)
                except Died:
                    self._died(member, task)
                    return
                except Exception:
                    if task.wanted:
                        raise
                    return
                if task.wanted:
                    task.wanted = False
                    self.took.extend([] if task.doubled else [time.monotonic() - task.begun])
                    task.done(result)
                return

    def _woken(self, member: Member, reference: Any) -> None:
        member.waking = None
        try:
            self.facts = fetch(reference)
            member.process = int(self.facts["pid"])
        except exceptions.ActorDiedError as error:
            raise StockpotError(f"{member.name} does not start: {reason(error)}") from error
        except Died:
            member.wake()

    def _died(self, member: Member, task: Task) -> None:
        """The task goes back; the actor is restarted by Ray, and not asked before it answers."""
        task.tries += 1
        if task.tries > TRIES:
            raise StockpotError(
                f"{member.name} died {TRIES} times over the same task: look for what kills it (memory?)."
            )
        if task.wanted:
            task.doubled = False
            heapq.heappush(self.waiting, task)
        if member.waking is None:
            self.deaths += 1
            console.tell(f"{member.name} died and is started again; its work goes to whoever is free")
            member.wake()


class Office:
    """All crews of an engine: whatever the loop waits for, they are kept at work."""

    def __init__(self, *crews: Crew) -> None:
        self.crews = crews

    def until(self, done: Callable[[], bool], others: Sequence[Any] = ()) -> None:
        """Wait until that holds, which is asked whenever something has ended, one of the calls in `others` included."""
        while True:
            for crew in self.crews:
                crew.feed()
            if done():
                return
            waiting = [*others, *(reference for crew in self.crews for reference in crew.references)]
            if not waiting:
                raise StockpotError("the Ray engine waits for work that nobody has: this is a mistake in stockpot.")
            soon = min((crew.soon for crew in self.crews), default=math.inf)
            patience = None if soon == math.inf else soon
            for reference in ray.wait(waiting, num_returns=1, timeout=patience)[0]:
                for crew in self.crews:
                    crew.take(reference)


def reason(error: Exception) -> str:
    """The last words of an actor, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
