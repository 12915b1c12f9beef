"""Prefixes cut from stored rollouts, with the log-probs stored beside them: nothing is decoded twice."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args, get_origin, get_type_hints

from stockpot.prefixes.base import Gradient, StoredRule, carrying, head
from stockpot.types import Candidate, Rollout, Span, StockpotError


@dataclass(frozen=True)
class FromHistory(StoredRule):
    """SOUP's old heads (arXiv 2601.21476) from the run's own history.

    The paper leaves everything below open: age, choice, cut, share, gradient. The values here are ours.
    """

    share: float = 0.25
    """Share of each group that gets a prefix."""
    exactly: int = 0
    """This many of each group instead of a share, whatever the schedule; 0 goes by the share."""
    warmup: int = 0
    """Steps before the first prefix."""
    min_age: int = 4
    """Steps that must lie between the prefix's author and the live policy."""
    max_age: int = 1000
    """Steps that may lie between them."""
    ages: Literal["uniform", "recent", "stratified"] = "uniform"
    """Among the ages allowed: each rollout alike, young ones likelier, or spread evenly over the ages."""
    half_life: float = 10.0
    """With ages "recent": a rollout this many steps older is half as likely."""
    outcome: Literal["all", "success", "failure", "balance"] = "all"
    """Which rollouts: all, those with a reward above 0.5, the others, or whichever the prompt's stored rollouts have
    less of (successes where most fail, failures where most pass), as prefix sampling does."""
    where: Literal["fraction", "tokens", "surprise", "step"] = "fraction"
    """Where to cut: at a random fraction, after a fixed number of tokens, before the token between the two fractions
    that surprised its author most, or at a random end of a step of the task between them."""
    cut_low: float = 0.1
    """The cut lies between this fraction of the stored response ..."""
    cut_high: float = 0.6
    """... and this one."""
    cut_tokens: int = 8
    """With where "tokens": the prefix's length."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How share and cut_high move after the warm-up, from their values to the two ends below."""
    over: int = 100
    """Steps that the schedule takes."""
    share_end: float = 0.0
    """Share at the schedule's end."""
    cut_high_end: float = 0.1
    """cut_high at the schedule's end."""
    gradient: Gradient = "ratio"
    """Which prefix tokens carry gradient, corrected by the ratio to their author: all (the method), none, or those
    that surprised their author most (where its log-probs are known)."""
    surprising: float = 0.2
    """With gradient "surprise": the share of a prefix's tokens that carries it."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise StockpotError(
                    f"prefixes.{name} is one of {', '.join(get_args(hint))}, not {getattr(self, name)}."
                )
        for name in ("share", "share_end", "surprising"):
            if not 0 <= getattr(self, name) <= 1:
                raise StockpotError(f"prefixes.{name} is a share: it must lie in 0..1, not {getattr(self, name)}.")
        if self.min_age < 1:
            raise StockpotError("prefixes.min_age must be at least 1: a prefix is written by a past policy.")
        if self.min_age > self.max_age:
            raise StockpotError(
                f"prefixes.min_age ({self.min_age}) is above prefixes.max_age ({self.max_age}): no rollout can be both."
            )
        for high in (self.cut_high, self.cut_high if self.schedule == "constant" else self.cut_high_end):
            if not 0 <= self.cut_low <= high <= 1:
                raise StockpotError("prefixes.cut_low and cut_high are fractions of a response: 0 <= low <= high <= 1.")
        if self.cut_low == 1:
            raise StockpotError("prefixes.cut_low 1 leaves no continuation to write: lower it (or --prefixes replay).")
        if self.exactly < 0 or self.warmup < 0 or self.over < 1 or self.cut_tokens < 1 or not self.half_life > 0:
            raise StockpotError(
                "prefixes.exactly and warmup must be 0 or more, over, cut_tokens and half_life above 0."
            )

    def versions(self, now: int) -> tuple[int, int] | None:
        newest = now - self.min_age
        wants = self.exactly > 0 or self._moved(self.share, self.share_end, now) > 0
        return (max(0, now - self.max_age), newest) if newest >= 0 and wants and now >= self.warmup else None

    def wanted(self, group_size: int, now: int) -> int:
        if now < self.warmup:
            return 0
        share = self._moved(self.share, self.share_end, now)
        return min(self.exactly, group_size) or math.floor(share * group_size + 0.5)

    def choose(self, candidates: Sequence[Candidate], group_size: int, now: int, rng: random.Random) -> list[int]:
        fit = [candidate for candidate in self._of_outcome(candidates) if candidate.length >= 2]
        count = min(len(fit), self.wanted(group_size, now))
        if (
            self.ages == "recent"
        ):  # weighted, without replacement: of waits for rates 2^(-age / half_life), the shortest
            decay = math.log(2) / self.half_life
            waits = [math.log(rng.expovariate(1.0) or 1e-300) + decay * (now - one.version) for one in fit]  # in logs
            return [one.id for _, one in sorted(zip(waits, fit, strict=True), key=lambda pair: pair[0])[:count]]
        if self.ages == "stratified":
            fit.sort(key=lambda candidate: (candidate.version, candidate.id))
            edges = [i * len(fit) // count for i in range(count + 1)] if count else []
            return [rng.choice(fit[low:high]).id for low, high in pairwise(edges)]
        return rng.sample([candidate.id for candidate in fit], count)

    def cut(self, rollout: Rollout, now: int, rng: random.Random, ends: Set[int] = frozenset()) -> tuple[Span, ...]:
        length = self._place(rollout, now, rng, ends)
        length = max(0, min(length, len(rollout) - 1))
        return head(rollout, length, trained=carrying(rollout, length, self.gradient, self.surprising))

    def _of_outcome(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """The candidates whose outcome is asked for."""
        if self.outcome == "all" or not candidates:
            return candidates
        passed = [candidate.reward > 0.5 for candidate in candidates]
        good = 2 * sum(passed) <= len(passed) if self.outcome == "balance" else self.outcome == "success"
        return [candidate for candidate, right in zip(candidates, passed, strict=True) if right == good]

    def _place(self, rollout: Rollout, now: int, rng: random.Random, ends: Set[int]) -> int:
        """How many tokens of the response become the prefix."""
        high = self._moved(self.cut_high, self.cut_high_end, now)
        if self.where == "tokens":
            return self.cut_tokens
        if self.where == "fraction":
            return round(rng.uniform(self.cut_low, high) * len(rollout))
        first, last = math.ceil(self.cut_low * len(rollout)), math.floor(high * len(rollout))
        places = range(max(first, 1), min(last, len(rollout) - 1) + 1)
        if self.where == "step":
            tokens = rollout.tokens
            found = [n for n in places if tokens[n - 1] in ends]
            return rng.choice(found) if found else 0
        log_probs = [p for span in rollout.spans for p in span.log_probs or [0.0] * len(span)]
        return min(places, key=lambda n: log_probs[n], default=0)

    def _moved(self, start: float, end: float, now: int) -> float:
        """A scheduled value at step `now`."""
        if self.schedule == "constant":
            return start
        done = min(1.0, max(0, now - self.warmup) / self.over)
        done = done if self.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * done)
        return start + (end - start) * done


def prefixrl() -> FromHistory:
    """PrefixRL (arXiv 2601.18795): heads of successes, without gradient; only the continuation learns.

    Differs from the paper: its prefixes come from a set of correct off-policy traces, these from the run's own past;
    share, ages and cuts are ours.
    """
    return FromHistory(outcome="success", gradient="none")
