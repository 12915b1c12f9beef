"""Q0 of each prompt, the soft value of the reference: sampled before training, weighed from rollouts, or in the group.

With rewards r and the reference pi: Q0 = beta log E_pi[exp(r / beta)]. A rollout that another policy wrote stands for
the reference with weight pi / author, so r / beta - sum(log author - log pi) is averaged in its place; where the
author is the optimal policy this is the same number for every rollout, so the estimate sharpens as the run goes on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stockpot import console
from stockpot.algorithms import SPO
from stockpot.algorithms.spo import blend, interval, log_mean, mean_reward
from stockpot.config import Config
from stockpot.engines.base import Engine
from stockpot.history import History, fingerprint
from stockpot.prompts import pick
from stockpot.record import write_whole
from stockpot.rewards.score import score
from stockpot.seeds import derive
from stockpot.soft.referee import Referee
from stockpot.types import Group, Prompt, Request, Rollout, StockpotError

FILE = "q0.json"
"""In the run folder: what the reference's samples of each prompt said."""
Weighed = tuple[float, float]
"""A reward and a log weight, reference / author."""


class Seen(NamedTuple):
    """What is known of a prompt under the reference: log E[exp(r / beta)], E[r], and from how many rollouts."""

    log_z: float
    reward: float
    number: int


class Chosen(NamedTuple):
    """What an update learns from: a part of each group, its advantages and the reference's log-probs."""

    groups: list[Group]
    advantages: list[float]
    reference: tuple[Tensor, ...] | None


class Soft:
    """A run's referee and its Q0: what SPO's advantages are made with. Other algorithms pass through."""

    def __init__(self, config: Config, engine: Engine, folder: Path, prompts: Sequence[Prompt]) -> None:
        self.config, self.engine, self.prompts = config, engine, prompts
        self.path = folder / FILE
        self.referee = Referee(config, engine)
        self.sampled: dict[str, Seen] = {}
        self.guessed = 0
        """Groups of the step whose Q0 no rollout could be weighed for."""

    # --- before training ----------------------------------------------------------------------------------------------

    def prepare(self, begin: int) -> None:
        """Sample the reference for every prompt that the run will ask, once; what the file has is not done again."""
        config, algorithm = self.config, self.config.algorithm
        if not isinstance(algorithm, SPO) or algorithm.q0 != "reference":
            return
        asked = {
            p.key for now in range(config.steps) for p in pick(self.prompts, now, config.prompts_per_step, config.seed)
        }
        table: dict[str, Any] = self._read()
        todo = [(i, prompt) for i, prompt in enumerate(self.prompts) if prompt.key in asked]
        at_once = max(1, config.decode_rows // algorithm.samples)
        parts = [todo[i : i + at_once] for i in range(0, len(todo), at_once)]
        missing = [part for part in parts if any(prompt.key not in table for _, prompt in part)]
        if missing and begin > 0:
            raise StockpotError(
                f"{self.path} lacks prompts, and the policy has left the reference: put the file back, or begin anew."
            )
        if missing:
            with console.bar("sampling the reference", len(parts), done=len(parts) - len(missing)) as bar:
                for part in missing:
                    table |= self._sample(part, algorithm)
                    self._write(table, algorithm)
                    bar.advance(1)
        self.sampled = {key: _seen(entry["rewards"], None, algorithm.beta) for key, entry in table.items()}

    def _sample(self, part: Sequence[tuple[int, Prompt]], algorithm: SPO) -> dict[str, Any]:
        """Entries of some prompts; a prompt's number in the data set decides its random numbers."""
        config, n = self.config, algorithm.samples
        requests = [
            Request(prompt, key=i * n + j, sampling=config.sampling, max_tokens=config.max_tokens)
            for i, prompt in part
            for j in range(n)
        ]
        rollouts = self.engine.sample(requests, derive(config.seed, "q0"))
        judged, unjudged = score(rollouts, config.task.reward, self.engine.tokenizer)
        judged, _ = config.penalties(judged, self.engine.tokenizer, config.max_tokens)
        if unjudged:
            console.tell(f"{unjudged} samples of the reference could not be judged and count as 0")
        rewards = [rollout.reward or 0.0 for rollout in judged]
        return {prompt.key: _entry(rewards[i * n : (i + 1) * n], algorithm.beta) for i, (_, prompt) in enumerate(part)}

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        try:
            table: dict[str, Any] = json.loads(self.path.read_text())["prompts"]
            return {key: entry for key, entry in table.items() if entry["rewards"]}
        except (ValueError, KeyError, TypeError) as error:
            raise StockpotError(f"{self.path} is damaged: put a copy back, or begin a new run.") from error

    def _write(self, table: dict[str, Any], algorithm: SPO) -> None:
        told = {"beta": algorithm.beta, "samples": algorithm.samples, "prompts": dict(sorted(table.items()))}
        try:
            write_whole(self.path, json.dumps(told, indent=1) + "\n")
        except OSError as error:
            why = error.strerror or error
            raise StockpotError(f"cannot write {self.path} ({why}): free some space, then resume.") from error

    # --- in a step ----------------------------------------------------------------------------------------------------

    def choose(self, groups: Sequence[Group], now: int, history: History, rng: random.Random) -> Chosen:
        """Which rollouts of these groups are trained on, their advantages, and what the reference gives their tokens.

        SPO's reference reads whole groups: Q0 is the prompt's own, and rollouts chosen by their rewards would bias it.
        """
        config = self.config
        if isinstance(config.algorithm, SPO):
            reference = self.referee.score([r for group in groups for r in group.rollouts], now, history)
            both = iter(zip(self.advantages(groups, reference, now, history), reference, strict=True))
            part, pairs = config.select(groups, lambda group: [next(both) for _ in group.rollouts], rng)
            return Chosen(part, [a for a, _ in pairs], tuple(log_probs for _, log_probs in pairs))
        part, advantages = config.select(groups, config.algorithm.advantages, rng)
        rollouts = [rollout for group in part for rollout in group.rollouts]
        known = self.referee.score(rollouts, now, history) if config.needs_reference else None
        return Chosen(part, advantages, known)

    def advantages(
        self, groups: Sequence[Group], reference: Sequence[Tensor] | None, now: int, history: History
    ) -> list[float]:
        """The algorithm's advantages of all groups; SPO's are r - Q0 (form advantage: r - V)."""
        algorithm = self.config.algorithm
        if not isinstance(algorithm, SPO) or reference is None:
            return [a for group in groups for a in algorithm.advantages(group)]
        bases = self.bases(algorithm, groups, reference, now, history)
        return [a for group, base in zip(groups, bases, strict=True) for a in algorithm.advantages(group, base)]

    def bases(
        self, algorithm: SPO, groups: Sequence[Group], reference: Sequence[Tensor], now: int, history: History
    ) -> list[float]:
        """Q0 of each group's prompt, or V."""
        self.guessed = 0
        if algorithm.q0 == "group":
            return self._in_group(algorithm, groups, reference)
        if algorithm.q0 == "reference":
            seen: list[Seen | None] = [self.sampled.get(group.prompt.key) for group in groups]
            pool = list(self.sampled.values())
        else:
            seen = self._online(algorithm, groups, reference, now, history)
            pool = [one for one in seen if one is not None]
        if not pool:  # nobody's log-probs are known: as if the reference had written the step
            pool = [Seen(log_mean(g.rewards, beta=algorithm.beta), mean_reward(g.rewards), 0) for g in groups]
        # Z is averaged, not its logarithm
        log_z = log_mean([0.0] * len(pool), [one.log_z for one in pool], beta=1.0)
        prior = Seen(log_z, mean_reward([one.reward for one in pool]), 0)
        self.guessed = sum(one is None for one in seen)
        return [self._value(algorithm, prior if one is None else one, prior) for one in seen]

    def _value(self, algorithm: SPO, seen: Seen, prior: Seen) -> float:
        """Q0, or V, with as many samples of the prior's as `shrink` says."""
        if algorithm.form != "advantage":
            return algorithm.beta * blend(seen.log_z, seen.number, prior.log_z, algorithm.shrink)
        samples = seen.number + algorithm.shrink
        return (seen.number * seen.reward + algorithm.shrink * prior.reward) / samples if samples else seen.reward

    def _online(
        self, algorithm: SPO, groups: Sequence[Group], reference: Sequence[Tensor], now: int, history: History
    ) -> list[Seen | None]:
        """From the rollouts of the step and the newest stored ones, those whose authors' log-probs are known."""
        found = history.candidates([group.prompt.key for group in groups], per_prompt=algorithm.samples)
        read = {key: history.read([one.id for one in rows]) for key, rows in found.items()}
        known = self.referee.known([r for rollouts in read.values() for r in rollouts], now, history)
        scores = iter(reference)
        seen: list[Seen | None] = []
        for group in groups:
            ids = {rollout.id for rollout in group.rollouts} - {None}  # what is replayed must not count twice
            pairs = [weighed(rollout, next(scores)) for rollout in group.rollouts]
            for rollout in read[group.prompt.key]:
                log_probs = known.get(fingerprint(rollout))
                if log_probs is not None and rollout.id not in ids:
                    pairs.append(weighed(rollout, torch.tensor(log_probs)))
            fit = [pair for pair in pairs if pair is not None]
            rewards, weights = [r for r, _ in fit], [w for _, w in fit]
            seen.append(_seen(rewards, weights, algorithm.beta) if fit else None)
        return seen

    def _in_group(self, algorithm: SPO, groups: Sequence[Group], reference: Sequence[Tensor]) -> list[float]:
        """The group's mean of r - beta Delta under the policy as it is, which spreads least; V: its mean reward."""
        if algorithm.form == "advantage":
            return [sum(group.rewards) / len(group.rewards) for group in groups]
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        policy = self.engine.score(rollouts, "policy")
        ends = iter(
            (r.reward or 0.0) - algorithm.beta * distance(r, p.cpu() - q, algorithm)
            for r, p, q in zip(rollouts, policy, reference, strict=True)
        )
        return [sum(next(ends) for _ in group.rollouts) / len(group.rollouts) for group in groups]

    def metrics(self) -> dict[str, float]:
        """What the step's Q0 and log-probs rest on."""
        if not self.config.needs_reference:
            return {}
        told = {"reference/found": float(self.referee.found)} if self.referee.keeps else {}
        soft = isinstance(self.config.algorithm, SPO) and self.config.algorithm.q0 != "group"
        return told | ({"spo/q0_guessed": float(self.guessed)} if soft else {})


def distance(rollout: Rollout, log_ratios: Tensor, algorithm: SPO) -> float:
    """Delta of one rollout: the same as `SPO.distance`, outside of a batch."""
    mask = torch.tensor([span.trained for span in rollout.spans for _ in span.tokens], dtype=torch.bool)
    total = float(log_ratios[mask].double().sum())
    return total / max(int(mask.sum()), 1) if algorithm.length == "mean" else total


def weighed(rollout: Rollout, reference: Tensor) -> Weighed | None:
    """A rollout as evidence about the reference; None where some author's log-probs are nobody's."""
    if rollout.reward is None or any(s.log_probs is None and s.trained for s in rollout.spans):
        return None
    trained = [s.trained for s in rollout.spans for _ in s.tokens]
    own = [p for s in rollout.spans for p in (s.log_probs if s.log_probs is not None else [0.0] * len(s))]
    return rollout.reward, sum(q - p for p, q, t in zip(own, reference.tolist(), trained, strict=True) if t)


def _seen(rewards: Sequence[float], log_weights: Sequence[float] | None, beta: float) -> Seen:
    return Seen(log_mean(rewards, log_weights, beta=beta), mean_reward(rewards, log_weights), len(rewards))


def _entry(rewards: Sequence[float], beta: float) -> dict[str, Any]:
    """What is stored of a prompt; the rewards themselves are all that a resume needs."""
    low, high = interval(rewards, beta=beta)
    q0 = beta * log_mean(rewards, beta=beta)
    return {
        "q0": q0,
        "low": low,
        "high": high,
        "reward": mean_reward(rewards),
        "samples": len(rewards),
        "rewards": list(rewards),
    }
