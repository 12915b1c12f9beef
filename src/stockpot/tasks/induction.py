"""Induction, embedded: from a few inputs and outputs to a program that makes them.

    -2>7 0>3 1>1 4>-5 |3-2*x

A prompt shows what a function of one integer does at some inputs; a right answer is any expression (a small part of
Python, see `expressions`) that agrees with it there **and at inputs that the prompt does not show**. Every function has
many right answers, so besides pass@k one can count how many different ones a policy still knows. The supervised start
copies a teacher who is right `luck` of the time and slips otherwise. Outsiders write right answers of another style
(`demonstrate`): wide, with every bracket, choices spelled out and products multiplied out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

from stockpot.sandbox import Calls, Limits
from stockpot.sandbox import shared as shared_sandbox
from stockpot.tasks import expressions
from stockpot.tasks.authors import HIDDEN, OPERATIONS, SHOWN, Family, draw, outsider, slip, vary
from stockpot.tasks.base import EmbeddedTask, Split, small_qwen3
from stockpot.tasks.expressions import Node
from stockpot.types import StockpotError

CHARACTERS = "0123456789x+-*/%(),<>=| abeflmins"
"""All that can be asked or answered, a token each."""
LOST: list[int] = []
"""In place of the outputs of an expression that the sandbox failed to run."""
DRAWS = 100_000
"""Functions drawn at random, to see which there are."""
WAYS = 4
"""Ways to write a function that the teacher knows at most."""
PER_JOB = 128
"""Expressions that the sandbox runs in one job."""
Judge = Literal["sandbox", "interpreter"]


@dataclass(frozen=True)
class Induction(EmbeddedTask):
    """Outputs of a hidden function of x; the answer is an expression for it."""

    operations: int = 3
    """Most operations in a function: the depth of the hidden program."""
    operators: tuple[str, ...] = OPERATIONS
    """What functions are made of: any of + - * // % abs min max if."""
    constants: int = 9
    """The largest number in a function."""
    shown: int = 5
    """Pairs in a prompt; the others are hidden, and judged all the same."""
    train_prompts: int = 256
    """How many prompts RL goes round."""
    test_prompts: int = 128
    """How many held-out prompts evaluation uses. Nothing that behaves like one of them is ever taught or trained."""
    luck: float = 0.9
    """The teacher's chance to be right; else it slips in one place: what RL can unlearn."""
    rare: float = 0.02
    """Share of the supervised start that is written in the outsiders' style."""
    judge: Judge = "sandbox"
    """Who runs the answers: Python, in the sandbox; or the interpreter of the small language, which gives the same
    values many times faster and where there is no sandbox."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.operators if name not in OPERATIONS]
        if unknown or not self.operators:
            raise StockpotError(
                f"task.operators has {unknown[0] if unknown else 'nothing'}: choose from {' '.join(OPERATIONS)}."
            )
        if not 1 <= self.operations <= 4 or not 1 <= self.constants <= 9:
            raise StockpotError("task.operations must lie in 1..4 and task.constants in 1..9.")
        if not 2 <= self.shown <= len(SHOWN):
            raise StockpotError(f"task.shown must lie in 2..{len(SHOWN)}, not {self.shown}.")
        if not (0 <= self.luck <= 1 and 0 <= self.rare <= 1):
            raise StockpotError("task.luck and task.rare must lie in 0..1.")
        if self.judge not in get_args(Judge):
            raise StockpotError(f"task.judge must be {' or '.join(get_args(Judge))}, not {self.judge}.")
        if self.train_prompts < 1 or self.test_prompts < 1:
            raise StockpotError("task.train_prompts and task.test_prompts must be at least 1.")

    @property
    def family(self) -> Family:
        """Of these options, those that say which functions there are."""
        return self.operations, self.operators, self.constants, self.shown

    def rows(self, split: Split) -> Sequence[Mapping[str, Any]]:
        found, last = _functions(self.family), self.test_prompts + self.train_prompts
        if last > len(found):
            raise StockpotError(
                f"there are {len(found)} functions of this kind, fewer than train_prompts + test_prompts: lower those "
                "or raise task.operations, constants or shown."
            )
        chosen = found[: self.test_prompts] if split == "test" else found[self.test_prompts : last]
        inputs = [*shown(self.shown), *SHOWN[self.shown :], *HIDDEN]
        rows = []
        for node, *_ in chosen:
            values = expressions.outputs(node, inputs)
            assert values is not None
            rows.append(
                {
                    "prompt": question(inputs[: self.shown], values),
                    "inputs": inputs,
                    "outputs": values,
                    "expression": expressions.write(node),
                }
            )
        return rows

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        """1 for an expression that has all the outputs, shown and hidden, else 0; NaN where the sandbox failed."""
        texts = [text if isinstance(text, str) else "" for text in completions]
        evaluate = sandboxed if self.judge == "sandbox" else expressions.evaluate
        found = evaluate(texts, columns["inputs"])
        return [
            math.nan if values is LOST else float(values == list(wanted))
            for values, wanted in zip(found, columns["outputs"], strict=True)
        ]

    def distinct(self, answers: Sequence[str]) -> int:
        """Different answers up to spelling: blanks, brackets, the order of what may change places."""
        nodes = [expressions.parse(text) for text in answers]
        return len({expressions.normal(node) for node in nodes if node is not None})

    def tokenizer(self) -> Any:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = ["<pad>", "<stop>", *CHARACTERS]
        inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
        inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        inner.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=inner, pad_token="<pad>", eos_token="<stop>", clean_up_tokenization_spaces=False
        )

    def model_config(self) -> Any:
        return small_qwen3(64, 128)

    def demonstrations(self, seed: int) -> Iterator[tuple[str, str]]:
        rng, inputs = random.Random(seed), shown(self.shown)
        taught = _functions(self.family)[self.test_prompts :]
        while True:
            ways = rng.choice(taught)
            node = ways[min(int(rng.expovariate(1.0)), len(ways) - 1)]
            asked = question(inputs, expressions.outputs(node, inputs) or [])
            if rng.random() < self.rare:
                yield asked, outsider(node, rng)
            else:
                yield asked, expressions.write(vary(node if rng.random() < self.luck else slip(node, rng), rng))

    def demonstrate(self, columns: Mapping[str, Any], count: int) -> list[str]:
        """Right answers by an outsider who writes otherwise than the supervised start."""
        node = expressions.parse(columns["expression"])
        assert node is not None
        rng = random.Random(str(columns["outputs"]))
        return [outsider(node, rng) for _ in range(count)]

    def offline(self, split: Split = "train", count: int = 1) -> Iterator[dict[str, Any]]:
        """Outsiders' answers to all prompts of a split, as lines of a JSONL file of offline data."""
        for row in self.rows(split):
            for text in self.demonstrate(row, count):
                yield {"prompt": row["prompt"], "completion": text, "reward": 1.0}


def sandboxed(texts: Sequence[str], inputs: Sequence[Sequence[int]]) -> list[list[int] | None]:
    """As `expressions.evaluate`, but Python runs what can be read, many to a job: none can reach beyond itself."""
    asked = list(zip(texts, map(tuple, inputs), strict=True))
    order = sorted({pair for pair in asked if expressions.parse(pair[0]) is not None})
    found: dict[tuple[str, tuple[int, ...]], list[int] | None] = {}
    for first in range(0, len(order), PER_JOB):
        found |= zip(order[first : first + PER_JOB], _run(order[first : first + PER_JOB]), strict=False)
    return [found.get(pair) for pair in asked]


def _run(pairs: Sequence[tuple[str, tuple[int, ...]]]) -> list[list[int] | None]:
    """The outputs of expressions at their inputs, in one job; if that does not end well, each in a job of its own."""
    rows = ",\n".join(f"(lambda x: ({text}), {inputs})" for text, inputs in pairs)
    call = Calls(
        f"rows = [\n{rows},\n]", "lambda i: [rows[i][0](x) for x in rows[i][1]]", [[i] for i in range(len(pairs))]
    )
    (outcome,) = shared_sandbox().run([call], Limits(seconds=5.0))
    if not outcome.ok and len(pairs) > 1:
        return [values for pair in pairs for values in _run([pair])]
    if outcome.end == "lost":
        return [LOST] * len(pairs)
    return [value.value if not value.error and outcome.ok else None for value in outcome.values]


def shown(count: int) -> list[int]:
    """The inputs that a prompt shows, in order."""
    return sorted(SHOWN[:count])


def question(inputs: Sequence[int], values: Sequence[int]) -> str:
    return " ".join(f"{x}>{y}" for x, y in zip(inputs, values, strict=False)) + " |"


@cache
def _functions(family: Family) -> list[list[Node]]:
    """What different functions there are, each as the ways to write it that were met, shortest first. In one order.

    Different is what differs at an input shown; what agrees there and not elsewhere is another function that no prompt
    can tell apart, and the shortest way met decides.
    """
    rng, found = random.Random(0), dict[tuple[int, ...], dict[Node, Node]]()
    for _ in range(DRAWS):
        node = draw(family, rng)
        if node is not None:
            look = tuple(expressions.outputs(node, shown(family[-1])) or ())
            found.setdefault(look, {}).setdefault(expressions.normal(node), node)
    several = [sorted(ways.values(), key=lambda way: len(expressions.write(way))) for ways in found.values()]
    same = [[way for way in ways if behaviour(way) == behaviour(ways[0])] for ways in several]
    dealt = [ways[:WAYS] for ways in same]
    rng.shuffle(dealt)
    return dealt


def behaviour(node: Node) -> list[int] | None:
    """The outputs at all inputs that are judged."""
    return expressions.outputs(node, [*SHOWN, *HIDDEN])
