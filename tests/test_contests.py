"""Contests: the columns of CodeContests and TACO, what is left out and told, and grading by input and output."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from runs import stockpot
from stockpot.config import load_recipe
from stockpot.prompts import load_prompts
from stockpot.sandbox import shared
from stockpot.tasks import Contests
from stockpot.tasks.contests import tests_of as read_tests
from stockpot.types import StockpotError

BENCH = Path(os.environ.get("STOCKPOT_BENCH", Path(__file__).parents[2] / "shared" / "bench"))
PAIRS = [("1 2\n", "3\n"), ("4 5\n", "9\n"), ("0 0\n", "0\n")]
SIDES = {"input": [given for given, _ in PAIRS], "output": [wanted for _, wanted in PAIRS]}
MANY = {f"{name}s": held for name, held in SIDES.items()}
ROWS: dict[str, dict[str, Any]] = {
    "CodeContests": {
        "description": "Add.",
        "public_tests": {name: held[:1] for name, held in SIDES.items()},
        "private_tests": {name: held[1:2] for name, held in SIDES.items()},
        "generated_tests": {name: held[2:] for name, held in SIDES.items()},
    },
    "TACO": {"question": "Add.", "input_output": json.dumps(MANY), "starter_code": ""},
    "TACO's lines": {
        "question": "Add.",
        "input_output": json.dumps({"inputs": [["1 2", ""], ["4 5", ""], ["0 0", ""]], "outputs": MANY["outputs"]}),
    },
    "plain": {"problem": "Add.", "tests": MANY},
    "objects": {
        "content": "Add.",
        "test": json.dumps([{"input": {"stdin": given}, "output": {"stdout": wanted}} for given, wanted in PAIRS]),
    },
}
USELESS: dict[str, dict[str, Any]] = {
    "a function": {"question": "Add.", "input_output": json.dumps({**MANY, "fn_name": "add"})},
    "no tests": {"question": "Add.", "input_output": ""},
    "empty tests": {"description": "Add.", "public_tests": {"input": [], "output": []}},
    "torn tests": {"question": "Add.", "input_output": '{"inputs": ['},
    "sides of two lengths": {"question": "Add.", "tests": {"inputs": ["1", "2"], "outputs": ["3"]}},
    "no problem": {"question": " ", "tests": MANY},
    "tests that are words": {"question": "Add.", "test": ["assert add(1, 2) == 3"]},
}


class Chat:
    """The least of a chat template: enough to make prompts."""

    def apply_chat_template(self, messages: Any, **options: Any) -> dict[str, list[int]]:
        assert options["add_generation_prompt"]
        return {"input_ids": [ord(letter) % 97 for message in messages for letter in message["content"]]}


def written(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_form_of_row_gives_problem_inputs_and_outputs(row: dict[str, Any], tmp_path: Path) -> None:
    assert read_tests(row) == PAIRS
    task = Contests(train=written(tmp_path / "rows.jsonl", row, row), test="", judge="math:fsum", most_tests=2)
    (asked,), (held_out,) = task.rows("train"), task.rows("test")
    assert asked["prompt"][0]["role"] == "user" and "Add." in asked["prompt"][0]["content"]
    assert (asked["inputs"], asked["outputs"]) == (["1 2\n", "4 5\n"], ["3\n", "9\n"]), "public tests first"
    assert held_out["inputs"] == asked["inputs"] and held_out["id"] != asked["id"]


@pytest.mark.parametrize("row", USELESS.values(), ids=USELESS)
def test_problems_that_cannot_be_judged_are_left_out_and_told(
    row: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("stockpot.prompts.tell", told.append)
    name = written(tmp_path / "rows.jsonl", ROWS["plain"], row, ROWS["TACO"])
    task = Contests(train=name, test=name, judge="math:fsum")
    assert len(load_prompts(task, "train", Chat(), context=0, max_tokens=8)) == 2
    assert told == [f"{name}: 1 of 3 problems left out, they have no tests of input and output"]
    with pytest.raises(StockpotError, match="has no problem with tests of input and output"):
        alone = written(tmp_path / "alone.jsonl", row)
        Contests(train=alone, test=alone, judge="math:fsum").rows("train")


def test_nothing_left_out_is_not_told(tmp_path: Path) -> None:
    name = written(tmp_path / "rows.jsonl", *ROWS.values())
    assert Contests(train=name, test="", judge="math:fsum").left_out("train") == ""
    assert (
        Contests(train=written(tmp_path / "b.jsonl", *USELESS.values(), ROWS["TACO"]), test="").left_out("test") == ""
    )


def test_a_line_end_of_unicode_is_no_line_end_of_a_file(tmp_path: Path) -> None:
    """JSON may hold them bare, and problem statements do."""
    name = written(tmp_path / "rows.jsonl", {"problem": "Add\u2028two\x85numbers.", "tests": MANY}, ROWS["plain"])
    (row,) = Contests(train=name, test="", judge="math:fsum").rows("train")
    assert "Add\u2028two\x85numbers." in row["prompt"][0]["content"]


def test_braces_in_a_problem_are_no_columns(tmp_path: Path) -> None:
    name = written(tmp_path / "rows.jsonl", {"problem": "Print {problem} and {x}.", "tests": MANY}, ROWS["plain"])
    (row,) = Contests(train=name, test="", judge="math:fsum", template="{problem}!").rows("train")
    assert row["prompt"][0]["content"] == "Print {problem} and {x}.!"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"most_tests": -1}, "most_tests must be 0"),
        ({"template": "Solve it."}, r"must hold \{problem\} once"),
        ({"template": "{problem} {solution}"}, r"must hold \{problem\} once"),
        ({"only": -1}, "only must be 0"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(StockpotError, match=told):
        Contests(**options)


def test_programs_are_graded_by_what_they_print(tmp_path: Path) -> None:
    try:
        shared()
    except StockpotError as error:
        pytest.skip(f"no sandbox here: {error}")
    name = written(tmp_path / "rows.jsonl", ROWS["CodeContests"], ROWS["TACO"])
    task = Contests(train=name, test=name)
    rows = task.rows("train")
    programs = ["print(sum(map(int, input().split())))", "print(3)"]
    for code, reward in zip(programs, (1.0, 0.0), strict=True):
        chats = [[{"role": "assistant", "content": f"So:\n```python\n{code}\n```"}]] * 2
        columns = {column: [row[column] for row in rows] for column in ("inputs", "outputs", "id")}
        assert task.reward([row["prompt"] for row in rows], chats, **columns) == [reward] * 2


@pytest.mark.parametrize(("name", "rows", "tests"), [("code_contests_165", 165, 1837), ("code_contests_sf20", 20, 0)])
def test_published_rows_are_read(name: str, rows: int, tests: int) -> None:
    path = BENCH / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"no {path}: set STOCKPOT_BENCH to a folder that has it")
    task = Contests(train=str(path), test=str(path), judge="math:fsum", most_tests=0)
    found = task.rows("test")
    assert len(found) == rows and task.left_out("test") == "" and len({row["id"] for row in found}) == rows
    assert all(len(row["inputs"]) == len(row["outputs"]) > 0 for row in found)
    assert not tests or sum(len(row["inputs"]) for row in found) == tests


def test_the_recipe_is_planned_without_data_or_weights() -> None:
    config = load_recipe("llama3-1-8b-contests")
    assert (config.evaluation.samples, config.evaluation.sampling.temperature) == (20, 0.4)
    told = stockpot("plan", "llama3-1-8b-contests", "--gpu", "b200")
    assert told.code == 0 and "8,030,261,248 parameters" in told.out and "BAAI/TACO" in told.out
