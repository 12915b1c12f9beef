"""`stockpot select`: who is kept and why, the file that it writes, and that a kill costs nothing but time."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from runs import TINY, Told, metrics, stockpot
from stockpot.options import PlanOptions, SelectOptions, parted
from stockpot.passk import wilson
from stockpot.tasks.dataset import read_rows
from test_loop import stored
from test_resume import live

WORDS = ("--samples", 4, "--max-tokens", 16)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def selected(started: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Told, Path]:
    """Bounds that keep some of the tiny task's eight prompts and not others; a wave is two prompts."""
    file = tmp_path_factory.mktemp("selected") / "kept.jsonl"
    told = stockpot("select", started, TINY, *WORDS, "--low", 0.25, "--high", 0.5, "--out", file, "--decode-rows", 2)
    assert told.code == 0, told.err
    return told, file


def test_what_is_kept_lies_within_the_bounds_and_the_rest_is_accounted_for(selected: tuple[Told, Path]) -> None:
    told, file = selected
    made_of, *counts = lines(Path(f"{file}.counts"))
    assert list(made_of) == ["made_of"] and len(counts) == 8
    right = {row["id"]: row["correct"] for row in counts}
    rows = lines(file)
    assert [row["id"] for row in rows] == [name for name, c in right.items() if 0.25 < c / 4 <= 0.5]
    assert 0 < len(rows) < 8, "or the test saw nothing"
    for row in rows:
        rate = wilson(4, right[row["id"]])
        assert (row["samples"], row["correct"], row["pass_rate"]) == (4, right[row["id"]], rate.mean)
        assert 0 <= row["pass_low"] == rate.low < rate.mean < rate.high == row["pass_high"] <= 1
        assert row["prompt"].endswith(f"make {row['target']} :") and len(row["numbers"]) == 3
    never, few, many = (sum(map(test, right.values())) for test in (
        lambda c: c == 0, lambda c: c == 1, lambda c: c > 2))  # fmt: skip
    assert f"kept     {len(rows)} of 8 prompts\n" in told.out
    assert f"dropped  {never} never solved, {few} solved in at most 0.25 of their samples, {many} solved in" in told.out
    assert f"sampled  32 responses, {sum(row.get('tokens', 0) for row in counts)} tokens; 0 could not" in told.out
    assert never + few + many + len(rows) == 8


def test_the_interval_holds_what_is_likely_and_no_more() -> None:
    """Its ends are where the sample lies 1.96 deviations of the end's own binomial away."""
    for n in (1, 4, 16, 500):
        for c in range(0, n + 1, max(1, n // 8)):
            found = wilson(n, c)
            assert 0 <= found.low <= found.mean == c / n <= found.high <= 1
            for end in (found.low, found.high):
                if 0 < end < 1:
                    assert abs(c / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n))


def test_prompts_never_solved_are_kept_only_when_asked_for(started: str, tmp_path: Path) -> None:
    """Countdown itself is beyond a model taught for 20 steps. A selection of nothing leaves no file."""
    words = ("select", started, "countdown", *WORDS, "--task.train-prompts", 4, "--out", tmp_path / "kept.jsonl")
    told = stockpot(*words)
    assert told.code == 2 and len(told.complaints) == 1 and not told.out
    assert told.complaints[0].startswith("stockpot: no prompt of 4 is kept (4 never solved, 0 solved in more than 0.3)")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.jsonl.counts"]
    told = stockpot(*words, "--keep-zero")
    assert told.code == 0 and "4 prompts were counted before" in told.err, "nothing is sampled again"
    assert [(row["correct"], row["pass_low"]) for row in lines(tmp_path / "kept.jsonl")] == [(0, 0.0)] * 4


MOMENTS = {
    "before the second wave is stored": "stockpot.report.select:Counts.append:2",
    "before the third is safe": "os:fsync:2",
    "before the file is written": "stockpot.report.select:row_of:1",
    "before it is in its place": "pathlib:Path.rename:2",
}


def test_killed_at_every_kind_of_moment_it_writes_the_same_file(
    selected: tuple[Told, Path], started: str, tmp_path: Path
) -> None:
    _, file = selected
    words = ["select", started, str(TINY), *map(str, WORDS), "--low", "0.25", "--high", "0.5"]
    words += ["--decode-rows", "2", "--out", str(tmp_path / "kept.jsonl")]
    codes, told = live([(moment, 0, words) for moment in [*MOMENTS.values(), ""]], tmp_path)
    assert codes == [-9, -9, -9, -9, 0], told.err
    assert (tmp_path / "kept.jsonl").read_bytes() == file.read_bytes()
    counts = (tmp_path / "kept.jsonl.counts").read_bytes()
    assert counts == Path(f"{file}.counts").read_bytes()


def test_a_torn_line_of_counts_is_sampled_again(selected: tuple[Told, Path], started: str, tmp_path: Path) -> None:
    _, file = selected
    whole = Path(f"{file}.counts").read_text()
    (tmp_path / "kept.jsonl.counts").write_text(whole[: len(whole) * 2 // 3])
    words = ("--low", 0.25, "--high", 0.5, "--out", tmp_path / "kept.jsonl", "--decode-rows", 2)
    assert stockpot("select", started, TINY, *WORDS, *words).code == 0
    assert (tmp_path / "kept.jsonl").read_bytes() == file.read_bytes()


def test_counts_of_something_else_are_refused(selected: tuple[Told, Path], started: str, tmp_path: Path) -> None:
    _, file = selected
    shutil.copy(f"{file}.counts", tmp_path / "kept.jsonl.counts")
    words = ("select", started, TINY, *WORDS, "--out", tmp_path / "kept.jsonl")
    for changed in (("--samples", 5), ("--seed", 1), ("--sampling.temperature", 0.9), ("--task.largest", 8)):
        told = stockpot(*words, *changed)
        assert told.code == 2 and "counted with another" in told.err and told.err.count("\n") == 1
    (tmp_path / "kept.jsonl.counts").write_text("{oops\n")
    assert "is damaged" in stockpot(*words).err
    assert not (tmp_path / "kept.jsonl").exists()


def test_the_file_names_prompts_for_the_task_it_came_from(
    selected: tuple[Told, Path], started: str, tmp_path: Path
) -> None:
    _, file = selected
    told = stockpot(
        "train",
        TINY,
        "--model",
        started,
        "--only",
        file,
        "--steps",
        2,
        "--prompts-per-step",
        2,
        "--out",
        tmp_path / "run",
    )
    assert told.code == 0, told.err
    assert {r.prompt.key for r in stored(tmp_path / "run")} <= {row["id"] for row in lines(file)}


def test_the_file_is_a_dataset(selected: tuple[Told, Path], started: str, tmp_path: Path) -> None:
    """With the task's own judge behind it; a prompt keeps its name."""
    _, file = selected
    (tmp_path / "judge.py").write_text(
        "from stockpot.tasks import Countdown\n\n"
        "def judge(prompts, completions, **columns):\n    return Countdown().reward(prompts, completions, **columns)\n"
    )
    run = tmp_path / "run"
    told = stockpot(
        "train", TINY, "--task", "dataset", "--task.train", file, "--task.test", file, "--model", started, "--out", run,
        "--task.judge", f"{tmp_path / 'judge.py'}:judge", "--steps", 1, "--prefixes", "none", "--prompts-per-step", 2,
    )  # fmt: skip
    assert told.code == 0, told.err
    assert {r.prompt.key for r in stored(run)} <= {row["id"] for row in read_rows(str(file), "train")}
    assert "test/attempts" not in metrics(run)[0], "a task without a view of its own adds no figures"


def test_a_run_is_selected_from_by_its_own_recipe_and_checkpoint(finished: Path, tmp_path: Path) -> None:
    words = ("select", finished, *WORDS, "--high", 1, "--prompts", 3, "--keep-zero")
    for name, step in (("last", ()), ("first", ("--step", 0))):
        told = stockpot(*words, *step, "--out", tmp_path / name)
        assert told.code == 0 and "kept     3 of 3 prompts" in told.out, told.err
    assert [len(lines(tmp_path / f"{name}.counts")) for name in ("last", "first")] == [4, 4]
    tokens = [lines(tmp_path / f"{name}.counts")[1]["tokens"] for name in ("last", "first")]
    assert tokens[0] != tokens[1], "other weights, other words"


REFUSED = {
    "no model": ((), "RUN|MODEL"),
    "no file": (("MODEL",), "--out"),
    "bounds": (("MODEL", "--low", 0.5, "--high", 0.2, "--out", "x"), "low before high"),
    "samples": (("MODEL", "--samples", 0, "--out", "x"), "at least 1"),
    "recipe": (("MODEL", "contdown", "--out", "x"), "did you mean countdown"),
    "a run with a recipe": (("RUN", "countdown", "--out", "x"), "leave countdown out"),
    "an option": (("MODEL", "--smples", 3, "--out", "x"), "there is no option --smples"),
    "a file that is there": (("MODEL", "--out", "there"), "not written over"),
    "a folder that is not": (("./nowhere", "--out", "x"), "./nowhere"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_are_told_in_one_line(
    name: str, started: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("mine\n")
    words, why = REFUSED[name]
    told = stockpot("select", *({"MODEL": started, "RUN": finished}.get(str(word), word) for word in words))
    assert told.code == 2 and told.err.count("\n") == 1 and why in told.err, told.err
    assert [path.name for path in tmp_path.iterdir()] == ["there"] and (tmp_path / "there").read_text() == "mine\n"


def test_a_switch_takes_no_word_with_it() -> None:
    words = ["--keep-zero", "--steps", "3", "--low", "0.1", "--no-keep-zero"]
    assert parted(words, SelectOptions) == (["--keep-zero", "--low", "0.1", "--no-keep-zero"], ["--steps", "3"])
    assert parted(["--gpu", "cpu", "--steps", "3"], PlanOptions) == (["--gpu", "cpu"], ["--steps", "3"])
