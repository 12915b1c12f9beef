"""The sandbox: what it answers, what it holds, and that every attack leaves it able to serve the next job."""

from __future__ import annotations

import json
import os
import platform
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from hostile import ATTACKS, FORGERIES
from stockpot.sandbox import Calls, Limits, Opaque, Program, Sandbox, Tests, levels, pool, same, shared, worker
from stockpot.sandbox.guest import seccomp
from stockpot.sandbox.guest.plain import decode, encode
from stockpot.types import StockpotError

TIGHT = Limits(seconds=0.6, cpu_seconds=1, memory_mb=256, output_kb=256)
ROOMY = Limits(seconds=20.0, cpu_seconds=10)
FIB = "def f(n):\n    a, b = 0, 1\n    for _ in range(n): a, b = b, a + b\n    return a"


@pytest.fixture(scope="module", params=["namespaces", "no namespaces"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """One sandbox of each level that can be had here, with one server, so that the next job meets the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STOCKPOT_SECRET", "SECRET")
        try:
            made = Sandbox(1, ROOMY, namespaces=request.param == "namespaces", allow_weak=False)
        except StockpotError as error:
            pytest.skip(f"no sandbox at all: {error}")
        with made:
            if request.param == "namespaces" and not made.level.namespaces:
                pytest.skip(f"no namespaces here ({made.why})")
            yield made


# --- what it answers -------------------------------------------------------------------------------------------------


def test_a_program_reads_and_prints(sandbox: Sandbox) -> None:
    code = "import sys\nfor line in sys.stdin: print(int(line) * 2)\nprint('é', file=sys.stderr)"
    outcomes = sandbox.run(
        [Program(code, "1\n2\n"), Program("print(input() + 'é')", "ü"), Program("1 / 0"), Program("x =")]
    )
    assert [o.stdout for o in outcomes] == ["2\n4\n", "üé\n", "", ""]
    assert [o.ok for o in outcomes] == [True, True, False, False]
    assert outcomes[2].error == "ZeroDivisionError: division by zero (line 1)" and outcomes[2].code == 1
    assert outcomes[3].error.startswith("SyntaxError")


def test_exit_codes_are_told(sandbox: Sandbox) -> None:
    codes = ("exit()", "import sys; sys.exit(3)", "raise SystemExit('no')", "import os; os._exit(7)")
    assert [o.code for o in sandbox.run([Program(code) for code in codes])] == [0, 3, 1, 7]


def test_a_main_block_runs_in_programs_only(sandbox: Sandbox) -> None:
    code = "if __name__ == '__main__': print('ran')\ndef f(): return 1"
    program, calls = sandbox.run([Program(code), Calls(code, "f", [()])])
    assert program.stdout == "ran\n" and calls.stdout == "" and calls.values[0].value == 1


def test_functions_and_expressions_are_called_on_many_inputs(sandbox: Sandbox) -> None:
    outcome = sandbox.calls("", "lambda a, b: a // b", [(7, 2), (1, 0), (10**30, 1)])
    assert [v.value for v in outcome.values] == [3, None, 10**30]
    assert [v.error for v in outcome.values] == [
        "",
        "ZeroDivisionError: integer division or modulo by zero (line 1)",
        "",
    ]
    outcome = sandbox.calls(FIB, "f", [(i,) for i in range(10)])
    assert [v.value for v in outcome.values] == [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]


def test_a_call_that_hangs_keeps_what_came_before(sandbox: Sandbox) -> None:
    code = "def f(x):\n    while x == 2: pass\n    return x"
    outcome = sandbox.calls(code, "f", [(1,), (2,), (3,)], TIGHT)
    assert outcome.end == "timeout" and outcome.values[0].value == 1
    assert [v.error for v in outcome.values[1:]] == ["timeout", "timeout"]


def test_plain_data_comes_back_as_it_is(sandbox: Sandbox) -> None:
    values = [
        1,
        True,
        None,
        -(2**70),
        1.5,
        "é\n",
        [1, (2, {3})],
        {"a": {(1, 2): frozenset({4})}},
        b"\0x",
        2j,
        Fraction(1, 3),
    ]
    outcome = sandbox.calls("", "lambda x: x", [(v,) for v in values])
    back = [v.value for v in outcome.values]
    assert back == values and [type(v) for v in back] == [type(v) for v in values]
    code = "from collections import Counter, namedtuple\nP = namedtuple('P', 'x y')\nclass O: pass"
    counted, point, thing = sandbox.calls(
        code, "lambda s: eval(s)", [("Counter('aab')",), ("P(1, 2)",), ("O()",)]
    ).values
    assert counted.value == {"a": 2, "b": 1} and type(counted.value) is dict
    assert point.value == (1, 2) and isinstance(thing.value, Opaque) and not same(thing.value, thing)


def test_tests_are_told_one_by_one(sandbox: Sandbox) -> None:
    tests = ["assert f(10) == 55", "assert f(10) == 56", "assert all(f(i) < f(i + 1) for i in range(2, 30))", "f('x')"]
    (outcome,) = sandbox.run([Tests(FIB, tests)])
    assert outcome.passed == (True, False, True, False) and not outcome.broken
    assert outcome.errors[1].startswith("AssertionError") and outcome.errors[3].startswith("TypeError")


def test_tests_may_use_objects_loops_and_exceptions_of_the_candidate(sandbox: Sandbox) -> None:
    code = (
        "class Node:\n    def __init__(self, v): self.v, self.next = v, None\n"
        "def total(node):\n    s = 0\n    while node: s += node.v; node = node.next\n    return s\n"
        "def squares(n): return (i * i for i in range(n))\ndef adder(n): return lambda x: x + n\n"
        "def strict(x):\n    if x < 0: raise ValueError('negative')\n    return x"
    )
    tests = [
        "assert total(a) == 3 and a.next.v == 2",
        "assert list(squares(4)) == [0, 1, 4, 9]",
        "assert adder(3)(4) == 7",
        "assert math.isclose(strict(2.0), 2)",
        "try:\n    strict(-1)\n    assert False\nexcept ValueError as e:\n    assert 'negative' in str(e)",
        "import random\nfor _ in range(20):\n    n = random.randint(0, 9)\n    assert strict(n) == n",
    ]
    (outcome,) = sandbox.run([Tests(code, tests, "a = Node(1)\na.next = Node(2)")])
    assert outcome.passed == (True,) * 6, outcome.errors
    assert outcome.opaque >= 3


def test_the_module_of_the_tests_is_never_the_candidates(sandbox: Sandbox) -> None:
    code = "class math:\n    isclose = staticmethod(lambda *a, **k: True)\ndef f(x): return 0"
    (outcome,) = sandbox.run([Tests(code, ["assert math.isclose(f(1), 5)"])])
    assert outcome.passed == (False,)


def test_a_broken_setup_is_told_apart_from_a_wrong_answer(sandbox: Sandbox) -> None:
    (outcome,) = sandbox.run([Tests(FIB, ["assert f(1) == 1"], "1 / 0")])
    assert outcome.broken and outcome.passed == (False,) and "ZeroDivisionError" in outcome.error


def test_no_state_leaks_from_job_to_job(sandbox: Sandbox) -> None:
    sandbox.run([Program("import math, builtins\nmath.pi = 3\nbuiltins.len = None")])
    assert sandbox.run([Program("import math\nprint(math.pi > 3.1, len('ab'))")])[0].stdout == "True 2\n"


# --- what it holds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(sandbox: Sandbox, name: str) -> None:
    """Nothing gets through, it ends in time, and the very same server serves the next job."""
    began, before = time.monotonic(), sandbox.restarts
    (outcome,) = sandbox.run([Program(ATTACKS[name])], TIGHT)
    assert "THROUGH" not in outcome.stdout, outcome
    assert len(outcome.stdout) <= TIGHT.output_kb * 1024
    assert time.monotonic() - began < 6 and outcome.end != "lost"
    assert sandbox.run([Program("print(6 * 7)")])[0].stdout == "42\n"
    assert sandbox.restarts == before


@pytest.mark.parametrize("name", FORGERIES)
def test_forgery(sandbox: Sandbox, name: str) -> None:
    """The first test asks what only a right program knows; the second may be met by chance, not by a lying object."""
    tests = ["assert f(20) == 6765", "assert abs(f(3) - 2) < 1e-6"]
    wrong, right = sandbox.run([Tests(FORGERIES[name], tests, "# f(20) == 6765"), Tests(FIB, tests)], ROOMY)
    assert not wrong.passed[0], wrong
    assert not wrong.passed[1] or "return 2" in FORGERIES[name] or "else 2" in FORGERIES[name], wrong
    assert right.passed == (True, True), right


def test_a_lying_number_is_taken_for_what_it_is(sandbox: Sandbox) -> None:
    values = sandbox.calls(FORGERIES["a number that equals everything"], "f", [(20,)]).values
    assert type(values[0].value) is int and values[0].value == 0


def test_colliding_keys_do_not_stall_the_parent(sandbox: Sandbox) -> None:
    code = (
        "import os, json\ndef f(n):\n    keys = [{'int': hex(i * (2**61 - 1))} for i in range(4000)]\n"
        "    os.write(3, json.dumps({'step': 0, 'value': {'set': keys}}).encode() + b'\\n')\n    os._exit(0)"
    )
    (value,) = sandbox.calls(code, "f", [(0,)]).values
    assert value.error == "no plain value"


def test_nothing_is_left_running(sandbox: Sandbox) -> None:
    """After all these attacks: no more processes below the server than a fresh one has."""
    assert sandbox.run([Program("pass")])[0].ok
    held = sandbox._free.get()
    sandbox._free.put(held)
    assert held is not None
    assert len(below(held.pid)) <= 4


def below(pid: int) -> list[int]:
    """Descendants of a process."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(folder.parent.name)] = int(folder.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


# --- the sandbox as a thing ------------------------------------------------------------------------------------------


def test_a_killed_server_is_started_anew() -> None:
    with available(processes=1) as box:
        held = box._free.get()
        box._free.put(held)
        assert held is not None
        os.killpg(held.pid, signal.SIGKILL)
        assert box.run([Program("print(1)")])[0].stdout == "1\n"
        assert box.restarts == 1


def test_threads_share_a_sandbox() -> None:
    with available(processes=2) as box:
        got: dict[int, list[str]] = {}

        def ask(i: int) -> None:
            got[i] = [o.stdout for o in box.run([Program(f"print({i}, {j})") for j in range(5)])]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == {i: [f"{i} {j}\n" for j in range(5)] for i in range(6)}


def test_jobs_run_side_by_side() -> None:
    with available(processes=2) as box:
        box.run([Program("pass")] * 4)
        began = time.monotonic()
        box.run([Program("import time; time.sleep(0.6)")] * 2)
        assert time.monotonic() - began < 1.1


def available(processes: int = 1, **named: object) -> Sandbox:
    try:
        return Sandbox(processes, ROOMY, **named)  # type: ignore[arg-type]
    except StockpotError as error:
        pytest.skip(f"no sandbox at all: {error}")


def test_its_end_is_the_end_of_its_servers() -> None:
    box = available()
    held = box._free.get()
    box._free.put(held)
    assert held is not None
    family = below(held.pid)
    box.close()
    time.sleep(0.3)
    assert len(family) >= 2 and not [pid for pid in family if alive(pid)]
    with pytest.raises(StockpotError, match="closed"):
        box.run([Program("pass")])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_servers_end_when_the_parent_is_killed() -> None:
    available().close()
    code = (
        "import time\nfrom stockpot.sandbox import Sandbox\nbox = Sandbox(1)\n"
        "w = box._free.get()\nprint(w.pid, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        family = below(int(parent.stdout.readline()))
        parent.kill()
    until = time.monotonic() + 5
    while any(map(alive, family)) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(family) >= 2 and not [pid for pid in family if alive(pid)]


def test_one_shared_sandbox_per_process() -> None:
    available().close()
    assert shared() is shared()


# --- levels ----------------------------------------------------------------------------------------------------------


def test_the_level_is_plain_data_and_says_what_holds(sandbox: Sandbox) -> None:
    level = sandbox.level
    assert level.name in ("full", "locked", "walled") and str(level).startswith(level.name) and not level.through
    told = json.loads(json.dumps(level.as_dict()))
    assert told["level"] == level.name and told["landlock"] == level.landlock
    assert {"tcp", "fork", "read_outside", "write", "environ", "kill", "memory", "fill"} <= set(level.held["all"])


def weakened(monkeypatch: pytest.MonkeyPatch, *off: str) -> None:
    """Servers whose children go without some locks, as on a kernel that lacks them."""
    real = worker.Worker.ask

    def ask(self, candidate, tests=None):  # type: ignore[no-untyped-def]
        return real(self, {**candidate, "without": [*candidate.get("without", ()), *off]}, tests)

    monkeypatch.setattr(worker.Worker, "ask", ask)


def test_what_gets_through_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    available().close()
    monkeypatch.delenv(pool.WEAK, raising=False)
    weakened(monkeypatch, "landlock", "seccomp")
    with pytest.raises(StockpotError, match=r"does not hold here \(weak.*landlock.*STOCKPOT_WEAK_SANDBOX=1") as told:
        Sandbox(1)
    assert "\n" not in str(told.value)


def test_the_weak_may_be_asked_for_and_are_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    available().close()
    weakened(monkeypatch, "landlock", "seccomp")
    monkeypatch.setenv(pool.WEAK, "1")
    with Sandbox(1, namespaces=False) as box:
        assert box.level.name == "weak" and {"read_outside", "tcp", "fork"} <= set(box.level.through)
        assert "gets through" in str(box.level)
        assert box.run([Program("print(1)")])[0].stdout == "1\n"


def test_a_probe_finds_each_missing_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    full = available(namespaces=False)
    full.close()
    weakened(monkeypatch, "seccomp")
    with Sandbox(1, namespaces=False, allow_weak=True) as box:
        assert not box.level.seccomp and box.level.landlock and {"fork", "udp"} <= set(box.level.through)


def test_namespaces_and_the_filter_do_without_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    with available() as box:
        if not box.level.namespaces:
            pytest.skip(f"no namespaces here ({box.why})")
    weakened(monkeypatch, "landlock")
    with Sandbox(1) as box:
        assert box.level.name == "walled" and not box.level.through
        for name in ("reads /etc/passwd", "reads /proc", "writes outside", "TCP", "fork", "reads its server's memory"):
            assert "THROUGH" not in box.run([Program(ATTACKS[name])], TIGHT)[0].stdout, name


def test_a_restart_never_lowers_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    with available() as box:
        held = box._free.get()
        box._free.put(held)
        assert held is not None
        weakened(monkeypatch, "landlock")
        held.close()
        with pytest.raises(StockpotError, match="at first and now"):
            box.run([Program("pass")])


def test_without_bubblewrap_the_reason_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    available(namespaces=False).close()
    monkeypatch.setenv("PATH", str(tmp_path))
    with Sandbox(1) as box:
        assert box.level.name == "locked" and "no namespaces" in box.why and "bwrap" in box.why


# --- the filter and the wire, without a kernel -----------------------------------------------------------------------


def verdict(lines: list[seccomp.Line], machine: int, number: int, *arguments: int) -> int:
    """What the kernel would make of a filter: an interpreter of the few instructions that it uses."""
    data = struct.pack("<IIQ6Q", number, machine, 0, *(*arguments, *[0] * (6 - len(arguments))))
    at, value = 0, 0
    while True:
        code, yes, no, operand = lines[at]
        at += 1
        if code == 0x20:
            value = struct.unpack_from("<I", data, operand)[0]
        elif code == 0x06:
            return operand
        else:
            true = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
            at += yes if true else no


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_on_both_machines(machine: str) -> None:
    lines, (name, column) = seccomp.program(machine, 77), seccomp.ARCHITECTURES[machine]
    allow, eperm, enosys = 0x7FFF0000, 0x00050001, 0x00050026
    call = {key: numbers[column] for table in (seccomp.CALLS, seccomp.GUARDED) for key, numbers in table.items()}

    def ask(number: int | None, *arguments: int) -> int:
        return allow if number is None else verdict(lines, name, number, *arguments)

    assert all(ask(number) == allow for number in (call["read"], call["openat"], call["futex"], call["exit_group"]))
    assert [ask(call["openat"], 0, 0, flags) for flags in (0, 0x80000, 0x241, 0x200)] == [allow, allow, allow, eperm]
    threads = 0x003D0F00
    assert [ask(call["clone"], flags) for flags in (threads, 17, 0, threads | 0x10000000)] == [
        allow,
        eperm,
        eperm,
        eperm,
    ]
    assert [ask(call["kill"], pid, 9) for pid in (77, 76, 0, 2**32 - 1)] == [allow, eperm, eperm, eperm]
    assert [ask(call["prlimit64"], 0, 9, new) for new in (0, 1, 1 << 40)] == [allow, eperm, eperm]
    assert ask(call["ioctl"], 0, 0x5412) == eperm and ask(call["ioctl"], 0, 0x5401) == allow
    forbidden = {
        "x86_64": (41, 42, 57, 58, 59, 101, 165, 272, 310, 311, 319, 321, 322),
        "aarch64": (198, 203, 117, 40, 97, 221, 270, 279, 280, 281),
    }
    assert all(ask(number) == eperm for number in forbidden[machine])
    assert all(ask(number) == enosys for number in (425, 434, 435, 437, 451, 0x40000000 + 2))
    assert verdict(lines, 0x40000003, 1) == 0x80000000


def test_the_wire_refuses_what_is_no_plain_data() -> None:
    for data in (
        {"set": [{"list": []}]},
        {"int": 3},
        {"what": []},
        {"a": 1, "b": 2},
        [1],
        {"complex": [1]},
        {"dict": [1]},
    ):
        with pytest.raises(ValueError):
            decode(data)
    deep: list[object] = []
    deep.append(deep)
    with pytest.raises(RecursionError):
        encode(deep)
    assert repr(decode(encode(object()))) == "<object>"


def test_limits_are_checked() -> None:
    for wrong in ({"seconds": 0}, {"memory_mb": 1}, {"output_kb": 0}, {"cpu_seconds": -1}):
        with pytest.raises(StockpotError):
            Limits(**wrong)  # type: ignore[arg-type]


def test_the_table_of_calls_is_the_machines_own() -> None:
    """The numbers against the kernel's header, where there is one."""
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if platform.machine() != "x86_64" or not header.exists():
        pytest.skip("no header of x86-64 system calls")
    theirs = {
        w[1][5:]: int(w[2])
        for w in map(str.split, header.read_text().splitlines())
        if len(w) == 3 and w[1][:5] == "__NR_"
    }
    ours = {name: numbers[0] for table in (seccomp.CALLS, seccomp.GUARDED) for name, numbers in table.items()}
    assert {name: theirs.get(name) for name in ours} == ours


def test_probes_are_all_named() -> None:
    assert all(f"def {name}()" in levels.ATTACKS for name in levels.NAMES)
