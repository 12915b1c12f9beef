"""The fork servers: warm interpreters, one fork per job, a clock, and a lid on what comes out.

There are two, forked from one another before any job came. The first runs candidates; the second runs tests, and
what it has read (tests, expected values) is never in the memory of a process that a candidate is forked from. For a
job with tests the first hands the second one end of a pair of sockets, by which the tests ask the candidate.

Frames: four bytes of length, then JSON. The servers are not locked themselves (they have to fork); they run no byte
of a candidate's, and what they read from one they hand on as text.
"""

from __future__ import annotations

import builtins
import fcntl
import functools
import gc
import importlib
import json
import os
import platform
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from time import monotonic, process_time
from typing import Any, BinaryIO, NamedTuple

from . import child, judge, landlock, limits, seccomp

WARM = """
array bisect cmath collections copy dataclasses datetime decimal enum fractions functools hashlib heapq io itertools
math numbers operator random re statistics string textwrap time typing
""".split()  # noqa: SIM905
"""Modules that programs like to import: they are read once, here."""
GRACE = 1.0
"""Seconds that tests have beyond the candidate's time, to tell that it ran out."""
RULES = 90
"""Where a child finds the rules of landlock until it has applied them."""


class Locks(NamedTuple):
    """What a child is held by."""

    rules: int
    """Descriptor of landlock's; -1: none."""
    filter: bytes
    """Seccomp's, empty where none is known for this machine."""


def send(pipe: BinaryIO, what: Any) -> None:
    """One frame out."""
    data = json.dumps(what).encode()
    pipe.write(struct.pack("<I", len(data)) + data)
    pipe.flush()


def receive(pipe: BinaryIO) -> Any:
    """One frame in; None at the end."""
    head = pipe.read(4)
    return json.loads(pipe.read(struct.unpack("<I", head)[0])) if len(head) == 4 else None


def main(tests_in: int, tests_out: int) -> None:
    """Serve until standard input closes. The first frame in says how, the first frame out what there is."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open("/dev/null", os.O_RDWR)
    for place in (0, 1):
        os.dup2(null, place)
    setup = receive(incoming)
    for name in WARM:
        importlib.import_module(name)
    from _sitebuiltins import Quitter

    builtins.exit, builtins.quit = Quitter("exit", "Ctrl-D"), Quitter("quit", "Ctrl-D")
    limits.hide()
    known = landlock.version()
    machine = platform.machine()
    locks = Locks(
        landlock.ruleset(setup["readable"], ["/dev/null"]) if known else -1,
        seccomp.template(machine) if machine in seccomp.ARCHITECTURES else b"",
    )
    first, second = socket.socketpair()
    gc.collect()
    gc.freeze()
    gc.disable()
    if os.fork() == 0:
        for file in (incoming, outgoing, first):
            file.close()
        judging(os.fdopen(tests_in, "rb"), os.fdopen(tests_out, "wb"), second, locks)
        os._exit(0)
    second.close()
    os.close(tests_in)
    os.close(tests_out)
    send(outgoing, {"landlock": known, "machine": machine, "python": platform.python_version()})
    while (job := receive(incoming)) is not None:
        send(outgoing, serve(job, first, locks))


def spawn(job: dict[str, Any], ends: list[int], locks: Locks, body: Callable[[], int]) -> int:
    """Fork. The child: its own session, the descriptors given and no others, the locks, then the body; it never
    returns. It dies with the server."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 120
    try:
        os.setsid()
        os.chdir("/")
        kept = [fcntl.fcntl(end, fcntl.F_DUPFD, 100) for end in ends]
        if locks.rules >= 0:
            os.dup2(locks.rules, RULES)
        for place, end in enumerate(kept):
            os.dup2(end, place)
        os.closerange(len(kept), RULES)
        os.closerange(RULES + 1, 4096)
        without = job.get("without", ())
        limits.limit(job["cpu_seconds"], job["memory_mb"])
        limits.give_up_rights(parent)
        if locks.rules >= 0 and "landlock" not in without:
            landlock.restrict(RULES)
        os.closerange(RULES, RULES + 1)
        if locks.filter and "seccomp" not in without:
            seccomp.install(locks.filter, os.getpid())
        code = 121
        code = body()
    finally:
        os._exit(code & 0xFF)


def serve(job: dict[str, Any], wire: socket.socket, locks: Locks) -> dict[str, Any]:
    """A candidate: fork, watch, tell."""
    tested, deadline, began = job["do"] == "tests", monotonic() + job["seconds"], process_time()
    stdin = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    put(stdin, job.pop("stdin", "").encode(errors="replace"))
    os.lseek(stdin, 0, os.SEEK_SET)
    fcntl.fcntl(stdin, 1033, 0xF)  # F_ADD_SEALS: as it is, for good
    null = os.open("/dev/null", os.O_WRONLY)
    output, values = os.pipe(), os.pipe()
    asked, asks = socket.socketpair()
    ends = [stdin, output[1], null, values[1], asked.fileno()]
    pid = spawn(job, ends if tested else ends[:4], locks, lambda: child.run(job, 3, 4))
    if tested:
        socket.send_fds(wire, [b"t"], [asks.fileno()])
    asked.close()
    asks.close()
    for end in (stdin, null, output[1], values[1]):
        os.close(end)
    came, why = watch([output[0], values[0]], deadline, job["most"], wire.fileno() if tested else -1)
    status, used = end_of(pid)
    if tested and not wire.recv(1):
        sys.exit(1)
    for pipe in (output[0], values[0]):
        os.close(pipe)
    out, told = (data.decode(errors="replace") for data in came)
    return {"end": why, "code": status, "stdout": out, "told": told, "cpu_ms": used + own(began)}


def judging(incoming: BinaryIO, outgoing: BinaryIO, wire: socket.socket, locks: Locks) -> None:
    """The server of tests. It is told the tests, then handed the way to the candidate."""
    while (job := receive(incoming)) is not None:
        began = process_time()
        prepared: judge.Prepared | Exception
        try:
            prepared = judge.prepare(job["setup"], tuple(job["tests"]))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            prepared = error
        _, handed, _, _ = socket.recv_fds(wire, 1, 1)
        if not handed:
            return
        verdict = os.pipe()
        null = os.open("/dev/null", os.O_RDWR)
        pid = spawn(
            job, [null, null, null, verdict[1], handed[0]], locks, functools.partial(judge.judge, job, prepared, 3, 4)
        )
        for end in (null, verdict[1], handed[0]):
            os.close(end)
        came, why = watch([verdict[0]], monotonic() + job["seconds"] + GRACE, job["most"], -1)
        status, used = end_of(pid)
        os.close(verdict[0])
        wire.sendall(b"d")
        told = came[0].decode(errors="replace")
        send(outgoing, {"end": why, "code": status, "told": told, "cpu_ms": used + own(began)})


def own(began: float) -> float:
    """Milliseconds that this server itself has worked."""
    return (process_time() - began) * 1000


def put(file: int, data: bytes) -> None:
    """Write all of it."""
    while data:
        data = data[os.write(file, data) :]


def end_of(pid: int) -> tuple[int, float]:
    """Kill what is left of a child; its exit code, and the milliseconds that it had of the processor."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), (used.ru_utime + used.ru_stime) * 1000


def watch(pipes: list[int], deadline: float, most: int, until: int) -> tuple[list[bytes], str]:
    """Read pipes until they close, the time is up, one has said too much, or `until` can be read."""
    waiting = select.poll()
    for pipe in (*pipes, *((until,) if until >= 0 else ())):
        waiting.register(pipe, select.POLLIN)
    opened, parts, why = set(pipes), {pipe: bytearray() for pipe in pipes}, ""
    while opened and not why:
        left = deadline - monotonic()
        ready = waiting.poll(left * 1000) if left > 0 else []
        if not ready:
            why = "timeout"
        for pipe, _ in ready:
            if pipe == until:
                return [bytes(parts[p][:most]) for p in pipes], "judged"
            data = os.read(pipe, 65536)
            parts[pipe] += data
            if not data:
                opened.discard(pipe)
                waiting.unregister(pipe)
            if len(parts[pipe]) > most:
                why = "output"
    return [bytes(parts[pipe][:most]) for pipe in pipes], why
