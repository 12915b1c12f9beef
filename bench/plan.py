"""Does `stockpot plan` foretell how long the modes take beside each other? Predicted and measured ratios, side by side.

    python bench/plan.py                     # teaches a model first (two minutes), or: --model FOLDER
    python bench/plan.py --rounds 20

1. Probes, none a run that is predicted: peaks of one thread; decoding 32 and 256 rows for 24 tokens, which gives
   the overhead of a decoding step and the share of the roofline that is reached; updates on 8 and on 64 responses of
   24 tokens, which give the overhead of a pass and the share of the peak (MFU); judging 64 responses.
2. Real steps on countdown (16 prompts x 8, up to 96 tokens, responses end when they like) in each mode, in turns in one
   process. The learning rate is next to nothing, so the policy stays what it is. Two modes are there to be far from 1:
   prefixes of 40 tokens that checkpoints write for every response, and steps in which requests wait for rows.
3. Two processes under the Ray engine, a learner and a sampler: in turns; with weights that go over every ten steps,
   in between which the sampler writes on; and asynchronously, with weights swapped while responses are under way.

Probes and steps are timed by the processor's clock, which on one thread is the wall's on a machine that does nothing
else; two processes that wait for each other can only be timed by the wall's. The plan is given the lengths that the
GRPO steps had, since no plan can know those. Prints medians over rounds, ratios to GRPO in the same round, and whether
the predicted ratio is within 25 % of the measured one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from clocked import clocked
from stockpot import train
from stockpot.config import Config, Evaluation
from stockpot.engines.base import Lesson
from stockpot.engines.local import LocalEngine
from stockpot.history import History
from stockpot.plan import Assumed, Fleet, Plan
from stockpot.plan.devices import here
from stockpot.plan.roofline import Sampling as Roofline
from stockpot.plan.stragglers import Lengths, observed
from stockpot.policy import Learner
from stockpot.prefixes import FromCheckpoints, FromHistory, NoPrefixes
from stockpot.prompts import load_prompts
from stockpot.record import Run, commit
from stockpot.rewards.score import score
from stockpot.shapes import Shape, shape_of
from stockpot.start import teach
from stockpot.tasks import Countdown
from stockpot.train import Clock, Loop
from stockpot.types import Request, Rollout

TASK = Countdown(train_prompts=64)
WARM = 8
"""Rounds before the first that counts: by then every prompt has old rollouts, and there are snapshots old enough."""
STEPS = 38
"""Steps of a run of two processes: three refreshes behind those that warm it up."""
PARTS = ("prefix", "continuation", "reward", "advantage", "update", "history")
CLOSE = 0.25
"""How far a predicted ratio may be from the measured one."""
PROBED = 24
"""Tokens of a response in the probes."""
PROMPTS = 16
"""Prompts in a step, 8 responses to each."""
MODES: dict[str, dict[str, Any]] = {
    "grpo": {"prefixes": NoPrefixes()},
    "soup from history": {"prefixes": FromHistory()},
    "soup from checkpoints": {"prefixes": FromCheckpoints(every=2, keep=4)},
    "checkpoints, 40 tokens for all": {"prefixes": FromCheckpoints(1.0, every=2, keep=4, shortest=40, longest=40)},
    "grpo, 32 rows": {"prefixes": NoPrefixes(), "decode_rows": 32},
    "soup from history, 32 rows": {"prefixes": FromHistory(), "decode_rows": 32},
}
COURSES: dict[str, dict[str, Any]] = {
    "in turns": {},
    "refreshed every 10": {"refresh_every": 10, "ahead": 9},
    "asynchronous": {"ahead": 2},
}
"""What two processes do."""


def settings(model: str, **changes: Any) -> Config:
    """The default recipe on fewer prompts, with a learning rate of next to nothing."""
    base = Config(task=TASK, model=model, prompts_per_step=PROMPTS, learner=Learner(1e-12, tokens_per_pass=2048))
    return replace(base, **changes)


def prompts_of(engine: LocalEngine, config: Config) -> Any:
    """The training prompts."""
    load = {"tokenizer": engine.tokenizer, "context": engine.context, "max_tokens": config.max_tokens}
    return load_prompts(config.task, "train", **load)


# --- probes -----------------------------------------------------------------------------------------------------------


def probes(model: str, folder: Path, shape: Shape, rounds: int) -> dict[str, float]:
    """The assumptions that describe this machine: peaks, overheads, shares of the peaks, by short work of its own."""
    config = settings(model, prefixes=NoPrefixes())
    torch.set_num_threads(config.threads)
    device = here(config.threads)
    engine = LocalEngine(config, "probe", model, model, scratch=folder / "snapshots")
    engine.stops, engine.sampler.stop_tokens = (), frozenset()
    prompts = prompts_of(engine, config)

    def sample(count: int) -> list[Rollout]:
        asked = [prompts[i // 8 % len(prompts)] for i in range(count)]
        return engine.sample([Request(p, key=i, max_tokens=PROBED) for i, p in enumerate(asked)], 0)

    written = {count: sample(count) for count in (8, 32, 64, 256)}

    def learn(count: int) -> None:
        told = tuple(replace(rollout, reward=float(i % 2)) for i, rollout in enumerate(written[count]))
        engine.learn(Lesson(told, (0.1,) * count, tuple(i // 8 for i in range(count))), 0)

    works: dict[str, Callable[[], Any]] = {
        "few": lambda: sample(32), "many": lambda: sample(256), "small": lambda: learn(8), "large": lambda: learn(64),
        "judge": lambda: score(written[64], TASK.reward, engine.tokenizer),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(1 + rounds):
        for name, work in works.items():
            begun = time.process_time()
            work()
            seconds[name] += [time.process_time() - begun] if turn else []
    took = {name: median(values) for name, values in seconds.items()}
    prompt = mean(len(rollout.prompt.tokens) for rollout in written[256])
    peaks = {"peak_tflops": device.single, "bandwidth": device.bandwidth}
    step, reached = decoding(shape, peaks, prompt, took["few"] / PROBED, took["many"] / PROBED)
    plans = {
        count: Plan(
            replace(config, prompts_per_step=count // 8, max_tokens=PROBED), shape, "cpu",
            Assumed(round(prompt), round(prompt), 1.0, **peaks),
        ).operations().learn / (device.single * 1e12)
        for count in (8, 64)
    }  # fmt: skip
    share = (took["large"] - took["small"]) / (plans[64] - plans[8])
    once = took["small"] - plans[8] * share
    return peaks | {
        "step_ms": 1e3 * max(0.0, step), "reached": reached, "pass_ms": 1e3 * max(0.0, once),
        "mfu": min(1.0, 1 / share), "reward_ms": 1e3 * took["judge"] / 64,
    }  # fmt: skip


def decoding(shape: Shape, peaks: dict[str, float], prompt: float, few: float, many: float) -> tuple[float, float]:
    """Overhead of a step and share of the roofline, from the seconds of a step for 32 rows and for 256."""
    ideal = Roofline(shape, 4, peaks["peak_tflops"] * 1e12, peaks["bandwidth"] * 1e9, 1.0, 0.0, 0.0, 1024)
    low, high = (float(ideal.decoding(rows, rows * (prompt + PROBED / 2))) for rows in (32, 256))
    each = (many - few) / (high - low)
    return few - low * each, min(1.0, 1 / each)


# --- one process ------------------------------------------------------------------------------------------------------


class Worked(Clock):
    """Seconds of the processor instead of the wall."""

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.process_time() - start


class Mode:
    """One loop of its own, stepped from outside."""

    def __init__(self, model: str, folder: Path, changes: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        self.config = settings(model, **changes)
        engine = LocalEngine(self.config, "bench", model, model, scratch=folder / "snapshots")
        self.loop, self.now = Loop(self.config, engine, Run(folder, {})), 0
        self.history = History.open(folder / "history.sqlite")

    def step(self) -> dict[str, float]:
        """One step; its seconds, and its figures."""
        metrics, seconds = self.loop.step(self.now, self.history)
        self.now += 1
        writing = seconds["prefix"] + seconds["continuation"]
        return metrics | seconds | {"seconds": sum(seconds[part] for part in PARTS), "writing": writing}

    def lengths(self, since: int) -> list[int]:
        """Lengths of all responses of the steps from `since` on."""
        known = self.history.candidates(
            [p.key for p in self.loop.train_prompts], oldest=since, newest=self.now
        ).values()
        return [candidate.length for some in known for candidate in some]


def compared(measured: float, predicted: float) -> str:
    """A line's end: both ratios and the verdict."""
    off = predicted / measured - 1
    return f"measured {measured:5.2f}  predicted {predicted:5.2f}  {off:+6.0%}  {'ok' if abs(off) <= CLOSE else 'FAR'}"


# --- two processes ----------------------------------------------------------------------------------------------------


def two_processes(config: Config, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of a step under Ray by the wall's clock, one learner beside one sampler, of each course in turns."""
    quiet = Evaluation(samples=1, prompts=8, every=0)
    config = replace(config, engine="ray", evaluation=quiet, steps=STEPS, checkpoint_every=STEPS)
    found: dict[str, list[float]] = {name: [] for name in COURSES}
    for turn in range(repeats):
        order = list(COURSES.items())
        turn %= len(order)
        for name, changes in order[turn:] + order[:turn]:
            marks: list[tuple[float, float]] = []
            with clocked(marks):
                train.train(replace(config, **changes), folder / f"{len(found[name])}-{name.replace(' ', '-')}")
            found[name].append((marks[-1][0] - marks[WARM][0]) / (STEPS - WARM))
            print(f"{name:24}{found[name][-1]:7.3f} s a step", flush=True)
    return found


# --- all of it --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a taught countdown model; default: teach one")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3, help="of the two processes")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if not options.model:
            options.model = str(folder / "model")
            teach(TASK, Config().start, Path(options.model), seed=0)
        train.Clock = Worked  # type: ignore[misc]
        shape = shape_of(options.model)
        found = probes(options.model, folder / "probe", shape, 7)
        modes = {name: Mode(options.model, folder / str(i), change) for i, (name, change) in enumerate(MODES.items())}
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in MODES}
        for turn in range(WARM + options.rounds):
            order = list(modes.items())
            turn %= len(order)
            for name, mode in order[turn:] + order[:turn]:
                rows[name].append(mode.step())
        rows = {name: some[WARM:] for name, some in rows.items()}
        spread = observed(modes["grpo"].lengths(WARM))
        prompt = mean(len(p.tokens) for p in modes["grpo"].loop.train_prompts)
        configs = {name: mode.config for name, mode in modes.items()}
        del modes
        assumed = Assumed(round(prompt), round(prompt), spread.mean / configs["grpo"].max_tokens, **found)
        result = one_process(configs, shape, assumed, spread, rows)
        took = two_processes(configs["grpo"], folder / "two", options.repeats) if options.repeats else {}
    if took:
        both = Fleet(Plan(configs["grpo"], shape, "cpu", assumed), 2, spread)
        result["two processes"] = apart(both, configs["grpo"], took)
    if options.json:
        told = {"commit": commit(), "assumed": vars(assumed), "result": result}
        options.json.write_text(json.dumps(told, indent=1) + "\n")


def one_process(
    configs: dict[str, Config], shape: Shape, assumed: Assumed, spread: Lengths, rows: dict[str, list[dict[str, float]]]
) -> dict[str, Any]:
    """Print what was assumed and what one process took; all figures again, to be written to a file."""
    print(f"commit {commit()}, {shape.parameters:,} parameters, medians over {len(rows['grpo'])} rounds")
    print("probed: " + ", ".join(f"{name} {getattr(assumed, name):.3g}" for name in PROBES))
    print(f"lengths as measured: mean {spread.mean:.1f}, longest of 128 expected {spread.longest(128):.0f}\n")
    fleets = {name: Fleet(Plan(config, shape, "cpu", assumed), 1, spread) for name, config in configs.items()}
    plans = {name: fleet.together(name, configs[name], 1).seconds for name, fleet in fleets.items()}
    result: dict[str, Any] = {}
    print(f"{'seconds of a step: measured, predicted':40}{'all':>14}{'writing':>14}{'learning':>14}")
    for name, some in rows.items():
        told = {key: median(row[key] for row in some) for key in ("seconds", "writing", "update")}
        foretold = plans[name]
        own = (foretold.step, foretold.decode + foretold.prefill + foretold.sync, foretold.learn)
        pairs_of = zip(told.values(), own, strict=True)
        print(f"{name:40}" + "".join(f"{a:7.3f}{b:7.3f}" for a, b in pairs_of))
        ratio = median(row["seconds"] / base["seconds"] for row, base in zip(some, rows["grpo"], strict=True))
        result[name] = {"seconds": told, "predicted": own, "x": ratio, "x predicted": own[0] / plans["grpo"].step}
    print("\nratios to grpo")
    for name in list(rows)[1:]:
        print(f"{name:40}{compared(result[name]['x'], result[name]['x predicted'])}")
    base = rows["grpo, 32 rows"]
    ratio = median(a["seconds"] / b["seconds"] for a, b in zip(rows["soup from history, 32 rows"], base, strict=True))
    own_ratio = plans["soup from history, 32 rows"].step / plans["grpo, 32 rows"].step
    print(f"{'32 rows: history to grpo':40}{compared(ratio, own_ratio)}")
    return result


def apart(both: Fleet, config: Config, took: dict[str, list[float]]) -> dict[str, Any]:
    """Print what two processes took; the figures again."""
    predicted = {}
    for name, changes in COURSES.items():
        own = replace(config, refresh_every=changes.get("refresh_every", 1))
        predicted[name] = both.apart("", own, 1, 1, waits=name != "asynchronous").seconds.step
    print("\ntwo processes, seconds of a step by the wall's clock: measured, predicted by the processor's")
    for name, values in took.items():
        print(f"{name:40}{median(values):7.3f}{predicted[name]:7.3f}")
    result: dict[str, Any] = {"seconds": took, "predicted": predicted, "x": {}}
    for name in list(took)[1:]:
        ratio = median(a / b for a, b in zip(took[name], took["in turns"], strict=True))
        print(f"{name + ' to in turns':40}{compared(ratio, predicted[name] / predicted['in turns'])}")
        result["x"][name] = ratio
    return result


PROBES = ("peak_tflops", "bandwidth", "step_ms", "reached", "pass_ms", "mfu", "reward_ms")

if __name__ == "__main__":
    main()
