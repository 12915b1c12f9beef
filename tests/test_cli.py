"""The command line from end to end: what a user types, and what is there afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from runs import TINY, Told, assert_same_bits, metrics, snapshot, stockpot, weights
from stockpot import cli, reading
from stockpot.config import load_recipe
from stockpot.history import History
from stockpot.models import load_tokenizer
from stockpot.report import rollouts as shown

GOLDEN = Path(__file__).with_name("golden")
COMMANDS = (
    "train", "plan", "resume", "eval", "export", "grade", "budget", "show", "history", "compare-losses", "bench",
    "select", "sft", "sft-data",
)  # fmt: skip
PICTURE = b"\x89PNG\r\n\x1a\n"


# --- help -----------------------------------------------------------------------------------------------------------


def options(command: str) -> dict[str, str]:
    """Every option in a command's help, with what is said about it."""
    told = stockpot(command, "--help")
    assert told.code == 0 and f"stockpot {command}" in told.out
    table = told.out.partition("usage: ")[2]
    found: dict[str, str] = {}
    before = ""
    for line in one_column(table):
        name, _, rest = line.strip().partition("  ")
        if (named := re.match(r"--[\w.-]+", name)) and not before.endswith(","):  # else its opposite, --x.no-y
            found[named[0]] = rest
        elif found and not named:
            found[list(found)[-1]] += " " + line.strip()
        before = line.rstrip()
    return found


def one_column(table: str) -> list[str]:
    """Lines of the help, without the rules between its sections."""
    return [line for line in table.splitlines() if not re.fullmatch(r"[\s-]*", line)]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """So narrow that help comes in one column."""
    monkeypatch.setenv("COLUMNS", "60")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command: str) -> None:
    """A sentence each: several words, before the default."""
    for name, said in options(command).items():
        words = re.sub(r"\((default|required)[^)]*\)", "", said).split()
        assert len(words) >= 3, f"{name}: {said!r}"


def test_the_options_are_these() -> None:
    """Growth is seen: `pytest` fails until tests/golden/options.txt is written anew (python tests/test_cli.py)."""
    assert (GOLDEN / "options.txt").read_text() == listing()


def listing() -> str:
    return "".join(f"{command} {name}\n" for command in COMMANDS for name in sorted(options(command)))


def test_help_of_train_names_every_component() -> None:
    told = stockpot("train", "--help")
    for field in reading.COMPONENTS:
        assert f"--{field} NAME" in told.out
        for name in reading.members(field):
            assert re.search(rf"\b{name}\b", told.out), name
            assert stockpot("train", f"--{field}", name, "--model", "./none").code == 2


def test_the_first_help_names_every_command_and_recipe() -> None:
    told = stockpot("--help")
    assert told.code == 0 and told == stockpot() == stockpot("help")
    assert all(f"stockpot {command}" in told.out for command in COMMANDS)
    assert all(name in told.out for name in reading.recipe_names())


class Terminal(io.StringIO):
    """Says that it can show any character, so that tyro draws boxes."""

    encoding = "utf-8"  # type: ignore[assignment]


@pytest.mark.parametrize("words", ["train --stepz 3", "train --steps many", "show", "train --kl.estimator k9"])
def test_mistakes_read_the_same_with_and_without_boxes(words: str) -> None:
    plain = stockpot(*words.split())
    out, err = Terminal(), Terminal()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert cli.main(words.split()) == 2
    assert err.getvalue() == plain.err
    assert not set("│╭─") & set(plain.err) and plain.err.count("\n") == 1


# --- train ----------------------------------------------------------------------------------------------------------


def test_train_says_what_a_user_wants_to_know(told_and_run: tuple[Told, Path]) -> None:
    """Progress on stderr; on stdout a table, a picture, and last the folder."""
    told, run = told_and_run
    assert told.complaints == []
    assert re.search(r"^teaching 20/20  loss [\d.]+$", told.err, re.M)
    assert re.search(r"^training 6/6  reward [\d.]+  entropy [\d.]+  held-out [\d.]+$", told.err, re.M)
    first, last = metrics(run)[0], metrics(run)[-1]
    for label, name in (("pass@1", "test/pass@1"), ("pass@4", "test/pass@4"), ("length", "test/length")):
        (row,) = (line for line in told.out.splitlines() if re.search(rf"{label}\b", line))
        assert f"{first[name]:.3f}" in row and f"{last[name]:.3f}" in row and f"{last[name] - first[name]:+.3f}" in row
    assert told.out.splitlines()[-1].split()[:2] == ["run", str(run)]


def test_the_curves_are_a_picture(finished: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = (finished / "curves.png").read_bytes()
    assert picture.startswith(PICTURE) and len(picture) > 20_000


def test_the_run_folder_holds_what_the_design_says(finished: Path) -> None:
    readers = {"history.sqlite-shm", "history.sqlite-wal"}  # left by whoever looked at the history
    assert {path.name for path in finished.iterdir()} - {"curves.png"} - readers == {
        "checkpoints", "config.json", "history.sqlite", "metrics.jsonl", "start", "timings.jsonl",
    }  # fmt: skip
    told = json.loads((finished / "config.json").read_text())
    assert told["config"]["steps"] == 6
    assert {"stockpot", "torch", "transformers", "python", "machine", "commit"} <= told["made_with"].keys()


def test_the_real_command_runs_a_recipe_by_name(tmp_path: Path) -> None:
    """In a process of its own, in a pipe, with components and numbers from the command line."""
    words = (
        "train countdown-grpo --algorithm rloo --start.steps 2 --start.batch 2 --steps 1 --prompts-per-step 2 "
        "--group-size 2 --task.train-prompts 4 --task.test-prompts 2 --evaluation.samples 2 --max-tokens 16 "
        "--threads 1 --device cpu"
    )
    done = subprocess.run(
        [sys.executable, "-m", "stockpot.cli", *words.split()],
        capture_output=True, text=True, cwd=tmp_path, timeout=300, env=os.environ | {"COLUMNS": "100"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("run     runs/countdown-grpo ")
    made = json.loads((tmp_path / "runs" / "countdown-grpo" / "config.json").read_text())["config"]
    assert made["prefixes"]["class"].endswith(":NoPrefixes") and made["algorithm"]["class"].endswith(":RLOO")
    assert (made["steps"], made["group_size"], made["task"]["train_prompts"]) == (1, 2, 4)
    assert "\x1b" not in done.stdout + done.stderr, "no colours in a pipe"


@pytest.mark.parametrize("name", reading.recipe_names())
def test_every_recipe_of_the_package_loads(name: str) -> None:
    assert load_recipe(name).steps > 0
    assert load_recipe(name.replace("_", "-")) == load_recipe(name)


# --- eval -----------------------------------------------------------------------------------------------------------


def test_eval_of_a_run_measures_its_newest_checkpoint(finished: Path, tmp_path: Path) -> None:
    """A table with intervals, the numbers in a file, the run untouched; another step, seed or setup, other numbers."""
    before = snapshot(finished)
    told = stockpot("eval", finished, "--json", tmp_path / "a.json")
    assert told.code == 0 and "step-6: 8 prompts x 4 samples" in " ".join(told.out.split())
    measured = json.loads((tmp_path / "a.json").read_text())
    assert {"test/pass@1", "test/pass@2", "test/pass@4", "test/entropy", "model"} <= measured.keys()
    for label in ("pass@1", "pass@2", "pass@4"):
        low_mean_high = rf"{label}\D+{measured[f'test/{label}']:.3f} \[[\d.]+, [\d.]+\]"
        assert re.search(low_mean_high, told.out), told.out
    results = [measured]
    for words in (["--step", 0], ["--seed", 1], ["--temperature", 0.5], ["--top-p", 0.5]):
        assert stockpot("eval", finished, *words, "--json", tmp_path / "b.json").code == 0
        results.append(json.loads((tmp_path / "b.json").read_text()))
    assert len({result["test/entropy"] for result in results}) == 5
    assert results[1]["model"].endswith("step-0")
    assert snapshot(finished) == before


def test_eval_of_a_model_uses_the_sizes_asked_for(started: str, tmp_path: Path) -> None:
    told = stockpot("eval", started, "--samples", 2, "--prompts", 3, "--json", tmp_path / "a.json")
    assert told.code == 0 and "3 prompts x 2 samples" in " ".join(told.out.split()), told.err
    assert {"test/pass@1", "test/pass@2"} <= json.loads((tmp_path / "a.json").read_text()).keys()


def test_eval_of_a_model_on_the_task_of_a_recipe(started: str, tmp_path: Path) -> None:
    """Not every model is there for countdown: a recipe names the task, and a wrong name is refused."""
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from stockpot.config import Config\nfrom stockpot.tasks import Countdown\n"
        "recipe = Config(task=Countdown(test_prompts=2, train_prompts=2), max_tokens=16)\n"
    )
    told = stockpot("eval", started, "--recipe", recipe, "--samples", 2, "--prompts", 99)
    assert told.code == 0 and "2 prompts x 2 samples" in " ".join(told.out.split())
    assert stockpot("eval", started, "--recipe", "contdown").code == 2


def test_eval_says_the_same_twice(finished: Path, tmp_path: Path) -> None:
    """And step 0 of a run is the model that it started from."""
    for name in ("once", "again"):
        assert stockpot("eval", finished, "--step", 0, "--json", tmp_path / name).code == 0
    assert (tmp_path / "once").read_text() == (tmp_path / "again").read_text()
    assert (finished / "start" / "model.safetensors").read_bytes() == (
        finished / "checkpoints" / "step-0" / "model.safetensors"
    ).read_bytes()


# --- show and history -----------------------------------------------------------------------------------------------


def coloured(run: Path, **changes: Any) -> str:
    """What `show` prints for one prefixed rollout of the last step, with its ANSI codes."""
    with History.open(run / "history.sqlite", read_only=True) as history:
        rollout = next(r for r in history.find(versions=(5, 5)) if r.prefix_length)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=2000, highlight=False)
    for line in shown.lines(rollout, load_tokenizer(str(run / "start")), 5):
        console.print(line)
    return out.getvalue()


def test_show_colours_tokens_by_author_and_underlines_prefixes(finished: Path) -> None:
    """The very codes: prompt dim, prefix underlined in its author's colour, the live end white, never dimmed."""
    with History.open(finished / "history.sqlite", read_only=True) as history:
        rollout = next(r for r in history.find(versions=(5, 5)) if r.prefix_length)
    tokenizer = load_tokenizer(str(finished / "start"))
    heading, body = coloured(finished).splitlines()[:2]
    pieces = re.findall(r"\x1b\[([\d;]+)m([^\x1b]*)\x1b\[0m", body)
    styled = [(codes.split(";"), text.strip()) for codes, text in pieces if text.strip()]
    assert styled[0] == (["2"], rollout.prompt.text)
    assert [text for _, text in styled[1:]] == [tokenizer.decode(list(span.tokens)) for span in rollout.spans]
    *heads, (live, _) = styled[1:]
    assert live == ["37"], "white, not underlined"
    assert heads and all("4" in codes and not {"2", "37"} & set(codes) for codes, _ in heads)
    for span, (codes, _) in zip(rollout.spans, styled[1:], strict=True):
        colour = codes[-1]
        count = sum(len(s) for s in rollout.spans if s.author == span.author)
        assert f"\x1b[{colour}m■ v{span.author.version} {count} tokens" in heading
    assert f"reward {rollout.reward:.2f}" in heading and rollout.prompt.key in heading


def test_show_in_a_pipe_has_one_plain_line_for_each_rollout(finished: Path) -> None:
    told = stockpot("show", finished, "--count", 3)
    lines = told.out.splitlines()
    assert len(lines) == 9 and "\x1b" not in told.out
    assert [line.split()[0] for line in lines[::3]] == ["reward"] * 3 and lines[2::3] == [""] * 3


def test_show_finds_what_is_asked_for(finished: Path) -> None:
    first = stockpot("show", finished, "--step", 0, "--count", 100).out
    assert first.count("reward ") == 16 and "v0 " in first and "v1 " not in first
    prefixed = stockpot("show", finished, "--prefixed", "--count", 100).out
    assert prefixed.count("reward ") == round(metrics(finished)[-1]["prefix/share"] * 16)
    key = re.search(r"prompt (\w+)", first)
    assert key is not None
    one = stockpot("show", finished, "--step", 0, "--prompt", key[1], "--count", 100).out
    assert one.count("reward ") == one.count(f"prompt {key[1]}") == 4


def test_colours_can_be_forced(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" in stockpot("show", finished, "--count", 1).out


def test_history_counts_and_exports(finished: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    told = stockpot("history", finished, "--parquet", tmp_path / "rows.parquet")
    assert told.code == 0 and "96 rollouts written to" in told.out
    assert re.search(r"rollouts\s+\S?\s*96\b", told.out)
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert table.num_rows == 96 and set(table.column_names) >= {"id", "step", "prompt", "spans", "reward"}
    with History.open(finished / "history.sqlite", read_only=True) as history:
        assert table.column("reward").to_pylist() == [rollout.reward for rollout in history.find()]


# --- sft ------------------------------------------------------------------------------------------------------------


def test_sft_writes_the_start_that_train_would_teach(finished: Path, tmp_path: Path) -> None:
    """The same bits, in a folder that `--model` takes; a run from it is the run that taught its own."""
    told = stockpot("sft", TINY, "--out", tmp_path / "taught")
    assert told.code == 0 and told.complaints == [f"the taught model is in {tmp_path / 'taught'}"]
    assert snapshot(tmp_path / "taught") == snapshot(finished / "start")
    assert stockpot("train", TINY, "--model", tmp_path / "taught", "--out", tmp_path / "run").code == 0
    assert weights(tmp_path / "run") == weights(finished)
    assert_same_bits(tmp_path / "run", finished)


if __name__ == "__main__":
    os.environ["COLUMNS"] = "60"
    (GOLDEN / "options.txt").write_text(listing())
