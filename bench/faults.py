"""Kills, counted: what becomes of a run under the Ray engine when its processes die at random moments.

    python bench/faults.py --times 20          # of each kind; some minutes
    python bench/faults.py --times 100 --seed 7

Runs of a tiny model, with steps of milliseconds, whose samplers, reward workers, learners and history are killed
(SIGKILL) in the middle of steps, and runs that are killed as a whole and resumed. Each is compared with one in which
nobody died. Prints one row for each kind of death.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import faults
import warm
from runs import TINY, assert_same_bits, dump, stockpot, trained


def same(one: Path, other: Path) -> str:
    """Whether two runs have the same bits."""
    try:
        assert_same_bits(one, other)
    except AssertionError:
        return "OTHER BITS, the same history" if dump(one) == dump(other) else "OTHER BITS"
    return "same bits as if nobody had died"


def of_actors(kind: str, times: int, folder: Path, words: list[str], dice: random.Random) -> str:
    """One run in which only that kind dies; what came of it."""
    steps = ["--steps", str(2 * times)]
    trained("--out", folder / "calm" / "run", *words, *steps)
    killer = faults.Killer({kind: times}, dice)
    began = time.perf_counter()
    with killer.at_work():
        told = stockpot("train", TINY, "--out", folder / "run", *words, *steps)
    outcome = same(folder / "calm" / "run", folder / "run") if told.code == 0 else told.err.splitlines()[-1]
    return f"{killer.done[kind]} | {killer.steps} | {2 * times} | {time.perf_counter() - began:.0f} | {outcome}"


def of_runs(times: int, folder: Path, words: list[str], joined: tuple[str, str], seed: int) -> str:
    """One run that dies as a whole, and is resumed."""
    count = 3 * times + 4  # no life gets further than three steps
    steps = ["--steps", str(count)]
    trained("--out", folder / "calm" / "run", *words, *steps)
    began = time.perf_counter()
    lives = faults.Lives(str(folder / "run"), [str(TINY), "--engine", "ray", *words, *steps], times, *joined, seed=seed)
    codes = faults.live_and_die(lives, timeout=60.0 * times)
    outcome = same(folder / "calm" / "run", folder / "run")
    return f"{codes.count(-9)} | - | {count} | {time.perf_counter() - began:.0f} | {outcome}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="deaths of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, warm.cluster() as joined:
        folder = Path(place)
        trained("--out", folder / "taught", "--steps", 0)
        words = faults.seldom(["--model", folder / "taught" / "start"])
        spread = [*words, "--engine", "ray", "--samplers", "2", "--reward-workers", "1"]
        print("| who | killed | steps begun | steps | seconds | outcome |\n|---|---|---|---|---|---|")
        for kind in faults.KINDS:
            dice = random.Random(f"{options.seed}/{kind}")
            print(f"| {kind} | {of_actors(kind, options.times, folder / kind, spread, dice)} |", flush=True)
        print(
            f"| the whole run | {of_runs(options.times, folder / 'whole', words, joined, options.seed)} |", flush=True
        )


if __name__ == "__main__":
    main()
