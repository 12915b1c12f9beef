"""Gradients of a frozen policy: the true one, and those of losses, as directions and noise.

The yardstick is the gradient of the expected reward of fixed prompts, from many fresh samples. Every loss then sees the
same batches. Nothing is learnt and nothing is written.

Vectors as long as the model: the mean of a loss, that of one age band, the yardstick and the gradient at hand, however
many losses, prompts and samples there are. All else is sums of squares and products.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stockpot import batching, diagnostics, ops
from stockpot.algorithms import RLOO, Algorithm, Reinforce, Terms
from stockpot.algorithms.base import Normalise, denominator
from stockpot.config import Config
from stockpot.engines.local import LocalEngine
from stockpot.rewards.score import score
from stockpot.types import Batch, Group, Prompt, Request, StockpotError, Totals

Vector = list[Tensor]
REQUESTS = 512
"""Fresh samples that are drawn and learnt from at a time."""


@dataclass(frozen=True)
class Truth(Algorithm):
    """The yardstick's own estimator: -A_i sum_t log pi(y_t), A_i against the mean of the others' rewards.

    Unbiased on fresh samples. No ratio, no clip, no deviation; the denominator is a constant.
    """

    normalise: Normalise = "constant"
    """Rollouts times room: nothing that depends on what was sampled."""

    def advantages(self, group: Group) -> list[float]:
        return RLOO().advantages(group)

    def loss(self, log_probs: Tensor, batch: Batch) -> Terms:
        return Reinforce(correction="none").loss(log_probs, batch)


@dataclass(frozen=True)
class Estimate:
    """A mean over batches with its 95 % t interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Measure:
    """What the gradients of one loss are like."""

    cosine: Estimate
    """Of one batch's gradient to the true gradient."""
    direction: float
    """Cosine of the mean gradient to the true one with the noise of both taken out: what infinitely many batches of
    such rollouts would have; its own error may carry it past 1. NaN where noise is the larger part of the mean."""
    by_age: tuple[float, ...]
    """Mean cosine of one batch, for each age band."""
    relative_variance: float
    """Trace of the covariance of a batch's gradient, over the squared norm of its mean (both unbiased)."""
    norm: float
    """Mean norm of one batch's gradient."""
    ess: float
    """Effective sample size of the loss's ratios, before clips and caps, as a share of the tokens."""
    clip_loss: float
    """Share of the sum of |ratio x advantage| that clipping took away."""


@dataclass
class Spread:
    """Welford's running mean of vectors, and the squared distances from it."""

    count: int = 0
    mean: Vector = field(default_factory=list)
    squares: float = 0.0

    def add(self, vector: Vector) -> None:
        """Take one more in; equal vectors leave `squares` at exactly 0."""
        self.count += 1
        if self.count == 1:
            self.mean = [part.clone() for part in vector]
            return
        for mean, part in zip(self.mean, vector, strict=True):
            delta = part - mean
            mean.add_(delta, alpha=1 / self.count)
            self.squares += float(delta.mul_(part - mean).sum(dtype=torch.float64))

    @property
    def trace(self) -> float:
        """Unbiased trace of the covariance."""
        return self.squares / (self.count - 1) if self.count > 1 else math.nan


def dot(one: Vector, other: Vector) -> float:
    return sum(float(torch.dot(a.flatten(), b.flatten())) for a, b in zip(one, other, strict=True))


class Bench:
    """One frozen policy, and gradients of it."""

    def __init__(self, engine: LocalEngine, config: Config, seed: int) -> None:
        self.engine, self.config, self.seed = engine, config, seed
        self.parameters = [p for p in engine.policy.model.parameters() if p.requires_grad]
        self.unjudged = 0

    def sample(self, prompts: Sequence[Prompt], each: int, *purpose: object) -> list[Group]:
        """Fresh, judged groups."""
        asked = [
            Request(p, i * each + j, sampling=self.config.sampling, max_tokens=self.config.max_tokens)
            for i, p in enumerate(prompts)
            for j in range(each)
        ]
        seed = random.Random(repr((self.seed, *purpose))).getrandbits(56)
        done, unjudged = score(self.engine.sample(asked, seed), self.config.task.reward, self.engine.tokenizer)
        self.unjudged += unjudged
        return [Group(p, tuple(done[i * each : (i + 1) * each])) for i, p in enumerate(prompts)]

    def backward(self, groups: Sequence[Group], algorithm: Algorithm, totals: Totals) -> dict[str, float]:
        """Add the gradient of the loss to what the parameters hold, in passes of bounded size; the usual metrics."""
        policy, views = self.engine.policy, []
        rollouts = [rollout for g in groups for rollout in g.rollouts]
        advantages = [a for g in groups for a in algorithm.advantages(g)]
        numbers = [i for i, g in enumerate(groups) for _ in g.rollouts]
        lengths = [len(r.prompt.tokens) + len(r) for r in rollouts]
        with policy.precision():
            for chosen in batching.split(lengths, policy.learner.tokens_per_pass):
                batch = batching.collate(
                    [rollouts[i] for i in chosen],
                    [advantages[i] for i in chosen],
                    run=policy.run,
                    now=policy.version,
                    groups=[numbers[i] for i in chosen],
                    pad=policy.pad,
                    device=policy.device,
                )
                log_probs, entropy = policy.log_probs(batch)
                terms = algorithm.loss(log_probs, batch)
                loss = ops.reduce(terms.loss, batch.trained, denominator(algorithm.normalise, batch, totals))
                views.append(diagnostics.view(log_probs, entropy, terms, batch))
                loss.backward()  # type: ignore[no-untyped-call]
        return diagnostics.summarise(views)

    def take(self) -> Vector:
        """The gradient gathered so far, which the parameters forget."""
        found = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return found

    def half(self, prompts: Sequence[Prompt], each: int, number: int, tick: Callable[[], None]) -> Vector:
        """The true gradient from `each` fresh samples of every prompt."""
        totals = Totals(tokens=0, rollouts=len(prompts) * each, max_tokens=self.config.max_tokens)
        width = max(1, REQUESTS // each)
        for first in range(0, len(prompts), width):
            some = prompts[first : first + width]
            self.backward(self.sample(some, each, "yardstick", number, first), Truth(), totals)
            for _ in some:
                tick()
        return self.take()


@dataclass(frozen=True)
class Yardstick:
    """The true gradient, as well as it is known."""

    gradient: Vector
    square: float
    """Unbiased squared norm of the true gradient: the product of two independent halves."""
    halves: float
    """Cosine between the halves."""

    @property
    def known(self) -> float:
        """Estimated cosine of the yardstick to the true gradient itself."""
        whole = dot(self.gradient, self.gradient)
        return math.sqrt(self.square / whole) if self.square > 0 else math.nan


def yardstick(bench: Bench, prompts: Sequence[Prompt], fresh: int, tick: Callable[[], None]) -> Yardstick:
    """Two independent halves, and their mean."""
    one, other = (bench.half(prompts, fresh // 2, number, tick) for number in (1, 2))
    product = dot(one, other)
    cosine = product / math.sqrt(max(dot(one, one) * dot(other, other), 1e-300))
    if product <= 0:
        raise StockpotError(
            f"the true gradient is lost in noise (cosine between two halves {cosine:.2f}): raise --fresh or --prompts."
        )
    return Yardstick([a.add_(b).mul_(0.5) for a, b in zip(one, other, strict=True)], product, cosine)


def measure(
    bench: Bench,
    algorithm: Algorithm,
    bands: Sequence[Sequence[Callable[[], Sequence[Group]]]],
    truth: Yardstick,
    tick: Callable[[], None],
) -> Measure:
    """One loss on all batches, band by band; every band weighs the same in the mean."""
    cosines: list[list[float]] = []
    norms: list[float] = []
    seen: list[dict[str, float]] = []
    mean: Vector = []
    trace = noise = 0.0
    for batches in bands:
        spread = Spread()
        cosines.append([])
        for make in batches:
            groups = make()
            rollouts = [rollout for g in groups for rollout in g.rollouts]
            seen.append(bench.backward(groups, algorithm, batching.totals(rollouts, bench.config.max_tokens)))
            gradient = bench.take()
            norms.append(math.sqrt(dot(gradient, gradient)))
            along = dot(gradient, truth.gradient) / math.sqrt(truth.square)
            cosines[-1].append(along / norms[-1] if norms[-1] > 0 else 0.0)
            spread.add(gradient)
            tick()
        trace += spread.trace / len(bands)
        noise += spread.trace / spread.count / len(bands) ** 2
        part = [one / len(bands) for one in spread.mean]
        mean = [a.add_(b) for a, b in zip(mean, part, strict=True)] if mean else part
    square = dot(mean, mean) - noise
    shown = square > noise
    return Measure(
        cosine=interval([c for row in cosines for c in row]),
        direction=dot(mean, truth.gradient) / math.sqrt(square * truth.square) if shown else math.nan,
        by_age=tuple(diagnostics.mean(row) for row in cosines),
        relative_variance=trace / square if shown else math.nan,
        norm=diagnostics.mean(norms),
        ess=diagnostics.mean([metrics["all/ess"] for metrics in seen]),
        clip_loss=diagnostics.mean([metrics["all/clip_loss"] for metrics in seen]),
    )


def interval(values: Sequence[float]) -> Estimate:
    """Mean and 95 % t interval."""
    count, middle = len(values), diagnostics.mean(values)
    deviation = math.sqrt(sum((v - middle) ** 2 for v in values) / (count - 1))
    reach = student(count - 1) * deviation / math.sqrt(count)
    return Estimate(middle, middle - reach, middle + reach)


def student(freedom: int) -> float:
    """The 0.975 quantile of Student's t: a table, then its expansion in 1 / freedom, right to 0.003."""
    if freedom <= len(TABLE):
        return TABLE[freedom - 1]
    z = 1.959964
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / float(freedom**i) for i, term in enumerate(terms, 1))


TABLE = (12.7062, 4.3027, 3.1824, 2.7764)
