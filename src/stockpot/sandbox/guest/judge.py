"""Tests in a process of their own, without a byte of the candidate's: its functions are asked for over a pipe.

In the tests `f(2)` sends the argument to the candidate's process and gets plain data back, so that all comparisons
are made here, between values of Python's own types. What a candidate returns that is no plain data (an object of its
own class, a generator) is a `Remote`: it can be passed on, called, iterated and asked for attributes, and equals
nothing but itself.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType
from typing import Any, NamedTuple, NoReturn

from .child import described, teller
from .plain import decode, encode

LONGEST = 8 * 2**20
"""Bytes of one answer."""


class Gone(Exception):
    """The candidate's process has ended."""


class Wire:
    """Asks the candidate's process."""

    def __init__(self, pipe: int) -> None:
        self.pipe, self.rest, self.tell, self.opaque = pipe, b"", teller(pipe), 0
        self.failed = False

    def ask(self, do: str, of: Any, args: tuple[Any, ...] = (), named: dict[str, Any] | None = None) -> Any:
        """One question; the answer as plain data, or an exception."""
        self.failed = True
        line = {
            "do": do,
            "of": of,
            "args": [encode(item, sendable) for item in args],
            "named": {key: encode(item, sendable) for key, item in (named or {}).items()},
        }
        try:
            self.tell(line)
        except OSError as error:
            raise Gone("the program has ended") from error
        told = json.loads(self.line())
        if isinstance(told, dict) and "value" in told:
            value = decode(told["value"], self.held)
            self.failed = False
            return value
        if isinstance(told, dict) and isinstance(told.get("error"), list):
            fail(*[str(part)[:300] for part in told["error"][:2]])
        raise ValueError("no answer")

    def line(self) -> bytes:
        """What the candidate's process says, up to the end of the line."""
        parts = [self.rest]
        while b"\n" not in parts[-1]:
            data = os.read(self.pipe, 65536)
            if not data or sum(map(len, parts)) > LONGEST:
                raise Gone("the program has ended")
            parts.append(data)
        line, _, self.rest = b"".join(parts).partition(b"\n")
        return line

    def held(self, kind: str, inner: Any) -> Any:
        """An object that stays in the candidate's process."""
        if kind != "ref":
            raise ValueError("no plain value")
        self.opaque += 1
        return Remote(self, [int(inner[0]), str(inner[1])])


class Remote:
    """A function or an object of the candidate's. It is never asked whether it equals something."""

    def __init__(self, wire: Wire, of: Any) -> None:
        object.__setattr__(self, "_here", (wire, of))

    def __call__(self, *args: Any, **named: Any) -> Any:
        wire, of = object.__getattribute__(self, "_here")
        return wire.ask("call", of, args, named)

    def __getattr__(self, name: str) -> Any:
        wire, of = object.__getattribute__(self, "_here")
        if name.startswith("__") and name not in ("__name__", "__doc__"):
            raise AttributeError(name)
        return wire.ask("get", of, (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        wire, of = object.__getattribute__(self, "_here")
        wire.ask("set", of, (name, value))

    def __getitem__(self, key: Any) -> Any:
        wire, of = object.__getattribute__(self, "_here")
        return wire.ask("item", of, (key,))

    def __iter__(self) -> Iterator[Any]:
        wire, of = object.__getattribute__(self, "_here")
        return iter(wire.ask("iter", of))

    def __len__(self) -> int:
        wire, of = object.__getattribute__(self, "_here")
        return int(wire.ask("len", of))

    def __bool__(self) -> bool:
        return True


def sendable(value: Any) -> Any:
    """What an argument that is no plain data becomes."""
    if isinstance(value, Remote):
        return {"ref": object.__getattribute__(value, "_here")[1]}
    name = getattr(value, "__name__", "")
    if isinstance(name, str) and name and getattr(builtins, name, None) is value:
        return {"builtin": [name]}
    raise TypeError(f"a test passes a {type(value).__name__}, which is no plain data")


def fail(name: str, message: str = "") -> NoReturn:
    """Raise here what the candidate raised there, where it is one of Python's own exceptions."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and kind not in (AssertionError, StopIteration):
        try:
            error = kind(message)
        except TypeError:
            error = RuntimeError(f"{name}: {message}")
        raise error
    raise RuntimeError(f"{name}: {message}")


def unknown(sources: list[str]) -> dict[str, bool]:
    """Names that the tests use and neither they nor Python define; and whether a name is one of Python's modules,
    used as such (`math.isclose` with no import): those must never be the candidate's."""
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    dotted = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    used: set[str] = set()
    made: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).partition(".")[0])
    free = {name for name in used - made if not hasattr(builtins, name)}
    return {name: name in dotted and name in sys.stdlib_module_names for name in sorted(free)}


class Prepared(NamedTuple):
    """Tests, compiled."""

    names: dict[str, bool]
    """See `unknown`."""
    setup: CodeType
    tests: tuple[CodeType | None, ...]
    """None where a test is no Python."""


@lru_cache(128)
def prepare(setup: str, tests: tuple[str, ...]) -> Prepared:
    """Tests compiled, once for all the candidates that they come back for. Nothing of them is run."""
    return Prepared(unknown([setup, *tests]), compile(setup, "setup", "exec"), tuple(map(_compiled, tests)))


def _compiled(source: str) -> CodeType | None:
    try:
        return compile(source, "test", "exec")
    except (SyntaxError, ValueError):
        return None


def judge(job: dict[str, Any], prepared: Prepared | Exception, verdict: int, pipe: int) -> int:
    """Run the tests one after the other and tell which passed."""
    wire, tell = Wire(pipe), teller(verdict)
    passed: list[bool] = []
    errors: list[Any] = []
    try:
        if isinstance(prepared, Exception):
            raise prepared
        space: dict[str, Any] = {"__name__": "test"}
        for name, module in prepared.names.items():
            space[name] = importlib.import_module(name) if module else Remote(wire, name)
        exec(prepared.setup, space)
        if job["entry"]:
            space[job["entry"]] = Remote(wire, job["entry"])
    except BaseException as error:
        if wire.failed:  # the setup asked the candidate, who could not answer: that is the candidate's fault
            many = len(job["tests"])
            tell({"passed": [False] * many, "errors": [described(error)] * many, "opaque": wire.opaque})
        else:
            tell({"broken": described(error)})
        return 0
    for code in prepared.tests:
        try:
            if code is None:
                raise SyntaxError("the test is no Python")
            exec(code, space)
            passed.append(True)
            errors.append(None)
        except BaseException as error:
            passed.append(False)
            errors.append(described(error))
    tell({"passed": passed, "errors": errors, "opaque": wire.opaque})
    return 0
