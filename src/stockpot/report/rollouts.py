"""`stockpot show`: rollouts in the terminal, every token in the colour of whoever wrote it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice

import torch
from rich.console import Console
from rich.text import Text

from stockpot.algorithms import SPO
from stockpot.algorithms.spo import path
from stockpot.as_json import from_json
from stockpot.config import Config
from stockpot.history import History, fingerprint
from stockpot.models import load_tokenizer
from stockpot.options import Show
from stockpot.record import Run
from stockpot.soft.baseline import FILE
from stockpot.types import Author, Rollout, StockpotError

BLOCKS = "▁▂▃▄▅▆▇█"
COLOURS = ("cyan", "magenta", "yellow", "blue", "bright_red", "bright_green")
LIVE = "white"


def show(options: Show) -> None:
    """Print the rollouts asked for."""
    run = Run.open(options.run)
    tokenizer = load_tokenizer(origin(run))
    out = Console(highlight=False)
    with History.open(run.history, read_only=True) as history:
        stored = history.summary()["steps"]
        if stored is None:
            raise StockpotError(
                f"{options.run} has no rollouts yet: `stockpot resume {options.run}` goes on with the run."
            )
        step = stored[1] if options.step is None else options.step
        found = history.find(versions=(step, step), prompt=options.prompt)
        wanted = (r for r in found if r.prefix_length or not options.prefixed)
        rollouts = list(islice(wanted, options.count))
        soft = Paths(run, history, step)
        paths = {rollout.id: soft.line(rollout) for rollout in rollouts}
    if not rollouts:
        raise StockpotError(f"no such rollouts at step {step}: `stockpot history {options.run}` tells what is stored.")
    for rollout in rollouts:
        for line in [*lines(rollout, tokenizer, step)[:-1], *paths[rollout.id], Text("")]:
            out.print(line, soft_wrap=not out.is_terminal)


class Paths:
    """Q along each response of an SPO run, as its author saw it: from log-probs that are stored, without a model."""

    def __init__(self, run: Run, history: History, step: int) -> None:
        config: Config = from_json(run.config)
        self.algorithm = config.algorithm
        self.history, self.reference = history, config.kl.name(step)
        self.table: dict[str, dict[str, float]] = {}
        sampled = run.folder / FILE
        if isinstance(self.algorithm, SPO) and sampled.exists():
            self.table = json.loads(sampled.read_text())["prompts"]

    def line(self, rollout: Rollout) -> list[Text]:
        """One line for a rollout: Q before it, its course, Q at its end; none without a reference's log-probs."""
        given = self.history.scores([rollout], self.reference) if isinstance(self.algorithm, SPO) else {}
        if not given or not len(rollout) or any(span.log_probs is None for span in rollout.spans):
            return []
        assert isinstance(self.algorithm, SPO)
        own = torch.tensor([p for span in rollout.spans for p in span.log_probs or ()])
        entry = self.table.get(rollout.prompt.key)
        known = entry is not None and self.algorithm.form != "advantage"
        start = entry["q0"] if entry is not None and known else 0.0
        course = path(own, torch.tensor(given[fingerprint(rollout)]), start, self.algorithm.beta).tolist()
        name = "Q" if known else "Q - Q0"
        return [Text(f"{name} {start:.2f} {spark([start, *course])} {course[-1]:.2f}", style="dim")]


def spark(values: Sequence[float], width: int = 60) -> str:
    """A course as a row of blocks, from its lowest to its highest value; of long ones every so many are shown."""
    shown = (
        [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)] if len(values) > width else values
    )
    low, high = min(shown), max(shown)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in shown)


def origin(run: Run) -> str:
    """Where the run's tokenizer is."""
    model: str = run.config.get("model", "")
    return model or str(run.folder / "start")


def lines(rollout: Rollout, tokenizer: object, now: int) -> list[Text]:
    """One rollout: a heading with reward, prompt and authors, then the response in their colours."""
    authors: list[Author] = list(dict.fromkeys(span.author for span in rollout.spans))
    colour = {a: LIVE if a.version == now else COLOURS[i % len(COLOURS)] for i, a in enumerate(authors)}
    good = (rollout.reward or 0.0) > 0.5
    heading = Text().append(f"reward {rollout.reward:.2f} ", style="bold green" if good else "bold red")
    heading.append(f" prompt {rollout.prompt.key}  rollout {rollout.id}  {rollout.finish}  ", style="dim")
    for author in authors:
        count = sum(len(span) for span in rollout.spans if span.author == author)
        name = author.run if author.version is None else f"v{author.version}"
        heading.append(f"■ {name} {count} tokens  ", style=colour[author])
    body = Text().append(rollout.prompt.text + " ", style="dim")
    for span in rollout.spans:
        text = tokenizer.decode(list(span.tokens), skip_special_tokens=False)  # type: ignore[attr-defined]
        body.append(text, style=f"{colour[span.author]}{' underline' if span.kind == 'prefix' else ''}")
        body.append(" " if text and not text.endswith(" ") else "")
    return [heading, body, Text("")]
