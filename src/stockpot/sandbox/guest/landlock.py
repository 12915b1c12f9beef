"""Landlock: from here on this process may read what is listed, and write, make, remove or execute nothing."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Sequence

_LIBC = ctypes.CDLL(None, use_errno=True)
CREATE, ADD, RESTRICT = 444, 445, 446
"""System call numbers, the same on every architecture."""
WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3


def _call(number: int, *arguments: object) -> int:
    result: int = _LIBC.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def version() -> int:
    """The kernel's version of landlock; 0 where there is none."""
    try:
        return _call(CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except OSError:
        return 0


def ruleset(readable: Sequence[str], writable_files: Sequence[str]) -> int:
    """A descriptor of the rules, for `restrict`. Paths that do not exist are left out."""
    known = version()
    bits = 13 if known < 2 else 14 if known < 3 else 15 if known < 5 else 16
    net, scope = (3 if known >= 4 else 0), (3 if known >= 6 else 0)
    size = 8 if known < 4 else 16 if known < 6 else 24
    asked = struct.pack("<QQQ", (1 << bits) - 1, net, scope)[:size]
    rules = _call(CREATE, ctypes.c_char_p(asked), ctypes.c_size_t(size), ctypes.c_uint32(0))
    for path in (*readable, *writable_files):
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        folder = stat.S_ISDIR(os.fstat(place).st_mode)
        access = READ_FILE | (READ_DIR if folder else 0) | (WRITE_FILE if path in writable_files else 0)
        below = struct.pack("<Qi", access, place)
        _call(ADD, ctypes.c_int(rules), ctypes.c_int(1), ctypes.c_char_p(below), ctypes.c_uint32(0))
        os.close(place)
    return rules


def restrict(rules: int) -> None:
    """Hold this process to the rules, for good. Needs no_new_privs."""
    _call(RESTRICT, ctypes.c_int(rules), ctypes.c_uint32(0))
