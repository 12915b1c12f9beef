"""Does SOUP keep its promises here? Seven methods, two difficulties, five seeds, and all that the paper leaves open.

Learning rates are chosen on the tuning seed alone, for every method among the same ones; ablations run on tuning
seeds too, since defaults follow from them; the table's figures come from seeds that nothing was chosen on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from stockpot.algorithms import GRPO, LUFFY, ExGRPO
from stockpot.bench import inference
from stockpot.bench.cells import Cell, Result, Study
from stockpot.bench.grid import Grid
from stockpot.bench.tables import Claim
from stockpot.config import Config, Evaluation
from stockpot.policy import Learner
from stockpot.prefixes import (
    Demonstrations,
    Experience,
    FromCheckpoints,
    FromHistory,
    NoPrefixes,
    Replay,
    prefixrl,
)
from stockpot.tasks import Countdown

STEPS, EVERY = 60, 30
RATES = (1e-4, 2e-4, 4e-4)
TUNING, SEEDS = 100, (0, 1, 2, 3, 4)
DIFFICULTIES = {
    "easy": Countdown(train_prompts=128),
    "hard": Countdown(largest=15, luck=0.1, train_prompts=128),
}
"""Easy: the default recipe's task. Hard: larger numbers, and a teacher who searches blindly, so that the start is worse
both at one sample and at sixteen."""
SOUP = FromHistory()
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"prefixes": NoPrefixes()},
    "soup-history": {"prefixes": SOUP},
    "soup-checkpoints": {"prefixes": FromCheckpoints(keep=8, every=5)},
    "replay": {"prefixes": Replay(share=0.25, min_age=4)},
    "prefixrl": {"prefixes": prefixrl()},
    "exgrpo": {"prefixes": Experience(warmup=8), "algorithm": ExGRPO()},
    "luffy": {"prefixes": Demonstrations(), "algorithm": LUFFY()},
}
"""Replay takes SOUP's share and least age, so that the two differ in where the old tokens sit and in nothing else."""
INFERRED = ("grpo", "soup-history")
"""Methods whose runs SOUP inference is tried on."""
FIGURES = ("test/pass@1", "test/pass@16", "test/entropy")
ABLATIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no prefixes": {"prefixes": NoPrefixes()},
    "age: from 1": {"prefixes": replace(SOUP, min_age=1)},
    "age: from 16": {"prefixes": replace(SOUP, min_age=16)},
    "age: recent first": {"prefixes": replace(SOUP, ages="recent")},
    "cut: 0.05-0.3": {"prefixes": replace(SOUP, cut_low=0.05, cut_high=0.3)},
    "cut: 0.4-0.9": {"prefixes": replace(SOUP, cut_low=0.4, cut_high=0.9)},
    "cut: at surprise": {"prefixes": replace(SOUP, where="surprise")},
    "cut: at a step": {"prefixes": replace(SOUP, where="step", cut_high=0.9)},
    "share: 0.125": {"prefixes": replace(SOUP, share=0.125)},
    "share: 0.5": {"prefixes": replace(SOUP, share=0.5)},
    "outcome: balance": {"prefixes": replace(SOUP, outcome="balance")},
    "gradient: none": {"prefixes": replace(SOUP, gradient="none")},
    "gradient: surprise": {"prefixes": replace(SOUP, gradient="surprise")},
    "clip of prefix: 0.5": {"algorithm": GRPO(prefix_clip_low=0.5, prefix_clip_high=0.5)},
    "clip of prefix: off": {"algorithm": GRPO(prefix_clip_low=1.0, prefix_clip_high=1e6)},
    "normalise: by kind": {"algorithm": GRPO(compare="kind")},
    "normalise: no std": {"algorithm": GRPO(scale_by_std=False)},
}
ABLATED_ON, ABLATION_SEEDS = "hard", (100, 101, 102)

GRID = Grid([*METHODS], [*DIFFICULTIES], RATES, SEEDS, FIGURES, (TUNING,))
CLAIMS = [
    claim
    for source in ("soup-history", "soup-checkpoints")
    for claim in (
        Claim(f"{source} ends above GRPO in pass@1", source, "grpo", "test/pass@1", 1),
        Claim(f"{source} ends above GRPO in pass@16", source, "grpo", "test/pass@16", 1),
        Claim(f"{source} keeps more entropy than GRPO", source, "grpo", "test/entropy", 1),
        Claim(f"{source} loses less gradient to clipping than replay", source, "replay", "all/clip_loss", -1),
    )
]


def config(difficulty: str, seed: int, rate: float, **changes: Any) -> Config:
    """One run of the table: half the default recipe's width, so that many fit into an afternoon."""
    base = Config(
        task=DIFFICULTIES[difficulty],
        learner=Learner(learning_rate=rate, tokens_per_pass=2048),
        evaluation=Evaluation(samples=16, prompts=128, every=EVERY),
        steps=STEPS,
        prompts_per_step=16,
        group_size=8,
        checkpoint_every=EVERY,
        keep_checkpoints=3,
        seed=seed,
    )
    return replace(base, **changes)


@dataclass(frozen=True)
class SoupStudy(Study):
    """`stockpot bench soup`."""

    name: ClassVar[str] = "soup"
    parts: ClassVar[tuple[str, ...]] = ("tune", "main", "infer", "ablate")

    def starts(self) -> dict[str, Config]:
        return {f"{d}-{s}": config(d, s, RATES[0]) for d in DIFFICULTIES for s in (TUNING, *SEEDS)}

    def cells(self, part: str, results: Mapping[str, Result]) -> list[Cell]:
        if part == "tune":
            return [
                Cell(f"tune {m} {d} {rate:g}", config(d, TUNING, rate, **changes), f"{d}-{TUNING}")
                for m, changes in METHODS.items()
                for d in DIFFICULTIES
                for rate in RATES
            ]
        if part == "infer":
            return []
        if part == "main":
            return [
                Cell(
                    f"main {m} {d} {seed}",
                    config(d, seed, GRID.rate_of(m, results), **changes),
                    f"{d}-{seed}",
                    keep=m in INFERRED,
                )
                for seed in SEEDS
                for d in DIFFICULTIES
                for m, changes in METHODS.items()
            ]
        rate = GRID.rate_of("soup-history", results)
        return [
            Cell(f"ablate {name} {seed}", config(ABLATED_ON, seed, rate, **changes), f"{ABLATED_ON}-{TUNING}")
            for seed in ABLATION_SEEDS
            for name, changes in ABLATIONS.items()
        ]

    def calls(self, part: str, folder: Path, results: Mapping[str, Result]) -> list[tuple[Any, ...]]:
        if part != "infer":
            return []
        kept = [cell for cell in self.cells("main", results) if cell.keep and cell.name in results]
        done = inference.load(folder)
        return [(inference.infer_one, cell, folder) for cell in kept if cell.name not in done]

    def report(self, results: Mapping[str, Result], folder: Path) -> str:
        lost = {"lost to clipping": "all/clip_loss", "of old tokens": "prefix/clip_loss"}
        tables = [GRID.tuned(results)]
        tables += [GRID.compared(difficulty, results, lost, FIGURES[:2]) for difficulty in DIFFICULTIES]
        tables += [GRID.verdicts(CLAIMS, results)]
        tables += [inference.report(inference.load(folder), INFERRED, [*DIFFICULTIES], SEEDS)]
        tables += [GRID.ablated([*ABLATIONS], ABLATION_SEEDS, ABLATED_ON, results, {"prefix lost": "prefix/clip_loss"})]
        return "\n\n".join(text for text in tables if text)
