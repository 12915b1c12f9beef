"""`stockpot eval --bench` and `stockpot grade` from end to end, with a real model of random weights."""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runs import Told, snapshot, stockpot
from small import byte_tokenizer, save_model, write_rows
from stockpot.benchmarks import TEMPLATES, Problem, generate, templates
from stockpot.benchmarks.store import Sample, Store
from stockpot.types import StockpotError

SUMS = [{"id": i, "problem": f"What is {i} + {i}?", "answer": float(2 * i)} for i in range(5)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "amc23.jsonl", SUMS)
    write_rows(folder / "gsm8k_test.jsonl", [{"question": f"Add {i}?", "answer": f"so\n#### 1,00{i}"} for i in (1, 2)])
    return folder


def words(model: Path, data: Path, out: Path, *more: object) -> list[object]:
    common = ["--bench", "amc23,gsm8k", "--data", data, "--out", out, "--k", 3, "--max-tokens", 12, "--rows", 2]
    return ["eval", model, *common, "--device", "cpu", *more]


@pytest.fixture(scope="module")
def evaluated(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Told, Path]:
    """An evaluation that nothing stopped. Look, do not touch."""
    out = tmp_path_factory.mktemp("evaluated") / "it"
    told = stockpot(*words(model, data, out))
    assert told.code == 0, told.err
    return told, out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def drawn(folder: Path, name: str = "amc23") -> dict[tuple[str, int], list[int]]:
    return {(line["problem"], line["sample"]): line["tokens"] for line in lines(folder / f"{name}.samples.jsonl")}


def copy(folder: Path, to: Path) -> Path:
    for name, content in snapshot(folder).items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_bytes(content)
    return to


# --- the whole way --------------------------------------------------------------------------------------------------


def test_every_problem_has_its_samples_and_the_results_say_what_they_are_of(evaluated: tuple[Told, Path]) -> None:
    told, out = evaluated
    assert drawn(out).keys() == {(str(i), j) for i in range(5) for j in range(3)}
    assert all(0 < len(tokens) <= 12 for tokens in drawn(out).values())
    assert len({tuple(tokens) for tokens in drawn(out).values()}) > 10, "samples of a prompt differ"
    results = json.loads((out / "results.json").read_text())
    found = results["results"]["amc23"]
    assert {"pass@1", "pass@2", "pass@3", "mean@3", "majority@3", "truncated", "entropy"} <= found.keys()
    assert "pass@4" not in found and results["results"]["gsm8k"]["problems"] == 2
    truncated = [line["finish"] == "length" for line in lines(out / "amc23.samples.jsonl")]
    assert found["truncated"] == pytest.approx(sum(truncated) / 15)
    assert found["length"]["mean"] == pytest.approx(sum(map(len, drawn(out).values())) / 15)
    assert 1 < found["entropy"] < 5.6
    assert (results["temperature"], results["top_p"], results["template"]) == (0.6, 0.95, "plain")
    text = " ".join(told.out.split())
    assert "amc23:" in text and "pass@1 = mean@3" in text and "majority@3" in text and "over problems" in text
    assert "tokens/s" in told.err and re.search(r"left 0:00:\d\d", told.err)
    assert "amc23: 5 problems in" in told.err and "40 are known" in told.err


def test_the_same_command_again_samples_nothing_and_says_the_same(
    evaluated: tuple[Told, Path], model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, out = evaluated
    again = copy(out, tmp_path / "again")
    monkeypatch.setattr(generate.TorchSampler if hasattr(generate, "TorchSampler") else Store, "append", None)
    repeated = stockpot(*words(model, data, again))
    assert repeated.code == 0 and repeated.out == told.out
    assert (again / "results.json").read_bytes() == (out / "results.json").read_bytes()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("--k", 4), "another k (3, now 4)"),
        (("--temperature", 1.0), "another temperature"),
        (("--max-tokens", 13), "another max_tokens"),
        (("--template", "qwen-boxed"), "another template"),
        (("--seed", 1), "another seed"),
        (("--limit", 2), "another problems"),
    ],
)
def test_other_settings_are_refused_in_one_line(
    changed: tuple[object, ...], named: str, evaluated: tuple[Told, Path], model: Path, data: Path
) -> None:
    _, out = evaluated
    before = snapshot(out)
    told = stockpot(*words(model, data, out, *changed))
    (line,) = (line for line in told.complaints if line.startswith("stockpot:"))
    assert told.code == 2 and named in line and "--out" in line
    assert snapshot(out) == before


def test_another_model_is_refused(evaluated: tuple[Told, Path], data: Path, tmp_path: Path) -> None:
    """Even one whose folder has the same name: weights are part of the settings."""
    _, out = evaluated
    other = save_model(tmp_path / "base", eos="<|im_end|>")
    told = stockpot(*words(other, data, out))
    assert told.code == 2 and "another model" in told.err


def test_a_killed_evaluation_goes_on_and_draws_nothing_twice(
    evaluated: tuple[Told, Path], model: Path, data: Path, tmp_path: Path
) -> None:
    """SIGKILL before the second chunk is stored; then a torn line, as a kill within a write would leave it."""
    _, straight = evaluated
    out = tmp_path / "killed"
    life = ["stockpot.benchmarks.store:Store.append:2", 0, [str(word) for word in words(model, data, out)]]
    died = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("dying.py"))],
        input=json.dumps([life]), text=True, capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    assert "codes [-9]" in died.stdout, died.stderr
    path = out / "amc23.samples.jsonl"
    kept = path.read_text()
    assert len(kept.splitlines()) == 8, "one chunk of 2 rows x 4"
    assert not (out / "results.json").exists()
    path.write_text(kept + '{"problem": "4", "sample": 1, "fini')
    told = stockpot(*words(model, data, out))
    assert told.code == 0, told.err
    assert path.read_text().startswith(kept) and "sampling 21/21" in told.err
    for name in ("amc23", "gsm8k"):
        assert len(lines(out / f"{name}.samples.jsonl")) == len(drawn(out, name)), "no sample twice"
        assert drawn(out, name) == drawn(straight, name), "the same tokens as if nothing had happened"
    assert (out / "results.json").read_bytes() == (straight / "results.json").read_bytes()


def test_a_sample_does_not_depend_on_what_else_is_asked(
    evaluated: tuple[Told, Path], model: Path, data: Path, tmp_path: Path
) -> None:
    told = stockpot(*words(model, data, tmp_path / "few", "--limit", 2))
    assert told.code == 0
    few, all_of_them = drawn(tmp_path / "few"), drawn(evaluated[1])
    assert len(few) == 6 and few.items() <= all_of_them.items()


def test_two_processes_do_not_write_into_one_folder(
    evaluated: tuple[Told, Path], model: Path, data: Path, tmp_path: Path
) -> None:
    out = copy(evaluated[1], tmp_path / "it")
    with (out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        told = stockpot(*words(model, data, out))
    assert told.code == 2 and "another process writes into" in told.err


# --- grading again --------------------------------------------------------------------------------------------------


def answered(folder: Path, said: dict[tuple[str, int], str], truncated: tuple[int, ...] = ()) -> None:
    """Puts words into the model's mouth: samples with these texts."""
    tokenizer = byte_tokenizer()
    (folder / "amc23.samples.jsonl").unlink()
    ends = {False: "stop", True: "length"}
    Store(folder).append(
        "amc23",
        [
            Sample(key, number, tuple(tokenizer(text)["input_ids"]), ends[i in truncated], -1.0)
            for i, ((key, number), text) in enumerate(said.items())
        ],
    )


def test_grading_again_needs_no_model_and_sees_what_is_there(evaluated: tuple[Told, Path], tmp_path: Path) -> None:
    """Problem 0: 3 of 3 right; 1: 2 of 3; 2: equal wrong answers outvote the right one; 3: no box; 4: a tie."""
    pytest.importorskip("math_verify")
    out = copy(evaluated[1], tmp_path / "it")
    texts = {
        "0": ("\\boxed{0}", "so \\boxed{0.0}", "\\boxed{\\frac{0}{3}}"),
        "1": ("\\boxed{2}", "\\boxed{7}", "\\boxed{2.0}"),
        "2": ("\\boxed{1/2}", "\\boxed{4}", "\\boxed{0.5}"),
        "3": ("no idea", "six", "6"),
        "4": ("\\boxed{8}", "\\boxed{9}", "none"),
    }
    answered(out, {(key, j): text for key, said in texts.items() for j, text in enumerate(said)}, truncated=(9, 10, 11))
    told = stockpot("grade", out, "--json", tmp_path / "copy.json")
    assert told.code == 0, told.err
    found = json.loads((out / "results.json").read_text())["results"]["amc23"]
    assert (tmp_path / "copy.json").read_bytes() == (out / "results.json").read_bytes()
    right = {(g["problem"], g["sample"]) for g in lines(out / "amc23.grades.jsonl") if g["reward"] == 1}
    assert right == {("0", 0), ("0", 1), ("0", 2), ("1", 0), ("1", 2), ("2", 1), ("4", 0)}
    assert found["mean@3"]["value"] == pytest.approx(7 / 15)
    assert found["pass@3"]["value"] == pytest.approx(4 / 5)
    assert found["pass@2"]["value"] == pytest.approx((1 + 1 + 2 / 3 + 0 + 2 / 3) / 5)
    assert found["majority@3"]["value"] == pytest.approx((1 + 1 + 0 + 0 + 0.5) / 5)
    assert found["truncated"] == pytest.approx(3 / 15) and found["unanswered"] == pytest.approx(4 / 15)
    assert found["length"]["right"] == pytest.approx(sum(len(texts[k][j]) for k, j in right) / 7)
    low, high = found["mean@3"]["over_problems"]
    assert 0 < low < 7 / 15 < high < 1
    low_again, high_again = found["mean@3"]["over_samples"]
    assert low < low_again < 7 / 15 < high_again < high, "sampling again moves less than other problems"


def test_what_cannot_be_graded_is_told_in_one_line(evaluated: tuple[Told, Path], tmp_path: Path) -> None:
    told = stockpot("grade", tmp_path)
    assert told.code == 2 and "there is no evaluation in" in told.err
    out = copy(evaluated[1], tmp_path / "short")
    path = out / "gsm8k.samples.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    told = stockpot("grade", out)
    assert told.code == 2 and "holds 5 of 6 samples of gsm8k: go on with the same `stockpot eval`" in told.err


def test_a_run_folder_is_evaluated_at_its_last_checkpoint(finished: Path, tmp_path: Path) -> None:
    """And at another with --step; the countdown model knows few words, so the problems are sums."""
    data = write_rows(tmp_path / "amc23.jsonl", [{"id": 0, "problem": "1 2 3 make 6 :", "answer": 6}])
    common = ("eval", finished, "--bench", "amc23", "--data", data, "--k", 2, "--max-tokens", 8, "--template", "none")
    assert stockpot(*common, "--out", tmp_path / "last").code == 0
    assert stockpot(*common, "--out", tmp_path / "first", "--step", 0).code == 0
    models = [json.loads((tmp_path / name / "settings.json").read_text())["model"] for name in ("last", "first")]
    assert [model.rpartition("-")[2] for model in models] == ["6", "0"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--bench", "math501"), "--bench knows no math501"),
        (("--bench", "amc23,amc23"), "names a benchmark twice"),
        (("--bench", "aime24"), "has no aime24.jsonl"),
        (("--template", "poem"), "--template knows no poem"),
        (("--k", 0), "--k must be at least 1"),
        (("--samples", 2), "see --k and --limit"),
        (("--recipe", "countdown-grpo"), "--recipe is not for --bench"),
        (("--max-tokens", 2048), "lower --max-tokens"),
        (("--step", 3), "--step needs a run"),
        (("--data", "nowhere/at/all"), "check --data"),
    ],
)
def test_mistakes_are_told_in_one_line(
    more: tuple[object, ...], told: str, model: Path, data: Path, tmp_path: Path
) -> None:
    done = stockpot(*words(model, data, tmp_path / "it", *more))
    assert done.code == 2 and told in done.err, done.err
    assert not (tmp_path / "it").exists()


# --- templates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", "1+1?"),
        ("direct", "Question: 1+1?\nAnswer:"),
        ("cot", "Question: 1+1?\nAnswer:"),
        ("abel", "Question:\n1+1?\nAnswer:\nLet's think step by step.\n"),
        (
            "qwen-boxed",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n1+1?\nPlease reason step by "
            "step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "qwen25-math-cot",
            "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
            "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("mathstral", "1+1?\nPlease reason step by step, and put your final answer within \\boxed{}."),
        (
            "deepseek-math",
            "User: 1+1?\nPlease reason step by step, and put your final answer within \\boxed{}.\n\nAssistant:",
        ),
    ],
)
def test_templates_are_letter_for_letter_those_of_the_evaluations(name: str, expected: str) -> None:
    assert TEMPLATES[name].fill("1+1?") == expected
    assert "{} {1}" in TEMPLATES[name].fill("a {} {1} b"), "braces of a problem are its own"


def test_special_tokens_of_a_template_are_single_tokens_and_end_the_response() -> None:
    """<|im_end|> is no stop token of a base model: without this it would talk to itself until the room is full."""
    tokenizer = byte_tokenizer()
    asked = templates.ask("qwen-boxed", "maths", Problem("0", "1+1?"), tokenizer)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert asked.tokens.count(start) == 3 and asked.tokens.count(end) == 2
    assert templates.stop_ids(TEMPLATES["qwen-boxed"].stops, tokenizer) == {end, tokenizer.eos_token_id}


def test_auto_is_chat_where_a_turn_ends_with_a_stop_token() -> None:
    """A base model that merely ships a chat template is asked plainly."""
    for eos, chat, expected in (
        ("<|endoftext|>", True, "plain"),
        ("<|im_end|>", True, "chat"),
        ("<|im_end|>", False, "plain"),
    ):
        tokenizer = byte_tokenizer(eos=eos, chat=chat)
        assert templates.pick("auto", tokenizer, [tokenizer.eos_token_id]) == expected
    with pytest.raises(StockpotError, match="needs a chat template"):
        templates.pick("chat", byte_tokenizer(chat=False), [0])


def test_chat_asks_in_the_models_own_words() -> None:
    asked = templates.ask("chat", "maths", Problem("0", "1+1?"), byte_tokenizer(eos="<|im_end|>"))
    assert asked.text == (
        "<|im_start|>user\n1+1?\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_programs_are_asked_for_with_their_tests_and_cut_where_the_function_ends() -> None:
    body = Problem("0", "def one():\n", {"test": "", "entry_point": "one", "prompt": "def one():\n"})
    assert templates.template("plain", "functions", body).fill(body.question) == "def one():\n"
    stops = templates.template("plain", "functions", body).stops
    assert templates.cut("    return 1\n\nprint(one())", stops) == "    return 1\n"
    task = Problem("11", "Write one.", {"test_list": ["assert one() == 1"], "test_setup_code": ""})
    assert "assert one() == 1" in templates.ask("plain", "functions", task, byte_tokenizer()).text
    with pytest.raises(StockpotError, match="asks for a box"):
        templates.template("qwen-boxed", "programs", body)
