"""Samples of a model, each drawn once and stored before the next are."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stockpot import console
from stockpot.benchmarks.store import Sample, Store
from stockpot.samplers.base import Sampler
from stockpot.types import Prompt, Request, Sampling

ROUNDS = 4
"""Requests of one call to the sampler, in rows: rows that finish are taken by others until the last of them."""


@dataclass(frozen=True)
class Job:
    """A prompt of a benchmark that wants samples."""

    bench: str
    problem: str
    tokens: Sequence[int]
    text: str


def key(bench: str, problem: str, number: int) -> int:
    """The key of a sample's random numbers: its own name, so that no other sample moves it."""
    told = hashlib.sha256(f"{bench}/{problem}/{number}".encode()).digest()
    return int.from_bytes(told[:7], "big")


def generate(
    store: Store, sampler: Sampler, jobs: Sequence[Job], *, k: int, sampling: Sampling, max_tokens: int, seed: int,
    rows: int,
) -> int:  # fmt: skip
    """Draw what is missing of k samples of each prompt; how many were drawn."""
    there = {
        (bench, sample.problem, sample.number)
        for bench in dict.fromkeys(job.bench for job in jobs)
        for sample in store.samples(bench)
    }
    wanted = [(job, j) for job in jobs for j in range(k) if (job.bench, job.problem, j) not in there]
    total = len(jobs) * k
    with console.bar("sampling", total, done=total - len(wanted)) as bar:
        clock = Clock(len(wanted))
        for part in _parts(wanted, rows * ROUNDS):
            requests = [
                Request(
                    Prompt(job.problem, job.tokens, job.text), key=key(job.bench, job.problem, j),
                    sampling=sampling, max_tokens=max_tokens,
                )
                for job, j in part
            ]  # fmt: skip
            written = sampler.continue_(requests, seed)
            drawn: dict[str, list[Sample]] = {}
            for (job, j), rollout in zip(part, written, strict=True):
                log_prob = sum(rollout.spans[-1].log_probs or ())
                sample = Sample(job.problem, j, tuple(rollout.tokens), rollout.finish, round(log_prob, 4))
                drawn.setdefault(job.bench, []).append(sample)
            for bench, samples in drawn.items():
                store.append(bench, samples)
            bar.advance(len(part), **clock.tick(len(part), sum(map(len, written))))
    return len(wanted)


class Clock:
    """Tokens per second, and the time left at this pace."""

    def __init__(self, wanted: int) -> None:
        self._start, self._left, self._done, self._tokens = time.monotonic(), wanted, 0, 0

    def tick(self, samples: int, tokens: int) -> dict[str, float | str]:
        """The figures after so many more samples."""
        self._done, self._left, self._tokens = self._done + samples, self._left - samples, self._tokens + tokens
        passed = max(time.monotonic() - self._start, 1e-9)
        seconds = round(passed / self._done * self._left)
        left = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        return {"tokens/s": round(self._tokens / passed), "tokens": self._tokens, "left": left}


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))
