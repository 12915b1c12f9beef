"""Runs of the real command that die at a chosen moment. Reads [[moment, limit, words], ...] from stdin, one run each.

A moment is `module:name:n`: SIGKILL strikes just before the n-th call of that function. Everything is imported once
and each run is a fork, so a death costs a run and not also the seconds that imports take. `limit` is the largest
file in bytes that the run may write: a disk that is full for one file.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
from typing import Any

from stockpot import cli


def arm(moment: str) -> None:
    """Put the trap into place."""
    module, names, nth = moment.split(":")
    *path, name = names.split(".")
    owner: Any = importlib.import_module(module)
    for step in path:
        owner = getattr(owner, step)
    real, left = getattr(owner, name), [int(nth)]

    def trapped(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    setattr(owner, name, trapped)


def live(moment: str, limit: int, words: list[str]) -> int:
    """One run in a process of its own; its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        if moment:
            arm(moment)
        code = cli.main(words)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("--- end of a life", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    importlib.import_module("stockpot.report.summary")
    importlib.import_module("stockpot.train")
    importlib.import_module("transformers").AutoModelForCausalLM  # noqa: B018 - imported lazily
    codes = [live(*life) for life in json.load(sys.stdin)]
    print("codes", json.dumps(codes))
