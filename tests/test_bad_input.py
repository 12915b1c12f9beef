"""A mistake ends in one line that names cause and cure, exit code 2, and nothing written over. Never a traceback."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from runs import TINY, Told, snapshot, stockpot
from stockpot.models import load_tokenizer

JUDGE = """\
def good(completions, **kwargs):
    return [1.0] * len(completions)

def raises(completions, **kwargs):
    return [1.0 / 0 for _ in completions]

def short(completions, **kwargs):
    return [1.0]

def words(completions, **kwargs):
    return ["good"] * len(completions)
"""

FILES = {
    "empty.jsonl": "",
    "torn.jsonl": '{"prompt": "1 2 3"}\n{"prompt": "4',
    "numbers.jsonl": "1\n2\n3\n",
    "question.jsonl": '{"question": "1 2 3"}\n' * 3,
    "blank.jsonl": '{"prompt": "1 2 3"}\n{"prompt": "  "}\n{"prompt": "1 2 3"}\n',
    "long.jsonl": json.dumps({"prompt": "1 2 3 " * 90}) + "\n" + '{"prompt": "1 2 3"}\n' * 3,
    "rows.jsonl": "".join(json.dumps({"prompt": f"1 2 3 make {i}"}) + "\n" for i in range(10, 30)),
    "judge.py": JUDGE,
    "raises.py": "recipe = 1 / 0\n",
    "syntax.py": "recipe = = 1\n",
    "nothing.py": "other = 1\n",
    "full/notes.txt": "mine",
    "file": "mine",
}


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with everything in it that a user may get wrong."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*words: object) -> str:
    """The one line that was told."""
    told: Told = stockpot(*words)
    assert told.code == 2, (told.out, told.err)
    (line,) = told.complaints
    assert line.startswith("stockpot: ") and line[-1] in ".)?"
    return line


DATASET = ("--task", "dataset", "--steps", 1, "--kl.coefficient", 0, "--max-tokens", 16)

CASES: dict[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    # names
    "unknown command": (("trian",), ("no command trian", "did you mean train?", "stockpot --help")),
    "unknown recipe": (("train", "countdwn"), ("no recipe countdwn", "did you mean countdown?")),
    "no recipe file": (("train", "no.py"), ("no recipe file no.py", "check its path")),
    "recipe raises": (("train", "raises.py"), ("raises.py does not run", "ZeroDivisionError", "mend the file")),
    "recipe is no Python": (("train", "syntax.py"), ("syntax.py does not run", "SyntaxError")),
    "recipe defines none": (("train", "nothing.py"), ("defines no `recipe = Config(...)`",)),
    "unknown option": (("train", "--prefixes.shar", "0.5"), ("no option --prefixes.shar;", "mean --prefixes.share?")),
    "unknown option of show": (("show", "r", "--cont", "1"), ("no option --cont;", "did you mean --count?")),
    "unknown algorithm": (("train", "--algorithm", "grop"), ("--algorithm knows no grop", "did you mean grpo?")),
    "unknown prefixes": (("train", "--prefixes", "histroy"), ("--prefixes knows no histroy", "did you mean history?")),
    "unknown task": (("train", "--task", "countdonw"), ("--task knows no countdonw", "did you mean countdown?")),
    "option of another component": (
        ("train", "--prefixes", "none", "--prefixes.share", "0.5"), ("there is no option --prefixes.share",),
    ),
    "no value": (("train", "--steps"), ("--steps", "Expected 1")),
    "no value for out": (("train", "--out"), ("--out needs a value",)),
    "no value but an option": (("train", "--out", "--steps", "3"), ("--out needs a value",)),
    "no run named": (("show",), ("Missing", "RUN", "stockpot show --help")),
    # values
    "wrong number": (("train", "--steps", "many"), ("--steps", "many")),
    "wrong choice": (("train", "--kl.estimator", "k9"), ("--kl.estimator", "k9", "k1", "k2", "k3")),
    "group of one, off-policy": (("train", "--algorithm", "topr", "--group-size", 1), ("TOPR", "at least 2")),
    "group of one": (("train", "--group-size", 1), ("group_size must be at least 2", "--algorithm reinforce")),
    "group of one for rloo": (
        ("train", "--algorithm", "rloo", "--group-size", 1), ("RLOO", "group_size must be at least 2"),
    ),
    "a part that does not divide the group": (
        ("train", "--group-size", 8, "--select.size", 3, "--select.how", "balanced"),
        ("group_size is 8, no multiple of select.size 3", "choose a size that divides it"),
    ),
    "a part larger than the group": (
        ("train", "--group-size", 8, "--select.size", 16, "--select.how", "max-variance"),
        ("select.size is 16, but group_size is only 8", "train on fewer"),
    ),
    "share above one": (("train", "--prefixes.share", 1.5), ("prefixes.share", "0..1", "1.5")),
    "ages crossed": (
        ("train", "--prefixes.min-age", 9, "--prefixes.max-age", 3), ("min_age (9) is above prefixes.max_age (3)",),
    ),
    "steps of a task without steps": (
        ("train", *DATASET, "--task.train", "rows.jsonl", "--prefixes.where", "step"),
        ("prefixes.where is step", "Dataset names no words"),
    ),
    "no steps": (("train", "--steps", -1), ("steps must be 0 or more",)),
    "groups that would be split": (("train", "--updates-per-step", 5), ("multiple of updates_per_step",)),
    "greedy rollouts": (("train", "--sampling.temperature", 0), ("temperature must be above 0",)),
    "more room than context": (
        ("train", "--max-tokens", 300, "--start.steps", 9999999), ("context is 256", "lower --max-tokens"),
    ),
    "too many prompts": (("train", "--task.train-prompts", 10**6), ("fewer than", "raise task.largest")),
    # models and folders
    "no model": (("train", "--model", "./nowhere"), ("no model in ./nowhere", "config.json")),
    "no model to evaluate": (("eval", "./nowhere"), ("no model in ./nowhere",)),
    "a model that is no model": (("train", "--model", "./full"), ("no model in ./full",)),
    "dataset without a model": (("train", "--task", "dataset"), ("brings no model of its own", "--model")),
    "folder with something in it": (("train", "--out", "full"), ("full is not empty", "--out")),
    "folder that is a file": (("train", "--out", "file"), ("file is a file", "--out")),
    "folder below a file": (("train", "--out", "file/run"), ("cannot write into file/run", "--out")),
    "folder that cannot be made": (("train", "--out", "/proc/run"), ("cannot write into /proc/run", "--out")),
    "sft into nowhere": (("sft",), ("name it with --out",)),
    "sft into a full folder": (("sft", "--out", "full"), ("full already holds something", "--out")),
    "sft into a file": (("sft", "--out", "file"), ("file already holds something", "--out")),
    "resume of nothing": (("resume", "nowhere"), ("no run in nowhere", "stockpot train")),
    "resume of a folder without a run": (("resume", "full"), ("no run in full", "stockpot train")),
    "show of nothing": (("show", "nowhere"), ("no run in nowhere",)),
    "history of nothing": (("history", "full"), ("no run in full",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_told_in_one_line(name: str, room: Path) -> None:
    """And leaves the folder as it was: no half-made run to clear away, nothing overwritten."""
    words, parts = CASES[name]
    before = snapshot(room)
    line = refused(*words)
    assert all(part in line for part in parts), line
    assert snapshot(room) == before


DATA = {
    "no file": ("none.jsonl", ("no dataset file none.jsonl", "check its path")),
    "no prompts": ("empty.jsonl", ("empty.jsonl has 0 rows", "add some")),
    "no JSON": ("torn.jsonl", ("torn.jsonl is not JSON lines", "one object a line")),
    "no objects": ("numbers.jsonl", ("lines that are no objects", '{"prompt": ..., ...}')),
    "no prompt column": ("question.jsonl", ("row 0", "no column `prompt`", "question", "rename")),
    "an empty prompt": ("blank.jsonl", ("row 1", "empty prompt", "drop the row")),
    "a prompt longer than the context": ("long.jsonl", ("270 tokens", "context is 256", "drop long prompts")),
}


@pytest.mark.parametrize("name", DATA)
def test_a_dataset_that_cannot_be_used_is_told_in_one_line(name: str, room: Path, started: str) -> None:
    data, parts = DATA[name]
    before = snapshot(room)
    test = ("--task.test", "rows.jsonl") if name == "an empty prompt" else ()
    line = refused("train", *DATASET, "--model", started, "--task.train", data, *test, "--task.judge", "judge.py:good")
    assert all(part in line for part in parts), line
    assert snapshot(room) == before


JUDGES = {
    "judge.py:raises": ("raised ZeroDivisionError: float division by zero (judge.py, line 5)", "a number, or None"),
    "judge.py:short": ("gave 1 numbers for", "every completion one"),
    "judge.py:words": ("raised ValueError", "'good'"),
    "judge.py:missing": ("cannot load the judge judge.py:missing", "the function's name"),
    "none.py:good": ("cannot load the judge none.py:good", "none.py"),
    "": ("no judge was named", "--task.judge"),
}


@pytest.mark.parametrize("judge", JUDGES)
def test_a_judge_that_fails_is_told_in_one_line(judge: str, room: Path, started: str) -> None:
    """At the first evaluation, before anything is learned; mended, the run can be resumed."""
    before = snapshot(room)
    words = ("train", *DATASET, "--model", started, "--task.train", "rows.jsonl", "--evaluation.samples", 2)
    line = refused(*words, "--task.judge", judge, "--out", "new")
    assert all(part in line for part in JUDGES[judge]), line
    after = snapshot(room)
    assert {name: after[name] for name in before} == before


def test_a_run_is_never_written_over(finished: Path, room: Path) -> None:
    run = Path(shutil.copytree(finished, room / "run"))
    before = snapshot(room)
    line = refused("train", TINY, "--out", "run")
    assert "already holds a run" in line and "stockpot resume run" in line
    assert "already holds something" in refused("sft", "--out", str(run))
    assert snapshot(room) == before


def test_a_run_without_a_name_gets_a_free_one(room: Path) -> None:
    from stockpot.cli import new_folder

    for expected in ("countdown", "countdown-2", "countdown-3"):
        folder = new_folder("countdown")
        assert folder == Path("runs", expected)
        folder.mkdir(parents=True)


def test_a_history_of_a_newer_version_is_left_alone(finished: Path, room: Path) -> None:
    run = Path(shutil.copytree(finished, room / "run"))
    with closing(sqlite3.connect(run / "history.sqlite")) as database:
        database.execute("PRAGMA user_version = 99")
    before = snapshot(room)
    for command in ("resume", "show", "history"):
        line = refused(command, "run")
        assert "it has format 99" in line and "upgrade stockpot" in line
    assert {name: text for name, text in snapshot(room).items() if not name.endswith(("-shm", "-wal"))} == before


def test_a_history_of_another_tokenizer_is_left_alone(finished: Path, room: Path) -> None:
    run = Path(shutil.copytree(finished, room / "run"))
    with closing(sqlite3.connect(run / "history.sqlite")) as database:
        database.execute("UPDATE meta SET value = 'another' WHERE key = 'vocabulary'")
        database.commit()
    assert "of another tokenizer" in refused("resume", "run")


def test_weights_that_are_not_numbers_are_refused(started: str, room: Path) -> None:
    """Of a model to start from, and of a model to evaluate."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(started, room / "broken")
    tensors = load_file(room / "broken" / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, room / "broken" / "model.safetensors", metadata={"format": "pt"})
    before = snapshot(room)
    for words in (("train", "--model", "broken", "--out", "new"), ("eval", "broken")):
        line = refused(*words)
        assert "weights of broken are not finite (model.norm.weight)" in line and "earlier checkpoint" in line
    assert snapshot(room) == before


def test_weights_of_another_shape_are_refused(started: str, room: Path) -> None:
    shutil.copytree(started, room / "broken")
    (room / "broken" / "model.safetensors").write_bytes(b"\x10")
    assert "cannot load broken (" in refused("eval", "broken")


def test_a_run_before_its_first_step_has_nothing_to_show(finished: Path, room: Path) -> None:
    run = Path(shutil.copytree(finished, room / "run"))
    with closing(sqlite3.connect(run / "history.sqlite")) as database:
        for table in ("rollouts", "spans", "prompts"):
            database.execute(f"DELETE FROM {table}")
        database.commit()
    assert "no rollouts yet" in refused("show", "run")
    assert stockpot("history", "run").code == 0
    (run / "history.sqlite").unlink()
    assert "no history" in refused("show", "run")


def test_a_config_that_cannot_be_read_is_told(finished: Path, started: str, room: Path) -> None:
    """Torn, a model's, or by a recipe file that is gone."""
    run = Path(shutil.copytree(finished, room / "run"))
    assert "a model's" in refused("resume", started)
    whole = json.loads((run / "config.json").read_text())
    for text, part in (
        (json.dumps(whole)[:-9], "not a run's"),
        (json.dumps(whole).replace("tiny.py", "gone.py"), "gone.py: check its path"),
        (json.dumps(whole).replace("max_tokens", "most_tokens"), "most_tokens"),
        (json.dumps(whole).replace(":GRPO", ":GROP"), "GROP"),
    ):
        (run / "config.json").write_text(text)
        assert part in refused("resume", "run"), part


def test_checkpoints_that_a_run_does_not_have_are_told(finished: Path) -> None:
    line = refused("eval", finished, "--step", 5)
    assert "no checkpoint of step 5: kept are 0, " in line
    assert "no such rollouts at step 77" in refused("show", finished, "--step", 77)
    assert "no such rollouts" in refused("show", finished, "--prompt", "unknown")


def test_a_parquet_file_that_cannot_be_written_is_told(finished: Path, room: Path) -> None:
    pytest.importorskip("pyarrow")
    assert "file/rows.parquet" in refused("history", finished, "--parquet", "file/rows.parquet")
    assert (room / "file").read_text() == "mine"


def test_an_evaluation_that_cannot_be_written_is_told(finished: Path, room: Path) -> None:
    line = refused("eval", finished, "--samples", 1, "--prompts", 1, "--json", "file/result.json")
    assert "file/" in line and "check the path" in line


def test_the_tokenizer_of_the_tests_is_the_tasks(started: str) -> None:
    """A guard: the long prompt above is long in this tokenizer's tokens."""
    assert len(load_tokenizer(started)(json.loads(FILES["long.jsonl"].splitlines()[0])["prompt"])["input_ids"]) == 270
