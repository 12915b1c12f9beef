"""A study's runs: each made once, kept with their figures, made anew when their settings change, read off honestly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from runs import metrics, stockpot
from stockpot.bench.cells import Cell, Result, Study, load, result_of, run_study, stale, to_dict
from stockpot.bench.soup import ABLATIONS, DIFFICULTIES, GRID, METHODS, RATES, SEEDS, SoupStudy
from stockpot.bench.tables import Claim, table, verdict
from stockpot.config import Config, Evaluation
from stockpot.passk import Estimate, over_seeds
from stockpot.record import Run
from stockpot.types import StockpotError
from tiny import recipe

SMALL = replace(recipe, evaluation=Evaluation(2, 2, 2), steps=4)


@dataclass(frozen=True)
class Two(Study):
    """Two runs of the tiny recipe from one start."""

    name: ClassVar[str] = "two"
    parts: ClassVar[tuple[str, ...]] = ("first", "second")
    rate: float = 1e-3

    def starts(self) -> dict[str, Config]:
        return {"taught": SMALL, "nobody's": SMALL}

    def cells(self, part: str, results: Mapping[str, Result]) -> list[Cell]:
        config = replace(SMALL, learner=replace(SMALL.learner, learning_rate=self.rate))
        if part == "first":
            return [Cell("one", config, "taught", keep=True)]
        assert "one" in results
        return [Cell("two", replace(config, seed=1), "taught")]

    def report(self, results: Mapping[str, Result], folder: Path) -> str:
        return " ".join(sorted(results))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    run_study(Two(), folder, Two.parts, jobs=1)
    return folder


def test_every_run_is_made_once_and_from_one_start(made: Path) -> None:
    assert [path.name for path in (made / "starts").iterdir()] == ["taught"]
    assert sorted(load(made)) == ["one", "two"]
    assert [path.name.split("-")[0] for path in (made / "runs").iterdir()] == ["one"]  # the other was not to be kept
    before = {path: path.stat().st_mtime_ns for path in (made / "results").iterdir()}
    assert run_study(Two(), made, Two.parts, jobs=1).keys() == {"one", "two"}
    assert {path: path.stat().st_mtime_ns for path in (made / "results").iterdir()} == before
    assert "teaching" in (made / "logs" / "start-taught.txt").read_text()


def test_another_configuration_is_another_run(made: Path) -> None:
    before = load(made)["one"].evaluations
    results = run_study(Two(rate=2e-3), made, ("first",), jobs=1)
    assert results["one"].evaluations != before
    assert len(list((made / "results").glob("one-*.json"))) == 2


def test_a_default_that_changed_is_another_configuration_and_the_newest_of_a_name_is_the_one_asked_for(
    made: Path, tmp_path: Path
) -> None:
    """The key tells only what differs from the defaults, so it would be the same before and after."""
    folder = tmp_path / "study"
    shutil.copytree(made, folder)
    (cell,) = Two().cells("first", {})
    assert not stale(folder, cell)
    kept = json.loads(result_of(folder, cell).read_text())
    other = result_of(folder, cell).with_name("one-elsewhere.json")
    other.write_text(json.dumps(kept | {"commit": "newer"}))
    assert load(folder)["one"].commit == "newer"
    assert run_study(Two(), folder, ("first",), jobs=1)["one"].commit == kept["commit"]
    kept["config"]["max_tokens"] += 1
    result_of(folder, cell).write_text(json.dumps(kept))
    assert stale(folder, cell)


def test_a_result_holds_what_the_record_says(made: Path) -> None:
    (folder,) = [path for path in (made / "runs").iterdir() if (path / "metrics.jsonl").exists()][:1]
    run, rows = Run.open(folder), metrics(folder)
    told = to_dict("x", run, 1.0)
    assert [row["test/pass@1"] for row in told["evaluations"]] == [r["test/pass@1"] for r in rows if "test/pass@1" in r]
    worked = [line.get("cpu", 0.0) for line in run.metrics("timings.jsonl")]
    assert told["evaluations"][-1]["cpu"] == pytest.approx(sum(worked)) and min(worked[1:]) > 0
    late = [row["all/entropy"] for row in rows if row["step"] > 2]
    assert told["training"]["all/entropy"] == pytest.approx(sum(late) / len(late))
    assert told["training"]["decoded"] == sum(row.get("rollout/decoded", 0) for row in rows)


def test_figures_at_equal_work_lie_on_straight_lines() -> None:
    rows = [{"cpu": 0.0, "a": 0.0}, {"cpu": 10.0, "a": 1.0}, {"cpu": 20.0, "a": 0.5}]
    one = Result("x", "c", 1.0, rows, {})
    assert [one.at(cpu, "a") for cpu in (0, 5, 10, 15, 20, 99)] == [0.0, 0.5, 1.0, 0.75, 0.5, 0.5]


def test_verdicts_follow_the_interval() -> None:
    above, below, unclear = Estimate(0.2, 0.1, 0.3), Estimate(-0.2, -0.3, -0.1), Estimate(0.1, -0.1, 0.3)
    assert [verdict(one) for one in (above, below, unclear)] == ["holds", "does not hold", "undecided"]
    less = Claim("less is claimed", "a", "b", "figure", -1)
    assert [less.verdict(one) for one in (above, below, unclear)] == ["does not hold", "holds", "undecided"]
    assert f"{above:+}" == "+0.200 [+0.100, +0.300]"
    assert table("t", ["a", "b"], [["1", "22"]]).splitlines() == ["**t**", "", "| a | b  |", "|---|----|", "| 1 | 22 |"]


def fake(pass1: float, clip: float = 0.0) -> Result:
    row = {"test/pass@1": pass1, "test/pass@16": 0.9, "test/entropy": 0.2, "cpu": 1.0}
    return Result("x", "c", 1.0, [row | {"cpu": 0.0}, row], {"all/clip_loss": clip, "decoded": 5.0})


def results() -> dict[str, Result]:
    found = {
        f"tune {m} {d} {rate:g}": fake(0.5 - abs(rate - RATES[i % 3]))
        for i, m in enumerate(METHODS)
        for d in DIFFICULTIES
        for rate in RATES
    }
    return found | {
        f"main {m} {d} {seed}": fake(0.1 * i + 0.01 * seed, 0.1 * i)
        for i, m in enumerate(METHODS)
        for d in DIFFICULTIES
        for seed in SEEDS
    }


def test_the_soup_study_keeps_tuning_and_reporting_apart_and_reads_its_runs_right(tmp_path: Path) -> None:
    study, found = SoupStudy(), results()
    tuned = {cell.config.seed for cell in study.cells("tune", {})} | {
        c.config.seed for c in study.cells("ablate", found)
    }
    assert not tuned & {cell.config.seed for cell in study.cells("main", found)}
    assert [GRID.rate_of(m, found) for m in METHODS] == [RATES[i % 3] for i in range(len(METHODS))]
    for cell in study.cells("main", found):
        assert cell.config.learner.learning_rate == GRID.rate_of(cell.name.split()[1], found)
        assert cell.start in study.starts()
    assert len({cell.key for cell in study.cells("ablate", found)}) == 3 * len(ABLATIONS)
    told = GRID.difference("soup-history", "grpo", "easy", found, "test/pass@1")
    assert told == over_seeds([0.1] * len(SEEDS)) or (told is not None and told.mean == pytest.approx(0.1))
    report = study.report(found, tmp_path)
    assert "soup-history ends above GRPO in pass@1" in report and "holds" in report
    with pytest.raises(StockpotError, match="run the part tune first"):
        study.cells("main", {})


def test_the_command_prints_what_is_there_and_refuses_the_rest(tmp_path: Path) -> None:
    told = stockpot("bench", "soup", "--out", tmp_path, "--parts", "report")
    assert told.code == 2 and "no results" in told.err
    assert "--parts are some of tune, main" in stockpot("bench", "soup", "--parts", "tunes").err
    (tmp_path / "results").mkdir()
    for name, one in results().items():
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(vars_of(one, name)))
    told = stockpot("bench", "soup", "--out", tmp_path, "--parts", "report")
    assert told.code == 0 and "**Claims" in told.out and "| luffy" in told.out


def vars_of(one: Result, name: str) -> dict[str, Any]:
    names = ("commit", "seconds", "evaluations", "training")
    return {"name": name, **{key: getattr(one, key) for key in names}}
