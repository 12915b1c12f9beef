"""Solutions from elsewhere, by prompt: read once, checked line by line, what is left out is counted and told."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stockpot import console
from stockpot.config import Config
from stockpot.history import History
from stockpot.models import vocabulary_of
from stockpot.prefixes import Offline
from stockpot.rewards.score import score
from stockpot.seeds import derive
from stockpot.types import Author, Prompt, Rollout, Span, StockpotError

SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True, slots=True)
class Taken:
    """What a step takes from the library."""

    by_slot: dict[int, Rollout]
    repeated: int = 0
    """Rollouts that stand in their group a second time, since the file has too few of the prompt."""


class Library:
    """The rollouts that a file holds for the training prompts."""

    def __init__(self, config: Config, rule: Offline, tokenizer: Any, prompts: Sequence[Prompt]) -> None:
        self.config, self.rule, self.tokenizer = config, rule, tokenizer
        self.path = Path(rule.path)
        self.prompts = {prompt.key: prompt for prompt in prompts}
        self.shelf: dict[str, list[Rollout]] = {}
        self.ids: dict[str, list[int]] = {}
        self._history: History | None = None
        try:
            with self.path.open("rb") as file:
                stored = file.read(len(SQLITE)) == SQLITE
            self._open_history() if stored else self._read_lines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise StockpotError(f"cannot read prefixes.path {self.path} ({why}): name a history or a JSONL.") from error
        known = self.shelf.keys() | self.ids.keys()
        limited = rule.only or rule.prompts == "known"
        self.pool = [prompt for prompt in prompts if prompt.key in known or not limited]

    # --- opening ------------------------------------------------------------------------------------------------------

    def _open_history(self) -> None:
        """An earlier run's store: only ids are kept, tokens are read when they are wanted."""
        self._history = History.open(self.path, vocabulary=vocabulary_of(self.tokenizer), read_only=True)
        found = self._history.candidates(list(self.prompts))
        room = self.config.max_tokens
        self.ids = {k: ids for k, rows in found.items() if (ids := [c.id for c in rows if 0 < c.length <= room])}
        total, long = self._history.summary()["rollouts"], sum(c.length > room for rows in found.values() for c in rows)
        left = Counter({"longer than max_tokens": long})
        left["of no prompt of the task, or without a reward"] = total - sum(map(len, found.values()))
        self._tell(sum(map(len, self.ids.values())), total, left, "rollouts")

    def _read_lines(self) -> None:
        """A JSONL: each line becomes a rollout, or is counted under the reason why not."""
        by_text = {prompt.text: prompt.key for prompt in self.prompts.values()}
        left: Counter[str] = Counter()
        rollouts: list[Rollout] = []
        total = 0
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                if not line.strip():
                    continue
                total += 1
                read = self._to_rollout(line, by_text)
                if isinstance(read, str):
                    left[read] += 1
                else:
                    rollouts.append(read)
        judged = self._judged(rollouts)
        for rollout in judged:
            self.shelf.setdefault(rollout.prompt.key, []).append(rollout)
        self._tell(len(rollouts), total, left, "lines")

    def _to_rollout(self, line: str, by_text: dict[str, str]) -> Rollout | str:
        """One line, or what is wrong with it."""
        try:
            row = json.loads(line)
        except ValueError:
            return "not JSON"
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), (str, list)):
            return "without a prompt"
        asked = row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"], ensure_ascii=False)
        key = asked if asked in self.prompts else by_text.get(asked)
        if key is None:
            return "of no prompt of the task"
        ids, reward, log_probs = self._ids(row), row.get("reward"), row.get("log_probs")
        if not ids:
            return "without a completion"
        if len(ids) > self.config.max_tokens:
            return "longer than max_tokens"
        if reward is not None and not _numbers([reward]):
            return "with a reward that is no number"
        if log_probs is not None and not (
            isinstance(log_probs, list) and len(log_probs) == len(ids) and _numbers(log_probs) and max(log_probs) <= 0
        ):
            return "with log_probs that do not fit its tokens"
        author = Author(str(row.get("author", self.path.name)))
        span = Span(author, ids, log_probs, kind="demonstration", sampling=self.config.sampling)
        finish = "stop" if ids[-1] == self.tokenizer.eos_token_id else "length"
        return Rollout(self.prompts[key], (span,), None if reward is None else float(reward), finish)  # type: ignore[arg-type]

    def _ids(self, row: dict[str, Any]) -> list[int]:
        """The response's ids: as given, or the text's and a stop token; none where neither can be read."""
        given, text = row.get("tokens"), row.get("completion")
        if given is not None:
            fit = isinstance(given, list) and all(type(i) is int and 0 <= i < len(self.tokenizer) for i in given)
            return given if fit else []
        if not isinstance(text, str) or not text.strip():
            return []
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    def _judged(self, rollouts: list[Rollout]) -> list[Rollout]:
        """All of them with a reward: their own, or the task's."""
        silent = [rollout for rollout in rollouts if rollout.reward is None]
        judged, unjudged = score(silent, self.config.task.reward, self.tokenizer)
        if unjudged:
            console.tell(f"{self.path}: {unjudged} solutions could not be judged and count as 0")
        told = iter(judged)
        return [next(told) if rollout.reward is None else rollout for rollout in rollouts]

    def _tell(self, used: int, total: int, left: Counter[str], unit: str) -> None:
        """How much of the file is of use; none is an error."""
        reasons = ", ".join(f"{count} {why}" for why, count in left.most_common() if count)
        if not used:
            raise StockpotError(
                f"{self.path}: none of its {total} {unit} is of use ({reasons or 'it is empty'}): see "
                "`prefixes.Offline` for what a line must have, and for which prompts."
            )
        known = len(self.shelf) or len(self.ids)
        console.tell(
            f"{self.path}: {used} of {total} {unit} are of use, for {known} of {len(self.prompts)} prompts"
            + (f"; left out: {reasons}" if reasons else "")
        )

    # --- in a step ----------------------------------------------------------------------------------------------------

    def take(self, asked: Sequence[Prompt], now: int, *again: int) -> Taken:
        """Rollouts for the first slots of each prompt's group, none twice unless nothing may be generated.

        `again` is the number of the round, where a step asks again.
        """
        size, rule = self.config.group_size, self.rule
        rng = random.Random(derive(self.config.seed, "offline", now, *again))
        wanted, repeated = rule.wanted(size, now), 0
        by_slot: dict[int, Rollout] = {}
        for i, prompt in enumerate(asked if wanted else []):
            have: Sequence[Any] = self.shelf.get(prompt.key) or self.ids.get(prompt.key) or ()
            chosen = rng.sample(have, min(wanted, len(have)))
            if rule.only and have and len(chosen) < wanted:
                repeated += wanted - len(chosen)
                chosen += rng.choices(have, k=wanted - len(chosen))
            by_slot |= {i * size + j: rollout for j, rollout in enumerate(self._fetch(chosen, prompt))}
        return Taken(by_slot, repeated)

    def _fetch(self, chosen: Sequence[Any], prompt: Prompt) -> Iterator[Rollout]:
        """Whole rollouts, signed by somebody who is not of this run, with no id in its history."""
        for rollout in chosen if self._history is None else self._history.read(chosen):
            if self._history is None:
                yield rollout
                continue
            spans = tuple(
                replace(s, author=replace(s.author, run=f"{s.author.run} (offline)"), kind="demonstration", source=None)
                for s in rollout.spans
            )
            yield replace(rollout, prompt=prompt, spans=spans, id=None)


def _numbers(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)
