"""`stockpot eval`: one policy on held-out prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from stockpot import checkpoints, console, prompts
from stockpot.as_json import from_json
from stockpot.config import Config, Evaluation
from stockpot.engines.local import LocalEngine
from stockpot.evaluate import Result
from stockpot.evaluate import evaluate as measure
from stockpot.options import Eval
from stockpot.record import Run, write_whole
from stockpot.report import soup
from stockpot.report.rollouts import origin
from stockpot.types import StockpotError


def evaluate(options: Eval, config: Config | None) -> None:
    """Evaluate a run's checkpoint, or any model when `config` is given, and print the table."""
    if config is not None and options.prefix_from is not None:
        raise StockpotError(
            f"--prefix-from needs a run, and {options.model} is none: only a run keeps older checkpoints of itself."
        )
    if config is None:
        run = Run.open(Path(options.model))
        config = from_json(run.config)
        if options.prefix_from is not None:
            soup.show(options, options.prefix_from, setup(config.evaluation, options).sampling)
            return
        weights, tokenizer_from = str(checkpoints.find(run.checkpoints, options.step, console.tell).folder), origin(run)
    else:
        weights = tokenizer_from = options.model
    torch.set_num_threads(config.threads)
    how = setup(config.evaluation, options)
    engine = LocalEngine(replace(config, model=weights, sampler="torch"), "evaluation", weights, tokenizer_from)
    test = prompts.load_prompts(
        config.task, "test", engine.tokenizer, context=engine.context, max_tokens=config.max_tokens
    )
    room, task = config.max_tokens, config.task
    result = measure(engine, test, task.reward, how, max_tokens=room, seed=options.seed, task=task)
    Console(highlight=False).print(table(result, weights, how, min(how.prompts, len(test))))
    if options.json is not None:
        write_whole(options.json, json.dumps({"model": weights, **result.metrics()}, indent=1) + "\n")


def setup(how: Evaluation, options: Eval) -> Evaluation:
    """The run's way of evaluating, with what the options change."""
    given = {name: value for name in ("temperature", "top_p") if (value := getattr(options, name)) is not None}
    sizes = {name: value for name in ("samples", "prompts") if (value := getattr(options, name)) is not None}
    return replace(how, sampling=replace(how.sampling, **given), **sizes)


def table(result: Result, name: str, how: Evaluation, prompts_used: int) -> Table:
    """What was found, as people read it."""
    made = Table(title=f"{name}: {prompts_used} prompts x {how.samples} samples", title_justify="left")
    made.add_column("")
    made.add_column("mean and 95 % interval over problems", justify="right")
    for k, estimate in result.pass_at.items():
        made.add_row(f"pass@{k}", str(estimate))
    made.add_row("entropy", str(result.entropy))
    made.add_row("length", f"{result.length:.1f}")
    made.add_row("truncated", f"{result.truncated:.3f}")
    if result.distinct is not None:
        made.add_row("distinct right answers", str(result.distinct))
    made.add_row("not judged", str(result.unjudged))
    for label, value in result.observed.items():
        made.add_row(label.rpartition("/")[2], f"{value:.3f}")
    return made
