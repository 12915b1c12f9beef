"""Warm processes that compare formulas with sympy, each with a hard end: a question that takes too long is killed.

A process of its own is the only clock that works everywhere: signals fail in threads, and sympy can hang in one call.
They talk over pipes in JSON, so that no pickle, no `__main__` and no fork is needed.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

CPU_SECONDS = 1.5
"""What one question may compute: counted in time of its own, so that a busy machine gives the same verdicts."""
WALL_SECONDS = 2.75
"""What one question may take at most; a process that is not done is killed."""
START_SECONDS = 60.0
MEMORY = 2 << 30
"""Address space of a process, in bytes."""


class Workers:
    """A few processes, started when first asked; safe to ask from any thread, and again after a fork."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most or max(2, min(4, os.cpu_count() or 1))
        self._reset()
        os.register_at_fork(after_in_child=self._reset)
        atexit.register(self.close)

    def _reset(self) -> None:
        """A forked child forgets its parent's processes: two must never speak into one pipe."""
        self._free = threading.BoundedSemaphore(self.most)
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._started = False

    def ask(self, gold: str, answer: str, tolerance: float = 0.0) -> bool | None:
        """Whether two answers are the same; None where the process died, was killed or could not tell."""
        with self._free:
            process: _Process | None = None
            try:
                process = self._take()
                found = process.ask(gold, answer, tolerance)
            except (OSError, ValueError):
                if process:
                    process.end()
                self._replace()
                return None
            with self._lock:
                self._idle.append(process)
            return found

    def _take(self) -> _Process:
        """A process that is free, the one that has been longest at it; the first time all are started, and a spare."""
        with self._lock:
            if not self._started:
                self._idle, self._started = [_Process() for _ in range(self.most + 1)], True
            return self._idle.pop() if self._idle else _Process()

    def _replace(self) -> None:
        """A fresh process begins to load while nobody waits for it."""
        with contextlib.suppress(OSError):
            process = _Process()
            with self._lock:
                self._idle.insert(0, process)

    def close(self) -> None:
        """Ends all processes that are not at work."""
        with self._lock:
            idle, self._idle, self._started = self._idle, [], False
        for process in idle:
            process.end()


class _Process:
    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(path for path in (root, os.environ.get("PYTHONPATH", "")) if path)
        self.ready = False
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from stockpot.rewards.workers import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
            bufsize=0,
        )

    def ask(self, gold: str, answer: str, tolerance: float) -> bool | None:
        if not self.ready:
            self._line(START_SECONDS)
            self.ready = True
        assert self.process.stdin
        self.process.stdin.write(json.dumps([gold, answer, tolerance]).encode() + b"\n")
        found = json.loads(self._line(WALL_SECONDS))
        return found if isinstance(found, bool) else None

    def _line(self, seconds: float) -> bytes:
        """What the process says next; an error where it is dead or late."""
        assert self.process.stdout
        until, said = time.monotonic() + seconds, b""
        while not said.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))
            part = os.read(self.process.stdout.fileno(), 4096) if ready else b""
            if not part:
                raise TimeoutError("a worker was late or died")
            said += part
        return said

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


def serve() -> None:
    """The life of a worker: loads sympy, then answers line by line until its parent is gone."""
    import resource

    from stockpot.rewards.agree import agree
    from stockpot.rewards.symbolic import formula

    speak = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for clock in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(clock, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import math_verify  # noqa: F401

    for pair in (("\\frac{x}{2}+\\sqrt{3}", "\\cos x"), ("x<1", "1>x"), ("[0,1)", "[0,1]")):
        formula(*pair)  # what is loaded or built on first use costs no question its time
    print("null", file=speak, flush=True)
    for line in sys.stdin:
        gold, answer, tolerance = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        found: Any = None
        with contextlib.suppress(Exception):
            found = agree(gold, answer, partial(formula, tolerance=tolerance), tolerance)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(found if isinstance(found, bool) else None), file=speak, flush=True)
