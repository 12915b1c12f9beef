"""`Sandbox`: some pairs of servers, jobs spread over them, and servers started anew where they were killed."""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter
from typing import Any

from stockpot.sandbox.jobs import Calls, Job, Limits, Outcome, framed, read
from stockpot.sandbox.levels import Level, probe
from stockpot.sandbox.worker import Lost, Worker, readable
from stockpot.types import StockpotError

WEAK = "STOCKPOT_WEAK_SANDBOX"
CURE = f"install bubblewrap, use a kernel with landlock (5.13 or newer), or accept the danger with {WEAK}=1"


class Sandbox:
    """A place to run programs that nobody trusts.

    with Sandbox() as sandbox:
        print(sandbox.level)
        outcome, = sandbox.run([Tests("def f(x): return 2 * x", ["assert f(2) == 4"])])
    """

    def __init__(
        self,
        processes: int = 0,
        limits: Limits | None = None,
        *,
        namespaces: bool = True,
        allow_weak: bool | None = None,
    ) -> None:
        """`processes` jobs run at once (0: one per processor). `namespaces=False` does without bubblewrap.

        `allow_weak` also runs where an attack tried at the start gets through; None asks the environment.
        """
        if not sys.platform.startswith("linux"):
            raise StockpotError("the sandbox needs Linux: judge programs on a machine that runs it.")
        self.processes = processes or len(os.sched_getaffinity(0))
        self.limits = limits or Limits()
        self.restarts = 0
        """Servers that were started anew since they had ended or gone silent."""
        self._wanted = namespaces
        self._weak = os.environ.get(WEAK, "") not in ("", "0") if allow_weak is None else allow_weak
        self._free: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._owner = os.getpid()
        self._reason = ""
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="sandbox-start")
        try:
            first, self.level = self._starter.submit(self._first).result()
        except BaseException:
            self._starter.shutdown()
            raise
        for _ in range(self.processes - 1):
            self._free.put(None)
        self._free.put(first)
        self._threads = ThreadPoolExecutor(self.processes, thread_name_prefix="sandbox")

    def _first(self) -> tuple[Worker, Level]:
        found: list[Level] = []
        for namespaces in (True, False) if self._wanted else (False,):
            try:
                worker = Worker(namespaces, readable())
            except Lost as error:
                self._reason = f"no namespaces: {error}" if namespaces else str(error)
                continue
            try:
                level = probe(worker, namespaces)
            except Lost as error:
                worker.close()
                self._reason = str(error)
                continue
            if level.name != "weak" or (self._weak and not namespaces):
                self._namespaces = namespaces
                return worker, level
            found.append(level)
            worker.close()
        raise StockpotError(f"the sandbox does not hold here ({found[-1] if found else self._reason}): {CURE}.")

    @property
    def why(self) -> str:
        """Why there are no namespaces, where they were wanted and could not be had; else empty."""
        return self._reason

    def _start(self) -> Worker:
        """Another server, held as well as the first; anything less is an error."""
        worker = None
        try:
            worker = Worker(self._namespaces, readable())
            level = probe(worker, self._namespaces)
        except Lost as error:
            if worker:
                worker.close()
            raise StockpotError(f"the sandbox could not start another server ({error}): look at memory.") from error
        if level != self.level:
            worker.close()
            raise StockpotError(f"the sandbox held {self.level} at first and now {level}: start the run anew.")
        return worker

    def run(self, jobs: Sequence[Job], limits: Limits | None = None) -> list[Outcome]:
        """Outcomes in the order of the jobs; several run at once. May be called from several threads."""
        if self._closed or os.getpid() != self._owner:
            raise StockpotError("this sandbox is closed or was made in another process: make a new one here.")
        limits = limits or self.limits
        if len(jobs) == 1:
            return [self._one(jobs[0], limits)]
        return list(self._threads.map(lambda job: self._one(job, limits), jobs))

    def calls(self, code: str, entry: str, inputs: Sequence[Sequence[Any]], limits: Limits | None = None) -> Outcome:
        """One function (or an expression that makes one) on many inputs: see `Calls`."""
        return self.run([Calls(code, entry, inputs)], limits)[0]

    def _one(self, job: Job, limits: Limits) -> Outcome:
        candidate, tests = framed(job, limits)
        began, outcome = perf_counter(), Outcome("lost", error="the sandbox's server ended twice")
        for _ in range(2):
            worker = self._free.get()
            try:
                worker = worker or self._starter.submit(self._start).result()
                outcome = read(job, *worker.ask(candidate, tests))
                break
            except Lost:
                if worker:
                    worker.close()
                worker = None
                with self._lock:
                    self.restarts += 1
            except BaseException:
                if worker:
                    worker.close()
                worker = None
                raise
            finally:
                self._free.put(worker)
        return replace(outcome, ms=(perf_counter() - began) * 1000)

    def close(self) -> None:
        """End the servers."""
        if self._closed or os.getpid() != self._owner:
            return
        self._closed = True
        self._threads.shutdown()
        self._starter.shutdown()
        while not self._free.empty():
            if worker := self._free.get():
                worker.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_shared: dict[int, Sandbox] = {}
_making = threading.Lock()


def shared() -> Sandbox:
    """This process's sandbox, made when first asked for and closed at its end."""
    with _making:
        if os.getpid() not in _shared:
            _shared[os.getpid()] = sandbox = Sandbox()
            atexit.register(sandbox.close)
        return _shared[os.getpid()]


_heard: list[dict[str, Any]] = []


def heard(level: dict[str, Any] | None) -> None:
    """Another process judged programs for this one, at that level."""
    if level is not None:
        _heard[:] = [level]


def in_force() -> dict[str, Any] | None:
    """The level of this process's shared sandbox, or of those that judged for it, for a run record; None without."""
    found = _shared.get(os.getpid())
    return found.level.as_dict() if found is not None else next(iter(_heard), None)
