"""Whole GRPO steps per second: stockpot's loop against TRL's GRPOTrainer, side by side in one process.

    .venv-parity/bin/python bench/against_trl.py       # `make parity` makes that environment

The same model (countdown's, taught briefly so that responses stop early and lengths are ragged as in the default
recipe), the same prompts, 32 prompts x 8 samples, up to 80 new tokens, one update per batch, no KL. The learning rate
is next to nothing, so that lengths stay as they are. Rounds alternate; a round's first step is not counted. The last
line is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from stockpot.algorithms import GRPO
from stockpot.as_json import to_json
from stockpot.config import Config, Start
from stockpot.engines.local import LocalEngine
from stockpot.history import History
from stockpot.prefixes import NoPrefixes
from stockpot.record import Run
from stockpot.start import teach
from stockpot.tasks.countdown import Countdown
from stockpot.train import Loop

TINY_RATE = 1e-12


def ours(config: Config, weights: str, folder: Path, steps: int, first: int) -> tuple[list[float], float]:
    """Seconds of each whole step (history included), and the mean response length."""
    engine = LocalEngine(config, "bench", weights, weights)
    loop = Loop(config, engine, Run.create(folder, to_json(config)))
    seconds, lengths = [], []
    with History.open(folder / "history.sqlite") as history:
        for now in range(first, first + steps):
            start = time.perf_counter()
            metrics, _ = loop.step(now, history)
            seconds.append(time.perf_counter() - start)
            lengths.append(metrics["rollout/length"])
    return seconds[1:], statistics.mean(lengths)


def theirs(config: Config, weights: str, folder: Path, steps: int, seed: int) -> tuple[list[float], float]:
    """The same for TRL."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    stamps: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            stamps.append(time.perf_counter())

        def on_step_end(self, *_: object, **__: object) -> None:
            stamps.append(time.perf_counter())

    rollouts = config.prompts_per_step * config.group_size
    settings = GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_steps=steps,
        per_device_train_batch_size=rollouts,
        gradient_accumulation_steps=1,
        num_generations=config.group_size,
        max_completion_length=config.max_tokens,
        learning_rate=TINY_RATE,
        max_steps=steps,
        beta=0.0,
        temperature=1.0,
        seed=seed,
        disable_tqdm=True,
        shuffle_dataset=True,
    )
    task = config.task
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(weights),
        processing_class=AutoTokenizer.from_pretrained(weights, padding_side="left"),
        reward_funcs=[countdown_reward],
        args=settings,
        train_dataset=Dataset.from_list([dict(row) for row in task.rows("train")]),
        callbacks=[Clock()],
    )
    trainer.train()
    seconds = [end - start for start, end in zip(stamps[::2], stamps[1::2], strict=True)]
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    return seconds[1:], statistics.mean(lengths)


def countdown_reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    return Countdown().reward(prompts, completions, **{k: v for k, v in columns.items() if k in ("numbers", "target")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="steps per round; the first is not counted")
    parser.add_argument("--model", default="", help="a taught countdown model; made here when not given")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = Config()
    config = replace(
        base,
        algorithm=GRPO(),
        prefixes=NoPrefixes(),
        threads=arguments.threads,
        learner=replace(base.learner, learning_rate=TINY_RATE),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = arguments.model or str(folder / "start")
        if not arguments.model:
            teach(Countdown(), Start(steps=300), folder / "start", seed=100)
        mine: list[float] = []
        other: list[float] = []
        for round_number in range(arguments.rounds):
            seconds, length = ours(config, weights, folder / f"ours-{round_number}", arguments.steps, 10 * round_number)
            mine += seconds
            print(f"round {round_number}: stockpot {statistics.median(seconds):.2f} s/step, mean length {length:.1f}")
            seconds, length = theirs(config, weights, folder / f"trl-{round_number}", arguments.steps, round_number)
            other += seconds
            print(f"round {round_number}: TRL      {statistics.median(seconds):.2f} s/step, mean length {length:.1f}")
    for label, values in (("stockpot", mine), ("TRL", other)):
        print(
            f"{label:9} {statistics.median(values):.3f} s/step (median of {len(values)}; "
            f"{min(values):.3f} to {max(values):.3f})"
        )
    print(f"ratio {statistics.median(other) / statistics.median(mine):.2f}")


if __name__ == "__main__":
    main()
