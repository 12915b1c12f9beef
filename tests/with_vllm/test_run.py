"""The real command with vLLM as its sampler: prefixes from the history, a record, and what a resume gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="the vLLM sampler needs the environment of `make vllm`")

from runs import assert_same_bits, metrics, stockpot, trained
from stockpot.history import History


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm") / "run"
    trained("--sampler", "vllm", "--start.steps", 100, "--steps", 4, "--vllm.memory-gb", 0.2, "--out", folder)
    return folder


def test_a_run_learns_from_what_vllm_wrote(run: Path) -> None:
    rows = metrics(run)[1:]
    assert len(rows) == 4 and all(row["mismatch/max"] < 5e-5 for row in rows), [row["mismatch/max"] for row in rows]
    assert any(row["mismatch/mean"] > 0 for row in rows), "two programs that add in other orders"
    assert sum(row["prefix/tokens"] for row in rows) > 0 and all(row["grad_norm"] > 0 for row in rows)
    with History.open(run / "history.sqlite", read_only=True) as history:
        rollouts = list(history.find(versions=(0, 3)))
    assert len(rollouts) == 4 * 16 and {r.spans[-1].author.version for r in rollouts} == {0, 1, 2, 3}
    old = [r for r in rollouts if r.prefix_length]
    assert old and all(r.spans[0].author.version < r.spans[-1].author.version for r in old)  # type: ignore[operator]


def test_a_run_that_is_resumed_ends_in_the_same_bits(run: Path, tmp_path: Path) -> None:
    """Here: float32, one thread, the same machine. docs/vllm.md says what is not promised."""
    again = tmp_path / "run"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "step-4")
    told = stockpot("resume", again)
    assert told.code == 0, told.err
    assert_same_bits(run, again)


def test_what_only_reads_a_run_needs_no_vllm(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockpot.engines.pushed.VLLMSampler", None)
    told = stockpot("eval", run, "--samples", 2, "--prompts", 2)
    assert told.code == 0, told.err
