"""Countdown teaches right arithmetic, keeps its held-out prompts to itself, and judges like a calculator."""

from __future__ import annotations

import json
import random
import re
from itertools import islice, permutations
from pathlib import Path

import pytest

from stockpot.prompts import load_prompts, pick
from stockpot.tasks import Countdown, Dataset
from stockpot.tasks.countdown import LARGEST, attempts, expression, question, result, right, steps
from stockpot.types import StockpotError

TASKS = [
    Countdown(),
    Countdown(largest=20, give_up=0.0, luck=0.0, max_attempts=3),
    Countdown(largest=4, test_prompts=20, train_prompts=20),
]
every_task = pytest.mark.parametrize("task", TASKS, ids=str)
LINE = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+) , (\d+) ([-+*]) (\d+) = (\d+) vs (\d+)")


def parse(prompt: str) -> tuple[list[int], int]:
    numbers, _, target = prompt.removesuffix(" :").partition(" make ")
    return [int(number) for number in numbers.split()], int(target)


@every_task
def test_every_demonstration_calculates_and_judges_itself_rightly(task: Countdown) -> None:
    """Every step of every attempt, its "yes" or "no", and the answer, by Python's own arithmetic."""
    answered = 0
    for prompt, trace in islice(task.demonstrations(seed=3), 300):
        numbers, target = parse(prompt)
        work, _, answer = trace.partition(" answer ")
        tried = re.split(r" (yes|no) ?", work + " ")[:-1]
        for line, verdict in zip(tried[::2], tried[1::2], strict=True):
            a, first, b, middle, x, second, y, end, checked = LINE.fullmatch(line).groups()  # type: ignore[union-attr]
            assert eval(f"{a} {first} {b}") == int(middle) and eval(f"{x} {second} {y}") == int(end)
            assert 0 <= int(middle) <= LARGEST and 0 <= int(end) <= LARGEST
            rest = [int(x), int(y)]
            rest.remove(int(middle))
            assert sorted([int(a), int(b), *rest]) == numbers
            assert int(checked) == target and verdict == ("yes" if int(end) == target else "no")
        assert eval(answer) == int(end), "what is answered is the last attempt"
        assert right(trace, numbers, target) == (tried[-1] == "yes")
        assert 1 <= len(tried) // 2 <= task.max_attempts
        answered += tried[-1] == "yes"
    assert 0 < answered < 300 or not task.give_up


@every_task
def test_held_out_prompts_are_never_taught_or_trained(task: Countdown) -> None:
    held_out = {str(row["prompt"]) for row in task.rows("test")}
    trained = {str(row["prompt"]) for row in task.rows("train")}
    assert len(held_out) == task.test_prompts and len(trained) == task.train_prompts
    assert not held_out & trained
    assert not held_out & {prompt for prompt, _ in islice(task.demonstrations(seed=0), 2000)}


@every_task
def test_rows_are_the_same_at_every_call_and_have_one_key_each(task: Countdown) -> None:
    assert task.rows("train") == task.rows("train")
    prompts = load_prompts(task, "train", task.tokenizer(), context=256, max_tokens=80)
    assert len({prompt.key for prompt in prompts}) == len(prompts)


@every_task
def test_prompts_and_demonstrations_survive_the_tokenizer(task: Countdown) -> None:
    """Every word is one known token: no pad inside, and the text comes back."""
    tokenizer = task.tokenizer()
    for prompt, trace in islice(task.demonstrations(seed=1), 50):
        ids = tokenizer(f"{prompt} {trace}")["input_ids"]
        assert tokenizer.pad_token_id not in ids
        assert tokenizer.decode(ids) == f"{prompt} {trace}"


def brute_force(text: str, numbers: list[int], target: int) -> bool:
    """The rules by other means: two operations, one pair of brackets around the first, Python's `eval`."""
    form = r"\( (\d+) [-+*] (\d+) \) [-+*] (\d+)|(\d+) [-+*] \( (\d+) [-+*] (\d+) \)"
    found = re.fullmatch(form, text, re.ASCII)
    used = sorted(int(number) for number in found.groups() if number) if found else []
    stripped = re.sub(r"\b0+(?=\d)", "", text)  # eval does not read 007
    return bool(found) and used == sorted(numbers) and eval(stripped) == target


def test_right_agrees_with_brute_force_over_random_expressions() -> None:
    """Right ones, wrong ones, and right ones with one word changed, dropped, doubled or moved."""
    rng = random.Random(5)
    words = [*map(str, range(21)), "+", "-", "*", "(", ")", "=", "no", "007", "-3", "²", "1.0", "+-", "-*"]
    judged = {True: 0, False: 0}
    for _ in range(4000):
        numbers = [rng.randint(1, 9) for _ in range(3)]
        parts = expression(rng.choice(list(attempts(numbers)))).split()
        for _ in range(rng.choice((0, 0, 1, 2))):
            place = rng.randrange(len(parts))
            swapped = parts[place : place + 2][::-1]
            parts[place : place + 1] = rng.choice(
                ([rng.choice([*words, *map(str, numbers * 4)])], [], [parts[place]] * 2, swapped)
            )
            parts = parts or ["1"]
        text = " ".join(parts)
        try:
            target = eval(text) if rng.random() < 0.7 else rng.randint(0, 99)
        except (SyntaxError, TypeError, NameError):
            target = rng.randint(0, 99)
        verdict = right(f"3 + 4 = 7 no answer {text}", numbers, target)
        assert verdict == brute_force(text, numbers, target), (text, numbers, target)
        judged[verdict] += 1
    assert min(judged.values()) > 1000


def test_right_finds_every_solution_that_the_generator_lists() -> None:
    for numbers in ((1, 2, 3), (4, 4, 9), (7, 8, 9)):
        for attempt in attempts(numbers):
            answer = f"answer {expression(attempt)}"
            assert right(answer, numbers, result(attempt))
            assert right(answer + " <stop>", numbers, result(attempt)), "the stop token may be part of the text"
            assert not right(answer, numbers, result(attempt) + 1)
            assert steps(attempt).endswith(f"= {result(attempt)}")
        targets = {eval(f"({a}{p}{b}){q}{c}") for a, b, c in permutations(numbers) for p in "+-*" for q in "+-*"}
        assert {result(a) for a in attempts(numbers)} <= targets | {
            eval(f"{c}{q}({a}{p}{b})") for a, b, c in permutations(numbers) for p in "+-*" for q in "+-*"
        }


@pytest.mark.parametrize(
    "garbage",
    ["", " ", "answer", "answer answer", "( 1 + 2 ) * 3", "answer ( 1 + 2 ) * 3 answer", "answer ( 1 + 2 ) * ²",
     "answer ( 1 + ٢ ) * 3", "answer ( 1 +- 2 ) * 3", "answer ( 1  2 ) * 3", "answer 1 + 2 * 3", "\x00" * 50,
     "answer ( 1 + 2 ) * 3 4", "answer ( 1 ++ 2 ) * 3", "answer ( 1 + 2 ) +* 3", None, 7, ["answer"], b"answer"],
)  # fmt: skip
def test_garbage_is_wrong_and_never_raises(garbage: object) -> None:
    assert right(garbage, (1, 2, 3), 9) is False


def test_a_number_counts_as_often_as_it_is_given() -> None:
    assert right("answer ( 3 + 5 ) * 3", (3, 3, 5), 24)
    assert not right("answer ( 3 + 5 ) * 5", (3, 3, 5), 40)


def test_two_signs_are_no_sign() -> None:
    """As a part of "+-*" they would pass for a multiplication."""
    assert right("answer ( 1 * 2 ) * 3", (1, 2, 3), 6)
    assert not right("answer ( 1 +- 2 ) * 3", (1, 2, 3), 6)


def test_the_last_answer_counts() -> None:
    assert right("answer ( 1 + 2 ) + 3 answer ( 1 + 2 ) * 3", (1, 2, 3), 9)
    assert not right("answer ( 1 + 2 ) * 3 answer ( 1 + 2 ) + 3", (1, 2, 3), 9)


@pytest.mark.parametrize(
    "options",
    [{"largest": 1}, {"largest": 21}, {"give_up": 1.1}, {"luck": -0.1}, {"max_attempts": 0}, {"train_prompts": 0}],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(StockpotError):
        Countdown(**options)  # type: ignore[arg-type]


def test_more_prompts_than_there_are_problems_is_told() -> None:
    with pytest.raises(StockpotError, match=r"fewer than .*: lower those or raise"):
        Countdown(largest=3).rows("train")


def test_a_step_takes_the_next_prompts_and_every_round_takes_each_once() -> None:
    """No state but the step's number, and another order in each round."""
    task = Countdown(largest=9, train_prompts=12, test_prompts=1)
    prompts = load_prompts(task, "train", task.tokenizer(), context=0, max_tokens=8)
    rounds = [[p.key for step in range(3 * i, 3 * i + 3) for p in pick(prompts, step, 4, seed=1)] for i in range(3)]
    for keys in rounds:
        assert sorted(keys) == sorted(prompt.key for prompt in prompts)
    assert rounds[0] != rounds[1] != rounds[2]
    assert [p.key for p in pick(prompts, 4, 4, seed=1)] == rounds[1][4:8]
    assert [p.key for p in pick(prompts, 0, 4, seed=2)] != rounds[0][:4]


def test_a_dataset_holds_out_its_last_tenth(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": question((1, 2, 3), i), "n": i}) + "\n" for i in range(30)))
    task = Dataset(train=str(path), judge="math:fsum")
    assert [row["n"] for row in task.rows("train")] == list(range(27))
    assert [row["n"] for row in task.rows("test")] == [27, 28, 29]
    named = Dataset(train=str(path), test=str(path), judge="math:fsum")
    assert len(named.rows("train")) == len(named.rows("test")) == 30


def test_a_dataset_makes_prompts_from_a_template(tmp_path: Path) -> None:
    """Columns in braces are filled in once: what a row holds is never read as a template."""
    path = tmp_path / "rows.jsonl"
    rows = [{"problem": f"{{n}} and {n}?", "n": n} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Dataset(train=str(path), judge="math:fsum", template="{n}: {problem} in \\boxed{}.")
    assert task.rows("train")[3] == {"prompt": "3: {n} and 3? in \\boxed{}.", "problem": "{n} and 3?", "n": 3}
    assert task.rows("test")[0]["prompt"].startswith("18: ")
    with pytest.raises(StockpotError, match=r"names \{answer\}, but the rows of the dataset have problem, n"):
        Dataset(train=str(path), judge="math:fsum", template="{answer}").rows("train")


def test_a_dataset_trains_on_rows_spread_evenly(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "1", "n": n}) + "\n" for n in range(20)))
    task = Dataset(train=str(path), judge="math:fsum", only=6)
    assert [row["n"] for row in task.rows("train")] == [0, 3, 6, 9, 12, 15]
    assert [row["n"] for row in task.rows("test")] == [18, 19], "what is held out stays held out"
    assert len(Dataset(train=str(path), judge="math:fsum", only=18).rows("train")) == 18
    with pytest.raises(StockpotError, match=r"task.only is 19, but .* has 18 rows"):
        Dataset(train=str(path), judge="math:fsum", only=19).rows("train")
    with pytest.raises(StockpotError, match=r"task.only must be 0"):
        Dataset(only=-1)
