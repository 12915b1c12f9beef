"""Who of a group takes what: each learner is told all of the work, and finds its own part of it."""

from __future__ import annotations

from collections.abc import Sequence


def shares(sizes: Sequence[int], world: int) -> list[list[int]]:
    """Indices for each learner, so that sums of sizes come close: the largest first, to whoever has least so far.

    >>> shares([5, 1, 4, 2], 2)
    [[0, 1], [2, 3]]
    """
    found: list[list[int]] = [[] for _ in range(world)]
    loads = [0] * world
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = loads.index(min(loads))
        found[least].append(i)
        loads[least] += sizes[i]
    return [sorted(part) for part in found]
