"""What a critic makes of a step's rollouts: a value, an advantage and a return for every token."""

from __future__ import annotations

from dataclasses import replace

from stockpot.algorithms.base import ActorCritic
from stockpot.engines.base import Engine, Lesson
from stockpot.regularizers import KL


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
