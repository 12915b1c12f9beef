"""Python values <-> JSON, without pickle and without calling a method that a value brought along.

Numbers, strings, booleans and None stand for themselves; the rest is an object with one key that names the kind::

    (1, {2})   ->   {"tuple": [1, {"set": [2]}]}

What is none of these kinds becomes {"other": its type's name}, or what `other` makes of it, and equals nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

SMALL = 2**63
"""Integers from here on travel as hexadecimal digits: decimal ones cost the square of their length."""
ALIKE = 64
"""A set or dict with more keys than this of one hash is refused: made to collide, they cost their number squared."""


class Opaque:
    """What came out was no plain data: it equals nothing, and tells the name of its type."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


def name_of(value: Any) -> str:
    """The name of a value's type."""
    return str(type.__getattribute__(type(value), "__name__"))[:80]


def _other(value: Any) -> Any:
    return {"other": name_of(value)}


def encode(value: Any, other: Callable[[Any], Any] = _other) -> Any:
    """A value as JSON data. A subclass counts as its base: Counter is a dict, a named tuple a tuple."""
    kinds = type.__getattribute__(type(value), "__mro__")
    if value is None or value is True or value is False:
        return value
    if int in kinds:
        number = int.__int__(value)
        return number if -SMALL < number < SMALL else {"int": hex(number)}
    if float in kinds:
        return float.__float__(value)
    if str in kinds:
        return str.__str__(value)
    for kind, name in ((list, "list"), (tuple, "tuple"), (set, "set"), (frozenset, "frozenset")):
        if kind in kinds:
            return {name: [encode(item, other) for item in kind.__iter__(value)]}
    if dict in kinds:
        return {"dict": [[encode(key, other), encode(item, other)] for key, item in dict.items(value)]}
    if type(value) is complex:
        return {"complex": [value.real, value.imag]}
    if type(value) in (bytes, bytearray):
        return {"bytes": bytes(value).hex()}
    if type(value) in (Fraction, Decimal):
        return {"fraction" if type(value) is Fraction else "decimal": str(value)}
    return other(value)


def decode(data: Any, ref: Callable[[str, Any], Any] | None = None) -> Any:
    """The value again; ValueError where the data is not of the kind that `encode` makes."""
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, dict) and len(data) == 1:
        ((kind, inner),) = data.items()
        if kind in ("ref", "builtin") and ref is not None:
            return ref(kind, inner)
        if isinstance(inner, str):
            return _scalar(kind, inner)
        if isinstance(inner, list):
            return _container(kind, inner, ref)
    raise ValueError("no plain value")


def _scalar(kind: str, inner: str) -> Any:
    if kind == "other":
        return Opaque(inner)
    if kind == "int":
        return int(inner, 16)
    if kind == "bytes":
        return bytes.fromhex(inner)
    if kind in ("fraction", "decimal") and len(inner) <= 1000:
        try:
            return Fraction(inner) if kind == "fraction" and "e" not in inner.lower() else Decimal(inner)
        except (ArithmeticError, ValueError) as error:
            raise ValueError("no plain value") from error
    raise ValueError("no plain value")


def _container(kind: str, inner: list[Any], ref: Callable[[str, Any], Any] | None) -> Any:
    try:
        if kind == "complex":
            real, imaginary = (float(part) for part in inner)
            return complex(real, imaginary)
        if kind == "dict":
            pairs = [(decode(key, ref), decode(value, ref)) for key, value in inner]
            _spread([key for key, _ in pairs])
            return dict(pairs)
        items = [decode(item, ref) for item in inner]
        if kind == "list":
            return items
        if kind == "tuple":
            return tuple(items)
        if kind in ("set", "frozenset"):
            _spread(items)
            return set(items) if kind == "set" else frozenset(items)
    except TypeError as error:
        raise ValueError("no plain value") from error
    raise ValueError("no plain value")


def _spread(keys: list[Any]) -> None:
    if len(keys) > ALIKE and max(Counter(map(hash, keys)).values()) > ALIKE:
        raise ValueError("too many keys of one hash")
