"""Whether two answers are the same, part by part. What parts are numbers or formulas is judged by a `leaf` function."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from stockpot.rewards import exact, forms
from stockpot.rewards.forms import Group
from stockpot.rewards.latex import bare, clean, joined

Leaf = Callable[[str, str], bool | None]
"""Two formulas -> the same, not the same, or None where it cannot tell."""


class Undecidable(Exception):
    """Numbers too large to be written out: not even sympy is asked."""


LONGEST, DEEPEST, PARTS = 2_000, 30, 64
"""Characters, nested brackets and list elements of an answer; beyond them only the same string is the same answer."""
DEPTH = 6
"""Lists in lists in lists ..."""
GROUPS = re.compile(r"[(\[]|\\\{")
COMMA = re.compile(r"[-+]?\d+,\d+")


def agree(gold: str, answer: str, leaf: Leaf, tolerance: float = 0.0) -> bool | None:
    """Whether an answer is the right one; None where `leaf` cannot tell and it would decide."""
    if gold.strip() == answer.strip():
        return bool(gold.strip())
    if (a := exact.plain(gold)) is not None and (b := exact.plain(answer)) is not None:
        return exact.equal(gold, a, answer, b) or exact.near(a, b, tolerance)
    if too_much(gold) or too_much(answer):
        return None
    judge = leaf if not tolerance else _loose(leaf, tolerance)
    right, given = prepared(gold), prepared(answer)
    if not right or not given:
        return False
    for one, other in ((right, given), (given, right)):
        if COMMA.fullmatch(one) and exact.decimal(other):
            return judge(one.replace(",", "."), other)
    return _whole(right, given, judge)


@lru_cache(maxsize=4096)
def prepared(text: str) -> str:
    """One spelling; digits in groups of three become a number where the comma cannot part a list in brackets."""
    text = clean(text)
    return text if GROUPS.search(text) else joined(text)


def too_much(text: str) -> bool:
    """Whether a text is too long or too deep to be an answer that a person would write."""
    if len(text) > LONGEST:
        return True
    depth = deepest = 0
    for mark in text:
        depth += (mark in "({[") - (mark in ")}]")
        deepest = max(deepest, depth)
    return deepest > DEEPEST


def number(gold: str, answer: str) -> bool | None:
    """The leaf without sympy: fractions compared exactly, the rest by its spelling; None for what it cannot read."""
    if bare(gold) == bare(answer):
        return True
    try:
        a, b = exact.fraction(gold), exact.fraction(answer)
    except exact.TooBig as big:
        raise Undecidable from big
    return None if a is None or b is None else exact.equal(gold, a, answer, b)


def _loose(leaf: Leaf, tolerance: float) -> Leaf:
    def judge(gold: str, answer: str) -> bool | None:
        found = leaf(gold, answer)
        if found:
            return True
        try:
            a, b = exact.fraction(gold), exact.fraction(answer)
        except exact.TooBig as big:
            raise Undecidable from big
        return found if a is None or b is None else exact.near(a, b, tolerance)

    return judge


def _whole(gold: str, answer: str, leaf: Leaf, depth: int = 0) -> bool | None:
    """Units, percent signs, choices and words first, then the shape."""
    if bare(gold) == bare(answer):
        return True
    one, other = forms.letter(gold), forms.letter(forms.choice(answer, alone=forms.letter(gold) is not None))
    if one and other:
        lone = depth == 0 and one in "ABCDEFGHIJ"
        return one == other or (lone and one.lower() == other.lower())
    answer = forms.choice(answer, alone=False)
    gold, unit = forms.measured(gold)
    answer, other_unit = forms.measured(answer)
    if unit and other_unit and unit != other_unit:
        return False
    if gold.endswith("%") and not answer.endswith("%") and number(gold[:-1], answer):
        return True
    if "«" in gold + answer:
        gold, answer = (
            value if "«" in head else text for text in (gold, answer) for head, value in [forms.named(text)]
        )
    if "«" in forms.CONNECTOR.sub(",", gold) or "«" in forms.CONNECTOR.sub(",", answer):
        return _words(gold, answer) or (None if forms.equation(gold) and forms.equation(answer) else False)
    return _shape(gold, answer, leaf, depth)


def _words(gold: str, answer: str) -> bool:
    """Answers with words: the same words in the same order, capitals and points aside."""
    one, other = (re.sub(r"[\s«».,()]+", "", text).lower() for text in (gold, answer))
    return bool(one) and one == other


def _shape(gold: str, answer: str, leaf: Leaf, depth: int) -> bool | None:
    if depth > DEPTH:
        return None
    one, other = forms.matrix(gold), forms.matrix(answer)
    if one and other:
        return _cells(one, other, leaf, depth)
    right, given = forms.group(gold), forms.group(answer)
    if len(right.elements) == 1 == len(given.elements) and right.open == given.open == "":
        return _single(right.elements[0], given.elements[0], leaf, depth)
    return _lists(right, given, leaf, depth, gold, answer)


def _single(gold: str, answer: str, leaf: Leaf, depth: int) -> bool | None:
    """One formula each: a name on the left is dropped, an inequality may be an interval."""
    (name, value), (other, given) = forms.named(gold), forms.named(answer)
    if name and other and bare(name) != bare(other):
        return leaf(gold, answer)
    if not name and not other and forms.equation(gold):
        return leaf(gold, answer) if forms.equation(answer) else False
    if name or other:
        if forms.equation(value) or (forms.equation(given) and name):
            return leaf(gold, answer)
        return _whole(value, forms.result(given), leaf, depth + 1)
    if forms.equation(answer):
        last = forms.result(answer)
        return False if last == answer else _whole(gold, last, leaf, depth + 1)
    return _sets(gold, answer, leaf, depth)


def _sets(gold: str, answer: str, leaf: Leaf, depth: int) -> bool | None:
    one, other = forms.interval(gold), forms.interval(answer)
    if one and other:
        return _whole(one, other, leaf, depth + 1) if _variable(gold) == _variable(answer) else leaf(gold, answer)
    if (one and _is_set(answer)) or (other and _is_set(gold)):
        return _whole(one or gold, other or answer, leaf, depth + 1)
    pieces, others = forms.split(gold, forms.UNION), forms.split(answer, forms.UNION)
    if len(pieces) > 1 and len(others) > 1 and _matched(pieces, others, leaf, depth):
        return True
    if ":" in gold or ":" in answer:
        parts, given = forms.split(gold, ":"), forms.split(answer, ":")
        return len(parts) == len(given) and _all(leaf(a, b) for a, b in zip(parts, given, strict=True))
    return leaf(gold, answer)


def _variable(text: str) -> list[str]:
    return [bare(part) for part in forms.RELATION.split(text) if forms.NAME.fullmatch(part)]


def _is_set(text: str) -> bool:
    return text[:1] in ("(", "[") or text.startswith("\\{") or forms.UNION in text


def _lists(right: Group, given: Group, leaf: Leaf, depth: int, gold: str, answer: str) -> bool | None:
    """Lists, tuples, intervals, sets. Bare lists and sets have no order; a tuple has one."""
    if len(right.elements) == 1 or len(given.elements) == 1:
        lone = right if len(right.elements) == 1 else given
        if len(right.elements) == len(given.elements):
            return _whole(right.elements[0], given.elements[0], leaf, depth + 1)
        if (head := forms.named(lone.elements[0]))[0] and lone.open == "":
            sides = (head[1], answer) if lone is right else (gold, head[1])
            return _shape(*sides, leaf, depth + 1)
        union = _union(right if lone is given else given)
        if union:
            return _sets(*((union, answer) if lone is given else (gold, union)), leaf, depth)
        if lone.open == "" and forms.interval(lone.elements[0]):
            return _sets(gold, answer, leaf, depth)
        if any(word in lone.elements[0] for word in ("\\cup", "\\cap", "\\setminus", "\\begin", "\\mathbb", "|")):
            return leaf(gold, answer)
        return False
    if max(len(right.elements), len(given.elements)) > PARTS:
        return None
    return _elements(right, given, leaf, depth)


def _union(several: Group) -> str:
    """`x > 3, x < 1` as a union of intervals; empty where the list is something else."""
    intervals = [forms.interval(element) for element in several.elements]
    return f" {forms.UNION} ".join(part for part in intervals if part) if all(intervals) and not several.open else ""


def _elements(right: Group, given: Group, leaf: Leaf, depth: int) -> bool | None:
    names = [bare(forms.named(element)[0]) for element in right.elements]
    others = [bare(forms.named(element)[0]) for element in given.elements]
    if right.unordered and given.unordered:
        if len(set(names)) > 1 and not any(others):
            return _in_order(right.elements, given.elements, leaf, depth)
        one, other = (list({bare(e): e for e in group.elements}.values()) for group in (right, given))
        return _matched(one, other, leaf, depth)
    if "\\{" in (right.open, given.open):
        return False
    pairs = ((right.open, right.close), (given.open, given.close))
    if "" not in (right.open, given.open) and pairs[0] != pairs[1] and len(right.elements) == 2:
        return False
    if "" in (right.open, given.open) and {("(", ")"), ("", "")} != set(pairs):
        return False
    return _in_order(right.elements, given.elements, leaf, depth)


def _in_order(one: Sequence[str], other: Sequence[str], leaf: Leaf, depth: int) -> bool | None:
    if len(one) != len(other):
        return False
    return _all(_whole(a, b, leaf, depth + 1) for a, b in zip(one, other, strict=True))


def _cells(one: list[list[str]], other: list[list[str]], leaf: Leaf, depth: int) -> bool | None:
    if [len(row) for row in one] != [len(row) for row in other]:
        return False
    return _in_order([cell for row in one for cell in row], [cell for row in other for cell in row], leaf, depth)


def _matched(one: Sequence[str], other: Sequence[str], leaf: Leaf, depth: int) -> bool | None:
    """Whether every element of one list has its own partner in the other."""
    if len(one) != len(other):
        return False
    left, open_question = list(other), False
    for element in sorted(one, key=lambda e: e not in other):
        found = None
        for candidate in [*(c for c in left if c == element), *(c for c in left if c != element)]:
            found = _whole(element, candidate, leaf, depth + 1)
            if found:
                left.remove(candidate)
                break
            open_question |= found is None
        if not found and not open_question:
            return False
    return None if left else True


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    found = list(verdicts)
    return False if False in found else None if None in found else True
