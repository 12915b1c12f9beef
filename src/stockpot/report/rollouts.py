"""`stockpot show`: rollouts in the terminal, every token in the colour of whoever wrote it."""

from __future__ import annotations

from itertools import islice

from rich.console import Console
from rich.text import Text

from stockpot.history import History
from stockpot.models import load_tokenizer
from stockpot.options import Show
from stockpot.record import Run
from stockpot.types import Author, Rollout, StockpotError

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
    if not rollouts:
        raise StockpotError(f"no such rollouts at step {step}: `stockpot history {options.run}` tells what is stored.")
    for rollout in rollouts:
        for line in lines(rollout, tokenizer, step):
            out.print(line, soft_wrap=not out.is_terminal)


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
