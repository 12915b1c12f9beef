"""Rows of a task -> prompts in tokens, checked once before anything is trained on them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from stockpot.console import tell
from stockpot.tasks.base import Split, Task
from stockpot.types import Prompt, StockpotError


def load_prompts(task: Task, split: Split, tokenizer: Any, *, context: int, max_tokens: int) -> list[Prompt]:
    """Every prompt of a split, tokenised here and nowhere else. `context` is the model's; 0 when it has no limit."""
    rows = task.rows(split)
    if not rows:
        raise StockpotError(f"the {split} split of {type(task).__name__} has no prompts.")
    if left_out := task.left_out(split):
        tell(left_out)
    prompts = [to_prompt(row, tokenizer, number) for number, row in enumerate(rows)]
    longest = max(prompts, key=lambda prompt: len(prompt.tokens))
    if context and len(longest.tokens) + max_tokens > context:
        raise StockpotError(
            f"a prompt has {len(longest.tokens)} tokens and a response may have {max_tokens}, but the model's context "
            f"is {context}: lower --max-tokens or drop long prompts (the longest is {longest.key})."
        )
    return prompts


def to_prompt(row: Mapping[str, Any], tokenizer: Any, number: int) -> Prompt:
    """One row, plain or conversational, as TRL has them."""
    if "prompt" not in row:
        has = ", ".join(map(str, row)) or "none"
        raise StockpotError(
            f"row {number} of the dataset has no column `prompt` (it has {has}): rename the one that asks."
        )
    asked = row["prompt"]
    if isinstance(asked, str):
        text = asked
        ids = tokenizer(text)["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=True, return_dict=True)[
            "input_ids"
        ]
        text = json.dumps(asked, ensure_ascii=False)
    if not text.strip() or not ids:
        raise StockpotError(f"row {number} of the dataset has an empty prompt: fill it or drop the row.")
    columns = {name: value for name, value in row.items() if name != "prompt"}
    key = (
        str(row["id"])
        if "id" in row
        else hashlib.sha256(json.dumps([text, columns], default=str).encode()).hexdigest()[:12]
    )
    return Prompt(key, ids, text, columns | ({} if isinstance(asked, str) else {"prompt": asked}))


def step_ends(task: Task, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a step of the task, where it has such: words that are one token each.

    A word of several tokens ends in one that other words may end in too; it marks nothing.
    """
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in task.step_words]
    return frozenset(one[0] for one in ids if len(one) == 1)


T = TypeVar("T")


def pick(prompts: Sequence[T], step: int, count: int, seed: int) -> list[T]:
    """The prompts of a step: the dataset shuffled anew each time round, and no state but the step's number."""
    chosen = []
    for place in range(step * count, (step + 1) * count):
        epoch, index = divmod(place, len(prompts))
        chosen.append(prompts[_order(len(prompts), epoch, seed)[index]])
    return chosen


def further(prompts: Sequence[Prompt], asked: Sequence[Prompt], step: int, count: int, seed: int) -> list[Prompt]:
    """Up to `count` prompts that the step has not asked yet, in an order that only the step's number decides."""
    met = {prompt.key for prompt in asked}
    order = list(range(len(prompts))) if count else []
    random.Random(f"{seed}/further/{step}").shuffle(order)
    return [prompts[i] for i in order if prompts[i].key not in met][:count]


def only(prompts: Sequence[Prompt], file: str) -> list[Prompt]:
    """The prompts that a file of `stockpot select` names, by key; all of them without a file."""
    if not file:
        return list(prompts)
    try:
        rows = [json.loads(line) for line in Path(file).read_text().splitlines() if line.strip()]
        keys = {str(row["id"]) for row in rows}
    except OSError as error:
        raise StockpotError(f"cannot read {file} ({error.strerror}): check the path given with --only.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StockpotError(
            f'{file} does not name prompts: --only wants lines with an "id", as `stockpot select` writes them.'
        ) from error
    kept = [prompt for prompt in prompts if prompt.key in keys]
    strange = len(keys - {prompt.key for prompt in kept})
    if strange:
        raise StockpotError(
            f"{strange} of the {len(keys)} prompts in {file} are none of the task's: select from the same task, "
            "or train on the file itself with --task.train."
        )
    if not kept:
        raise StockpotError(f"{file} names no prompt: select some before training on them alone.")
    return kept


_orders: dict[tuple[int, int, int], list[int]] = {}


def _order(size: int, epoch: int, seed: int) -> list[int]:
    key = (size, epoch, seed)
    if key not in _orders:
        _orders.clear() if len(_orders) > 4 else None
        order = list(range(size))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        _orders[key] = order
    return _orders[key]
