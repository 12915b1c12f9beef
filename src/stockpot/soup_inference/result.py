"""What the comparison of SOUP inference with the single model found, and its arithmetic."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from stockpot.evaluate import sizes
from stockpot.passk import Estimate, bootstrap, paired, pass_at_budget
from stockpot.types import Rollout, Sampling


@dataclass(frozen=True)
class Arm:
    """One way of answering: what it got right and what it cost, prompt by prompt."""

    samples: int
    """Per prompt."""
    correct: tuple[int, ...]
    """Right samples of each prompt."""
    decoded: tuple[int, ...]
    """Tokens decoded for each prompt, over all its samples."""
    unjudged: int
    """Responses that the reward function could not judge, counted as wrong."""
    truncated: float
    """Share of responses that ran out of room."""
    rollouts: tuple[Rollout, ...]
    """Prompt by prompt; heads are spans of kind `prefix` with their author and its log-probs."""

    @property
    def length(self) -> float:
        """Mean tokens decoded per sample."""
        return sum(self.decoded) / (self.samples * len(self.decoded))

    def pass_at(self, k: float) -> list[float]:
        """pass@k of each prompt; for a k that is no whole number see `passk.pass_at_budget`."""
        return [pass_at_budget(self.samples, right, k) for right in self.correct]


@dataclass(frozen=True)
class Row:
    """Both arms side by side, with 95 % intervals over problems.

    The noise of sampling is in them, since it makes problems differ. That another training run would give other
    checkpoints is not, and the mean lengths that a budget is divided by are taken as known.
    """

    tokens: float | None
    """The budget per prompt, in decoded tokens; None where the numbers of samples are equal instead."""
    single_samples: float
    """k of the single model."""
    soup_samples: float
    """k of SOUP."""
    single: Estimate
    soup: Estimate
    difference: Estimate
    """SOUP - single, paired by problem."""


@dataclass(frozen=True)
class Heads:
    """What one older checkpoint did."""

    step: int
    samples: int
    """Responses that it was to begin."""
    correct: int
    """How many of them were right in the end."""
    tokens: int
    """Tokens of its heads that were kept."""
    stopped: int
    """Heads that it finished before their cut: each lost its stop token, which was decoded all the same."""
    empty: int
    """Those of them that began with the stop token, so that nothing was left and the last checkpoint wrote alone."""


@dataclass(frozen=True)
class Comparison:
    """SOUP inference against the single model."""

    run: str
    step: int
    """The checkpoint that is the single model, and that ends what others began."""
    low: float
    high: float
    sampling: Sampling
    seed: int
    prompts: tuple[str, ...]
    """Keys, in the order of the counts."""
    single: Arm
    soup: Arm
    heads: tuple[Heads, ...]
    """One for each older checkpoint."""
    equal_samples: tuple[Row, ...]
    """pass@k by k."""
    equal_tokens: tuple[Row, ...]
    """pass at the budget of 1, 2, 4, ... mean responses of the single model."""

    def to_json(self) -> dict[str, Any]:
        """Everything but the rollouts themselves; counts of each prompt included."""
        plain = {name: value for name, value in vars(self).items() if name not in ("single", "soup", "prompts")}
        plain["sampling"] = asdict(self.sampling)
        for name in ("heads", "equal_samples", "equal_tokens"):
            plain[name] = [asdict(one) for one in plain[name]]
        for name, arm in (("single", self.single), ("soup", self.soup)):
            facts = {key: value for key, value in vars(arm).items() if key not in ("rollouts", "correct", "decoded")}
            plain[name] = facts | {"length": arm.length}
        columns = (self.single.correct, self.single.decoded, self.soup.correct, self.soup.decoded)
        names = ("single_correct", "single_decoded", "soup_correct", "soup_decoded")
        rows = zip(self.prompts, *columns, strict=True)
        plain["prompts"] = [{"prompt": key, **dict(zip(names, counts, strict=True))} for key, *counts in rows]
        return plain


def equal_tokens(single: Arm, soup: Arm) -> tuple[Row, ...]:
    """Both arms at the budget of 1, 2, 4, ... mean responses of the single model, for each prompt.

    A budget buys an arm as many samples as its own mean length over all prompts goes into it. The last row is the
    largest budget that both have samples for, which is less than k responses where SOUP's are the shorter.
    """
    rows: list[Row] = []
    for k in sizes(single.samples):
        budget = min(k * single.length, soup.samples * soup.length)
        one, other = (min(arm.samples, round(budget / arm.length, 9)) for arm in (single, soup))
        rows.append(row(single, soup, one, other, budget))
        if budget < k * single.length:
            break
    return tuple(rows)


def equal_samples(single: Arm, soup: Arm) -> tuple[Row, ...]:
    """pass@k by k = 1, 2, 4, ..., the same k in both arms."""
    return tuple(row(single, soup, k, k, None) for k in sizes(single.samples))


def row(single: Arm, soup: Arm, one: float, other: float, tokens: float | None) -> Row:
    """The single model with `one` sample for each prompt and SOUP with `other`: numbers that need not be whole."""
    first, second = single.pass_at(one), soup.pass_at(other)
    return Row(tokens, one, other, bootstrap(first), bootstrap(second), paired(first, second))
