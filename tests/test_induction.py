"""Induction: expressions mean what Python says, hidden pairs count, splits share no behaviour, outsiders are right."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import pytest

from runs import metrics, stockpot
from stockpot.config import Config, Start
from stockpot.engines.local import LocalEngine
from stockpot.prompts import load_prompts
from stockpot.sandbox import Calls, Limits, Outcome, shared
from stockpot.start import demonstration, teach
from stockpot.tasks import Induction, expressions
from stockpot.tasks.authors import HIDDEN, OPERATIONS, ROOM, SHOWN, draw, outsider, rewrite, slip, vary
from stockpot.tasks.expressions import Node
from stockpot.tasks.induction import Judge, sandboxed
from stockpot.types import StockpotError

TASKS = [
    Induction(train_prompts=64, test_prompts=64, judge="interpreter"),
    Induction(
        judge="interpreter", operations=1, constants=4, shown=8, train_prompts=12, test_prompts=6, luck=1.0, rare=0.0
    ),
    Induction(
        judge="interpreter",
        operations=4,
        operators=("+", "*", "if"),
        shown=2,
        train_prompts=20,
        test_prompts=20,
        rare=1.0,
    ),
]
every_task = pytest.mark.parametrize("task", TASKS, ids=str)
INPUTS = [*SHOWN, *HIDDEN]
WORDS = [*"0123456789x+-*%(),<> ", "//", "<=", ">=", "==", "abs(", "min(", "max(", " if ", " else ", "x", "x", "10"]


def functions(count: int, seed: int = 0) -> list[Node]:
    """Random functions of every operation."""
    rng = random.Random(seed)
    drawn = (draw((3, OPERATIONS, 9, 5), rng) for _ in range(100 * count))
    return list(islice((node for node in drawn if node is not None), count))


def python(text: str, x: int) -> int | None:
    """What Python itself makes of an expression."""
    try:
        value = eval(text.strip(), {"__builtins__": {}, "x": x, "abs": abs, "min": min, "max": max})
    except Exception:
        return None
    return value if type(value) is int else None


# --- the language ---------------------------------------------------------------------------------------------------


def test_expressions_have_the_values_that_python_gives_them() -> None:
    """Functions in every spelling, and random texts: what can be read has Python's values, where it has any."""
    rng = random.Random(1)
    texts = [expressions.write(vary(node, rng), wide=wide) for node in functions(300) for wide in (False, True)]
    texts += ["".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(6000)]
    read = 0
    for text in texts:
        node = expressions.parse(text)
        if node is None:
            continue
        read += 1
        for x in (-9, -1, 0, 1, 8):
            found = expressions.outputs(node, [x])
            assert (found[0] if found else None) == python(text, x), text
    assert read > 1000


HOSTILE = [
    "", " ", "\n", "9**9**9", "x[0]", "x.real", "__import__('os')", "(" * 90 + "x" + ")" * 90, "y", "1_0", "0x3", "0b1",
    "1e3", "x if x", "x=3", "x:=3", "lambda: x", "[x]", "x,x", "(x,3)", "min(x)", "max(*x)", "abs(x,3)", "abs", "x(3)",
    "3(x)", "x<3", "1<x<3", "x if 1<x<3 else 2", "x if x else 3", "x/2", "x<<9", "True", "x//", "3if x>0 else 1", "x #",
    "9999999", "007", "+", "x x", "-" * 97, "x+" * 60 + "x", "²", "٣", "abs(x=3)", "max(x,3,key=abs)", "x\n+1",
    "x+\x00",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_expression_is_none_at_once(text: str) -> None:
    assert expressions.parse(text) is None


def test_the_worst_that_can_be_read_stays_small_and_quick() -> None:
    """Without powers a value has no more digits than its text gives room for."""
    for text in ("9" * 6 + "*999999" * 12, "x*" * 47 + "x", "-" * 95 + "x", "(" * 40 + "x" + ")" * 40, "1//0", "x%0"):
        values = expressions.evaluate([text], [[-9, 0, 999_999]])[0]
        assert values is None or max(map(abs, values)) < 10**300
    assert expressions.evaluate(["1//x", "1//x"], [[1, 0], [1]]) == [None, [1]]


def test_writing_and_reading_are_inverse() -> None:
    rng = random.Random(2)
    for node in functions(400):
        for other in (node, vary(node, rng), rewrite(node, rng, 1.0), slip(node, rng)):
            wanted = expressions.outputs(other, INPUTS)
            for wide in (False, True):
                text = expressions.write(other, wide=wide)
                if len(text) <= expressions.LONGEST:
                    (found,) = expressions.evaluate([text], [INPUTS])
                    assert found == wanted, text


def test_spellings_of_one_answer_are_one_and_other_answers_are_others() -> None:
    count = TASKS[0].distinct
    assert count(["3-2*x", "3 - (2 * x)", "3-x*2", "(3)-((x)*2)"]) == 1
    assert count(["max(x,3)", "max(3, x)", "x if x>3 else 3", "x if 3<x else 3", "3 if x<=3 else x"]) == 2
    assert count(["1+x+2", "x+(2+1)", "(1+2)+x"]) == 1 and count(["x+3", "1+x+2"]) == 2
    assert count(["x-3", "3-x"]) == count(["x//3", "3//x"]) == count(["2*x", "x+x"]) == 2
    assert count([]) == count(["no", "x["]) == 0


def test_normal_forms_keep_values_and_forget_spelling() -> None:
    rng = random.Random(3)
    for node in functions(400):
        wanted = expressions.normal(node)
        assert expressions.normal(vary(node, rng)) == wanted
        assert expressions.outputs(wide_open(wanted), INPUTS) == expressions.outputs(node, INPUTS)


def wide_open(node: Node) -> Node:
    """A normal form, whose chains have many operands, as an expression of two each."""
    if not isinstance(node, tuple):
        return node
    parts = [part if isinstance(part, str) and part != "x" else wide_open(part) for part in node]
    if node[0] not in ("+", "*", "min", "max"):
        return tuple(parts)
    joined = parts[1]
    for part in parts[2:]:
        joined = (node[0], joined, part)
    return joined


# --- rewards --------------------------------------------------------------------------------------------------------


def judged(task: Induction, text: Any, inputs: list[int], outputs: list[int]) -> float:
    (value,) = task.reward(["?"], [text], inputs=[inputs], outputs=[outputs])
    return value


def test_known_expressions_get_their_rewards() -> None:
    task, outputs = TASKS[0], [3 - 2 * x for x in INPUTS]
    for text in ("3-2*x", "3 - (2 * x)", "-x-x+3", "3-x-x if x<99 else 0", " 3-2*x "):
        assert judged(task, text, INPUTS, outputs) == 1.0
    for text in (
        "",
        "3-2*y",
        "2-2*x",
        "3-2*x)",
        "1//0",
        "3-2*x if x<9 else 0",
        "9**9**9",
        None,
        7,
        ["3-2*x"],
        "|3-2*x",
    ):
        assert judged(task, text, INPUTS, outputs) == 0.0


def test_hidden_pairs_matter() -> None:
    """An answer that only knows what was shown is wrong; and hidden inputs are never in a prompt."""
    task = TASKS[0]
    row = task.rows("test")[0]
    pairs = dict(zip(row["inputs"], row["outputs"], strict=True))
    shown = [pair.split(">") for pair in row["prompt"].removesuffix(" |").split()]
    assert {int(x): int(y) for x, y in shown} == {x: pairs[x] for x in SHOWN[: task.shown]}
    assert set(HIDDEN) <= set(row["inputs"]) and len(row["inputs"]) == len(set(row["inputs"]))
    text = row["expression"]
    assert judged(task, text, row["inputs"], row["outputs"]) == 1.0
    for x in HIDDEN:
        cheat = f"({text}) if x<{x} else (0-99 if x<={x} else {text})"
        if pairs[x] != -99 and len(cheat) <= expressions.LONGEST:
            assert judged(task, cheat, row["inputs"][: task.shown], row["outputs"][: task.shown]) == 1.0
            assert judged(task, cheat, row["inputs"], row["outputs"]) == 0.0


@pytest.fixture(scope="module")
def sandbox() -> None:
    """Skips, visibly, where programs cannot be run safely."""
    try:
        shared()
    except StockpotError as error:
        pytest.skip(f"no sandbox here: {error}")


def test_both_judges_agree(sandbox: None) -> None:
    """On functions in every spelling, slips, random texts and attacks: the same outputs from both."""
    rng = random.Random(4)
    texts = [expressions.write(vary(node, rng), wide=rng.random() < 0.3) for node in functions(300)]
    texts += [expressions.write(slip(node, rng)) for node in functions(300, seed=1)]
    drawn = ("".join(rng.choices(WORDS, k=rng.randint(1, 7))) for _ in range(20000))
    texts += list(islice((text for text in drawn if expressions.parse(text) is not None), 400))
    texts += ["".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(1000)]
    texts += ["1//0", "1//x", "x%x", "-" * 95 + "x", "x*" * 47 + "x", "(" * 40 + "x" + ")" * 40, *HOSTILE]
    inputs = [INPUTS] * len(texts)
    found = expressions.evaluate(texts, inputs)
    assert sandboxed(texts, inputs) == found
    assert sum(values is not None for values in found) > 700 and sum(values is None for values in found) > 700


@pytest.mark.parametrize(
    "text", ["9**9**9**9", "(lambda: [0 for _ in iter(int, 1)])()", "__import__('os').getpid()", "x[0]"]
)
def test_what_no_judge_lets_through_the_sandbox_would_hold(sandbox: None, text: str) -> None:
    """The reading in front of the sandbox is no part of its safety: texts that it refuses end there by themselves."""
    (outcome,) = shared().run([Calls("", f"lambda x: {text}", [[1]])], Limits(seconds=1.0))
    assert outcome.end != "lost" and (outcome.end != "done" or text.startswith("__") or outcome.values[0].error)


def test_rewards_are_the_same_from_both_judges(sandbox: None) -> None:
    ask = {"prompts": ["?"] * 5, "completions": ["3-2*x", "3-x-x", "2-2*x", "x[", None]}
    columns = {"inputs": [INPUTS] * 5, "outputs": [[3 - 2 * x for x in INPUTS]] * 5}
    both = [replace(TASKS[0], judge=name).reward(**ask, **columns) for name in get_args(Judge)]
    assert both[0] == both[1] == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_a_failing_sandbox_gives_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted as not judged, not as wrong."""

    class Broken:
        def run(self, jobs: list[Calls], limits: Limits) -> list[Outcome]:
            return [Outcome("lost") for _ in jobs]

    monkeypatch.setattr("stockpot.tasks.induction.shared_sandbox", Broken)
    task = replace(TASKS[0], judge="sandbox")
    values = task.reward(["?"] * 2, ["x", "x["], inputs=[[1], [1]], outputs=[[1], [1]])
    assert math.isnan(values[0]) and values[1] == 0.0


# --- prompts and demonstrations ---------------------------------------------------------------------------------------


@every_task
def test_held_out_behaviour_is_never_taught_or_trained(task: Induction) -> None:
    """By what functions do at all inputs that are judged, not by how they are written."""
    test, train = task.rows("test"), task.rows("train")
    assert len(test) == task.test_prompts and len(train) == task.train_prompts
    behaviours = [tuple(row["outputs"]) for row in [*test, *train]]
    assert len(set(behaviours)) == len(behaviours) == len({row["prompt"] for row in [*test, *train]})
    held_out = {row["prompt"]: row for row in test}
    for prompt, text in islice(task.demonstrations(seed=0), 500):
        assert prompt not in held_out and len(text) <= ROOM
    assert all(judged(task, row["expression"], row["inputs"], row["outputs"]) for row in [*test, *train])


@every_task
def test_rows_are_the_same_at_every_call_and_survive_the_tokenizer(task: Induction) -> None:
    assert task.rows("train") == task.rows("train")
    tokenizer = task.tokenizer()
    assert len(tokenizer) < 64
    assert (
        len({p.key for p in load_prompts(task, "train", tokenizer, context=128, max_tokens=40)}) == task.train_prompts
    )
    assert list(islice(task.demonstrations(5), 9)) == list(islice(task.demonstrations(5), 9))
    for prompt, text in islice(task.demonstrations(1), 100):
        ids = tokenizer(prompt + text)["input_ids"]
        assert len(ids) == len(prompt + text) and tokenizer.pad_token_id not in ids
        assert tokenizer.decode(ids) == prompt + text


@every_task
def test_outsiders_are_right_and_write_otherwise_than_the_start(task: Induction) -> None:
    plain = {text for _, text in islice(task.demonstrations(0), 2000)} if not task.rare else set()
    unlike = 0
    for row in task.rows("train"):
        texts = task.demonstrate(row, 3)
        assert len(texts) == 3 and texts == task.demonstrate(row, 3)
        for text in texts:
            assert judged(task, text, row["inputs"], row["outputs"]) == 1.0 and len(text) <= ROOM
            unlike += text not in plain and text != row["expression"]
    assert unlike > 2.5 * task.train_prompts


def test_a_teacher_is_as_right_as_luck_has_it() -> None:
    """Slips may be right by chance, so a little above."""
    for luck in (0.0, 0.5, 1.0):
        task = Induction(train_prompts=8, test_prompts=8, luck=luck, rare=0.0, judge="interpreter")
        right = 0.0
        for prompt, text in islice(task.demonstrations(0), 800):
            shown = [tuple(map(int, pair.split(">"))) for pair in prompt.removesuffix(" |").split()]
            right += judged(task, text, [x for x, _ in shown], [y for _, y in shown])
        assert luck <= right / 800 + 0.06 and right / 800 < luck + 0.2


def test_offline_lines_are_right_answers() -> None:
    task = TASKS[0]
    lines = list(task.offline(count=2))
    rows = {row["prompt"]: row for row in task.rows("train")}
    assert len(lines) == 2 * len(rows) and lines[0].keys() == {"prompt", "completion", "reward"}
    for line in lines:
        row = rows[line["prompt"]]
        assert judged(task, line["completion"], row["inputs"], row["outputs"]) == line["reward"] == 1.0


def test_a_barely_taught_model_finds_outsiders_unlikely(tmp_path: Path) -> None:
    """Some steps of teaching: the teacher's own words already cost far fewer nats than the outsiders'."""
    task = Induction(train_prompts=16, test_prompts=16, luck=1.0)
    teach(task, Start(steps=60, batch=16), tmp_path / "taught", seed=0, device="cpu")
    config = Config(task=task, model="x", device="cpu")
    engine = LocalEngine(config, "run", str(tmp_path / "taught"), str(tmp_path / "taught"), 0, tmp_path / "snapshots")
    rows, rng = task.rows("train"), random.Random(0)
    nodes = [expressions.parse(row["expression"]) for row in rows]
    own = [expressions.write(vary(node, rng)) for node in nodes if node is not None]
    theirs = [outsider(node, rng) for node in nodes if node is not None]
    told = [[demonstration(row["prompt"], text, engine.tokenizer) for row, text in zip(rows, texts, strict=True)]
            for texts in (own, theirs)]  # fmt: skip
    nats = [-sum(float(scores.sum()) for scores in engine.score(each, "policy")) / len(rows) for each in told]
    assert nats[1] > nats[0] + 8


# --- the whole ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"operations": 0}, "operations must lie in 1..4"),
        ({"constants": 10}, "constants in 1..9"),
        ({"operators": ()}, "operators has nothing"),
        ({"operators": ("**",)}, r"operators has \*\*: choose from"),
        ({"shown": 1}, "shown must lie in 2..8, not 1"),
        ({"luck": 1.5}, r"must lie in 0\.\.1"),
        ({"rare": -0.1}, r"must lie in 0\.\.1"),
        ({"judge": "nobody"}, "judge must be"),
        ({"test_prompts": 0}, "must be at least 1"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(StockpotError, match=told):
        Induction(**options)


def test_more_prompts_than_there_are_functions_is_told() -> None:
    with pytest.raises(StockpotError, match=r"there are \d+ functions of this kind, fewer than .*: lower"):
        Induction(operations=1, operators=("abs",)).rows("train")


def test_a_run_of_the_recipe_counts_distinct_answers(tmp_path: Path) -> None:
    """Through the real command; with nothing learnt, nothing right is counted."""
    words = (
        "train induction --start.steps 2 --start.batch 4 --steps 1 --prompts-per-step 2 --group-size 2 "
        "--task.train-prompts 4 --task.test-prompts 4 --evaluation.samples 2 --device cpu"
    )
    told = stockpot(*words.split(), "--out", tmp_path / "run")
    assert told.code == 0, told.err
    for line in (metrics(tmp_path / "run")[0], metrics(tmp_path / "run")[-1]):
        assert line["test/pass@1"] <= line["test/distinct"] <= 2 * line["test/pass@2"]
