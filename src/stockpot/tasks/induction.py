"""Induction, embedded: from a few inputs and outputs to a program that makes them.

    -2>7 0>3 1>1 4>-5 |3-2*x

A prompt shows what a function of one integer does at some inputs; a right answer is any expression (a small part of
Python, see `expressions`) that agrees with it there **and at inputs that the prompt does not show**. Every function has
many right answers, so besides pass@k one can count how many different ones a policy still knows. The supervised start
copies a teacher who is right `luck` of the time and slips otherwise. Outsiders write right answers of another style
(`demonstrate`): wide, with every bracket, choices spelled out and products multiplied out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from stockpot.tasks import expressions
from stockpot.tasks.base import EmbeddedTask, Split
from stockpot.tasks.expressions import FLIPPED, OPPOSITE, Node
from stockpot.types import StockpotError

CHARACTERS = "0123456789x+-*/%(),<>=| abeflmins"
"""All that can be asked or answered, a token each."""
SHOWN = (0, 1, -3, 5, -7, 8, 2, -5)
"""Inputs that prompts may show, the first ones first."""
HIDDEN = (-9, -8, -6, -4, -2, -1, 3, 4, 6, 7, 9)
"""Inputs that no prompt shows."""
OPERATIONS = ("+", "-", "*", "//", "%", "abs", "min", "max", "if")
LARGEST = 99
"""No output exceeds it in size."""
ROOM = 39
"""Characters of a demonstration at most: with its stop it has 40 tokens."""

Family = tuple[int, tuple[str, ...], int, int]
"""What functions are drawn from: most operations, operators, largest constant; and how many pairs are shown."""


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
    train_prompts: int = 512
    """How many prompts RL goes round."""
    test_prompts: int = 256
    """How many held-out prompts evaluation uses. Nothing that behaves like one of them is ever taught or trained."""
    luck: float = 0.5
    """The teacher's chance to be right; else it slips in one place: what RL can unlearn."""
    rare: float = 0.02
    """Share of the supervised start that is written in the outsiders' style."""
    judge: Literal["interpreter"] = "interpreter"
    """Who runs the answers: the interpreter of the small language."""

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
        if self.train_prompts < 1 or self.test_prompts < 1:
            raise StockpotError("task.train_prompts and task.test_prompts must be at least 1.")

    @property
    def family(self) -> Family:
        """Of these options, those that say which functions there are."""
        return self.operations, self.operators, self.constants, self.shown

    def rows(self, split: Split) -> Sequence[Mapping[str, Any]]:
        found = _functions(self.family, self.train_prompts + self.test_prompts)
        chosen = found[: self.test_prompts] if split == "test" else found[self.test_prompts :]
        inputs = [*shown(self.shown), *SHOWN[self.shown :], *HIDDEN]
        rows = []
        for node in chosen:
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
        """1 for an expression that has all the outputs, shown and hidden, else 0."""
        texts = [text if isinstance(text, str) else "" for text in completions]
        found = expressions.evaluate(texts, columns["inputs"])
        return [float(values == list(wanted)) for values, wanted in zip(found, columns["outputs"], strict=True)]

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
        from transformers import Qwen3Config

        return Qwen3Config(
            vocab_size=64,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            tie_word_embeddings=True,
            max_position_embeddings=128,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            initializer_range=0.08,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )

    def demonstrations(self, seed: int) -> Iterator[tuple[str, str]]:
        rng = random.Random(seed)
        held_out = {row["prompt"] for row in self.rows("test")}
        inputs = shown(self.shown)
        while True:
            node = draw(self.family, rng)
            asked = None if node is None else question(inputs, expressions.outputs(node, inputs) or [])
            if node is None or asked is None or asked in held_out:
                continue
            if rng.random() < self.rare:
                yield asked, outsider(node, rng)
                continue
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


def shown(count: int) -> list[int]:
    """The inputs that a prompt shows, in order."""
    return sorted(SHOWN[:count])


def question(inputs: Sequence[int], values: Sequence[int]) -> str:
    return " ".join(f"{x}>{y}" for x, y in zip(inputs, values, strict=False)) + " |"


def draw(family: Family, rng: random.Random) -> Node | None:
    """A function at random; None where the draw is no good: long, dull where shown, too large, or undefined."""
    operations, operators, constants, pairs = family
    node: Node = "x"
    for _ in range(rng.randint(1, operations)):
        op = rng.choice(operators)
        other: Node = "x" if rng.random() < 0.15 else rng.randint(1, constants)
        pair = (node, other) if rng.random() < 0.7 else (other, node)
        if op == "abs":
            node = ("abs", node)
        elif op == "if":
            node = ("if", rng.choice("<>"), "x", rng.randint(0, constants), *pair)
        else:
            node = (op, *pair)
    values = expressions.outputs(node, [*SHOWN, *HIDDEN])
    dull = values is None or len(set(values[:pairs])) < min(3, pairs) or max(map(abs, values)) > LARGEST
    return None if dull or len(expressions.write(node)) > ROOM // 2 else node


@cache
def _functions(family: Family, count: int) -> list[Node]:
    """Functions of which no two look alike at the inputs shown; of those that do, the shortest met. In one order."""
    rng, found = random.Random(0), dict[tuple[int, ...], Node]()
    inputs = shown(family[-1])
    for _ in range(200 * count):
        node = draw(family, rng)
        if node is None:
            continue
        look = tuple(expressions.outputs(node, inputs) or ())
        if look not in found or len(expressions.write(node)) < len(expressions.write(found[look])):
            found[look] = node
        if len(found) == count:
            return list(found.values())
    raise StockpotError(
        f"only {len(found)} functions of this kind look different, fewer than train_prompts + test_prompts: lower "
        "those or raise task.operations, constants or shown."
    )


def vary(node: Node, rng: random.Random) -> Node:
    """The same function as the teacher may write it: operands change places, conditions turn round."""
    if not isinstance(node, tuple):
        return node
    match node:
        case ("if", comparison, left, right, then, otherwise):
            sign = str(comparison)
            a, b, c, d = (vary(part, rng) for part in (left, right, then, otherwise))
            if rng.random() < 0.25:
                sign, a, b = FLIPPED[sign], b, a
            if rng.random() < 0.25 and sign in OPPOSITE:
                sign, c, d = OPPOSITE[sign], d, c
            return "if", sign, a, b, c, d
        case (("+" | "*" | "min" | "max") as op, left, right) if rng.random() < 0.5:
            return op, vary(right, rng), vary(left, rng)
        case (op, *parts):
            return op, *(vary(part, rng) for part in parts)
    return node


def slip(node: Node, rng: random.Random) -> Node:
    """The function with one mistake: another number, another operation, or operands that changed places."""
    if isinstance(node, int):
        return max(0, node + rng.choice((-2, -1, 1, 2)))
    if isinstance(node, str):
        return ("+", "x", rng.choice((1, 2))) if rng.random() < 0.5 else ("-", "x", rng.choice((1, 2)))
    places = [i for i in range(1, len(node)) if not (node[0] == "if" and i == 1)]
    if len(node) == 3 and rng.random() < 0.3:
        others = [op for op in ("+", "-", "*", "//", "%", "min", "max") if op != node[0]]
        return (rng.choice(others), *node[1:]) if rng.random() < 0.7 else (node[0], node[2], node[1])
    place = rng.choice(places)
    return *node[:place], slip(node[place], rng), *node[place + 1 :]


def outsider(node: Node, rng: random.Random) -> str:
    """The function as an outsider writes it: rewritten as far as there is room, with blanks and all brackets."""
    for chance in (0.8, 0.8, 0.5, 0.5, 0.0):
        text = expressions.write(rewrite(vary(node, rng), rng, chance), wide=True)
        if len(text) <= ROOM:
            return text
    return expressions.write(node)


def rewrite(node: Node, rng: random.Random, chance: float) -> Node:
    """The same function by other means: choices for max, min and abs, products multiplied out, differences as sums."""
    if not isinstance(node, tuple):
        return node
    node = (
        node[0],
        *(part if i == 0 and node[0] == "if" else rewrite(part, rng, chance) for i, part in enumerate(node[1:])),
    )
    if rng.random() >= chance:
        return node
    match node:
        case ("max", left, right):
            return "if", ">", left, right, left, right
        case ("min", left, right):
            return "if", "<", left, right, left, right
        case ("abs", inner):
            return (
                ("max", inner, ("neg", inner)) if rng.random() < 0.5 else ("if", "<", inner, 0, ("neg", inner), inner)
            )
        case ("*", (("+" | "-") as op, a, b), int(factor)) | ("*", int(factor), (("+" | "-") as op, a, b)):
            return op, times(a, factor), times(b, factor)
        case ("-", left, int(number)):
            return "+", -number, left
        case ("-", left, right):
            return "+", ("neg", right), left
    return node


def times(node: Node, factor: int) -> Node:
    """A product, worked out where both are numbers."""
    return node * factor if isinstance(node, int) else ("*", factor, node)
