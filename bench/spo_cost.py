"""What does SPO cost beside PPO? Memory of model states, seconds per step, and what late refreshing saves.

    python bench/spo_cost.py                 # teaches a model first (two minutes), or: --model FOLDER
    python bench/spo_cost.py --rounds 40

PPO with a critic of the policy's size and a KL to a frozen reference, the same without it, SPO, and GRPO take steps in
turn in one process, so that whatever else the machine does falls on all of them alike. No token ends a
response, so that all are of one length; the learning rate is next to nothing. Prints medians over rounds, and ratios
to PPO in the same round.

Model states are counted from the tensors that are there after an update: weights, gradients, moments, reference,
critic. Then two processes: one writes, one learns, and weights go over every batch or every ten. With the first each
waits for the other; with the second the writer runs on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from stockpot.algorithms import GRPO, PPO, SPO
from stockpot.algorithms.base import CriticOptions
from stockpot.config import Config
from stockpot.engines.base import Lesson
from stockpot.engines.local import LocalEngine
from stockpot.history import History
from stockpot.passk import bootstrap
from stockpot.policy import Learner
from stockpot.prefixes import NoPrefixes
from stockpot.prompts import load_prompts, pick
from stockpot.record import Run, commit
from stockpot.regularizers import KL
from stockpot.start import teach
from stockpot.tasks import Countdown
from stockpot.train import Loop
from stockpot.types import Request

TASK = Countdown(train_prompts=128)
CRITIC = CriticOptions(kind="separate", learning_rate=1e-12)
MODES: dict[str, dict[str, Any]] = {
    "ppo with reference": {"algorithm": PPO(critic=CRITIC), "kl": KL(0.01, estimator="k1")},
    "ppo": {"algorithm": PPO(critic=CRITIC)},
    "spo": {"algorithm": SPO(samples=1)},
    "spo, refresh 10": {"algorithm": SPO(samples=1), "refresh_every": 10},
    "grpo": {"algorithm": GRPO()},
}
LENGTH = 40
"""Tokens of every response: about the mean of a taught model's."""
WARM = 3
PARTS = ("prefix", "continuation", "reward", "advantage", "update", "history")


def config(model: str, **changes: Any) -> Config:
    """16 prompts x 8, all responses of one length."""
    base = Config(task=TASK, model=model, prefixes=NoPrefixes(), learner=Learner(1e-12, tokens_per_pass=2048))
    return replace(base, prompts_per_step=16, max_tokens=LENGTH, **changes)


def engine_of(settings: Config, folder: Path) -> LocalEngine:
    """An engine that never stops a response."""
    torch.set_num_threads(1)
    engine = LocalEngine(settings, "bench", settings.model, settings.model, scratch=folder / "snapshots")
    engine.stops, engine.sampler.stop_tokens = (), frozenset()
    return engine


class Mode:
    """One loop of its own, stepped from outside."""

    def __init__(self, model: str, folder: Path, changes: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        settings = config(model, **changes)
        self.engine = engine_of(settings, folder)
        self.loop = Loop(settings, self.engine, Run(folder, {}))
        self.loop.soft.prepare(0)
        self.history = History.open(folder / "history.sqlite")
        self.now = 0

    def step(self) -> dict[str, float]:
        _, seconds = self.loop.step(self.now, self.history)
        self.now += 1
        return {"seconds": sum(seconds[part] for part in PARTS), "cpu": seconds["cpu"]} | {p: seconds[p] for p in PARTS}


def size(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of tensors, shared storage counted once."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(found.values())


def states(engine: LocalEngine) -> int:
    """Bytes of weights, gradients, moments, reference, critic; a gradient is as large as its weight.

    A policy that is refreshed late has two copies more: the weights kept for it, and the model that writes with them.
    """
    policy = engine.policy
    models = [policy.model, policy.reference] + ([policy.critic.backbone] if policy.critic else [])
    weights = [p for model in models if model is not None for p in model.parameters()]
    late = 2 * size(policy.model.parameters()) if engine.late is not None else 0
    optimizers = [policy.optimizer] + ([policy.critic.optimizer] if policy.critic else [])
    moments = [t for o in optimizers for s in o.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    learnt = {id(p): p for o in optimizers for g in o.param_groups for p in g["params"]}
    return late + size([*weights, *moments]) + sum(p.numel() * p.element_size() for p in learnt.values())


# --- two processes ------------------------------------------------------------------------------------------------


def writer(pipe: Connection, settings: Config, every: int, batches: int, folder: Path) -> None:
    """Writes batches; takes new weights before every batch that is a multiple of `every`."""
    engine = engine_of(settings, folder)
    load = {"tokenizer": engine.tokenizer, "context": engine.context, "max_tokens": settings.max_tokens}
    prompts = load_prompts(settings.task, "train", **load)
    for now in range(batches):
        if now % every == 0:
            engine.policy.model.load_state_dict(pipe.recv())
        asked = pick(prompts, now, settings.prompts_per_step, 0)
        slots = range(len(asked) * settings.group_size)
        requests = [Request(asked[i // settings.group_size], key=i, max_tokens=LENGTH) for i in slots]
        pipe.send(engine.sample(requests, now))


def two_processes(settings: Config, every: int, batches: int, folder: Path) -> float:
    """Seconds a batch, the first few left out, where this process learns from what another writes."""
    folder.mkdir(parents=True)
    engine = engine_of(settings, folder)
    mine, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=writer, args=(theirs, settings, every, batches, folder / "w"))
    process.start()
    begun = 0.0
    for now in range(batches):
        if now % every == 0:
            mine.send({name: tensor.clone() for name, tensor in engine.policy.model.state_dict().items()})
        rollouts = tuple(mine.recv())
        if now == every:
            begun = time.perf_counter()
        reference = tuple(engine.score(rollouts, "reference"))
        groups = tuple(i // settings.group_size for i in range(len(rollouts)))
        told = tuple(replace(rollout, reward=float(i % 2)) for i, rollout in enumerate(rollouts))
        engine.learn(Lesson(told, (0.1,) * len(told), groups, reference), now)
    process.join()
    return (time.perf_counter() - begun) / (batches - every)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a taught countdown model; default: teach one")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="of the two processes")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    result: dict[str, Any] = {"commit": commit(), "rounds": options.rounds}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if not options.model:
            options.model = str(folder / "model")
            teach(TASK, Config().start, Path(options.model), seed=0)
        modes = {name: Mode(options.model, folder / str(i), ch) for i, (name, ch) in enumerate(MODES.items())}
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in MODES}
        for turn in range(WARM + options.rounds):
            order = list(modes.items())
            turned = order[turn % len(order) :] + order[: turn % len(order)]
            for name, mode in turned:
                rows[name].append(mode.step())
        memory = {name: states(mode.engine) for name, mode in modes.items()}
        del modes
        spread: dict[int, list[float]] = {1: [], 10: []}
        for repeat in range(options.repeats):
            for every in (1, 10):
                settings = config(options.model, **MODES["spo"])
                spread[every].append(two_processes(settings, every, 40, folder / f"two-{repeat}-{every}"))
    base = "ppo with reference"
    print(f"commit {commit()}, medians over {options.rounds} rounds; x: ratio to {base}, same round")
    for name in MODES:
        kept = rows[name][WARM:]
        told = {key: median(row[key] for row in kept) for key in kept[0]}
        against = {
            key: bootstrap([a[key] / b[key] for a, b in zip(kept, rows[base][WARM:], strict=True)])
            for key in ("seconds", "cpu")
        }
        result[name] = {**told, "states": memory[name], "x": {key: one.mean for key, one in against.items()}}
        parts = "  ".join(f"{key} {told[key]:.3f}" for key in ("continuation", "advantage", "update"))
        print(
            f"{name:20} states {memory[name] / 2**20:6.2f} MiB (x {memory[name] / memory[base]:.2f})  "
            f"seconds {told['seconds']:.3f} (x {against['seconds']})  cpu (x {against['cpu']})  {parts}"
        )
    ratio = [late / each for each, late in zip(spread[1], spread[10], strict=True)]
    result["two processes"] = spread
    print(
        f"two processes, seconds a batch: refresh 1 {median(spread[1]):.3f}, refresh 10 {median(spread[10]):.3f}, "
        f"x {median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})"
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
