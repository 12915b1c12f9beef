"""Many runs, each of them once: cells of a table, cached as JSON, a few at a time in processes of their own.

A cell's file is named by its configuration, so a bench that is stopped goes on where it was, and one whose settings
changed never takes old figures for new ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

from stockpot import console
from stockpot.as_json import from_json, to_json
from stockpot.config import Config
from stockpot.prefixes import Offline
from stockpot.record import Run, commit, write_whole
from stockpot.start import prepare
from stockpot.train import train

LOST = ("clip_loss", "clip_share", "entropy", "ess", "kl_to_author")
"""Figures of training, by span kind, of which a result keeps the mean over the second half of a run."""

TOLD = ("prefix/share", "prefix/missing", "rollout/length", "reward/mean")
"""Further figures of training that a result keeps."""


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    name: str
    """Unique in its study: also the run folder's name."""
    config: Config
    """The run; `model` is filled in with the start, where it is empty."""
    start: str = ""
    """Which taught model it starts from: cells with one start share it."""
    keep: bool = False
    """Whether its checkpoints are needed later; a run folder is removed otherwise."""
    history: str = ""
    """The key of another cell, which is kept: `prefixes.path` becomes the history of its run."""

    @property
    def key(self) -> str:
        """Name and configuration in one word."""
        told = json.dumps(set_apart(replace(self.config, model="")), sort_keys=True) + self.start
        return f"{self.name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def set_apart(value: Any) -> Any:
    """What differs from the defaults: so an option that is new, and as it always was, makes no old result stale."""
    if not is_dataclass(value) or isinstance(value, type):
        return to_json(value)
    changed = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}
    return {"class": type(value).__qualname__, **{name: set_apart(one) for name, one in changed.items()}}


@dataclass(frozen=True)
class Result:
    """What is kept of a run."""

    name: str
    commit: str
    seconds: float
    """Of the whole run, by the clock: at the mercy of whatever else the machine did."""
    evaluations: list[dict[str, float]]
    """Held-out figures with their step, each with `cpu`: seconds of work in training until then, without evaluation."""
    training: dict[str, float]
    """Mean figures of the second half of training, and `decoded`: all tokens decoded in training."""

    def last(self, figure: str) -> float:
        """A held-out figure at the end."""
        return self.evaluations[-1][figure]

    def at(self, cpu: float, figure: str) -> float:
        """A held-out figure after that much work, on straight lines between evaluations."""
        rows = self.evaluations
        for a, b in pairwise(rows):
            if a["cpu"] <= cpu <= b["cpu"]:
                share = (cpu - a["cpu"]) / max(b["cpu"] - a["cpu"], 1e-9)
                return a[figure] + share * (b[figure] - a[figure])
        return rows[-1 if cpu > rows[-1]["cpu"] else 0][figure]


class Study(ABC):
    """A table of runs and what is read off it."""

    name: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]
    """In the order they are made: later ones may depend on the figures of earlier ones."""

    @abstractmethod
    def cells(self, part: str, results: Mapping[str, Result]) -> list[Cell]:
        """The runs of a part, given the results so far."""

    @abstractmethod
    def starts(self) -> dict[str, Config]:
        """The configurations whose supervised starts the cells name."""

    @abstractmethod
    def report(self, results: Mapping[str, Result], folder: Path) -> str:
        """Tables and verdicts, from whatever is there."""

    def calls(self, part: str, folder: Path, results: Mapping[str, Result]) -> list[tuple[Any, ...]]:
        """What a part does besides runs: functions with their arguments, called in the pool."""
        return []


def run_study(study: Study, folder: Path, parts: Sequence[str], jobs: int) -> dict[str, Result]:
    """Make what is missing of `parts`, and return the results of everything made so far."""
    results = load(folder)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for part in parts:
            wanted = study.cells(part, results)
            cells = [cell for cell in wanted if stale(folder, cell)]
            for cell in wanted:
                if cell not in cells and results[cell.name] != read(result_of(folder, cell)):
                    result_of(folder, cell).touch()  # settings went back to old ones: the newest of a name counts
            needed = {cell.start for cell in cells if cell.start}
            configs = {name: config for name, config in study.starts().items() if name in needed}
            teach = [(name, config) for name, config in configs.items() if not (folder / "starts" / name).exists()]
            together(pool, f"{study.name}: starts", [(teach_one, name, config, folder) for name, config in teach])
            together(pool, f"{study.name}: {part}", [(run_one, cell, folder) for cell in cells])
            results = load(folder)
            together(pool, f"{study.name}: {part}", study.calls(part, folder, results))
    return load(folder)


def together(pool: ProcessPoolExecutor, title: str, calls: Sequence[tuple[Any, ...]]) -> None:
    """Call all in the pool, with a bar; the first error ends it."""
    if not calls:
        return
    waiting = [pool.submit(*call) for call in calls]
    with console.bar(title, len(calls)) as bar:
        try:
            for done in as_completed(waiting):
                done.result()
                bar.advance(1)
        except BaseException:
            for one in waiting:
                one.cancel()
            raise


def teach_one(name: str, config: Config, folder: Path) -> None:
    """Teach a start, quietly, into starts/NAME."""
    quietly(folder / "logs" / f"start-{name}.txt", lambda: prepare(config, folder / "starts" / name))


def run_one(cell: Cell, folder: Path) -> None:
    """Run a cell, or go on with it, and write its result."""
    place = folder / "runs" / cell.key
    model = str(folder / "starts" / cell.start) if cell.start else cell.config.model
    begun, start = (place / "config.json").exists(), time.time()
    config = replace(cell.config, model=model)
    if isinstance(cell.config.prefixes, Offline) and cell.history:
        path = str(folder / "runs" / cell.history / "history.sqlite")
        config = replace(config, prefixes=replace(cell.config.prefixes, path=path))
    quietly(folder / "logs" / f"{cell.key}.txt", lambda: train(config, place, resume=begun))
    kept = to_dict(cell.name, Run.open(place), time.time() - start)
    write_whole(result_of(folder, cell), json.dumps(kept) + "\n")
    if not cell.keep:
        shutil.rmtree(place, ignore_errors=True)


def quietly(log: Path, work: Callable[[], object]) -> None:
    """Do the work with what it tells the terminal going to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    (log.parent.parent / "results").mkdir(exist_ok=True)
    kept = sys.stderr, sys.stdout
    with log.open("a") as sys.stderr:
        sys.stdout = sys.stderr
        try:
            work()
        finally:
            sys.stderr, sys.stdout = kept


def to_dict(name: str, run: Run, seconds: float) -> dict[str, Any]:
    """A finished run as a result's JSON."""
    metrics, timings = run.metrics(), run.metrics("timings.jsonl")
    worked = 0.0
    spent = {}
    for line in timings:
        worked += line.get("cpu", 0.0)
        spent[line["step"]] = worked
    evaluations = [
        {key: value for key, value in row.items() if key == "step" or key.startswith("test/")}
        | {"cpu": spent[row["step"]]}
        for row in metrics
        if "test/pass@1" in row
    ]
    half = [row for row in metrics if row["step"] > metrics[-1]["step"] / 2]
    training = {"decoded": sum(row.get("rollout/decoded", 0.0) for row in metrics)}
    for key in sorted({key for row in half for key in row}):
        values = [row[key] for row in half if row.get(key) is not None]
        if values and (key.rpartition("/")[2] in LOST or key in TOLD):
            training[key] = sum(values) / len(values)
    return {
        "name": name,
        "commit": commit(),
        "machine": {"cores": os.cpu_count()},
        "config": run.config,
        "seconds": round(seconds, 1),
        "evaluations": evaluations,
        "training": training,
    }


def load(folder: Path) -> dict[str, Result]:
    """The newest result of every name in the folder."""
    found = {}
    for path in sorted((folder / "results").glob("*.json"), key=lambda path: path.stat().st_mtime):
        one = read(path)
        found[one.name] = one
    return found


def read(path: Path) -> Result:
    """A result's file."""
    told = json.loads(path.read_text())
    return Result(**{name: told[name] for name in ("name", "commit", "seconds", "evaluations", "training")})


def result_of(folder: Path, cell: Cell) -> Path:
    """Where a cell's result is kept."""
    return folder / "results" / f"{cell.key}.json"


def stale(folder: Path, cell: Cell) -> bool:
    """Whether there is no result of the cell's configuration, as it was then: a default may have changed since."""
    path = result_of(folder, cell)
    if not path.exists():
        return True
    kept: Config = from_json(json.loads(path.read_text())["config"])
    asked = cell.config
    if isinstance(kept.prefixes, Offline) and isinstance(asked.prefixes, Offline) and cell.history:
        asked = replace(asked, prefixes=replace(asked.prefixes, path=kept.prefixes.path))
    return replace(kept, model="") != replace(asked, model="")
