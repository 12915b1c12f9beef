"""How far the checkpoints of a run are from its start, and what their responses look like: for runs that were kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from stockpot import checkpoints, ops
from stockpot.as_json import from_json
from stockpot.bench.cells import Cell, quietly
from stockpot.bench.tables import table, verdict
from stockpot.config import Config
from stockpot.engines.local import LocalEngine
from stockpot.passk import over_seeds
from stockpot.prompts import load_prompts
from stockpot.record import Run, commit, write_whole
from stockpot.regularizers import KL
from stockpot.report.rollouts import origin
from stockpot.rewards.penalties import repetition
from stockpot.rewards.score import score
from stockpot.types import Request, Sampling

ROOM, PROMPTS, SAMPLES = "distance", 96, 2
REPEATING, NGRAM = 0.5, 8
"""A response repeats itself when more than this share of its n-grams are repeats."""

Found = Mapping[str, Sequence[Mapping[str, float]]]


def one(cell: Cell, folder: Path) -> None:
    """Measure every checkpoint of a finished run, and keep what was found."""
    (folder / ROOM).mkdir(exist_ok=True)
    run = Run.open(folder / "runs" / cell.key)
    quietly(folder / "logs" / f"{ROOM} {cell.key}.txt", lambda: keep(folder, ROOM, cell, far(run)))


def keep(folder: Path, room: str, cell: Cell, found: Any) -> None:
    """Write what was found of a run into a room of the study's folder."""
    told = {"name": cell.name, "commit": commit(), "found": found}
    write_whole(folder / room / f"{cell.key}.json", json.dumps(told) + "\n")


def load(folder: Path, room: str) -> dict[str, Any]:
    """What was found, by the names of the runs."""
    told = [json.loads(path.read_text()) for path in sorted((folder / room).glob("*.json"))]
    return {one["name"]: one["found"] for one in told}


def far(run: Run) -> list[dict[str, float]]:
    """For each checkpoint: accuracy, length, and the KL from the start, over held-out prompts at temperature 1."""
    config: Config = from_json(run.config)
    config = replace(config, kl=KL(1.0))  # a frozen reference: the start
    torch.set_num_threads(config.threads)
    start, rows = origin(run), []
    for checkpoint in checkpoints.listed(run.checkpoints):
        engine = LocalEngine(config, run.name, str(checkpoint.folder), start)
        asked = load_prompts(config.task, "test", engine.tokenizer, context=0, max_tokens=config.max_tokens)[:PROMPTS]
        requests = [
            Request(prompt, key=i * SAMPLES + j, sampling=Sampling(), max_tokens=config.max_tokens)
            for i, prompt in enumerate(asked)
            for j in range(SAMPLES)
        ]
        rollouts, _ = score(engine.sample(requests, seed=1), config.task.reward, engine.tokenizer)
        pairs = zip(engine.score(rollouts, "policy"), engine.score(rollouts, "reference"), strict=True)
        kl = [float(ops.kl(own.double(), ref.double(), "k3").sum()) for own, ref in pairs]
        tokens, count = sum(map(len, rollouts)), len(rollouts)
        again = [repetition(r.tokens, NGRAM) > REPEATING for r in rollouts]
        rows.append(
            {
                "step": float(checkpoint.step),
                "accuracy": sum((r.reward or 0.0) > 0.5 for r in rollouts) / count,
                "kl": sum(kl) / count,
                "kl_per_token": sum(kl) / tokens,
                "length": tokens / count,
                "truncated": sum(r.finish == "length" for r in rollouts) / count,
                "repeating": sum(again) / count,
            }
        )
    return rows


def report(found: Found, arms: Sequence[str], task: str, seeds: Sequence[int]) -> str:
    """The last checkpoint of every arm."""
    figures = ("accuracy", "kl", "kl_per_token", "length", "truncated", "repeating")
    rows = []
    for arm in arms:
        runs = [found[f"main {arm} {task} {seed}"] for seed in seeds if f"main {arm} {task} {seed}" in found]
        if len(runs) > 1:
            rows.append([arm, *(str(over_seeds([run[-1][figure] for run in runs])) for figure in figures)])
    head = ["arm", "accuracy", "KL from the start, a response", "a token", "length", "out of room", "repeating"]
    return table(f"{task}, at the end: {PROMPTS} held-out prompts x {SAMPLES} samples at temperature 1", head, rows)


def equal(found: Found, arms: Sequence[str], task: str, seeds: Sequence[int]) -> str:
    """KL from the start at the accuracy that all arms of a seed reach: between checkpoints, on straight lines."""
    names = {(arm, seed): f"main {arm} {task} {seed}" for arm in arms for seed in seeds}
    whole = [seed for seed in seeds if all(names[arm, seed] in found for arm in arms)]
    if len(whole) < 2:
        return ""
    level = {seed: min(max(row["accuracy"] for row in found[names[arm, seed]]) for arm in arms) for seed in whole}
    kl = {arm: [kl_at(found[names[arm, seed]], level[seed]) for seed in whole] for arm in arms}
    rows = []
    for arm in arms:
        change = over_seeds([a - b for a, b in zip(kl[arm], kl[arms[0]], strict=True)])
        told = ["", ""] if arm == arms[0] else [f"{change:+}", verdict(change, -1)]
        rows.append([arm, str(over_seeds(kl[arm])), *told])
    head = ["arm", "KL from the start, a response", f"against {arms[0]}", "smaller"]
    reached = sum(level.values()) / len(level)
    return table(
        f"{task}: KL at equal accuracy (per seed the one that all arms reach, {reached:.3f} in the mean)", head, rows
    )


def kl_at(rows: Sequence[Mapping[str, float]], level: float) -> float:
    """The KL where accuracy first reaches a level."""
    if rows[0]["accuracy"] >= level:
        return rows[0]["kl"]
    for a, b in pairwise(rows):
        if b["accuracy"] >= level:
            share = (level - a["accuracy"]) / (b["accuracy"] - a["accuracy"])
            return a["kl"] + share * (b["kl"] - a["kl"])
    return rows[-1]["kl"]
