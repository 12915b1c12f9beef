"""Whoever can be asked a question in words: a model here, or one behind an endpoint (see `endpoint`)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stockpot.pens import Desk, Writer, fingerprint
from stockpot.seeds import derive
from stockpot.types import Author, Prompt, Request, Sampling

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Question:
    """What is asked, and what counts as an answer."""

    name: str
    messages: Messages
    accept: Callable[[str], str | None]
    """The answer as it is used, or None for garbage."""


class Mind(Protocol):
    """Answers questions, or fails to: then there is no answer under the question's name, and a count of why."""

    name: str
    """How it signs."""
    failures: Counter[str]
    """Why questions were left without an answer, and how often a try failed."""

    def ask(self, questions: Sequence[Question], told: Callable[[int], None]) -> dict[str, str]: ...


class LocalModel:
    """A model of a folder or of the hub, asked through its chat template, or in plain text where it has none."""

    def __init__(self, weights: str, desk: Desk, sampling: Sampling, max_tokens: int, tries: int) -> None:
        self.name, self.failures = weights, Counter[str]()
        self._desk, self._sampling, self._max_tokens, self._tries = desk, sampling, max_tokens, tries
        self._pen = desk.pen(Writer(weights, weights, Author(weights)))

    def ask(self, questions: Sequence[Question], told: Callable[[int], None] = lambda count: None) -> dict[str, str]:
        """Whatever is garbage is asked again with other random numbers, so many times."""
        answers: dict[str, str] = {}
        left = list(questions)
        for turn in range(self._tries):
            orders = [(_digest(q.messages, turn), self._request(q, turn)) for q in left]
            head = {"weights": fingerprint(self.name), "sampling": repr(self._sampling), "seed": self._desk.seed}
            head |= {"max_tokens": self._max_tokens, "kind": "asked"}
            written = self._pen.write("asked", head, list(dict(orders).items()))
            by_name = {name: rollout for (name, _), rollout in zip(dict(orders).items(), written, strict=True)}
            again = []
            for question, (name, _) in zip(left, orders, strict=True):
                text = self._desk.tokenizer.decode(list(by_name[name].tokens), skip_special_tokens=True)
                accepted = question.accept(text)
                if accepted is None:
                    self.failures["tries: garbage"] += 1
                    again.append(question)
                else:
                    answers[question.name] = accepted
            told(len(left) - len(again))
            left = again
            if not left:
                break
        self.failures["left out: garbage"] += len(left)
        told(len(left))
        return answers

    def _request(self, question: Question, turn: int) -> Request:
        tokenizer: Any = self._desk.tokenizer
        if getattr(tokenizer, "chat_template", None):
            ids = tokenizer.apply_chat_template(
                list(question.messages), add_generation_prompt=True, tokenize=True, return_dict=True
            )["input_ids"]
        else:
            ids = tokenizer("\n\n".join(message["content"] for message in question.messages))["input_ids"]
        key = derive(self._desk.seed, _digest(question.messages, turn))
        return Request(Prompt(question.name, ids), key=key, sampling=self._sampling, max_tokens=self._max_tokens)


def _digest(messages: Messages, turn: int) -> str:
    told = json.dumps([list(messages), turn], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:24]
