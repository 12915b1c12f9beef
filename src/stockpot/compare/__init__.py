"""Which loss's gradient points where the true one does, and how noisily: measured offline, on a frozen history.

Every loss sees the same batches of whole stored rollouts, each token against its own author, all of them old.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from stockpot import console
from stockpot.algorithms import RLOO, Algorithm, Reinforce
from stockpot.algorithms.base import ActorCritic
from stockpot.compare.batches import Choice, Sizes, ages, draw
from stockpot.compare.gradients import Bench, Estimate, Measure, Truth, Yardstick, measure, yardstick
from stockpot.config import Config
from stockpot.engines.local import LocalEngine
from stockpot.types import Group, StockpotError

__all__ = ["ON_POLICY", "VARIANTS", "Comparison", "Estimate", "Measure", "Sizes", "ages", "choose", "compare", "draw"]

ON_POLICY = "on-policy"
VARIANTS: dict[str, Callable[[], Algorithm]] = {
    "rloo-rollout": partial(RLOO, level="rollout"),
    "reinforce-rollout": partial(Reinforce, correction="rollout", cap=math.inf, normalise="constant"),
    "reinforce-none": partial(Reinforce, correction="none"),
}
"""Compared beside the algorithms' defaults: one clipped ratio per rollout; the same without clip, cap or a length in
the denominator, which alone is unbiased on replay (of rollouts that the policy has not learnt from); and no ratio at
all, as if nobody knew who wrote a token."""


@dataclass(frozen=True)
class Comparison:
    """What was found."""

    choice: Choice
    yardstick: Yardstick
    measures: dict[str, Measure]
    """By the loss's name; `on-policy` is the yardstick's own estimator on fresh batches of the same size."""
    unjudged: int
    """Fresh samples that the reward function could not judge, counted as 0."""


def choose(wish: str, known: Mapping[str, Callable[[], Algorithm]]) -> dict[str, Algorithm]:
    """The losses asked for, or all that a history can judge: none with a critic, whose values it does not hold, and no
    regression on a reference's log-probs, which is no policy gradient."""
    judged = [name for name, make in known.items() if isinstance(make(), ActorCritic)]
    every = {name: make for name, make in {**known, **VARIANTS}.items() if name not in judged}
    names = [name.strip().lower().replace("_", "-") for name in wish.split(",")] if wish else list(every)
    for name in names:
        if name in judged:
            raise StockpotError(f"--losses {name}: its advantages are a critic's, which a history does not hold.")
        if name not in every:
            near = difflib.get_close_matches(name, every, n=1, cutoff=0.4)
            meant = f"did you mean {near[0]}? " if near else ""
            raise StockpotError(f"--losses knows no {name}; {meant}it knows {', '.join(every)}.")
    chosen = {name: every[name]() for name in names}
    regressions = [name for name, algorithm in chosen.items() if algorithm.needs_reference]
    if wish and regressions:
        raise StockpotError(
            f"--losses {', '.join(regressions)}: it is a regression, whose gradient estimates no policy gradient; "
            "leave it out."
        )
    return {name: algorithm for name, algorithm in chosen.items() if name not in regressions}


def compare(
    engine: LocalEngine, config: Config, choice: Choice, losses: Mapping[str, Algorithm], sizes: Sizes, seed: int
) -> Comparison:
    """The yardstick first, then a fresh batch for every stored one, then each loss on the stored ones."""
    bench = Bench(engine, config, seed)
    with console.bar("yardstick", 2 * len(choice.prompts)) as bar:
        truth = yardstick(bench, choice.prompts, sizes.fresh, bar.advance)

    def fresh(band: int, batch: int) -> Sequence[Group]:
        return bench.sample(choice.prompts, sizes.group_size, ON_POLICY, band, batch)

    def stored(band: int, batch: int) -> Sequence[Group]:
        return choice.batches[band][batch]

    measures: dict[str, Measure] = {}
    with console.bar("comparing", (len(losses) + 1) * len(choice.bands) * sizes.batches) as bar:
        for name, algorithm in {ON_POLICY: Truth(), **losses}.items():
            source = fresh if name == ON_POLICY else stored
            calls = [[partial(source, i, j) for j in range(sizes.batches)] for i in range(len(choice.bands))]
            measures[name] = measure(bench, algorithm, calls, truth, partial(bar.advance, loss=name))
    measures[ON_POLICY] = replace(measures[ON_POLICY], by_age=())  # always of age 0
    return Comparison(choice, truth, measures, bench.unjudged)
