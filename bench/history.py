"""How fast the history remembers, and what it costs: python bench/history.py [--rollouts 1000000] [--tokens 10000000].

Two stores are filled through `History.append`. The long one holds many tokens in rollouts of `--length`: it tells
bytes per token, and how much memory a large store takes. The wide one holds many short rollouts of many prompts: it
tells the time to look up the candidates of 1,000 prompts.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from stockpot.history import History
from stockpot.types import Author, Prompt, Rollout, Span


def resident() -> float:
    """Megabytes of this process that are in memory now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def steps(prompts: int, each: int, length: int, per_step: int, chance: random.Random) -> Iterator[list[Rollout]]:
    """Steps of `per_step` rollouts until every prompt has `each`; lengths vary by half around `length`."""
    asked = [Prompt(f"prompt-{number}", range(12), "what is it?", {"answer": str(number)}) for number in range(prompts)]
    order = [prompt for _ in range(each) for prompt in asked]
    for step, start in enumerate(range(0, len(order), per_step)):
        author, rollouts = Author("bench", step), []
        for prompt in order[start : start + per_step]:
            size = chance.randint((length + 1) // 2, length + length // 2)
            ids, log_probs = chance.choices(range(150_000), k=size), [-chance.random()] * size
            reward = float(chance.random() < 0.5)
            rollouts.append(Rollout(prompt, (Span(author, ids, log_probs),), reward))
        yield rollouts


def fill(history: History, name: str, made: Iterator[list[Rollout]]) -> None:
    """Append all; only the appends are timed."""
    seconds, rollouts, tokens, last = 0.0, 0, 0, 0
    for step, sample in enumerate(made):
        started = perf_counter()
        history.append(step, sample)
        seconds += perf_counter() - started
        rollouts, tokens, last = rollouts + len(sample), tokens + sum(map(len, sample)), step + 1
    print(f"{name}: {rollouts:,} rollouts, {tokens:,} tokens in {last:,} steps")
    print(f"  append      {rollouts / seconds:>12,.0f} rollouts/s  {tokens / seconds:>14,.0f} tokens/s")


def times(repeat: int, call: Callable[[], object]) -> list[float]:
    taken = []
    for _ in range(repeat):
        started = perf_counter()
        call()
        taken.append(perf_counter() - started)
    return taken


def long_store(path: Path, args: argparse.Namespace, chance: random.Random) -> None:
    before = resident()
    prompts = max(1, args.tokens // args.length // 16)
    with History.open(path, run="bench") as history:
        fill(history, "long", steps(prompts, 16, args.length, 512, chance))
        print(f"  memory      {resident() - before:>+12.1f} MB after the appends (resident; {before:.0f} MB before)")
        summary, started = history.summary(), perf_counter()
        tokens = sum(len(rollout) for rollout in history.find())
        seconds = perf_counter() - started
        print(f"  stream      {tokens / seconds:>12,.0f} tokens/s through find")
        print(f"  memory      {resident() - before:>+12.1f} MB after streaming all of it")
        ids = [chance.randint(1, summary["rollouts"]) for _ in range(512)]
        for name, call in (("read", history.read), ("uses", history.uses)):
            seconds = median(times(5, partial(call, ids)))
            print(f"  {name}        {len(ids) / seconds:>12,.0f} rollouts/s by id, {len(ids)} at a time")
    size = path.stat().st_size / summary["tokens"]
    print(f"  size        {size:>12.2f} bytes/token on disk (8 are the token and its log-prob)")


def wide_store(path: Path, args: argparse.Namespace, chance: random.Random) -> tuple[int, float]:
    prompts = max(1, args.rollouts // args.each)
    with History.open(path, run="bench") as history:
        fill(history, "wide", steps(prompts, args.each, 4, 1000, chance))
        last = history.summary()["steps"][1]
        print(f"  size        {path.stat().st_size / 2**20:>12,.0f} MB")
        asked = min(1000, prompts)
        result = 0.0
        windows: tuple[tuple[str, dict[str, Any]], ...] = (
            ("16 newest each", {"per_prompt": 16}),
            ("16 newest each, older than half the run", {"per_prompt": 16, "newest": last // 2}),
            (f"all {args.each} each", {}),
        )
        for title, options in windows:
            found = 0

            def look_up(options: dict[str, Any] = options) -> None:
                nonlocal found
                keys = [f"prompt-{number}" for number in chance.sample(range(prompts), asked)]
                found = sum(len(rows) for rows in history.candidates(keys, **options).values())

            taken = times(args.repeat, look_up)
            result = median(taken)
            spread = f"{min(taken):.4f} .. {max(taken):.4f}"
            print(f"  candidates  {result:>12.4f} s ({spread}): {asked} prompts, {title}, {found:,} rows")
        print(f"  look-ups    {asked / result:>12,.0f} prompts/s, all {args.each} each")
    return asked, result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=1_000_000, help="in the wide store")
    parser.add_argument("--each", type=int, default=100, help="rollouts of each prompt in the wide store")
    parser.add_argument("--tokens", type=int, default=10_000_000, help="in the long store")
    parser.add_argument("--length", type=int, default=512, help="mean tokens of a rollout in the long store")
    parser.add_argument("--repeat", type=int, default=11, help="look-ups to take the median of")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        long_store(Path(folder, "long.sqlite"), args, random.Random(0))
        asked, seconds = wide_store(Path(folder, "wide.sqlite"), args, random.Random(1))
    print(f"candidates of {asked:,} prompts in {args.rollouts:,} rollouts, {args.each} each, median s: {seconds:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
