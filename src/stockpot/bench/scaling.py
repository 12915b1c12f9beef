"""Accuracy against the budget of thinking tokens, over the checkpoints of kept runs: T1's figure, per seed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from stockpot.as_json import from_json
from stockpot.bench.cells import Cell, quietly
from stockpot.bench.distance import keep
from stockpot.bench.tables import table, verdict
from stockpot.budgets import How, Setup, Writer, measure
from stockpot.config import Config
from stockpot.passk import over_seeds
from stockpot.record import Run
from stockpot.report.budget import chosen
from stockpot.report.rollouts import origin
from stockpot.types import Author, Sampling

ROOM = "budgets"
BUDGETS = (14, 28, 56, 84, 112, 154, 210)
"""An attempt takes 14 tokens."""
MIDDLE = 4
"""Which of them is half of the room: what more than that is worth is told apart."""
HOWS: tuple[How, ...] = get_args(How)


def one(cell: Cell, folder: Path) -> None:
    """Measure every checkpoint of a finished run under both protocols, and keep the curves."""
    (folder / ROOM).mkdir(exist_ok=True)
    run = Run.open(folder / "runs" / cell.key)
    store = folder / ROOM / f"{cell.key}.store"
    quietly(folder / "logs" / f"{ROOM} {cell.key}.txt", lambda: keep(folder, ROOM, cell, curves(run, store)))
    shutil.rmtree(store)


def curves(run: Run, store: Path) -> list[dict[str, Any]]:
    """Accuracy at every budget, for each checkpoint and protocol. The run's own start is the summariser."""
    config: Config = from_json(run.config)
    setup = Setup(
        budgets=BUDGETS, hows=HOWS, samples=2, prompts=96, max_tokens=config.max_tokens, answer_tokens=16,
        sampling=Sampling(), answer_sampling=Sampling(), closing=config.task.closing, seed=1,
    )  # fmt: skip
    start = Writer("start", origin(run), Author("start"))
    found = measure(config, chosen(run, "all"), setup, store, summariser=start)
    return [
        {"step": curve.step, "how": curve.how, "accuracy": [point.accuracy.mean for point in curve.points]}
        for curve in found.curves
    ]


def report(found: Mapping[str, Sequence[Mapping[str, Any]]], arm: str, task: str, seeds: Sequence[int]) -> str:
    """Mean curves, and whether thinking longer is worth more after training than before."""
    runs = [found[f"main {arm} {task} {seed}"] for seed in seeds if f"main {arm} {task} {seed}" in found]
    if len(runs) < 2:
        return ""
    tables = []
    for how in HOWS:
        by_step = [{curve["step"]: curve["accuracy"] for curve in run if curve["how"] == how} for run in runs]
        first, rows = min(by_step[0]), []
        for step in sorted(by_step[0]):
            some = [curve[step] for curve in by_step]
            cells = [f"{over_seeds([curve[i] for curve in some]).mean:.3f}" for i in range(len(BUDGETS))]
            for low in (0, MIDDLE):
                cells.append(f"{over_seeds([curve[-1] - curve[low] for curve in some]):+}")
                more = over_seeds([c[step][-1] - c[step][low] - (c[first][-1] - c[first][low]) for c in by_step])
                cells.append("" if step == first else f"{more:+} {verdict(more)}")
            rows.append([f"step {step}", *cells])
        head = ["policy", *(f"{budget} tokens" for budget in BUDGETS)]
        for low in (0, MIDDLE):
            head += [f"from {BUDGETS[low]} to {BUDGETS[-1]}", "more than the start: steeper"]
        tables.append(
            table(f"{task}: accuracy against thinking budget, {how}, means over {len(runs)} seeds", head, rows)
        )
    return "\n\n".join(tables)
