"""Full responses once, answers at every budget, and what was right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stockpot import console
from stockpot.budgets.reading import Cut, Reading, ThroughText, reading
from stockpot.budgets.result import Curve, How, Point, Scaling, accuracy, gain
from stockpot.budgets.thinking import Closing
from stockpot.config import Config
from stockpot.evaluate import correct
from stockpot.models import load_config, load_tokenizer, vocabulary_of
from stockpot.pens import Desk, Pen, Writer, bar_teller, fingerprint
from stockpot.prompts import load_prompts
from stockpot.rewards.score import score_texts
from stockpot.seeds import derive
from stockpot.types import Prompt, Request, Rollout, Sampling, StockpotError


@dataclass(frozen=True)
class Setup:
    """What is measured, apart from the models."""

    budgets: tuple[int, ...]
    """Thinking tokens allowed, smallest first."""
    hows: tuple[How, ...]
    """The protocols."""
    samples: int
    """Of each problem."""
    prompts: int
    """Held-out problems, from the head of the test split."""
    max_tokens: int
    """Room for a full response."""
    answer_tokens: int
    """Room for an answer behind cut thinking."""
    sampling: Sampling
    """Of the full responses."""
    answer_sampling: Sampling
    closing: str
    """The words that close the thinking."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "prompts", "max_tokens", "answer_tokens"):
            if getattr(self, name) < 1:
                raise StockpotError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}.")
        if not self.budgets or list(self.budgets) != sorted(set(self.budgets)) or self.budgets[0] < 1:
            raise StockpotError(f"--budgets are numbers of tokens from 1, each once, not {self.budgets}.")
        if self.budgets[-1] > self.max_tokens:
            raise StockpotError(
                f"the budget {self.budgets[-1]} is above the room for a full response: the largest possible is "
                f"{self.max_tokens} (a larger --max-tokens stores longer responses)."
            )
        if not self.closing:
            raise StockpotError("the task names no words that close the thinking: give them with --closing.")


def measure(
    config: Config,
    writers: Sequence[Writer],
    setup: Setup,
    store: Path,
    *,
    summariser: Writer | None = None,
    progress: bool = False,
) -> Scaling:
    """One curve for each writer and protocol. What lies in `store` is not written again."""
    torch.set_num_threads(config.threads)
    if "summariser" in setup.hows and summariser is None:
        raise StockpotError("the summariser's protocol needs a model: name it with --summariser, or use --how self.")
    tokenizer = load_tokenizer(writers[0].weights)
    closing = Closing.of(setup.closing, tokenizer)
    asked = load_prompts(config.task, "test", tokenizer, context=0, max_tokens=setup.max_tokens)[: setup.prompts]
    for writer in writers:
        _check(writer, tokenizer, asked, setup, closing)
    own, theirs = Reading(tokenizer), Reading(tokenizer)
    if "summariser" in setup.hows and summariser is not None:
        theirs = reading(config, summariser, closing, asked, setup.answer_tokens)
        if not isinstance(theirs, ThroughText):
            _check(summariser, tokenizer, asked, setup, closing)
    desk = Desk(store, tokenizer, config.device, config.decode_rows, setup.seed)
    orders = _orders(asked, setup)
    told = (1 + len(setup.hows) * len(setup.budgets)) * len(orders) * len(writers)
    measured: list[_Measured] = []
    with console.bar("budgets", told) if progress else nullcontext() as bar:
        for writer in writers:
            pen = desk.pen(writer)
            head = _head("full", writer, setup.sampling, setup.max_tokens, setup.seed)
            one = _Measured(writer, head, pen.write("full", head, orders, bar_teller(bar, writer.name)))
            measured.append(one)
            if "self" in setup.hows:
                one.answered["self"] = _answers(one, pen, own, orders, closing, setup, bar)
        if "summariser" in setup.hows and summariser is not None:
            pen = replace(desk, tokenizer=theirs.tokenizer).pen(summariser)
            for one in measured:
                one.answered["summariser"] = _answers(one, pen, theirs, orders, closing, setup, bar)
    judge = _judge(config)
    answering: dict[How, tuple[Writer | None, Reading]] = {"self": (None, own), "summariser": (summariser, theirs)}
    return Scaling(
        model=writers[0].author.run, closing=setup.closing, samples=setup.samples, max_tokens=setup.max_tokens,
        answer_tokens=setup.answer_tokens, sampling=setup.sampling, answer_sampling=setup.answer_sampling,
        seed=setup.seed, prompts=tuple(prompt.key for prompt in asked),
        curves=tuple(
            _curve(one, how, answering[how][0] or one.writer, answering[how][1], closing, setup, judge)
            for how in setup.hows
            for one in measured
        ),
    )  # fmt: skip


Answers = dict[int, list[tuple[Cut, Rollout] | None]]
"""For each budget what every response was cut to and how that was answered; None: it keeps its own answer."""


class _Measured:
    """One policy: its full responses, and for each protocol the answers at each budget."""

    def __init__(self, writer: Writer, head: dict[str, Any], full: list[Rollout]) -> None:
        self.writer, self.head, self.full = writer, head, full
        self.answered: dict[How, Answers] = {}


def _check(writer: Writer, tokenizer: Any, asked: Sequence[Prompt], setup: Setup, closing: Closing) -> None:
    """Refuse a policy of another vocabulary than the first, and a model that cannot read what it is to continue."""
    if vocabulary_of(load_tokenizer(writer.weights)) != vocabulary_of(tokenizer):
        raise StockpotError(
            f"{writer.weights} has another vocabulary than the others: measure it in a call of its own."
        )
    context = getattr(load_config(writer.weights).get_text_config(), "max_position_embeddings", 0) or 0
    longest = max(len(prompt.tokens) for prompt in asked)
    answer = setup.budgets[-1] + len(closing.ids) + setup.answer_tokens
    if context and longest + max(setup.max_tokens, answer) > context:
        raise StockpotError(
            f"a prompt has {longest} tokens, a full response may have {setup.max_tokens} and an answered one {answer}, "
            f"but the context of {writer.name} is {context}: lower --max-tokens, --budgets or --answer-tokens."
        )


def _orders(asked: Sequence[Prompt], setup: Setup) -> list[tuple[str, Request]]:
    """A name and a request for each sample, prompt by prompt. Both hang on the prompt alone, not on who stands
    beside it, so that more prompts or samples later find the old ones stored."""
    seen: Counter[str] = Counter()
    orders = []
    for prompt in asked:
        name = f"{prompt.key}:{derive(0, *prompt.tokens):014x}:{seen[prompt.key]}"
        seen[prompt.key] += 1
        for number in range(setup.samples):
            key = derive(0, name, number)
            request = Request(prompt, key=key, sampling=setup.sampling, max_tokens=setup.max_tokens)
            orders.append((f"{name}/{number}", request))
    return orders


def _head(kind: str, writer: Writer, sampling: Sampling, max_tokens: int, seed: int, **more: Any) -> dict[str, Any]:
    """The conditions that lines on a shelf were made under."""
    base = {"kind": kind, "weights": fingerprint(writer.weights), "sampling": asdict(sampling)}
    return base | {"max_tokens": max_tokens, "seed": seed, **more}


def _answers(
    one: _Measured, pen: Pen, how: Reading, orders: Sequence[tuple[str, Request]], closing: Closing, setup: Setup,
    bar: console.Bar | None,
) -> Answers:  # fmt: skip
    """The responses whose thinking is cut at each budget, answered by `pen`."""
    more = {"closing": closing.text, "of": one.head, **how.conditions()}
    head = _head("answers", pen.writer, setup.answer_sampling, setup.answer_tokens, setup.seed, **more)
    found: Answers = {}
    for budget in setup.budgets:
        cuts = [closing.cut(response, budget) for response in one.full]
        wanted = [
            (f"{name}/{budget}", how.request(r, cut, setup.answer_sampling, setup.answer_tokens))
            for (name, r), cut in zip(orders, cuts, strict=True)
            if cut is not None
        ]
        tell = bar_teller(bar, pen.writer.name)
        tell(len(orders) - len(wanted))
        written = iter(pen.write("answers", head, wanted, tell))
        found[budget] = [None if cut is None else (cut, next(written)) for cut in cuts]
    return found


Judge = Callable[[Sequence[Rollout], Sequence[tuple[str, Sequence[int]]]], tuple[list[Rollout], int]]


def _judge(config: Config) -> Judge:
    """Judges responses that are told as text and as the policy's tokens: with rewards, and how many it could not."""

    def judge(full: Sequence[Rollout], told: Sequence[tuple[str, Sequence[int]]]) -> tuple[list[Rollout], int]:
        prompts, texts, ids = [r.prompt for r in full], [text for text, _ in told], [ids for _, ids in told]
        rewards, unjudged = score_texts(prompts, texts, config.task.reward, ids)
        return [replace(r, reward=reward) for r, reward in zip(full, rewards, strict=True)], unjudged

    return judge


def _curve(
    one: _Measured, how: How, by: Writer, read: Reading, closing: Closing, setup: Setup, judge: Judge
) -> Curve:  # fmt: skip
    """Judge every budget of one policy under one protocol."""
    lengths = [closing.thinking(response)[0] for response in one.full]
    plain = Reading(closing.tokenizer)
    own = [plain.response(response, ()) for response in one.full]
    points = []
    for budget, answered in one.answered[how].items():
        told = [read.response(a[1], a[0]) if a else o for a, o in zip(answered, own, strict=True)]
        judged, unjudged = judge(one.full, told)
        written = [pair for pair in answered if pair is not None]
        counts = tuple(correct(judged, setup.samples))
        points.append(
            Point(
                budget=budget, accuracy=accuracy(counts, setup.samples), correct=counts, cut=len(written),
                thinking=sum(min(length, budget) for length in lengths) / len(lengths),
                extra=sum(len(answer.spans[-1]) for _, answer in written), read=len(written) * len(closing.ids),
                unfinished=sum(answer.finish == "length" for _, answer in written), unjudged=unjudged,
                read_anew=sum(read.read_anew(answer) for _, answer in written),
                lossy=sum(read.lossy(answer, cut) for cut, answer in written),
            )
        )  # fmt: skip
    judged, _ = judge(one.full, own)
    return Curve(
        name=one.writer.name, step=one.writer.step, how=how, writer=by.name, points=tuple(points),
        gain=gain(points, setup.samples), full=accuracy(correct(judged, setup.samples), setup.samples),
        decoded=sum(map(len, one.full)), truncated=sum(r.finish == "length" for r in one.full),
        through_text=isinstance(read, ThroughText),
    )  # fmt: skip
