"""How well the sandbox holds here: found by attacking each layer, with the others off, when a server starts."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from dataclasses import dataclass, field
from typing import Any

from stockpot.sandbox.worker import GUEST, INSIDE, Lost, Worker

ATTACKS = """
import ctypes, json, os, resource, socket, sys
outside, listed, host, port, name = TOLD
libc = ctypes.CDLL(None, use_errno=True)
def read_outside(): return b"canary" in open(outside + "/canary", "rb").read()
def read_unlisted(): return len(open(listed, "rb").read()) > 0
def write():
    for path in (outside + "/made", "/tmp/stockpot-made", "/dev/shm/stockpot-made", "made"):
        try: os.close(os.open(path, os.O_CREAT | os.O_WRONLY)); os.unlink(path); return True
        except OSError: pass
def tcp(): socket.create_connection(("127.0.0.1", port), 0.2).close(); return True
def udp(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port)); return True
def unix(): socket.socket(socket.AF_UNIX).connect("\\0" + name); return True
def kill():
    try: os.kill(host, 0)
    except ProcessLookupError: return False
    return True
def kill_server(): os.kill(os.getppid(), 0); return True
def fork():
    if os.fork() == 0: os._exit(0)
    return True
def namespace(): return libc.unshare(0x10000000) == 0
def fill(): return os.write(os.memfd_create("x"), b"x") == 1
def environ(): return any("STOCKPOT" in part for part in (*os.environ, *os.environ.values()))
def memory(): return len(bytearray(1 << 30)) > 0
held = []
for attack in NAMES:
    try: through = globals()[attack]()
    except (OSError, MemoryError): through = False
    if not through: held.append(attack)
print(json.dumps(held))
"""
NAMES = """
read_outside read_unlisted write tcp udp unix kill kill_server fork namespace fill environ memory
""".split()  # noqa: SIM905
ALL = frozenset(NAMES)
LAYERS = {"landlock": ("seccomp",), "seccomp": ("landlock",), "namespaces": ("landlock", "seccomp"), "all": ()}
"""Layer -> those that are off while it is attacked. Namespaces and limits are always on where there are any."""


@dataclass(frozen=True)
class Level:
    """What holds candidates here."""

    namespaces: bool
    landlock: int
    """The kernel's version of it; 0: none."""
    seccomp: bool
    held: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False)
    """Layer -> the attacks tried at the start that it held alone (limits and namespaces are on beneath each)."""
    through: tuple[str, ...] = ()
    """Attacks tried at the start that no layer held."""

    @property
    def name(self) -> str:
        """full; locked (no namespaces); walled (no landlock); weak: something got through, or a lock is missing."""
        if self.through or not self.seccomp or not (self.namespaces or self.landlock):
            return "weak"
        return "full" if self.namespaces and self.landlock else "locked" if self.landlock else "walled"

    def __str__(self) -> str:
        layers = [*(["namespaces"] if self.namespaces else []), *([f"landlock {self.landlock}"] * (self.landlock > 0))]
        layers += [*(["seccomp"] if self.seccomp else []), "limits"]
        return f"{self.name}: {' + '.join(layers)}" + (
            f"; gets through: {', '.join(self.through)}" * bool(self.through)
        )

    def as_dict(self) -> dict[str, Any]:
        """For a run record."""
        return {
            "level": self.name,
            "namespaces": self.namespaces,
            "landlock": self.landlock,
            "seccomp": self.seccomp,
            "through": list(self.through),
        }


def probe(worker: Worker, namespaces: bool) -> Level:
    """Attack a fresh server, layer by layer."""
    with (
        tempfile.TemporaryDirectory(prefix="stockpot-") as outside,
        socket.socket() as tcp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        with open(f"{outside}/canary", "w") as file:
            file.write("canary")
        tcp.bind(("127.0.0.1", 0))
        tcp.listen(64)
        name = f"stockpot-{os.getpid()}-{os.urandom(8).hex()}"
        unix.bind("\0" + name)
        unix.listen(64)
        listed = f"{INSIDE}/guest/server.py" if namespaces else str(GUEST / "server.py")
        told = (outside, listed, os.getpid(), tcp.getsockname()[1], name)
        held = {layer: _attack(worker, told, without) for layer, without in LAYERS.items()}
    return Level(
        namespaces=namespaces and {"read_outside", "kill", "tcp"} <= held["namespaces"],
        landlock=int(worker.about["landlock"]) if {"read_outside", "read_unlisted", "write"} <= held["landlock"] else 0,
        seccomp={"udp", "unix", "fork", "kill_server", "namespace", "fill"} <= held["seccomp"],
        held={layer: tuple(name for name in NAMES if name in names) for layer, names in held.items()},
        through=tuple(
            name for name in NAMES if name not in held["all"] and (name != "read_unlisted" or not namespaces)
        ),
    )


def _attack(worker: Worker, told: tuple[Any, ...], without: tuple[str, ...]) -> frozenset[str]:
    job = {
        "do": "program",
        "code": f"TOLD = {told!r}\nNAMES = {NAMES!r}\n{ATTACKS}",
        "seconds": 10.0,
        "cpu_seconds": 5.0,
        "memory_mb": 512,
        "most": 65536,
        "without": list(without),
    }
    answer, _ = worker.ask(job)
    if answer["code"] == 120:  # a layer that is asked for cannot be put on: nothing is held
        return frozenset()
    try:
        return frozenset(json.loads(answer["stdout"])) & ALL
    except ValueError as error:
        raise Lost(f"the probe failed: {answer['told'][:300] or answer['end'] or answer['code']}") from error
