"""`stockpot budget`: accuracy against the budget of thinking tokens, as a table and as the paper's picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from stockpot import checkpoints
from stockpot.as_json import from_json
from stockpot.budgets import HOWS, Curve, How, Scaling, Setup, Writer, measure
from stockpot.config import Config
from stockpot.options import Budget
from stockpot.record import Run, write_whole
from stockpot.report.rollouts import origin
from stockpot.report.soup import plain, signed
from stockpot.types import Author, StockpotError


def show(options: Budget, config: Config | None) -> None:
    """Measure, and print, draw and write what was found."""
    if config is None:
        run = Run.open(Path(options.model))
        config = from_json(run.config)
        assert isinstance(config, Config)
        writers, store = chosen(run, options.steps), run.folder / "budgets"
        answers = options.summariser or origin(run)
    else:
        name = Path(options.model).name
        writers, store = [Writer(name, options.model, Author(name))], Path("runs") / f"budgets-{name}"
        answers = options.summariser or ""
    store = options.store or store
    summariser = Writer(Path(answers).name, answers, Author(Path(answers).name)) if answers else None
    found = measure(config, writers, setup(options, config), store, summariser=summariser, progress=True)
    out = Console(highlight=False)
    for how in dict.fromkeys(curve.how for curve in found.curves):
        out.print(table(found, how))
        out.print()
    for line in notes(found):
        out.print(line, soft_wrap=True)
    picture = options.picture or store / "budget.png"
    if draw(found, picture):
        out.print(f"picture {picture}", soft_wrap=True)
    else:
        out.print('no picture: matplotlib is missing, `pip install "stockpot[plots]"`', markup=False, soft_wrap=True)
    if options.json is not None:
        write_whole(options.json, json.dumps(found.to_json(), indent=1) + "\n")


def setup(options: Budget, config: Config) -> Setup:
    """What the options ask for; the rest is as the run evaluates itself."""
    how = config.evaluation
    given = {name: value for name in ("temperature", "top_p") if (value := getattr(options, name)) is not None}
    drawn = replace(how.sampling, **given)
    answer = options.answer_temperature
    room = config.max_tokens if options.max_tokens is None else options.max_tokens
    return Setup(
        budgets=numbers(options.budgets, room),
        hows=protocols(options.how),
        samples=how.samples if options.samples is None else options.samples,
        prompts=how.prompts if options.prompts is None else options.prompts,
        max_tokens=room,
        answer_tokens=options.answer_tokens,
        sampling=drawn,
        answer_sampling=drawn if answer is None else replace(drawn, temperature=answer),
        closing=config.task.closing if options.closing is None else options.closing,
        seed=options.seed,
    )


def numbers(told: str, room: int) -> tuple[int, ...]:
    """The budgets asked for, smallest first; where none are: powers of two from 8, and all the room.

    >>> numbers("", 96), numbers("32,16", 96)
    ((8, 16, 32, 64, 96), (16, 32))
    """
    words = [word.strip() for word in told.split(",")] if told else []
    if not all(word.isdigit() for word in words):
        raise StockpotError(f"--budgets are numbers of tokens with commas between, as in 16,32,64, not {told}.")
    some = {int(word) for word in words} or {*(2**i for i in range(3, 30) if 2**i < room), room}
    return tuple(sorted(some))


def protocols(told: str) -> tuple[How, ...]:
    """The protocols named."""
    words = [word.strip() for word in told.split(",")]
    if wrong := [word for word in words if word not in get_args(How)]:
        raise StockpotError(f"--how is summariser, self, or both with a comma between, not {wrong[0]}.")
    return tuple(how for how in HOWS if how in words)


def chosen(run: Run, told: str) -> list[Writer]:
    """The checkpoints asked for, each found whole."""
    kept = checkpoints.listed(run.checkpoints)
    names = ", ".join(str(checkpoint.step) for checkpoint in kept) or "none"
    if told != "all":
        words = [word.strip() for word in told.split(",")]
        if not all(word.isdigit() for word in words):
            raise StockpotError(f"--steps are steps with commas between, as in 0,30,60, or all, not {told}.")
        wanted = {int(word) for word in words}
        if missing := sorted(wanted - {checkpoint.step for checkpoint in kept}):
            raise StockpotError(
                f"{run.folder} has no checkpoint of step {missing[0]}: kept are {names} (train with a larger "
                "--keep-checkpoints to keep more)."
            )
        kept = [checkpoint for checkpoint in kept if checkpoint.step in wanted]
    if not kept:
        raise StockpotError(f"{run.folder} has no checkpoint yet: train it first.")
    for checkpoint in kept:
        if wrong := checkpoints.problem(checkpoint.folder):
            raise StockpotError(f"{checkpoint.folder} is not whole ({wrong}): name others with --steps.")
    return [Writer(f"step {c.step}", str(c.folder), Author(run.name, c.step)) for c in kept]


# --- table -----------------------------------------------------------------------------------------------------------


def table(found: Scaling, how: How) -> Table:
    """One protocol: a row for each policy and budget."""
    title = f"{found.model}, {len(found.prompts)} prompts x {found.samples} samples; {how}: {HOWS[how]}"
    made = plain(title, "", "budget", "accuracy", "thinking", "cut", "extra tokens", "unfinished")
    for curve in (curve for curve in found.curves if curve.how == how):
        for place, point in enumerate(curve.points):
            made.add_row(
                "" if place else curve.name, str(point.budget), str(point.accuracy), f"{point.thinking:.1f}",
                str(point.cut), str(point.extra), str(point.unfinished),
            )  # fmt: skip
    return made


def notes(found: Scaling) -> Iterator[str]:
    """What else is to be known of the numbers."""
    yield (
        "Brackets: 95 % intervals over problems; other training runs may differ by more. thinking: mean tokens used. "
        "cut: samples answered anew, the others keep their own answers. extra tokens: decoded for those answers. "
        f"unfinished: answers that ran out of {found.answer_tokens} tokens."
    )
    for curve in found.curves:
        first, last = curve.points[0].budget, curve.points[-1].budget
        yield (
            f"{curve.name}, {curve.how} ({curve.writer} answers): from {first} to {last} tokens "
            f"{signed(curve.gain)}; uncut {curve.full}, {curve.decoded} tokens, {curve.truncated} out of room"
            f"{unjudged(curve)}"
        )
    for curve in found.curves:
        if curve.through_text:
            yield f"{curve.name}, {curve.how}: {anew(curve)}"


def unjudged(curve: Curve) -> str:
    """How many responses could not be judged, where any could not."""
    count = sum(point.unjudged for point in curve.points)
    return f"; {count} not judged, counted as wrong" if count else ""


def anew(curve: Curve) -> str:
    """What became of thinking that went through text."""
    read, cut, lossy = (sum(getattr(p, name) for p in curve.points) for name in ("read_anew", "cut", "lossy"))
    return (
        f"tokens were re-encoded: {curve.writer} has another vocabulary, so cut thinking was decoded to text and read "
        f"by it as {read} tokens of its own ({lossy} of {cut} not whole, since it lacks their words); budgets and "
        "thinking count the policy's tokens, extra tokens are the writer's"
    )


# --- picture ---------------------------------------------------------------------------------------------------------


def draw(found: Scaling, path: Path) -> bool:
    """Draw; False when matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    figure(found).savefig(path, dpi=110)
    return True


def figure(found: Scaling) -> Any:
    """A panel for each protocol, a line for each policy, the budget in powers of two."""
    from matplotlib.figure import Figure

    hows: Sequence[How] = list(dict.fromkeys(curve.how for curve in found.curves))
    made = Figure(figsize=(6.5 * len(hows), 4.8), layout="constrained")
    for axis, how in zip(made.subplots(1, len(hows), squeeze=False, sharey=True).flat, hows, strict=True):
        for curve in (curve for curve in found.curves if curve.how == how):
            budgets = [point.budget for point in curve.points]
            (line,) = axis.plot(
                budgets, [point.accuracy.mean for point in curve.points], marker="o", markersize=4, label=curve.name
            )
            low, high = ([getattr(point.accuracy, end) for point in curve.points] for end in ("low", "high"))
            axis.fill_between(budgets, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set_xscale("log", base=2)
        ticks = sorted({point.budget for curve in found.curves for point in curve.points})
        axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axis.set(xlabel="budget (thinking tokens)", ylabel="accuracy", title=f"{how}: {HOWS[how]}")
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9)
    made.suptitle(f"{found.model}: {len(found.prompts)} prompts x {found.samples} samples", fontsize=11)
    return made
