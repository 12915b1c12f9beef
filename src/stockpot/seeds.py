"""Random numbers without state: a seed for each purpose follows from the run's."""

from __future__ import annotations

import hashlib


def derive(seed: int, *words: str | int) -> int:
    """A seed of its own for each purpose and step."""
    return int.from_bytes(hashlib.sha256(repr((seed, *words)).encode()).digest()[:7], "big")
