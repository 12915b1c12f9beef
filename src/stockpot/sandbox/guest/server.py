"""The fork server: one warm interpreter, one fork per job, a clock, and a lid on what comes out.

Frames on standard input and output: four bytes of length, then JSON. The server itself is not locked (it has to
fork); it runs no byte of a candidate's, and what it reads from one it hands on as text.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import platform
import select
import signal
import struct
import sys
from time import monotonic, perf_counter
from typing import Any, BinaryIO

from . import child, landlock

WARM = (
    "array bisect cmath collections copy dataclasses datetime decimal enum fractions functools hashlib heapq io "
    "itertools math numbers operator random re statistics string textwrap time typing"
).split()
"""Modules that programs like to import: they are read once, here."""


def send(pipe: BinaryIO, what: Any) -> None:
    """One frame out."""
    data = json.dumps(what).encode()
    pipe.write(struct.pack("<I", len(data)) + data)
    pipe.flush()


def receive(pipe: BinaryIO) -> Any:
    """One frame in; None at the end."""
    head = pipe.read(4)
    return json.loads(pipe.read(struct.unpack("<I", head)[0])) if len(head) == 4 else None


def main() -> None:
    """Serve until standard input closes. The first frame in says how, the first frame out what holds."""
    import builtins

    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    setup = receive(incoming)
    for name in WARM:
        importlib.import_module(name)
    from _sitebuiltins import Quitter

    builtins.exit, builtins.quit = Quitter("exit", "Ctrl-D"), Quitter("quit", "Ctrl-D")
    try:
        known = 0 if "landlock" in setup["without"] else landlock.version()
        rules = landlock.ruleset(setup["readable"], ["/dev/null"]) if known else -1
    except OSError:
        known, rules = 0, -1
    machine = platform.machine()
    send(outgoing, {"landlock": known, "machine": machine, "python": platform.python_version()})
    gc.collect()
    gc.freeze()
    gc.disable()
    while (job := receive(incoming)) is not None:
        send(outgoing, serve(job, rules, machine, setup["without"]))


def serve(job: dict[str, Any], rules: int, machine: str, without: list[str]) -> dict[str, Any]:
    """Fork, watch, tell."""
    stdin = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(stdin, "wb", closefd=False) as file:
        file.write(job.pop("stdin").encode())
    os.lseek(stdin, 0, os.SEEK_SET)
    fcntl.fcntl(stdin, 1033, 0xF)  # F_ADD_SEALS: as it is, for good
    output, values, nonces = os.pipe(), os.pipe(), os.pipe()
    began, parent, seconds, most = perf_counter(), os.getpid(), job["seconds"], job["most"]
    pid = os.fork()
    if pid == 0:
        begin(job, (stdin, output[1], values[1], nonces[0]), rules, machine, parent, without)
    soft = [os.urandom(16) for step in job["steps"] if step["do"] == "soft"][:2048]
    os.write(nonces[1], b"".join(soft))  # made after the fork: not in the child's memory until it reads them
    for end in (stdin, output[1], values[1], nonces[0]):
        os.close(end)
    came, why = watch({output[0]: b"", values[0]: b""}, monotonic() + seconds, most)
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    for end in (output[0], values[0], nonces[1]):
        os.close(end)
    out, told = came[output[0]].decode(errors="replace"), came[values[0]].decode(errors="replace")
    return {
        "end": why,
        "code": os.waitstatus_to_exitcode(status),
        "stdout": out,
        "told": told,
        "nonces": [nonce.hex() for nonce in soft],
        "ms": (perf_counter() - began) * 1000,
    }


def watch(came: dict[int, bytes], deadline: float, most: int) -> tuple[dict[int, bytes], str]:
    """Read both pipes until they close, the time is up, or one has said too much."""
    waiting = select.poll()
    for pipe in came:
        waiting.register(pipe, select.POLLIN)
    opened, parts = set(came), {pipe: bytearray() for pipe in came}
    why = ""
    while opened and not why:
        left = deadline - monotonic()
        ready = waiting.poll(max(left, 0) * 1000) if left > 0 else []
        if not ready:
            why = "timeout"
        for pipe, _ in ready:
            data = os.read(pipe, 65536)
            parts[pipe] += data
            if not data:
                opened.discard(pipe)
                waiting.unregister(pipe)
            if len(parts[pipe]) > most:
                why = "output"
    return {pipe: bytes(data[:most]) for pipe, data in parts.items()}, why


def begin(
    job: dict[str, Any], ends: tuple[int, int, int, int], rules: int, machine: str, parent: int, without: list[str]
) -> None:
    """The child: its own session, its own four descriptors, the locks, then the program. Never returns."""
    code = 120
    try:
        os.setsid()
        os.chdir("/")
        null = os.open("/dev/null", os.O_WRONLY)
        kept = [fcntl.fcntl(end, fcntl.F_DUPFD, 100) for end in (ends[0], ends[1], null, *ends[2:])]
        if rules >= 0:
            kept.append(fcntl.fcntl(rules, fcntl.F_DUPFD, 100))
        for place, end in enumerate(kept):
            os.dup2(end, place)
        os.closerange(len(kept), 4096)
        child.lock(job, 5 if rules >= 0 else -1, machine, parent, without)
        code = 121
        code = child.run(job, values=3, nonces=4)
    finally:
        os._exit(code & 0xFF)
