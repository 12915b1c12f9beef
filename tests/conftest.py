"""Runs that many tests look at, made once."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from runs import Told, trained


@pytest.fixture(scope="session")
def told_and_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Told, Path]:
    """What a tiny run said, and its folder."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    return trained("--out", folder), folder


@pytest.fixture(scope="session")
def finished(told_and_run: tuple[Told, Path]) -> Path:
    """A tiny run that nothing ever stopped. Look, do not touch."""
    return told_and_run[1]


@pytest.fixture(scope="session")
def started(finished: Path) -> str:
    """A barely taught model folder, for `--model`."""
    return str(finished / "start")
