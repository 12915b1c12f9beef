"""Checkpoints: written aside, checked by hash, renamed into place; the newest N and the best one are kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stockpot.types import StockpotError

MANIFEST = "checkpoint.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    step: int
    score: float | None
    """The held-out pass@1 measured at this step, if it was."""


def write(root: Path, step: int, score: float | None, save: Callable[[Path], None]) -> Checkpoint:
    """Call `save` on a folder aside, note the hash of every file, and rename: a reader sees all of it or nothing."""
    aside, final = root / f".step-{step}.part", root / f"step-{step}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save(aside)
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        manifest = {
            "step": step,
            "score": score,
            "files": {str(path.relative_to(aside)): digest(path) for path in files},
        }
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in [*files, aside / MANIFEST]:
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        _flush(root)
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, StockpotError):
            raise
        raise StockpotError(
            f"cannot write the checkpoint of step {step} ({error}): free some space, then resume."
        ) from error
    return Checkpoint(final, step, score)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def problem(folder: Path) -> str:
    """What is wrong with a checkpoint; empty when it is whole."""
    try:
        files: dict[str, str] = json.loads((folder / MANIFEST).read_text())["files"]
        for name, expected in files.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if digest(folder / name) != expected:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {MANIFEST} cannot be read ({type(error).__name__})"
    return ""


def listed(root: Path) -> list[Checkpoint]:
    """Every checkpoint in the folder by step, whole or not; what lacks a readable manifest has no score."""
    found = []
    for folder in root.glob("step-*"):
        if folder.name[5:].isdigit():
            score = None
            with suppress(OSError, ValueError, KeyError, TypeError):  # `problem` tells what is wrong with it
                score = json.loads((folder / MANIFEST).read_text())["score"]
            found.append(Checkpoint(folder, int(folder.name[5:]), score if isinstance(score, float) else None))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def latest(root: Path, tell: Callable[[str], None] = lambda line: None) -> Checkpoint | None:
    """The newest whole checkpoint; each damaged one that is passed over is told."""
    found = listed(root)
    for place in reversed(range(len(found))):
        wrong = problem(found[place].folder)
        if not wrong:
            return found[place]
        back = f"the checkpoint before it, {found[place - 1].folder.name}" if place else "the very start"
        tell(f"passing over {found[place].folder.name}: {wrong}; going back to {back}")
    return None


def find(root: Path, step: int | None, tell: Callable[[str], None] = lambda line: None) -> Checkpoint:
    """The checkpoint of that step, or the newest whole one."""
    found = listed(root)
    chosen = latest(root, tell) if step is None else next((c for c in found if c.step == step), None)
    if chosen is None:
        kept = ", ".join(str(c.step) for c in found) or "none"
        what = "whole checkpoint" if step is None else f"checkpoint of step {step}"
        raise StockpotError(f"{root.parent} has no {what}: kept are {kept}.")
    return chosen


def rewind(root: Path, step: int) -> None:
    """Remove the checkpoints after `step`: damaged ones, which must not count among the newest that are kept."""
    for checkpoint in listed(root):
        if checkpoint.step > step:
            shutil.rmtree(checkpoint.folder, ignore_errors=True)


def best(root: Path) -> Checkpoint | None:
    """The checkpoint with the highest held-out score, the earliest of equals."""
    scored = [checkpoint for checkpoint in listed(root) if checkpoint.score is not None]
    return max(scored, key=lambda checkpoint: (checkpoint.score, -checkpoint.step), default=None)


def prune(root: Path, keep: int) -> None:
    """Remove all but the newest `keep`, the best, and step 0, which is where the run began."""
    top = best(root)
    for checkpoint in listed(root)[:-keep]:
        if checkpoint.step > 0 and (top is None or checkpoint.step != top.step):
            shutil.rmtree(checkpoint.folder, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
