"""T1's study: one thing changed at a time, seeds apart, and what is measured on checkpoints that really exist."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest

from stockpot import checkpoints
from stockpot.bench import distance, scaling
from stockpot.bench.cells import Cell, Result, load, run_study
from stockpot.bench.t1 import ARMS, BASE, CLAIMS, GRID, LONG, RATES, SEEDS, TASK, WATCHED, T1Study, config
from stockpot.config import Config, Evaluation
from stockpot.record import Run
from stockpot.types import Sampling
from tiny import recipe

FIGURES = ("test/pass@1", "test/pass@8", "test/length", "test/truncated", "test/recovered", "test/entropy",
           "test/rejected", "test/attempts")  # fmt: skip


def fake(value: float) -> Result:
    rows = [{"step": 15.0 * i, "cpu": float(i)} | dict.fromkeys(FIGURES, value) for i in range(3)]
    return Result("x", "c", 1.0, rows, {"decoded": 1.0})


def results() -> dict[str, Result]:
    found = {f"tune {BASE} {TASK} {rate:g}": fake(rate == RATES[1]) for rate in RATES}
    return found | {
        f"main {arm} {TASK} {seed}": fake(0.1 * i + 0.01 * seed) for i, arm in enumerate(ARMS) for seed in SEEDS
    }


def test_every_arm_differs_from_the_recipe_in_what_its_name_says_and_in_nothing_else() -> None:
    base = config(0, 1e-4)
    for arm, changes in ARMS.items():
        other = config(0, 1e-4, **changes)
        differ = {f.name for f in fields(Config) if getattr(other, f.name) != getattr(base, f.name)}
        assert differ == set(changes), arm
    samples = {arm: config(0, 1e-4, **c).group_size * config(0, 1e-4, **c).prompts_per_step for arm, c in ARMS.items()}
    assert samples["K 4"] == samples["K 64"] == samples[BASE] == 128
    assert config(0, 1e-4, **ARMS["K 64, as many prompts"]).prompts_per_step == base.prompts_per_step
    assert {claim.better for claim in CLAIMS} | {claim.than for claim in CLAIMS} <= set(ARMS)
    room = base.max_tokens
    assert scaling.BUDGETS[-1] == room and list(scaling.BUDGETS) == sorted(set(scaling.BUDGETS))


def test_nothing_is_chosen_on_the_seeds_that_are_reported(tmp_path: Path) -> None:
    study, found = T1Study(), results()
    assert not {c.config.seed for c in study.cells("tune", {})} & {c.config.seed for c in study.cells("main", found)}
    assert {cell.config.learner.learning_rate for cell in study.cells("main", found)} == {RATES[1]}
    assert {cell.start for cell in study.cells("main", found)} <= set(study.starts())
    kept = [cell for cell in study.cells("main", found) if cell.keep]
    assert len(kept) == len(WATCHED) * len(SEEDS) and len({cell.key for cell in kept}) == len(kept)
    assert len(study.calls("distance", tmp_path, found)) == len(kept)
    long = study.cells("long", found)
    assert {cell.config.seed for cell in long} == set(SEEDS) and {cell.config.steps for cell in long} == {LONG}
    assert {cell.config.checkpoint_every for cell in long} == {27}
    assert len(study.calls("budgets", tmp_path, found)) == len(SEEDS)
    report = study.report(found, tmp_path)
    assert "without penalties" in report and report.count("holds") and "| strong KL, frozen" in report
    told = GRID.difference("K 64", "K 4", TASK, found, "test/pass@1")
    assert told is not None and told.mean == pytest.approx(0.1 * ([*ARMS].index("K 64") - [*ARMS].index("K 4")))


def test_kl_at_an_accuracy_lies_between_the_checkpoints_around_it() -> None:
    rows = [{"accuracy": a, "kl": k} for a, k in ((0.2, 0.0), (0.4, 1.0), (0.3, 5.0), (0.6, 7.0))]
    assert [distance.kl_at(rows, level) for level in (0.1, 0.3, 0.45, 0.9)] == pytest.approx([0.0, 0.5, 6.0, 7.0])


class OneRun(T1Study):
    """The tiny recipe in place of the table's runs."""

    def cells(self, part: str, results: object) -> list[Cell]:
        small = replace(recipe, evaluation=Evaluation(2, 2, 2), steps=4, checkpoint_every=2, keep_checkpoints=2)
        small = replace(small, sampling=Sampling(temperature=1.2))
        runs = [replace(small, seed=seed, learner=replace(small.learner, learning_rate=1e-2)) for seed in (0, 1)]
        names = [f"main {BASE} {TASK} {config.seed}" for config in runs]
        return [Cell(name, one, "", keep=True) for name, one in zip(names, runs, strict=True)] * (part == "main")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("t1")
    patch = pytest.MonkeyPatch()
    patch.setattr(distance, "PROMPTS", 4)
    patch.setattr(scaling, "BUDGETS", (4, 8, 12, 16, 24, 32))
    cells = OneRun().cells("main", {})
    run_study(OneRun(), folder, ("main",), jobs=1)
    for cell in cells:
        distance.one(cell, folder)
        scaling.one(cell, folder)
    yield folder
    patch.undo()


def test_distances_are_measured_on_the_checkpoints_from_the_start(made: Path) -> None:
    assert len(load(made)) == 2
    for cell in OneRun().cells("main", {}):
        rows = distance.load(made, distance.ROOM)[cell.name]
        run = Run.open(made / "runs" / cell.key)
        assert [row["step"] for row in rows] == [c.step for c in checkpoints.listed(run.checkpoints)] == [0, 2, 4]
        assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6)  # the start is no distance from itself
        assert rows[-1]["kl"] > 0.01 and rows[-1]["kl_per_token"] == pytest.approx(
            rows[-1]["kl"] / rows[-1]["length"], rel=1e-9
        )
    found = distance.load(made, distance.ROOM)
    assert f"| {BASE}" in distance.report(found, [BASE], TASK, (0, 1))
    assert "KL at equal accuracy" in distance.equal(found, [BASE], TASK, (0, 1))


def test_budget_curves_are_kept_for_every_checkpoint_and_protocol(made: Path) -> None:
    found = distance.load(made, scaling.ROOM)
    assert len(found) == 2
    for curves in found.values():
        assert {(curve["step"], curve["how"]) for curve in curves} == {
            (step, how) for step in (0, 2, 4) for how in scaling.HOWS
        }
        start = {curve["how"]: curve["accuracy"] for curve in curves if curve["step"] == 0}
        assert start["self"] == start["summariser"]  # at the start the summariser is the policy itself
    assert not list((made / scaling.ROOM).glob("*.store"))
    assert "steeper" in scaling.report(found, BASE, TASK, (0, 1))
