"""Text of a model -> the answer it gives, or None: thinking is cut off, then the last box is taken."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

Where = Literal["box", "text"]
"""`box`: the last \\boxed{...} alone; `text`: without one also "the answer is", the last formula, the last number."""

BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(\{|[^\s${}\\.,]+)")
BRACES = re.compile(r"\\.|[{}]", re.S)
JOINED = re.compile(
    r"[\s$.]*(?:\\[()\]\[]\s*)?(?:\\q?quad\s*)?(?:,|;|,?\s*(?:\\text\{)?\s*(?:and|or)\b)[\s}$]*(?:\\q?quad\s*)?(?:\\[()\]\[]\s*)?\$*",
    re.I,
)
"""What between two boxes makes them one statement: "\\boxed{7} or \\boxed{8}"."""
APART = 40
PHRASE = re.compile(r"(?:the|final|my|correct)\s+(?:final\s+|correct\s+)?(?:answer|result)\s*(?:is|:|=)\s*:?\s*", re.I)
FORMULA = re.compile(
    r"\$\$((?:(?!\$\$).)+)\$\$|\$([^$]+)\$|\\\[((?:(?!\\[\[\]]).)+)\\\]|\\\(((?:(?!\\[()]).)+)\\\)", re.S
)
NUMBER = re.compile(r"(?<![\w.])-?(?:\d+(?:,\d+)*)?(?:\.\d+|(?<=\d))(?:[eE][+-]?\d+)?(?:/\d+)?%?")
SENTENCE_END = re.compile(r"\.(?=\s|$)|[\n!?]")
TAIL = 20_000
"""Characters of the end of a text in which an answer without a box is looked for."""


def extract(text: str, where: Where = "box") -> str | None:
    """The answer that a text gives, or None where it gives none (an empty box, unfinished thinking, ...)."""
    text = text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text
    if "<think>" in text:
        return None
    if BOX.search(text) or "\\boxed" in text:
        return last_box(text)
    return said(text[-TAIL:]) if where == "text" else None


def last_box(text: str) -> str | None:
    """What stands in the last closed box, with boxes that are listed right before it; None where there is none."""
    return listed(text, list(boxes(text)))


def listed(text: str, found: list[tuple[int, int, str]]) -> str | None:
    """The last of some pieces of a text, and those before it that only a comma, "and" or "or" parts from it.

    Two answers offered at once become a list, so they are never taken for one of the two.
    """
    if not found:
        return None
    pieces, start = [found[-1][2].strip()], found[-1][0]
    for begin, end, inside in reversed(found[:-1]):
        if start - end > APART or not JOINED.fullmatch(text[end:start]):
            break
        start = begin
        if inside.split() != pieces[0].split():
            pieces.insert(0, inside.strip())
    return ", ".join(piece for piece in pieces if piece) or None


def boxes(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and content of every outermost closed box, in one pass over the text."""
    partner, open_braces, done = {}, [], 0
    first = BOX.search(text)
    for brace in BRACES.finditer(text, first.start() if first else len(text)):
        if brace[0] == "{":
            open_braces.append(brace.start())
        elif brace[0] == "}" and open_braces:
            partner[open_braces.pop()] = brace.start()
    for box in BOX.finditer(text):
        if box.start() < done:
            continue
        if box[1] != "{":
            yield box.start(), box.end(), box[1]
        elif box.end() - 1 in partner:
            done = partner[box.end() - 1] + 1
            yield box.start(), done, text[box.end() : done - 1]


def said(text: str) -> str | None:
    """The answer of a text without a box: after "the answer is", else the last formula, else the last number."""
    phrases = list(PHRASE.finditer(text))
    if phrases:
        rest = text[phrases[-1].end() :]
        formula = FORMULA.match(rest.lstrip())
        if formula:
            return next(group for group in formula.groups() if group).strip() or None
        return SENTENCE_END.split(rest, maxsplit=1)[0].strip(" *:`") or None
    formulas = [(f.start(), f.end(), next(g for g in f.groups() if g)) for f in FORMULA.finditer(text)]
    if formulas:
        return listed(text, formulas)
    numbers = [found[0] for found in NUMBER.finditer(text) if found[0]]
    return numbers[-1] if numbers else None
