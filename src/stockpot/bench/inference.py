"""SOUP inference over the runs of the table: an older checkpoint begins, the last one ends, at equal decoded tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stockpot.bench.cells import Cell, quietly
from stockpot.bench.tables import table, verdict
from stockpot.passk import over_seeds
from stockpot.record import commit, write_whole
from stockpot.soup_inference import compare

SAMPLES, SHOWN = 64, (1, 4, 16, 64)


def infer_one(cell: Cell, folder: Path) -> None:
    """Compare both arms on a finished run and keep what was found."""

    def work() -> None:
        found = compare(folder / "runs" / cell.key, "all", samples=SAMPLES, seed=1).to_json()
        told = {"name": cell.name, "commit": commit(), "found": found}
        write_whole(folder / "inference" / f"{cell.key}.json", json.dumps(told) + "\n")

    (folder / "inference").mkdir(exist_ok=True)
    quietly(folder / "logs" / f"infer {cell.key}.txt", work)


def load(folder: Path) -> dict[str, Any]:
    """What was found, by the names of the runs."""
    told = [json.loads(path.read_text()) for path in sorted((folder / "inference").glob("*.json"))]
    return {one["name"]: one["found"] for one in told}


def report(found: Mapping[str, Any], methods: Sequence[str], difficulties: Sequence[str], seeds: Sequence[int]) -> str:
    """SOUP - single at as many samples and at as many tokens, over the seeds that are there."""
    rows = []
    for method in methods:
        for difficulty in difficulties:
            some = [
                found[f"main {method} {difficulty} {s}"] for s in seeds if f"main {method} {difficulty} {s}" in found
            ]
            if not some:
                continue
            for kind in ("equal_samples", "equal_tokens"):
                cells = []
                for k in SHOWN:
                    picked = [row for one in some for row in one[kind] if row["single_samples"] == k]
                    mine = over_seeds([row["difference"]["mean"] for row in picked]) if picked else None
                    cells += ["" if mine is None else f"{mine:+}", "" if mine is None else verdict(mine)]
                rows.append([method, difficulty, kind.replace("_", " "), *cells])
    head = ["run", "task", "at", *(word for k in SHOWN for word in (f"pass@{k}", "verdict"))]
    title = f"SOUP inference - single model, {SAMPLES} samples a prompt, seeds {', '.join(map(str, seeds))}"
    return table(title, head, rows)
