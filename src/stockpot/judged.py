"""What a step's rollouts earn beside their rewards: a critic's values for every token, or what a KL credits them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stockpot.algorithms.base import ActorCritic
from stockpot.config import Config
from stockpot.engines.base import Engine, Lesson
from stockpot.regularizers import KL
from stockpot.types import Rollout


def judged(algorithm: ActorCritic, kl: KL, engine: Engine, lesson: Lesson) -> Lesson:
    """The same lesson with the critic's values before the update, and what the algorithm makes of them.

    A KL in the advantage (k1) is a cost of each token here, so that it too is weighed by the values that follow.
    """
    values = engine.score(lesson.rollouts, "critic")
    costs = None
    if lesson.reference_log_probs is not None and kl.in_advantage:
        costs = kl.costs(engine.score(lesson.rollouts, "policy"), lesson.reference_log_probs)
    advantages, returns = algorithm.judge(lesson.rollouts, values, costs)
    given = tuple(per_token.tolist() for per_token in advantages)
    return replace(lesson, advantages=given, values=tuple(values), returns=tuple(returns))


def credit(config: Config, engine: Engine, rollouts: Sequence[Rollout], reference: Sequence[Tensor]) -> list[float]:
    """What the KL adds to the advantages, group by group, from the tokens that may be trained."""
    masks = [torch.tensor([s.trained for s in r.spans for _ in s.tokens], dtype=torch.bool) for r in rollouts]
    policy = engine.score(rollouts, "policy")
    pairs = [(p.cpu()[m], q.cpu()[m]) for p, q, m in zip(policy, reference, masks, strict=True)]
    size = config.select.of(config.group_size)
    groups = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    return [c for g in groups for c in config.kl.credit([p for p, _ in g], [q for _, q in g])]
