"""The run folder: config.json, metrics.jsonl, timings.jsonl, history.sqlite, checkpoints/.

Metrics are what follows from the configuration: two runs of it write the same bytes. Whatever a clock says goes to
timings.jsonl instead.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from stockpot.types import StockpotError


class Sink(Protocol):
    """Anything that metrics also go to."""

    def log(self, metrics: dict[str, float], step: int) -> None: ...


class Run:
    """An open run folder."""

    def __init__(self, folder: Path, config: dict[str, Any], loggers: Sequence[str] = ()) -> None:
        self.folder, self.config = folder, config
        self._sinks = [open_sink(name, folder, config) for name in loggers]

    @property
    def name(self) -> str:
        """The run's name, by which its policy signs what it writes."""
        return self.folder.name

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def history(self) -> Path:
        """File of the history."""
        return self.folder / "history.sqlite"

    @classmethod
    def create(cls, folder: Path, config: dict[str, Any], loggers: Sequence[str] = ()) -> Run:
        """A new run folder; one that already holds a run is never written over."""
        if (folder / "config.json").exists():
            raise StockpotError(
                f"{folder} already holds a run: `stockpot resume {folder}` goes on with it, --out names another."
            )
        if folder.exists() and not folder.is_dir():
            raise StockpotError(f"{folder} is a file: name another folder with --out.")
        if folder.exists() and any(folder.iterdir()):
            raise StockpotError(f"{folder} is not empty and holds no run: name another folder with --out.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(
                folder / "config.json", json.dumps({"config": config, "made_with": surroundings()}, indent=1) + "\n"
            )
        except OSError as error:
            why = error.strerror or error
            raise StockpotError(f"cannot write into {folder} ({why}): name another folder with --out.") from error
        return cls(folder, config, loggers)

    @classmethod
    def open(cls, folder: Path, loggers: Sequence[str] = ()) -> Run:
        """A run folder that exists."""
        path = folder / "config.json"
        if not path.is_file():
            raise StockpotError(
                f"there is no run in {folder} (no config.json): name a folder that `stockpot train` made."
            )
        try:
            config = json.loads(path.read_text())["config"]
        except (ValueError, KeyError, TypeError) as error:
            why = "it is damaged, or a model's"
            raise StockpotError(f"{path} is not a run's ({why}): name a folder that `stockpot train` made.") from error
        return cls(folder, config, loggers)

    def log(self, step: int, metrics: dict[str, float], timings: dict[str, float]) -> None:
        """One line each to metrics.jsonl and timings.jsonl, and to every logger."""
        finite = {name: value if isfinite(value) else None for name, value in metrics.items()}  # JSON knows no NaN
        self._append("metrics.jsonl", {"step": step, **finite})
        self._append("timings.jsonl", {"step": step, **timings})
        for sink in self._sinks:
            sink.log(metrics | timings, step)

    def sandboxed(self, step: int, level: dict[str, Any] | None) -> str:
        """Keep in sandbox.jsonl what held the programs that were judged, when it changes; returns the one before."""
        before = self.metrics("sandbox.jsonl")
        last = {name: value for name, value in before[-1].items() if name != "step"} if before else None
        if level is None or level == last:
            return ""
        self._append("sandbox.jsonl", {"step": step, **level})
        return str(last["level"]) if last else ""

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """A mistake found while the folder holds nothing but its config.json leaves no folder behind."""
        try:
            yield
        except StockpotError:
            if [path.name for path in self.folder.iterdir()] == ["config.json"]:
                shutil.rmtree(self.folder)
            raise

    def metrics(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The lines written so far."""
        return list(read_lines(self.folder / name))

    def rewind(self, step: int) -> None:
        """Forget the lines after `step`, so that a resumed run writes them again."""
        for name in ("metrics.jsonl", "timings.jsonl"):
            kept = [json.dumps(line) for line in read_lines(self.folder / name) if line["step"] <= step]
            write_whole(self.folder / name, "".join(line + "\n" for line in kept))

    def _append(self, name: str, line: dict[str, Any]) -> None:
        try:
            with (self.folder / name).open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
        except OSError as error:
            why = error.strerror or error
            raise StockpotError(f"cannot write {self.folder / name} ({why}): free some space, then resume.") from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a JSONL file; a last line that was torn by a kill is left out."""
    if path.exists():
        with path.open() as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)


def write_whole(path: Path, text: str) -> None:
    """Write a file aside and rename it into place."""
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def surroundings() -> dict[str, str]:
    """Versions and commit: what else a number depends on."""
    versions = {name: metadata.version(name) for name in ("stockpot", "torch", "transformers")}
    return {**versions, "python": platform.python_version(), "machine": platform.machine(), "commit": commit()}


def commit() -> str:
    """The commit of this source tree, with a + when it has changes; empty outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + (
            "+" if git("status", "--porcelain", "-uno").strip() else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return ""


def open_sink(name: str, folder: Path, config: dict[str, Any]) -> Sink:
    """A logger by its name: an extra that may be missing, and then says how to get it."""
    try:
        if name == "tensorboard":
            return _TensorBoard(import_module("torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard")))
        module = import_module(name)
    except ImportError as error:
        raise StockpotError(f'--loggers {name} needs `pip install "stockpot[loggers]"`.') from error
    module.init(project="stockpot", name=folder.name, config=config)
    return _Module(module)


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


class _Module:
    """trackio and wandb: the same two calls."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._module.log(metrics, step=step)
