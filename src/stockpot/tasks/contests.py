"""Programming contests: a problem in words, a program as the answer, judged by running it on tests.

Rows of CodeContests and TACO as the hub has them, and of files in their forms or in plain ones, become
`prompt` (a chat of one message), `inputs` and `outputs`; `stockpot.rewards.programs` runs what is answered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from stockpot.tasks.base import Split
from stockpot.tasks.dataset import COLUMN, Dataset, open_rows
from stockpot.types import StockpotError

STATEMENTS = ("description", "question", "problem", "content")
"""Columns that may hold the problem in words; the first that a row has is taken."""
TESTS = ("public_tests", "private_tests", "generated_tests", "input_output", "tests", "test")
"""Columns that may hold tests; all that a row has are taken, in this order."""


@dataclass(frozen=True)
class Contests(Dataset):
    """Contest problems whose programs read standard input and print."""

    train: str = "deepmind/code_contests"
    """JSONL or Parquet file, or a hub id, of training problems."""
    test: str = "BAAI/TACO"
    """The same for held-out problems; empty: the last tenth of the training problems (at least one) is held out."""
    judge: str = "stockpot.rewards.programs:reward"
    """The reward function; it gets the columns `inputs` and `outputs`, lists of text."""
    template: str = (
        "Write a Python 3 program for this problem. It reads standard input and prints to standard output.\n\n"
        "{problem}\n\nEnd your answer with the whole program in one block that begins with ```python."
    )
    """What is asked, with {problem} where the problem stands."""
    most_tests: int = 32
    """Tests of a problem that are run, public ones first; 0 runs all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.most_tests < 0:
            raise StockpotError(f"task.most_tests must be 0 (all of them) or more, not {self.most_tests}.")
        if COLUMN.findall(self.template) != ["problem"]:
            raise StockpotError("task.template must hold {problem} once, and no other column.")

    def read(self, name: str, split: Split) -> Sequence[Mapping[str, Any]]:
        return _problems(name, split, self.most_tests)[0]

    def left_out(self, split: Split) -> str:
        """How many problems cannot be judged by input and output."""
        if split == "test" and not self.test:
            return ""  # the training rows' own end, told with them
        name = self.train if split == "train" else self.test
        used, dropped = _problems(name, split, self.most_tests)
        if not dropped:
            return ""
        return f"{name}: {dropped} of {dropped + len(used)} problems left out, they have no tests of input and output"

    def asked(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        text = COLUMN.sub(lambda _: row["problem"], self.template)
        columns = {name: value for name, value in row.items() if name != "problem"}
        return {"prompt": [{"role": "user", "content": text}], **columns}


@cache
def _problems(name: str, split: Split, most_tests: int) -> tuple[list[dict[str, Any]], int]:
    """The usable problems of a file or hub dataset, and how many are not."""
    found: list[dict[str, Any]] = []
    number = -1
    for number, row in enumerate(open_rows(name, split, (*STATEMENTS, *TESTS))):
        tests = tests_of(row)
        statement = next((str(row[column]) for column in STATEMENTS if row.get(column)), "")
        if not tests or not statement.strip():
            continue
        tests = tests[: most_tests or None]
        inputs, outputs = [given for given, _ in tests], [wanted for _, wanted in tests]
        key = f"{name}/{split}/{number}"
        found.append({"id": key, "problem": statement.strip(), "inputs": inputs, "outputs": outputs})
    if not found:
        raise StockpotError(
            f"{name} has no problem with tests of input and output: it needs a column of {', '.join(STATEMENTS)} "
            f"and one of {', '.join(TESTS)}."
        )
    return found, number + 1 - len(found)


def tests_of(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The tests of a row, input and output; none where they call a function instead of reading input."""
    pairs: list[tuple[str, str]] = []
    for column in TESTS:
        held = row.get(column)
        try:
            held = json.loads(held) if isinstance(held, str) and held.strip() else held
        except ValueError:
            return []
        if isinstance(held, Mapping):
            if held.get("fn_name"):
                return []
            given, wanted = (held.get(name) or held.get(f"{name}s") or [] for name in ("input", "output"))
            if not isinstance(given, list) or not isinstance(wanted, list) or len(given) != len(wanted):
                return []
            pairs += zip(map(text, given), map(text, wanted), strict=True)
        elif isinstance(held, list):
            if not all(isinstance(test, Mapping) for test in held):
                return []
            pairs += [(inner(test, "input", "stdin"), inner(test, "output", "stdout")) for test in held]
    return pairs


def inner(test: Mapping[str, Any], name: str, stream: str) -> str:
    """One side of a test: text, or an object that holds it by the name of its stream."""
    held = test.get(name)
    return text(held.get(stream) if isinstance(held, Mapping) else held)


def text(side: Any) -> str:
    """One side of a test as text: lists are lines."""
    return "\n".join(map(text, side)) if isinstance(side, list) else "" if side is None else str(side)
