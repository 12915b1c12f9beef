"""A small part of Python: integer expressions in x. Read, run, write and compare them, and nothing else.

What is read is checked twice, by its characters and by its syntax tree, and what is run is the checked tree: no name
but x, abs, min and max, no attribute, no subscript, no power. A value has no more digits than the text has characters
(and those of x times the number of its places), so nothing that can be read takes long or grows large.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

Node = int | str | tuple["str | Node", ...]
"""A number, "x", or (operation, operands ...); a condition is ("if", comparison, left, right, then, otherwise)."""

LONGEST = 96
"""Characters of an expression at most; what is longer is no expression."""
WORD = r"(?:0|[1-9]\d{0,5}|x|abs|min|max|if|else)(?![0-9a-z])"
TEXT = re.compile(rf" *(?:(?:{WORD}|//|[<>=]=|[-+*%(),<>]) *)+")
BINARY: dict[type[ast.operator], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//", ast.Mod: "%",
}  # fmt: skip
COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<", ast.Gt: ">", ast.LtE: "<=", ast.GtE: ">=", ast.Eq: "==",
}  # fmt: skip
FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "=="}
"""The comparison with its sides changed."""
OPPOSITE = {"<": ">=", ">": "<=", "<=": ">", ">=": "<"}
"""The comparison that holds when this one does not."""
BINDS = {"if": 0, "+": 2, "-": 2, "*": 3, "//": 3, "%": 3, "neg": 4}
"""How strongly an operation binds; what is not here is an atom."""


def parse(text: str) -> Node | None:
    """The expression that a text is, or None. Total and quick, whatever the text."""
    if len(text) > LONGEST or not TEXT.fullmatch(text):
        return None
    try:
        return _read(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _read(tree: ast.expr) -> Node:
    match tree:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.Name(id="x"):
            return "x"
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _read(inner)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            number = _read(inner)
            return -number if isinstance(number, int) else ("neg", number)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            return BINARY[type(op)], _read(left), _read(right)
        case ast.Call(func=ast.Name(id="abs"), args=[one], keywords=[]):
            return "abs", _read(one)
        case ast.Call(func=ast.Name(id=("min" | "max") as name), args=[first, second, *rest], keywords=[]):
            node: Node = (name, _read(first), _read(second))
            for more in rest:
                node = (name, node, _read(more))
            return node
        case ast.IfExp(test=ast.Compare(left=left, ops=[op], comparators=[right]), body=then, orelse=otherwise):
            return "if", COMPARISONS[type(op)], _read(left), _read(right), _read(then), _read(otherwise)
    raise ValueError("no expression of this language")


def run(node: Node, x: int) -> int:
    """The value at x, as Python has it. Raises ZeroDivisionError where Python does."""
    if isinstance(node, int):
        return node
    if isinstance(node, str):
        return x
    match node:
        case ("if", comparison, left, right, then, otherwise):
            a, b = run(left, x), run(right, x)
            holds = {"<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b, "==": a == b}[str(comparison)]
            return run(then if holds else otherwise, x)
        case ("abs", inner):
            return abs(run(inner, x))
        case ("neg", inner):
            return -run(inner, x)
        case (op, left, right):
            a, b = run(left, x), run(right, x)
    if op == "+":
        return a + b
    if op == "-":
        return a - b
    if op == "*":
        return a * b
    if op == "//":
        return a // b
    if op == "%":
        return a % b
    return min(a, b) if op == "min" else max(a, b)


def outputs(node: Node, inputs: Sequence[int]) -> list[int] | None:
    """The values at all inputs; None where one of them has none."""
    try:
        return [run(node, x) for x in inputs]
    except ZeroDivisionError:
        return None


def evaluate(expressions: Sequence[str], inputs: Sequence[Sequence[int]]) -> list[list[int] | None]:
    """Texts and the inputs of each -> outputs of each; None for what is no expression or has no value somewhere."""
    nodes = [parse(text) for text in expressions]
    return [None if node is None else outputs(node, xs) for node, xs in zip(nodes, inputs, strict=True)]


def write(node: Node, *, wide: bool = False) -> str:
    """An expression as text: close, with no bracket that is not needed; or wide, with blanks and all its brackets.

    >>> write(("-", 3, ("*", 2, "x"))), write(("-", 3, ("*", 2, "x")), wide=True)
    ('3-2*x', '3 - (2 * x)')
    """
    if not isinstance(node, tuple):
        return str(node)
    match node:
        case ("if", comparison, left, right, then, otherwise):
            sides = [_inside(part, 1, wide) for part in (then, left, right)]
            gap = " " if wide else ""
            last = _inside(otherwise, 1 if wide else 0, wide)
            return f"{sides[0]} if {sides[1]}{gap}{comparison}{gap}{sides[2]} else {last}"
        case ("neg", inner):
            return "-" + _inside(inner, 5, wide)
        case (("+" | "-" | "*" | "//" | "%") as op, left, right):
            gap, binds = (" " if wide else ""), BINDS[op]
            return f"{_inside(left, binds, wide)}{gap}{op}{gap}{_inside(right, binds + 1, wide)}"
        case (name, *operands):
            return f"{name}({(', ' if wide else ',').join(write(part, wide=wide) for part in operands)})"
    raise ValueError(f"no expression: {node}")


def _inside(node: Node | str, least: int, wide: bool) -> str:
    """A part of an expression, in brackets where it binds less than `least`, or where it is written wide."""
    text = write(node, wide=wide)
    if isinstance(node, int):
        return f"({text})" if node < 0 and least > 2 else text
    binds = BINDS.get(str(node[0]), 5) if isinstance(node, tuple) else 5
    return f"({text})" if binds < least or (wide and binds < 5) else text


def normal(node: Node) -> Node:
    """The expression up to spelling: operands that may change places are sorted, comparisons point one way.

    Only spelling: 2*x and x+x stay two answers.
    """
    if not isinstance(node, tuple):
        return node
    match node:
        case ("if", comparison, left, right, then, otherwise):
            parts = [normal(part) for part in (left, right, then, otherwise)]
            sign = str(comparison)
            if sign in (">=", ">") or (sign == "==" and repr(parts[0]) > repr(parts[1])):
                sign, parts[:2] = FLIPPED[sign], parts[1::-1]
            if sign == "<=":  # a <= b, then, otherwise: the same choice as b < a, otherwise, then
                sign, parts = "<", [parts[1], parts[0], parts[3], parts[2]]
            return "if", sign, *parts
        case (("+" | "*" | "min" | "max") as op, *_):
            return op, *sorted(_chain(node, op), key=repr)
        case (op, *operands):
            return op, *(normal(part) for part in operands)
    return node


def _chain(node: Node | str, op: str) -> list[Node]:
    """The operands of a chain of one operation, brackets left out: a+(b+c) has three."""
    if isinstance(node, tuple) and node[0] == op:
        return [operand for part in node[1:] for operand in _chain(part, op)]
    return [normal(node)]
