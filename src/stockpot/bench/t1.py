"""Does T1 keep its promises here? Its recipe on countdown with long thinking, and one thing changed at a time.

The learning rate is chosen on the tuning seed alone, for the recipe as it is, and every arm takes it; the table's
figures come from seeds that nothing was chosen on. Held-out prompts are sampled at temperature 1, whatever training
is drawn at. The teacher searches blindly and is patient, so a start thinks for some hundred tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from stockpot.algorithms import RLOO
from stockpot.bench import distance, scaling
from stockpot.bench.cells import Cell, Result, Study
from stockpot.bench.grid import Grid
from stockpot.bench.tables import Claim, table, verdict
from stockpot.config import Config, Evaluation, Start
from stockpot.passk import over_seeds
from stockpot.policy import Learner
from stockpot.prefixes import NoPrefixes
from stockpot.regularizers import KL, EntropyBonus
from stockpot.rewards.penalties import Penalties
from stockpot.tasks import Countdown
from stockpot.types import Sampling

STEPS, EVERY, KEPT = 30, 15, 9
"""Checkpoints at 9, 18, 27 and 30 steps: 30, 60, 90 and 100 % of training."""
RATES = (5e-5, 1e-4, 2e-4, 4e-4)
TUNING, SEEDS = 100, (0, 1, 2, 3, 4)
TASK = "t1"
TEMPERATURE, LEASH = 1.2, KL(2e-4, estimator="k1", centred=True, reference="ema", rate=0.05, every=5)
STRONG = replace(LEASH, coefficient=2e-2)
"""A hundred times the paper's: at 2e-4 a response's KL moves its advantage by thousandths."""
BASE = "K 16"
ARMS: dict[str, dict[str, Any]] = {
    BASE: {},
    "K 4": {"prompts_per_step": 32, "group_size": 4},
    "K 64": {"prompts_per_step": 2, "group_size": 64},
    "T 0.8": {"sampling": Sampling(temperature=0.8)},
    "T 1.0": {"sampling": Sampling(temperature=1.0)},
    "T 1.1": {"sampling": Sampling(temperature=1.1)},
    "T 1.4": {"sampling": Sampling(temperature=1.4)},
    "no penalties": {"penalties": Penalties()},
    "no entropy bonus": {"entropy": EntropyBonus()},
    "min-p 0.05": {"sampling": Sampling(temperature=TEMPERATURE, min_p=0.05)},
    "KL off": {"kl": KL()},
    "KL frozen": {"kl": replace(LEASH, reference="frozen")},
    "KL not centred": {"kl": replace(LEASH, centred=False)},
    "K 4, as many prompts": {"group_size": 4},
    "K 64, as many prompts": {"group_size": 64},
    "strong KL, EMA": {"kl": STRONG},
    "strong KL, frozen": {"kl": replace(STRONG, reference="frozen")},
}
"""The recipe with one change each. K 4 and K 64 draw as many samples a step as the recipe, or ask as many prompts."""
GROUPS = ("K 4", BASE, "K 64", "K 4, as many prompts", "K 64, as many prompts")
WATCHED = (*GROUPS, "no penalties", "T 1.4")
"""Arms whose checkpoints are kept, to measure how far from the start they went."""
FIGURES = ("test/pass@1", "test/pass@8", "test/length", "test/truncated", "test/recovered", "test/entropy")
GRID = Grid([*ARMS], [TASK], RATES, SEEDS, FIGURES, (TUNING,))
LONG, LONG_TASK, LONG_ARMS = 90, "t1-long", (BASE, "no penalties")
"""The recipe, and the arm whose effect may need time to show, are run three times as long, too."""
LONG_GRID = Grid(LONG_ARMS, [LONG_TASK], RATES, SEEDS, FIGURES, (TUNING,))
CLAIMS = [
    *(
        claim
        for more, less in (("K 64", "K 4"), ("K 64, as many prompts", "K 4, as many prompts"))
        for claim in (
            Claim(f"{more} ends above {less} in pass@1", more, less, "test/pass@1", 1),
            Claim(f"{more} ends above {less} in pass@8", more, less, "test/pass@8", 1),
            Claim(f"{more} writes longer responses than {less}", more, less, "test/length", 1),
        )
    ),
    *(
        Claim(f"temperature 1.2 ends above {t[2:]} in pass@1", BASE, t, "test/pass@1", 1)
        for t in ("T 0.8", "T 1.0", "T 1.1", "T 1.4")
    ),
    Claim("without penalties pass@1 is lower", "no penalties", BASE, "test/pass@1", -1),
    Claim("without penalties more responses run out of room", "no penalties", BASE, "test/truncated", 1),
    Claim("the entropy bonus keeps entropy up", BASE, "no entropy bonus", "test/entropy", 1),
    Claim("EMA ends above a frozen reference in pass@1", BASE, "KL frozen", "test/pass@1", 1),
    Claim("the same with a strong KL", "strong KL, EMA", "strong KL, frozen", "test/pass@1", 1),
    Claim("a KL ends above none in pass@1", BASE, "KL off", "test/pass@1", 1),
    Claim("a centred KL ends above one that is not, in pass@1", BASE, "KL not centred", "test/pass@1", 1),
    Claim("min-p 0.05 ends above none in pass@1", "min-p 0.05", BASE, "test/pass@1", 1),
]
LONG_CLAIMS = [claim for claim in CLAIMS if {claim.better, claim.than} <= set(LONG_ARMS)]


def config(seed: int, rate: float, **changes: Any) -> Config:
    """One run: T1's recipe at a size of which many fit into an afternoon."""
    base = Config(
        task=Countdown(luck=0.1, give_up=0.15, max_attempts=14, train_prompts=256),
        start=Start(steps=900),
        algorithm=RLOO(),
        prefixes=NoPrefixes(),
        sampling=Sampling(temperature=TEMPERATURE),
        entropy=EntropyBonus(0.001),
        kl=LEASH,
        penalties=Penalties(value=-1.0, how="set", repetition=0.5, size=8, overlong=True, garbled=0.1),
        learner=Learner(learning_rate=rate, tokens_per_pass=2048),
        evaluation=Evaluation(samples=8, prompts=96, every=EVERY),
        steps=STEPS,
        prompts_per_step=8,
        group_size=16,
        max_tokens=210,
        checkpoint_every=KEPT,
        keep_checkpoints=4,
        seed=seed,
    )
    return replace(base, **changes)


@dataclass(frozen=True)
class T1Study(Study):
    """`stockpot bench t1`."""

    name: ClassVar[str] = "t1"
    parts: ClassVar[tuple[str, ...]] = ("tune", "main", "long", "distance", "budgets")

    def starts(self) -> dict[str, Config]:
        return {f"{TASK}-{seed}": config(seed, RATES[0]) for seed in (TUNING, *SEEDS)}

    def cells(self, part: str, results: Mapping[str, Result]) -> list[Cell]:
        if part == "tune":
            return [Cell(f"tune {BASE} {TASK} {rate:g}", config(TUNING, rate), f"{TASK}-{TUNING}") for rate in RATES]
        if part not in ("main", "long"):
            return []
        rate = GRID.rate_of(BASE, results)
        if part == "long":
            how = Evaluation(samples=8, prompts=96, every=LONG // 3)
            more: dict[str, Any] = {"steps": LONG, "checkpoint_every": KEPT * LONG // STEPS, "evaluation": how}
            return [
                Cell(f"main {arm} {LONG_TASK} {seed}", config(seed, rate, **ARMS[arm] | more), f"{TASK}-{seed}", True)
                for seed in SEEDS
                for arm in LONG_ARMS
            ]
        return [
            Cell(f"main {arm} {TASK} {seed}", config(seed, rate, **changes), f"{TASK}-{seed}", keep=arm in WATCHED)
            for seed in SEEDS
            for arm, changes in ARMS.items()
        ]

    def calls(self, part: str, folder: Path, results: Mapping[str, Result]) -> list[tuple[Any, ...]]:
        if part not in ("distance", "budgets"):
            return []
        made = [*self.cells("main", results), *self.cells("long", results)]
        kept = [cell for cell in made if cell.keep and cell.name in results]
        if part == "budgets":
            kept = [cell for cell in kept if cell.name.startswith(f"main {BASE} {TASK}")]
        room, measure = (distance.ROOM, distance.one) if part == "distance" else (scaling.ROOM, scaling.one)
        done = distance.load(folder, room)
        return [(measure, cell, folder) for cell in kept if cell.name not in done]

    def report(self, results: Mapping[str, Result], folder: Path) -> str:
        told = {"reward in training": "reward/mean"}
        far, budgets = distance.load(folder, distance.ROOM), distance.load(folder, scaling.ROOM)
        tables = [GRID.tuned(results)]
        for grid, claims, watched in ((GRID, CLAIMS, WATCHED), (LONG_GRID, LONG_CLAIMS, LONG_ARMS)):
            task = grid.tasks[0]
            tables += [grid.compared(task, results, told, ()), grid.verdicts(claims, results)]
            tables += [over_training(grid, results), distance.report(far, watched, task, SEEDS)]
            tables += [distance.equal(far, GROUPS, task, SEEDS) if grid is GRID else ""]
            tables += [scaling.report(budgets, BASE, task, SEEDS)]
        return "\n\n".join(text for text in tables if text)


def over_training(grid: Grid, results: Mapping[str, Result]) -> str:
    """Trial and error over training: responses that reject an attempt, and that are right after one."""
    rows, steps = [], list[str]()
    for arm, runs in grid.finished(grid.tasks[0], results).items():
        steps = [f"step {row['step']:.0f}" for row in runs[0].evaluations]
        for figure in ("test/rejected", "test/recovered", "test/attempts"):
            at = [over_seeds([one.evaluations[i][figure] for one in runs]) for i in range(len(runs[0].evaluations))]
            change = over_seeds([one.last(figure) - one.evaluations[0][figure] for one in runs])
            rows.append(
                [arm, figure.removeprefix("test/"), *(f"{e.mean:.3f}" for e in at), f"{change:+}", verdict(change)]
            )
    head = ["arm", "figure", *steps, "end - start", "rises"]
    return table(f"{grid.tasks[0]}: trial and error on held-out prompts, means over seeds", head, rows)
