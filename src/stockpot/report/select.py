"""`stockpot select`: the training prompts that a policy solves now and then, as a file to train on.

T1 (arXiv 2501.11651) samples 16 responses to each prompt and keeps those with a pass rate of at most 0.3. Whether a
prompt that is never solved counts is not said; here it does not, unless asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from stockpot import checkpoints, console, prompts
from stockpot.as_json import to_json
from stockpot.config import Config
from stockpot.engines.base import Engine
from stockpot.engines.local import LocalEngine
from stockpot.evaluate import correct
from stockpot.options import SelectOptions
from stockpot.passk import wilson
from stockpot.prefixes import NoPrefixes
from stockpot.record import Run, write_whole
from stockpot.regularizers import KL
from stockpot.report.rollouts import origin
from stockpot.rewards.score import score
from stockpot.seeds import derive
from stockpot.types import Prompt, Request, StockpotError

WAVES = 4
"""Waves of `decode_rows` samples between two writes: what a kill can cost."""


def select(options: SelectOptions, config: Config, run: Run | None) -> None:
    """Sample every training prompt, count, and write the prompts whose pass rate lies in the bounds."""
    out = options.out
    if out is None:
        raise StockpotError("stockpot select writes a file: name it with --out FILE.jsonl.")
    if out.exists():
        raise StockpotError(f"{out} is there already and is not written over: name another with --out.")
    weights, tokenizer_from = options.policy, options.policy
    if run is not None:
        weights = str(checkpoints.find(run.checkpoints, options.step, console.tell).folder)
        tokenizer_from = origin(run)
    torch.set_num_threads(config.threads)
    plain = replace(config, model=weights, kl=KL(), prefixes=NoPrefixes())
    engine = LocalEngine(plain, "selection", weights, tokenizer_from)
    room = {"context": engine.context, "max_tokens": config.max_tokens}
    asked = prompts.only(prompts.load_prompts(config.task, "train", engine.tokenizer, **room), config.only)
    asked = asked[: options.prompts]
    counts = Counts(out.with_name(f"{out.name}.counts"), identity(config, weights, asked, options.samples))
    count(engine, config, asked, options.samples, counts)
    told = Console(highlight=False)
    for line in write(options, out, asked, counts):
        told.print(line, markup=False, soft_wrap=True)


class Counts:
    """How often each prompt was solved, in a file that grows: a kill costs the samples since its last line."""

    def __init__(self, path: Path, made_of: str) -> None:
        self.path = path
        self.known: list[dict[str, Any]] = []
        try:
            lines = path.read_text().splitlines(keepends=True) if path.exists() else []
            whole = [json.loads(line) for line in lines if line.endswith("\n")]
        except ValueError as error:
            raise StockpotError(f"{path} is damaged ({error}): delete it to count anew.") from error
        if whole and whole[0].get("made_of") != made_of:
            raise StockpotError(
                f"{path} was counted with another model, task, sampling, seed or number of samples: delete it or name "
                "another --out."
            )
        self.known = whole[1:]
        if lines and self.known:
            console.tell(f"{len(self.known)} prompts were counted before: {path}")
        # a line torn by a kill goes, so that what is appended begins a line
        write_whole(path, "".join(json.dumps(line) + "\n" for line in whole or [{"made_of": made_of}]))

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Remember further prompts, on disk before anything else happens."""
        with self.path.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
        self.known.extend(rows)


def identity(config: Config, weights: str, asked: Sequence[Prompt], samples: int) -> str:
    """A fingerprint of all that counts depend on. Bounds are not among it: they may change."""
    files = sorted(Path(weights).glob("*.safetensors")) if Path(weights).is_dir() else []
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    parts = (weights, stamps, to_json(config.task), to_json(config.sampling), config.max_tokens, config.seed, samples)
    return hashlib.sha256(json.dumps([*parts, [prompt.key for prompt in asked]]).encode()).hexdigest()[:16]


def count(engine: Engine, config: Config, asked: Sequence[Prompt], samples: int, counts: Counts) -> None:
    """Sample the prompts that are not counted yet. A prompt gets the same samples whenever its turn comes."""
    seed, size = derive(config.seed, "selection"), max(1, WAVES * config.decode_rows // samples)
    with console.bar("selecting", len(asked), done=len(counts.known)) as bar:
        for first in range(len(counts.known), len(asked), size):
            part = asked[first : first + size]
            requests = [
                Request(prompt, (first + i) * samples + j, sampling=config.sampling, max_tokens=config.max_tokens)
                for i, prompt in enumerate(part)
                for j in range(samples)
            ]
            rollouts = engine.sample(requests, seed)
            rollouts, unjudged = score(rollouts, config.task.reward, engine.tokenizer)
            right = correct(rollouts, samples)
            rows: list[dict[str, Any]] = [{"id": p.key, "correct": c} for p, c in zip(part, right, strict=True)]
            rows[0] |= {"tokens": sum(map(len, rollouts)), "unjudged": unjudged}
            counts.append(rows)
            bar.advance(len(part), solved=sum(right) / len(rollouts))


def write(options: SelectOptions, out: Path, asked: Sequence[Prompt], counts: Counts) -> Iterator[str]:
    """Write the file, and say what is in it and what is not."""
    n = options.samples
    rates = [row["correct"] / n for row in counts.known]
    kept = [
        i for i, rate in enumerate(rates) if options.low < rate <= options.high or (rate == 0 and options.keep_zero)
    ]
    inside = set(kept)
    zero = sum(rate == 0 for i, rate in enumerate(rates) if i not in inside)
    above = sum(rate > options.high for rate in rates)
    below = len(rates) - len(kept) - zero - above
    few = f", {below} solved in at most {options.low:g} of their samples" if options.low else ""
    dropped = f"{zero} never solved{few}, {above} solved in more than {options.high:g}"
    if not kept:
        raise StockpotError(
            f"no prompt of {len(rates)} is kept ({dropped}): choose other --low, --high or --keep-zero; the counts "
            f"stay in {counts.path}."
        )
    lines = [json.dumps(row_of(asked[i], counts.known[i]["correct"], n), default=str) + "\n" for i in kept]
    write_whole(out, "".join(lines))
    tokens, unjudged = (sum(row.get(name, 0) for row in counts.known) for name in ("tokens", "unjudged"))
    yield f"kept     {len(kept)} of {len(rates)} prompts"
    yield f"dropped  {dropped}"
    mean = sum(rates[i] for i in kept) / len(kept)
    yield f"solved   {mean:.3f} of the samples of those kept, {sum(rates) / len(rates):.3f} of all"
    yield f"sampled  {n * len(rates)} responses, {tokens} tokens; {unjudged} could not be judged and count as wrong"
    yield f"file     {out}, to train on with --only; the counts of all prompts stay in {counts.path}"


def row_of(prompt: Prompt, right: int, samples: int) -> Mapping[str, Any]:
    """A prompt as a row of a dataset, with its name, its pass rate and how sure that is (95 %)."""
    rate = wilson(samples, right)
    found = {"samples": samples, "correct": right, "pass_rate": rate.mean, "pass_low": rate.low, "pass_high": rate.high}
    return {"id": prompt.key, "prompt": prompt.text, **prompt.columns, **found}
