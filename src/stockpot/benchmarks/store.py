"""The folder of an evaluation: settings, problems, samples, grades, results. What a kill leaves behind is whole.

settings.json           what was evaluated, and how: other settings are refused
tokenizer/              so that grading needs no model
BENCH.problems.jsonl    what was asked: key, prompt, the grader's columns
BENCH.samples.jsonl     one line per sample, appended: key, number, token ids, why it ended
BENCH.grades.jsonl      one line per sample, written whole: key, number, reward, answer
results.json            the figures
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stockpot.benchmarks.problem import Problem
from stockpot.record import read_lines, write_whole
from stockpot.types import StockpotError

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Sample:
    """One response as it was drawn."""

    problem: str
    number: int
    tokens: tuple[int, ...]
    finish: str
    log_prob: float
    """Of all its tokens together, under the distribution they were drawn from."""


class Store:
    """An evaluation's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def settings(self) -> dict[str, Any]:
        """What was evaluated, and how."""
        path = self.folder / SETTINGS
        if not path.is_file():
            raise StockpotError(f"there is no evaluation in {self.folder}: name a folder that `stockpot eval` made.")
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise StockpotError(f"{path} is damaged ({error}): evaluate again into another --out.") from error
        return found

    def begin(self, settings: dict[str, Any]) -> bool:
        """Make the folder, or find that it holds the same evaluation; whether there was one."""
        if (self.folder / SETTINGS).exists():
            old, new = self.settings, json.loads(json.dumps(settings))
            if other := [name for name in {**old, **new} if old.get(name) != new.get(name)]:
                name = other[0]
                raise StockpotError(
                    f"{self.folder} holds an evaluation with another {name} ({old.get(name)}, now {new.get(name)}): "
                    "name another folder with --out, or give the same settings to go on."
                )
            return True
        if self.folder.exists() and any(path.name != ".lock" for path in self.folder.iterdir()):
            raise StockpotError(f"{self.folder} holds something, but no evaluation: name another with --out.")
        write_whole(self.folder / SETTINGS, json.dumps(settings, indent=1) + "\n")
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes here meanwhile; a killed process's lock is gone with it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / ".lock").open("w")
        except OSError as error:
            raise StockpotError(f"cannot write into {self.folder} ({error.strerror}): name another --out.") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StockpotError(f"another process writes into {self.folder}: wait for it.") from error
            yield

    def write_problems(self, name: str, problems: Sequence[tuple[Problem, str]]) -> None:
        """Problems with the prompts made of them."""
        lines = [{"key": p.key, "question": p.question, "prompt": t, "columns": dict(p.columns)} for p, t in problems]
        write_whole(self.folder / f"{name}.problems.jsonl", "".join(json.dumps(line) + "\n" for line in lines))

    def problems(self, name: str) -> list[tuple[Problem, str]]:
        """What was asked."""
        lines = read_lines(self.folder / f"{name}.problems.jsonl")
        return [(Problem(line["key"], line["question"], line["columns"]), line["prompt"]) for line in lines]

    def append(self, name: str, samples: Sequence[Sample]) -> None:
        """Samples at the end of the file, on the disk when this returns."""
        lines = [
            {"problem": s.problem, "sample": s.number, "finish": s.finish, "log_prob": s.log_prob,
             "tokens": list(s.tokens)}
            for s in samples
        ]  # fmt: skip
        path = self.folder / f"{name}.samples.jsonl"
        try:
            with path.open("a") as file:
                for line in lines:
                    file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StockpotError(f"cannot write {path} ({error.strerror}): free some space, then go on.") from error

    def samples(self, name: str) -> list[Sample]:
        """The samples so far. A last line torn by a kill is cut off, so that the next one begins a line."""
        path = self.folder / f"{name}.samples.jsonl"
        if not path.exists():
            return []
        _cut_torn(path)
        found: list[Sample] = []
        for line in read_lines(path):
            tokens = tuple(line["tokens"])
            found.append(Sample(line["problem"], line["sample"], tokens, line["finish"], line["log_prob"]))
        if len({(s.problem, s.number) for s in found}) < len(found):
            raise StockpotError(f"{path} holds a sample twice: evaluate again into another --out.")
        return found

    def write_grades(self, name: str, grades: Sequence[dict[str, Any]]) -> None:
        """One line per sample."""
        write_whole(self.folder / f"{name}.grades.jsonl", "".join(json.dumps(line) + "\n" for line in grades))

    def write_results(self, results: dict[str, Any]) -> Path:
        """The figures of all benchmarks."""
        path = self.folder / "results.json"
        write_whole(path, json.dumps(results, indent=1) + "\n")
        return path


def _cut_torn(path: Path) -> None:
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        place = size
        while place:
            start = max(0, place - 65536)
            file.seek(start)
            found = file.read(place - start).rfind(b"\n")
            if found >= 0:
                place = start + found + 1
                break
            place = start
        if place < size:
            file.truncate(place)
