"""Attempts -> judged -> explained -> merged -> judged again -> each once."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stockpot import checkpoints, console
from stockpot.models import load_config, load_tokenizer
from stockpot.pens import Desk, Writer, fingerprint
from stockpot.prompts import load_prompts
from stockpot.record import read_lines
from stockpot.rewards.score import score_texts
from stockpot.seeds import derive
from stockpot.tasks.base import Task
from stockpot.traces.asking import Critic, Judged, Merger, Parts, Told
from stockpot.types import Author, Prompt, Request, Sampling, StockpotError


@dataclass(frozen=True)
class Plan:
    """How traces are made."""

    sources: tuple[str, ...]
    """Who attempts: model folders or hub ids, and JSONL files with `prompt` and `completion`."""
    samples: int = 4
    """Attempts of each model at each prompt."""
    sampling: Sampling = Sampling()
    max_tokens: int = 96
    """Room for an attempt."""
    traces: int = 1
    """Traces of each prompt at most."""
    wrong: int = 2
    """Wrong attempts that a trace begins with at most; how many of them is drawn evenly."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sources:
            raise StockpotError("nobody attempts the prompts: name models or JSONL files with --attempts.")
        if self.samples < 1 or self.traces < 1 or self.wrong < 0:
            raise StockpotError("--samples and --traces must be at least 1, --wrong at least 0.")


@dataclass(frozen=True)
class Trace:
    """A response of trial and error, judged right, and where its parts are from."""

    prompt: Prompt
    completion: str
    parts: Parts
    writer: str
    reward: float
    rewriter: str = ""
    """Who wrote the merged trace anew; empty where it stands as it was merged."""

    def line(self) -> dict[str, Any]:
        """As the file has it."""
        chat = self.prompt.columns.get("prompt")
        completion = [{"role": "assistant", "content": self.completion}] if chat else self.completion
        pairs = zip(self.parts.attempts, self.parts.critiques, strict=True)
        attempts = [{"source": a.source, "sample": a.sample, "right": a.right, "critic": c.by} for a, c in pairs]
        sources = {"attempts": attempts, "writer": self.writer, "reward": self.reward}
        sources |= {"rewriter": self.rewriter} if self.rewriter else {}
        return {
            "prompt": chat or self.prompt.text,
            "completion": completion,
            "key": self.prompt.key,
            "sources": sources,
        }


@dataclass
class Counts:
    """What became of everything, so that nothing is lost without a word."""

    counted: Counter[str] = field(default_factory=Counter)

    def add(self, what: str, number: int = 1) -> None:
        """Count something."""
        self.counted[what] += number


Teller = Callable[[int], None]


def build(
    task: Task, prompts: Sequence[Prompt], plan: Plan, desk: Desk, critic: Critic, merger: Merger,
    told: Callable[[str, int], Teller] = lambda title, total: lambda count: None,
) -> tuple[list[Trace], Counts]:  # fmt: skip
    """All traces that could be made. `told` opens a bar: a title and a total in, what moves it on out."""
    counts = Counts()
    counts.add("prompts", len(prompts))
    attempts = judge(task, prompts, attempted(task, prompts, plan, desk, counts, told), counts)
    chosen = choose(attempts, plan, counts)
    needed = {
        f"{prompt.key}/{a.source}/{a.sample}": (prompt, a)
        for prompt, trace in chosen
        for a in trace
    }  # fmt: skip
    said = critic.explain(needed, told("critiques", len(needed)))
    counts.add("attempts explained", len(said))
    counts.add("attempts without a critique", len(needed) - len(said))
    parts = assemble(chosen, said, counts)
    written = merger.merge(parts, told("traces", len(parts)))
    counts.add("traces never written", len(parts) - len(written))
    return verified(task, parts, written, counts), counts


def attempted(
    task: Task, prompts: Sequence[Prompt], plan: Plan, desk: Desk, counts: Counts, told: Callable[[str, int], Teller]
) -> list[tuple[Prompt, str, str, int]]:
    """(prompt, text, source, sample) of every attempt, by source, each text at a prompt once."""
    found: list[tuple[Prompt, str, str, int]] = []
    for source in plan.sources:
        if source.endswith(".jsonl"):
            found += from_file(Path(source), prompts, counts)
            continue
        own, asked = theirs(task, source, prompts, plan, desk)
        requests = [
            (f"{p.key}:{derive(0, *p.tokens):014x}/{n}", Request(
                p, key=derive(0, source, p.key, n), sampling=plan.sampling, max_tokens=plan.max_tokens
            ))
            for p in asked
            for n in range(plan.samples)
        ]  # fmt: skip
        head: dict[str, Any] = {"kind": "attempts", "weights": fingerprint(weights_of(source)), "source": source}
        head |= {"sampling": repr(plan.sampling), "max_tokens": plan.max_tokens, "seed": desk.seed}
        pen = own.pen(Writer(source, weights_of(source), Author(source)))
        written = pen.write("attempts", head, requests, told("attempts", len(requests)))
        texts = own.tokenizer.batch_decode([list(r.tokens) for r in written], skip_special_tokens=True)
        for place, (rollout, text) in enumerate(zip(written, texts, strict=True)):
            if rollout.finish == "length":
                counts.add("attempts out of room")
            else:
                found.append((prompts[place // plan.samples], text, source, place % plan.samples))
    counts.add("attempts", len(found) + counts.counted["attempts out of room"])
    seen: dict[tuple[str, str], tuple[Prompt, str, str, int]] = {}
    for attempt in found:
        seen.setdefault((attempt[0].key, " ".join(attempt[1].split())), attempt)
    counts.add("attempts made twice", len(found) - len(seen))
    return list(seen.values())


def weights_of(source: str) -> str:
    """A model's folder or hub id; of a run its newest whole checkpoint."""
    run = Path(source) / "checkpoints"
    return str(checkpoints.find(run, None, console.tell).folder) if run.is_dir() else source


def theirs(task: Task, source: str, prompts: Sequence[Prompt], plan: Plan, desk: Desk) -> tuple[Desk, list[Prompt]]:
    """Desk and prompts in the tokens of a source: models of several vocabularies may attempt the same prompts."""
    tokenizer = load_tokenizer(weights_of(source))
    context = getattr(load_config(weights_of(source)).get_text_config(), "max_position_embeddings", 0) or 0
    asked = load_prompts(task, "train", tokenizer, context=context, max_tokens=plan.max_tokens)[: len(prompts)]
    return replace(desk, tokenizer=tokenizer), asked


def from_file(path: Path, prompts: Sequence[Prompt], counts: Counts) -> list[tuple[Prompt, str, str, int]]:
    """Attempts of a JSONL file: `prompt` as the task has it, and `completion` (text, messages, or a list of texts)."""
    if not path.is_file():
        raise StockpotError(f"there is no file of attempts {path}: check its path.")
    by_text = {p.text: p for p in prompts}
    found, number = [], Counter[str]()
    try:
        lines = list(read_lines(path))
    except ValueError as error:
        raise StockpotError(f"{path} is not JSON lines ({error}): write one object a line.") from error
    for line in lines:
        asked, made = (line.get("prompt"), line.get("completion")) if isinstance(line, dict) else (None, None)
        prompt = by_text.get(asked) if isinstance(asked, str) else next(
            (p for p in prompts if p.columns.get("prompt") == asked and asked is not None), None
        )  # fmt: skip
        if isinstance(made, list) and made and isinstance(made[-1], dict):
            made = made[-1].get("content")
        texts = [made] if isinstance(made, str) else made if isinstance(made, list) else []
        if prompt is None or not texts or not all(isinstance(text, str) for text in texts):
            counts.add("lines of files that fit no prompt")
            continue
        for text in texts:
            found.append((prompt, text, str(path), number[prompt.key]))
            number[prompt.key] += 1
    return found


def judge(
    task: Task, prompts: Sequence[Prompt], attempts: Sequence[tuple[Prompt, str, str, int]], counts: Counts
) -> dict[str, tuple[Prompt, list[Judged]]]:
    """The attempts at each prompt, judged."""
    rewards, unjudged = score_texts([a[0] for a in attempts], [a[1] for a in attempts], task.reward)
    counts.add("attempts not judged, counted as wrong", unjudged)
    counts.add("attempts right", sum(reward > 0.5 for reward in rewards))
    counts.add("attempts wrong", sum(reward <= 0.5 for reward in rewards))
    found: dict[str, tuple[Prompt, list[Judged]]] = {p.key: (p, []) for p in prompts}
    if len(found) < len(prompts):
        raise StockpotError("two prompts of the task have the same id: give each row its own.")
    for (prompt, text, source, sample), reward in zip(attempts, rewards, strict=True):
        found[prompt.key][1].append(Judged(text, reward > 0.5, source, sample))
    return found


def choose(
    attempts: Mapping[str, tuple[Prompt, list[Judged]]], plan: Plan, counts: Counts
) -> list[tuple[Prompt, tuple[Judged, ...]]]:
    """For each prompt its traces: some wrong attempts and a right one, no right one twice; drawn by seed and key."""
    chosen = []
    for key, (prompt, some) in attempts.items():
        rng = random.Random(f"{plan.seed}/{key}")
        right, wrong = [a for a in some if a.right], [a for a in some if not a.right]
        counts.add("prompts without a right attempt", int(not right))
        for last in rng.sample(right, min(plan.traces, len(right))):
            before = rng.sample(wrong, min(rng.randint(0, plan.wrong), len(wrong)))
            chosen.append((prompt, (*before, last)))
    return chosen


def assemble(
    chosen: Sequence[tuple[Prompt, tuple[Judged, ...]]], said: Mapping[str, Told], counts: Counts
) -> dict[str, Parts]:
    """Attempts with their critiques. A wrong attempt that nobody explained is left out, a right one ends the trace."""
    made: dict[str, Parts] = {}
    number: dict[str, int] = defaultdict(int)
    for prompt, trace in chosen:
        pairs = [(a, said.get(f"{prompt.key}/{a.source}/{a.sample}")) for a in trace]
        kept = [(a, c) for a, c in pairs if c is not None]
        if pairs[-1][1] is None:
            counts.add("traces whose answer nobody explained")
            continue
        name = f"{prompt.key}/{number[prompt.key]}"
        number[prompt.key] += 1
        made[name] = Parts(prompt, tuple(a for a, _ in kept), tuple(c for _, c in kept))
    return made


def verified(task: Task, parts: Mapping[str, Parts], written: Mapping[str, Told], counts: Counts) -> list[Trace]:
    """The traces that the reward judges right, each once."""
    names = [name for name in parts if name in written]
    texts = [written[name].text for name in names]
    rewards, unjudged = score_texts([parts[name].prompt for name in names], texts, task.reward)
    counts.add("traces not judged, counted as wrong", unjudged)
    kept: dict[tuple[str, str], Trace] = {}
    counts.add("traces judged wrong", sum(reward <= 0.5 for reward in rewards))
    for name, text, reward in zip(names, texts, rewards, strict=True):
        key = parts[name].prompt.key, " ".join(text.split())
        if reward > 0.5 and key not in kept:
            kept[key] = Trace(parts[name].prompt, text, parts[name], written[name].by, reward)
    counts.add("traces made twice", sum(reward > 0.5 for reward in rewards) - len(kept))
    counts.add("traces", len(kept))
    counts.add("traces with a wrong attempt", sum(len(trace.parts.attempts) > 1 for trace in kept.values()))
    return list(kept.values())
