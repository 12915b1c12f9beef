"""What was measured: accuracy against the budget of thinking tokens, and what it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from stockpot.passk import Estimate, bootstrap, paired
from stockpot.types import Sampling

How = Literal["summariser", "self"]
HOWS: dict[How, str] = {
    "summariser": "a separate model writes the answer from the cut thinking",
    "self": "the policy closes its own thinking and answers (budget forcing)",
}
"""The two protocols: they measure different things and are never put under one name."""


@dataclass(frozen=True)
class Point:
    """One budget."""

    budget: int
    """Thinking tokens allowed."""
    accuracy: Estimate
    """Share of right samples, with a 95 % interval over problems."""
    correct: tuple[int, ...]
    """Right samples of each problem."""
    cut: int
    """Samples whose thinking was cut; the others keep the answers that they gave themselves."""
    thinking: float
    """Mean thinking tokens used."""
    extra: int
    """Tokens decoded to write the answers of the samples that were cut: these the full responses do not have."""
    read: int
    """Tokens of the closing words put behind cut thinking: read, not decoded."""
    unfinished: int
    """Of the answers written, those that ran out of room."""
    unjudged: int
    """Responses that the reward function could not judge, counted as wrong."""
    read_anew: int = 0
    """Where answers are written through text: the answering model's tokens for the cut thinking and closing words."""
    lossy: int = 0
    """Of the samples cut, those whose thinking the answering model's tokenizer could not write whole."""


@dataclass(frozen=True)
class Curve:
    """Accuracy against budget for one policy under one protocol."""

    name: str
    step: int | None
    """The checkpoint's step; None for a model that is no run's."""
    how: How
    writer: str
    """Who wrote the answers of the samples that were cut."""
    points: tuple[Point, ...]
    gain: Estimate
    """Accuracy at the largest budget minus that at the smallest, paired by problem."""
    full: Estimate
    """Accuracy of the full responses as they are."""
    decoded: int
    """Tokens of the full responses."""
    truncated: int
    """Full responses that ran out of room."""
    through_text: bool = False
    """Whether the writer has another vocabulary, so that the cut thinking reached it as text and was encoded anew.
    Budgets and thinking are in the policy's tokens all the same, extra tokens in the writer's."""


@dataclass(frozen=True)
class Scaling:
    """All curves of a call."""

    model: str
    closing: str
    samples: int
    """Of each problem."""
    max_tokens: int
    """Room for a full response: no budget can be larger."""
    answer_tokens: int
    """Room for an answer behind cut thinking."""
    sampling: Sampling
    """Of the full responses."""
    answer_sampling: Sampling
    seed: int
    prompts: tuple[str, ...]
    """Keys, in the order of the counts."""
    curves: tuple[Curve, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, the counts of each problem included."""
        return asdict(self) | {"protocols": dict(HOWS)}


def accuracy(correct: Sequence[int], samples: int) -> Estimate:
    """Share of right samples, with an interval over problems."""
    return bootstrap([right / samples for right in correct])


def gain(points: Sequence[Point], samples: int) -> Estimate:
    """Largest budget minus smallest, problem by problem."""
    first, last = ([right / samples for right in point.correct] for point in (points[0], points[-1]))
    return paired(first, last)
