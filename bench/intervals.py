"""Are pass@k and its intervals right? pass@k against the closed form, 95 % intervals against the truth.

    python bench/intervals.py                 # every cell, about 10 minutes on one core
    python bench/intervals.py --trials 100    # quicker, less sure
    python bench/intervals.py --only hard     # one of the populations

Problems' chances of success come from one of several populations. *Over problems*: new problems each time, the truth
is the population's. *Over samples*: the same problems each time, the truth is theirs. Each cell prints how often the
interval held the truth, and how often the plain percentile bootstrap did; the last line is the worst cell of ours.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stockpot.benchmarks import intervals
from stockpot.benchmarks.intervals import Votes
from stockpot.passk import Estimate, pass_at_k

POPULATIONS = {"even": (0.5, 0.5), "hard": (0.2, 1.2), "contest": (0.15, 0.6), "easy": (2.0, 0.4), "middling": (2, 2)}
"""Beta distributions of a problem's chance of success."""
PROBLEMS, SAMPLES = (30, 40, 164, 500), (8, 32)


@dataclass
class Cell:
    """Trials of one setting: how often each interval held the truth."""

    name: str
    rare: float
    """Problems' worth on the rarer side: below about 3, no interval can be exact."""
    hits: dict[str, list[bool]]

    def share(self, kind: str) -> float:
        return sum(self.hits[kind]) / len(self.hits[kind])

    def __str__(self) -> str:
        shares = "  ".join(f"{kind} {self.share(kind):.3f}" for kind in self.hits)
        return f"{self.name:<32} {self.rare:7.2f}  {shares}"


def closed_form(tables: int, seed: int = 0) -> float:
    """The largest error of pass@k over random tables, against 1 - C(n-c, k) / C(n, k) in whole numbers."""
    rng = random.Random(seed)
    worst = 0.0
    for _ in range(tables):
        n = rng.randint(1, 300)
        c, k = rng.randint(0, n), rng.randint(1, n)
        worst = max(worst, abs(pass_at_k(n, c, k) - (1 - math.comb(n - c, k) / math.comb(n, k))))
    return worst


def holds(estimate: Estimate, truth: float) -> bool:
    return estimate.low - 1e-12 <= truth <= estimate.high + 1e-12


def percentile(values: np.ndarray, rng: np.random.Generator, resamples: int = 400) -> Estimate:
    """The plain bootstrap over problems, for comparison."""
    means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(1)
    return Estimate(float(values.mean()), *map(float, np.quantile(means, (0.025, 0.975))))


def passes(population: str, problems: int, samples: int, k: int, trials: int, seed: int = 0) -> Cell:
    """pass@k."""
    rng = np.random.default_rng(seed)
    shape = POPULATIONS[population]
    everything = rng.beta(*shape, 200_000)
    truth = float((1 - (1 - everything) ** k).mean())
    cell = Cell(f"{population} N={problems} K={samples} k={k}", problems * min(truth, 1 - truth), {})
    hits: dict[str, list[bool]] = {"problems": [], "samples": [], "percentile": []}
    table = np.array([pass_at_k(samples, c, k) for c in range(samples + 1)])
    same = np.sort(everything)[:: len(everything) // problems][:problems]
    same_truth = float((1 - (1 - same) ** k).mean())
    for _ in range(trials):
        values = table[rng.binomial(samples, rng.choice(everything, problems))]
        hits["problems"].append(holds(intervals.over_problems(values), truth))
        hits["percentile"].append(holds(percentile(values, rng), truth))
        again = rng.binomial(samples, same).tolist()
        spread = intervals.difficulties(again, samples)
        hits["samples"].append(holds(intervals.over_samples(again, table, spread, k), same_truth))
    cell.hits = hits
    return cell


def votes(problems: int, samples: int, trials: int, seed: int = 0) -> Cell:
    """majority@K: every problem has a right answer and three wrong ones, some nearly as likely."""
    rng = np.random.default_rng(seed)

    def ballots(chances: np.ndarray) -> list[Votes]:
        drawn = [rng.choice(4, size=samples, p=chance) for chance in chances]
        return [Votes(d.tolist(), (d == 0).tolist()) for d in drawn]

    everything = rng.dirichlet((1.0, 0.6, 0.4, 0.3), 4000)
    truth = float(np.mean([intervals.majority(b) for b in ballots(np.repeat(everything, 8, axis=0))]))
    same = everything[:problems]
    same_truth = float(np.mean([intervals.majority(b) for _ in range(600) for b in ballots(same)]))
    hits: dict[str, list[bool]] = {"problems": [], "samples": []}
    for _ in range(trials):
        values = [intervals.majority(b) for b in ballots(everything[rng.integers(4000, size=problems)])]
        hits["problems"].append(holds(intervals.over_problems(values), truth))
        hits["samples"].append(holds(intervals.votes_again(ballots(same)), same_truth))
    return Cell(f"majority N={problems} K={samples}", problems * min(truth, 1 - truth), hits)


def cells(trials: int, only: str) -> Iterator[Cell]:
    """Every setting, or those of one population."""
    for population, n, samples in itertools.product([only] if only else POPULATIONS, PROBLEMS, SAMPLES):
        for k in (1, samples // 2, samples):
            yield passes(population, n, samples, k, trials)
    for n, samples in itertools.product(() if only else (30, 164), SAMPLES):
        yield votes(n, samples, min(trials, 200))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--only", choices=POPULATIONS, default="")
    options = parser.parse_args()
    trials = options.trials
    print(f"pass@k against the closed form, 10000 random tables: largest error {closed_form(10_000):.1e}")
    found = []
    print(f"{'cell':<32} {'rare':>7}  share of {trials} intervals that held the truth")
    for cell in cells(trials, options.only):
        print(cell, flush=True)
        found.append(cell)
    for title, some in (
        ("3 problems' worth or more on the rarer side", [c for c in found if c.rare >= 3]),
        ("fewer", [c for c in found if c.rare < 3]),
    ):
        for kind in ("problems", "samples", "percentile"):
            shares = [c.share(kind) for c in some if kind in c.hits]
            if not shares:
                continue
            inside = sum(0.93 <= share <= 0.97 for share in shares)
            print(
                f"{title}, {kind}: mean {np.mean(shares):.3f}, least {min(shares):.3f}, most {max(shares):.3f}; "
                f"{inside} of {len(shares)} cells in 0.93-0.97"
            )
    worst = min((c for c in found if c.rare >= 3), key=lambda c: min(c.share("problems"), c.share("samples")))
    print(f"worst: {worst}")


if __name__ == "__main__":
    main()
