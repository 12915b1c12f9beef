"""The reward for programs: code out of completions, tests out of columns, and public data where it is at hand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stockpot.rewards.programs import Programs, alike, checks_of, reward
from stockpot.rewards.score import score
from stockpot.sandbox import Limits, Sandbox
from stockpot.types import Author, Prompt, Rollout, Span, StockpotError

BENCH = Path(os.environ.get("STOCKPOT_BENCH", Path(__file__).parents[2] / "shared/bench"))
ADD = "def add(a, b):\n    return a + b"
HUMAN = {
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert abs(candidate(0.1, 0.2) - 0.3) < 1e-9",
}
HUMAN_PROMPT = 'from math import floor\n\ndef one():\n    return 1\n\ndef add(a, b):\n    """Adds.\n    """\n'


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        made = Sandbox(2, Limits(seconds=20))
    except StockpotError as error:
        pytest.skip(f"no sandbox at all: {error}")
    with made:
        yield made


def fenced(code: str, name: str = "python") -> str:
    return f"Here it is:\n```{name}\n{code}\n```\nDone."


def ask(made: Programs, completions: list[Any], row: dict[str, Any], prompt: Any = "") -> list[float | None]:
    return made(
        [prompt] * len(completions), completions, **{key: [value] * len(completions) for key, value in row.items()}
    )


def test_humaneval_columns(sandbox: Sandbox) -> None:
    """Whole programs, bodies alone, and what leans on the prompt's helpers; the tests lean on the prompt's own."""
    made = Programs(sandbox=sandbox)
    right = [ADD, "    return a + b", "def add(a, b):\n    return floor(a) + b + (a - floor(a)) * one()"]
    wrong = ["    return a", "def sub(a, b): return a + b", "def add(a, b) return", "import os\nos._exit(0)"]
    scores = ask(made, [fenced(code) for code in right + wrong], HUMAN, HUMAN_PROMPT)
    assert scores == [1, 1, 1, 0, 0, 0, 0]
    assert made.counts["passed"] == 3 and made.counts["wrong"] == 4


def test_a_helper_of_the_prompt_is_the_tests_own(sandbox: Sandbox) -> None:
    """A test that checks with the prompt's helper is not fooled by a completion that redefines it."""
    row = {"entry_point": "root", "test": "def check(candidate):\n    assert abs(value(candidate(4))) < 1e-6"}
    prompt = 'def value(x):\n    return x * x - 4\n\ndef root(n):\n    """A root."""\n'
    lying = "def value(x):\n    return 0\n\ndef root(n):\n    return 77"
    assert ask(Programs(sandbox=sandbox), [fenced(lying), fenced("def root(n): return 2")], row, prompt) == [0, 1]


def test_mbpp_columns(sandbox: Sandbox) -> None:
    tests = ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'", "assert add([1], [2]) == [1, 2]"]
    partly = "def add(a, b): return int(a) + int(b)"
    for held in (tests, str(tests), json.dumps(tests)):
        row = {"test_list": held, "test_setup_code": ""}
        assert ask(Programs(sandbox=sandbox), [fenced(ADD), fenced(partly)], row) == [1, 0]
    shares = ask(Programs(sandbox=sandbox, how="share"), [fenced(ADD), fenced(partly)], row)
    assert shares == [1, pytest.approx(1 / 3)]


ECHO = "import sys\nprint(sum(map(int, sys.stdin.read().split())))"
HOLDERS: dict[str, dict[str, Any]] = {
    "inputs, outputs": {"inputs": ["1 2", "3"], "outputs": ["3\n", "3"]},
    "rllm": {"tests": str({"inputs": ["1 2", "3"], "outputs": ["3 \n", "3"]})},
    "SandboxFusion": {
        "test": json.dumps([{"input": {"stdin": i}, "output": {"stdout": o}} for i, o in (("1 2", "3"), ("3", "3"))])
    },
    "TACO": {"input_output": json.dumps({"inputs": ["1 2", "3"], "outputs": ["3", "3"]})},
    "CodeContests": {
        "public_tests": {"input": ["1 2"], "output": ["3\n"]},
        "private_tests": {"input": ["3"], "output": ["3\n"]},
        "generated_tests": {"input": [], "output": []},
    },
    "list of pairs": {"tests": [{"input": "1 2", "output": "3"}, {"input": "3", "output": "3"}]},
}


@pytest.mark.parametrize("name", HOLDERS)
def test_columns_of_standard_input_and_output(sandbox: Sandbox, name: str) -> None:
    row = HOLDERS[name]
    assert checks_of(row, "").pairs[1][0] == "3" and len(checks_of(row, "")) == 2
    completions = [fenced(ECHO), fenced("print(input())"), fenced("print(3)"), fenced(ECHO + "\nraise ValueError")]
    assert ask(Programs(sandbox=sandbox), completions, row) == [1, 0, 1, 0]
    assert ask(Programs(sandbox=sandbox, how="share"), completions[:2], row) == [1, 0.5]
    assert ask(Programs(sandbox=sandbox, most_tests=1), [completions[2]], row) == [1]


def test_columns_of_a_function_with_inputs(sandbox: Sandbox) -> None:
    row = {"input_output": json.dumps({"fn_name": "add", "inputs": [[1, 2], ["a", "b"]], "outputs": [[3], "ab"]})}
    solution = "class Solution:\n    def add(self, a, b): return a + b"
    assert ask(Programs(sandbox=sandbox), [fenced(ADD), fenced(solution), fenced("def add(a, b): return 3")], row) == [
        1,
        1,
        0,
    ]


def test_which_block_is_the_program() -> None:
    two = fenced("first") + "\n" + fenced("last", "py")
    assert Programs().code(two) == "last\n" and Programs(block="first").code(two) == "first\n"
    assert Programs(block="only").code(two) is None and Programs(block="only").code(fenced("x")) == "x\n"
    assert Programs().code(fenced("x", "cpp")) is None and Programs().code(fenced("x", "")) == "x\n"
    assert Programs().code("x = 1") is None and Programs(bare=True).code("x = 1") == "x = 1"
    assert Programs().code([{"role": "assistant", "content": fenced("x")}]) == "x\n"
    assert Programs().code("```python\nnot closed") is None and Programs().code("") is None


def test_what_cannot_be_told_is_none_and_counted(sandbox: Sandbox) -> None:
    made = Programs(sandbox=sandbox)
    assert ask(made, [fenced(ADD)], {"test_list": []}) == [None]
    assert ask(made, [fenced(ADD)], {"test_list": ["assert add(1, 1) == 2"], "test_setup_code": "1 / 0"}) == [None]
    assert ask(made, ["no code"], {"test_list": ["assert add(1, 1) == 2"]}) == [0]
    assert made.counts["undecided"] == 2 and made.counts["no code"] == 1 and made.counts["no tests"] == 1


def test_columns_that_hold_no_tests_are_an_error_in_one_line() -> None:
    with pytest.raises(StockpotError, match="finds no tests among the columns answer, level") as told:
        ask(Programs(), ["x"], {"answer": "4", "level": 1})
    assert "\n" not in str(told.value)
    with pytest.raises(StockpotError, match="2 inputs for 1 outputs"):
        ask(Programs(), ["x"], {"inputs": ["1", "2"], "outputs": ["1"]})


def test_words_of_outputs_are_compared() -> None:
    assert alike("YES\r\n 1  2 \n", "YES\n1 2") and not alike("YES", "yes") and not alike("1", "1 1")
    assert not alike("1.0000001", "1.0") and alike("1.0000001", "1.0", 1e-6) and not alike("a", "b", 1.0)
    assert not alike("nan", "1", 1e-6)


def test_it_is_a_reward_function_of_the_loop(sandbox: Sandbox) -> None:
    class Reader:
        def batch_decode(self, ids: Any, skip_special_tokens: bool) -> list[str]:
            return [fenced(ADD if row[0] else "x") for row in ids]

    prompt = Prompt("p", [1], text="", columns={"test_list": ["assert add(1, 1) == 2"]})
    rollouts = [Rollout(prompt, (Span(Author("a", 0), [i], [0.0]),)) for i in (0, 1)]
    scored, unknown = score(rollouts, Programs(sandbox=sandbox), Reader())
    assert [r.reward for r in scored] == [0.0, 1.0] and unknown == 0
    assert callable(reward) and reward.how == "all"


# --- public data, where it is at hand --------------------------------------------------------------------------------


def rows(name: str, every: int) -> list[dict[str, Any]]:
    path = BENCH / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"no {path.name}: set STOCKPOT_BENCH to a folder that holds it")
    return [json.loads(line) for line in path.read_text().splitlines()][::every]


def judged(made: Programs, data: list[dict[str, Any]], codes: list[str]) -> list[float | None]:
    columns = {key: [row.get(key) for row in data] for key in data[0] if key != "prompt"}
    return made([row.get("prompt", "") for row in data], [fenced(code) for code in codes], **columns)


def test_humaneval_references(sandbox: Sandbox) -> None:
    """All 164, whole and as bodies; empty bodies pass nothing."""
    data, made = rows("humaneval", 1), Programs(sandbox=sandbox)
    assert judged(made, data, [row["prompt"] + row["canonical_solution"] for row in data]) == [1.0] * 164
    assert judged(made, data[::8], [row["canonical_solution"] for row in data[::8]]) == [1.0] * 21
    assert judged(made, data[::8], ["    return None"] * 21) == [0.0] * 21
    assert made.counts["opaque"] == 0


def test_mbpp_references(sandbox: Sandbox) -> None:
    """All 974 pass (bench/sandbox.py); here every fifth, and those that need care.

    367 and 927 are counted as broken elsewhere, where a setup runs before the code; 126 calls its function `sum`; 533
    is passed types.
    """
    careful = [row for row in rows("mbpp", 1) if int(row["task_id"]) in (126, 367, 533, 927)]
    data = careful + rows("mbpp", 5)
    assert judged(Programs(sandbox=sandbox), data, [row["code"] for row in data]) == [1.0] * len(data)
    assert judged(Programs(sandbox=sandbox), data, ["pass"] * len(data)) == [0.0] * len(data)


def test_code_contests_rows_can_be_judged(sandbox: Sandbox) -> None:
    """There are no solutions in the file: a program that knows the outputs by heart passes, a word more fails."""
    data = rows("code_contests_165", 16)
    known = [dict(checks_of(row, "").pairs) for row in data]
    heart = [f"import sys\nprint({pairs!r}[sys.stdin.read()])" for pairs in known]
    made = Programs(sandbox=sandbox)
    assert judged(made, data, heart) == [1.0] * len(data)
    assert judged(made, data, [code + "\nprint('0')" for code in heart]) == [0.0] * len(data)
