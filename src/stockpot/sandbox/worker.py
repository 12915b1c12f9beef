"""One pair of fork servers, seen from outside: start, ask, kill."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

GUEST = Path(__file__).parent / "guest"
START = 30.0
"""Seconds that a server may take to start."""
PATIENCE = 5.0
"""Seconds that a server may take beyond a job's own."""
INSIDE = "/stockpot"
"""Where the guest's files stand inside the namespaces."""
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo")


class Lost(Exception):
    """The server has ended, or says nothing."""


def interpreter() -> tuple[str, str]:
    """The interpreter itself, outside any virtual environment, and the folder that holds its library."""
    program = getattr(sys, "_base_executable", None) or sys.executable
    return os.path.realpath(program), os.path.realpath(sys.base_prefix)


def readable() -> list[str]:
    """What candidates may read: Python's library, shared libraries, sources of nothing."""
    library = os.path.realpath(os.path.dirname(os.__file__))
    return [*LIBRARIES, library, os.path.join(interpreter()[1], "lib"), "/dev/urandom", "/dev/zero"]


def invocation(namespaces: bool) -> list[str]:
    """What starts the servers; their two further descriptors follow."""
    program, prefix = interpreter()
    folder = INSIDE if namespaces else str(GUEST.parent)
    code = f"import sys; sys.path.append({folder!r}); from guest.server import main; main(*map(int, sys.argv[1:]))"
    python = [program, "-I", "-S", "-B", "-X", "utf8", "-c", code]
    if not namespaces:
        return python
    bubblewrap = shutil.which("bwrap")
    if not bubblewrap:
        raise Lost("bubblewrap (bwrap) is not installed")
    wrap = [
        bubblewrap,
        "--unshare-user",
        "--unshare-all",
        "--disable-userns",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
    ]
    wrap += ["--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox"]
    for path in ("/usr", "/lib", "/lib64", "/bin"):
        if os.path.islink(path):
            wrap += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            wrap += ["--ro-bind", path, path]
    for path in dict.fromkeys((prefix, os.path.dirname(os.path.dirname(program)))):
        if not path.startswith("/usr/") and path not in ("/", "/usr"):
            wrap += ["--ro-bind", path, path]
    wrap += ["--ro-bind", str(GUEST), f"{INSIDE}/guest"]
    for device in ("/dev/null", "/dev/urandom", "/dev/zero"):
        wrap += ["--dev-bind", device, device]
    return [*wrap, "--remount-ro", "/", "--chdir", "/", "--", *python]


class Worker:
    """A pair of fork servers. Not for two threads at once, and it ends with the thread that made it."""

    def __init__(self, namespaces: bool, listed: Sequence[str]) -> None:
        self._closed = False
        command = invocation(namespaces)
        theirs_in, self._tests = os.pipe()
        self._verdicts, theirs_out = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*command, str(theirs_in), str(theirs_out)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={},
                cwd="/",
                pass_fds=(theirs_in, theirs_out),
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._tests)
            os.close(self._verdicts)
            raise Lost(str(error)) from error
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        try:
            self._send(self._in, {"readable": list(listed)})
            self.about: dict[str, Any] = self._receive(self._out, monotonic() + START)
        except Lost as error:
            said = self.close().strip().splitlines()
            raise Lost(said[-1][:300] if said else str(error)) from error

    def ask(
        self, candidate: dict[str, Any], tests: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """One job; what the server of candidates tells, and that of tests."""
        until = monotonic() + candidate["seconds"] + PATIENCE
        if tests is not None:
            self._send(self._tests, tests)
        self._send(self._in, candidate)
        verdict = None if tests is None else self._receive(self._verdicts, until)
        return self._receive(self._out, until), verdict

    @property
    def pid(self) -> int:
        """The process started here: bwrap, or the server itself."""
        return self._process.pid

    def close(self) -> str:
        """Kill it and all that it started; what it said on standard error."""
        process = self._process
        if self._closed:
            return ""
        self._closed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        said = b""
        if process.stderr and process.poll() is None:
            process.wait()
        if process.stderr:
            os.set_blocking(process.stderr.fileno(), False)
            said = process.stderr.read() or b""
        for file in (process.stdin, process.stdout, process.stderr):
            if file:
                with contextlib.suppress(OSError):
                    file.close()
        for end in (self._tests, self._verdicts):
            with contextlib.suppress(OSError):
                os.close(end)
        return said.decode(errors="replace")

    def _send(self, pipe: int, what: Any) -> None:
        data = json.dumps(what).encode()
        data = struct.pack("<I", len(data)) + data
        try:
            while data:
                data = data[os.write(pipe, data) :]
        except OSError as error:
            raise Lost("the server has ended") from error

    def _receive(self, pipe: int, until: float) -> Any:
        size = struct.unpack("<I", self._exactly(pipe, 4, until))[0]
        return json.loads(self._exactly(pipe, size, until))

    def _exactly(self, pipe: int, size: int, until: float) -> bytes:
        data = bytearray()
        waiting = select.poll()
        waiting.register(pipe, select.POLLIN)
        while len(data) < size:
            if not waiting.poll(max(until - monotonic(), 0) * 1000):
                raise Lost("the server says nothing")
            part = os.read(pipe, size - len(data))
            if not part:
                raise Lost("the server has ended")
            data += part
        return bytes(data)
