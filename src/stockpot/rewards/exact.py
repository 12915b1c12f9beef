"""Numbers without floats: an expression of numbers alone -> the fraction that it is."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

BITS = 20_000
"""Numbers longer than this are not written out: nobody's answer needs them, and a hostile one would."""
FACTORIAL = 2_100
ENOUGH = 6
"""Significant digits from which a decimal stands for a number that no decimal can write out."""

TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.\\overline\s*\{\d+\}|\d+\.\d*\\overline\s*\{\d+\}|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?))"
    r"|(?P<word>\\(?:frac|binom|sqrt|cdot|times|div)(?![A-Za-z]))|(?P<sign>[-+*/^(){}\[\]!%])|(?P<end>$))"
)
DECIMAL = re.compile(
    r"\s*([-+]?)\s*(\d*)\.(\d+)(?:[eE]([+-]?\d{1,4})|\s*\\(?:times|cdot)\s*10\^\{?([+-]?\d{1,4})\}?)?\s*"
)


PLAIN = re.compile(
    r"\s*(?P<sign>-)?(?:(?P<number>[0-9]+(?:\.[0-9]+)?)(?:/(?P<over>[0-9]+))?"
    r"|\\[dt]?frac\{(?P<top>[0-9]+)\}\{(?P<bottom>[0-9]+)\})\s*"
)


class TooBig(Exception):
    """A number that is not written out."""


class NotANumber(Exception):
    """An expression that holds more than numbers, or a number that is no fraction."""


@dataclass(frozen=True)
class Decimal:
    """A decimal as it is written: its value, the worth of its last digit, how many digits count."""

    value: Fraction
    unit: Fraction
    digits: int


def plain(text: str) -> Fraction | None:
    """The number that most answers are, `-12`, `0.5`, `3/4` or a fraction of whole numbers, read in one look."""
    found = PLAIN.fullmatch(text) if len(text) < 100 else None
    if not found:
        return None
    number, over, top, bottom = found.group("number", "over", "top", "bottom")
    if int(over or bottom or 1) == 0:
        return None
    value = Fraction(int(top), int(bottom)) if top else Fraction(number) / int(over or 1)
    return -value if found["sign"] else value


@lru_cache(maxsize=4096)
def fraction(text: str) -> Fraction | None:
    """The fraction that an expression is, None where it is something else; TooBig where it is out of bounds."""
    if not text or len(text) > 5_000:
        return None
    try:
        reader = _Reader(text)
        value = reader.sum()
        return value if reader.kind == "end" else None
    except (NotANumber, ZeroDivisionError, RecursionError):
        return None


def decimal(text: str) -> Decimal | None:
    """A text that is one decimal with a point, as it is written."""
    found = DECIMAL.fullmatch(text)
    if not found:
        return None
    sign, whole, places, *powers = found.groups()
    power = int(next((p for p in powers if p), "0"))
    unit = Fraction(10) ** (power - len(places))
    value = int(whole + places) * unit
    return Decimal(-value if sign == "-" else value, unit, len((whole + places).lstrip("0")))


def ends(value: Fraction) -> bool:
    """Whether some decimal writes the number out."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def near(gold: Fraction, answer: Fraction, tolerance: float) -> bool:
    """Whether an answer is within a relative tolerance of the right number."""
    return tolerance > 0 and abs(gold - answer) <= Fraction(tolerance) * abs(gold)


def equal(one: str, a: Fraction, other: str, b: Fraction) -> bool:
    """Two numbers as written. A decimal may stand for a fraction that has none, with digits enough."""
    if a == b:
        return True
    first, second = decimal(one), decimal(other)
    if (first is None) == (second is None):
        return False
    short, value = (first, b) if first else (second, a)
    return short is not None and not ends(value) and stands_for(short, value)


def stands_for(short: Decimal, value: Fraction) -> bool:
    """Whether a decimal is a number rounded or cut at its last place, with digits enough."""
    return short.digits >= ENOUGH and abs(short.value - value) < short.unit


def small(value: Fraction) -> Fraction:
    """The number itself, unless it is out of bounds."""
    if value.numerator.bit_length() + value.denominator.bit_length() > BITS:
        raise TooBig
    return value


class _Reader:
    """Reads sums of products of powers, one token ahead."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0
        self.kind, self.token = "", ""
        self.step()

    def step(self) -> str:
        """Goes to the next token and gives the one left."""
        left, found = self.token, TOKEN.match(self.text, self.at)
        if not found:
            raise NotANumber
        self.at, self.kind, self.token = found.end(), str(found.lastgroup), found[0].strip()
        return left

    def take(self, token: str) -> None:
        if self.token != token:
            raise NotANumber
        self.step()

    def sum(self) -> Fraction:
        self.depth += 1
        if self.depth > 60:
            raise NotANumber
        value = self.product()
        while self.token in ("+", "-") and self.kind == "sign":
            value = small(value + self.product() if self.step() == "+" else value - self.product())
        self.depth -= 1
        return value

    def product(self) -> Fraction:
        value = self.signed()
        while True:
            if self.token in ("*", "\\cdot", "\\times"):
                self.step()
                value = small(value * self.signed())
            elif self.token in ("/", "\\div"):
                self.step()
                value = small(value / self.signed())
            elif self.token in ("(", "\\frac", "\\binom", "\\sqrt"):
                value = small(value * self.power())
            else:
                return value

    def signed(self) -> Fraction:
        if self.token in ("+", "-"):
            self.depth += 1
            if self.depth > 60:
                raise NotANumber
            value = -self.signed() if self.step() == "-" else self.signed()
            self.depth -= 1
            return value
        return self.power()

    def power(self) -> Fraction:
        base = self.after(self.one())
        if self.token != "^":
            return base
        self.step()
        return self.after(raised(base, self.signed()))

    def after(self, value: Fraction) -> Fraction:
        """Factorials and percent signs behind a number."""
        while self.token in ("!", "%"):
            if self.step() == "%":
                value /= 100
                continue
            if value.denominator != 1 or value < 0 or self.token == "!":
                raise NotANumber
            if value > FACTORIAL:
                raise TooBig
            value = Fraction(math.factorial(int(value)))
        return value

    def one(self) -> Fraction:
        if self.kind == "number":
            return self.number()
        token = self.step()
        if token in ("(", "{"):
            value = self.sum()
            self.take(")" if token == "(" else "}")
            return value
        if token == "\\frac":
            return small(self.braced() / self.braced())
        if token == "\\binom":
            return choose(self.braced(), self.braced())
        if token == "\\sqrt":
            degree = Fraction(2)
            if self.token == "[":
                self.step()
                degree = self.sum()
                self.take("]")
            return root(self.braced(), degree)
        raise NotANumber

    def number(self) -> Fraction:
        r"""A literal; a whole one before a proper \frac is a mixed number."""
        token = self.step()
        if "overline" in token:
            head, again = re.sub(r"[\s{}]", "", token).split("\\overline")
            places = len(head.partition(".")[2])
            repeats = Fraction(int(again), (10 ** len(again) - 1) * 10**places)
            return Fraction(head.rstrip(".")) + repeats
        exponent = re.split("[eE]", token)[1:]
        if exponent and abs(int(exponent[0][:9])) > BITS // 4:
            raise TooBig
        value = small(Fraction(token))
        mixed = re.match(r"\\frac\s*\{(\d+)\}\s*\{(\d+)\}", self.text[self.at - 5 :]) if token.isdigit() else None
        if mixed and self.token == "\\frac" and int(mixed[1]) < int(mixed[2]):
            value += self.one()
        elif self.kind == "number":
            raise NotANumber
        return value

    def braced(self) -> Fraction:
        self.take("{")
        value = self.sum()
        self.take("}")
        return value


def raised(base: Fraction, exponent: Fraction) -> Fraction:
    """A power, if it is a fraction within bounds."""
    if exponent.denominator != 1:
        if exponent.denominator > 64:
            raise NotANumber
        base, exponent = root(base, Fraction(exponent.denominator)), Fraction(exponent.numerator)
    if base in (0, 1, -1):
        if base == 0 and exponent <= 0:
            raise NotANumber
        return base ** (int(exponent) % 2 or 2) if base else base
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * (bits - 1 or 1) > BITS:
        raise TooBig
    return small(base ** int(exponent))


def root(value: Fraction, degree: Fraction) -> Fraction:
    """A root, if it is a fraction; of a negative number only an odd one."""
    if degree.denominator != 1 or not 1 < degree <= 64 or (value < 0 and degree % 2 == 0):
        raise NotANumber
    parts = [whole_root(abs(value.numerator), int(degree)), whole_root(value.denominator, int(degree))]
    return Fraction(parts[0], parts[1]) * (-1 if value < 0 else 1)


def whole_root(value: int, degree: int) -> int:
    """The whole number whose power is `value`, by halving."""
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if middle**degree < value else (low, middle)
    if low**degree != value:
        raise NotANumber
    return low


def choose(n: Fraction, k: Fraction) -> Fraction:
    """A binomial coefficient of whole numbers within bounds."""
    if n.denominator != 1 or k.denominator != 1 or n < 0 or k < 0:
        raise NotANumber
    if n > FACTORIAL:
        raise TooBig
    return Fraction(math.comb(int(n), int(k)))
