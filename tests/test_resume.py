"""Killed at any moment and resumed, a run ends in the same bits as one never killed. Real processes, real SIGKILL."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runs import TINY, Told, assert_same_bits, metrics, stockpot, trained, weights
from stockpot import checkpoints

TESTS = Path(__file__).parent
Life = tuple[str, int, list[str]]


def live(lives: list[Life], cwd: Path) -> tuple[list[int], Told]:
    """Exit codes of a chain of runs (see dying.py), and what they said."""
    done = subprocess.run(
        [sys.executable, str(TESTS / "dying.py")],
        input=json.dumps(lives), capture_output=True, text=True, timeout=300, cwd=cwd, check=False,
    )  # fmt: skip
    codes = [line for line in done.stdout.splitlines() if line.startswith("codes ")]
    assert codes, done.stderr
    return json.loads(codes[0][6:]), Told(done.returncode, done.stdout, done.stderr)


# --- killed ---------------------------------------------------------------------------------------------------------

MOMENTS = {
    "while it is taught": "stockpot.start:demonstration:90",
    "before the taught model is in its place": "pathlib:Path.rename:1",
    "before any figure is written": "stockpot.record:Run.log:1",
    "while the first checkpoint is written": "stockpot.policy:save_file:1",
    "in the middle of a step": "stockpot.engines.local:LocalEngine.learn:2",
    "after the update, before the history": "stockpot.history:History.append:2",
    "within the history's transaction": "stockpot.history.rows:Once.__call__:90",
    "between history and record": "stockpot.record:Run.log:2",
    "while a checkpoint is written, weights without optimiser": "stockpot.policy:save_file:1",
    "while a checkpoint is made safe": "stockpot.checkpoints:_flush:3",
    "before a checkpoint is renamed": "pathlib:Path.rename:3",
    "while the record is rewound": "pathlib:Path.rename:2",
    "while an old checkpoint is removed": "os:unlink:2",
}
"""In the order in which one run dies of them; each resume must get as far as the next."""


def test_a_run_killed_at_every_kind_of_moment_ends_in_the_same_bits(finished: Path, tmp_path: Path) -> None:
    """One run, all the deaths one after the other, and then it is let live."""
    run = tmp_path / "run"
    first, *others = MOMENTS.values()
    lives: list[Life] = [(first, 0, ["train", str(TINY), "--out", str(run)])]
    lives += [(moment, 0, ["resume", str(run)]) for moment in [*others, ""]]
    codes, told = live(lives, tmp_path)
    assert dict(zip(MOMENTS, codes, strict=False)) == dict.fromkeys(MOMENTS, -signal.SIGKILL)
    assert codes[-1] == 0, told.err
    assert_same_bits(finished, run)


OTHER_OPTIONS = [
    "--algorithm", "rloo", "--updates-per-step", "2", "--kl.coefficient", "0", "--entropy.coefficient", "0",
    "--sampling.top-p", "0.9", "--steps", "8",
]  # fmt: skip


def test_the_plain_command_killed_at_random_moments_ends_in_the_same_bits(tmp_path: Path) -> None:
    """The command as a user starts it, killed a random while after it wrote another line of its record."""
    straight, run = tmp_path / "straight" / "run", tmp_path / "killed" / "run"
    trained("--out", straight, *OTHER_OPTIONS)
    dice, deaths = random.Random(time.time_ns()), 0
    words = ["train", str(TINY), "--out", str(run), *OTHER_OPTIONS]
    record = run / "metrics.jsonl"
    for lines in (2, 6, 1000):
        process = subprocess.Popen(
            [sys.executable, "-m", "stockpot.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        pause = dice.uniform(0, 0.3)
        while process.poll() is None and (not record.exists() or record.read_bytes().count(b"\n") < lines):
            time.sleep(0.005)
        time.sleep(pause)
        process.kill()
        said = process.communicate()[0].decode()
        assert process.returncode in (0, -signal.SIGKILL), said
        deaths += process.returncode != 0
        words = ["resume", str(run)]
    assert deaths, "it was never killed: the run is too short for this test"
    assert_same_bits(straight, run)


def test_a_torn_line_of_the_record_is_written_again(finished: Path, tmp_path: Path) -> None:
    """A power cut may leave half a line; a kill cannot, so this one is torn by hand."""
    run = copy(finished, tmp_path)
    shutil.rmtree(run / "checkpoints" / "step-6")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]) + lines[-1][:40])
    assert stockpot("resume", run).code == 0
    assert_same_bits(finished, run)


def test_a_run_that_is_done_stays_as_it_is(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path)
    assert stockpot("resume", run).code == 0
    assert_same_bits(finished, run)


def test_the_run_really_learns(finished: Path) -> None:
    """Equal bits would mean little if the weights never moved or no prefix was ever used."""
    first, last = metrics(finished)[1], metrics(finished)[-1]
    assert first["grad_norm"] > 0 and last["prefix/tokens"] > 0
    assert last["prefix/ratio_max"] != pytest.approx(1.0, abs=1e-3)
    assert weights(finished)["model.safetensors"] != (finished / "start" / "model.safetensors").read_bytes()
    assert weights(finished)["reference.safetensors"] != weights(finished)["model.safetensors"]


# --- damaged --------------------------------------------------------------------------------------------------------


def copy(finished: Path, parent: Path) -> Path:
    return Path(shutil.copytree(finished, parent / "run"))


def truncated(folder: Path) -> None:
    path = folder / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flipped(folder: Path) -> None:
    """One bit of one weight: the file still loads."""
    path = folder / "model.safetensors"
    stored = bytearray(path.read_bytes())
    stored[-5] ^= 1
    path.write_bytes(stored)


def deleted(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def garbage(folder: Path) -> None:
    (folder / checkpoints.MANIFEST).write_bytes(b"\x80 no JSON")


def other_json(folder: Path) -> None:
    (folder / checkpoints.MANIFEST).write_text("[1, 2]")


@pytest.mark.parametrize("damage", [truncated, flipped, deleted, garbage, other_json])
def test_a_damaged_checkpoint_is_passed_over_and_told(
    damage: Callable[[Path], None], finished: Path, tmp_path: Path
) -> None:
    run = copy(finished, tmp_path)
    damage(run / "checkpoints" / "step-6")
    told = stockpot("resume", run)
    assert told.code == 0, told.err
    (line,) = told.complaints
    assert line.startswith("passing over step-6: ") and line.endswith("going back to the checkpoint before it, step-4")
    assert_same_bits(finished, run)


def test_without_a_whole_checkpoint_a_run_begins_again(finished: Path, tmp_path: Path) -> None:
    """All are damaged: each is told, the start model is taken again, and the bits are the same."""
    run = copy(finished, tmp_path)
    found = checkpoints.listed(run / "checkpoints")
    for checkpoint in found:
        truncated(checkpoint.folder)
    told = stockpot("resume", run)
    assert told.code == 0, told.err
    assert len(told.complaints) == len(found)
    assert told.complaints[-1] == "passing over step-0: optimizer.safetensors is damaged; going back to the very start"
    assert_same_bits(finished, run)


def test_damaged_checkpoints_do_not_count_among_those_kept(finished: Path, tmp_path: Path) -> None:
    """A damaged newest one would otherwise push out the whole ones that are written after the resume."""
    run = copy(finished, tmp_path)
    shutil.copytree(run / "checkpoints" / "step-6", run / "checkpoints" / "step-90")
    shutil.copytree(run / "checkpoints" / "step-6", run / "checkpoints" / "step-92")
    for step in (6, 90, 92):
        truncated(run / "checkpoints" / f"step-{step}")
    assert stockpot("resume", run).code == 0
    assert_same_bits(finished, run)


# --- kept -----------------------------------------------------------------------------------------------------------


def write(root: Path, scores: list[float | None], keep: int) -> list[int]:
    for step, score in enumerate(scores):
        checkpoints.write(root, step, score, lambda folder: None)
        checkpoints.prune(root, keep)
    return [checkpoint.step for checkpoint in checkpoints.listed(root)]


@pytest.mark.parametrize(
    ("scores", "keep", "kept"),
    [
        ([0.1, 0.2, 0.9, 0.3, 0.4, 0.5], 2, [0, 2, 4, 5]),
        ([0.1, 0.9, 0.9, 0.3, 0.4, 0.5], 1, [0, 1, 5]),
        ([0.9, 0.1, 0.1, 0.1, None, None], 2, [0, 4, 5]),
        ([None, None, 0.0, None, None, None], 3, [0, 2, 3, 4, 5]),
    ],
)
def test_the_newest_and_the_best_are_kept(
    scores: list[float | None], keep: int, kept: list[int], tmp_path: Path
) -> None:
    """The earliest of equally good ones, step 0 because runs are compared with it, and never more than that."""
    assert write(tmp_path, scores, keep) == kept


# --- no room --------------------------------------------------------------------------------------------------------


def assert_stopped_cleanly(told: Told, run: Path) -> None:
    """One line that names cause and cure, no traceback, and nothing half-written that a reader could take for whole."""
    (line,) = told.complaints
    assert line.startswith("stockpot: ") and "free some space" in line, line
    assert not list(run.glob("checkpoints/.*")), "a half-written checkpoint was left behind"
    assert all(not checkpoints.problem(c.folder) for c in checkpoints.listed(run / "checkpoints"))


LIMITS = {
    "not even the taught model fits": 500_000,
    "the optimiser does not fit": 2_000_000,
    "the history does not fit": 20_000,
}
"""Largest file in bytes; the last one is the limit of a resume, which writes no model before its first step."""


@pytest.fixture(scope="module")
def stopped(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, Told, Path]]:
    """How runs ended that were not allowed to write larger files: a quota, as RLIMIT_FSIZE gives one."""
    runs = {name: tmp_path_factory.mktemp("limit") / "run" for name in LIMITS}
    resumed = copy(finished, runs["the history does not fit"].parent)
    shutil.rmtree(resumed / "checkpoints" / "step-6")
    begin = ["train", str(TINY), "--out"]
    lives = [("", LIMITS[name], [*(["resume"] if run == resumed else begin), str(run)]) for name, run in runs.items()]
    codes, told = live(lives, resumed.parent)
    *said, _ = told.err.split("--- end of a life\n")
    return {name: (code, Told(code, "", err), runs[name]) for name, code, err in zip(runs, codes, said, strict=True)}


@pytest.mark.parametrize("name", LIMITS)
def test_a_file_that_may_not_grow_stops_the_run_in_one_line(
    name: str, finished: Path, stopped: dict[str, tuple[int, Told, Path]]
) -> None:
    """When the limit is lifted, `resume` goes on and ends in the same bits."""
    code, told, run = stopped[name]
    assert code == 2, told.err
    assert_stopped_cleanly(told, run)
    assert stockpot("resume", run).code == 0
    assert_same_bits(finished, run)


SMALL_DISK = """
import shutil, subprocess, sys
from pathlib import Path
home, disk = Path(sys.argv[1]), Path(sys.argv[1], "disk")
disk.mkdir()
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9M", "none", disk], capture_output=True).returncode:
    sys.exit(77)
from runs import TINY, stockpot
told = stockpot("train", TINY, "--out", disk / "run")
shutil.copytree(disk / "run", home / "stopped")
subprocess.run(["mount", "-o", "remount,size=60M", disk], check=True)
again = stockpot("resume", disk / "run")
shutil.copytree(disk / "run", home / "run")
print("codes", told.code, again.code)
sys.stderr.write(told.err)
"""
"""A real file system of 9 MB that fills up and then grows; no other process sees it, and it goes with this one."""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare here; RLIMIT_FSIZE stands in for it above")
def test_a_full_disk_stops_the_run_in_one_line(finished: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", sys.executable, "-c", SMALL_DISK, str(tmp_path)],
        capture_output=True, text=True, cwd=TESTS, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode in (1, 77) and not (tmp_path / "stopped").exists():
        pytest.skip(f"this machine lets us mount no disk ({done.stderr.strip()}); RLIMIT_FSIZE stands in for it above")
    assert "codes 2 0" in done.stdout, done.stderr
    assert_stopped_cleanly(Told(2, done.stdout, done.stderr), tmp_path / "stopped")
    newest = checkpoints.latest(tmp_path / "stopped" / "checkpoints")
    assert newest is not None and newest.step == 0
    assert_same_bits(finished, tmp_path / "run")


def test_a_record_that_cannot_be_written_is_told_in_one_line(finished: Path, tmp_path: Path) -> None:
    """Root ignores permission bits, so what cannot be written here is a folder that stands in the file's place."""
    run = copy(finished, tmp_path)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    told = stockpot("resume", run)
    assert told.code == 2
    (line,) = told.complaints
    assert line.startswith("stockpot: ") and "metrics.jsonl" in line
