"""Running the real command in this process, and comparing two run folders bit by bit."""

from __future__ import annotations

import io
import json
import sqlite3
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stockpot import cli

TINY = Path(__file__).with_name("tiny.py")


@dataclass(frozen=True)
class Told:
    """What a command left behind in a terminal."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """Lines on stderr that are no progress."""
        bars = ("teaching ", "training ", "yardstick ", "comparing ", "selecting ")
        return [line for line in self.err.splitlines() if not line.startswith(bars)]


def stockpot(*words: object) -> Told:
    """`stockpot WORDS`, through the entry point; whatever it raises is a traceback that a user would see."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as end:  # --help
            code = int(end.code or 0)
    return Told(code, out.getvalue(), err.getvalue())


def trained(*words: object) -> Told:
    """A tiny run that must succeed; words may override the recipe's options."""
    told = stockpot("train", TINY, *words)
    assert told.code == 0, told.err
    return told


def metrics(run: Path) -> list[dict[str, Any]]:
    """The record, as any reader of JSON sees it: Python alone would accept NaN."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (run / "metrics.jsonl").read_text().splitlines()]


def dump(run: Path) -> list[str]:
    """The history as SQL: what is in it, whatever the pages of the file look like."""
    with closing(sqlite3.connect(run / "history.sqlite")) as database:
        return list(database.iterdump())


def weights(run: Path) -> dict[str, bytes]:
    """The newest checkpoint's tensors, byte for byte."""
    newest = max((run / "checkpoints").glob("step-*"), key=lambda folder: int(folder.name[5:]))
    return {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}


def assert_same_bits(one: Path, other: Path) -> None:
    """Weights, optimiser, reference, history, metrics, and which checkpoints were kept."""
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert dump(one) == dump(other)
    kept = [
        {
            path.relative_to(run).as_posix(): path.read_bytes()
            for path in (run / "checkpoints").rglob("*")
            if path.is_file() and path.name != "config.json"
        }
        for run in (one, other)
    ]
    assert kept[0].keys() == kept[1].keys()
    assert not [name for name, stored in kept[0].items() if stored != kept[1][name]]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder: to see that nothing was written over."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
