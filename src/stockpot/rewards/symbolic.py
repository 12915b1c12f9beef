"""Two formulas with sympy: read by math-verify's parser, compared by value, by math-verify where there is no value.

This runs in a process of its own (`workers`), which is killed when it takes too long: nothing here watches the clock.
"""

from __future__ import annotations

import itertools
import logging
import random
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from stockpot.rewards import exact
from stockpot.rewards.agree import number

KNOWN = frozenset(
    """frac sqrt cdot times div pi infty sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp binom
    le ge ne cup cap setminus emptyset in sum prod int lim to lfloor rfloor lceil rceil max min begin end mid det
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon
    phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega hbar ell prime mathbb""".split()  # noqa: SIM905
)
"""Commands that are known to be read for what they are; a formula with any other is not read at all."""
UNREAD = re.compile(r"\d\s*[_']|[-+^|!]{4,}|\d\s+[\d.]|\\mathbb\s*\{?[^{}R]|[«»;@#$~?\"`]|\\$|,\s*,|[A-Za-z]{6,}")
"""What the parser would read as something else: bases, digits side by side, words."""
COMMANDS = re.compile(r"\\([A-Za-z]+)")
INDEX = re.compile(r"_\{?\s*i")
EXPONENT = re.compile(r"\^\s*\{?\s*-?\s*\{?(\d{2,})|(\d{2,})\s*\}?!")
LITERAL = re.compile(r"(?<![\w.\\])(?:\d+\.\d*|\.\d+)(?![\d.])")
DIGITS, MOST_DIGITS, POINTS = 60, 2_000, 4
"""Digits to which values are compared, at so many points; more where numbers with long exponents stand in a formula."""
GUARD = 10


def formula(gold: str, answer: str, tolerance: float = 0.0) -> bool | None:
    """The leaf with sympy; None for what cannot be read or decided. A tolerance is relative."""
    found = number(gold, answer)
    if found is not None:
        return found
    if not readable(gold) or not readable(answer):
        return None
    digits = needed(gold + " " + answer)
    if digits > MOST_DIGITS:
        return None
    letters = COMMANDS.sub("|", re.sub(r"\\(?:begin|end)\{[a-z]+\}", "|", gold + "|" + answer))
    imaginary = "i" in letters and not INDEX.search(letters)
    try:
        a, b = parse(gold, imaginary), parse(answer, imaginary)
    except Exception:
        return None
    try:
        found = _rounded(gold, a, answer, b) or _same(a, b, digits)
        return found or (_near(a, b, tolerance) if tolerance else found)
    except Exception:
        return None


def readable(text: str) -> bool:
    """Whether every part of a formula is known to be read for what it is."""
    if not text.isascii():
        return False
    plain = re.sub(r"\\(?:begin|end)\{[a-z]+\}|\\\\", "|", text)
    plain = re.sub(r"(\\l(?:og|im)_(?:\{[^{}]*\}|\w))\s", r"\1|", plain)
    if not set(COMMANDS.findall(plain)) <= KNOWN or plain.count("=") > 8 or plain.count("\\cup") > 12:
        return False
    return not UNREAD.search(COMMANDS.sub("§", plain))


def needed(text: str) -> int:
    """Digits that tell apart what a formula's longest numbers and exponents could make differ."""
    exponents = [int((a or b)[:9]) for a, b in EXPONENT.findall(text)]
    return DIGITS + max(map(len, re.findall(r"\d+", text)), default=0) + 4 * max(exponents, default=0)


def fraction(decimal: str) -> str:
    """A decimal as a fraction in LaTeX."""
    number = Fraction(decimal)
    return f"(\\frac{{{number.numerator}}}{{{number.denominator}}})"


@lru_cache(maxsize=512)
def parse(text: str, imaginary: bool) -> Any:
    """A sympy object without a single float: decimals are written as fractions first."""
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    text = LITERAL.sub(lambda found: fraction(found[0]), text)
    settings = ConversionConfig(lowercase_symbols=False)
    read = latex2sympy(text, is_real=True, convert_degrees=False, normalization_config=None, conversion_config=settings)
    if imaginary:
        read = read.xreplace({name: sympy.I for name in read.free_symbols if name.name == "i"})
    return read


def _rounded(gold: str, a: Any, answer: str, b: Any) -> bool:
    """Whether one of the two is a decimal that stands for the other, which no decimal can write out."""
    for text, other in ((gold, b), (answer, a)):
        short = exact.decimal(text)
        if short and short.digits >= exact.ENOUGH and not getattr(other, "free_symbols", True):
            value = other.doit().evalf(DIGITS)
            if value.is_Float and exact.stands_for(short, Fraction(str(value))):
                return not other.doit().is_rational
    return False


def _near(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two numbers, as far as they are numbers, differ by no more than a part of the first."""
    x, y = (value(side, {}) if not side.free_symbols else None for side in (a, b))
    return x is not None and y is not None and bool(abs(x - y) <= Fraction(tolerance) * abs(x))


def _same(a: Any, b: Any, digits: int) -> bool | None:
    import sympy
    from sympy.core.relational import Relational

    both = isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)
    if both and a.has(sympy.Sum, sympy.Product) and _rebuilt(a) == _rebuilt(b):  # by value they are slow
        return True
    if isinstance(a, sympy.MatrixBase | sympy.MatrixExpr) or isinstance(b, sympy.MatrixBase | sympy.MatrixExpr):
        a, b = a.doit(), b.doit()
        if getattr(a, "shape", None) != getattr(b, "shape", None):
            return False
        verdicts = [_same(x, y, digits) for x, y in zip(sympy.flatten(a), sympy.flatten(b), strict=True)]
        return False if False in verdicts else None if None in verdicts else True
    if isinstance(a, Relational) and isinstance(b, Relational):
        return _same_relation(a, b, digits)
    if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
        return _same_value(a, b, digits)
    return _library(a, b)


def _rebuilt(formula: Any) -> Any:
    """The same formula with factors and terms in sympy's own order: the parser leaves them as they were written."""
    return formula.func(*map(_rebuilt, formula.args)) if formula.args else formula


def _same_relation(a: Any, b: Any, digits: int) -> bool | None:
    """Two equations or inequalities: left minus right is the same up to a factor, of the sign that theirs asks for."""
    import sympy

    kinds = {">": 1, ">=": 1, "<": -1, "<=": -1, "==": 0, "!=": 0}
    if not all(isinstance(side, sympy.Expr) for side in (a.lhs, a.rhs, b.lhs, b.rhs)):
        return _library(a, b)
    way, other = kinds.get(a.rel_op), kinds.get(b.rel_op)
    if way is None or other is None or (a.rel_op in (">=", "<=", "==")) != (b.rel_op in (">=", "<=", "==")):
        return False
    if bool(way) != bool(other):
        return False
    f, g = a.lhs - a.rhs, b.lhs - b.rhs
    if not way:
        f, g = (sympy.together(x.doit()).as_numer_denom()[0] for x in (f, g))
    ratios, close = [], Fraction(1, 10 ** (digits - GUARD))
    for place in places(f.free_symbols | g.free_symbols):
        x, y = value(f, place, digits), value(g, place, digits)
        if x is None or y is None or x == 0 or y == 0:
            continue
        ratios.append(x / y)
    if len(ratios) < 2:
        return _library(a, b)
    if any(abs(ratio - ratios[0]) > close * abs(ratios[0]) for ratio in ratios):
        return False
    return not way or bool(sympy.re(ratios[0]) * way * other > 0)


def _same_value(a: Any, b: Any, digits: int) -> bool | None:
    """Values at points drawn at random: one clear difference refutes; agreement everywhere to many digits accepts."""
    import sympy

    agreed, close = 0, Fraction(1, 10 ** (digits - GUARD))
    for place in places(a.free_symbols | b.free_symbols):
        x, y = value(a, place, digits), value(b, place, digits)
        if x is None or y is None:
            continue
        negative = any(p < 0 for p in place.values())
        if negative and not (x.is_real and y.is_real):
            continue
        if abs(x - y) > close * max(abs(x), abs(y)):
            tiny = bool(min(abs(x), abs(y)) < Fraction(1, 10**20))
            return tiny and bool(sympy.simplify(a - b) == 0)
        agreed += 1
    return True if agreed >= (2 if a.free_symbols | b.free_symbols else 1) else _library(a, b)


def places(symbols: Any) -> Any:
    """Points at which formulas are compared: positive ones first, then of all signs."""
    import sympy

    if not symbols:
        return [{}]
    draw = random.Random(7)
    names = sorted(symbols, key=str)
    drawn = []
    for turn in range(2 * POINTS):
        signs = itertools.repeat(1) if turn < POINTS else (draw.choice((-1, 1)) for _ in itertools.count())
        drawn.append({n: sympy.Rational(s * draw.randint(301, 2999), 997) for n, s in zip(names, signs, strict=False)})
    return drawn


def value(formula: Any, place: Any, digits: int = DIGITS) -> Any:
    """A formula's number at a point to many digits, None where it has none."""
    import sympy

    try:
        found = formula.evalf(digits, subs=place)
        if not found.is_Float:
            found = formula.subs(place).doit().evalf(digits)
    except (ArithmeticError, TypeError, ValueError, NotImplementedError, AttributeError):
        return None
    return found if found.is_number and found.is_finite and not found.has(sympy.Sum, sympy.Integral) else None


def _library(a: Any, b: Any) -> bool:
    """math-verify's own judgement, without its clock: where there are no values to compare."""
    from math_verify import verify

    logging.getLogger("math_verify.grader").setLevel(logging.ERROR)
    precision = {"float_rounding": DIGITS, "numeric_precision": DIGITS}
    return bool(verify(a, b, allow_set_relation_comp=True, timeout_seconds=None, **precision))
