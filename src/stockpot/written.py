"""What one round of a step wrote: groups with their rewards, and what was counted on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stockpot.types import Group, Prompt, Rollout


@dataclass(frozen=True, slots=True)
class Written:
    """Rounds add up: `a + b` is what both wrote. A round without a fresh rollout has no shares."""

    groups: Sequence[Group]
    """Every group that was sampled."""
    fresh: Sequence[Rollout]
    """Rollouts that are new, for the history: those replayed whole are not."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """Metrics that add up."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Metrics that are means over the fresh rollouts."""

    @property
    def rollouts(self) -> list[Rollout]:
        """All of the groups' rollouts, in order."""
        return [rollout for group in self.groups for rollout in group.rollouts]

    @property
    def asked(self) -> list[Prompt]:
        """The prompt of every group."""
        return [group.prompt for group in self.groups]

    @property
    def decoded(self) -> int:
        """Tokens that the live policy wrote."""
        return sum(len(rollout) - rollout.prefix_length for rollout in self.fresh)

    def __add__(self, other: Written) -> Written:
        mine, theirs = len(self.fresh), len(other.fresh)
        both = max(mine + theirs, 1)
        return Written(
            [*self.groups, *other.groups],
            [*self.fresh, *other.fresh],
            {name: self.counts[name] + other.counts[name] for name in self.counts},
            {
                name: (mine * self.shares.get(name, 0.0) + theirs * other.shares.get(name, 0.0)) / both
                for name in {**self.shares, **other.shares}
            },
        )


def group(asked: Sequence[Prompt], rollouts: Sequence[Rollout], size: int) -> list[Group]:
    """Rollouts in the order of their requests -> the group of each prompt."""
    return [Group(prompt, tuple(rollouts[i * size : (i + 1) * size])) for i, prompt in enumerate(asked)]
