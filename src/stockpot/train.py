"""The loop: prompt -> prefix -> continuation -> reward -> advantage -> loss -> update -> history.

History is read at the top of a step and written at its end; nothing else is shared and mutable. Everything random
follows from (seed, step), so there is no generator to save: a run that was killed and resumed ends in the same bits.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from stockpot import checkpoints, console, prompts, sandbox
from stockpot.algorithms.base import ActorCritic
from stockpot.config import Config, to_json
from stockpot.diagnostics import average, describe
from stockpot.engines.base import Engine, Lesson
from stockpot.engines.local import LocalEngine
from stockpot.evaluate import Result, evaluate, observe
from stockpot.heads import Beginner
from stockpot.history import History
from stockpot.judged import credit, judged
from stockpot.models import vocabulary_of
from stockpot.record import Run
from stockpot.rewards.score import score
from stockpot.seeds import derive
from stockpot.selection import flat
from stockpot.soft import Soft
from stockpot.start import prepare
from stockpot.types import Group, Prompt, Request
from stockpot.written import Written, group


def train(config: Config, folder: Path, *, resume: bool = False) -> Run:
    """Run `config` in `folder` from the start, or from the newest whole checkpoint, to its last step."""
    torch.set_num_threads(config.threads)
    run = Run.open(folder, config.loggers) if resume else Run.create(folder, to_json(config), config.loggers)
    with run.untouched():
        origin = prepare(config, folder / "start")
        last = checkpoints.latest(run.checkpoints, console.tell)
        begin = 0 if last is None else last.step
        weights = str(last.folder) if last else origin
        engine = LocalEngine(config, run.name, weights, origin, begin, run.folder / "snapshots")
        loop = Loop(config, engine, run)
    checkpoints.rewind(run.checkpoints, begin)
    with History.open(run.history, run=run.name, vocabulary=vocabulary_of(engine.tokenizer)) as history:
        history.truncate(begin)
        run.rewind(begin if last else -1)
        loop.soft.prepare(begin)
        if last is None:
            loop.measure(0, {}, {})
            if config.steps and loop.beginner.never():
                console.tell(f"no rollout of its {config.steps} steps will get a prefix: see prefixes.min_age, warmup")
        with console.bar("training", config.steps, done=begin) as bar:
            for now in range(begin, config.steps):
                metrics, timings = loop.step(now, history)
                shown = loop.measure(now + 1, metrics, timings)
                bar.advance(1, **shown)
    return run


class Loop:
    """One run's fixed parts, and the step that is repeated."""

    def __init__(self, config: Config, engine: Engine, run: Run) -> None:
        self.config, self.engine, self.run = config, engine, run
        load = {"tokenizer": engine.tokenizer, "context": engine.context, "max_tokens": config.max_tokens}
        self.train_prompts = prompts.only(prompts.load_prompts(config.task, "train", **load), config.only)
        self.test_prompts = prompts.load_prompts(config.task, "test", **load)
        self.beginner = Beginner(config, engine, self.train_prompts)
        self.soft = Soft(config, engine, run.folder, self.beginner.pool)
        self.last_score: dict[str, float] = {}

    def step(self, now: int, history: History) -> tuple[dict[str, float], dict[str, float]]:
        """Once along the arrow. `now` is the version of the policy that writes; returns metrics and seconds."""
        config, clock, worked = self.config, Clock(), time.process_time()
        asked = prompts.pick(self.beginner.pool, now, config.prompts_per_step, config.seed)
        written = self.write(asked, now, history, clock)
        batch = config.select.batch(written.groups, len(asked))
        for turn in range(1, 1 + config.select.refill):
            more = prompts.further(self.beginner.pool, written.asked, now, sum(map(flat, batch)), config.seed)
            if more:
                written += self.write(more, now, history, clock, turn)
                batch = config.select.batch(written.groups, len(asked))
        with clock("advantage"):
            lessons = list(self.lessons(batch, now, history))
        with clock("update"):
            seed = derive(config.seed, "update", now)
            updates = [self.engine.learn(lesson, seed) for lesson in lessons * config.epochs]
            self.engine.advance(now + 1)
        with clock("history"):
            history.append(now, written.fresh, self.soft.referee.kept())
        for update in updates:
            if update.skipped:
                console.tell(f"step {now + 1}: no update was made, {update.skipped}")
        metrics = describe(written.rollouts, config.group_size) | average([update.metrics for update in updates])
        metrics |= config.select.metrics(written.groups, batch, [r for lesson in lessons for r in lesson.rollouts])
        metrics |= {**written.counts, **written.shares, **self.soft.metrics()}
        metrics["rollout/decoded"] = written.decoded + written.counts["prefix/decoded"]
        metrics["skipped_steps"] = updates[-1].metrics["skipped_steps"]  # a count so far: no mean of it
        rate = written.decoded / clock.seconds["continuation"]
        return metrics, clock.seconds | {"cpu": time.process_time() - worked, "decoded_per_second": rate}

    def write(self, asked: list[Prompt], now: int, history: History, clock: Clock, turn: int = 0) -> Written:
        """Prompt -> prefix -> continuation -> reward; `turn` counts the rounds of a step that asks again."""
        config, size = self.config, self.config.group_size
        with clock("prefix"):
            heads = self.beginner.begin(asked, now, history, turn)
            asked, begun = heads.asked, heads.by_slot
            whole = {slot: head for slot, head in begun.items() if head.reward is not None}
        with clock("continuation"):
            requests = [
                Request(
                    asked[slot // size],
                    key=turn * config.prompts_per_step * size + slot,
                    prefix=begun[slot].spans if slot in begun else (),
                    sampling=config.sampling,
                    max_tokens=config.max_tokens,
                )
                for slot in range(len(asked) * size)
                if slot not in whole
            ]
            fresh = self.engine.sample(requests, derive(config.seed, "continuation", now), config.writer(now))
        with clock("reward"):
            fresh, unjudged = score(fresh, config.task.reward, self.engine.tokenizer)
            noted = observe(fresh, config.task, self.engine.tokenizer, "rollout")
            fresh, penalised = config.penalties(fresh, self.engine.tokenizer, config.max_tokens)
            new = iter(fresh)
            rollouts = [whole[slot] if slot in whole else next(new) for slot in range(len(asked) * size)]
        counts = {"reward/unjudged": float(unjudged + heads.unjudged), **heads.metrics()}
        return Written(group(asked, rollouts, size), fresh, counts, penalised | noted)

    def lessons(self, groups: Sequence[Group], now: int, history: History) -> Iterator[Lesson]:
        """Advantages of every group, dealt to the optimiser steps of this step; whole groups to each."""
        config = self.config
        size, rng = len(groups) // config.updates_per_step, random.Random(derive(config.seed, "select", now))
        for first in range(0, len(groups), size):
            part, advantages, reference = self.soft.choose(groups[first : first + size], now, history, rng)
            rollouts = tuple(rollout for g in part for rollout in g.rollouts)
            numbers = tuple(first + i for i, g in enumerate(part) for _ in g.rollouts)
            if isinstance(config.algorithm, ActorCritic):
                yield judged(config.algorithm, config.kl, self.engine, Lesson(rollouts, (), numbers, reference))
                continue
            if reference is not None and config.kl.in_advantage:
                added = credit(config, self.engine, rollouts, reference)
                advantages = [a + c for a, c in zip(advantages, added, strict=True)]
            yield Lesson(rollouts, tuple(advantages), numbers, reference)

    def measure(self, done: int, metrics: dict[str, float], timings: dict[str, float]) -> dict[str, float]:
        """After `done` steps: evaluate and save when it is time, write the record, say what to show."""
        config, clock = self.config, Clock()
        every = config.evaluation.every
        if done in (0, config.steps) or (every and done % every == 0):
            with clock("evaluation"):
                self.last_score = self.evaluate().metrics()
            metrics = metrics | self.last_score
        self.run.log(done, metrics, timings | clock.seconds)
        if before := self.run.sandboxed(done, level := sandbox.in_force()):
            console.tell(
                f"step {done}: programs now run in a sandbox of level {level and level['level']}, not {before}"
            )
        if done in (0, config.steps) or done % config.checkpoint_every == 0:
            checkpoints.write(self.run.checkpoints, done, metrics.get("test/pass@1"), self.engine.save)
            checkpoints.prune(self.run.checkpoints, config.keep_checkpoints)
        shown = {"reward": metrics.get("reward/mean", 0.0), "entropy": metrics.get("all/entropy", 0.0)}
        return shown | {"held-out": self.last_score.get("test/pass@1", 0.0)}

    def evaluate(self) -> Result:
        """Held-out prompts, always with the same random numbers, so that two evaluations differ by the policy alone."""
        return evaluate(
            self.engine,
            self.test_prompts,
            self.config.task.reward,
            self.config.evaluation,
            max_tokens=self.config.max_tokens,
            seed=derive(self.config.seed, "evaluation"),
            task=self.config.task,
        )


class Clock:
    """Seconds spent in each part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
