"""A seccomp filter that lists what is allowed, made by hand as BPF for x86-64 and aarch64.

An allow list, since a deny list has to learn of every new system call (io_uring was one once) and this one need not:
what a pure Python program asks the kernel for is short and changes little. What is not listed gets EPERM, and ENOSYS
from 424 on, where numbers are young and the C library knows how to do without.
"""

from __future__ import annotations

import ctypes
import os
import struct

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Machine -> (what the kernel calls it in a filter, column of the table below)."""

CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226),
    "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66),
    "access": (21, None), "pipe": (22, None), "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216),
    "mincore": (27, 232), "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None), "pause": (34, None),
    "nanosleep": (35, 101), "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103),
    "getpid": (39, 172), "exit": (60, 93), "uname": (63, 160), "fsync": (74, 82), "getdents": (78, None),
    "getcwd": (79, 17), "chdir": (80, 49), "readlink": (89, None), "umask": (95, 166), "gettimeofday": (96, 169),
    "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174),
    "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173), "getpgrp": (111, None),
    "getpgid": (121, 155), "getsid": (124, 156), "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120), "arch_prctl": (158, None), "gettid": (186, 178), "time": (201, None),
    "futex": (202, 98), "sched_getaffinity": (204, 123), "getdents64": (217, 61), "set_tid_address": (218, 96),
    "restart_syscall": (219, 128), "fadvise64": (221, 223), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "newfstatat": (262, 79),
    "readlinkat": (267, 78), "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73),
    "set_robust_list": (273, 99), "dup3": (292, 24), "pipe2": (293, 59), "getcpu": (309, 168),
    "getrandom": (318, 278), "statx": (332, 291), "rseq": (334, 293), "close_range": (436, 436),
    "faccessat2": (439, 439),
}  # fmt: skip
"""Allowed whatever their arguments. Files are landlock's and the mount namespace's to guard, memory the limits'."""

GUARDED: dict[str, tuple[int | None, int | None]] = {
    "open": (2, None), "openat": (257, 56),
    "ioctl": (16, 29), "clone": (56, 220), "kill": (62, 129), "fcntl": (72, 25), "tgkill": (234, 131),
    "prlimit64": (302, 261),
}  # fmt: skip
"""Allowed for some arguments, see `_guards`."""

YOUNG = 424
"""From this number on all architectures count alike."""
EPERM, ENOSYS = 1, 38
ACCESS, TRUNCATE = 3, 0x200
"""open(2): to be written; to be emptied. Together landlock sees to them; emptied but not written it did not always."""
THREAD, NAMESPACES = 0x00010000, 0x7E020080
"""clone(2): a thread of this process; a new namespace of any kind."""
DUPLICATE_AND_FLAGS = (0, 1, 2, 3, 4, 1030)
"""fcntl(2): duplicate, get and set flags; no locks, leases, pipe sizes or seals."""
TERMINAL_AND_BLOCKING = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""ioctl(2): is it a terminal, how wide, how much to read, non-blocking, close on exec."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16

Line = tuple[int, int, int, int]
"""One BPF instruction: code, steps to skip if true, if false, operand."""


def _argument(index: int, high: bool = False) -> Line:
    """Load half of an argument; both machines are little-endian."""
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index + 4 * high)


def _one_of(values: tuple[int, ...]) -> list[Line]:
    checks = [line for value in values for line in ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW))]
    return [*checks, (_RETURN, 0, 0, _ERROR | EPERM)]


def _guards(pid: int) -> dict[str, list[Line]]:
    """What a guarded call is asked. The number is loaded no more afterwards, so each ends with a verdict."""
    opening = [
        (_ANY_BIT, 1, 0, ACCESS),
        (_ANY_BIT, 1, 0, TRUNCATE),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERROR | EPERM),
    ]
    return {
        "open": [_argument(1), *opening],
        "openat": [_argument(2), *opening],
        "ioctl": [_argument(1), *_one_of(TERMINAL_AND_BLOCKING)],
        "fcntl": [_argument(1), *_one_of(DUPLICATE_AND_FLAGS)],
        "kill": [_argument(0), *_one_of((pid,))],
        "tgkill": [_argument(0), *_one_of((pid,))],
        "clone": [
            _argument(0),
            (_ANY_BIT, 0, 2, THREAD),
            (_ANY_BIT, 1, 0, NAMESPACES),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _ERROR | EPERM),
        ],
        "prlimit64": [  # reading limits only: no new ones
            _argument(2),
            (_EQUAL, 0, 3, 0),
            _argument(2, high=True),
            (_EQUAL, 0, 1, 0),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _ERROR | EPERM),
        ],
    }


def program(machine: str, pid: int) -> list[Line]:
    """The filter for the process `pid`: it may signal itself, and no one else."""
    if machine not in ARCHITECTURES:
        raise OSError(ENOSYS, f"no system call numbers are known for {machine}")
    name, column = ARCHITECTURES[machine]
    lines: list[Line] = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 1, 0, name),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for numbers in CALLS.values():
        number = numbers[column]
        if number is not None:
            lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for call, body in _guards(pid).items():
        number = GUARDED[call][column]
        if number is not None:
            lines += [(_EQUAL, 0, len(body), number), *body]
    lines += [(_AT_LEAST, 0, 1, YOUNG), (_RETURN, 0, 0, _ERROR | ENOSYS), (_RETURN, 0, 0, _ERROR | EPERM)]
    return lines


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


_LIBC = ctypes.CDLL(None, use_errno=True)
_SOMEONE = 0x3ABCDEF1
"""Stands for the process id in a filter that is not yet anyone's; larger than any."""


def template(machine: str) -> bytes:
    """The filter as the kernel reads it, for a process that is not known yet."""
    return b"".join(struct.pack("<HBBI", *line) for line in program(machine, _SOMEONE))


def install(code: bytes, pid: int) -> None:
    """Put the filter on this process, for good. Needs no_new_privs."""
    code = code.replace(struct.pack("<I", _SOMEONE), struct.pack("<I", pid))
    held = ctypes.create_string_buffer(code, len(code))
    asked = _Program(len(code) // 8, ctypes.addressof(held))
    if _LIBC.prctl(22, 2, ctypes.byref(asked), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
