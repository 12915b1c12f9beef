"""What critics and writers are asked, and what counts as an answer; and the two that need not be asked."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from stockpot.tasks.base import Task
from stockpot.traces.minds import Messages, Mind, Question
from stockpot.types import Prompt

ANSWER_LIMIT = 20_000
"""Letters that an answer may have; a longer one is garbage."""

CRITIC = (
    "You check one attempt at a problem. You are told whether its final answer is right. If it is wrong, say where the "
    "attempt goes wrong and why, in a few sentences, without solving the problem anew. If it is right, check its "
    "decisive steps and say that they hold. Begin with the single word RIGHT or WRONG."
)
WRITER = (
    "You are given attempts at a problem, each with a reviewer's remarks; the last attempt is right. Write them as one "
    "train of thought of a single person, in the first person: make each attempt, notice what is wrong with it and "
    "why, begin again, and at last solve the problem. Then state the final answer in the very form in which the last "
    "attempt states it, and check it once more. Mention neither a reviewer nor these instructions."
)
REWRITER = (
    "You are given a text in which somebody works on a problem. It was put together of several pieces. Write it anew "
    "as one train of thought of a single person thinking aloud, in the first person. Keep every attempt, every mistake "
    "and how it is noticed, every calculation, the last check, and their order. Smooth the passages between them, and "
    "drop only what is said twice. State the final answer in the very form in which the text states it. Answer with "
    "the new text alone."
)


@dataclass(frozen=True)
class Judged:
    """One attempt at a prompt, judged by the task's reward."""

    text: str
    right: bool
    source: str
    """The model or file that it is from."""
    sample: int
    """Which of that source's attempts at the prompt."""


@dataclass(frozen=True)
class Told:
    """One piece of writing and who wrote it."""

    text: str
    by: str


class Critic(Protocol):
    """Explains attempts."""

    failures: Counter[str]

    def explain(self, named: Mapping[str, tuple[Prompt, Judged]], told: Callable[[int], None]) -> dict[str, Told]: ...


class Rewriter(Protocol):
    """Writes merged traces anew as one train of thought."""

    failures: Counter[str]

    def rewrite(
        self, named: Mapping[str, tuple[Prompt, str]], closing: str, told: Callable[[int], None]
    ) -> dict[str, Told]: ...


class Merger(Protocol):
    """Makes one response of attempts and critiques."""

    failures: Counter[str]

    def merge(self, named: Mapping[str, Parts], told: Callable[[int], None]) -> dict[str, Told]: ...


@dataclass(frozen=True)
class Parts:
    """What a trace is made of: wrong attempts, then a right one, each with its critique."""

    prompt: Prompt
    attempts: tuple[Judged, ...]
    critiques: tuple[Told, ...]


class OfTask:
    """The task's own checker and writer."""

    def __init__(self, task: Task) -> None:
        self.task, self.failures = task, Counter[str]()

    def explain(self, named: Mapping[str, tuple[Prompt, Judged]], told: Callable[[int], None]) -> dict[str, Told]:
        """What the task's checker can tell; it tells nothing of attempts that it cannot read."""
        said = {name: self.task.critique(p.columns, a.text, a.right) for name, (p, a) in named.items()}
        return self._told(said, "the checker cannot read the attempt", told)

    def merge(self, named: Mapping[str, Parts], told: Callable[[int], None]) -> dict[str, Told]:
        """What the task's writer makes of the parts."""
        made = {
            name: self.task.merge(p.prompt.columns, [a.text for a in p.attempts], [c.text for c in p.critiques])
            for name, p in named.items()
        }
        return self._told(made, "the task's writer cannot merge it", told)

    def _told(self, said: Mapping[str, str | None], why: str, told: Callable[[int], None]) -> dict[str, Told]:
        missing = sum(text is None for text in said.values())
        if missing:
            self.failures[f"left out: {why}"] += missing
        told(len(said))
        by = f"{type(self.task).__name__}'s own"
        return {name: Told(text, by) for name, text in said.items() if text is not None}


class Plain:
    """Fixed sentences: what can be said without anyone who understands the attempt."""

    def __init__(self, task: Task) -> None:
        self.task, self.failures = task, Counter[str]()

    def explain(self, named: Mapping[str, tuple[Prompt, Judged]], told: Callable[[int], None]) -> dict[str, Told]:
        """Right or wrong, and no reason."""
        told(len(named))
        words = {True: "Checking this once more, it holds.", False: "Checking this, it is not right. I begin again."}
        return {name: Told(words[attempt.right], "plain") for name, (_, attempt) in named.items()}

    def merge(self, named: Mapping[str, Parts], told: Callable[[int], None]) -> dict[str, Told]:
        """Attempts and critiques one after the other, then the right answer. A task that closes its thinking has it
        closed once, before that answer."""
        told(len(named))
        made = {}
        for name, parts in named.items():
            closing, answer = self.task.closing, parts.attempts[-1].text
            pieces: list[str] = []
            for attempt, critique in zip(parts.attempts, parts.critiques, strict=True):
                pieces += [attempt.text.replace(closing, "") if closing else attempt.text, critique.text]
            pieces += [closing, answer.rpartition(closing)[2]] if closing else [answer]
            made[name] = Told("\n\n".join(piece.strip() for piece in pieces), "plain")
        return made


class Asked:
    """A model that is asked, as critic and as writer."""

    def __init__(self, mind: Mind) -> None:
        self.mind, self.failures = mind, mind.failures

    def explain(self, named: Mapping[str, tuple[Prompt, Judged]], told: Callable[[int], None]) -> dict[str, Told]:
        """What the model says of each attempt, where its verdict is the reward's."""
        questions = [Question(n, explain_messages(p, a), verdict_is(a.right)) for n, (p, a) in named.items()]
        return {name: Told(text, self.mind.name) for name, text in self.mind.ask(questions, told).items()}

    def merge(self, named: Mapping[str, Parts], told: Callable[[int], None]) -> dict[str, Told]:
        """What the model writes of the parts."""
        questions = [Question(name, merge_messages(parts), sensible) for name, parts in named.items()]
        return {name: Told(text, self.mind.name) for name, text in self.mind.ask(questions, told).items()}

    def rewrite(
        self, named: Mapping[str, tuple[Prompt, str]], closing: str, told: Callable[[int], None]
    ) -> dict[str, Told]:
        """What the model makes of merged traces, the words that close their thinking as often in it as before."""
        questions = [
            Question(name, rewrite_messages(prompt, text, closing), closes_like(text, closing))
            for name, (prompt, text) in named.items()
        ]
        return {name: Told(text, self.mind.name) for name, text in self.mind.ask(questions, told).items()}


def explain_messages(prompt: Prompt, attempt: Judged) -> Messages:
    """The question put to a critic."""
    verdict = "right" if attempt.right else "wrong"
    told = f"Problem:\n{asked(prompt)}\n\nAttempt:\n{attempt.text}\n\nThe final answer of this attempt is {verdict}."
    return [{"role": "system", "content": CRITIC}, {"role": "user", "content": told}]


def merge_messages(parts: Parts) -> Messages:
    """The question put to a writer."""
    told = [f"Problem:\n{asked(parts.prompt)}"]
    for number, (attempt, critique) in enumerate(zip(parts.attempts, parts.critiques, strict=True), 1):
        told.append(f"Attempt {number}:\n{attempt.text}\n\nRemarks on attempt {number}:\n{critique.text}")
    return [{"role": "system", "content": WRITER}, {"role": "user", "content": "\n\n".join(told)}]


def rewrite_messages(prompt: Prompt, text: str, closing: str) -> Messages:
    """The question put to a rewriter."""
    keep = f"Keep `{closing}` where the thinking ends and the final answer begins.\n\n" if closing in text else ""
    told = f"Problem:\n{asked(prompt)}\n\n{keep if closing else ''}Text:\n{text}"
    return [{"role": "system", "content": REWRITER}, {"role": "user", "content": told}]


def asked(prompt: Prompt) -> str:
    """A prompt as text; of a conversation what was said in it."""
    said: Any = prompt.columns.get("prompt")
    if not isinstance(said, list):
        return prompt.text
    return "\n\n".join(turn["content"] if isinstance(turn.get("content"), str) else json.dumps(turn) for turn in said)


def verdict_is(right: bool) -> Callable[[str], str | None]:
    """Accepts critiques that begin with the verdict which the reward gave, and takes that word off."""

    def accept(text: str) -> str | None:
        found = re.match(r"\W*([A-Za-z]+)\W*", text)
        if found is None or found[1].upper() != ("RIGHT" if right else "WRONG"):
            return None
        return sensible(text[found.end() :])

    return accept


def sensible(text: str) -> str | None:
    """The text without space around it, unless it is empty or endless."""
    text = text.strip()
    return text if 0 < len(text) <= ANSWER_LIMIT else None


def closes_like(before: str, closing: str) -> Callable[[str], str | None]:
    """Accepts what is sensible and has the closing words as often as the text before it."""

    def accept(text: str) -> str | None:
        kept = not closing or text.count(closing) == before.count(closing)
        return sensible(text) if kept else None

    return accept
