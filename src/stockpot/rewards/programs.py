"""A reward for programs: the code of a completion is run in the sandbox, against tests that it never sees.

The columns of three kinds of data sets are understood, as they come (JSON text and Python literals included):

* HumanEval: `test`, `entry_point`, and `prompt` or `code_prompt`, the beginning of the program,
* MBPP: `test_list`, and `test_setup_code` (or TRL's and EvalPlus' `test_imports`),
* CodeContests, TACO: `inputs` and `outputs`, or `input_output`, `tests`, `test`, or `public_tests`, `private_tests`
  and `generated_tests` that hold them.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stockpot.sandbox import Job, Limits, Outcome, Program, Sandbox, Tests, shared
from stockpot.types import StockpotError

HOLDERS = ("tests", "test", "input_output", "public_tests", "private_tests", "generated_tests")
"""Columns that hold inputs and outputs, or lists of them."""
BLOCK = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```", re.M | re.S)


@dataclass(frozen=True)
class Checks:
    """What one row asks of a program: tests in Python, or pairs of input and output."""

    tests: tuple[str, ...] = ()
    setup: str = ""
    entry: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    begun: str = ""
    """Code that the completion goes on from, or builds on."""
    after: str = ""
    """Code that is put behind the completion's."""

    def __len__(self) -> int:
        return len(self.tests) + len(self.pairs)


@dataclass(frozen=True)
class Programs:
    """The reward function: 1 for a program that passes all of its row's tests, 0 for one that does not.

    None where it cannot tell: a row without tests, tests whose own setup fails, a sandbox that fails twice. Whoever
    asks counts those as wrong (`stockpot.rewards.score` does, and says how many).
    """

    how: Literal["all", "share"] = "all"
    """"share" gives the share of the tests passed instead; "all" stops at the first that fails."""
    block: Literal["last", "first", "only"] = "last"
    """Which fenced block of a completion is the program; "only" wants exactly one."""
    bare: bool = False
    """Whether a completion without a fenced block is a program as a whole; else it is wrong."""
    tolerance: float = 0.0
    """Numbers in an output may be off by this, absolutely or relatively; 0 compares words as text."""
    most_tests: int = 0
    """Run only the first so many tests of a row; 0 runs all."""
    limits: Limits = Limits(seconds=15.0, cpu_seconds=6.0)
    """For each program run; all tests of a row in Python share one."""
    sandbox: Sandbox | None = None
    """Where; None takes this process's own."""
    counts: Counter[str] = field(default_factory=Counter, compare=False)
    """What has been seen so far: passed, wrong, no code, timeout, crashed, undecided, opaque, tests cut ..."""

    @property
    def __name__(self) -> str:
        return "programs"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> list[float | None]:
        """One number per completion, or None."""
        rows = [{name: values[i] for name, values in columns.items()} for i in range(len(completions))]
        checks = [self._cut(checks_of(row, prompt)) for row, prompt in zip(rows, prompts, strict=True)]
        codes = [self.code(completion) for completion in completions]
        scores: list[float | None] = [None if not check else 0.0 for check in checks]
        self.counts["no tests"] += scores.count(None)
        self.counts["no code"] += sum(code is None for code in codes)
        open_ = [
            (i, code, check)
            for i, (code, check) in enumerate(zip(codes, checks, strict=True))
            if check and code is not None
        ]
        for i, score in self._judge(open_):
            scores[i] = score
        for score in scores:
            self.counts["undecided" if score is None else "passed" if score == 1.0 else "wrong"] += 1
        return scores

    def _cut(self, check: Checks) -> Checks:
        most = self.most_tests
        if not most or len(check) <= most:
            return check
        self.counts["tests cut"] += len(check) - most
        return Checks(check.tests[:most], check.setup, check.entry, check.pairs[:most], check.begun, check.after)

    def code(self, completion: Any) -> str | None:
        """The program in a completion; None where there is none."""
        text = completion if isinstance(completion, str) else str(completion[-1]["content"]) if completion else ""
        found: list[str] = [
            code for name, code in BLOCK.findall(text) if name.lower() in ("", "python", "py", "python3")
        ]
        if not found:
            return text if self.bare and text.strip() else None
        if self.block == "only" and len(found) != 1:
            return None
        return found[0] if self.block == "first" else found[-1]

    def _judge(self, rows: Sequence[tuple[int, str, Checks]]) -> list[tuple[int, float | None]]:
        """Programs against their tests, round by round: pairs one job each, so that a failure can end it early."""
        sandbox = self.sandbox or shared()
        passed: dict[int, list[bool | None]] = {i: [] for i, _, _ in rows}
        alive = list(rows)
        for turn in itertools.count():
            width = 1 if self.how == "all" and turn == 0 else 8
            asked = [
                (i, job, want) for i, code, check in alive for job, want in jobs(code, check, len(passed[i]), width)
            ]
            if not asked:
                break
            for (i, _, want), outcome in zip(
                asked, sandbox.run([job for _, job, _ in asked], self.limits), strict=True
            ):
                passed[i] += self._passed(outcome, want)
            alive = [row for row in alive if self.how == "share" or all(passed[row[0]])]
        sizes = {i: len(check) for i, _, check in rows}
        return [(i, self._score(flags, sizes[i])) for i, flags in passed.items()]

    def _passed(self, outcome: Outcome, want: str | None) -> list[bool | None]:
        if outcome.end != "done":
            self.counts[outcome.end] += 1
        self.counts["opaque"] += outcome.opaque
        if outcome.end == "lost" or outcome.broken:
            return [None] * max(len(outcome.passed), 1)
        if want is None:
            return list(outcome.passed)
        return [outcome.ok and alike(outcome.stdout, want, self.tolerance)]

    def _score(self, flags: Sequence[bool | None], size: int) -> float | None:
        if self.how == "share":
            return None if None in flags else sum(map(bool, flags)) / size
        if False in flags:
            return 0.0
        return None if None in flags else 1.0


def jobs(code: str, check: Checks, done: int, width: int) -> list[tuple[Job, str | None]]:
    """The next jobs of a row, each with the output wanted; None where the job judges itself."""
    whole = f"{check.begun}\n{code}" if check.begun else code
    if check.begun and not defines(code, check.entry):
        whole = check.begun.rstrip("\n") + "\n" + code
    if check.tests:
        return [] if done else [(Tests(whole + check.after, check.tests, check.setup, check.entry), None)]
    return [(Program(whole, given), want) for given, want in check.pairs[done : done + width]]


def defines(code: str, name: str) -> bool:
    """Whether a piece of code is a whole that defines this function, not the rest of one."""
    try:
        return any(getattr(node, "name", "") == name for node in ast.parse(code).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def alike(got: str, want: str, tolerance: float = 0.0) -> bool:
    """Whether two outputs agree word for word, blanks and line ends aside; numbers may be a little off, if asked.

    >>> alike("1 2\\n3\\n", "1 2 3"), alike("0.3333", "0.33333333"), alike("0.3333", "0.33333333", 1e-3)
    (True, False, True)
    """
    left, right = got.split(), want.split()
    if len(left) != len(right):
        return False
    return all(a == b or (tolerance > 0 and _near(a, b, tolerance)) for a, b in zip(left, right, strict=True))


def _near(a: str, b: str, tolerance: float) -> bool:
    try:
        return math.isclose(float(a), float(b), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:
        return False


def checks_of(row: Mapping[str, Any], prompt: Any) -> Checks:
    """The tests of a row, by its columns."""
    if row.get("entry_point") and isinstance(row.get("test"), str):
        begun = row.get("code_prompt") or (prompt if isinstance(prompt, str) else "")
        begun = begun if defines(begun, row["entry_point"]) else ""
        return Checks((f"{row['test']}\ncheck({row['entry_point']})",), begun, row["entry_point"], begun=begun)
    if row.get("test_list") is not None:
        setup = [row.get("test_setup_code") or "", *(opened(row.get("test_imports")) or ())]
        tests = tuple(map(str, opened(row["test_list"]) or ()))
        return Checks(tests, "\n".join(setup), shadowing(tests))
    held = [opened(row[name]) for name in HOLDERS if row.get(name) is not None]
    held += [row] if row.get("inputs") is not None else []
    if not held:
        raise StockpotError(
            f"the programs reward finds no tests among the columns {', '.join(sorted(row)) or '(none)'}: it reads test "
            "+ entry_point, test_list, inputs + outputs, input_output, tests, or public_tests and private_tests."
        )
    for holder in held:
        if isinstance(holder, Mapping) and holder.get("fn_name"):
            return _function(str(holder["fn_name"]), holder)
    return Checks(pairs=tuple((text(given), text(want)) for holder in held for given, want in pairs(holder)))


def _function(name: str, holder: Mapping[str, Any]) -> Checks:
    """Pairs of arguments and result, as APPS and TACO write them for problems that want a function."""
    tests = []
    for given, want in pairs(holder):
        if isinstance(given, str):
            given = [opened(line) for line in given.splitlines()]
        results = [want, *want] if isinstance(want, list | tuple) and len(want) == 1 else [want]
        tests.append(f"assert {name}(*{list(given)!r}) in {results!r}")
    after = f"\nif 'Solution' in globals(): {name} = Solution().{name}"
    return Checks(tuple(tests), entry=name, after=after)


def shadowing(tests: Sequence[str]) -> str:
    """The function that asserts are about where it is named like one of Python's (MBPP 126 wants a `sum`); else empty.

    >>> shadowing(["assert sum(10, 15) == 6"]), shadowing(["assert sum(f(2)) == 6"]), shadowing(["assert f(1)"])
    ('sum', '', '')
    """
    names: set[str] = set()
    for test in tests:
        try:
            called = [node.func for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Call)]
        except (SyntaxError, ValueError):
            return ""
        names |= {node.id for node in called if isinstance(node, ast.Name)}
    return names.pop() if len(names) == 1 and names <= set(dir(builtins)) else ""


def opened(value: Any) -> Any:
    """A column as data; text is read as JSON or as a Python literal."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        pass
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return None


def pairs(held: Any) -> list[tuple[Any, Any]]:
    """(input, output) pairs of {inputs, outputs}, {input, output}, or a list of {input: {stdin}, output: {stdout}}."""
    if isinstance(held, Mapping):
        given = opened_list(held.get("inputs", held.get("input")))
        want = opened_list(held.get("outputs", held.get("output")))
        if len(given) != len(want):
            raise StockpotError(f"a row has {len(given)} inputs for {len(want)} outputs: mend the data set.")
        return list(zip(given, want, strict=True))
    if isinstance(held, Sequence) and not isinstance(held, str):
        return [(item["input"], item["output"]) for item in held if isinstance(item, Mapping)]
    return []


def opened_list(value: Any) -> list[Any]:
    """A list, given as one or as text."""
    data = opened(value)
    return list(data) if isinstance(data, list | tuple) else []


def text(value: Any) -> str:
    """One input or output: text, {stdin: text}, {stdout: text}, or a list of lines."""
    if isinstance(value, Mapping):
        return text(value.get("stdin", value.get("stdout", "")))
    if isinstance(value, list | tuple):
        return "\n".join(map(str, value))
    return str(value)


reward = Programs()
"""The reward function with its defaults."""
