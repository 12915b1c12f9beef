"""One program in a process of its own: run it, and tell the values that were asked for.

Whatever the program does to this interpreter, all it can reach is its pipes: its standard output, the one for values
and, where tests ask it, the one to the judge. A forged value is compared like any other, and what it is compared with
is not here: neither in this process nor in the one that it was forked from.
"""

from __future__ import annotations

import atexit
import builtins
import gc
import json
import operator
import os
import random
import sys
import threading
import traceback
import types
from collections.abc import Callable
from itertools import islice
from typing import Any

from .plain import decode, encode, name_of

NAME = "answer.py"
OUT_OF_MEMORY = b'{"error": ["MemoryError", "", 0]}\n'
LONGEST = 100_000
"""Items that are read of an iterator."""
ASKED: dict[str, Callable[..., Any]] = {"get": getattr, "set": setattr, "item": operator.getitem, "len": len}


def run(job: dict[str, Any], values: int, judge: int) -> int:
    """Run the program and what is asked of it; the exit code of the process."""
    sys.stdin = open(0, encoding="utf-8", errors="replace")  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, f"__{name}__", getattr(sys, name))
    sys.argv = [NAME]
    random.seed(0)
    gc.enable()
    kind = job["do"]
    name = "__main__" if kind == "program" else "answer"
    module = types.ModuleType(name)
    sys.modules[name] = module
    tell = teller(values)
    try:
        exec(compile(job["code"], NAME, "exec"), module.__dict__)
        if kind == "calls":
            take(job["entry"], job["inputs"], dict(module.__dict__), tell)
        elif kind == "tests":
            answer(dict(module.__dict__), judge)
        return finish(0)
    except SystemExit as left:
        if kind != "program" or left.code not in (None, 0):
            tell({"error": ["SystemExit", str(left.code)[:200], 0]})
        return finish(left.code if isinstance(left.code, int) else int(left.code is not None))
    except MemoryError:
        os.write(values, OUT_OF_MEMORY)
    except BaseException as error:
        tell({"error": described(error)})
    return finish(1)


def finish(code: int) -> int:
    """What an interpreter does at its end: wait for threads, call what was registered, flush."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    return code


def take(entry: str, inputs: list[Any], space: dict[str, Any], tell: Callable[[Any], None]) -> None:
    """Call one function on many inputs; one that raises is told and does not end the others."""
    function = eval(compile(entry, NAME, "eval"), space)
    for number, arguments in enumerate(inputs):
        try:
            told = {"value": encode(function(*map(decode, arguments)))}
        except MemoryError:
            told = {"error": ["MemoryError", "", 0]}
        except BaseException as error:
            told = {"error": described(error)}
        tell({"step": number, **told})


def answer(space: dict[str, Any], judge: int) -> None:
    """Do what the judge asks, one line after the other, until it hangs up.

    What is no plain data stays here, numbered.
    """
    kept: list[Any] = []

    def keep(value: Any) -> Any:
        kept.append(value)
        return {"ref": [len(kept) - 1, name_of(value)]}

    def find(of: Any) -> Any:
        if isinstance(of, list):
            return kept[of[0]]
        if of in space:
            return space[of]
        raise NameError(f"name {of!r} is not defined")

    def given(kind: str, inner: Any) -> Any:
        return vars(builtins)[inner[0]] if kind == "builtin" else find(inner)

    tell = teller(judge)
    for line in os.fdopen(judge, "rb"):
        try:
            asked = json.loads(line)
            held, do = find(asked["of"]), asked["do"]
            arguments = [decode(item, given) for item in asked["args"]]
            if do == "call":
                value = held(*arguments, **{key: decode(item, given) for key, item in asked["named"].items()})
            elif do == "iter":
                value = list(islice(iter(held), LONGEST))
            else:
                value = ASKED[do](held, *arguments)
            told = {"value": encode(value, keep)}
        except MemoryError:
            told = {"error": ["MemoryError", "", 0]}
        except BaseException as error:
            told = {"error": described(error)}
        tell(told)


def teller(pipe: int) -> Callable[[Any], None]:
    """Writes JSON lines to a pipe."""
    write, dumps = os.write, json.dumps

    def tell(what: Any) -> None:
        line = dumps(what).encode() + b"\n"
        while line:
            line = line[write(pipe, line) :]

    return tell


def described(error: BaseException) -> list[Any]:
    """Type, message, and the line of the program where it was raised."""
    lines = [frame.lineno or 0 for frame in traceback.extract_tb(error.__traceback__) if frame.filename == NAME]
    if isinstance(error, SyntaxError):
        lines = [error.lineno or 0]
    try:
        message = str(error)[:300]
    except BaseException:
        message = ""
    return [type(error).__name__[:80], message, lines[-1] if lines else 0]
