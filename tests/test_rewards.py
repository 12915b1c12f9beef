"""score(): any reward function of TRL's shape, and nothing that it does passes unnoticed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from stockpot.rewards.score import score
from stockpot.tasks import Countdown
from stockpot.types import Author, Prompt, Rollout, Span, StockpotError

TOKENIZER = Countdown().tokenizer()
ASKED = [{"role": "user", "content": "1 2 3 make 9 :"}]


def rollout(text: str, prompt: str | list[dict[str, str]] = "1 2 3 make 9 :", **columns: Any) -> Rollout:
    ids = TOKENIZER(text)["input_ids"] + [TOKENIZER.eos_token_id]
    asked = {} if isinstance(prompt, str) else {"prompt": prompt}
    return Rollout(Prompt("p", [1, 2], str(prompt), columns | asked), (Span(Author("run", 0), ids, [-1.0] * len(ids)),))


PAIR = [rollout("1 + 2", answer="3"), rollout("no yes", answer="4")]


def rewards(function: Callable[..., Any], rollouts: Sequence[Rollout] = PAIR) -> tuple[list[float | None], int]:
    scored, unjudged = score(rollouts, function, TOKENIZER)
    assert [(r.prompt, r.spans) for r in scored] == [(r.prompt, r.spans) for r in rollouts]
    return [r.reward for r in scored], unjudged


def test_a_function_is_called_as_trl_calls_it() -> None:
    """By keywords, with every column as a list; special tokens are no part of the text."""
    seen: dict[str, Any] = {}

    def function(completions: list[str], **others: Any) -> list[float]:
        seen.update(others, completions=completions)
        return [1.0, 0.25]

    assert rewards(function) == ([1.0, 0.25], 0)
    assert seen.pop("completion_ids") == [list(r.tokens) for r in PAIR], "stop tokens included"
    assert seen == {"prompts": ["1 2 3 make 9 :"] * 2, "completions": ["1 + 2", "no yes"], "answer": ["3", "4"]}


def test_a_conversation_is_answered_by_a_message() -> None:
    seen: dict[str, Any] = {}

    def function(**given: Any) -> list[float]:
        seen.update(given)
        return [0.5]

    assert rewards(function, [rollout("yes", ASKED, answer=1)]) == ([0.5], 0)
    assert len(seen.pop("completion_ids")) == 1
    assert seen == {"prompts": [ASKED], "completions": [[{"role": "assistant", "content": "yes"}]], "answer": [1]}


def test_a_function_that_names_its_columns_gets_no_others() -> None:
    """What was written for prompts, completions and one column is not handed token ids."""

    def function(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
        return [float(text == right) for text, right in zip(completions, answer, strict=True)]

    assert rewards(function) == ([0.0, 0.0], 0)


def test_an_async_function_is_awaited() -> None:
    async def function(completions: list[str], **others: Any) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]

    assert rewards(function) == ([5.0, 6.0], 0)


def test_columns_that_only_some_rows_have_are_not_lost() -> None:
    def function(hint: list[Any], **others: Any) -> list[float]:
        assert hint == [None, "look"]
        return [0.0, 1.0]

    assert rewards(function, [rollout("yes"), rollout("no", hint="look")]) == ([0.0, 1.0], 0)


@pytest.mark.parametrize("silent", [None, math.nan, math.inf, -math.inf])
def test_what_is_no_number_counts_as_zero_and_is_counted(silent: float | None) -> None:
    assert rewards(lambda **given: [silent, 1]) == ([0.0, 1.0], 1)


def test_other_kinds_of_numbers_are_numbers() -> None:
    import torch

    assert rewards(lambda **given: torch.tensor([0.5, 1.0])) == ([0.5, 1.0], 0)
    assert rewards(lambda **given: iter([True, -2])) == ([1.0, -2.0], 0)


def test_nothing_to_judge_is_nothing() -> None:
    assert score([], lambda **given: 1 / 0, TOKENIZER) == ([], 0)


def fails(**given: Any) -> list[float]:
    raise KeyError("solution")


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        (fails, r"fails raised KeyError: 'solution' \(test_rewards.py, line \d+\); it must give every completion"),
        (lambda **given: [1.0], "gave 1 numbers for 2 completions; it must give every completion one"),
        (lambda **given: [1.0] * 3, "gave 3 numbers for 2 completions"),
        (lambda **given: 1.0, "raised TypeError"),
        (lambda **given: ["good", "bad"], "raised ValueError"),
        (lambda prompts: [1.0, 1.0], "raised TypeError"),
    ],
    ids=["raises", "too few", "too many", "one number", "words", "other arguments"],
)
def test_a_function_that_breaks_the_contract_is_told_in_one_line(function: Callable[..., Any], cause: str) -> None:
    with pytest.raises(StockpotError, match=cause) as caught:
        score(PAIR, function, TOKENIZER)
    assert "\n" not in str(caught.value)


def test_our_own_errors_pass_as_they_are() -> None:
    """A task that names its cause and cure itself is not wrapped a second time."""

    def function(**given: Any) -> list[float]:
        raise StockpotError("the sandbox is missing: install bubblewrap.")

    with pytest.raises(StockpotError, match=r"^the sandbox is missing: install bubblewrap.$"):
        score(PAIR, function, TOKENIZER)
