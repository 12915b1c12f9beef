"""The benchmarks by name: where they lie, how a row becomes a problem, which traps that avoids."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stockpot.benchmarks import mend
from stockpot.benchmarks.problem import Kind, LeftOut, Problem
from stockpot.rewards.extract import extract

Row = Mapping[str, Any]


def field(row: Row, *names: str) -> Any:
    """The first of these columns that the row has: copies of a set differ in their names."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise LeftOut(f"no column {' or '.join(names)}")


def name_of(row: Row, number: int) -> str:
    """A row's own name, or its place."""
    for column in ("unique_id", "task_id", "id", "idx"):
        if row.get(column) is not None:
            return str(row[column])
    return str(number)


def maths(row: Row, number: int) -> Problem:
    """problem or question, and an answer of any type."""
    question = mend.backslashes(str(field(row, "problem", "question")))
    gold = field(row, "answer")
    answer = mend.written(mend.backslashes(gold) if isinstance(gold, str) else gold)
    if not answer or not mend.whole(answer):
        raise LeftOut("its gold answer is cut short")
    return Problem(name_of(row, number), question, {"answer": mend.undollared(answer)})


def gsm8k(row: Row, number: int) -> Problem:
    """The gold stands after ####, with commas between thousands."""
    solution = str(field(row, "answer"))
    if "####" not in solution:
        raise LeftOut("its answer has no ####")
    answer = solution.rpartition("####")[2].strip().replace(",", "")
    return Problem(name_of(row, number), str(field(row, "question")), {"answer": answer})


def olympiad(row: Row, number: int) -> Problem:
    """Golds in dollars, several in one; some with a unit, one with a tolerance."""
    final = field(row, "final_answer")
    parts = [str(part) for part in final] if isinstance(final, (list, tuple)) else [str(final)]
    columns: dict[str, Any] = {"answer": ",".join(mend.undollared(part) for part in parts)}
    columns["multiple"] = bool(row.get("is_multiple_answer"))
    if row.get("unit"):
        columns["unit"] = mend.undollared(str(row["unit"]))
    if row.get("error"):
        columns["absolute"] = float(row["error"])
    context = str(row.get("context") or "").strip()
    return Problem(name_of(row, number), "\n".join(filter(None, (context, str(field(row, "question"))))), columns)


def minerva(row: Row, number: int) -> Problem:
    """The gold is the last box of the solution, often written as Python writes numbers."""
    answer = mend.written(row["answer"]) if row.get("answer") is not None else extract(str(field(row, "solution")))
    if not answer:
        raise LeftOut("its solution has no box")
    question = str(field(row, "problem", "question"))
    return Problem(name_of(row, number), question, {"answer": mend.scientific(mend.undollared(answer))})


def humaneval(row: Row, number: int) -> Problem:
    """The prompt is the head of a function, its blanks included."""
    columns = {name: field(row, name) for name in ("test", "entry_point", "prompt")}
    return Problem(name_of(row, number), str(row["prompt"]), columns | reference(row, "canonical_solution"))


def mbpp(row: Row, number: int) -> Problem:
    """Only tasks 11 to 510 are the test set; the tests may need a setup. Line ends are Windows'."""
    if not 11 <= int(field(row, "task_id")) <= 510:
        raise LeftOut("not one of tasks 11-510, which are the test set")
    tests = [str(test).replace("\r\n", "\n") for test in field(row, "test_list")]
    setup = str(row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())).replace("\r\n", "\n")
    columns = {"test_list": tests, "test_setup_code": setup}
    return Problem(name_of(row, number), str(field(row, "text", "prompt")), columns | reference(row, "code"))


def codecontests(row: Row, number: int) -> Problem:
    """Tests as two lists, as a JSON string of pairs, or as the hub has them: public, private and generated."""
    if "tests" in row:
        tests = json.loads(row["tests"]) if isinstance(row["tests"], str) else row["tests"]
        inputs, outputs = list(tests["inputs"]), list(tests["outputs"])
    elif "test" in row:
        pairs = json.loads(row["test"]) if isinstance(row["test"], str) else row["test"]
        inputs, outputs = [p["input"]["stdin"] for p in pairs], [p["output"]["stdout"] for p in pairs]
    else:
        parts = [row[name] for name in ("public_tests", "private_tests", "generated_tests") if row.get(name)]
        inputs = [text for part in parts for text in part["input"]]
        outputs = [text for part in parts for text in part["output"]]
    if not inputs or len(inputs) != len(outputs):
        raise LeftOut(f"it has {len(inputs)} inputs for {len(outputs)} outputs")
    question = str(field(row, "problem", "content", "description")).strip()
    return Problem(name_of(row, number), question, {"inputs": inputs, "outputs": outputs})


def reference(row: Row, name: str) -> dict[str, str]:
    """The reference solution, where the file has one: no grader reads it, tests do."""
    return {"reference": str(row[name]).replace("\r\n", "\n")} if row.get(name) else {}


@dataclass(frozen=True)
class Benchmark:
    """A set of problems."""

    name: str
    kind: Kind
    count: int
    """Problems that it is known to have; another number is told."""
    hub: str
    """Its id on the Hugging Face hub, with configuration and split: `id:configuration:split`."""
    read: Callable[[Row, int], Problem]
    files: tuple[str, ...] = ()
    """Names, besides its own, under which a folder may hold it, without their ending."""
    unique: bool = False
    """Leave out a problem that was there before."""


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("math500", "maths", 500, "HuggingFaceH4/MATH-500::test", maths),
        Benchmark("amc23", "maths", 40, "math-ai/amc23::test", maths),
        Benchmark("aime24", "maths", 30, "HuggingFaceH4/aime_2024::train", maths),
        Benchmark("aime25", "maths", 30, "math-ai/aime25::test", maths),
        Benchmark(
            "olympiad", "maths", 675, "Hothan/OlympiadBench:OE_TO_maths_en_COMP:train", olympiad,
            ("olympiadbench", "olympiadbench_math_en_to"),
        ),
        Benchmark("minerva", "maths", 272, "math-ai/minervamath::test", minerva, ("minerva_math",)),
        Benchmark("gsm8k", "maths", 1319, "openai/gsm8k:main:test", gsm8k, ("gsm8k_test",)),
        Benchmark(
            "omni", "maths", 2809, "KbsdJames/Omni-MATH::test", maths, ("omni_math_rule", "omni_math"), unique=True
        ),
        Benchmark("humaneval", "functions", 164, "openai/openai_humaneval::test", humaneval),
        Benchmark("mbpp", "functions", 500, "google-research-datasets/mbpp:full:test", mbpp),
        Benchmark(
            "codecontests", "programs", 165, "deepmind/code_contests::test", codecontests,
            ("code_contests", "code_contests_165"),
        ),
    )
}  # fmt: skip
