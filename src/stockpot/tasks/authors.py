"""Who writes the expressions of induction: nature, which draws functions; the teacher, who slips; and outsiders."""

from __future__ import annotations

import random

from stockpot.tasks import expressions
from stockpot.tasks.expressions import FLIPPED, OPPOSITE, Node

SHOWN = (0, 1, -1, 2, -2, 3, -3, 4)
"""Inputs that prompts may show, the first ones first."""
HIDDEN = (-9, -8, -7, -6, -5, -4, 5, 6, 7, 8, 9)
"""Inputs that no prompt shows."""
OPERATIONS = ("+", "-", "*", "//", "%", "abs", "min", "max", "if")
LARGEST = 99
"""No output exceeds it in size."""
LARGEST_SHOWN = 9
"""No output that a prompt shows does: one digit each, small models read no more."""
ROOM = 39
"""Characters of a demonstration at most: with its stop it has 40 tokens."""

Family = tuple[int, tuple[str, ...], int, int]
"""What functions are drawn from: most operations, operators, largest constant; and how many pairs are shown."""


def draw(family: Family, rng: random.Random) -> Node | None:
    """A function at random: x bent, shifted, scaled and shifted again, as many of the four as there are operations.

    None where the draw is no good: long, dull where shown, too large, or undefined.
    """
    operations, operators, constants, pairs = family
    bent = [op for op in operators if op not in "+-"]
    steps = sorted(rng.sample(range(4), min(rng.randint(1, operations), 4)))
    node: Node = "x"
    for step in steps:
        number = rng.randint(1, constants)
        if step == 0 and bent:
            node = bend(rng.choice(bent), rng)
        elif step == 2 and "*" in operators:
            node = ("*", rng.randint(2, max(2, constants // 2)), node)
        elif step in (1, 3):
            sign = rng.choice([op for op in operators if op in "+-"] or ["+"])
            node = (sign, node, number) if sign == "+" or rng.random() < 0.5 else (sign, number, node)
    values = expressions.outputs(node, [*SHOWN, *HIDDEN])
    if values is None or max(map(abs, values)) > LARGEST or max(map(abs, values[:pairs])) > LARGEST_SHOWN:
        return None
    return None if len(set(values[:pairs])) < min(3, pairs) or len(expressions.write(node)) > ROOM // 2 else node


def bend(op: str, rng: random.Random) -> Node:
    """A core that is no straight line."""
    near = rng.randint(-1, 1)
    match op:
        case "*":
            return "*", "x", "x"
        case "abs":
            return ("abs", "x") if near == 0 else ("abs", ("+" if near > 0 else "-", "x", 1))
        case "if":
            return "if", rng.choice("<>"), "x", rng.randint(0, 1), "x", rng.randint(0, 3)
        case "//" | "%":
            return op, "x", rng.randint(2, 4)
    return op, "x", near


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
