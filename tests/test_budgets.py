"""Inference scaling: what was cut where, who answered, what it cost, and that nothing is written twice."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import snapshot, stockpot
from stockpot import budgets, checkpoints, pens, shelf
from stockpot.as_json import from_json
from stockpot.budgets import Scaling, Setup, Writer, measure
from stockpot.budgets.thinking import CLOSING, Closing
from stockpot.config import Config
from stockpot.models import load_model
from stockpot.record import Run
from stockpot.tasks import Countdown, Dataset
from stockpot.types import Author, Prompt, Rollout, Sampling, Span, StockpotError
from test_resume import live

SAMPLES, PROMPTS, ROOM = 6, 5, 32
TOKENIZER = Countdown().tokenizer()
ANSWER = TOKENIZER("answer")["input_ids"][0]


def setup(**changes: Any) -> Setup:
    given: dict[str, Any] = {
        "budgets": (4, 12, 32), "hows": ("summariser", "self"), "samples": SAMPLES, "prompts": PROMPTS,
        "max_tokens": ROOM, "answer_tokens": 9, "sampling": Sampling(), "answer_sampling": Sampling(),
        "closing": "answer", "seed": 3,
    }  # fmt: skip
    return Setup(**{**given, **changes})


def config(run: Path) -> Config:
    made = from_json(Run.open(run).config)
    assert isinstance(made, Config)
    return made


def writers(run: Path) -> list[Writer]:
    kept = checkpoints.listed(run / "checkpoints")
    return [Writer(f"step {c.step}", str(c.folder), Author("run", c.step)) for c in kept]


def start(run: Path) -> Writer:
    return Writer("start", str(run / "start"), Author("start"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("budgets")


@pytest.fixture(scope="module")
def found(finished: Path, store: Path) -> Scaling:
    return measure(config(finished), writers(finished), setup(), store, summariser=start(finished))


def shelved(store: Path, kind: str) -> list[tuple[dict[str, Any], dict[str, dict[str, Any]]]]:
    """(head, lines by key) of every file of a kind, read without the library."""
    files = [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(store.glob(f"{kind}-*"))]
    return [(head, {line["key"]: line for line in lines}) for head, *lines in files]


# --- where thinking ends --------------------------------------------------------------------------------------------


def response(text: str, finish: str = "stop") -> Rollout:
    ids = TOKENIZER(text)["input_ids"] + ([TOKENIZER.eos_token_id] if finish == "stop" else [])
    spans = (Span(Author("run", 1), ids[:3], [-1.0] * len(ids[:3]), kind="prefix"), Span(Author("run", 2), ids[3:]))
    return Rollout(Prompt("p", [4]), spans, finish=finish)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ("2 * 9 = 18 yes answer 2 * 9 answer 3", "stop", (6, True)),
        ("answer 2 * 9", "stop", (0, True)),
        ("2 * 9 = 18 no", "stop", (6, True)),
        ("2 * 9 = 18 no", "length", (6, False)),
        ("2 * 9 answer 2", "length", (3, True)),
    ],
)
def test_thinking_ends_at_the_closing_words_or_at_the_stop_token(
    text: str, finish: str, expected: tuple[int, bool]
) -> None:
    assert Closing.of("answer", TOKENIZER).thinking(response(text, finish)) == expected


def test_closing_words_of_several_tokens_are_found_in_the_text() -> None:
    closing = Closing.of("yes answer", TOKENIZER)
    assert len(closing.ids) == 2
    assert closing.thinking(response("2 * 9 yes no yes answer 2")) == (5, True)
    assert closing.thinking(response("2 * 9 answer yes", "length")) == (5, False)


def test_a_cut_keeps_authors_and_closes_in_nobodys_name() -> None:
    closing = Closing.of("answer", TOKENIZER)
    whole = response("2 * 9 = 18 yes answer 2 * 9")
    first, second, last = closing.cut(whole, 5) or ()
    assert (list(first.tokens), first.author, first.kind) == (list(whole.tokens[:3]), Author("run", 1), "prefix")
    assert list(first.log_probs or ()) == [-1.0] * 3
    assert (list(second.tokens), second.author) == (list(whole.tokens[3:5]), Author("run", 2))
    assert (list(last.tokens), last.author, last.log_probs, last.trained) == ([ANSWER], CLOSING, None, False)
    assert len(closing.cut(whole, 2) or ()) == 2, "a span that is cut off whole leaves none behind"
    assert closing.cut(whole, 6) is None and closing.cut(whole, 7) is None, "it ended within the budget"
    endless = response("2 * 9 = 18 no", "length")
    assert [len(span) for span in closing.cut(endless, 6) or ()] == [3, 3, 1], "this one never ended"


def test_tasks_name_their_closing_words() -> None:
    assert Countdown().closing == "answer"
    assert Dataset().closing == "" and Dataset(closing="</think>").closing == "</think>"


# --- what is measured -----------------------------------------------------------------------------------------------


def test_every_answer_stands_behind_its_own_thinking(finished: Path, store: Path, found: Scaling) -> None:
    """Counted again from the files: what was cut, what was kept, what it took, what was right."""
    task, full = config(finished).task, shelved(store, "full")
    assert len(full) == 3 and all(len(lines) == SAMPLES * PROMPTS for _, lines in full)
    seen = 0
    for curve in found.curves:
        head, lines = next(
            (h, ls)
            for h, ls in full
            if h["weights"] == pens.fingerprint(writers(finished)[position(found, curve)].weights)
        )
        by = start(finished).weights if curve.how == "summariser" else writers(finished)[position(found, curve)].weights
        answers = next(
            ls for h, ls in shelved(store, "answers") if h["of"] == head and h["weights"] == pens.fingerprint(by)
        )
        for point in curve.points:
            right, cut, extra, used = [0] * PROMPTS, 0, 0, 0
            for place, (name, line) in enumerate(lines.items()):
                tokens = line["tokens"]
                ended = ANSWER in tokens or line["finish"] == "stop"
                length = tokens.index(ANSWER) if ANSWER in tokens else len(tokens) - (line["finish"] == "stop")
                used += min(length, point.budget)
                if length > point.budget or not ended:
                    answer = answers[f"{name}/{point.budget}"]["tokens"]
                    cut, extra = cut + 1, extra + len(answer)
                    assert 1 <= len(answer) <= 9
                    tokens = [*tokens[: point.budget], ANSWER, *answer]
                text = TOKENIZER.decode(tokens, skip_special_tokens=True)
                right[place // SAMPLES] += int(task.reward([""], [text])[0])
                seen += 1
            assert (point.correct, point.cut, point.extra, point.read) == (tuple(right), cut, extra, cut)
            assert point.thinking == pytest.approx(used / len(lines))
            assert point.accuracy.mean == pytest.approx(sum(right) / SAMPLES / PROMPTS)
    assert seen == 3 * 2 * 3 * SAMPLES * PROMPTS


def position(found: Scaling, curve: budgets.Curve) -> int:
    steps = [one.step for one in found.curves if one.how == curve.how]
    return steps.index(curve.step)


def test_the_tiny_run_has_every_case(found: Scaling) -> None:
    """A guard for the test above: responses that are cut and such that are not, in the same point."""
    cuts = [point.cut for curve in found.curves for point in curve.points]
    assert any(0 < cut < SAMPLES * PROMPTS for cut in cuts) and max(cuts) > SAMPLES
    assert len({point.correct for curve in found.curves for point in curve.points}) > 6


def test_the_start_answers_itself_as_the_summariser_does(found: Scaling) -> None:
    """Step 0 has the start's weights: under both protocols the same tokens and figures, but not the same name."""
    summarised, own = (next(c for c in found.curves if c.step == 0 and c.how == how) for how in ("summariser", "self"))
    assert summarised.points == own.points
    assert (summarised.writer, own.writer) == ("start", "step 0")
    late = [next(c for c in found.curves if c.step == 6 and c.how == how) for how in ("summariser", "self")]
    assert late[0].points != late[1].points, "a guard: another writer makes a difference"


def test_greedy_answers_are_the_summarisers_likeliest_words(finished: Path, tmp_path: Path) -> None:
    """Held against the whole model, without a cache, reading prompt, cut thinking and closing word."""
    how = setup(budgets=(7,), hows=("summariser",), answer_sampling=Sampling(temperature=0), samples=3, prompts=3)
    measure(config(finished), writers(finished)[-1:], how, tmp_path, summariser=start(finished))
    model = load_model(start(finished).weights, torch.device("cpu")).eval()
    ((_, full),), ((_, answers),) = shelved(tmp_path, "full"), shelved(tmp_path, "answers")
    prompts = [TOKENIZER(row["prompt"])["input_ids"] for row in config(finished).task.rows("test")]
    checked = 0
    for place, (name, line) in enumerate(full.items()):
        if f"{name}/7" not in answers:
            continue
        ids = [*prompts[place // 3], *line["tokens"][:7], ANSWER]
        answer = answers[f"{name}/7"]["tokens"]
        for token in answer:
            with torch.no_grad():
                assert int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
            checked += 1
    assert checked > 20


def test_the_gain_is_paired_by_problem(found: Scaling) -> None:
    for curve in found.curves:
        first, last = curve.points[0].correct, curve.points[-1].correct
        assert curve.gain.mean == pytest.approx(
            sum(b - a for a, b in zip(first, last, strict=True)) / SAMPLES / PROMPTS
        )
        assert curve.gain.low <= curve.gain.mean <= curve.gain.high


# --- nothing twice --------------------------------------------------------------------------------------------------


def test_other_budgets_write_no_full_response_again(
    finished: Path, store: Path, found: Scaling, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(store)
    loaded: list[str] = []

    def loading(name: str, device: torch.device) -> Any:
        loaded.append(Path(name).name)
        return load_model(name, device)

    monkeypatch.setattr(pens, "load_model", loading)
    again = measure(config(finished), writers(finished), setup(), store, summariser=start(finished))
    assert again == found and loaded == [], "all is stored: no model is even loaded"
    other = setup(budgets=(9,), hows=("summariser",))
    measure(config(finished), writers(finished), other, store, summariser=start(finished))
    assert loaded == ["start"]
    after = snapshot(store)
    assert all(after[name] == stored for name, stored in before.items() if name.startswith("full"))
    assert all(after[name].startswith(stored) for name, stored in before.items())


def test_more_samples_and_prompts_find_the_old_ones(finished: Path, tmp_path: Path) -> None:
    few, many = ({"samples": n, "prompts": m, "hows": ("self",)} for n, m in ((2, 3), (4, 4)))
    last = writers(finished)[-1:]
    measure(config(finished), last, setup(**few), tmp_path / "a")
    before = snapshot(tmp_path / "a")
    grown = measure(config(finished), last, setup(**many), tmp_path / "a")
    assert grown == measure(config(finished), last, setup(**many), tmp_path / "b")
    assert all(snapshot(tmp_path / "a")[name].startswith(stored) for name, stored in before.items())


def test_other_conditions_get_files_of_their_own(finished: Path, tmp_path: Path) -> None:
    last = writers(finished)[-1:]
    for changes in ({}, {"seed": 4}, {"sampling": Sampling(0.7)}, {"max_tokens": 40}):
        measure(config(finished), last, setup(budgets=(5,), hows=("self",), samples=1, prompts=1, **changes), tmp_path)
    assert len(shelved(tmp_path, "full")) == len(shelved(tmp_path, "answers")) == 4


def test_killed_and_begun_again_it_ends_in_the_same_file(finished: Path, tmp_path: Path) -> None:
    """Real processes, SIGKILL just before a visit to the disk. What lay there stays, byte for byte."""

    def words(name: str) -> list[str]:
        store, told = str(tmp_path / name), str(tmp_path / f"{name}.json")
        sizes = ["--samples", "66", "--budgets", "4,16", "--steps", "6", "--how", "self,summariser"]
        return ["budget", str(finished), *sizes, "--store", store, "--json", told, "--prompts", "8"]

    assert stockpot(*words("straight")).code == 0
    codes, told = live([(f"stockpot.shelf:Shelf.append:{n}", 0, words("killed")) for n in (2, 3)], tmp_path)
    assert codes == [-signal.SIGKILL] * 2, told.err
    torn = next((tmp_path / "killed").glob("full-*"))
    kept = torn.read_bytes()
    assert kept.count(b"\n") == 1 + 8 * 66
    torn.write_bytes(kept[:-30])
    codes, told = live([("", 0, words("killed"))], tmp_path)
    assert codes == [0], told.err
    assert torn.read_bytes() == kept
    assert (tmp_path / "straight.json").read_text() == (tmp_path / "killed.json").read_text()
    one, other = snapshot(tmp_path / "straight"), snapshot(tmp_path / "killed")
    assert {n: sorted(s.splitlines()) for n, s in one.items() if n.endswith("jsonl")} == {
        n: sorted(s.splitlines()) for n, s in other.items() if n.endswith("jsonl")
    }


def test_a_shelf_is_for_one_process_and_for_its_own_conditions(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with shelf.Shelf(path, {"seed": 0}) as one:
        one.append([("a", {"n": 1}), ("a", {"n": 2})])
        one.append([("a", {"n": 3}), ("b", {"n": 4})])
        assert {key: one[key]["n"] for key in one} == {"a": 1, "b": 4}, "the first of a key stays"
        with pytest.raises(StockpotError, match="another process"):
            shelf.Shelf(path, {"seed": 0})
    with pytest.raises(StockpotError, match="other conditions"):
        shelf.Shelf(path, {"seed": 1})
    path.write_text('{"seed": 0}\nnonsense\n')
    with pytest.raises(StockpotError, match="is damaged"):
        shelf.Shelf(path, {"seed": 0})
    path.write_text('{"see')
    with shelf.Shelf(path, {"seed": 0}) as one:
        assert len(one) == 0, "a torn head is written again"


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_prints_draws_and_writes(finished: Path, tmp_path: Path) -> None:
    before = snapshot(finished)
    words = ("--store", tmp_path / "s", "--json", tmp_path / "a.json", "--budgets", "16,4", "--steps", "0,6")
    told = stockpot("budget", finished, *words, "--how", "self,summariser", "--samples", 2)
    assert told.code == 0 and snapshot(finished) == before, told.err
    written = json.loads((tmp_path / "a.json").read_text())
    assert [(c["step"], c["how"]) for c in written["curves"]] == [
        (0, "summariser"), (6, "summariser"), (0, "self"), (6, "self"),
    ]  # fmt: skip
    for curve in written["curves"]:
        assert [point["budget"] for point in curve["points"]] == [4, 16]
        for point in curve["points"]:
            low, high = point["accuracy"]["low"], point["accuracy"]["high"]
            assert f"{point['accuracy']['mean']:.3f} [{low:.3f}, {high:.3f}]" in told.out
    flat = " ".join(told.out.split())
    assert "summariser: a separate model writes" in flat and "self: the policy closes its own thinking" in flat
    assert (tmp_path / "s" / "budget.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_that_is_no_run(started: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--samples", 1, "--prompts", 3, "--budgets", 8)
    told = stockpot("budget", started, *words, "--how", "self")
    assert told.code == 0 and (tmp_path / "runs" / "budgets-start" / "budget.png").exists(), told.err
    assert "needs a model: name it with --summariser" in stockpot("budget", started, *words).err
    assert stockpot("budget", started, *words, "--summariser", started).code == 0


def test_the_picture_has_a_line_for_each_policy_and_a_panel_for_each_protocol(found: Scaling) -> None:
    pytest.importorskip("matplotlib")
    from stockpot.report.budget import figure

    axes = figure(found).axes
    assert len(axes) == 2 and [axis.get_title().split(":")[0] for axis in axes] == ["summariser", "self"]
    for axis, how in zip(axes, ("summariser", "self"), strict=True):
        curves = [curve for curve in found.curves if curve.how == how]
        assert axis.get_xscale() == "log" and axis.xaxis.get_transform().base == 2
        assert [line.get_label() for line in axis.lines] == [curve.name for curve in curves]
        for line, curve in zip(axis.lines, curves, strict=True):
            assert list(line.get_xdata()) == [4, 12, 32]
            assert list(line.get_ydata()) == [point.accuracy.mean for point in curve.points]
        assert len(axis.collections) == len(curves)


def test_what_cannot_begin_is_refused_in_one_line(finished: Path, tmp_path: Path) -> None:
    def refused(*words: object) -> str:
        told = stockpot("budget", finished, "--store", tmp_path / "s", "--samples", 1, *words)
        assert told.code == 2 and told.out == "" and told.err.count("\n") == 1, told.err
        return told.err

    assert "budget 64 is above the room for a full response: the largest possible is 32" in refused("--budgets", "4,64")
    assert "not 4,x" in refused("--budgets", "4,x")
    assert "from 1" in refused("--budgets", "0,4")
    assert "no checkpoint of step 5: kept are 0," in refused("--steps", "5")
    assert "not x" in refused("--steps", "x")
    assert "not us" in refused("--how", "us")
    assert "at least 1" in refused("--answer-tokens", 0)
    assert "names no words that close" in refused("--closing", "")
    assert "the context of step 0 is 256" in refused("--max-tokens", 250)
    assert not (tmp_path / "s").exists()
