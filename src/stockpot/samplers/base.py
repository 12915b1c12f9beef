"""What a sampler is: one method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from stockpot.types import Request, Rollout


class Sampler(ABC):
    """Continues prompts and prefixes.

    The contract that tests hold every sampler to: log-probs are *processed* (of the distribution that was really
    sampled from); prefix tokens are only prefilled, never decoded again, and keep their authors; rollouts come back
    in the order of the requests; the same seed gives the same tokens, in whatever batch a request stands.
    """

    @abstractmethod
    def continue_(self, requests: Sequence[Request], seed: int) -> list[Rollout]:
        """One rollout per request: its prefix spans, then one span by the current policy."""
