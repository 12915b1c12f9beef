"""Countdown, embedded: make a target from three numbers by trial and error.

    3 5 8 make 55 :   8 + 3 = 11 , 11 + 5 = 16 vs 55 no   8 + 3 = 11 , 11 * 5 = 55 vs 55 yes   answer ( 8 + 3 ) * 5

A response tries, checks, says "no", tries again, and answers: the kind of trace that T1 (arXiv 2501.11651) starts from,
written here by a generator instead of a large model. The generator's arithmetic is right and its search is poor: it
tries at random and often gives up, so there is something for reinforcement learning to find.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

from stockpot.tasks.base import EmbeddedTask, Split, small_qwen3
from stockpot.types import StockpotError

WORDS = ("<pad>", "<stop>", "make", ":", "+", "-", "*", "=", ",", "(", ")", "vs", "no", "yes", "answer")
LARGEST = 99
"""No intermediate result may exceed it, so that every number is one token."""

Attempt = tuple[int, str, int, int, str, int]
"""(a, op, b, x, op, y): first a op b, then x op y; one of x and y is the first result, the other the number left."""


@dataclass(frozen=True)
class Countdown(EmbeddedTask):
    """Three numbers, a target, and as many attempts as there is room for."""

    step_words: ClassVar[tuple[str, ...]] = ("no",)

    largest: int = 9
    """The numbers given are drawn from 1 to this."""
    train_prompts: int = 512
    """How many prompts RL goes round; a prompt met again is one that the history knows."""
    test_prompts: int = 256
    """How many held-out prompts evaluation uses; none of them is ever taught or trained."""
    give_up: float = 0.4
    """The teacher's chance to give up after each failed attempt and to answer wrongly: what RL can unlearn."""
    luck: float = 0.4
    """The teacher's chance that an attempt is a right one instead of a random one."""
    max_attempts: int = 6
    """The teacher's patience at most."""

    def __post_init__(self) -> None:
        if not 2 <= self.largest <= 20:
            raise StockpotError("task.largest must lie in 2..20.")
        if not (0 <= self.give_up <= 1 and 0 <= self.luck <= 1) or self.max_attempts < 1:
            raise StockpotError("task.give_up and task.luck must lie in 0..1, task.max_attempts must be at least 1.")
        if self.train_prompts < 1 or self.test_prompts < 1:
            raise StockpotError("task.train_prompts and task.test_prompts must be at least 1.")

    @property
    def closing(self) -> str:
        return "answer"

    def rows(self, split: Split) -> Sequence[Mapping[str, Any]]:
        problems = _problems(self.largest)
        if self.train_prompts + self.test_prompts > len(problems):
            raise StockpotError(
                f"countdown with numbers up to {self.largest} has {len(problems)} problems, fewer than "
                f"train_prompts + test_prompts: lower those or raise task.largest."
            )
        test, rest = problems[: self.test_prompts], problems[self.test_prompts :]
        chosen = test if split == "test" else rest[: self.train_prompts]
        return [
            {"prompt": question(numbers, target), "numbers": list(numbers), "target": target}
            for numbers, target in chosen
        ]

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        """1 for an answer that uses every number once and makes the target, else 0."""
        return [
            float(right(completion, numbers, target))
            for completion, numbers, target in zip(completions, columns["numbers"], columns["target"], strict=True)
        ]

    def observe(self, completions: Sequence[Any], rewards: Sequence[float]) -> dict[str, float]:
        """How a response tries: its attempts, whether it rejects one, and whether it is right after that."""
        count = max(len(completions), 1)
        words = [completion.split() for completion in completions]
        rejects = ["no" in found for found in words]
        return {
            "attempts": sum(found.count("vs") for found in words) / count,
            "rejected": sum(rejects) / count,
            "recovered": sum(no and reward > 0.5 for no, reward in zip(rejects, rewards, strict=True)) / count,
        }

    def tokenizer(self) -> Any:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = [*WORDS, *map(str, range(LARGEST + 1))]
        inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<stop>")

    def model_config(self) -> Any:
        return small_qwen3(128, 256)

    def demonstrations(self, seed: int) -> Iterator[tuple[str, str]]:
        rng = random.Random(seed)
        taught = _problems(self.largest)[self.test_prompts :]
        while True:
            numbers, target = rng.choice(taught)
            yield question(numbers, target), self._trace(numbers, target, rng)

    def demonstrate(self, columns: Mapping[str, Any], count: int) -> list[str]:
        """A teacher who never misses: the first attempt is a right one."""
        numbers, target = tuple(columns["numbers"]), columns["target"]
        rng = random.Random(f"{numbers} {target}")
        return [replace(self, luck=1.0)._trace(numbers, target, rng) for _ in range(count)]

    def critique(self, columns: Mapping[str, Any], attempt: str, right: bool) -> str | None:
        """The attempt's answer, calculated step by step, and whether it is the target; None for what is no answer."""
        found = answered(attempt, columns["numbers"])
        if found is None or not all(0 <= n <= LARGEST for n in (apply(*found[:3]), result(found))):
            return None  # no answer, or one whose numbers are no tokens
        return f"{steps(found)} vs {columns['target']} {'yes' if result(found) == columns['target'] else 'no'}"

    def merge(self, columns: Mapping[str, Any], attempts: Sequence[str], critiques: Sequence[str]) -> str | None:
        """The calculations one after the other, and the last attempt's answer: the form of the demonstrations."""
        last = answered(attempts[-1], columns["numbers"])
        return None if last is None else " ".join([*critiques, "answer", expression(last)])

    def _trace(self, numbers: tuple[int, ...], target: int, rng: random.Random) -> str:
        words: list[str] = []
        for tried in range(1, self.max_attempts + 1):
            attempt = rng.choice(_solutions(numbers, target) if rng.random() < self.luck else _attempts(numbers))
            found = result(attempt) == target
            words += [steps(attempt), "vs", str(target), "yes" if found else "no"]
            if found or tried == self.max_attempts or rng.random() < self.give_up:
                break
        return " ".join([*words, "answer", expression(attempt)])


def question(numbers: Sequence[int], target: int) -> str:
    return " ".join(map(str, numbers)) + f" make {target} :"


def apply(a: int, op: str, b: int) -> int:
    return a + b if op == "+" else a - b if op == "-" else a * b


def attempts(numbers: Sequence[int]) -> Iterator[Attempt]:
    """Every way to join three numbers two at a time without leaving 0..LARGEST."""
    for i, j in ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)):
        a, b, left = numbers[i], numbers[j], numbers[3 - i - j]
        for first in "+-*":
            middle = apply(a, first, b)
            for x, y in ((middle, left), (left, middle)):
                for second in "+-*":
                    if 0 <= middle <= LARGEST and 0 <= apply(x, second, y) <= LARGEST:
                        yield a, first, b, x, second, y


@cache
def _attempts(numbers: tuple[int, ...]) -> list[Attempt]:
    return list(attempts(numbers))


@cache
def _solutions(numbers: tuple[int, ...], target: int) -> list[Attempt]:
    return [attempt for attempt in _attempts(numbers) if result(attempt) == target]


def result(attempt: Attempt) -> int:
    return apply(*attempt[3:])


def steps(attempt: Attempt) -> str:
    """An attempt as the trace shows it: two equations."""
    a, first, b, x, second, y = attempt
    return f"{a} {first} {b} = {apply(a, first, b)} , {x} {second} {y} = {result(attempt)}"


def expression(attempt: Attempt) -> str:
    """An attempt as one expression: the form of an answer."""
    a, first, b, x, second, y = attempt
    middle = apply(a, first, b)
    return f"( {a} {first} {b} ) {second} {y}" if x == middle else f"{x} {second} ( {a} {first} {b} )"


def right(completion: Any, numbers: Sequence[int], target: int) -> bool:
    """Whether what follows the last "answer" uses each number once and makes the target. Total: garbage is wrong."""
    found = answered(completion, numbers)
    return found is not None and result(found) == target


def answered(completion: Any, numbers: Sequence[int]) -> Attempt | None:
    """What follows the last "answer", as an attempt that uses each number once; None for anything else."""
    if not isinstance(completion, str):
        return None
    words = completion.rpartition("answer")[2].replace("<stop>", " ").split()
    if len(words) != 7 or "answer" not in completion:
        return None
    if words[0] == "(" and words[4] == ")":
        a, first, b, second, left, inner_first = words[1], words[2], words[3], words[5], words[6], True
    elif words[2] == "(" and words[6] == ")":
        left, second, a, first, b, inner_first = words[0], words[1], words[3], words[4], words[5], False
    else:
        return None
    if not (all(n.isascii() and n.isdigit() for n in (a, b, left)) and {first, second} <= {"+", "-", "*"}):
        return None
    if sorted(map(int, (a, b, left))) != sorted(numbers):
        return None
    middle = apply(int(a), first, int(b))
    x, y = (middle, int(left)) if inner_first else (int(left), middle)
    return int(a), first, int(b), x, second, y


@cache
def _problems(largest: int) -> list[tuple[tuple[int, ...], int]]:
    """Every solvable problem with a target of at least 10, in one fixed order: the test split is its head."""
    found = set()
    for a in range(1, largest + 1):
        for b in range(a, largest + 1):
            for c in range(b, largest + 1):
                found |= {((a, b, c), result(attempt)) for attempt in _attempts((a, b, c))}
    problems: list[tuple[tuple[int, ...], int]] = sorted(problem for problem in found if problem[1] >= 10)
    random.Random(0).shuffle(problems)
    return problems
