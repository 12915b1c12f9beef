"""Traces of trial and error: every part from its source, judged right, each once; and critics that misbehave."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from runs import TINY, Told, snapshot, stockpot
from stockpot.shelf import Shelf
from stockpot.tasks import Countdown
from stockpot.tasks.countdown import attempts, expression, result, right
from stockpot.traces import Endpoint, Limits
from stockpot.traces.asking import sensible, verdict_is
from stockpot.traces.minds import Question
from test_resume import live

ROWS = Countdown().rows("train")
LINE = re.compile(r"(?:(\d+) ([-+*]) (\d+) = (\d+) , (\d+) ([-+*]) (\d+) = (\d+) vs (\d+) (yes|no) )+answer .*")

# --- a server that misbehaves ---------------------------------------------------------------------------------------


def completion(text: Any, **choice: Any) -> bytes:
    message = {"role": "assistant", "content": text, **choice.pop("message", {})}
    return json.dumps({"choices": [{"message": message, **choice}], "usage": {"total_tokens": 10}}).encode()


Reply = tuple[int, bytes, dict[str, str]]
MISDEEDS: dict[str, tuple[Reply | float, str]] = {
    "hangs": (1.5, "timeout"),
    "trickles": (-1.0, "timeout"),
    "hangs up": (0.0, "broken connection"),
    "fails": ((500, b"oops", {}), "server error (HTTP 500)"),
    "is busy": ((429, b"", {"Retry-After": "0.01"}), "busy (HTTP 429)"),
    "refuses": ((403, b"no", {}), "refused (HTTP 403)"),
    "sends a page": ((200, b"<html>not what you want</html>", {}), "garbage"),
    "sends half": ((200, completion("WRONG because")[:-9], {}), "garbage"),
    "sends another shape": ((200, b'{"choices": []}', {}), "garbage"),
    "sends a list": ((200, b"[1, 2]", {}), "garbage"),
    "sends nothing": ((200, completion(""), {}), "garbage"),
    "sends no text": ((200, completion(None), {}), "garbage"),
    "sends no UTF-8": ((200, b"\xff\xfe\x00", {}), "garbage"),
    "declines": ((200, completion(None, message={"refusal": "I cannot help"}), {}), "declined"),
    "filters": ((200, completion("WRONG", finish_reason="content_filter"), {}), "declined"),
    "is cut off": ((200, completion("WRONG since", finish_reason="length"), {}), "answer too long"),
    "contradicts": ((200, completion("RIGHT, it holds."), {}), "garbage"),
}
"""What a server does (a number is for how long it sleeps before it hangs up), and what it is counted as."""
GOOD: Reply = (200, completion("WRONG: the sum is not the target."), {})


class Server:
    """`behave(question, n)` says how the n-th call with the same body is answered."""

    def __init__(self, behave: Callable[[str, int], Reply | float]) -> None:
        self.behave, self.calls, self.keys = behave, Counter[str](), set[str]()
        self.lock = threading.Lock()


@contextmanager
def serving(behave: Callable[[str, int], Reply | float]) -> Iterator[tuple[str, Server]]:
    server = Server(behave)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            with server.lock:
                server.calls[body] += 1
                server.keys.add(self.headers.get("Authorization", ""))
                n = server.calls[body]
            assert self.path == "/v1/chat/completions"
            told = server.behave(json.loads(body)["messages"][-1]["content"], n)
            if isinstance(told, float):
                if told < 0:
                    self.send_response(200)
                    self.end_headers()
                    for _ in range(200):
                        self.wfile.write(b" ")
                        time.sleep(0.02)
                time.sleep(max(0.0, told))
                self.connection.close()
                return
            code, content, headers = told
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words: Any) -> None:
            return None

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            return None

    http = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1", server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def question(number: int = 0) -> Question:
    return Question(f"q{number}", [{"role": "user", "content": f"question {number}"}], verdict_is(False))


def endpoint(url: str, shelf: Shelf, **limits: Any) -> Endpoint:
    return Endpoint(url, "m", shelf, Limits(**{"timeout": 0.5, "pause": 0.001, "tries": 3, "parallel": 1, **limits}))


def answer(text: str) -> dict[str, str]:
    return {"q0": text}


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_a_misdeed_is_counted_and_the_question_asked_again(misdeed: str, tmp_path: Path) -> None:
    reply, why = MISDEEDS[misdeed]
    with serving(lambda _, n: reply if n <= 2 else GOOD) as (url, server), Shelf(tmp_path / "a", {}) as shelf:
        one = endpoint(url, shelf)
        assert one.ask([question()]) == answer("the sum is not the target.")
        assert one.failures == {f"tries: {why}": 2}
        assert one.ask([question()]) == answer("the sum is not the target."), "from the shelf"
        assert list(server.calls.values()) == [3]


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_a_server_that_does_nothing_else_is_not_fatal(misdeed: str, tmp_path: Path) -> None:
    reply, why = MISDEEDS[misdeed]
    with serving(lambda asked, _: reply if asked.endswith("0") else GOOD) as (url, server):
        with Shelf(tmp_path / "a", {}) as shelf:
            one = endpoint(url, shelf, tries=2)
            assert one.ask([question(0), question(1)]) == {"q1": "the sum is not the target."}
            assert one.failures == {f"tries: {why}": 2, f"left out: {why}": 1}
        assert sorted(server.calls.values()) == [1, 2]
        server.behave = lambda asked, _: GOOD
        with Shelf(tmp_path / "a", {}) as shelf:
            assert set(endpoint(url, shelf).ask([question(0), question(1)])) == {"q0", "q1"}
        assert sorted(server.calls.values()) == [1, 3], "only what was left out is asked again"


def test_nobody_there(tmp_path: Path) -> None:
    with serving(lambda _, n: GOOD) as (url, _):
        pass
    with Shelf(tmp_path / "a", {}) as shelf:
        one = endpoint(url, shelf, patience=5)
        assert one.ask([question(n) for n in range(9)]) == {}
        assert one.failures["tries: no connection"] == 5, "then nothing more is asked"
        assert one.failures["left out: gave up on the endpoint"] == 8


def test_pauses_grow_and_the_endpoints_own_wish_is_heeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("stockpot.traces.endpoint.time.sleep", slept.append)
    replies: list[Reply] = [(500, b"", {}), (503, b"", {"Retry-After": "7"}), (429, b"", {"Retry-After": "999"}), GOOD]
    with serving(lambda _, n: replies[n - 1]) as (url, _), Shelf(tmp_path / "a", {}) as shelf:
        assert endpoint(url, shelf, tries=4, pause=1.0, longest_pause=20).ask([question()])
    assert slept == [1.0, 7.0, 20.0]
    with serving(lambda _, n: (500, b"", {})) as (url, _), Shelf(tmp_path / "b", {}) as shelf:
        endpoint(url, shelf, tries=4, pause=1.0).ask([question()])
    assert slept[3:] == [1.0, 2.0, 4.0], "no pause after the last try"


@pytest.mark.parametrize(("limits", "answered"), [({"calls": 3}, 3), ({"tokens": 25}, 3), ({"calls": 0}, 6)])
def test_budgets_hold_over_several_runs(limits: dict[str, int], answered: int, tmp_path: Path) -> None:
    with serving(lambda _, n: GOOD) as (url, server):
        for _ in range(2):
            with Shelf(tmp_path / "a", {}) as shelf:
                one = endpoint(url, shelf, **limits, parallel=2)
                assert len(one.ask([question(n) for n in range(6)])) == answered
                assert sum(one.failures.values()) == 6 - answered
        assert sum(server.calls.values()) == answered


def test_an_answer_longer_than_memory_allows_is_garbage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockpot.traces.endpoint.LARGEST_REPLY", 1000)
    reply = (200, completion("WRONG " + "x" * 100_000), {})
    with serving(lambda _, n: reply) as (url, _), Shelf(tmp_path / "a", {}) as shelf:
        one = endpoint(url, shelf, tries=1)
        assert one.ask([question()]) == {} and one.failures["tries: garbage"] == 1


def test_verdicts_must_agree_and_are_taken_off() -> None:
    assert verdict_is(True)("**RIGHT.** The product holds.") == "The product holds."
    assert verdict_is(False)("wrong\n\nBecause 2 + 2 = 4.") == "Because 2 + 2 = 4."
    for text in ("RIGHT", "Wrong. No.", "I think it is right", "", "1 + 1"):
        assert verdict_is(True)(text) is None
    assert sensible("x" * 30_000) is None and sensible("  a ") == "a"


# --- the embedded task's own ----------------------------------------------------------------------------------------


def file_of_attempts(path: Path, prompts: int = 6) -> Path:
    """For each prompt two wrong answers, two right ones where there are such, one twice, one that is no answer."""
    lines = [{"prompt": "7 7 7 make 8 :", "completion": "answer 7"}]
    for row in ROWS[:prompts]:
        some = list(attempts(row["numbers"]))
        good = [a for a in some if result(a) == row["target"]][:2]
        texts = [f"answer {expression(a)}" for a in [*[a for a in some if result(a) != row["target"]][:2], *good]]
        lines += [{"prompt": row["prompt"], "completion": text} for text in [*texts, texts[0], "answer me"]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def made(out: Path, *words: object, recipe: object = "countdown") -> tuple[list[dict[str, Any]], dict[str, int], Told]:
    """Lines of the file and the counts that were told."""
    told = stockpot("sft-data", recipe, "--out", out, "--prompts", 6, *words)
    assert told.code == 0, told.err
    counts = {m[1].strip(): int(m[2]) for line in told.out.splitlines() if (m := re.match(r"(.*\D) +(\d+) *$", line))}
    return [json.loads(line) for line in out.read_text().splitlines()], counts, told


def test_the_tasks_own_traces(tmp_path: Path) -> None:
    file = file_of_attempts(tmp_path / "a.jsonl")
    lines, counts, _ = made(tmp_path / "out.jsonl", "--attempts", file, "--traces", 2, "--wrong", 3)
    by_prompt = {row["prompt"]: row for row in ROWS}
    given = Counter(json.loads(line)["prompt"] for line in file.read_text().splitlines())
    lengths = set()
    for line in lines:
        row = by_prompt[line["prompt"]]
        assert right(line["completion"], row["numbers"], row["target"]), "judged right by the task"
        assert LINE.fullmatch(line["completion"]), line["completion"]
        verdicts = re.findall(r"vs (\d+) (yes|no)", line["completion"])
        parts = line["sources"]["attempts"]
        assert [v for _, v in verdicts] == ["no"] * (len(parts) - 1) + ["yes"]
        assert [p["right"] for p in parts] == [False] * (len(parts) - 1) + [True]
        assert all(p["source"] == str(file) and p["critic"] == "Countdown's own" for p in parts)
        sampled = {p["sample"] for p in parts}
        assert len(sampled) == len(parts) and max(sampled) < given[line["prompt"]]
        lengths.add(len(parts))
    assert len({(line["prompt"], line["completion"]) for line in lines}) == len(lines) == counts["traces"]
    assert lengths >= {1, 2, 3}
    assert counts["lines of files that fit no prompt"] == 1 and counts["attempts made twice"] == 6
    assert counts["attempts wrong"] == 6 * 3 and counts["prompts"] == 6
    assert counts["attempts right"] == sum(n for n in given.values()) - 1 - 6 * 4
    assert counts["critic: left out: the checker cannot read the attempt"] == counts["attempts without a critique"] > 0


def test_attempts_of_models_are_kept_and_not_made_again(
    finished: Path, started: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's newest checkpoint and a model attempt; the second call loads nothing and writes the same."""
    words = ("--attempts", f"{finished},{started}", "--samples", 8, "--store", tmp_path / "s", "--traces", 3)
    words = (*words, "--critic", "plain", "--writer", "plain")
    lines, counts, _ = made(tmp_path / "a.jsonl", *words, recipe=TINY)
    assert counts["attempts"] == 6 * 2 * 8
    ways = ("attempts right", "attempts wrong", "attempts out of room", "attempts made twice")
    assert sum(counts.get(way, 0) for way in ways) == counts["attempts"]
    assert counts["traces"] == len(lines) > 0, "the tiny judge likes even numbers of words"
    assert all(len(line["completion"].split()) % 2 == 0 for line in lines)
    assert {part["source"] for line in lines for part in line["sources"]["attempts"]} <= {str(finished), started}
    before = snapshot(tmp_path / "s")
    monkeypatch.delattr("stockpot.pens.load_model")
    made(tmp_path / "b.jsonl", *words, recipe=TINY)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert snapshot(tmp_path / "s") == before


def test_plain_traces_close_their_thinking(tmp_path: Path) -> None:
    """A dataset's task has no checker: the template says what can be said, and the reward still decides."""
    rows = [{"prompt": [{"role": "user", "content": f"{n} + {n}"}], "answer": str(2 * n)} for n in range(1, 41)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "judge.py").write_text(
        "def exact(prompts, completions, answer, **columns):\n"
        "    return [float(c[0]['content'].split()[-1] == a) for c, a in zip(completions, answer)]\n"
    )
    attempts = [{"prompt": r["prompt"], "completion": ["It is 0", f"It is {r['answer']}"]} for r in rows[:6]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in attempts))
    task = ("--task", "dataset", "--task.train", tmp_path / "rows.jsonl", "--task.judge", f"{tmp_path}/judge.py:exact")
    chat = chat_model(tmp_path / "model")
    words = (*task, "--model", chat, "--attempts", tmp_path / "a.jsonl")
    told = stockpot("sft-data", "--out", tmp_path / "x.jsonl", *words)
    assert told.code == 2 and "Dataset brings no critic of its own" in told.err
    lines, counts, _ = made(
        tmp_path / "b.jsonl", *words, "--critic", "plain", "--writer", "plain", "--task.closing", "</think>"
    )
    assert counts["traces"] == 6 and counts["traces with a wrong attempt"] > 0
    for line, row in zip(lines, rows, strict=False):
        assert line["prompt"] == row["prompt"] and line["completion"][0]["role"] == "assistant"
        thinking, _, final = line["completion"][0]["content"].partition("</think>")
        assert final.strip() == f"It is {row['answer']}" and "it holds" in thinking
        assert ("not right" in thinking) == (len(line["sources"]["attempts"]) > 1)


def chat_model(folder: Path) -> Path:
    """A tiny model with a tokenizer that has a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

    words = ["<pad>", "<stop>", "user:", "assistant:", "+", "It", "is", "RIGHT", "WRONG", *map(str, range(100))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<stop>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen3Config(
        vocab_size=128, head_dim=16, num_key_value_heads=1, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        max_position_embeddings=2048, initializer_range=0.5, **sizes,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_local_model_as_critic(tmp_path: Path) -> None:
    """It knows little, so most of what it says is garbage: counted, asked again, left out; the rest is used."""
    file, model = file_of_attempts(tmp_path / "a.jsonl"), chat_model(tmp_path / "model")
    words = ("--attempts", file, "--critic", model, "--answer-tokens", 6, "--tries", 40, "--answer-temperature", 1.5)
    lines, counts, told = made(tmp_path / "out.jsonl", *words)
    assert counts["critic: tries: garbage"] > 10
    assert counts["attempts explained"] + counts["attempts without a critique"] > 6
    assert all(part["critic"] == str(model) for line in lines for part in line["sources"]["attempts"])
    assert counts["attempts explained"] > 0, told.out


# --- an endpoint as critic and writer, by the command -----------------------------------------------------------------


def helpful(asked: str, n: int) -> Reply:
    """A critic who knows the verdict, and a writer who copies the last attempt and forgets it for one prompt."""
    if "Remarks on attempt" in asked:
        last = re.findall(r"Attempt \d+:\n(.*)", asked)[-1]
        return 200, completion("I tried.\n" + ("answer 1" if ROWS[0]["prompt"] in asked else last)), {}
    right = asked.endswith("this attempt is right.")
    return 200, completion(("RIGHT. " if right else "WRONG. ") + "I looked at it."), {}


def test_the_command_with_an_endpoint_that_misbehaves_in_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question meets another misdeed first. What is made is what a good endpoint would have made."""
    monkeypatch.setenv("MY_KEY", "secret")
    file, deeds = file_of_attempts(tmp_path / "a.jsonl"), [reply for reply, _ in MISDEEDS.values()]
    met: dict[str, int] = {}

    def behave(asked: str, n: int) -> Reply | float:
        place = met.setdefault(asked, len(met))
        bad = deeds[place % (len(deeds) - 1)]  # the last is a verdict, which a writer may say
        return bad if n == 1 else helpful(asked, n)

    words = ("--attempts", file, "--traces", 2, "--endpoint-model", "m", "--key-variable", "MY_KEY")
    words = (*words, "--timeout", 0.5, "--pause", 0.001, "--patience", 1000)
    with serving(behave) as (url, server):
        lines, counts, told = made(tmp_path / "a", *words, "--critic", url, "--writer", url)
        assert server.keys == {"Bearer secret"} and "secret" not in told.out + told.err
    with serving(helpful) as (url, _):
        good, _, _ = made(tmp_path / "b", *words, "--critic", url, "--writer", url, "--store", tmp_path / "other")
    assert [(one["prompt"], one["completion"]) for one in lines] == [(one["prompt"], one["completion"]) for one in good]
    assert counts["traces judged wrong"] >= 1 and not any(line["prompt"] == ROWS[0]["prompt"] for line in lines)
    failed = {name.split("tries: ")[1] for name in counts if "tries: " in name}
    assert failed >= {why for _, why in list(MISDEEDS.values())[:-1]}
    assert not any("left out" in name for name in counts)
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"secret" not in stored


def test_a_dead_endpoint_leaves_an_empty_file_and_the_counts(tmp_path: Path) -> None:
    file = file_of_attempts(tmp_path / "a.jsonl")
    words = ("--attempts", file, "--endpoint-model", "m", "--pause", 0.001)
    with serving(lambda asked, n: (401, b"", {})) as (url, server):
        lines, counts, _ = made(tmp_path / "out", *words, "--critic", url)
    assert lines == [] and counts["traces"] == 0 and counts["attempts explained"] == 0
    assert counts["critic: tries: refused (HTTP 401)"] == sum(server.calls.values()) <= 20 + 3, "patience, and parallel"


def test_killed_while_asking_it_asks_nothing_twice(tmp_path: Path) -> None:
    """SIGKILL before an answer is stored: that one is asked again, no other; the file is the same."""
    file = file_of_attempts(tmp_path / "a.jsonl")

    def words(url: str, name: str) -> list[str]:
        given = ["--attempts", str(file), "--traces", "2", "--critic", url, "--endpoint-model", "m", "--parallel", "1"]
        return ["sft-data", "--out", str(tmp_path / name), "--prompts", "6", *given]

    with serving(helpful) as (url, server):
        assert stockpot(*words(url, "straight")).code == 0
        calls = server.calls.copy()
        assert set(calls.values()) == {1} and len(calls) > 6
        server.calls.clear()
        moment = "stockpot.shelf:Shelf.append:{}"
        lives: list[Any] = [(moment.format(n), 0, words(url, "killed")) for n in (1, 4)]
        codes, told = live([*lives, ("", 0, words(url, "killed"))], tmp_path)
        assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0], told.err
        assert sum(server.calls.values()) == len(calls) + 2 and server.calls.keys() == calls.keys()
    assert (tmp_path / "straight").read_bytes() == (tmp_path / "killed").read_bytes()


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_begin_is_refused_in_one_line(tmp_path: Path) -> None:
    file = file_of_attempts(tmp_path / "a.jsonl")

    def refused(*words: object) -> str:
        told = stockpot("sft-data", *words)
        assert told.code == 2 and told.out == "" and told.err.count("\n") == 1, told.err
        return told.err

    out = ("--out", tmp_path / "out.jsonl")
    assert "name it with --out" in refused("--attempts", file)
    assert "is there already" in refused("--attempts", file, "--out", file)
    assert "name models or JSONL files with --attempts" in refused(*out)
    assert "no file of attempts none.jsonl" in refused(*out, "--attempts", "none.jsonl")
    assert "must be told which model" in refused(*out, "--attempts", file, "--critic", "http://localhost:1/v1")
    assert "is no address" in refused(*out, "--attempts", file, "--critic", "http:///v1", "--endpoint-model", "m")
    assert "at least 1" in refused(*out, "--attempts", file, "--samples", 0)
    assert "there is no option --attemps" in refused(*out, "--attemps", file)
    assert not (tmp_path / "out.jsonl").exists()
