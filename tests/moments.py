"""Things that happen while a sampler decodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def at_tokens(actor: Any, moments: dict[int, Callable[[], object]]) -> None:
    """Have something happen after so many tokens, counted over all stretches."""
    real, steps = actor.sampler.stretch, iter(range(1, 10**6))

    def stretch(requests: Any, seed: Any, until: Any = None, again: bool = False) -> Any:
        def watched(flight: Any) -> bool:
            moments.get(next(steps), lambda: None)()
            return until is not None and until(flight)

        return real(requests, seed, watched, again)

    actor.sampler.stretch = stretch
