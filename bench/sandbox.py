"""The sandbox and the programs reward on public data: are reference solutions right, wrong ones wrong, and how fast?

    python bench/sandbox.py [--data FOLDER] [--processes 1] [--no-namespaces] [--rows N]

FOLDER (or STOCKPOT_BENCH, or ../shared/bench) holds humaneval.jsonl, mbpp.jsonl and code_contests_*.jsonl; what is
absent is skipped and said to be. CodeContests comes without solutions here: its rows are answered by a program that
knows the outputs by heart, and by one that prints a wrong one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from stockpot.rewards.programs import Programs, checks_of
from stockpot.sandbox import Calls, Job, Limits, Outcome, Program, Sandbox, Tests

HERE = Path(__file__).parents[1]


class Timed(Sandbox):
    """Keeps what every job took."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.ms: list[float] = []
        self.cpu_ms: list[float] = []

    def run(self, jobs: Any, limits: Limits | None = None) -> list[Outcome]:
        outcomes = super().run(jobs, limits)
        self.ms += [outcome.ms for outcome in outcomes]
        self.cpu_ms += [outcome.cpu_ms for outcome in outcomes]
        return outcomes


def rows(path: Path, most: int) -> list[dict[str, Any]]:
    if not path.exists():
        print(f"skipped: no {path.name} in {path.parent}")
        return []
    return [json.loads(line) for line in path.read_text().splitlines()][: most or None]


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def told(name: str, scores: list[float | None], want: float, names: list[str], sandbox: Timed) -> None:
    odd = [row for row, score in zip(names, scores, strict=True) if score != want]
    wall, cpu = sorted(sandbox.ms), sorted(sandbox.cpu_ms)
    print(f"{name:34} {len(scores) - len(odd):4} of {len(scores):4}" + (f"; not: {', '.join(odd[:8])}" if odd else ""))
    print(
        f"{'':34} ms a job ({len(wall)}): clock p10 {wall[len(wall) // 10]:.1f} median {statistics.median(wall):.1f} "
        f"p95 {wall[int(len(wall) * 0.95)]:.1f}; processor median {statistics.median(cpu):.1f}"
    )


def score(sandbox: Timed, name: str, want: float, data: list[dict[str, Any]], codes: list[str], ids: list[str]) -> None:
    if not data:
        return
    reward = Programs(sandbox=sandbox)
    columns = {key: [row.get(key) for row in data] for key in data[0] if key not in ("prompt",)}
    prompts = [row.get("prompt", "") for row in data]
    began, sandbox.ms, sandbox.cpu_ms = time.perf_counter(), [], []
    scores = reward(prompts, [fenced(code) for code in codes], **columns)
    told(name, scores, want, ids, sandbox)
    seen = {key: count for key, count in sorted(reward.counts.items()) if count}
    print(f"{'':34} {time.perf_counter() - began:.1f} s; {seen}")


def by_heart(row: dict[str, Any], right: bool) -> str:
    pairs = dict(checks_of(row, "").pairs)
    wrong = "" if right else " + ' 0'"
    return f"import sys\nprint({pairs!r}[sys.stdin.read()]{wrong})"


def hostile() -> Iterator[tuple[str, Job]]:
    """The attacks of the tests, one line each; held means that the sandbox ended it and served the next job."""
    sys.path.insert(0, str(HERE / "tests"))
    from hostile import ATTACKS, FORGERIES

    for name, code in ATTACKS.items():
        yield name, Program(code)
    for name, code in FORGERIES.items():
        yield f"forge: {name}", Tests(code, ["assert f(20) == 6765", "assert abs(f(3) - 2) < 1e-6"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("STOCKPOT_BENCH", HERE.parent / "shared/bench"))
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--no-namespaces", action="store_true")
    parser.add_argument("--rows", type=int, default=0)
    args = parser.parse_args()
    with Timed(args.processes, namespaces=not args.no_namespaces) as sandbox:
        print(f"level {sandbox.level}; {args.processes} at once")
        for layer, held in sandbox.level.held.items():
            print(f"  {layer:10} held {', '.join(held)}")
        data = rows(args.data / "humaneval.jsonl", args.rows)
        ids = [str(row["task_id"]) for row in data]
        score(
            sandbox, "HumanEval, reference", 1.0, data, [row["prompt"] + row["canonical_solution"] for row in data], ids
        )
        score(sandbox, "HumanEval, reference, body only", 1.0, data, [row["canonical_solution"] for row in data], ids)
        score(sandbox, "HumanEval, returns None", 0.0, data, ["    return None\n"] * len(data), ids)
        data = rows(args.data / "mbpp.jsonl", args.rows)
        ids = [str(row["task_id"]) for row in data]
        score(sandbox, "MBPP, reference", 1.0, data, [row["code"] for row in data], ids)
        score(sandbox, "MBPP, empty", 0.0, data, ["pass"] * len(data), ids)
        for name in ("code_contests_sf20", "code_contests_165"):
            data = rows(args.data / f"{name}.jsonl", args.rows)
            ids = [str(i) for i in range(len(data))]
            score(sandbox, f"{name}, by heart", 1.0, data, [by_heart(row, True) for row in data], ids)
            score(sandbox, f"{name}, wrong", 0.0, data, [by_heart(row, False) for row in data], ids)
        for name, job in {
            "a small function, 10 inputs": Calls("", "lambda x: x + 1", [(i,) for i in range(10)])
        }.items():
            sandbox.ms, sandbox.cpu_ms = [], []
            for _ in range(200):
                sandbox.run([job])
            told(name, [1.0], 1.0, [""], sandbox)
        attacks = list(hostile())
        began = time.perf_counter()
        through = []
        for name, job in attacks:
            outcome = sandbox.run([job], Limits(seconds=1.0, cpu_seconds=1, memory_mb=256))[0]
            after = sandbox.run([Program("print(6 * 7)")])[0]
            if "THROUGH" in outcome.stdout or any(outcome.passed) or after.stdout != "42\n":
                through.append(name)
        print(
            f"hostile programs held: {len(attacks) - len(through)} of {len(attacks)} "
            f"in {time.perf_counter() - began:.1f} s" + (f"; not: {', '.join(through)}" if through else "")
        )


if __name__ == "__main__":
    main()
