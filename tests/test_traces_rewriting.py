"""Merged traces rewritten as one train of thought: judged again, dropped back, counted; nothing asked twice."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from runs import stockpot
from stockpot.tasks import Countdown, Dataset
from stockpot.tasks.base import Task
from stockpot.tasks.countdown import right
from stockpot.traces import Counts, Trace, rewritten
from stockpot.traces.asking import Judged, Parts, Told, closes_like, rewrite_messages
from stockpot.types import Prompt
from test_resume import live
from test_traces import MISDEEDS, ROWS, Reply, chat_model, completion, file_of_attempts, made, serving

Behave = Callable[[str, int], Reply | float]


def text_of(asked: str) -> str:
    """The merged trace in a question."""
    return asked.partition("\n\nText:\n")[2]


def prompt_of(asked: str) -> str:
    return asked.removeprefix("Problem:\n").partition("\n")[0]


def better(asked: str, n: int) -> Reply:
    """One who rewrites well."""
    return 200, completion("let me think . " + text_of(asked)), {}


def plain(tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A file of attempts, and the traces that are merged of them without a rewriter."""
    file = file_of_attempts(tmp_path / "attempts.jsonl")
    lines, counts, _ = made(tmp_path / "plain", "--attempts", file)
    assert len(lines) == 6 == counts["traces"] and not any("rewrit" in name for name in counts)
    assert all("rewriter" not in line["sources"] for line in lines)
    return file, lines


def patient(url: str, file: Path, *words: object) -> tuple[object, ...]:
    limits = ("--timeout", 3, "--pause", 0.001, "--tries", 2, "--parallel", 2)
    return ("--attempts", file, "--rewriter", url, "--endpoint-model", "m", *limits, *words)


# --- a server that is of use, and one that is not ---------------------------------------------------------------------


def test_each_rewrite_is_judged_again_and_what_is_of_no_use_leaves_the_merged_trace(tmp_path: Path) -> None:
    """Six prompts, six fates. Then the server mends its ways, and is asked only what it never answered."""
    file, merged = plain(tmp_path)
    rows = {row["prompt"]: row for row in ROWS}
    names = [line["prompt"] for line in merged]
    deeds: dict[str, Behave] = {
        names[0]: better,
        names[1]: lambda asked, n: (200, completion(text_of(asked).rpartition("answer")[0] + "answer 1"), {}),
        names[2]: lambda asked, n: (200, b"<html>no</html>", {}),
        names[3]: lambda asked, n: (403, b"no", {}),
        names[4]: lambda asked, n: 20.0,
        names[5]: lambda asked, n: (200, completion("answer" + text_of(asked).rpartition("answer")[2]), {}),
    }
    with serving(lambda asked, n: deeds[prompt_of(asked)](asked, n)) as (url, server):
        lines, counts, told = made(tmp_path / "a", *patient(url, file))
        assert [line["prompt"] for line in lines] == names
        for line, before in zip(lines, merged, strict=True):
            row = rows[line["prompt"]]
            assert right(line["completion"], row["numbers"], row["target"])
            new = line["prompt"] == names[0]
            assert line["completion"] == ("let me think . " if new else "") + before["completion"]
            assert line["sources"] == before["sources"] | ({"rewriter": f"m at {url}"} if new else {})
        assert counts["traces"] == counts["rewrites asked"] == 6 and counts["traces rewritten"] == 1
        back = "the merged trace kept"
        assert counts[f"rewrites judged wrong, {back}"] == counts[f"rewrites too short, {back}"] == 1
        assert counts[f"rewrites never written, {back}"] == 3
        length = len(merged[0]["completion"])
        assert (counts["letters before rewriting"], counts["letters after rewriting"]) == (length, length + 15)
        for why in ("garbage", "refused (HTTP 403)", "timeout"):
            assert counts[f"rewriter: left out: {why}"] == 1 and counts[f"rewriter: tries: {why}"] == 2
        assert (
            f"the rewriter m at {url} left 3 questions without an answer (garbage 1, refused (HTTP 403) 1, " in told.err
        )
        assert sum(server.calls.values()) == 3 + 3 * 2
        server.calls.clear()
        deeds |= dict.fromkeys(names, better)
        again, counts, told = made(tmp_path / "b", *patient(url, file, "--store", tmp_path / "a.store"))
        asked = {prompt_of(json.loads(body)["messages"][-1]["content"]) for body in server.calls}
        assert asked == set(names[2:5]) and set(server.calls.values()) == {1}
    assert "without an answer" not in told.err and counts["traces rewritten"] == 4
    changed = [
        line["prompt"] for line, old in zip(again, merged, strict=True) if line["completion"] != old["completion"]
    ]
    assert changed == [names[0], *names[2:5]], (
        "what was judged wrong, or was too short, stays so and is not asked again"
    )


def test_every_misdeed_is_met_with_patience(tmp_path: Path) -> None:
    """Each question meets another misdeed first; what is made is what a good server would have made."""
    file, deeds = file_of_attempts(tmp_path / "a.jsonl"), [reply for reply, _ in list(MISDEEDS.values())[:-1]]
    met: dict[str, int] = {}

    def behave(asked: str, n: int) -> Reply | float:
        place = met.setdefault(asked, len(met))
        bad = deeds[(3 * place + n - 1) % len(deeds)]
        return bad if n <= 3 else better(asked, n)

    words = (
        "--attempts",
        file,
        "--endpoint-model",
        "m",
        "--timeout",
        1.0,
        "--pause",
        0.001,
        "--patience",
        1000,
        "--tries",
        9,
    )
    with serving(behave) as (url, _):
        lines, counts, _ = made(tmp_path / "a", *words, "--rewriter", url)
    with serving(better) as (url, _):
        good, _, _ = made(tmp_path / "b", *words, "--rewriter", url, "--store", tmp_path / "other")
    assert [line["completion"] for line in lines] == [line["completion"] for line in good]
    assert counts["traces rewritten"] == 6 and sum(n for c, n in counts.items() if "tries: " in c) >= 18
    assert not any("left out" in name for name in counts if name.startswith("rewriter"))


def test_a_budget_of_calls_holds_and_the_rest_stays_merged(tmp_path: Path) -> None:
    file, merged = plain(tmp_path)
    with serving(better) as (url, server):
        for name in ("a", "b"):
            words = patient(url, file, "--max-calls", 2, "--store", tmp_path / "s")
            lines, counts, told = made(tmp_path / name, *words)
            assert counts["traces rewritten"] == 2 and counts["rewriter: left out: budget of calls"] == 4
            same = [line["completion"] == old["completion"] for line, old in zip(lines, merged, strict=True)]
            assert same.count(True) == 4 and "(budget of calls 4)" in told.err
        assert sum(server.calls.values()) == 2, "earlier calls on the same store count"


def test_killed_while_rewriting_it_asks_nothing_twice(tmp_path: Path) -> None:
    """SIGKILL before an answer is stored: that one is asked again, no other; the file is the same."""
    file = file_of_attempts(tmp_path / "a.jsonl")

    def words(url: str, name: str) -> list[str]:
        given = ["--attempts", str(file), "--rewriter", url, "--endpoint-model", "m", "--parallel", "1"]
        return ["sft-data", "--out", str(tmp_path / name), "--prompts", "6", *given]

    with serving(better) as (url, server):
        assert stockpot(*words(url, "straight")).code == 0
        calls = server.calls.copy()
        assert set(calls.values()) == {1} and len(calls) == 6
        server.calls.clear()
        lives: list[Any] = [(f"stockpot.shelf:Shelf.append:{n}", 0, words(url, "killed")) for n in (1, 4)]
        codes, told = live([*lives, ("", 0, words(url, "killed"))], tmp_path)
        assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0], told.err
        assert sum(server.calls.values()) == len(calls) + 2 and server.calls.keys() == calls.keys()
    assert (tmp_path / "straight").read_bytes() == (tmp_path / "killed").read_bytes()


def test_a_model_here_as_rewriter(tmp_path: Path) -> None:
    """It knows little: nearly all of it is judged wrong or garbage, every trace stays, and the second call is free."""
    file, merged = plain(tmp_path)
    model = chat_model(tmp_path / "model")
    words = ("--attempts", file, "--rewriter", model, "--answer-tokens", 6, "--store", tmp_path / "s", "--tries", 2)
    lines, counts, _ = made(tmp_path / "a", *words)
    assert [line["completion"] for line in lines] == [line["completion"] for line in merged]
    fates = [n for name, n in counts.items() if name.endswith("the merged trace kept")]
    assert sum(fates) == counts["rewrites asked"] == 6
    again, _, _ = made(tmp_path / "b", *words)
    assert again == lines


# --- what counts as a rewrite -----------------------------------------------------------------------------------------


class Scribe:
    """A rewriter that says what it is told to."""

    def __init__(self, said: dict[str, str]) -> None:
        self.said, self.failures, self.closing = said, Counter[str](), ""

    def rewrite(
        self, named: Mapping[str, tuple[Prompt, str]], closing: str, told: Callable[[int], None]
    ) -> dict[str, Told]:
        self.closing = closing
        return {name: Told(self.said[text], "scribe") for name, (_, text) in named.items() if text in self.said}


class Even(Dataset):
    """Likes an even number of words."""

    def reward(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [float(len(text.split()) % 2 == 0) for text in completions]


def traces(*texts: str) -> list[Trace]:
    prompt = Prompt("p", [1], "why")
    parts = Parts(prompt, (Judged("a b", True, "m", 0),), (Told("so", "m"),))
    return [Trace(prompt, text, parts, "writer", 1.0) for text in texts]


def test_no_trace_is_lost_and_none_is_there_twice() -> None:
    said = {
        "one two": "new  one", "three four": "new one", "five six": "five  six", "seven eight": "one two",
        "a b c d e f": "a b", "g h": "odd one out",
    }  # fmt: skip
    scribe, counts, task = Scribe(said), Counts(), Even(closing="</think>")
    assert isinstance(task, Task)
    kept = rewritten(task, traces(*said, "left alone"), scribe, 0.5, counts, lambda n: None)
    texts = [trace.completion for trace in kept]
    assert texts == ["new  one", *list(said)[1:], "left alone"] and scribe.closing == "</think>"
    assert [trace.rewriter for trace in kept] == ["scribe", *[""] * 6]
    back = ", the merged trace kept"
    expected = {
        "rewrites asked": 7, "traces rewritten": 1, f"rewrites made twice{back}": 2, "rewrites that changed nothing": 1,
        f"rewrites too short{back}": 1, f"rewrites judged wrong{back}": 1, f"rewrites never written{back}": 1,
        "letters before rewriting": 7, "letters after rewriting": 8, "rewrites not judged, counted as wrong": 0,
    }  # fmt: skip
    assert counts.counted == expected


def test_the_words_that_close_the_thinking_must_stay() -> None:
    accept = closes_like("a </think> b", "</think>")
    assert accept(" c </think> d ") == "c </think> d"
    assert accept("c d") is None and accept("a </think> b </think> c") is None and accept("  ") is None
    assert closes_like("a", "")("c </think>") == "c </think>" and closes_like("a", "</think>")("b") == "b"
    asked = rewrite_messages(Prompt("p", [1], "why"), "a </think> b", "</think>")[-1]["content"]
    assert asked.startswith("Problem:\nwhy\n\nKeep `</think>`") and asked.endswith("\n\nText:\na </think> b")
    assert Countdown().closing not in rewrite_messages(Prompt("p", [1], "why"), "b", "answer")[-1]["content"]


def test_what_cannot_begin_is_refused_in_one_line(tmp_path: Path) -> None:
    file = file_of_attempts(tmp_path / "a.jsonl")

    def refused(*words: object) -> str:
        told = stockpot("sft-data", "--attempts", file, "--out", tmp_path / "out", *words)
        assert told.code == 2 and told.out == "" and told.err.count("\n") == 1, told.err
        assert not (tmp_path / "out").exists()
        return told.err

    for name in ("plain", "task"):
        assert f"--rewriter {name} cannot rewrite: name a model" in refused("--rewriter", name)
    assert "--rewrite-least is a share between 0 and 1, not 1.5" in refused("--rewrite-least", 1.5)
    assert "must be told which model" in refused("--rewriter", "http://localhost:1/v1")
    assert "there is no model in ./none" in refused("--rewriter", "./none")


@pytest.mark.parametrize("reply", [(401, b"", {}), (200, b"what?", {})], ids=["refuses", "garbage"])
def test_a_critic_that_is_of_no_use_is_told_in_one_line(reply: Reply, tmp_path: Path) -> None:
    """Not fatal: the file is there, empty, and what to do is said."""
    file = file_of_attempts(tmp_path / "a.jsonl")
    words = ("--attempts", file, "--endpoint-model", "m", "--pause", 0.001)
    with serving(lambda asked, n: reply) as (url, _):
        lines, _, told = made(tmp_path / "out", *words, "--critic", url)
    (line,) = [line for line in told.err.splitlines() if "without an answer" in line]
    assert lines == [] and line.startswith(f"the critic m at {url} left ") and "gave up on the endpoint" in line
    assert line.endswith(f"begin again with another --out and --store {tmp_path / 'out'}.store")
