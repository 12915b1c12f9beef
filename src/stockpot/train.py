"""The loop: prompt -> prefix -> continuation -> reward -> advantage -> loss -> update -> history.

History is read at the top of a step and written at its end; nothing else is shared and mutable. Everything random
follows from (seed, step), so there is no generator to save: a run that was killed and resumed ends in the same bits.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from stockpot import checkpoints, console, prompts, sandbox
from stockpot.algorithms.base import ActorCritic
from stockpot.as_json import to_json
from stockpot.checkpoints import Checkpoint
from stockpot.clock import Clock
from stockpot.config import Config
from stockpot.diagnostics import average, describe
from stockpot.engines import make
from stockpot.engines.base import Engine, Lesson, Lost
from stockpot.evaluate import Result, evaluate, observe
from stockpot.heads import Beginner, Heads
from stockpot.history import History
from stockpot.judged import credit, judged
from stockpot.models import vocabulary_of
from stockpot.record import Run
from stockpot.seeds import derive
from stockpot.selection import flat
from stockpot.soft import Soft
from stockpot.start import prepare
from stockpot.types import Group
from stockpot.written import Written, group


def train(config: Config, folder: Path, *, resume: bool = False) -> Run:
    """Run `config` in `folder` from the start, or from the newest whole checkpoint, to its last step."""
    torch.set_num_threads(config.threads)
    run = Run.open(folder, config.loggers) if resume else Run.create(folder, to_json(config), config.loggers)
    with ExitStack() as stack:
        with run.untouched():
            make.ready(config)
            origin = prepare(config, folder / "start")
            last = checkpoints.latest(run.checkpoints, console.tell)
            engine = make.engine(config, run.name, origin, last, run.folder / "snapshots")
            stack.callback(engine.close)
            loop = Loop(config, engine, run)
        while not loop.run_from(last):
            last = checkpoints.latest(run.checkpoints, console.tell)
            engine.restart(str(last.folder) if last else origin, last.step if last else 0)
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
        self.begun: dict[int, Heads] = {}
        """Steps whose rollouts the engine may be writing already."""

    def run_from(self, last: Checkpoint | None) -> bool:
        """From that checkpoint, or the start, to the last step; False where the engine lost the policy on the way."""
        config, engine, run, begin = self.config, self.engine, self.run, last.step if last else 0
        self.begun.clear()
        checkpoints.rewind(run.checkpoints, begin)
        try:
            with engine.history(run.history, run.name, vocabulary_of(engine.tokenizer)) as history:
                history.truncate(begin)
                run.rewind(begin if last else -1)
                self.soft.prepare(begin)
                if last is None:
                    self.measure(0, {}, {})
                    if config.steps and self.beginner.never():
                        steps = f"{config.steps} steps"
                        console.tell(f"no rollout of its {steps} will get a prefix: see prefixes.min_age, warmup")
                with console.bar("training", config.steps, done=begin) as bar:
                    for now in range(begin, config.steps):
                        metrics, timings = self.step(now, history)
                        bar.advance(1, **self.measure(now + 1, metrics, timings))
        except Lost as lost:
            console.tell(f"{lost}")
            return False
        return True

    def step(self, now: int, history: History) -> tuple[dict[str, float], dict[str, float]]:
        """Once along the arrow. `now` is the version of the policy that writes; returns metrics and seconds."""
        config, clock, worked = self.config, Clock(), time.process_time()
        for later in config.begins(now):
            if later not in self.begun:
                self.begun[later] = self.ask(later, history, clock)
        written = self.write(self.begun.pop(now), now, clock)
        batch = config.select.batch(written.groups, config.prompts_per_step)
        for turn in range(1, 1 + config.select.refill):
            more = prompts.further(self.beginner.pool, written.asked, now, sum(map(flat, batch)), config.seed)
            if more:
                with clock("prefix"):
                    heads = self.beginner.begin(more, now, history, turn)
                written += self.write(heads, now, clock, turn)
                batch = config.select.batch(written.groups, config.prompts_per_step)
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
        timings = clock.seconds | {"cpu": time.process_time() - worked, "decoded_per_second": rate}
        return metrics, timings | self.engine.figures()

    def ask(self, step: int, history: History, clock: Clock) -> Heads:
        """The prompts of a step and what its rollouts begin with; the engine may begin to write the rest."""
        config = self.config
        with clock("prefix"):
            asked = prompts.pick(self.beginner.pool, step, config.prompts_per_step, config.seed)
            heads = self.beginner.begin(asked, step, history)
            self.engine.begin(heads.requests(config), derive(config.seed, "continuation", step), step)
        return heads

    def write(self, heads: Heads, now: int, clock: Clock, turn: int = 0) -> Written:
        """Prefix -> continuation -> reward; `turn` counts the rounds of a step that asks again."""
        config, asked, whole = self.config, heads.asked, heads.whole
        with clock("continuation"):
            requests = heads.requests(config, turn)
            fresh = self.engine.sample(requests, derive(config.seed, "continuation", now), config.writer(now))
        with clock("reward"):
            fresh, unjudged = self.engine.judge(fresh, config.task.reward)
            noted = observe(fresh, config.task, self.engine.tokenizer, "rollout")
            fresh, penalised = config.penalties(fresh, self.engine.tokenizer, config.max_tokens)
            new, slots = iter(fresh), range(len(asked) * config.group_size)
            rollouts = [whole[slot] if slot in whole else next(new) for slot in slots]
        counts = {"reward/unjudged": float(unjudged + heads.unjudged), **heads.metrics()}
        return Written(group(asked, rollouts, config.group_size), fresh, counts, penalised | noted)

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
