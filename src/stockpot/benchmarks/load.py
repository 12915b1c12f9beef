"""A benchmark's problems, from a folder, a file or the hub; what is left out or unexpected is told."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from stockpot import console
from stockpot.benchmarks.problem import LeftOut, Problem
from stockpot.benchmarks.sets import BENCHMARKS, Benchmark
from stockpot.tasks.dataset import read_rows
from stockpot.types import StockpotError

ENDINGS = (".jsonl", ".json", ".parquet")
VARIABLE = "STOCKPOT_BENCH"


def chosen(words: str) -> list[tuple[Benchmark, str]]:
    """`math500,omni=FILE` -> each benchmark with the source that was named for it, if one was."""
    pairs = [word.strip().partition("=") for word in words.split(",") if word.strip()]
    unknown = [name for name, _, _ in pairs if name not in BENCHMARKS]
    if unknown or not pairs:
        raise StockpotError(
            f"--bench knows no {unknown[0] if unknown else 'empty name'}; it knows {', '.join(BENCHMARKS)}."
        )
    names = [name for name, _, _ in pairs]
    if len(set(names)) < len(names):
        raise StockpotError("--bench names a benchmark twice: name each once.")
    return [(BENCHMARKS[name], source) for name, _, source in pairs]


def load(
    benchmark: Benchmark, data: str = "", *, limit: int | None = None, tell: Callable[[str], None] = console.tell
) -> list[Problem]:
    """All problems of a benchmark, or the first `limit`.

    `data` is a folder, a file or a hub id; empty: the folder that STOCKPOT_BENCH names, else the benchmark's own hub
    id, which needs the extra `data`.
    """
    source, split = find(benchmark, data)
    rows = read_rows(source, split)
    problems: list[Problem] = []
    seen: set[str] = set()
    left: Counter[str] = Counter()
    for number, row in enumerate(rows):
        try:
            problem = benchmark.read(row, number)
        except LeftOut as why:
            left[str(why)] += 1
            continue
        if benchmark.unique and " ".join(problem.question.split()) in seen:
            left["the same problem stands before it"] += 1
            continue
        seen.add(" ".join(problem.question.split()))
        problems.append(problem)
    names = Counter(problem.key for problem in problems)
    problems = [
        replace(problem, key=f"{problem.key}#{place}") if names[problem.key] > 1 else problem
        for place, problem in enumerate(problems)
    ]
    for reason, count in left.items():
        tell(f"{benchmark.name}: {count} of {len(rows)} rows left out: {reason}")
    if not problems:
        raise StockpotError(f"{source} holds no problem of {benchmark.name}: check that it is that benchmark.")
    if len(problems) != benchmark.count:
        tell(f"{benchmark.name}: {len(problems)} problems in {source}, where {benchmark.count} are known")
    return problems if limit is None else problems[:limit]


def find(benchmark: Benchmark, data: str) -> tuple[str, str]:
    """(file or hub id, configuration and split) of a benchmark."""
    given = data or os.environ.get(VARIABLE, "")
    _, configuration, split = benchmark.hub.rsplit(":", 2)
    if not given:
        return benchmark.hub.rsplit(":", 2)[0], f"{configuration}:{split}".lstrip(":")
    place = Path(given).expanduser()
    if place.is_dir():
        names = [f"{stem}{ending}" for stem in (benchmark.name, *benchmark.files) for ending in ENDINGS]
        found = [place / name for name in names if (place / name).is_file()]
        if not found:
            raise StockpotError(f"{place} has no {names[0]} nor another file of {benchmark.name}: put one there.")
        return str(found[0]), split
    if place.suffix in ENDINGS or given.startswith((".", "/", "~")) or given.count("/") > 1:
        if not place.is_file():
            raise StockpotError(f"there is no folder or file {given}: check --data.")
        return str(place), split
    name, _, rest = given.partition(":")  # a hub id, perhaps with a configuration and a split of its own
    return name, rest or f"{configuration}:{split}".lstrip(":")


def fingerprint(problems: list[Problem]) -> str:
    """Short name of exactly these problems."""
    told = json.dumps([[p.key, p.question, dict(p.columns)] for p in problems], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]
