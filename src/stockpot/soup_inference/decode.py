"""Both arms decoded, by one checkpoint after the other."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stockpot import checkpoints, console
from stockpot.as_json import from_json
from stockpot.checkpoints import Checkpoint
from stockpot.config import Config
from stockpot.evaluate import correct
from stockpot.models import load_model, load_tokenizer, pick_device, stop_tokens, vocabulary_of
from stockpot.prefixes import head
from stockpot.prompts import load_prompts
from stockpot.record import Run
from stockpot.rewards.score import score
from stockpot.samplers.torch import TorchSampler
from stockpot.soup_inference.result import Arm, Comparison, Heads, equal_samples, equal_tokens
from stockpot.types import Author, Request, Rollout, Sampling, Span, StockpotError

REQUESTS_AT_ONCE = 1024
"""Requests handed to the sampler in one call: several times its rows, and few enough for a bar to move."""


def compare(
    run_folder: Path,
    prefix_from: str,
    *,
    samples: int = 64,
    prompts: int | None = None,
    seed: int = 0,
    step: int | None = None,
    low: float = 0.1,
    high: float = 0.6,
    sampling: Sampling | None = None,
    progress: bool = False,
) -> Comparison:
    """Measure both arms on the run's held-out prompts; what is not given is as the run evaluates itself.

    `prefix_from` is an older step, several with commas, or `all` that are kept: these share the samples of each prompt
    evenly. `step` ends the responses; None is the newest. One model is in memory at a time.
    """
    run = Run.open(run_folder)
    config: Config = from_json(run.config)
    torch.set_num_threads(config.threads)
    if not 0 <= low <= high <= 1:
        raise StockpotError("--prefix-low and --prefix-high are fractions of a mean response: 0 <= low <= high <= 1.")
    if samples < 1 or (prompts is not None and prompts < 1):
        raise StockpotError("--samples and --prompts must be at least 1.")
    if config.max_tokens < 2:
        raise StockpotError("the run's max_tokens is 1: a response has no room for a head and an end.")
    last, older = choose(run, prefix_from, step)
    tokenizer = load_tokenizer(str(last.folder))
    asked = load_prompts(config.task, "test", tokenizer, context=0, max_tokens=config.max_tokens)
    asked = asked[: config.evaluation.prompts if prompts is None else prompts]
    drawn = config.evaluation.sampling if sampling is None else sampling
    orders = [
        Request(prompt, key=i * samples + j, sampling=drawn, max_tokens=config.max_tokens)
        for i, prompt in enumerate(asked)
        for j in range(samples)
    ]
    with console.bar("sampling", 3 * len(orders)) if progress else nullcontext() as bar:
        crew = _Crew(run, config, tokenizer, seed, bar)
        alone = crew.write(last, orders)
        mean = sum(len(rollout) for rollout in alone) / len(alone)
        begun = _begin(crew, older, orders, mean, low, high)
        ends = crew.write(last, [replace(o, prefix=opening(b)) for o, b in zip(orders, begun, strict=True)])
    single = _arm(config, tokenizer, alone, [len(rollout) for rollout in alone], samples)
    costs = [len(old) + len(end) - end.prefix_length for old, end in zip(begun, ends, strict=True)]
    soup = _arm(config, tokenizer, ends, costs, samples)
    return Comparison(
        run=run.name, step=last.step, low=low, high=high, sampling=drawn, seed=seed,
        prompts=tuple(prompt.key for prompt in asked), single=single, soup=soup,
        heads=tuple(_heads(checkpoint.step, begun, soup.rollouts) for checkpoint in older),
        equal_samples=equal_samples(single, soup),
        equal_tokens=equal_tokens(single, soup),
    )  # fmt: skip


def choose(run: Run, prefix_from: str, step: int | None) -> tuple[Checkpoint, list[Checkpoint]]:
    """(the finishing checkpoint, the older ones by step), each found whole and of one vocabulary."""
    last = checkpoints.find(run.checkpoints, step, console.tell)
    kept = [checkpoint for checkpoint in checkpoints.listed(run.checkpoints) if checkpoint.step < last.step]
    names = ", ".join(str(checkpoint.step) for checkpoint in kept) or "none"
    words = [word.strip() for word in prefix_from.split(",")]
    if words == ["all"]:
        older = kept
    elif not all(word.isdigit() for word in words):
        raise StockpotError(f"--prefix-from is an older step, several as in 0,40, or all, not {prefix_from}.")
    else:
        wanted = {int(word) for word in words}
        if late := [wish for wish in sorted(wanted) if wish >= last.step]:
            raise StockpotError(
                f"--prefix-from {late[0]} is not older than step {last.step}, which ends the responses: older ones "
                f"kept are {names}."
            )
        older = [checkpoint for checkpoint in kept if checkpoint.step in wanted]
        if missing := sorted(wanted - {checkpoint.step for checkpoint in older}):
            raise StockpotError(
                f"{run.folder} has no checkpoint of step {missing[0]}: older ones kept are {names} (train with a "
                "larger --keep-checkpoints to keep more)."
            )
    if not older:
        raise StockpotError(
            f"{run.folder} keeps no checkpoint older than step {last.step}: train further, or with a larger "
            "--keep-checkpoints."
        )
    _check(last, older)
    return last, older


def _check(last: Checkpoint, older: Sequence[Checkpoint]) -> None:
    """Refuse damaged checkpoints, and those of another vocabulary."""
    for checkpoint in (last, *older):
        if wrong := checkpoints.problem(checkpoint.folder):
            raise StockpotError(f"{checkpoint.folder} is not whole ({wrong}): take another step.")
        if vocabulary_of(load_tokenizer(str(checkpoint.folder))) != vocabulary_of(load_tokenizer(str(last.folder))):
            raise StockpotError(
                f"{checkpoint.folder} has another vocabulary than step {last.step}, which cannot go on with its "
                "tokens: take another step."
            )


def opening(written: Rollout) -> tuple[Span, ...]:
    """What an older checkpoint wrote, as a prefix to go on from: all of it, but for a stop token."""
    if written.finish == "stop":
        return head(written, len(written))
    return tuple(replace(span, kind="prefix") for span in written.spans)


class _Crew:
    """The checkpoints of a run, each loaded when it is its turn to write."""

    def __init__(self, run: Run, config: Config, tokenizer: Any, seed: int, bar: console.Bar | None) -> None:
        self.run, self.tokenizer, self.seed, self.bar = run, tokenizer, seed, bar
        self.device = pick_device(config.device)

    def write(self, checkpoint: Checkpoint, requests: Sequence[Request]) -> list[Rollout]:
        """What the checkpoint answers, signed with its step."""
        model = load_model(str(checkpoint.folder), self.device)
        author = Author(self.run.name, checkpoint.step)
        stops, pad = stop_tokens(model, self.tokenizer), self.tokenizer.pad_token_id or 0
        sampler = TorchSampler(model, author=author, stop_tokens=stops, pad=pad)
        written: list[Rollout] = []
        for first in range(0, len(requests), REQUESTS_AT_ONCE):
            part = requests[first : first + REQUESTS_AT_ONCE]
            written += sampler.continue_(part, self.seed)
            if self.bar is not None:
                self.bar.advance(len(part), step=checkpoint.step)
        return written


def _begin(
    crew: _Crew, older: Sequence[Checkpoint], orders: Sequence[Request], mean: float, low: float, high: float
) -> list[Rollout]:
    """The heads of all samples. Samples are dealt in turn, so that the authors' shares of a prompt differ by one."""
    rng = random.Random(f"{crew.seed}/cut")
    most = orders[0].max_tokens - 1
    cuts = [max(1, min(round(rng.uniform(low, high) * mean), most)) for _ in orders]
    begun: dict[int, Rollout] = {}
    for turn, checkpoint in enumerate(older):
        places = range(turn, len(orders), len(older))
        if places:
            written = crew.write(checkpoint, [replace(orders[i], max_tokens=cuts[i]) for i in places])
            begun.update(zip(places, written, strict=True))
    return [begun[i] for i in range(len(orders))]


def _arm(config: Config, tokenizer: Any, rollouts: list[Rollout], costs: list[int], samples: int) -> Arm:
    judged, unjudged = score(rollouts, config.task.reward, tokenizer)
    return Arm(
        samples=samples,
        correct=tuple(correct(judged, samples)),
        decoded=tuple(sum(costs[first : first + samples]) for first in range(0, len(costs), samples)),
        unjudged=unjudged,
        truncated=sum(rollout.finish == "length" for rollout in judged) / len(judged),
        rollouts=tuple(judged),
    )


def _heads(step: int, begun: Sequence[Rollout], ended: Sequence[Rollout]) -> Heads:
    pairs = [(b, e) for b, e in zip(begun, ended, strict=True) if b.spans[0].author.version == step]
    return Heads(
        step=step,
        samples=len(pairs),
        correct=sum(correct([e for _, e in pairs], max(1, len(pairs)))),
        tokens=sum(e.prefix_length for _, e in pairs),
        stopped=sum(b.finish == "stop" for b, _ in pairs),
        empty=sum(e.prefix_length == 0 for _, e in pairs),
    )
