"""`stockpot sft-data`: traces of trial and error into a JSONL file, and what became of everything."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from stockpot import console
from stockpot.config import Config
from stockpot.models import load_tokenizer
from stockpot.options import SftData
from stockpot.pens import Desk
from stockpot.prompts import load_prompts
from stockpot.record import write_whole
from stockpot.report.soup import plain
from stockpot.shelf import Shelf
from stockpot.tasks.base import EmbeddedTask, Task
from stockpot.traces import Counts, Endpoint, Limits, Plan, build, rewritten
from stockpot.traces.asking import Asked, OfTask, Plain
from stockpot.traces.build import weights_of
from stockpot.traces.minds import LocalModel, Mind
from stockpot.types import Sampling, StockpotError


def make(options: SftData, config: Config, out: Path | None) -> None:
    """Make the traces, write them, and print the counts."""
    if out is None:
        raise StockpotError("stockpot sft-data writes a file: name it with --out FILE.jsonl.")
    if out.exists():
        raise StockpotError(f"{out} is there already: name another file with --out.")
    if options.rewriter in ("task", "plain"):
        raise StockpotError(f"--rewriter {options.rewriter} cannot rewrite: name a model, or an endpoint's address.")
    if not 0 <= options.rewrite_least <= 1:
        raise StockpotError(f"--rewrite-least is a share between 0 and 1, not {options.rewrite_least:g}.")
    torch.set_num_threads(config.threads)
    store = options.store or out.with_name(f"{out.name}.store")
    plan = Plan(
        sources=tuple(word.strip() for word in options.attempts.split(",") if word.strip()),
        samples=options.samples, sampling=config.sampling, max_tokens=config.max_tokens, traces=options.traces,
        wrong=options.wrong, seed=config.seed,
    )  # fmt: skip
    desk = Desk(store, tokenizer_of(config, plan), config.device, config.decode_rows, config.seed)
    prompts = load_prompts(config.task, "train", desk.tokenizer, context=0, max_tokens=config.max_tokens)
    prompts = prompts[: options.prompts] if options.prompts else prompts
    with ExitStack() as stack:
        critic = helper(options.critic, "critic", options, config.task, desk, stack)
        merger = helper(options.writer, "writer", options, config.task, desk, stack)
        asked: dict[str, Helper] = {"critic": critic, "writer": merger}
        bar = bars(stack)
        if options.rewriter:
            asked["rewriter"] = rewriter = Asked(mind(options.rewriter, "rewriter", options, desk, stack))
        traces, counts = build(config.task, prompts, plan, desk, critic, merger, bar)
        if options.rewriter:
            work = bar("rewrites", len(traces))
            traces = rewritten(config.task, traces, rewriter, options.rewrite_least, counts, work)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, "".join(json.dumps(trace.line(), ensure_ascii=False) + "\n" for trace in traces))
    tell(counts, asked)
    for line in unanswered(asked, store):
        console.tell(line)
    Console(highlight=False).print(f"traces  {out}   (stockpot sft --data {out} --out DIR)", soft_wrap=True)


def tokenizer_of(config: Config, plan: Plan) -> object:
    """The tokenizer of the models that attempt, or of the recipe's model, or the embedded task's."""
    models = [source for source in plan.sources if not source.endswith(".jsonl")]
    if models or config.model:
        return load_tokenizer(weights_of(models[0]) if models else config.model)
    if isinstance(config.task, EmbeddedTask):
        return config.task.tokenizer()
    raise StockpotError(
        "attempts from files alone need a model whose tokenizer reads the prompts: name it with --model."
    )


Helper = OfTask | Plain | Asked
"""Each of them can be critic and writer."""


def helper(wish: str, role: str, options: SftData, task: Task, desk: Desk, stack: ExitStack) -> Helper:
    """The critic or writer that was asked for."""
    if wish == "task":
        hook = "critique" if role == "critic" else "merge"
        if getattr(type(task), hook) is getattr(Task, hook):
            raise StockpotError(
                f"{type(task).__name__} brings no {role} of its own: name a model, an endpoint or plain with --{role}."
            )
        return OfTask(task)
    if wish == "plain":
        return Plain(task)
    return Asked(mind(wish, role, options, desk, stack))


def mind(wish: str, role: str, options: SftData, desk: Desk, stack: ExitStack) -> Mind:
    """A model here or behind an endpoint."""
    room, warmth = options.answer_tokens, options.answer_temperature
    if not wish.startswith(("http://", "https://")):
        theirs = replace(desk, tokenizer=load_tokenizer(wish))
        return LocalModel(wish, theirs, Sampling(temperature=warmth), room, options.tries)
    shelf = stack.enter_context(Shelf(desk.store / f"{role}-answers.jsonl", {"kind": "answers of an endpoint"}))
    limits = Limits(
        timeout=options.timeout, tries=options.tries, pause=options.pause, calls=options.max_calls,
        tokens=options.max_total_tokens, patience=options.patience, parallel=options.parallel,
    )  # fmt: skip
    key = os.environ.get(options.key_variable, "")
    return Endpoint(wish, options.endpoint_model, shelf, limits, key=key, temperature=warmth, max_tokens=room)


def bars(stack: ExitStack) -> Callable[[str, int], Callable[[int], None]]:
    """Opens one bar after the other."""
    last: list[ExitStack] = []

    def begin(title: str, total: int) -> Callable[[int], None]:
        if last:
            last.pop().close()
        own = ExitStack()
        bar = own.enter_context(console.bar(title, total))
        last.append(own)
        stack.callback(own.close)
        return lambda count: bar.advance(count)

    return begin


def tell(counts: Counts, helpers: dict[str, Helper]) -> None:
    """A table of what became of everything."""
    made = plain("", "", "")
    for what, number in counts.counted.items():
        made.add_row(what, str(number))
    for role, one in helpers.items():
        for why, number in sorted(one.failures.items()):
            if number:
                made.add_row(f"{role}: {why}", str(number))
    Console(highlight=False).print(made)


def unanswered(helpers: dict[str, Helper], store: Path) -> Iterator[str]:
    """A line for each model that left questions without an answer, and what to do about it."""
    for role, one in helpers.items():
        left = {why[len(LEFT) :]: number for why, number in one.failures.items() if why.startswith(LEFT) and number}
        if isinstance(one, Asked) and left:
            reasons = ", ".join(f"{why} {number}" for why, number in sorted(left.items()))
            yield (
                f"the {role} {one.mind.name} left {sum(left.values())} questions without an answer ({reasons}): to ask "
                f"those alone, begin again with another --out and --store {store}"
            )


LEFT = "left out: "
