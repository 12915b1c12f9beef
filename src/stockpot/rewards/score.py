"""Rollouts -> rollouts with a reward, through any reward function of TRL's shape, sync or async."""

from __future__ import annotations

import asyncio
import inspect
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stockpot.calling import accepted
from stockpot.types import Rollout, StockpotError

RewardFunction = Callable[..., Any]
"""`f(prompts, completions, **columns) -> list of floats`, as TRL calls it; None stands for "cannot tell"."""


def score(rollouts: Sequence[Rollout], reward: RewardFunction, tokenizer: Any) -> tuple[list[Rollout], int]:
    """Rollouts with their rewards, and how many the function could not judge: those get 0 and are counted.

    A conversational prompt is answered by a conversational completion. Text is made here from the token ids and is
    never turned back into ids.
    """
    if not rollouts:
        return [], 0
    texts = tokenizer.batch_decode([list(r.tokens) for r in rollouts], skip_special_tokens=True)
    chats = ["prompt" in r.prompt.columns for r in rollouts]
    prompts = [r.prompt.columns["prompt"] if chat else r.prompt.text for r, chat in zip(rollouts, chats, strict=True)]
    completions = [[{"role": "assistant", "content": t}] if chat else t for t, chat in zip(texts, chats, strict=True)]
    names = dict.fromkeys(name for r in rollouts for name in r.prompt.columns if name != "prompt")
    columns = {name: [r.prompt.columns.get(name) for r in rollouts] for name in names}
    ids = {"completion_ids": [list(r.tokens) for r in rollouts]}
    try:
        values = reward(prompts=prompts, completions=completions, **accepted(reward, ids), **columns)
        if inspect.isawaitable(values):
            values = asyncio.run(_finish(values))
        values = [None if value is None else float(value) for value in values]
    except StockpotError:
        raise
    except Exception as error:
        raise StockpotError(
            f"the reward function {getattr(reward, '__qualname__', reward)} raised {type(error).__name__}: {error} "
            f"({place(error)}); it must give every completion a number, or None where it cannot tell."
        ) from error
    if len(values) != len(rollouts):
        raise StockpotError(
            f"the reward function {getattr(reward, '__qualname__', reward)} gave {len(values)} numbers for "
            f"{len(rollouts)} completions; it must give every completion one."
        )
    numbers = [None if value is None or not math.isfinite(value) else value for value in values]
    scored = [replace(r, reward=value or 0.0) for r, value in zip(rollouts, numbers, strict=True)]
    return scored, sum(value is None for value in numbers)


def place(error: Exception) -> str:
    """File and line where an error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"


async def _finish(values: Any) -> Any:
    return await values
