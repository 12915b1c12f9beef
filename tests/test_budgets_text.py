"""A summariser of another vocabulary: thinking goes through text, the same words arrive, budgets stay the policy's."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import stockpot
from small import byte_tokenizer, save_model
from stockpot.budgets import Scaling, Writer, measure
from stockpot.budgets.reading import Reading, ThroughText, place, reading
from stockpot.budgets.thinking import CLOSING, Closing
from stockpot.models import load_model, load_tokenizer
from stockpot.prompts import load_prompts
from stockpot.tasks import Countdown, Dataset
from stockpot.types import Author, Prompt, Request, Rollout, Sampling, Span, StockpotError
from test_budgets import ANSWER, TOKENIZER, config, setup, shelved, start, writers

WORDS = TOKENIZER.get_vocab()
SIZES: dict[str, Any] = {
    "budgets": (4, 12, 32), "hows": ("summariser",), "samples": 6, "prompts": 5,
    "sampling": Sampling(top_p=0.9), "answer_sampling": Sampling(temperature=0),
}  # fmt: skip


def other_words(folder: Path, model: str, *, without: str = "") -> Path:
    """The same model with its words under other ids: it says the same in another vocabulary."""
    moved = {i: i if i < 2 else 2 + (i - 2 + 37) % (len(WORDS) - 2) for i in range(len(WORDS))}
    made = load_model(model, torch.device("cpu"))
    rows = made.get_input_embeddings().weight
    with torch.no_grad():
        old = rows.clone()
        for first, then in moved.items():
            rows[then] = old[first]
    made.save_pretrained(folder)
    tokenizer = load_tokenizer(model)
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    told["model"]["vocab"] = {word: moved[i] for word, i in WORDS.items() if word != without}
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer.from_str(json.dumps(told))
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<stop>").save_pretrained(folder)
    return folder


def writer(folder: Path) -> Writer:
    return Writer(folder.name, str(folder), Author(folder.name))


def by(finished: Path, summariser: Writer, store: Path, **changes: Any) -> Scaling:
    return measure(config(finished), writers(finished)[-1:], setup(**SIZES | changes), store, summariser=summariser)


# --- the same words arrive --------------------------------------------------------------------------------------------


def test_the_same_model_in_another_vocabulary_answers_the_same(finished: Path, tmp_path: Path) -> None:
    """Held against the path of tokens: greedy answers, counts, lengths; what differs is what the result says of it."""
    other = other_words(tmp_path / "other", str(finished / "start"))
    plain = by(finished, start(finished), tmp_path / "s").curves[0]
    through = by(finished, writer(other), tmp_path / "s").curves[0]
    ((_, full),) = shelved(tmp_path / "s", "full")
    ids = {token for line in full.values() for token in line["tokens"]}
    assert 0 not in ids and max(ids) < len(WORDS), "a guard: whatever was thought can be written"
    assert any(point.cut for point in plain.points) and any(0 < sum(point.correct) < 30 for point in plain.points)
    assert through.through_text and not plain.through_text
    assert [replace(p, read_anew=0) for p in through.points] == list(plain.points)
    assert replace(through, points=plain.points, through_text=False, writer="start") == plain
    for point in through.points:
        assert point.read_anew == point.cut * (point.budget + 1), "a word is a word, and one closes"
    (one, _), (other_one, _) = sorted(shelved(tmp_path / "s", "answers"), key=lambda item: "through" in item[0])
    assert "through" not in one and other_one["through"] == "text" and one["weights"] != other_one["weights"]


def test_words_that_the_summariser_lacks_are_counted(finished: Path, tmp_path: Path) -> None:
    by(finished, start(finished), tmp_path / "s")
    ((_, full),) = shelved(tmp_path / "s", "full")
    thought = Counter(token for line in full.values() for token in line["tokens"][:4])
    ((common, _),) = thought.most_common(1)
    word = TOKENIZER.decode([common])
    other = other_words(tmp_path / "other", str(finished / "start"), without=word)
    through = by(finished, writer(other), tmp_path / "s").curves[0]
    for point in through.points:
        lost = 0
        for line in full.values():
            tokens = line["tokens"]
            ended = ANSWER in tokens or line["finish"] == "stop"
            length = tokens.index(ANSWER) if ANSWER in tokens else len(tokens) - (line["finish"] == "stop")
            lost += (length > point.budget or not ended) and common in tokens[: point.budget]
        assert point.lossy == lost
    lossy, cut = (sum(getattr(point, name) for point in through.points) for name in ("lossy", "cut"))
    assert 0 < lossy < cut and word != "answer"


def test_letters_and_bytes(finished: Path, tmp_path: Path) -> None:
    """By the command, a model that reads bytes: all is counted again from the files, without the library's reading."""
    other, store = save_model(tmp_path / "bytes", chat=False), tmp_path / "s"
    words = ("--store", store, "--json", tmp_path / "a.json", "--budgets", "4,16", "--steps", "6", "--samples", 3)
    told = stockpot("budget", finished, *words, "--prompts", 4, "--summariser", other, "--answer-tokens", 9)
    assert told.code == 0, told.err
    (curve,) = json.loads((tmp_path / "a.json").read_text())["curves"]
    ((_, full),), ((_, answers),) = shelved(store, "full"), shelved(store, "answers")
    for point in curve["points"]:
        cut = read = extra = used = 0
        for name, line in full.items():
            tokens = line["tokens"]
            ended = ANSWER in tokens or line["finish"] == "stop"
            length = tokens.index(ANSWER) if ANSWER in tokens else len(tokens) - (line["finish"] == "stop")
            used += min(length, point["budget"])
            if length > point["budget"] or not ended:
                text = TOKENIZER.decode(tokens[: point["budget"]], skip_special_tokens=True)
                cut, read = cut + 1, read + len(f" {text} answer".encode())
                extra += len(answers[f"{name}/{point['budget']}"]["tokens"])
        assert (point["cut"], point["read_anew"], point["extra"], point["lossy"]) == (cut, read, extra, 0)
        assert point["thinking"] == pytest.approx(used / len(full)), "in the policy's tokens"
    assert curve["through_text"] and sum(point["cut"] for point in curve["points"]) > 0
    assert "step 6, summariser: tokens were re-encoded: bytes has another vocabulary" in told.out
    total = sum(point["read_anew"] for point in curve["points"])
    assert f"read by it as {total} tokens of its own (0 of " in told.out and "count the policy's tokens" in told.out
    before = (store / "budget.png").stat().st_mtime_ns, sorted(path.name for path in store.iterdir())
    again = stockpot("budget", finished, *words, "--prompts", 4, "--summariser", other, "--answer-tokens", 9)
    assert again.out == told.out and sorted(path.name for path in store.iterdir()) == before[1], "nothing is new"


# --- the text in between ----------------------------------------------------------------------------------------------


def through(policys: Any, theirs: Any, closing: str, asked: Prompt, their: Prompt) -> ThroughText:
    return ThroughText(theirs, Closing.of(closing, policys), {place(asked): their}, "other", 0)


def test_a_letter_torn_by_the_cut_is_left_out_and_the_seam_keeps_its_space() -> None:
    letters = byte_tokenizer()
    read = through(letters, TOKENIZER, "</think>", Prompt("p", [1]), Prompt("p", [2]))
    ids = letters("Ist 2 + 2 für dich 5")["input_ids"]
    torn = len(b"Ist 2 + 2 f") + 1
    last = Span(CLOSING, letters("</think>")["input_ids"], kind="prefix", trained=False)
    for count, text in ((torn, "Ist 2 + 2 f"), (torn + 1, "Ist 2 + 2 fü"), (3, "Ist")):
        assert read.thought((Span(Author("run", 1), ids[:count]), last)) == text + "</think>"
    words = through(TOKENIZER, letters, "answer", Prompt("p", [1]), Prompt("p", [2]))
    two = Span(Author("run", 1), TOKENIZER("2 * 9")["input_ids"]), Span(CLOSING, [ANSWER])
    assert words.thought(two) == "2 * 9 answer"
    assert words.thought(two, TOKENIZER("1 3 make 18 :")["input_ids"]) == " 2 * 9 answer"


def test_a_request_is_in_the_summarisers_tokens_and_a_response_in_the_policys_text() -> None:
    letters, asked = byte_tokenizer(), Prompt("p", TOKENIZER("2 9 make 18 :")["input_ids"], "2 9 make 18 :")
    read = through(TOKENIZER, letters, "answer", asked, Prompt("p", letters(asked.text)["input_ids"]))
    cut = Span(Author("run", 1), TOKENIZER("2 * 9")["input_ids"]), Span(CLOSING, [ANSWER])
    request = read.request(Request(asked, key=7, max_tokens=32), cut, Sampling(0.5), 9)
    assert letters.decode(list(request.prompt.tokens)) == "2 9 make 18 :"
    assert letters.decode([t for span in request.prefix for t in span.tokens]) == " 2 * 9 answer"
    assert (request.key, request.sampling) == (7, Sampling(0.5))
    assert request.max_tokens == len(" 2 * 9 answer") + 9 and not any(span.trained for span in request.prefix)
    said = Span(Author("other"), letters(" 2 * 9")["input_ids"])
    text, ids = read.response(Rollout(request.prompt, (*request.prefix, said)), cut)
    assert text == "2 * 9 answer 2 * 9" and list(ids) == TOKENIZER(text)["input_ids"]


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_refused_in_one_line(finished: Path, tmp_path: Path) -> None:
    other, store = save_model(tmp_path / "bytes", chat=False), tmp_path / "s"
    words = ("--store", store, "--budgets", "16", "--steps", "6", "--samples", 1, "--prompts", 2, "--summariser", other)

    def refused(positions: int) -> str:
        told = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps(told | {"max_position_embeddings": positions}))
        done = stockpot("budget", finished, *words)
        lines = [line for line in done.err.splitlines() if not line.startswith("budgets ")]
        assert done.code == 2 and done.out == "" and len(lines) == 1, done.err
        return lines[0]

    assert "tokens of bytes and an answer may have 32, but its context is 40: lower --answer-tokens" in refused(40)
    assert not store.exists(), "found before anything was written"
    assert "but its context is 60: lower --budgets or --answer-tokens (the full responses are stored)" in refused(60)
    assert len(shelved(store, "full")) == 1


def test_a_summariser_that_knows_no_conversations_is_refused(finished: Path, tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"{n} + {n}"}], "answer": str(2 * n)} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat, plain = save_model(tmp_path / "chat"), save_model(tmp_path / "plain", chat=False)
    tokenizer = load_tokenizer(str(chat))
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(tmp_path / "chat")
    file = str(tmp_path / "rows.jsonl")
    (tmp_path / "judge.py").write_text("def none(prompts, completions, **columns):\n    return [0.0] * len(prompts)\n")
    task = Dataset(train=file, test=file, judge=f"{tmp_path}/judge.py:none")
    asking = replace(config(finished), task=task, model=str(chat))
    asked = load_prompts(asking.task, "test", tokenizer, context=0, max_tokens=9)
    closing = Closing.of("</think>", tokenizer)
    with pytest.raises(StockpotError, match="has no chat template, but the prompts are conversations"):
        reading(asking, writer(plain), closing, asked, 9)
    assert type(reading(asking, writer(chat), closing, asked, 9)) is Reading, "its own vocabulary"
    assert Countdown().closing == "answer"
