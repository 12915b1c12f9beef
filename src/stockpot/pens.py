"""Models that write, each loaded when it is first needed, and shelves that hold what they wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stockpot import checkpoints, console, lora
from stockpot.models import load_model, pick_device, stop_tokens
from stockpot.samplers.torch import TorchSampler
from stockpot.shelf import Shelf
from stockpot.types import Author, Finish, Request, Rollout, Span

REQUESTS_AT_ONCE = 512
"""Requests written between two visits to the disk: a kill costs at most that many."""


@dataclass(frozen=True)
class Writer:
    """A model that writes responses or answers."""

    name: str
    """As tables and pictures call it."""
    weights: str
    """Folder or hub id."""
    author: Author
    """How it signs."""

    @property
    def step(self) -> int | None:
        """The checkpoint's step; None for a model that is no run's."""
        return self.author.version


@cache
def fingerprint(weights: str) -> str:
    """A folder's weights as a few letters, an adapter's with those of its base; of a hub id its name."""
    base = lora.base_of(Path(weights))
    files = sorted(Path(weights).glob("model*.safetensors")) if Path(weights).is_dir() else []
    told = [checkpoints.digest(path) for path in files] or [weights]
    if base:
        told = [checkpoints.digest(Path(weights) / lora.WEIGHTS), fingerprint(base)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Desk:
    """Where writing is done: what all writers of a call share."""

    store: Path
    """Folder of the shelves."""
    tokenizer: Any
    device: str
    rows: int
    """Most rows decoded at one time."""
    seed: int

    def pen(self, writer: Writer) -> Pen:
        """A pen for one writer."""
        return Pen(self, writer)


class Pen:
    """One writer at work. Its model is loaded only if something is not on the shelf yet."""

    def __init__(self, desk: Desk, writer: Writer) -> None:
        self.desk, self.writer = desk, writer
        self._sampler: TorchSampler | None = None

    def write(
        self,
        kind: str,
        head: dict[str, Any],
        orders: Sequence[tuple[str, Request]],
        told: Callable[[int], None] = lambda count: None,
    ) -> list[Rollout]:
        """Rollouts of all orders, by their names: those on the shelf as they lie there, the others written now."""
        digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()[:12]
        with Shelf(self.desk.store / f"{kind}-{digest}.jsonl", head) as shelf:
            missing = [order for order in orders if order[0] not in shelf]
            told(len(orders) - len(missing))
            for first in range(0, len(missing), REQUESTS_AT_ONCE):
                part = missing[first : first + REQUESTS_AT_ONCE]
                written = self._continue([request for _, request in part])
                shelf.append([(name, _line(rollout)) for (name, _), rollout in zip(part, written, strict=True)])
                told(len(part))
            return [self._rollout(request, shelf[name]) for name, request in orders]

    def _continue(self, requests: Sequence[Request]) -> list[Rollout]:
        if self._sampler is None:
            model = load_model(self.writer.weights, pick_device(self.desk.device))
            stops, pad = stop_tokens(model, self.desk.tokenizer), self.desk.tokenizer.pad_token_id or 0
            author, rows = self.writer.author, self.desk.rows
            self._sampler = TorchSampler(model, author=author, stop_tokens=stops, pad=pad, max_rows=rows)
        return self._sampler.continue_(requests, self.desk.seed)

    def _rollout(self, request: Request, line: dict[str, Any]) -> Rollout:
        span = Span(self.writer.author, line["tokens"], sampling=request.sampling)
        finish: Finish = "stop" if line["finish"] == "stop" else "length"
        return Rollout(request.prompt, (*request.prefix, span), finish=finish)


def _line(rollout: Rollout) -> dict[str, Any]:
    """What is kept of a rollout: the new tokens, and why it ended. The rest follows from the order."""
    return {"tokens": list(rollout.spans[-1].tokens), "finish": rollout.finish}


def bar_teller(bar: console.Bar | None, name: str) -> Callable[[int], None]:
    """Moves a bar on, where there is one."""
    return (lambda count: None) if bar is None else (lambda count: bar.advance(count, writer=name))
