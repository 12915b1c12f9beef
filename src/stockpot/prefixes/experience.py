"""ExGRPO's choice of experience: which prompts are worth asking again, and which old success goes with them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from stockpot.prefixes.base import StoredRule
from stockpot.types import Candidate, Rollout, Span, StockpotError


@dataclass(frozen=True)
class Experience(StoredRule):
    """Part of a step's prompts are old ones, each with its most confident old success beside fresh rollouts.

    ExGRPO (arXiv 2510.02245): prompts are drawn by how often they were solved when last asked, those half solved most;
    prompts that were solved by every rollout retire; of a prompt's own successes the one of least entropy is replayed
    whole. Goes with `algorithm=ExGRPO()`, whose shaped ratio is made for it.

    Differs from the paper: entropy is the mean surprise -log p of its tokens to their author when it wrote them,
    stored, instead of the live policy's; the width of the draw and the warm-up are ours; the prompts that make room
    for old ones come back with the dataset's next round.
    """

    share: float = 0.5
    """Share of a step's prompts that are asked again for their experience."""
    warmup: int = 0
    """Steps before the first replay."""
    min_age: int = 1
    """Steps that must lie between a replayed rollout and the live policy."""
    max_age: int = 1000
    """Steps that may lie between them."""
    middle: float = 0.5
    """The success rate that is drawn most ..."""
    width: float = 0.25
    """... and the deviation of the normal curve around it that weighs the others."""

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and 0 <= self.middle <= 1 and self.width > 0 and self.warmup >= 0):
            raise StockpotError("prefixes.share and middle must lie in 0..1, width be above 0 and warmup 0 or more.")
        if not 1 <= self.min_age <= self.max_age:
            raise StockpotError("prefixes.min_age must be at least 1 and at most prefixes.max_age.")

    @property
    def invites(self) -> bool:
        return True

    def versions(self, now: int) -> tuple[int, int] | None:
        newest = now - self.min_age
        return (max(0, now - self.max_age), newest) if newest >= 0 and self.share and now >= self.warmup else None

    def wanted(self, group_size: int, now: int) -> int:
        return int(now >= self.warmup and self.share > 0)

    def total(self, prompts: int, group_size: int, now: int) -> int:
        return math.floor(self.share * prompts + 0.5) * self.wanted(group_size, now)

    def invite(self, known: Mapping[str, Sequence[Candidate]], count: int, now: int, rng: random.Random) -> list[str]:
        rates = {key: self.rate(candidates) for key, candidates in known.items()}
        fit = [key for key in known if rates[key] < 1 and any(one.reward > 0.5 for one in known[key])]
        # weighted, without replacement: the shortest of waits whose rates are the weights
        waits = {
            key: rng.expovariate(1.0) * math.exp(((rates[key] - self.middle) / self.width) ** 2 / 2) for key in fit
        }
        return sorted(fit, key=lambda key: waits[key])[: self.total(count, 1, now)]

    @staticmethod
    def rate(candidates: Sequence[Candidate]) -> float:
        """Share of successes when the prompt was last asked; 1 for a prompt never asked, which has nothing to offer."""
        newest = max((one.version for one in candidates), default=None)
        last = [one.reward > 0.5 for one in candidates if one.version == newest]
        return sum(last) / len(last) if last else 1.0

    def choose(self, candidates: Sequence[Candidate], group_size: int, now: int, rng: random.Random) -> list[int]:
        return [one.id for one in candidates if one.reward > 0.5 and one.length > 0]

    def prefer(self, rollouts: Sequence[Rollout], group_size: int, now: int) -> list[Rollout]:
        known = [r for r in rollouts if all(span.log_probs is not None for span in r.spans)]
        return sorted(known, key=surprise)[: self.wanted(group_size, now)]

    def cut(self, rollout: Rollout, now: int, rng: random.Random, ends: Set[int] = frozenset()) -> tuple[Span, ...]:
        return tuple(replace(span, kind="prefix", source=rollout.id) for span in rollout.spans)


def surprise(rollout: Rollout) -> float:
    """Mean -log p of its tokens to their authors: an estimate, without bias, of the entropy they were drawn with."""
    return -sum(sum(span.log_probs or ()) for span in rollout.spans) / max(len(rollout), 1)
