"""Killed at random moments, a run under Ray goes on, or is resumed, and has lost nothing and learnt nothing twice.

In synchronous runs that is to be seen in one comparison: the same bits as a run in which nobody died.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import faults
import warm
from runs import TINY, assert_same_bits, dump, metrics, stockpot, trained, weights
from stockpot.config import Config, load_recipe
from test_ray import assert_whole, rollouts, timings

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(
    not os.environ.get("STOCKPOT_FAULTS"), reason="kills processes for some five minutes: make faults"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, str]]:
    with warm.cluster() as joined:
        yield joined


def test_samplers_reward_workers_learners_and_history_killed_twenty_times_each(
    cluster: object, started: str, tmp_path: Path
) -> None:
    """In one run; every kind at random moments, several in a step. It goes on by itself to the same bits."""
    words = faults.seldom(["--engine", "ray", "--samplers", 2, "--reward-workers", 1, "--model", started])
    words += ["--steps", "60"]
    trained("--out", tmp_path / "calm" / "run", *words)
    killer = faults.Killer(dict.fromkeys(faults.KINDS, 20), random.Random(time.time_ns()))
    with killer.at_work():
        told = stockpot("train", TINY, "--out", tmp_path / "run", *words)
    assert told.code == 0, told.err
    assert all(killer.done[kind] >= 20 for kind in faults.KINDS), killer.done
    assert_same_bits(tmp_path / "calm" / "run", tmp_path / "run")
    last = timings(tmp_path / "run")[-1]
    assert last["learner/restarts"] >= 15 and last["sampler/restarts"] >= 15 and last["reward/restarts"] >= 10
    assert told.err.count("all of them start again from the last checkpoint") == last["learner/restarts"]


def test_a_group_of_learners_is_lost_and_found_together(cluster: object, started: str, tmp_path: Path) -> None:
    """Of two learners any one may die; the other waits for it in the middle of a sum."""
    words = faults.seldom(["--engine", "ray", "--learners", 2, "--model", started, "--steps", 8])
    trained("--out", tmp_path / "calm" / "run", *words)
    killer = faults.Killer({"learner": 3}, random.Random(time.time_ns()), share=1.0)
    with killer.at_work():
        told = stockpot("train", TINY, "--out", tmp_path / "run", *words)
    assert told.code == 0, told.err
    assert killer.done["learner"] == 3
    one, other = tmp_path / "calm" / "run", tmp_path / "run"
    assert metrics(one) == metrics(other) and dump(one) == dump(other)
    assert weights(one)["model.safetensors"] == weights(other)["model.safetensors"]


def test_samplers_that_run_ahead_may_die_too(cluster: object, started: str, tmp_path: Path) -> None:
    """No step lacks a rollout or has one twice, nothing is too old, and every request is accounted for."""
    words = faults.seldom(["--engine", "ray", "--samplers", 2, "--ahead", 2, "--model", started, "--steps", 24])
    killer = faults.Killer({"sampler": 8, "learner": 4, "history": 2}, random.Random(time.time_ns()), share=0.5)
    with killer.at_work():
        told = stockpot("train", TINY, "--out", tmp_path / "run", *words, "--group-size", 2)
    assert told.code == 0, told.err
    assert killer.done["sampler"] == 8 and killer.done["learner"] == 4, killer.done
    assert_whole(tmp_path / "run", load_with(16, 2), 24)
    for line in timings(tmp_path / "run")[1:]:
        assert line["requests/asked"] == sum(line[f"requests/{n}"] for n in ("finished", "in_flight", "withdrawn"))
        assert line["trained_age/max"] <= 2
    for step in range(24):
        live = [s for r in rollouts(tmp_path / "run", step) for s in r.spans if s.kind == "continuation"]
        assert all(0 <= step - (span.author.version or 0) <= 2 for span in live)


def load_with(max_tokens: int, group_size: int) -> Config:
    return replace(load_recipe(str(TINY)), max_tokens=max_tokens, group_size=group_size)


def test_the_whole_run_killed_twenty_times_ends_in_the_same_bits(
    cluster: tuple[str, str], started: str, tmp_path: Path
) -> None:
    """SIGKILL of the process that has the loop; each time it is resumed. Compared with a local run in one piece."""
    words = faults.seldom(["--model", started, "--steps", 64])  # no life gets further than three steps
    trained("--out", tmp_path / "calm" / "run", *words)
    run = tmp_path / "run"
    lives = faults.Lives(str(run), [str(TINY), "--engine", "ray", *words], 20, *cluster, seed=time.time_ns())
    codes = faults.live_and_die(lives, timeout=1500)
    assert codes == [-9] * 20 + [0]
    assert_same_bits(tmp_path / "calm" / "run", run)
    assert len(metrics(run)) == 65


# --- a Ray of its own -----------------------------------------------------------------------------------------------


def processes(word: str) -> list[str]:
    """Command lines of the processes that name it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if word in line]


def test_a_killed_run_takes_its_ray_along_and_a_resumed_one_leaves_nothing(started: str, tmp_path: Path) -> None:
    """The plain command, with a Ray that it starts itself: SIGKILL, resume, and a clean end."""
    with tempfile.TemporaryDirectory(prefix="own-", dir="/tmp") as place:
        run, environment = tmp_path / "run", os.environ | {"TMPDIR": place, "COLUMNS": "100"}
        environment.pop("RAY_ADDRESS", None)
        words = [sys.executable, "-m", "stockpot.cli", "train", str(TINY), "--engine", "ray", "--model", started]
        words += faults.seldom(["--steps", 400, "--out", run])
        with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as life:
            until = time.monotonic() + 280
            while not ((run / "metrics.jsonl").exists() and len(metrics(run)) > 3):
                assert life.poll() is None and time.monotonic() < until
                time.sleep(0.02)
            life.kill()
        until = time.monotonic() + 60
        while processes(place):
            assert time.monotonic() < until, processes(place)
            time.sleep(0.1)
        before = set(Path(place).iterdir())
        config = json.loads((run / "config.json").read_text())
        config["config"]["steps"] = 20 + metrics(run)[-1]["step"]
        (run / "config.json").write_text(json.dumps(config))
        words = [sys.executable, "-m", "stockpot.cli", "resume", str(run)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr
        assert all(line.startswith("training ") for line in done.stderr.splitlines()), done.stderr
        assert set(Path(place).iterdir()) == before and not processes(place)
        assert [line["step"] for line in metrics(run)] == list(range(config["config"]["steps"] + 1))
