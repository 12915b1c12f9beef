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
from stockpot.types import Prompt, Rollout, StockpotError

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
    values, unjudged = score_texts([r.prompt for r in rollouts], texts, reward, [r.tokens for r in rollouts])
    return [replace(r, reward=value) for r, value in zip(rollouts, values, strict=True)], unjudged


def score_texts(
    asked: Sequence[Prompt], texts: Sequence[str], reward: RewardFunction, ids: Sequence[Sequence[int]] | None = None
) -> tuple[list[float], int]:
    """The same for responses as texts: their rewards, and how many could not be judged. `ids` are their tokens, for a
    reward that takes them; a text that no tokenizer here wrote has none."""
    if not texts:
        return [], 0
    chats = ["prompt" in p.columns for p in asked]
    prompts = [p.columns["prompt"] if chat else p.text for p, chat in zip(asked, chats, strict=True)]
    completions = [[{"role": "assistant", "content": t}] if chat else t for t, chat in zip(texts, chats, strict=True)]
    names = dict.fromkeys(name for p in asked for name in p.columns if name != "prompt")
    columns = {name: [p.columns.get(name) for p in asked] for name in names}
    offered = {} if ids is None else {"completion_ids": [list(tokens) for tokens in ids]}
    try:
        values = reward(prompts=prompts, completions=completions, **accepted(reward, offered), **columns)
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
    if len(values) != len(texts):
        raise StockpotError(
            f"the reward function {getattr(reward, '__qualname__', reward)} gave {len(values)} numbers for "
            f"{len(texts)} completions; it must give every completion one."
        )
    numbers = [None if value is None or not math.isfinite(value) else value for value in values]
    return [value or 0.0 for value in numbers], sum(value is None for value in numbers)


def place(error: Exception) -> str:
    """File and line where an error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"


async def _finish(values: Any) -> Any:
    return await values
