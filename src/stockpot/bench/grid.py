"""The commonest study: methods by tasks by seeds, each method's learning rate chosen on seeds that are not reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stockpot.bench.cells import Result
from stockpot.bench.tables import Claim, table
from stockpot.passk import Estimate, over_seeds
from stockpot.types import StockpotError

Results = Mapping[str, Result]


@dataclass(frozen=True)
class Grid:
    """Names its runs `tune METHOD TASK RATE [SEED]`, `main METHOD TASK SEED`, `ablate CHOICE SEED`; reads them off."""

    methods: Sequence[str]
    tasks: Sequence[str]
    rates: Sequence[float]
    seeds: Sequence[int]
    figures: Sequence[str]
    """Held-out figures of every table."""
    tuning: Sequence[int] = (100,)
    """Seeds that learning rates are chosen on."""
    by: int = 1
    """Learning rates are chosen by the mean of so many of the first figures."""

    def trials(self, method: str, task: str, rate: float) -> list[str]:
        """Names of the runs that tell how good a learning rate is."""
        name = f"tune {method} {task} {rate:g}"
        return [name] if len(self.tuning) == 1 else [f"{name} {seed}" for seed in self.tuning]

    def rate_of(self, method: str, results: Results) -> float:
        """The learning rate with the highest mean over tasks, tuning seeds and the figures that choose."""
        tried = {rate: [name for d in self.tasks for name in self.trials(method, d, rate)] for rate in self.rates}
        missing = [name for names in tried.values() for name in names if name not in results]
        if missing:
            raise StockpotError(f"{method} has no learning rate yet ({', '.join(missing)}): run the part tune first.")
        return max(self.rates, key=lambda rate: sum(self.height(results[name]) for name in tried[rate]))

    def height(self, result: Result) -> float:
        """What learning rates are chosen by."""
        return sum(result.last(figure) for figure in self.figures[: self.by]) / self.by

    def tuned(self, results: Results) -> str:
        """What chooses, at the end, by method and learning rate, on the tuning seeds."""
        rows = []
        for m in self.methods:
            cells = [[self.trials(m, d, rate) for d in self.tasks] for rate in self.rates]
            if all(name in results for pair in cells for names in pair for name in names):
                found = [[[self.height(results[n]) for n in names] for names in pair] for pair in cells]
                shown = [" / ".join(f"{sum(values) / len(values):.3f}" for values in pair) for pair in found]
                rows.append([m, *shown, f"{self.rate_of(m, results):g}"])
        head = ["method", *(f"lr {rate:g}" for rate in self.rates), "chosen"]
        seeds = f"seed{'s' * (len(self.tuning) > 1)} {', '.join(map(str, self.tuning))}"
        chosen = " and ".join(map(short, self.figures[: self.by])) + (", their mean" if self.by > 1 else "")
        title = f"Learning rates: {chosen} at the end, {' / '.join(self.tasks)}, {seeds}"
        return table(title, head, rows)

    def finished(self, task: str, results: Results) -> dict[str, list[Result]]:
        """The table's runs by method; methods that lack a seed are left out."""
        found = {m: [results.get(f"main {m} {task} {seed}") for seed in self.seeds] for m in self.methods}
        return {m: [one for one in runs if one] for m, runs in found.items() if all(runs)}

    def compared(self, task: str, results: Results, told: Mapping[str, str], equal_work: Sequence[str]) -> str:
        """All methods at equal samples, and at equal work. `told`: further columns, each a figure of training."""
        runs = self.finished(task, results)
        if not runs:
            return ""
        work = min(sum(one.last("cpu") for one in some) / len(some) for some in runs.values())
        head = ["method", *map(short, self.figures), *told, "seconds of work", "decoded"]
        head += [f"{short(name)} at {work:.0f} s" for name in equal_work]
        first = next(iter(runs.values()))
        start = [str(over_seeds([one.evaluations[0][name] for one in first])) for name in self.figures]
        rows = [["(start)", *start, *[""] * (len(head) - 1 - len(start))]]
        for m, some in runs.items():
            cells = [str(over_seeds([one.last(name) for one in some])) for name in self.figures]
            for name in told.values():
                values = [one.training[name] for one in some if name in one.training]
                cells.append(f"{over_seeds(values).mean:.3f}" if values else "")
            cells.append(f"{over_seeds([one.last('cpu') for one in some]).mean:.0f}")
            cells.append(f"{over_seeds([one.training['decoded'] for one in some]).mean:,.0f}")
            cells += [str(over_seeds([one.at(work, name) for one in some])) for name in equal_work]
            rows.append([m, *cells])
        steps = f"{first[0].evaluations[-1]['step']:.0f} steps, " if "step" in first[0].evaluations[-1] else ""
        title = f"{task}: seeds {', '.join(map(str, self.seeds))}, {steps}95 % t intervals over seeds"
        return table(title, head, rows)

    def difference(self, a: str, b: str, task: str, results: Results, figure: str) -> Estimate | None:
        """Mean over seeds of a - b, seed by seed: of held-out figures at the end, or of training figures."""
        runs = self.finished(task, results)
        if a not in runs or b not in runs:
            return None

        def value(one: Result) -> float:
            return one.last(figure) if figure.startswith("test/") else one.training[figure]

        return over_seeds([value(x) - value(y) for x, y in zip(runs[a], runs[b], strict=True)])

    def verdicts(self, claims: Sequence[Claim], results: Results) -> str:
        """Claims about two methods, each on every task."""
        rows = []
        for claim in claims:
            for task in self.tasks:
                found = self.difference(claim.better, claim.than, task, results, claim.figure)
                if found is not None:
                    rows.append([claim.text, task, f"{found:+}", claim.verdict(found)])
        return table("Claims: difference at the end, seed by seed", ["claim", "task", "difference", "verdict"], rows)

    def ablated(
        self, choices: Sequence[str], seeds: Sequence[int], task: str, results: Results, told: Mapping[str, str]
    ) -> str:
        """Each choice against the first, seed by seed."""
        found = {
            name: [results[f"ablate {name} {seed}"] for seed in seeds]
            for name in choices
            if all(f"ablate {name} {seed}" in results for seed in seeds)
        }
        if choices[0] not in found:
            return ""
        rows = []
        for name, runs in found.items():
            cells = [name]
            for figure in self.figures:
                values = [one.last(figure) for one in runs]
                cells.append(f"{over_seeds(values).mean:.3f}")
                base = [one.last(figure) for one in found[choices[0]]]
                change = over_seeds([v - b for v, b in zip(values, base, strict=True)])
                cells.append("" if name == choices[0] else f"{change:+}")
            for figure in told.values():
                known = [one.training[figure] for one in runs if figure in one.training]
                cells.append(f"{sum(known) / len(known):.3f}" if known else "")
            rows.append(cells)
        head = ["choice", *(cell for name in self.figures for cell in (short(name), "change")), *told]
        title = f"Ablations on {task}, seeds {', '.join(map(str, seeds))}: change against the first row"
        return table(title, head, rows)


def short(figure: str) -> str:
    """A held-out figure as a table's head has it."""
    return figure.removeprefix("test/")
