"""What a device can do at most: by its maker's data sheet, or, of the processor that this runs on, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """Peaks of one device; shares of them that work reaches are assumptions of the plan."""

    memory: float
    """GB (10^9 bytes); 0 for this machine's."""
    half: float
    """10^12 operations a second in bfloat16, without sparsity."""
    single: float
    """The same in float32, without tensor cores, as torch multiplies by default."""
    bandwidth: float
    """GB a second between its memory and its processors."""
    link: float
    """GB a second that it sends, while it receives as many, to the devices of its node."""
    host: float
    """GB a second between the machine's memory and its own."""
    network: float = 50
    """GB a second to other nodes: a port of 400 Gbit/s for each device."""
    node: int = 8
    """Devices of a node."""

    def line(self, devices: int) -> float:
        """Bytes a second of the slowest link among so many devices."""
        return 1e9 * (self.link if devices <= self.node else min(self.link, self.network))


SHEETS = {
    "a100": Device(memory=80, half=312, single=19.5, bandwidth=2039, link=300, host=32),
    "a100-40": Device(memory=40, half=312, single=19.5, bandwidth=1555, link=300, host=32),
    "h100": Device(memory=80, half=989, single=67, bandwidth=3350, link=450, host=64),
    "h200": Device(memory=141, half=989, single=67, bandwidth=4800, link=450, host=64),
    "b200": Device(memory=180, half=2250, single=75, bandwidth=7700, link=900, host=64),
    "l40s": Device(memory=48, half=362, single=91.6, bandwidth=864, link=32, host=32),
}
"""SXM models, but for the l40s, whose devices meet on PCIe. One direction of each link."""


def here(threads: int) -> Device:
    """This machine's processor with so many threads, by short probes: a product of matrices, and a copy of memory.

    What two processes send each other goes by way of memory too, written once and read once.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            single, half = (_product(kind) for kind in (torch.float32, torch.bfloat16))
            copied = _copied()
    finally:
        torch.set_num_threads(before)
    return Device(0, half, single, copied, copied / 2, copied, copied / 2)


def _product(kind: torch.dtype, size: int = 768) -> float:
    """10^12 operations a second of a product of square matrices."""
    left, right, out = (torch.ones(size, size, dtype=kind) for _ in range(3))
    return 2 * size**3 / _best(lambda: torch.mm(left, right, out=out)) / 1e12


def _copied(size: int = 2**26) -> float:
    """GB a second of a copy that no cache can hold, read and written counted both."""
    source, target = torch.ones(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
    return 2 * size / _best(lambda: target.copy_(source)) / 1e9


def _best(work: Callable[[], object], rounds: int = 7) -> float:
    """Least seconds of some rounds, the first left out, by the processor's clock: the wall's counts others' work."""
    work()
    found = []
    for _ in range(rounds):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return max(min(found), 1e-9) / torch.get_num_threads()
