"""Does the default recipe learn? Held-out pass@1, pass@16 and entropy before and after RL, over seeds.

    python bench/default_recipe.py                     # the default recipe and plain GRPO, seeds 0 1 2
    python bench/default_recipe.py --seeds 0 1 2 3 4   # more

Each run is `stockpot train RECIPE --seed S` in a process of its own. Finished runs are kept as JSON in --cache with
their commit, so that the bench can be stopped and goes on where it was. Seeds 0 and up are for reporting; choices were
made on seed 100. Draws the README's figure. The last line is the default recipe's rise of pass@1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from stockpot.passk import over_seeds
from stockpot.record import commit, read_lines

RECIPES = ("countdown", "countdown-grpo")
FIGURES = ("test/pass@1", "test/pass@16", "test/entropy")


def one(recipe: str, seed: int, cache: Path, extra: list[str]) -> dict[str, object]:
    """Metrics and seconds of one run, from the cache or made now."""
    kept = cache / f"{recipe}-{seed}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    folder = cache / "runs" / f"{recipe}-{seed}"
    words = (
        ["resume", str(folder)]
        if (folder / "config.json").exists()
        else ["train", recipe, "--out", str(folder), "--seed", str(seed), *extra]
    )
    start = time.time()
    subprocess.run([sys.executable, "-m", "stockpot.cli", *words], check=True, stdout=subprocess.DEVNULL)
    rows = list(read_lines(folder / "metrics.jsonl"))
    result = {
        "recipe": recipe,
        "seed": seed,
        "commit": commit(),
        "seconds": round(time.time() - start, 1),
        "machine": {"cores": os.cpu_count()},
        "options": extra,
        "metrics": rows,
    }
    kept.write_text(json.dumps(result))
    return result


def table(results: dict[str, list[dict]]) -> None:
    """Means over seeds with 95 % t intervals."""
    for recipe, runs in results.items():
        seconds = sorted(run["seconds"] for run in runs)
        print(
            f"\n{recipe}: seeds {[run['seed'] for run in runs]}, commit {runs[0]['commit']}, "
            f"whole command {seconds[len(seconds) // 2]:.0f} s (median; {seconds[0]:.0f} to {seconds[-1]:.0f})"
        )
        print(f"{'':14}{'before':>26}{'after':>26}{'change':>26}")
        for name in FIGURES:
            ends = [[row for row in run["metrics"] if name in row] for run in runs]
            before = over_seeds([rows[0][name] for rows in ends])
            after = over_seeds([rows[-1][name] for rows in ends])
            change = over_seeds([rows[-1][name] - rows[0][name] for rows in ends])
            print(f"{name[5:]:14}{before!s:>26}{after!s:>26}{change!s:>26}")


def draw(results: dict[str, list[dict]], path: Path) -> None:
    """pass@1 and pass@16 over steps: mean and the band of the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), constrained_layout=True)
    for axis, name in zip(axes, FIGURES, strict=True):
        for recipe, runs in results.items():
            by_step: dict[int, list[float]] = {}
            for run in runs:
                for row in run["metrics"]:
                    if name in row:
                        by_step.setdefault(row["step"], []).append(row[name])
            steps = sorted(by_step)
            mean = [sum(by_step[s]) / len(by_step[s]) for s in steps]
            label = "SOUP (default)" if recipe == "countdown" else "GRPO"
            axis.plot(steps, mean, label=label, linewidth=1.8)
            axis.fill_between(steps, [min(by_step[s]) for s in steps], [max(by_step[s]) for s in steps], alpha=0.2)
        axis.set_title(f"held-out {name[5:]}", fontsize=11)
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--cache", type=Path, default=Path("runs/bench-default"))
    parser.add_argument("--figure", type=Path, default=None, help="write the figure here")
    arguments, extra = parser.parse_known_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict]] = {recipe: [] for recipe in arguments.recipes}
    for seed in arguments.seeds:
        for recipe in arguments.recipes:
            results[recipe].append(one(recipe, seed, arguments.cache, extra))
            print(f"{recipe} seed {seed} done", file=sys.stderr)
    table(results)
    if arguments.figure:
        draw(results, arguments.figure)
    first = results[arguments.recipes[0]]
    rises = []
    for run in first:
        values = [row["test/pass@1"] for row in run["metrics"] if "test/pass@1" in row]
        rises.append(values[-1] - values[0])
    print(f"\nrise of pass@1 ({arguments.recipes[0]}): {over_seeds(rises)}")


if __name__ == "__main__":
    main()
