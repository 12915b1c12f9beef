"""stockpot: reinforcement learning for language models from what their own past policies wrote.

The names below are fetched when they are asked for, so that `import stockpot` loads nothing. The loop is
`stockpot.train.train(config, folder)`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stockpot.algorithms import GRPO, RLOO, Algorithm, Reinforce
    from stockpot.config import Config
    from stockpot.history import History
    from stockpot.policy import Policy
    from stockpot.prefixes import FromHistory, NoPrefixes
    from stockpot.samplers.torch import TorchSampler
    from stockpot.tasks import Countdown, Dataset, Task
    from stockpot.types import Author, Group, Prompt, Rollout, Sampling, Span, StockpotError

__version__ = "0.1.0"
__all__ = [
    "GRPO", "RLOO", "Algorithm", "Author", "Config", "Countdown", "Dataset", "FromHistory", "Group", "History",
    "NoPrefixes", "Policy", "Prompt", "Reinforce", "Rollout", "Sampling", "Span", "StockpotError", "Task",
    "TorchSampler",
]  # fmt: skip

_ROOMS = {
    "algorithms": ("GRPO", "RLOO", "Algorithm", "Reinforce"),
    "config": ("Config",),
    "history": ("History",),
    "policy": ("Policy",),
    "prefixes": ("FromHistory", "NoPrefixes"),
    "samplers.torch": ("TorchSampler",),
    "tasks": ("Countdown", "Dataset", "Task"),
    "types": ("Author", "Group", "Prompt", "Rollout", "Sampling", "Span", "StockpotError"),
}


def __getattr__(name: str) -> Any:
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(f"stockpot.{room}"), name)
    raise AttributeError(f"stockpot has no {name}")
