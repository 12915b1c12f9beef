"""Killed at random moments, a run under Ray goes on, or is resumed, and has lost nothing and learnt nothing twice.

In synchronous runs that is to be seen in one comparison: the same bits as a run in which nobody died.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import faults
import warm
from runs import TINY, assert_same_bits, metrics, stockpot, trained
from stockpot.config import load_recipe
from test_ray import assert_whole, rollouts, timings

pytest.importorskip("ray")


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
    assert_same_bits(tmp_path / "calm" / "run", tmp_path / "run")


def test_samplers_that_run_ahead_may_die_too(cluster: object, started: str, tmp_path: Path) -> None:
    """No step lacks a rollout or has one twice, nothing is too old, and every request is accounted for."""
    words = faults.seldom(["--engine", "ray", "--samplers", 2, "--ahead", 2, "--model", started, "--steps", 24])
    killer = faults.Killer({"sampler": 8, "learner": 4, "history": 2}, random.Random(time.time_ns()), share=0.5)
    with killer.at_work():
        told = stockpot("train", TINY, "--out", tmp_path / "run", *words, "--group-size", 2)
    assert told.code == 0, told.err
    assert killer.done["sampler"] == 8 and killer.done["learner"] == 4, killer.done
    assert_whole(tmp_path / "run", load_with(tmp_path, 16, 2), 24)
    for line in timings(tmp_path / "run")[1:]:
        assert line["requests/asked"] == sum(line[f"requests/{n}"] for n in ("finished", "in_flight", "withdrawn"))
        assert line["trained_age/max"] <= 2
    for step in range(24):
        live = [s for r in rollouts(tmp_path / "run", step) for s in r.spans if s.kind == "continuation"]
        assert all(0 <= step - (span.author.version or 0) <= 2 for span in live)


def load_with(folder: Path, max_tokens: int, group_size: int) -> object:
    from dataclasses import replace

    return replace(load_recipe(str(TINY)), max_tokens=max_tokens, group_size=group_size)


def test_the_whole_run_killed_twenty_times_ends_in_the_same_bits(
    cluster: tuple[str, str], started: str, tmp_path: Path
) -> None:
    """SIGKILL of the process that has the loop; each time it is resumed. Compared with a local run in one piece."""
    words = faults.seldom(["--model", started, "--steps", 40])
    trained("--out", tmp_path / "calm" / "run", *words)
    run = tmp_path / "run"
    lives = faults.Lives(str(run), [str(TINY), "--engine", "ray", *words], 20, *cluster, seed=time.time_ns())
    codes = faults.live_and_die(lives, timeout=280)
    assert codes == [-9] * 20 + [0]
    assert_same_bits(tmp_path / "calm" / "run", run)
    assert len(metrics(run)) == 41
