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
from stockpot.bench.tables import Claim, table
from stockpot.config import Config, Evaluation
from stockpot.passk import Estimate, over_seeds
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
from stockpot.types import StockpotError

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
                    config(d, seed, rate_of(m, results), **changes),
                    f"{d}-{seed}",
                    keep=m in INFERRED,
                )
                for seed in SEEDS
                for d in DIFFICULTIES
                for m, changes in METHODS.items()
            ]
        rate = rate_of("soup-history", results)
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
        tables = [tuned(results)]
        tables += [compared(difficulty, results) for difficulty in DIFFICULTIES]
        tables += [verdicts(results), inference.report(inference.load(folder), INFERRED, [*DIFFICULTIES], SEEDS)]
        tables += [ablated(results)]
        return "\n\n".join(text for text in tables if text)


def rate_of(method: str, results: Mapping[str, Result]) -> float:
    """The learning rate with the highest mean pass@1 over both difficulties, on the tuning seed."""

    missing = [f"{d} {rate:g}" for d in DIFFICULTIES for rate in RATES if f"tune {method} {d} {rate:g}" not in results]
    if missing:
        raise StockpotError(f"{method} has no learning rate yet ({', '.join(missing)}): run the part tune first.")

    def height(rate: float) -> float:
        return sum(results[f"tune {method} {d} {rate:g}"].last("test/pass@1") for d in DIFFICULTIES)

    return max(RATES, key=height)


def tuned(results: Mapping[str, Result]) -> str:
    """pass@1 at the end by method and learning rate, on the tuning seed."""
    rows = []
    for m in METHODS:
        cells = [[results.get(f"tune {m} {d} {rate:g}") for d in DIFFICULTIES] for rate in RATES]
        if all(one is not None for pair in cells for one in pair):
            shown = [" / ".join(f"{one.last('test/pass@1'):.3f}" for one in pair if one) for pair in cells]
            rows.append([m, *shown, f"{rate_of(m, results):g}"])
    head = ["method", *(f"lr {rate:g}" for rate in RATES), "chosen"]
    return table(f"Learning rates: pass@1 at the end, {' / '.join(DIFFICULTIES)}, seed {TUNING}", head, rows)


def finished(difficulty: str, results: Mapping[str, Result]) -> dict[str, list[Result]]:
    """The table's runs by method; methods that lack a seed are left out."""
    found = {m: [results.get(f"main {m} {difficulty} {seed}") for seed in SEEDS] for m in METHODS}
    return {m: [one for one in runs if one] for m, runs in found.items() if all(runs)}


def compared(difficulty: str, results: Mapping[str, Result]) -> str:
    """All methods at equal samples and at equal work."""
    runs = finished(difficulty, results)
    if not runs:
        return ""
    work = min(sum(one.last("cpu") for one in some) / len(some) for some in runs.values())
    head = ["method", "pass@1", "pass@16", "entropy", "lost to clipping", "of old tokens", "seconds of work", "decoded"]
    head += [f"pass@1 at {work:.0f} s", f"pass@16 at {work:.0f} s"]
    first = next(iter(runs.values()))
    start = [str(over_seeds([one.evaluations[0][name] for one in first])) for name in FIGURES]
    rows = [["(start)", *start, *[""] * 6]]
    for m, some in runs.items():
        cells = [over_seeds([one.last(name) for one in some]) for name in FIGURES]
        cells += [
            over_seeds([one.training["all/clip_loss"] for one in some]),
            over_seeds([o.last("cpu") for o in some]),
        ]
        old = [one.training["prefix/clip_loss"] for one in some if "prefix/clip_loss" in one.training]
        decoded = over_seeds([one.training["decoded"] for one in some]).mean
        at = [over_seeds([one.at(work, name) for one in some]) for name in FIGURES[:2]]
        lost = f"{over_seeds(old).mean:.3f}" if old else ""
        rows.append([m, *map(str, cells[:4]), lost, f"{cells[4].mean:.0f}", f"{decoded:,.0f}", *map(str, at)])
    title = f"{difficulty}: seeds {', '.join(map(str, SEEDS))}, {STEPS} steps, 95 % t intervals over seeds"
    return table(title, head, rows)


def difference(a: str, b: str, difficulty: str, results: Mapping[str, Result], figure: str) -> Estimate | None:
    """Mean over seeds of a - b, seed by seed: of held-out figures at the end, or of training figures."""
    runs = finished(difficulty, results)
    if a not in runs or b not in runs:
        return None

    def value(one: Result) -> float:
        return one.last(figure) if figure.startswith("test/") else one.training[figure]

    return over_seeds([value(x) - value(y) for x, y in zip(runs[a], runs[b], strict=True)])


def verdicts(results: Mapping[str, Result]) -> str:
    """The paper's claims, each on both difficulties, with both sources of prefixes."""
    claims = []
    for source in ("soup-history", "soup-checkpoints"):
        claims += [
            Claim(f"{source} ends above GRPO in pass@1", source, "grpo", "test/pass@1", 1),
            Claim(f"{source} ends above GRPO in pass@16", source, "grpo", "test/pass@16", 1),
            Claim(f"{source} keeps more entropy than GRPO", source, "grpo", "test/entropy", 1),
            Claim(f"{source} loses less gradient to clipping than replay", source, "replay", "all/clip_loss", -1),
        ]
    rows = []
    for claim in claims:
        for difficulty in DIFFICULTIES:
            found = difference(claim.better, claim.than, difficulty, results, claim.figure)
            if found is not None:
                rows.append([claim.text, difficulty, f"{found:+}", claim.verdict(found)])
    return table("Claims: difference at the end, seed by seed", ["claim", "task", "difference", "verdict"], rows)


def ablated(results: Mapping[str, Result]) -> str:
    """Each choice against the default, seed by seed."""
    found = {
        name: [results[f"ablate {name} {seed}"] for seed in ABLATION_SEEDS]
        for name in ABLATIONS
        if all(f"ablate {name} {seed}" in results for seed in ABLATION_SEEDS)
    }
    if "as it is" not in found:
        return ""
    rows = []
    for name, runs in found.items():
        cells = [name]
        for figure in FIGURES:
            values = [one.last(figure) for one in runs]
            cells.append(f"{over_seeds(values).mean:.3f}")
            change = over_seeds([v - b.last(figure) for v, b in zip(values, found["as it is"], strict=True)])
            cells.append("" if name == "as it is" else f"{change:+}")
        lost = [one.training.get("prefix/clip_loss") for one in runs]
        known = [value for value in lost if value is not None]
        rows.append([*cells, f"{sum(known) / len(known):.3f}" if known else ""])
    head = ["choice", "pass@1", "change", "pass@16", "change", "entropy", "change", "prefix lost to clipping"]
    title = f"Ablations on {ABLATED_ON}, seeds {', '.join(map(str, ABLATION_SEEDS))}: change against the default"
    return table(title, head, rows)
