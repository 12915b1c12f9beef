"""Time of a step and memory of a process, with one learner, two under FSDP2 and two under DDP: as shares of one's.

Each way gets processes of its own, one thread each, and the same rollouts; all take a turn after each other, so that
the machine's load weighs on all. Of the time two figures are given: by the clock, where two processes need two free
cores to be faster, and the processor's own seconds of the busier process, which other programs cannot take away.

Memory is the most that a process held while it took steps (loading is over then), less what it held before it had a
model: on a CPU its resident set by the kernel's own mark, on a GPU what PyTorch allocated. On a CPU the C library keeps
what was freed for later, which hides what FSDP gives back; the bench has it give large blocks back at once.

    python bench/ranks.py [--size 30m | default] [--turns 3] [--rollouts 16] [--device cpu]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "MALLOC_MMAP_THRESHOLD_" not in os.environ and __name__ == "__main__":  # read when a process starts
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"})

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


def work(folder: Path, rank: int, world: int, parallel: str, options: argparse.Namespace, line: Connection) -> None:
    """One process: a step for every number that it is sent, answered with seconds, own seconds and bytes."""
    config = Config(
        device=options.device, max_tokens=80,
        learner=Learner(learning_rate=1e-5, tokens_per_pass=512, parallel=parallel),  # type: ignore[arg-type]
    )  # fmt: skip
    given = ragged(options.rollouts, 100)
    draw = random.Random(1)
    groups = tuple(i // 8 for i in range(len(given)))
    lesson = Lesson(tuple(given), tuple(draw.uniform(-1, 1) for _ in given), groups)
    before, model = resident("VmRSS"), str(folder / "model")
    meeting = f"file://{folder}/meeting-{world}-{parallel}"
    one = Rank(config, RUN, model, model, rank=rank, world=world, meeting=meeting)
    one.learn(lesson, 0)  # the first step makes the optimiser's state, and is slower
    Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    while line.recv():
        start, own = time.perf_counter(), time.process_time()
        assert not one.learn(lesson, 0).skipped
        times = time.perf_counter() - start, time.process_time() - own
        most = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident("VmHWM") - before
        line.send((*times, float(most)))
    one.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=("default", "30m"), default="30m")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    context = multiprocessing.get_context("fork")  # libraries are read once
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        AutoModelForCausalLM.from_config(shape(options.size)).save_pretrained(folder / "model")
        Countdown().tokenizer().save_pretrained(folder / "model")
        lines: dict[str, list[Any]] = {}
        for way, world, parallel in WAYS:
            pairs = [context.Pipe() for _ in range(world)]
            lines[way] = [ours for ours, _ in pairs]
            for rank, (_, theirs) in enumerate(pairs):
                words = (folder, rank, world, parallel, options, theirs)
                context.Process(target=work, args=words, daemon=True).start()
        found: dict[str, list[tuple[float, ...]]] = {way: [] for way, *_ in WAYS}
        for _ in range(options.turns):
            for way, group in lines.items():
                for line in group:
                    line.send(1)
                found[way].append(tuple(max(column) for column in zip(*[line.recv() for line in group], strict=True)))
        for line in (line for group in lines.values() for line in group):
            line.send(0)
        for process in multiprocessing.active_children():
            process.join(60)
    print(f"{options.size}, {options.rollouts} rollouts a step, {options.turns} turns; shares of one learner's")
    for way, rows in found.items():
        ratios = [[row[i] / base[i] for row, base in zip(rows, found["one"], strict=True)] for i in range(3)]
        clock, own, memory = map(statistics.median, ratios)
        print(f"{way:10} clock {clock:.2f}  processor {own:.2f}  memory {memory:.2f}  ({rows[-1][2] / 2**20:.0f} MiB)")


if __name__ == "__main__":
    main()
