"""Seconds of one step on several devices, mode by mode, so that their ratios can be read.

Modes: all devices sample and learn in turns, on policy or with prefixes from the history or from older checkpoints; or
samplers and learners apart, waiting for each other, or not. `docs/plan.md` has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from stockpot.config import Config
from stockpot.plan import layout
from stockpot.plan.account import Plan
from stockpot.plan.base import ENGINE_TOKENS, PASS_MS, STEP_MS, Tokens
from stockpot.plan.devices import SHEETS, Device, here
from stockpot.plan.layout import Place
from stockpot.plan.lengths import mean_prefix, selected, taken_whole
from stockpot.plan.roofline import Crowd, Learning, Sampling, seen
from stockpot.plan.stragglers import Lengths, drawn
from stockpot.prefixes import FromCheckpoints, FromHistory, LiveRule, NoPrefixes, PrefixRule
from stockpot.samplers.torch import PREFILL_TOKENS
from stockpot.types import StockpotError


@dataclass(frozen=True)
class Seconds:
    """Seconds of a step, in the mean over the devices; the parts add up to the step."""

    decode: float
    prefill: float
    reward: float
    learn: float
    sync: float
    """Moving weights to samplers, loading older ones, and talk between learners that learning does not hide."""
    idle: float

    @property
    def step(self) -> float:
        return self.decode + self.prefill + self.reward + self.learn + self.sync + self.idle


@dataclass(frozen=True)
class Mode:
    """A way to run the recipe, and what a step of it takes."""

    name: str
    samplers: int
    learners: int
    apart: bool
    places: tuple[Place, ...]
    """One device of each kind."""
    tokens: Tokens
    seconds: Seconds
    fits: bool

    @property
    def needed(self) -> float:
        """Bytes at the peak on the device that needs most."""
        return max(place.needed for place in self.places)


@dataclass(frozen=True)
class Work:
    """What samplers do in a step."""

    crowds: list[Crowd]
    heads: list[Crowd] = field(default_factory=list)
    """What older policies write first, each of `writers` in a turn of its own."""
    writers: int = 1
    reads: list[tuple[float, float]] = field(default_factory=list)
    """Contexts read before decoding: how many, and how long."""


@dataclass(frozen=True)
class Fleet:
    """A plan on several devices."""

    plan: Plan
    gpus: int = 1
    lengths: Lengths | None = None
    """Measured lengths, in place of those assumed."""

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise StockpotError(f"--gpus must be at least 1, not {self.gpus}.")

    @cached_property
    def device(self) -> Device:
        """The device's peaks: by its data sheet, or measured here, with what the options say in their place."""
        told, given = self.plan.assumed, (self.plan.assumed.peak_tflops, self.plan.assumed.bandwidth)
        if self.plan.device != "cpu":
            sheet = SHEETS[self.plan.device]
        elif all(given):
            sheet = Device(0, given[0], given[0], given[1], given[1] / 2, given[1], given[1] / 2)
        else:
            sheet = here(self.plan.config.threads)
        if told.peak_tflops:
            sheet = replace(sheet, half=told.peak_tflops, single=told.peak_tflops)
        sheet = replace(sheet, bandwidth=told.bandwidth or sheet.bandwidth)
        return replace(sheet, link=told.link, network=told.link) if told.link else sheet

    @cached_property
    def spread(self) -> Lengths:
        """How long responses are."""
        told, most = self.plan.assumed, self.plan.config.max_tokens
        return self.lengths or drawn(told.lengths, told.response * most, told.spread, most)

    @property
    def usable(self) -> float:
        """Bytes of one device that may be taken; processes on one machine share its memory."""
        return self.plan.usable / (self.gpus if self.plan.device == "cpu" else 1)

    @property
    def sampler(self) -> Literal["cpu", "reference", "engine"]:
        """Who decodes: the reference sampler, on one GPU or on the CPU; on several GPUs an engine such as vLLM."""
        return "cpu" if self.plan.device == "cpu" else "engine" if self.gpus > 1 else "reference"

    def overhead(self, what: str) -> float:
        """Seconds of overhead of a decoding step, or of a pass."""
        told, cpu = self.plan.assumed, self.plan.device == "cpu"
        if what == "step":
            each, chosen = STEP_MS[self.sampler], told.step_ms
        else:
            each, chosen = PASS_MS["cpu" if cpu else "gpu"], told.pass_ms
        return (each * self.plan.shape.layers if chosen is None else chosen) / 1e3

    # --- modes ------------------------------------------------------------------------------------------------------

    def modes(self) -> Iterator[Mode]:
        """The recipe in each mode; the recipe's own prefixes too, where they are of none of these kinds."""
        config, n = self.plan.config, self.gpus
        rules = self.rules()
        for name, rule in rules.items():
            yield self.together(name, replace(config, prefixes=rule), n)
        if n > 1:
            bare = replace(config, prefixes=NoPrefixes())
            late = f"refreshed every {config.refresh_every}" if config.refresh_every > 1 else "in turns"
            yield self.best(f"apart, {late}", bare, waits=True)
            yield self.best("asynchronous", bare, waits=False)

    def rules(self) -> dict[str, PrefixRule]:
        """Prefix rules to compare: none, the recipe's or the default from the history, heads alike by checkpoints."""
        config, own = self.plan.config, self.plan.config.prefixes
        history = own if isinstance(own, FromHistory) else FromHistory()
        if isinstance(own, FromCheckpoints):
            live, history = own, FromHistory(share=own.share, exactly=own.exactly)
        else:
            low, high = (max(1, round(cut * self.spread.mean)) for cut in (history.cut_low, history.cut_high))
            if history.where == "tokens":
                low = high = history.cut_tokens
            low, high = (min(length, config.max_tokens - 1) for length in (low, high))
            live = FromCheckpoints(share=history.share, exactly=history.exactly, shortest=low, longest=max(low, high))
        found: dict[str, PrefixRule] = {"on-policy": NoPrefixes(), "SOUP, history": history, "SOUP, checkpoints": live}
        if not isinstance(own, NoPrefixes | FromHistory | FromCheckpoints):
            found[f"as configured ({type(own).__name__})"] = own
        return found

    def together(self, name: str, config: Config, n: int) -> Mode:
        """All devices sample, then all learn."""
        place = layout.together(replace(self.plan, config=config), n)
        work = self.work(place.plan, n)
        engine = self.engine(place.plan)
        decode, wait = self.writing(engine, work, n, place.plan.rows)
        read = sum(engine.reading(count / n, length) for count, length in work.reads)
        learn, talk = self.learning(place, n)
        sync = talk + self.loaded(place.plan)
        line = self.device.line(n)
        if place.divided:
            sync += (n - 1) / n * moved(place.plan) / line / config.refresh_every
        elif config.refresh_every > 1:
            sync += 2 * moved(place.plan) / (self.device.bandwidth * 1e9) / config.refresh_every
        seconds = Seconds(decode, read, self.judging(config, n), learn, sync, wait - decode)
        fits = place.needed <= self.usable
        return Mode(name, n, n, False, (place,), place.plan.tokens(), seconds, fits)

    def best(self, name: str, config: Config, waits: bool) -> Mode:
        """Samplers and learners apart, divided so that a step is shortest, among the divisions that fit if any does."""
        found = [self.apart(name, config, samplers, self.gpus - samplers, waits) for samplers in range(1, self.gpus)]
        return min(found, key=lambda mode: (not mode.fits, mode.seconds.step))

    def apart(self, name: str, config: Config, samplers: int, learners: int, waits: bool) -> Mode:
        """Some devices sample, the others learn: after each other (`waits`), or all the time."""
        plan, n = replace(self.plan, config=config), samplers + learners
        writer, teacher = layout.sampler(plan, samplers), layout.learner(plan, learners)
        engine, work = self.engine(writer.plan), self.work(writer.plan, samplers)
        read = sum(engine.reading(count / samplers, length) for count, length in work.reads)
        if waits:
            busy, wait = self.writing(engine, work, samplers, writer.plan.rows)
        else:
            asked = sum(crowd.count for crowd in work.crowds) / samplers
            rows = min(writer.plan.rows, asked)
            mine = [replace(c, count=c.count / samplers) for c in (*work.crowds, *work.heads)]
            busy = wait = engine.steady(mine, rows)
            read += engine.reading(rows, seen(mine))  # newer weights: what is under way is read again
        learn, talk = self.learning(teacher, learners)
        sync = moved(writer.plan) / self.device.line(n) / config.refresh_every + self.loaded(writer.plan)
        judging = self.judging(config, n)
        step = sync + cycle((wait + read, judging + learn + talk), config.refresh_every if waits else math.inf)
        shares = samplers / n, learners / n
        own = shares[0] * (busy + read), shares[1] * (judging + learn)
        idle = step - sync - sum(own) - shares[1] * talk
        seconds = Seconds(
            shares[0] * busy, shares[0] * read, shares[1] * judging, shares[1] * learn, sync + shares[1] * talk, idle
        )
        fits = max(writer.needed, teacher.needed) <= self.usable
        return Mode(name, samplers, learners, True, (writer, teacher), plan.tokens(), seconds, fits)

    # --- what a step is made of --------------------------------------------------------------------------------------

    def work(self, plan: Plan, samplers: int) -> Work:
        """What is written and read in a step."""
        config, spread, prompt = plan.config, self.spread, plan.mean_prompt
        rule, prompts = config.prefixes, config.prompts_per_step
        rollouts = prompts * config.group_size
        count = prompts * rule.wanted(config.group_size, config.steps)
        fresh, contexts = Crowd(rollouts - count, spread, prompt), [(float(prompts), float(prompt))]
        if not count or taken_whole(rule):
            return Work([fresh], reads=contexts)
        head = mean_prefix(config, spread.mean)
        heads: list[Crowd] = []
        writers = 1
        if isinstance(rule, LiveRule):
            low, high = (rule.shortest, rule.longest) if isinstance(rule, FromCheckpoints) else (1, round(2 * head))
            heads = [Crowd(count, spread.capped(low, high), prompt)]
            writers = getattr(rule, "writers_per_step", 1)
            contexts *= 2
        if (
            self.sampler != "engine" and rollouts / samplers <= plan.rows
        ):  # prefixes are read along, while the others write
            return Work([fresh, Crowd(count, spread, prompt)], heads, writers, contexts)
        fraction = isinstance(rule, FromHistory) and rule.where != "tokens"
        rest = spread.scaled(1 - head / spread.mean) if fraction else spread.after(head)
        crowds = [fresh, Crowd(count, rest, prompt + head)]
        return Work(crowds, heads, writers, [*contexts, (count, prompt + head)])

    def writing(self, engine: Sampling, work: Work, samplers: int, rows: int) -> tuple[float, float]:
        """Seconds of decoding for a sampler, and until the slowest has done: heads first, then everything else."""
        busy, wait = engine.batch(work.crowds, samplers, rows)
        part = [replace(crowd, count=crowd.count / work.writers) for crowd in work.heads]
        first, all_first = engine.batch(part, samplers, rows)
        return busy + work.writers * first, wait + work.writers * all_first

    def engine(self, plan: Plan) -> Sampling:
        """The device as it decodes."""
        device = self.device
        peak = device.single if plan.decoding == 4 else device.half
        return Sampling(
            plan.shape, plan.decoding, peak * 1e12, device.bandwidth * 1e9, plan.assumed.reached,
            self.overhead("step"), self.overhead("pass"), ENGINE_TOKENS if self.sampler == "engine" else PREFILL_TOKENS,
        )  # fmt: skip

    def learning(self, place: Place, learners: int) -> tuple[float, float]:
        """Seconds of learning, and of talk that it does not hide."""
        plan, device = place.plan, self.device
        config, tokens = plan.config, plan.tokens()
        response = self.spread.mean
        read = tokens.rollouts * selected(config) * (plan.mean_prompt + response)
        passes = math.ceil(read / plan.pass_tokens / learners) * learners * config.epochs
        made = Learning(
            (device.half if plan.mixed else device.single) * 1e12, plan.assumed.mfu, device.bandwidth * 1e9,
            device.line(learners), self.overhead("pass"), learners, place.divided,
        )  # fmt: skip
        updates = config.updates_per_step * config.epochs
        gathered = plan.shape.parameters * layout.gathered_width(plan)
        return made.seconds(plan.operations().learn, passes, updates, plan.trained, gathered)

    def judging(self, config: Config, devices: int) -> float:
        """Seconds of judging a step's fresh rollouts, on a processor for each device."""
        taken = config.prompts_per_step * config.prefixes.wanted(config.group_size, config.steps)
        fresh = config.prompts_per_step * config.group_size - (taken if taken_whole(config.prefixes) else 0)
        return math.ceil(fresh / devices) * self.plan.assumed.reward_ms / 1e3

    def loaded(self, plan: Plan) -> float:
        """Seconds of bringing an older policy to where it writes, and the live one back where it takes its place."""
        rule = plan.config.prefixes
        if not isinstance(rule, LiveRule) or not rule.wanted(plan.config.group_size, plan.config.steps):
            return 0.0
        times = getattr(rule, "writers_per_step", 1) + (1 if plan.copies or plan.adapter else 0)
        return times * moved(plan) / (self.device.host * 1e9)


def moved(plan: Plan) -> float:
    """Bytes of the policy's weights on their way to a sampler: an adapter alone, where there is one."""
    return 4 * plan.adapter if plan.adapter else plan.decoding * plan.shape.parameters


def cycle(stages: tuple[float, ...], every: float) -> float:
    """Seconds a batch of a line of stages that is emptied after every so many batches; 1: one after the other."""
    longest = max(stages)
    return longest + (sum(stages) - longest) / every
