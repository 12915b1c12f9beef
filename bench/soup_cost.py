"""What do old prefixes cost? Seconds and decoded tokens per step, and peak memory, of SOUP against GRPO.

    python bench/soup_cost.py                # teaches a model first (two minutes), or: --model FOLDER
    python bench/soup_cost.py --rounds 60

Three loops of the default recipe on one model, one of them without prefixes, take steps in turn in one process, so
that whatever else the machine does falls on all of them alike. The learning rate is next to nothing, so the policy
stays what it is; and no token ends a response, so that all are of one length and a difference is the prefixes' own
(`--free` lets responses end: prefixed ones then come out somewhat longer). Memory is the peak of a process per mode,
in a run of its own. Prints medians over rounds and ratios to GRPO in the same round.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from stockpot.config import Config
from stockpot.engines.local import LocalEngine
from stockpot.history import History
from stockpot.passk import bootstrap
from stockpot.policy import Learner
from stockpot.prefixes import FromCheckpoints, FromHistory, NoPrefixes
from stockpot.record import Run, commit
from stockpot.start import teach
from stockpot.tasks import Countdown
from stockpot.train import Loop

TASK = Countdown(train_prompts=128)
MODES = {
    "grpo": NoPrefixes(),
    "soup from history": FromHistory(),
    "soup from checkpoints": FromCheckpoints(every=2, keep=4),
}
LENGTH = 40
"""Tokens of every response: about the mean of a taught model's."""
WARM = 8
"""Rounds before the first that counts: by then every prompt has old rollouts, and there are snapshots old enough."""
PARTS = ("prefix", "continuation", "update", "history")


class Mode:
    """One loop of its own, stepped from outside."""

    def __init__(self, name: str, model: str, folder: Path, share: float, free: bool) -> None:
        rule = MODES[name]
        rule = rule if isinstance(rule, NoPrefixes) else replace(rule, share=share)
        config = Config(task=TASK, model=model, prefixes=rule, learner=Learner(1e-12, tokens_per_pass=2048))
        if not free:
            config = replace(config, max_tokens=LENGTH)
        torch.set_num_threads(config.threads)
        engine = LocalEngine(config, name, model, model, scratch=folder / "snapshots")
        if not free:
            engine.stops, engine.sampler.stop_tokens = (), frozenset()
        folder.mkdir(parents=True)
        self.loop = Loop(config, engine, Run(folder, {}))
        self.history = History.open(folder / "history.sqlite")
        self.now = 0

    def step(self) -> dict[str, float]:
        """One step; its figures and seconds."""
        metrics, seconds = self.loop.step(self.now, self.history)
        self.now += 1
        return metrics | seconds | {"seconds": sum(seconds[part] for part in (*PARTS, "reward", "advantage"))}


def memory(name: str, options: argparse.Namespace, rounds: int) -> float:
    """Peak MiB of a process that takes the steps of one mode."""
    words = [sys.executable, __file__, "--model", options.model, "--alone", name, "--rounds", str(rounds)]
    words += ["--share", str(options.share), *(["--free"] if options.free else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a taught countdown model; default: teach one")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--share", type=float, default=0.25, help="share of each group that gets a prefix")
    parser.add_argument("--free", action="store_true", help="let stop tokens end responses")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--alone", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if not options.model:
            options.model = str(folder / "model")
            teach(TASK, Config().start, Path(options.model), seed=0)
        if options.alone:
            mode = Mode(options.alone, options.model, folder / "run", options.share, options.free)
            for _ in range(WARM + options.rounds):
                mode.step()
            print(peak())
            return
        modes = {
            name: Mode(name, options.model, folder / name.replace(" ", "-"), options.share, options.free)
            for name in MODES
        }
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in MODES}
        for turn in range(WARM + options.rounds):
            order = list(modes.items())
            for name, mode in order[turn % 3 :] + order[: turn % 3]:
                rows[name].append(mode.step())
        kept = {name: some[WARM:] for name, some in rows.items()}
        peaks = {name: memory(name, options, 4) for name in MODES}
    print(
        f"commit {commit()}, share {options.share}, medians over {options.rounds} rounds; x: ratio to grpo, same round"
    )
    figures = ("seconds", "cpu", *PARTS, "rollout/decoded", "rollout/length")
    result: dict[str, dict[str, float]] = {}
    for name, some in kept.items():
        line = {figure: median(row[figure] for row in some) for figure in figures}
        for figure in ("seconds", "cpu", "continuation", "rollout/decoded"):
            ratios = [row[figure] / base[figure] for row, base in zip(some, kept["grpo"], strict=True)]
            line[f"x {figure}"] = median(ratios)
            line[f"x {figure} low"], line[f"x {figure} high"] = spread(ratios)
        line["peak MiB"], line["x peak"] = peaks[name], peaks[name] / peaks["grpo"]
        rollouts = 256 * len(some)
        share = sum(row["prefix/share"] for row in some) / len(some)
        tokens = sum(row["rollout/prefixed"] for row in some)
        cut = tokens / max(share * sum(row["rollout/length"] for row in some) * 256, 1e-9)
        line |= {"share s": share, "mean cut c": cut if share else 0.0, "s * c": share * cut if share else 0.0}
        line["decoding saved"] = 1 - sum(r["rollout/decoded"] for r in some) / sum(
            r["rollout/length"] * rollouts / len(some) for r in some
        )
        result[name] = line
    names = list(result["grpo"])
    print(f"\n{'':24}" + "".join(f"{name:>24}" for name in result))
    for figure in names:
        print(f"{figure:24}" + "".join(f"{line[figure]:24.3f}" for line in result.values()))
    if options.json:
        options.json.write_text(json.dumps({"commit": commit(), "result": result}, indent=1) + "\n")


def peak() -> float:
    """MiB that this process held at most. getrusage would count what its parent held when it was started."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def spread(ratios: list[float]) -> tuple[float, float]:
    """A 95 % bootstrap interval of their mean."""
    estimate = bootstrap(ratios)
    return estimate.low, estimate.high


if __name__ == "__main__":
    main()
