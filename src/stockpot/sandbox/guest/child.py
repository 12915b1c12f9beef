"""One program in a process of its own: lock the door, run it, tell the values that were asked for.

Whatever the program does to this interpreter, all it can reach is two pipes: its standard output and the one for
values. A forged value is compared like any other, and what it is compared with is not here.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any

from . import landlock, limits, seccomp
from .plain import decode, encode

NAME = "answer.py"
OUT_OF_MEMORY = b'{"error": ["MemoryError", "", 0]}\n'


def lock(job: dict[str, Any], rules: int, machine: str, parent: int, without: list[str]) -> None:
    """Give up, in this order: limits, rights, files, system calls. A layer that fails ends the process."""
    limits.limit(job["seconds"], job["memory_mb"])
    limits.give_up_rights(parent)
    if "landlock" not in without and rules >= 0:
        landlock.restrict(rules)
    if rules >= 0:
        os.close(rules)
    if "seccomp" not in without:
        seccomp.install(seccomp.program(machine, os.getpid()))


def run(job: dict[str, Any], values: int, nonces: int) -> int:
    """Run the program and its steps; the exit code of the process."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="replace")
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", errors="backslashreplace")
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", errors="backslashreplace")
    sys.argv = [NAME]
    random.seed(0)
    gc.enable()
    name = "__main__" if job["script"] else "answer"
    module = types.ModuleType(name)
    sys.modules[name] = module
    tell = teller(values)
    steps, program = job["steps"], job["code"]
    job.clear()
    try:
        for source in program:
            exec(compile(source, NAME, "exec"), module.__dict__)
        if steps:
            take(steps, dict(module.__dict__), tell, nonces)
        return finish(0)
    except SystemExit as left:
        if steps or left.code not in (None, 0):
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


def take(steps: list[dict[str, Any]], space: dict[str, Any], tell: Callable[[Any], None], nonces: int) -> None:
    """The steps in order; one that raises is told and does not end the others, save where they build on it."""
    space["_plain_"] = lambda value: decode(encode(value))
    for number, step in enumerate(steps):
        try:
            if step["do"] == "call":
                function = eval(compile(step["source"], "test", "eval"), space)
                told = {"value": encode(function(*map(decode, step["args"])))}
            elif step["do"] == "eval":
                told = {"value": encode(eval(compile(step["source"], "test", "eval"), space))}
            else:
                exec(compile(step["source"], "test", "exec"), space)
                told = {"nonce": os.read(nonces, 16).hex()} if step["do"] == "soft" else {"value": None}
        except MemoryError:
            told = {"error": ["MemoryError", "", 0]}
        except BaseException as error:
            told = {"error": described(error)}
        tell({"step": number, **told})


def teller(values: int) -> Callable[[Any], None]:
    """Writes JSON lines to the pipe for values."""
    write, dumps = os.write, json.dumps

    def tell(what: Any) -> None:
        line = dumps(what).encode() + b"\n"
        while line:
            line = line[write(values, line) :]

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
