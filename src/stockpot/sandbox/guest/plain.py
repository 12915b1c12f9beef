"""Python values <-> JSON, without pickle and without calling a method that a value brought along.

Numbers, strings, booleans and None stand for themselves; the rest is an object with one key that names the kind::

    (1, {2})   ->   {"tuple": [1, {"set": [2]}]}

What is none of these kinds becomes {"other": its type's name} and equals nothing.
"""

from __future__ import annotations

from typing import Any

SMALL = 2**63
"""Integers from here on travel as hexadecimal digits: decimal ones cost the square of their length."""


def encode(value: Any) -> Any:
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
            return {name: [encode(item) for item in kind.__iter__(value)]}
    if dict in kinds:
        return {"dict": [[encode(key), encode(item)] for key, item in dict.items(value)]}
    if complex in kinds:
        return {"complex": [value.real, value.imag]}
    if bytes in kinds or bytearray in kinds:
        return {"bytes": bytes(value).hex()}
    return {"other": str(type.__getattribute__(type(value), "__name__"))[:80]}


def decode(data: Any) -> Any:
    """The value again; ValueError where the data is not of the kind that `encode` makes."""
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, dict) and len(data) == 1:
        ((kind, inner),) = data.items()
        if kind == "int" and isinstance(inner, str):
            return int(inner, 16)
        if kind == "bytes" and isinstance(inner, str):
            return bytes.fromhex(inner)
        if isinstance(inner, list):
            return _container(kind, inner)
    raise ValueError("no plain value")


def _container(kind: str, inner: list[Any]) -> Any:
    try:
        if kind == "complex":
            return complex(*(float(part) for part in inner))
        if kind == "dict":
            return {decode(key): decode(value) for key, value in inner}
        items = [decode(item) for item in inner]
        if kind == "list":
            return items
        if kind in ("tuple", "set", "frozenset"):
            return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](items)
    except TypeError as error:
        raise ValueError("no plain value") from error
    raise ValueError("no plain value")
