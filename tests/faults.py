"""Kills at random moments: of the actors of a run in this process, and of whole runs in forks.

python faults.py < JSON    lives of a run that die (see `Lives`); what a test starts to have them in clean processes
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = ("sampler", "reward worker", "learner", "history")


@dataclass
class Killer:
    """Kills processes of a run's engine in the middle of its steps, each kind so many times."""

    times: dict[str, int]
    dice: random.Random
    share: float = 0.7
    """Chance that a kind which is still due loses a process in a step."""
    done: Counter[str] = field(default_factory=Counter)
    planned: Counter[str] = field(default_factory=Counter)
    """Kills that are still to fall: on a busy machine, maybe in a later step."""
    steps: int = 0
    """Steps begun, those that had to be begun again included."""
    pace: float = 0.2
    """Seconds that a step takes when nobody dies: kills fall within about that time."""

    def strike(self, engine: Any) -> list[threading.Timer]:
        """Plan the kills of the step that begins."""
        plans = []
        for kind, processes in engine.processes().items():
            due = self.times.get(kind, 0) - self.done[kind] - self.planned[kind]
            if processes and due > 0 and self.dice.random() < self.share:
                self.planned[kind] += 1
                blow = threading.Timer(self.dice.random() * self.pace, self.kill, (kind, self.dice.choice(processes)))
                blow.start()
                plans.append(blow)
        return plans

    def kill(self, kind: str, process: int) -> None:
        """It counts only if there was something to kill."""
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
            self.done[kind] += 1
        self.planned[kind] -= 1

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within, runs of this process suffer."""
        from stockpot.train import Loop

        real = Loop.step

        def step(loop: Any, now: int, history: Any) -> Any:
            self.steps += 1
            plans = self.strike(loop.engine)
            began = time.perf_counter()
            try:
                return real(loop, now, history)
            finally:
                if not plans:
                    self.pace += 0.3 * (time.perf_counter() - began - self.pace)

        Loop.step = step  # type: ignore[method-assign]
        try:
            yield
        finally:
            Loop.step = real  # type: ignore[method-assign]


@dataclass
class Lives:
    """A run that is started, killed as a whole at a random moment of a random step, resumed, killed, ..."""

    run: str
    words: list[str]
    deaths: int
    address: str
    launcher: str
    seed: int


def live_and_die(lives: Lives, timeout: float) -> list[int]:
    """Exit codes of all lives; the last one is let live."""
    told = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(vars(lives)), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    codes = [line for line in told.stdout.splitlines() if line.startswith("codes ")]
    assert codes, told.stderr
    found: list[int] = json.loads(codes[0][6:])
    assert found[-1] == 0, told.stderr
    return found


def arm(dice: random.Random) -> None:
    """This process will kill itself in one of its next three steps, or while it writes what comes after."""
    from stockpot.train import Loop

    real, left = Loop.step, [dice.choice((1, 1, 2, 3))]

    def step(loop: Any, now: int, history: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:  # the timer is later than the step was long
            os.kill(os.getpid(), signal.SIGKILL)
        if left[0] == 0:
            threading.Timer(dice.random() * 0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return real(loop, now, history)

    Loop.step = step  # type: ignore[method-assign]


def one_life(lives: Lives, number: int) -> int:
    """A fork that runs, or resumes, until it dies or is done."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    import warm
    from stockpot import cli

    warm.join(lives.address, lives.launcher)
    if number < lives.deaths:
        arm(random.Random(f"{lives.seed}/{number}"))
    begun = Path(lives.run, "config.json").exists()
    code = cli.main(["resume", lives.run] if begun else ["train", *lives.words, "--out", lives.run])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """All lives, one after the other, in forks of this process, which has imported everything."""
    for name in ("stockpot.report.summary", "stockpot.train", "stockpot.engines.ray.engine", "stockpot.cli"):
        importlib.import_module(name)
    importlib.import_module("transformers").AutoModelForCausalLM  # noqa: B018 - imported lazily
    lives = Lives(**json.load(sys.stdin))
    codes: list[int] = []
    while not codes or (codes[-1] != 0 and len(codes) <= lives.deaths):
        codes.append(one_life(lives, len(codes)))
    print("codes", json.dumps(codes))


def seldom(words: Sequence[object]) -> list[str]:
    """Options of a run whose steps are short and followed by a checkpoint each."""
    quick = ["--evaluation.every", "0", "--checkpoint-every", "1", "--max-tokens", "16", "--prompts-per-step", "4"]
    return [*quick, "--evaluation.samples", "2", "--evaluation.prompts", "2", *map(str, words)]


if __name__ == "__main__":
    main()
