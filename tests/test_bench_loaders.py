"""Loaders: every trap that the benchmarks' files are known to hold; and the files themselves, where they are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from small import bench_data, write_rows
from stockpot.benchmarks import BENCHMARKS, Problem, judge, load, mend
from stockpot.benchmarks.load import find
from stockpot.types import StockpotError

COUNTS = {
    "math500": 500, "amc23": 40, "aime24": 30, "aime25": 30, "olympiad": 675, "gsm8k": 1319, "humaneval": 164,
    "mbpp": 500, "codecontests": 165,
}  # fmt: skip


def read(name: str, rows: list[dict[str, Any]], tmp_path: Path) -> tuple[list[Problem], list[str]]:
    told: list[str] = []
    problems = load(BENCHMARKS[name], str(write_rows(tmp_path / "rows.jsonl", rows)), tell=told.append)
    return problems, told


def answers(problems: list[Problem]) -> list[str]:
    return [problem.columns["answer"] for problem in problems]


# --- traps ----------------------------------------------------------------------------------------------------------


def test_answers_are_text_whichever_type_the_file_gave_them(tmp_path: Path) -> None:
    rows = [{"problem": str(i), "answer": answer} for i, answer in enumerate((27.0, 70, "204", 0.5, " 7 "))]
    assert answers(read("amc23", rows, tmp_path)[0]) == ["27", "70", "204", "0.5", "7"]


def test_lost_backslashes_are_put_back_and_real_tabs_stay(tmp_path: Path) -> None:
    rows = [
        {"problem": "$\frac{1}{2}$ of $\triangle ABC$, $\theta \times \alpha$", "answer": "\frac{1}{2}"},
        {"problem": "{\n\treturn 2;\n}\thave\tequal\tsides", "answer": "1"},
        {"problem": "$\beta$ and $\rho$ and $\bar{x}$", "answer": "2"},
    ]
    found, _ = read("omni", rows, tmp_path)
    assert found[0].question == r"$\frac{1}{2}$ of $\triangle ABC$, $\theta \times \alpha$"
    assert found[0].columns["answer"] == r"\frac{1}{2}"
    assert found[1].question == rows[1]["problem"]
    assert found[2].question == r"$\beta$ and $\rho$ and $\bar{x}$"


def test_golds_cut_short_and_problems_told_twice_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        {"problem": "one", "answer": r"\frac{11}{2^{20}"},
        {"problem": "two", "answer": "2"},
        {"problem": "two ", "answer": "2"},
        {"problem": "three", "answer": r"\{1,2\}"},
    ]
    found, told = read("omni", rows, tmp_path)
    assert [p.question for p in found] == ["two", "three"]
    assert any("1 of 4 rows left out: its gold answer is cut short" in line for line in told)
    assert any("1 of 4 rows left out: the same problem stands before it" in line for line in told)
    assert any("2 problems in" in line and "2809 are known" in line for line in told)


def test_olympiad_golds_lose_their_dollars_and_keep_what_else_is_known(tmp_path: Path) -> None:
    common = {"question": "?", "context": None, "error": None, "unit": None, "is_multiple_answer": False}
    rows = [
        {**common, "id": 1, "final_answer": ["$69$,$84$"], "is_multiple_answer": True},
        {**common, "id": 2, "final_answer": ["$(-\\infty, 0) \\cup\\{1\\}$."]},
        {**common, "id": 3, "final_answer": ["4.2"], "unit": "%", "error": "1e-1"},
        {**common, "id": 4, "final_answer": ["$166$"], "unit": "$cm^2$", "context": "Let it be."},
    ]
    found, _ = read("olympiad", rows, tmp_path)
    assert answers(found) == ["69,84", "(-\\infty, 0) \\cup\\{1\\}", "4.2", "166"]
    assert [p.columns.get("multiple") for p in found] == [True, False, False, False]
    assert found[2].columns["absolute"] == 0.1 and found[3].columns["unit"] == "cm^2"
    assert found[3].question == "Let it be.\n?"


def test_an_absolute_error_is_allowed_where_the_row_allows_it() -> None:
    """4.25 is within 0.1 of 4.2, and 4.5 within a tenth of it: that would be a relative error."""
    allowed, strict = Problem("0", "?", {"answer": "4.2", "absolute": 0.1}), Problem("1", "?", {"answer": "4.2"})

    def rewards(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        assert columns["answer"] == ["4.2"] * len(completions)
        return [float("4.2}" in text) for text in completions]

    said = [judge.Response(p, "?", f"\\boxed{{{x}}}") for p in (allowed, strict) for x in ("4.2", "4.25", "4.5", "x")]
    assert [g.reward for g in judge.grade("maths", said, rewards)] == [1, 1, 0, 0, 1, 0, 0, 0]


def test_minerva_golds_are_the_last_box_in_latex(tmp_path: Path) -> None:
    golds = ["4.5e33", "-1./3", "np.arcsin(10/13)", "1e-3", "12.", "2 e", "\\frac{e}{2}", "np.sqrt(2)", "0.5"]
    rows = [{"problem": str(i), "solution": f"\\boxed{{no}}, so \\boxed{{{gold}}}"} for i, gold in enumerate(golds)]
    assert answers(read("minerva", rows, tmp_path)[0]) == [
        r"4.5 \times 10^{33}", "-1/3", r"\arcsin(10/13)", r"1 \times 10^{-3}", "12", "2 e", r"\frac{e}{2}",
        r"\sqrt{2}", "0.5",
    ]  # fmt: skip


def test_gsm8k_golds_stand_after_the_marks_without_commas(tmp_path: Path) -> None:
    rows = [{"question": "?", "answer": "<<1+1=2>>\n#### 2,125"}, {"question": "?", "answer": "#### -7"}]
    assert answers(read("gsm8k", rows, tmp_path)[0]) == ["2125", "-7"]


def test_mbpp_is_tasks_11_to_510_with_setup_and_unix_line_ends(tmp_path: Path) -> None:
    rows = [
        {"task_id": i, "text": "?", "code": "a\r\nb", "test_list": ["assert f()\r\n"], "test_setup_code": "x\r\ny"}
        for i in (10, 11, 510, 511)
    ]
    found, told = read("mbpp", rows, tmp_path)
    assert [p.key for p in found] == ["11", "510"] and any("2 of 4 rows left out" in line for line in told)
    assert found[0].columns == {"test_list": ["assert f()\n"], "test_setup_code": "x\ny", "reference": "a\nb"}


def test_contest_tests_come_in_three_shapes(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"problem": "a", "tests": {"inputs": ["1\n"], "outputs": ["2\n"]}},
        {"id": 7, "content": "b", "test": json.dumps([{"input": {"stdin": "1\n"}, "output": {"stdout": "2\n"}}])},
        {
            "description": "c", "public_tests": {"input": ["1\n"], "output": ["2\n"]},
            "private_tests": {"input": [], "output": []}, "generated_tests": {"input": ["3\n"], "output": ["4\n"]},
        },
        {"problem": "d", "tests": {"inputs": ["1"], "outputs": []}},
    ]  # fmt: skip
    found, told = read("codecontests", rows, tmp_path)
    assert [p.columns["inputs"] for p in found] == [["1\n"], ["1\n"], ["1\n", "3\n"]]
    assert [p.columns["outputs"] for p in found] == [["2\n"], ["2\n"], ["2\n", "4\n"]]
    assert any("it has 1 inputs for 0 outputs" in line for line in told)


def test_humaneval_prompts_keep_their_blanks_and_references_reach_no_grader(tmp_path: Path) -> None:
    prompt = "def one():\n    '''1'''\n"
    row = {
        "task_id": "H/0",
        "prompt": prompt,
        "test": "t",
        "entry_point": "one",
        "canonical_solution": "    return 1\n",
    }
    ((problem,), _) = read("humaneval", [row], tmp_path)
    assert problem.question == prompt
    seen: dict[str, Any] = {}

    def rewards(**given: Any) -> list[float]:
        seen.update(given)
        return [1.0]

    judge.grade("functions", [judge.Response(problem, "in a template", "    return 1")], rewards)
    assert seen == {"prompts": [prompt], "completions": ["    return 1"], "test": ["t"], "entry_point": ["one"]}


def test_rows_may_hold_any_line_mark_but_a_line_feed(tmp_path: Path) -> None:
    """U+2028, U+0085 and form feeds end lines for Python's splitlines, not for JSON lines."""
    path = tmp_path / "amc23.jsonl"
    rows = [{"problem": f"a{mark}b", "answer": "1"} for mark in ("\u2028", "\u0085", "\x1c")]
    path.write_text("".join(json.dumps(row, ensure_ascii=False).replace("\\u001c", "\\u001c") + "\n" for row in rows))
    assert [p.question for p in load(BENCHMARKS["amc23"], str(tmp_path), tell=lambda line: None)] == [
        "a\u2028b", "a\u0085b", "a\x1cb",
    ]  # fmt: skip


def test_keys_are_unique_and_a_set_without_problems_is_refused(tmp_path: Path) -> None:
    rows = [{"id": 0, "problem": "a", "answer": 1}, {"id": 0, "problem": "b", "answer": 2}]
    assert len({p.key for p in read("aime24", rows, tmp_path)[0]}) == 2
    with pytest.raises(StockpotError, match="holds no problem of math500"):
        read("math500", [{"text": "a"}], tmp_path)


def test_without_a_folder_the_hub_is_asked_with_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STOCKPOT_BENCH", raising=False)
    assert find(BENCHMARKS["gsm8k"], "") == ("openai/gsm8k", "main:test")
    assert find(BENCHMARKS["math500"], "") == ("HuggingFaceH4/MATH-500", "test")
    assert find(BENCHMARKS["math500"], "me/other:small:train") == ("me/other", "small:train")


def test_parquet_files_are_read(tmp_path: Path) -> None:
    parquet, table = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow").Table
    parquet.write_table(table.from_pylist([{"problem": "a", "answer": 27.0}]), tmp_path / "amc23.parquet")
    assert answers(load(BENCHMARKS["amc23"], str(tmp_path), tell=lambda line: None)) == ["27"]


# --- the real files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COUNTS)
def test_the_real_files_are_read_whole(name: str) -> None:
    told: list[str] = []
    problems = load(BENCHMARKS[name], str(bench_data()), tell=told.append)
    assert len(problems) == COUNTS[name] == BENCHMARKS[name].count == len({p.key for p in problems})
    assert told == (
        ["mbpp: 474 of 974 rows left out: not one of tasks 11-510, which are the test set"] * (name == "mbpp")
    )
    for problem in problems:
        assert problem.question.strip() and not any(mark in problem.question for mark in "\f\b\v\a")
        if BENCHMARKS[name].kind == "maths":
            assert problem.columns["answer"] and "$" not in problem.columns["answer"].replace("\\$", "")
            assert mend.whole(problem.columns["answer"])


def test_the_real_files_traps_are_where_they_are_known_to_be() -> None:
    data = str(bench_data())
    aime, olympiad = (load(BENCHMARKS[name], data) for name in ("aime25", "olympiad"))
    assert all(r"\frac" in aime[i].question for i in (18, 27)) and r"\triangle DEF" in aime[19].question
    assert sum(p.columns["multiple"] for p in olympiad) == 94 and sum("unit" in p.columns for p in olympiad) == 8
    assert [(p.key, p.columns["absolute"]) for p in olympiad if "absolute" in p.columns] == [("2592", 0.1)]


@pytest.mark.parametrize("name", [name for name in COUNTS if BENCHMARKS[name].kind == "maths"])
def test_the_real_golds_are_right_by_their_grader(name: str) -> None:
    pytest.importorskip("math_verify")
    problems = load(BENCHMARKS[name], str(bench_data()))
    said = [judge.Response(p, "", f"So the answer is $\\boxed{{{p.columns['answer']}}}$.") for p in problems]
    wrong = [
        p for p, g in zip(problems, judge.grade("maths", said, judge.grader("maths")), strict=True) if g.reward != 1
    ]
    assert not wrong, [p.columns["answer"] for p in wrong]


@pytest.mark.parametrize(("name", "known"), [("humaneval", []), ("mbpp", ["123"])])
def test_the_real_reference_solutions_pass(name: str, known: list[str]) -> None:
    """But MBPP's 123, whose reference runs for seconds: a busy machine ends it."""
    problems = load(BENCHMARKS[name], str(bench_data()))
    reward = judge.grader("functions", bare=True)
    said = [judge.Response(p, "", p.columns["reference"]) for p in problems]
    wrong = [p.key for p, g in zip(problems, judge.grade("functions", said, reward), strict=True) if g.reward != 1]
    assert set(wrong) <= set(known)


def test_an_empty_program_passes_no_real_contest() -> None:
    problems = load(BENCHMARKS["codecontests"], str(bench_data()))[:20]
    said = [judge.Response(p, "", "```python\npass\n```") for p in problems]
    assert not any(g.reward for g in judge.grade("programs", said, judge.grader("programs")))
