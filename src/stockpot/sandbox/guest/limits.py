"""Limits of one process, and the rights that it gives up."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import struct

FILES, PROCESSES = 64, 256
_LIBC = ctypes.CDLL(None, use_errno=True)


def limit(cpu_seconds: float, memory_mb: int) -> None:
    """Time, memory, descriptors; no byte into any file, no core dump. Processes: root is not held to that one."""
    cpu, memory = math.ceil(cpu_seconds), memory_mb * 2**20
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, PROCESSES),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def hide() -> None:
    """Others of the same user may not trace this process or read its memory; children inherit that."""
    if _LIBC.prctl(4, 0, 0, 0, 0):  # PR_SET_DUMPABLE
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def give_up_rights(parent: int) -> None:
    """No capabilities, no way to new ones, and death with the server."""
    header, none = struct.pack("<Ii", 0x20080522, 0), bytes(24)
    for failed in (
        _LIBC.prctl(1, int(signal.SIGKILL), 0, 0, 0),  # PR_SET_PDEATHSIG
        _LIBC.prctl(38, 1, 0, 0, 0),  # PR_SET_NO_NEW_PRIVS
        _LIBC.capset(header, none),
    ):
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if os.getppid() != parent:
        os._exit(1)
