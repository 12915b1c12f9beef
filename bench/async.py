"""What does it bring that samplers and learner do not wait for each other? Samples a second, and time to a reward.

    python bench/async.py --model FOLDER          # a taught countdown model; without it one is taught (two minutes)
    python bench/async.py --rounds 5 --steps 60 --reward 0.4

One learner and one sampler, a process and a thread each, under the Ray engine. Four ways take turns, round by round,
so that whatever else the machine does falls on all of them alike: synchronous; asynchronous, the sampler up to one or
two steps ahead and its weights swapped in mid-flight; SPO with weights that are handed over every ten steps, in
between which the sampler writes on. Start-up is not counted: the clock runs from the first step to the end of the last.

SPO's beta and learning rate were settled on seed 100: with beta 1 its optimum lies below the reward that is asked for,
and with smaller betas or larger steps it comes to nothing within 150 steps.

Prints medians over rounds, and ratios to the synchronous run of the same round. The time to a reward is that of the
first step at which the mean reward of the last five reached it; a run that never did is counted apart.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from clocked import clocked
from stockpot.algorithms import GRPO, SPO
from stockpot.config import Config, Evaluation
from stockpot.policy import Learner
from stockpot.prefixes import NoPrefixes
from stockpot.record import commit
from stockpot.selection import Select
from stockpot.start import teach
from stockpot.tasks import Countdown
from stockpot.train import train

MODES: dict[str, dict[str, Any]] = {
    "synchronous": {"algorithm": GRPO()},
    "asynchronous, ahead 1": {"algorithm": GRPO(), "ahead": 1},
    "asynchronous, ahead 2": {"algorithm": GRPO(), "ahead": 2},
    "SPO, refresh 10": {
        "algorithm": SPO(beta=0.3, q0="online"),
        "learner": Learner(learning_rate=1e-4, tokens_per_pass=2048),
        "refresh_every": 10,
        "ahead": 9,
    },
}
SMOOTH = 5


def one(config: Config, folder: Path, target: float) -> dict[str, float]:
    """One run: its figures."""
    marks: list[tuple[float, float]] = []
    with clocked(marks):
        train(config, folder)
    begun, rewards = marks[0][0], [reward for _, reward in marks[1:]]
    smooth = [sum(rewards[i - SMOOTH + 1 : i + 1]) / SMOOTH for i in range(SMOOTH - 1, len(rewards))]
    reached = next((i + SMOOTH for i, mean in enumerate(smooth) if mean >= target), 0)
    told = [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()][1:]
    seconds = marks[-1][0] - begun
    means = {
        name: sum(line[name] for line in told) / len(told)
        for name in ("idle/learner", "idle/samplers", "trained_age/mean")
    }
    return {
        "samples/s": config.steps * config.prompts_per_step * config.group_size / seconds,
        "seconds to reward": marks[reached][0] - begun if reached else float("nan"),
        "steps to reward": float(reached) if reached else float("nan"),
        "last reward": smooth[-1],
        **means,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a taught countdown model; default: teach one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=16, help="prompts in a step, of 8 samples each")
    parser.add_argument("--reward", type=float, default=0.4, help="mean reward of five steps that counts as reached")
    parser.add_argument("--learned", type=int, default=8, help="of the 8; with fewer the sampler is the slower half")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in MODES}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if not options.model:
            options.model = str(folder / "model")
            teach(Countdown(), Config().start, Path(options.model), seed=0)
        quiet = Evaluation(samples=1, prompts=8, every=0)
        base = Config(model=options.model, prefixes=NoPrefixes(), evaluation=quiet, engine="ray", steps=options.steps)
        base = replace(base, prompts_per_step=options.prompts, checkpoint_every=options.steps)
        if options.learned < base.group_size:
            base = replace(base, select=Select(size=options.learned, how="random"))
        for turn in range(options.rounds):
            first = turn % len(MODES)
            order = list(MODES)[first:] + list(MODES)[:first]
            for name in order:
                run = folder / str(turn) / name.replace(", ", "-").replace(" ", "-")
                rows[name].append(one(replace(base, seed=turn, **MODES[name]), run, options.reward))
                print(turn, name, json.dumps(rows[name][-1]), flush=True)
    show(rows, options)
    if options.json:
        options.json.write_text(json.dumps({"commit": commit(), "rounds": rows}, indent=1) + "\n")


def show(rows: dict[str, list[dict[str, float]]], options: Any) -> None:
    """Medians, and ratios to the synchronous run of the same round."""
    print(f"commit {commit()}: {options.rounds} rounds of {options.steps} steps of {options.prompts} x 8")
    print("| | samples/s | x | seconds to reward | x | steps | last reward | idle learner, sampler | age |")
    print("|---|---|---|---|---|---|---|---|---|")
    base = rows["synchronous"]
    for name, found in rows.items():
        reached = [(a, b) for a, b in zip(found, base, strict=True) if a["steps to reward"] == a["steps to reward"]]
        both = [(a, b) for a, b in reached if b["steps to reward"] == b["steps to reward"]]
        rate = median(a["samples/s"] / b["samples/s"] for a, b in zip(found, base, strict=True))
        seconds = f"{median(a['seconds to reward'] for a, _ in reached):.1f}" if reached else "-"
        faster = f"{median(a['seconds to reward'] / b['seconds to reward'] for a, b in both):.2f}" if both else "-"
        steps = f"{median(a['steps to reward'] for a, _ in reached):.0f}" if reached else "-"
        few = f" ({len(reached)} of {len(found)})" if len(reached) < len(found) else ""
        middle = {key: median(row[key] for row in found) for key in found[0]}
        print(
            f"| {name} | {middle['samples/s']:.1f} | {rate:.2f} | {seconds}{few} | {faster} | {steps} "
            f"| {middle['last reward']:.3f} | {middle['idle/learner']:.2f}, {middle['idle/samplers']:.2f} "
            f"| {middle['trained_age/mean']:.2f} |"
        )


if __name__ == "__main__":
    main()
