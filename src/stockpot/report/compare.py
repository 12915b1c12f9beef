"""`stockpot compare-losses`: whose gradient points where the true one does, as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from stockpot import console, prompts
from stockpot.algorithms import Algorithm
from stockpot.as_json import from_json
from stockpot.checkpoints import find
from stockpot.compare import ON_POLICY, Comparison, Sizes, ages, choose, compare, draw
from stockpot.engines.local import LocalEngine
from stockpot.history import History
from stockpot.models import load_tokenizer, vocabulary_of
from stockpot.options import CompareLosses
from stockpot.record import Run, write_whole
from stockpot.regularizers import KL
from stockpot.report.rollouts import origin

WIDTH = 120
"""Of the table in a pipe or a file, where nobody says how much room there is."""


def show(options: CompareLosses, known: Mapping[str, Callable[[], Algorithm]]) -> None:
    """Measure and print."""
    losses = choose(options.losses, known)
    run = Run.open(options.run)
    config = replace(from_json(run.config), kl=KL())  # losses alone: no reference is needed
    torch.set_num_threads(config.threads)
    sizes = Sizes(options.prompts, options.group_size or config.group_size, options.batches, options.fresh)
    checkpoint = find(run.checkpoints, options.step, console.tell)
    bands = ages(options.ages, checkpoint.step)
    vocabulary = vocabulary_of(load_tokenizer(origin(run)))
    with History.open(run.history, vocabulary=vocabulary, read_only=True) as history:
        engine = LocalEngine(config, history.run, str(checkpoint.folder), origin(run))
        engine.version = engine.policy.version = checkpoint.step  # its optimiser stays on disk: nothing is learnt
        room = {"context": engine.context, "max_tokens": config.max_tokens}
        asked = prompts.load_prompts(config.task, "train", engine.tokenizer, **room)
        choice = draw(history, asked, checkpoint.step, bands, sizes, options.seed)
    found = compare(engine, config, choice, losses, sizes, options.seed)
    out = Console(highlight=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=WIDTH)
    out.print(table(found, f"{options.run.name}, version {checkpoint.step}"))
    for line in notes(found, sizes):
        out.print(line, soft_wrap=True)
    if options.json is not None:
        told = {"run": history.run, "version": checkpoint.step, **asdict(sizes), **as_json(found)}
        write_whole(options.json, json.dumps(finite(told), indent=1) + "\n")


def table(found: Comparison, title: str) -> Table:
    """A row for each loss, the best direction first."""
    made = Table(
        title=f"{title}: gradients against the true one", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    made.add_column("loss", no_wrap=True)
    heads = ["cosine of\na batch, 95 %", "of the\nmean"]
    heads += [f"age\n{young}-{old}" for young, old in found.choice.bands]
    for head in [*heads, "vari-\nance", "norm", "ESS", "clip\nloss"]:
        made.add_column(head, justify="right", no_wrap=True)
    for name, m in sorted(found.measures.items(), key=lambda item: -item[1].cosine.mean):
        by_age = [number(c) for c in m.by_age] or ["" for _ in found.choice.bands]
        made.add_row(
            name,
            f"{m.cosine.mean:.3f} ± {m.cosine.high - m.cosine.mean:.3f}",
            number(m.direction),
            *by_age,
            number(m.relative_variance),
            f"{m.norm:.4f}",
            number(m.ess),
            number(m.clip_loss),
            style="bold" if name == ON_POLICY else "",
        )
    return made


def notes(found: Comparison, sizes: Sizes) -> list[str]:
    """What the numbers stand on, and how to read them."""
    choice, truth = found.choice, found.yardstick
    count = len(choice.bands) * sizes.batches
    return [
        f"{count} batches of {len(choice.prompts)} prompts x {sizes.group_size} whole stored rollouts, "
        f"{sizes.batches} for each age band, no rollout in two. Of {choice.known} training prompts {choice.fit} have "
        f"that many, {choice.known - choice.fit} have not and were left out.",
        f"the true gradient: {sizes.fresh} fresh samples of each prompt; cosine between its halves {truth.halves:.3f}, "
        f"so of the whole to the truth {truth.known:.3f}. The cosines above are corrected for it.",
        "of the mean: with the noise of the batches taken out, too (- where it is most of the mean, past 1 near that).",
        "variance: trace of the covariance of a batch's gradient over the squared norm of its mean. on-policy: fresh "
        "batches as large as the others, under the true gradient's estimator.",
        *([f"{found.unjudged} fresh samples could not be judged and count as 0."] if found.unjudged else []),
    ]


def as_json(found: Comparison) -> dict[str, Any]:
    """The same as plain values."""
    choice, truth = found.choice, found.yardstick
    return {
        "ages": [list(band) for band in choice.bands],
        "training_prompts": choice.known,
        "prompts_with_enough": choice.fit,
        "prompts_used": [prompt.key for prompt in choice.prompts],
        "yardstick": {"halves": truth.halves, "known": truth.known, "norm": math.sqrt(truth.square)},
        "unjudged": found.unjudged,
        "losses": {name: asdict(m) for name, m in found.measures.items()},
    }


def number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def finite(value: Any) -> Any:
    """Numbers that are none become null: JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
