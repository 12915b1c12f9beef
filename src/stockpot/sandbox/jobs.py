"""What can be asked of a sandbox, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from stockpot.sandbox.guest.plain import decode, encode
from stockpot.types import StockpotError

End = Literal["done", "timeout", "output", "crashed", "lost"]
"""Why a job ended: by itself; out of time; too much output; killed by a signal; the sandbox itself failed."""


@dataclass(frozen=True)
class Limits:
    """What one job may use."""

    seconds: float = 5.0
    """Time on the clock."""
    cpu_seconds: float = 10.0
    """Time on the processor, over all threads; counted in whole seconds, rounded up."""
    memory_mb: int = 1024
    """Address space of its process."""
    output_kb: int = 1024
    """What it may print, and what it may return."""

    def __post_init__(self) -> None:
        if not 0.01 <= self.seconds <= 3600 or not 0 < self.cpu_seconds <= 3600:
            raise StockpotError("limits.seconds and cpu_seconds must lie in 0.01..3600.")
        if self.memory_mb < 64 or self.output_kb < 1:
            raise StockpotError("limits.memory_mb must be at least 64 and limits.output_kb at least 1.")


@dataclass(frozen=True)
class Program:
    """A program that reads standard input and prints."""

    code: str
    stdin: str = ""


@dataclass(frozen=True)
class Calls:
    """A function, or any expression that makes one, called on many inputs."""

    code: str
    """A module; may be empty."""
    entry: str
    """The function's name, or an expression such as `lambda x: x + 1`, evaluated in that module."""
    inputs: Sequence[Sequence[Any]]
    """One sequence of arguments per call, as plain data."""


@dataclass(frozen=True)
class Tests:
    """Tests in Python, run in another process than the code that they test, which sees their arguments alone."""

    __test__ = False

    code: str
    """The candidate: a module."""
    tests: Sequence[str]
    """Each is a piece of Python that raises where the candidate is wrong, as `assert f(2) == 4`."""
    setup: str = ""
    """Python that runs before the tests, beside them."""
    entry: str = ""
    """A name that is the candidate's even where `setup` defines it. Names that tests use undefined are its anyway."""


Job = Program | Calls | Tests


@dataclass(frozen=True)
class Value:
    """What one call returned, or why it did not."""

    value: Any = None
    error: str = ""
    """Type and message of what was raised; "timeout", "crashed" ... where the process ended. Empty: it returned."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job. Everything in it is plain data, made in this process."""

    end: End
    code: int = 0
    """Exit code of the process; minus the signal's number where one killed it."""
    stdout: str = ""
    error: str = ""
    """What ended the program, as `ZeroDivisionError: division by zero (line 3)`; or why tests could not be run."""
    values: tuple[Value, ...] = ()
    """Of `Calls`: one per input."""
    passed: tuple[bool, ...] = ()
    """Of `Tests`: one per test."""
    errors: tuple[str, ...] = ()
    """Of `Tests`: why each failed; empty where it passed."""
    broken: bool = False
    """Of `Tests`: their setup itself failed, which says nothing about the candidate."""
    opaque: int = 0
    """Of `Tests`: how many answers were no plain data, so that comparing them could not but fail."""
    ms: float = 0.0
    """Time on the clock, from asking to answer."""
    cpu_ms: float = 0.0
    """Time on the processor, of the servers and of what they forked."""

    @property
    def ok(self) -> bool:
        """It ended by itself, with exit code 0 and nothing raised. No proof of anything: see `values` and `passed`."""
        return self.end == "done" and self.code == 0 and not self.error


def same(left: Any, right: Any) -> bool:
    """Whether two pieces of plain data are equal, as Python counts (1 == 1.0 == True); never raises."""
    try:
        return bool(left == right)
    except (RecursionError, ArithmeticError):
        return False


def framed(job: Job, limits: Limits) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A job as the servers are told it: for that of candidates, and for that of tests."""
    common = {
        "seconds": limits.seconds,
        "cpu_seconds": limits.cpu_seconds,
        "memory_mb": limits.memory_mb,
        "most": limits.output_kb * 1024,
    }
    if isinstance(job, Program):
        return {**common, "do": "program", "code": job.code, "stdin": job.stdin}, None
    if isinstance(job, Calls):
        inputs = [[encode(argument) for argument in arguments] for arguments in job.inputs]
        return {**common, "do": "calls", "code": job.code, "entry": job.entry, "inputs": inputs}, None
    told = {"tests": list(job.tests), "setup": job.setup, "entry": job.entry}
    return {**common, "do": "tests", "code": job.code}, {**common, **told}


def read(job: Job, told: Mapping[str, Any], verdict: Mapping[str, Any] | None) -> Outcome:
    """What the servers answered, as an outcome. What a candidate wrote is data here, however strange."""
    end, code = ended(told)
    lines = [line for line in map(parsed, str(told["told"]).splitlines()) if line]
    error = next((worded(line["error"]) for line in lines if "error" in line and "step" not in line), "")
    cpu_ms = float(told["cpu_ms"]) + float((verdict or {}).get("cpu_ms", 0.0))
    outcome = Outcome(end, code, str(told["stdout"]), error, cpu_ms=cpu_ms)
    if isinstance(job, Calls):
        return replace(outcome, values=_values(job, lines, outcome))
    if isinstance(job, Tests):
        return _judged(job, outcome, verdict or {})
    return outcome


OUT_OF_TIME = -24
"""The exit code of a process that used up its processor time (SIGXCPU)."""


def ended(told: Mapping[str, Any]) -> tuple[End, int]:
    """Why a process ended, and its exit code."""
    code = int(told["code"])
    if told["end"] == "judged" and code != OUT_OF_TIME:  # its tests may notice sooner that it is gone
        return "done", 0
    if told["end"] in ("timeout", "output"):
        return told["end"], code
    if code == 120:
        return "lost", code
    return ("timeout" if code == OUT_OF_TIME else "crashed" if code < 0 else "done"), code


def parsed(line: str) -> dict[str, Any]:
    """A line as JSON; empty where it is none."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def worded(error: Any) -> str:
    """[type, message, line] as one line of text."""
    if not isinstance(error, list) or len(error) != 3:
        return "error"
    place = f" (line {error[2]})" if error[2] else ""
    return f"{error[0]}: {error[1]}{place}".replace("\n", " ")[:400]


def _values(job: Calls, lines: list[dict[str, Any]], outcome: Outcome) -> tuple[Value, ...]:
    why = outcome.error or (outcome.end if outcome.end != "done" else "the program has ended")
    values = [Value(error=why)] * len(job.inputs)
    for line in lines:
        number = line.get("step")
        if type(number) is int and 0 <= number < len(values):
            values[number] = _value(line)
    return tuple(values)


def _value(line: dict[str, Any]) -> Value:
    if "error" in line:
        return Value(error=worded(line["error"]))
    try:
        return Value(decode(line.get("value")))
    except (ValueError, RecursionError):
        return Value(error="no plain value")


def _judged(job: Tests, outcome: Outcome, verdict: Mapping[str, Any]) -> Outcome:
    count, told = len(job.tests), parsed(str(verdict.get("told", "")))
    none = (False,) * count
    if "broken" in told:
        return replace(outcome, error=f"setup: {worded(told['broken'])}", broken=True, passed=none)
    if "passed" not in told or len(told["passed"]) != count:
        late = verdict.get("end") == "timeout" or outcome.end == "timeout"
        end: End = "timeout" if late else "lost" if outcome.end == "done" else outcome.end
        why = outcome.error or "the tests came to no end"
        return replace(outcome, end=end, error=why, passed=none, errors=(end,) * count)
    gone = outcome.error or (outcome.end if outcome.end != "done" else "")
    return replace(
        outcome,
        passed=tuple(flag is True for flag in told["passed"]),
        errors=tuple((gone and f"{gone}; ") + worded(error) if error else "" for error in told["errors"]),
        opaque=int(told["opaque"]),
    )
