"""What the first rollouts of a step's groups begin with: cut from the history, written by snapshots, or from outside.

Rules decide, this carries out. Slots number the rollouts of a step: prompt i's are i * group_size and those after it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from stockpot.config import Config
from stockpot.engines.base import Engine
from stockpot.history import History
from stockpot.library import Library
from stockpot.prefixes import LiveRule, Offline, OutsideRule, StoredRule
from stockpot.prompts import step_ends
from stockpot.rewards.score import score
from stockpot.seeds import derive
from stockpot.types import Author, Prompt, Request, Rollout, Span


@dataclass(frozen=True, slots=True)
class Heads:
    """The prompts of a step, and what some of its rollouts begin with."""

    asked: list[Prompt]
    by_slot: dict[int, Rollout] = field(default_factory=dict)
    """A rollout with a reward was taken whole: there is nothing to continue, nor to store a second time."""
    wanted: int = 0
    """How many there should be."""
    decoded: int = 0
    """Tokens that snapshots decoded for them, stop tokens that were dropped included."""
    ended: int = 0
    """Prefixes whose snapshot came to an end before its length was reached."""
    unjudged: int = 0
    """Demonstrations that the reward function gave no number."""
    repeated: int | None = None
    """Rollouts from a file that stand twice in their group; None without a file."""

    @property
    def whole(self) -> dict[int, Rollout]:
        """The rollouts taken whole."""
        return {slot: head for slot, head in self.by_slot.items() if head.reward is not None}

    def requests(self, config: Config, turn: int = 0) -> list[Request]:
        """What is left to write, slot by slot; `turn` counts the rounds of a step that asks again."""
        size, whole = config.group_size, self.whole
        return [
            Request(
                self.asked[slot // size],
                key=turn * config.prompts_per_step * size + slot,
                prefix=self.by_slot[slot].spans if slot in self.by_slot else (),
                sampling=config.sampling,
                max_tokens=config.max_tokens,
            )
            for slot in range(len(self.asked) * size)
            if slot not in whole
        ]

    def metrics(self) -> dict[str, float]:
        """What falls short is counted; `docs/metrics.md` explains each figure."""
        missing = {"prefix/missing": float(self.wanted - len(self.by_slot))}
        if self.repeated is not None:
            missing |= {"offline/rollouts": float(len(self.by_slot)), "offline/repeated": float(self.repeated)}
        return missing | {"prefix/decoded": float(self.decoded), "prefix/ended_early": float(self.ended)}


class Beginner:
    """Carries out the run's prefix rule."""

    def __init__(self, config: Config, engine: Engine, prompts: Sequence[Prompt]) -> None:
        self.config, self.engine = config, engine
        self.prompts = {prompt.key: prompt for prompt in prompts}
        self.step_ends = step_ends(config.task, engine.tokenizer)
        rule = config.prefixes
        self.library = Library(config, rule, engine.tokenizer, prompts) if isinstance(rule, Offline) else None
        self.pool = self.library.pool if self.library else list(prompts)
        """The prompts that steps draw from."""

    def never(self) -> bool:
        """Whether the rule wants prefixes and no step of the run can have one: too short a run, or ages too old."""
        rule, steps = self.config.prefixes, range(self.config.steps)
        if isinstance(rule, StoredRule):
            return all(rule.versions(now) is None for now in steps)
        if isinstance(rule, LiveRule):
            taken = range(0, self.config.steps, rule.every)
            rng = random.Random(0)
            return not any(rule.writers([v for v in taken if v <= now][-rule.keep :], now, rng) for now in steps)
        return False

    def begin(self, asked: Sequence[Prompt], now: int, history: History, turn: int = 0) -> Heads:
        """The heads of step `now`, whose prompts are `asked` unless the rule invites others.

        `turn` counts the rounds of a step that asks again: each has random numbers of its own.
        """
        rule = self.config.prefixes
        again = (turn,) if turn else ()
        rng = random.Random(derive(self.config.seed, "prefix", now, *again))
        if isinstance(rule, StoredRule):
            return self.stored(rule, list(asked), now, history, rng)
        if isinstance(rule, LiveRule):
            return self.written(rule, list(asked), now, rng, derive(self.config.seed, "snapshot", now, *again))
        if self.library is not None:
            taken = self.library.take(asked, now, *again)
            total = rule.total(len(asked), self.config.group_size, now)
            return Heads(list(asked), taken.by_slot, total, repeated=taken.repeated)
        if isinstance(rule, OutsideRule):
            return self.outside(rule, list(asked), now)
        return Heads(list(asked))

    def stored(self, rule: StoredRule, asked: list[Prompt], now: int, history: History, rng: random.Random) -> Heads:
        """Heads cut from rollouts in the history, with the log-probs stored beside them."""
        size = self.config.group_size
        versions = rule.versions(now)
        if versions is None:
            return Heads(asked, wanted=rule.total(len(asked), size, now))
        oldest, newest = versions
        places = list(range(len(asked)))
        if rule.invites:
            guests = rule.invite(
                history.candidates(list(self.prompts), oldest=oldest, newest=newest), len(asked), now, rng
            )
            hosts = [prompt for prompt in asked if prompt.key not in guests][: len(asked) - len(guests)]
            asked = [self.prompts[key] for key in guests] + hosts
            places = places[: len(guests)]
        known = history.candidates([asked[i].key for i in places], oldest=oldest, newest=newest)
        chosen = {i: rule.choose(known.get(asked[i].key, ()), size, now, rng) for i in places}
        read = iter(history.read([number for numbers in chosen.values() for number in numbers]))
        by_slot: dict[int, Rollout] = {}
        for i, numbers in chosen.items():
            preferred = rule.prefer([next(read) for _ in numbers], size, now)
            cuts = [rule.begin(rollout, now, rng, self.step_ends) for rollout in preferred]
            by_slot |= {i * size + j: head for j, head in enumerate(head for head in cuts if head.spans)}
        return Heads(asked, by_slot, wanted=rule.total(len(asked), size, now))

    def written(self, rule: LiveRule, asked: list[Prompt], now: int, rng: random.Random, seed: int) -> Heads:
        """Heads that past policies write now; the prompts are dealt to the snapshots that write."""
        config, size = self.config, self.config.group_size
        wanted = rule.wanted(size, now)
        writers = rule.writers(self.engine.past, now, rng) if wanted else []
        by_slot: dict[int, Rollout] = {}
        decoded = ended = 0
        for turn, version in enumerate(writers):
            slots = [i * size + j for i in range(turn, len(asked), len(writers)) for j in range(wanted)]
            requests = [
                Request(asked[slot // size], slot, sampling=config.sampling, max_tokens=rule.length(rng))
                for slot in slots
            ]
            rollouts = self.engine.sample(requests, seed, version)
            decoded += sum(map(len, rollouts))
            ended += sum(rollout.finish == "stop" for rollout in rollouts)
            by_slot |= {slot: rule.begin(rollout) for slot, rollout in zip(slots, rollouts, strict=True)}
        by_slot = {slot: head for slot, head in by_slot.items() if head.spans}
        return Heads(asked, by_slot, rule.total(len(asked), size, now), decoded, ended)

    def outside(self, rule: OutsideRule, asked: list[Prompt], now: int) -> Heads:
        """Whole rollouts by an outsider, judged like any other; none where the task has no demonstration that fits."""
        config, size = self.config, self.config.group_size
        wanted = rule.wanted(size, now)
        found: dict[int, Rollout] = {}
        for i, prompt in enumerate(asked if wanted else []):
            for j, text in enumerate(config.task.demonstrate(prompt.columns, wanted)):
                ids = [*self.engine.tokenizer(text, add_special_tokens=False)["input_ids"]]
                ids.append(self.engine.tokenizer.eos_token_id)
                if len(ids) <= config.max_tokens:
                    span = Span(Author("demonstrations"), ids, kind="demonstration")
                    found[i * size + j] = Rollout(prompt, (span,))
        judged, unjudged = score(list(found.values()), config.task.reward, self.engine.tokenizer)
        return Heads(asked, dict(zip(found, judged, strict=True)), rule.total(len(asked), size, now), unjudged=unjudged)
