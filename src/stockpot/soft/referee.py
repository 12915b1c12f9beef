"""The reference's log-probs: read once per response, then found in the history."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from stockpot.config import Config
from stockpot.engines.base import Engine
from stockpot.history import History, Score, fingerprint
from stockpot.prefixes import OutsideRule, StoredRule
from stockpot.types import Rollout, floats


class Referee:
    """Asks the engine's reference about what the history does not know yet."""

    def __init__(self, config: Config, engine: Engine) -> None:
        self.config, self.engine = config, engine
        self._fresh: dict[bytes, Score] = {}
        self.found = 0
        """Responses of the last call whose log-probs were known."""

    @property
    def keeps(self) -> bool:
        """Whether scores are kept: where a response may come again while the reference is the same."""
        again = isinstance(self.config.prefixes, (StoredRule, OutsideRule)) and self.config.kl.reference != "ema"
        return self.config.algorithm.needs_reference or again

    def score(self, rollouts: Sequence[Rollout], now: int, history: History) -> tuple[Tensor, ...]:
        """What the reference gives each response's tokens, as float32."""
        name = self.config.kl.name(now)
        known = self.known(rollouts, now, history)
        responses = [fingerprint(rollout) for rollout in rollouts]
        self.found = sum(response in known for response in responses)
        missing = {r: rollout for r, rollout in zip(responses, rollouts, strict=True) if r not in known}
        read = self.engine.score(list(missing.values()), "reference") if missing else []
        for response, log_probs in zip(missing, read, strict=True):
            known[response] = floats(log_probs.tolist())
            self._fresh[response] = Score(response, name, known[response])
        return tuple(torch.tensor(known[response], dtype=torch.float32) for response in responses)

    def known(self, rollouts: Sequence[Rollout], now: int, history: History) -> dict[bytes, array[float]]:
        """What is known of these responses by the reference of step `now`, by fingerprint."""
        stored = history.scores(rollouts, self.config.kl.name(now)) if self.keeps else {}
        return stored | {response: score.log_probs for response, score in self._fresh.items()}

    def kept(self) -> list[Score]:
        """The scores made since the last call, to be stored with the step."""
        fresh, self._fresh = self._fresh, {}
        return list(fresh.values()) if self.keeps else []
