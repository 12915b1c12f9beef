"""Time of a step and memory of a process, with one learner, two under FSDP2 and two under DDP: as shares of one's.

Each way gets processes of its own, one thread each, and the same rollouts; all take a turn after each other, so that
the machine's load weighs on all. Of the time two figures are given: by the clock, where two processes need two free
cores to be faster, and the processor's own seconds of the busier process, which other programs cannot take away.

Memory is the most that a process held while it took steps (loading is over then), less what it held before it had a
model: on a CPU its resident set by the kernel's own mark, on a GPU what PyTorch allocated.

    python bench/ranks.py [--size 30m | default] [--turns 3] [--rollouts 16] [--device cpu]
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import AutoModelForCausalLM

from learner import RUN, ragged, shape
from stockpot.config import Config
from stockpot.engines.base import Lesson
from stockpot.engines.ranks import Rank
from stockpot.policy import Learner
from stockpot.tasks.countdown import Countdown

WAYS = (("one", 1, "fsdp"), ("two, fsdp", 2, "fsdp"), ("two, ddp", 2, "ddp"))


def resident(mark: str) -> int:
    """Bytes that this process holds (VmRSS), or the most it held since the mark was cleared (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(mark)).split()[1])


def work(folder: Path, rank: int, world: int, parallel: str, rollouts: int, device: str) -> None:
    """One process: a step for every line that it is sent, answered with seconds, own seconds and bytes."""
    config = Config(device=device, learner=Learner(learning_rate=1e-5, tokens_per_pass=512, parallel=parallel))  # type: ignore[arg-type]
    vocabulary = 100 if (folder / "tiny").exists() else 500
    given = ragged(rollouts, vocabulary)
    draw = random.Random(1)
    lesson = Lesson(tuple(given), tuple(draw.uniform(-1, 1) for _ in given), tuple(i // 8 for i in range(rollouts)))
    before, model = resident("VmRSS"), str(folder / "model")
    meeting = f"file://{folder}/meeting-{world}-{parallel}"
    one = Rank(replace(config, max_tokens=80), RUN, model, model, rank=rank, world=world, meeting=meeting)
    one.learn(lesson, 0)  # the first step makes the optimiser's state, and is slower
    Path("/proc/self/clear_refs").write_text("5")
    for _ in sys.stdin:
        start, own = time.perf_counter(), time.process_time()
        assert not one.learn(lesson, 0).skipped
        times = time.perf_counter() - start, time.process_time() - own
        most = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident("VmHWM") - before
        print("step", *times, most, flush=True)
    one.close()


def answer(process: subprocess.Popen[str]) -> tuple[float, float, float]:
    """A process's next figures."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            seconds, own, most = map(float, line.split()[1:])
            return seconds, own, most
    raise RuntimeError("a learner ended early")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=("default", "30m"), default="30m")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", nargs=4)
    options = parser.parse_args()
    if options.work:
        folder, rank, world, parallel = options.work
        work(Path(folder), int(rank), int(world), parallel, options.rollouts, options.device)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(shape(options.size)).save_pretrained(folder / "model")
        Countdown().tokenizer().save_pretrained(folder / "model")
        if options.size == "default":
            (folder / "tiny").touch()
        shared = ["--rollouts", str(options.rollouts), "--device", options.device]
        groups = {
            way: [
                subprocess.Popen(
                    [sys.executable, __file__, *shared, "--work", name, str(rank), str(world), parallel],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
                for rank in range(world)
            ]
            for way, world, parallel in WAYS
        }  # fmt: skip
        found: dict[str, list[tuple[float, float, float]]] = {way: [] for way, *_ in WAYS}
        for _ in range(options.turns):
            for way, processes in groups.items():
                for process in processes:
                    assert process.stdin is not None
                    print(file=process.stdin, flush=True)
                told = [answer(process) for process in processes]
                found[way].append(tuple(max(column) for column in zip(*told, strict=True)))  # type: ignore[arg-type]
        for process in (p for processes in groups.values() for p in processes):
            process.communicate(timeout=60)
    one = found["one"]
    print(f"{options.size}, {options.rollouts} rollouts a step, {options.turns} turns; shares of one learner's")
    for way, rows in found.items():
        ratios = [[row[i] / base[i] for row, base in zip(rows, one, strict=True)] for i in range(3)]
        clock, own, memory = map(statistics.median, ratios)
        print(f"{way:10} clock {clock:.2f}  processor {own:.2f}  memory {memory:.2f}  ({rows[-1][2] / 2**20:.0f} MiB)")


if __name__ == "__main__":
    main()
