"""Ray workers that start in a tenth of a second: forks of a process that has imported everything.

A worker spends its first seconds on importing torch and transformers. Tests that kill workers by the dozen cannot
afford that, so Ray is told to run this file in place of python. Run so, it asks the warm process for a fork
that becomes the worker, and waits for its end. The worker is a process like any other: it has its own number, which
Ray learns from the worker itself, and dies of a SIGKILL.

    python warm.py serve SOCKET        the warm process
    python warm.py WORKER ARGUMENTS    what Ray runs
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PLACE = "STOCKPOT_WARM"
"""The environment variable that holds the socket's path."""


def join(address: str | None, launcher: str, **options: Any) -> Any:
    """`ray.init` with workers that are forks."""
    import ray

    return ray.init(
        address, include_dashboard=None if address else False, log_to_driver=False, logging_level="CRITICAL",
        namespace="stockpot", runtime_env={"py_executable": launcher}, **options,
    )  # fmt: skip


@contextlib.contextmanager
def cluster() -> Iterator[tuple[str, str]]:
    """A Ray of the test's own, joined: its address, and the launcher of its workers."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    with tempfile.TemporaryDirectory(prefix="warm-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        place, launcher = f"{folder}/socket", Path(folder, "python")
        launcher.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {__file__} "$@"\n')
        launcher.chmod(0o755)
        os.environ[PLACE] = place
        with subprocess.Popen(
            [sys.executable, __file__, "serve", place], stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        ) as server:  # fmt: skip
            try:
                assert server.stdout and server.stdout.readline() == "warm\n"
                context = join(None, str(launcher), num_cpus=32, object_store_memory=200 * 2**20, _temp_dir=folder)
                yield context.address_info["address"], str(launcher)
            finally:
                ray.shutdown()
                server.kill()


def ask(words: list[str]) -> int:
    """Have the warm process become this worker; wait until it has ended."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(os.environ[PLACE])
        told = {"words": words, "environment": dict(os.environ), "folder": os.getcwd()}
        socket.send_fds(line, [json.dumps(told).encode() + b"\n"], [1, 2])
        child = json.loads(line.recv(100))

        def pass_on(number: int, _: object) -> None:
            os.kill(child, number)

        signal.signal(signal.SIGTERM, pass_on)
        line.recv(1)  # the fork holds the other end until it dies
    return 0


def serve(path: str) -> None:
    """Import, then fork for whoever asks."""
    import importlib

    for name in ("stockpot.engines.local", "stockpot.tasks", "transformers.models.qwen3.modeling_qwen3"):
        importlib.import_module(name)
    importlib.import_module("transformers").AutoModelForCausalLM  # noqa: B018 - imported lazily
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen(64)
        print("warm", flush=True)
        while True:
            line, _ = door.accept()
            data, fds, _, _ = socket.recv_fds(line, 1 << 20, 2)
            while not data.endswith(b"\n"):
                data += line.recv(1 << 20)
            child = os.fork()
            if child == 0:
                door.close()
                become(json.loads(data), fds)
            line.sendall(json.dumps(child).encode())
            line.close()
            for fd in fds:
                os.close(fd)


def become(told: dict[str, object], fds: list[int]) -> None:
    """Be the worker that Ray asked for."""
    import runpy

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(fds[0], 1)
    os.dup2(fds[1], 2)
    os.environ.clear()
    os.environ.update(told["environment"])  # type: ignore[call-overload]
    os.chdir(str(told["folder"]))
    os.setpgid(0, 0)
    sys.argv = list(told["words"])  # type: ignore[call-overload]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit:
        pass
    finally:
        os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        words = sys.argv[1:]
        while words and words[0].startswith("-"):  # options of python
            words.pop(0)
        sys.exit(ask(words))
