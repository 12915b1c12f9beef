"""What a step trains on: a part of each group, and groups that teach something in place of those that do not.

Everything that was sampled is stored and counted; this only says what the update sees.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from stockpot.types import Group, Rollout, StockpotError

Advantages = Callable[[Group], Sequence[Any]]
"""An advantage for each rollout of a group: what `Algorithm.advantages` gives."""


@dataclass(frozen=True)
class Select:
    """Sample many rollouts of a prompt, train on some of them; ask further prompts where a group teaches nothing.

    By default advantages come from the whole group. The mean of all K rewards is what the policy really earns on the
    prompt, and all of them are paid for; a part that was chosen by its rewards has another mean, and against it a rare
    success would look ordinary. Then the advantages of a part need not add up to zero.
    """

    size: int = 0
    """Train on this many rollouts of each group; 0 takes all."""
    how: Literal["all", "balanced", "max-variance", "random"] = "all"
    """Which: half above the group's mean reward and half not, those whose rewards vary most, or any. Ties are broken
    by chance."""
    advantages: Literal["all", "subset"] = "all"
    """Whether advantages compare a rollout with all of its group or with those chosen."""
    refill: int = 0
    """Groups whose rewards are all equal make way for groups of further prompts, asked in up to this many more rounds
    of the step; 0 keeps them. It suits algorithms that compare a group's rewards, and no others."""

    def __post_init__(self) -> None:
        if self.size < 0 or self.refill < 0:
            raise StockpotError("select.size and select.refill must be 0 or more.")
        if (self.how == "all") != (self.size == 0):
            raise StockpotError(
                f"select.how is {self.how}, but select.size is {self.size}: give a size and a way, or neither."
            )

    def check(self, group_size: int) -> None:
        """Refuse a part that groups of this size do not have."""
        if self.size > group_size:
            raise StockpotError(
                f"select.size is {self.size}, but group_size is only {group_size}: sample more or train on fewer."
            )
        if self.size and group_size % self.size:
            raise StockpotError(
                f"group_size is {group_size}, no multiple of select.size {self.size}: choose a size that divides it."
            )

    def of(self, group_size: int) -> int:
        """How many rollouts of a group are trained on."""
        return self.size or group_size

    def choose(self, rewards: Sequence[float], rng: random.Random) -> list[int]:
        """Places in the group of those to train on, in order."""
        places = list(range(len(rewards)))
        if self.how == "all":
            return places
        rng.shuffle(places)
        if self.how == "balanced":
            places = balanced(rewards, places, self.size)
        elif self.how == "max-variance":
            places = most_varied(rewards, places, self.size)
        return sorted(places[: self.size])

    def __call__(
        self, groups: Sequence[Group], advantages: Advantages, rng: random.Random
    ) -> tuple[list[Group], list[Any]]:
        """Each group's part to train on, and its advantages, rollout by rollout."""
        parts: list[Group] = []
        found: list[Any] = []
        for group in groups:
            chosen = self.choose(group.rewards, rng)
            part = replace(group, rollouts=tuple(group.rollouts[i] for i in chosen))
            if self.advantages == "subset":
                found += advantages(part)
            else:
                of_all = advantages(group)
                found += [of_all[i] for i in chosen]
            parts.append(part)
        return parts, found

    def batch(self, groups: Sequence[Group], count: int) -> list[Group]:
        """The step's groups out of all that were sampled, in their order: flat ones only where others are too few."""
        if not self.refill:
            return list(groups)
        steep = [i for i, group in enumerate(groups) if not flat(group)][:count]
        level = [i for i, group in enumerate(groups) if flat(group)][: count - len(steep)]
        return [groups[i] for i in sorted(steep + level)]

    def metrics(self, sampled: Sequence[Group], batch: Sequence[Group], trained: Sequence[Rollout]) -> dict[str, float]:
        """What was kept and what was not; `docs/metrics.md` explains each figure."""
        told: dict[str, float] = {}
        if self.refill:
            told |= {
                "rollout/asked": float(len(sampled)),
                "rollout/dropped_groups": float(len(sampled) - len(batch)),
                "rollout/filled_groups": float(sum(map(flat, batch))),
            }
        if self.size:
            dropped = sum(len(group.rollouts) for group in batch) - len(trained)
            earned = sum(r.reward or 0.0 for r in trained)
            lost = sum(sum(group.rewards) for group in batch) - earned
            told |= {
                "select/kept": float(len(trained)),
                "select/dropped": float(dropped),
                "select/reward_kept": earned / max(len(trained), 1),
            }
            if dropped:
                told["select/reward_dropped"] = lost / dropped
        return told


def flat(group: Group) -> bool:
    """Whether all rewards of a group are equal, so that comparing them says nothing.

    >>> from stockpot.types import Prompt
    >>> flat(Group(Prompt("2+2", [4]), ()))
    True
    """
    return len(set(group.rewards)) <= 1


def balanced(rewards: Sequence[float], places: Sequence[int], size: int) -> list[int]:
    """Half above the mean and half not, as far as there are; the side that has too few is filled up from the other.

    >>> balanced([0.0, 0.0, 1.0, 0.0, 1.0, 0.0], range(6), 4)
    [2, 4, 0, 1]
    >>> balanced([0.0, 0.0, 1.0, 0.0], range(4), 4)
    [2, 0, 1, 3]
    """
    mean = sum(rewards) / len(rewards)
    above = [i for i in places if rewards[i] > mean]
    rest = [i for i in places if not rewards[i] > mean]
    half = min(max(size // 2, size - len(rest)), len(above))
    return above[:half] + rest[: size - half]


def most_varied(rewards: Sequence[float], places: Sequence[int], size: int) -> list[int]:
    """The part of that size whose rewards have the largest variance: some of the highest, the others the lowest.

    No other part can have a larger one, since moving a reward away from the mean of the rest never lowers the
    variance. Of several ways to part highest and lowest, the evenest.

    >>> most_varied([0.0, 0.5, 1.0, 0.25, 1.0, 0.0], range(6), 4)
    [0, 5, 2, 4]
    """
    order = sorted(places, key=lambda i: rewards[i])  # stable: equal rewards stay as the places came
    ways = []
    for low in range(size + 1):
        part = order[:low] + order[len(order) - (size - low) :]
        mean = sum(rewards[i] for i in part) / size
        ways.append((-sum((rewards[i] - mean) ** 2 for i in part), abs(2 * low - size), part))
    return min(ways)[2]
