"""What an optimiser remembers, as tensors with names: to be written beside the weights, and taken back whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stockpot.types import StockpotError

Named = Sequence[tuple[str, Tensor]]
"""Parameters in the optimiser's order."""


def trained(model: Any) -> Named:
    """The parameters of a model that an optimiser moves."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def named(optimizer: torch.optim.Optimizer, parameters: Named) -> dict[str, Tensor]:
    """kind/parameter -> what the optimiser remembers of it."""
    state = optimizer.state_dict()["state"]
    return {f"{kind}/{parameters[i][0]}": value for i, entry in state.items() for kind, value in entry.items()}


def sorted_out(stored: dict[str, Tensor], parameters: Named, path: Path) -> dict[int, dict[str, Tensor]]:
    """The inverse of `named`: the state by the parameter's number; nothing is changed yet."""
    index, shapes = {name: i for i, (name, _) in enumerate(parameters)}, dict(parameters)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in stored.items():
        kind, _, name = key.partition("/")
        if name not in index or (kind != "step" and value.shape != shapes[name].shape):
            raise StockpotError(f"{path} is of another model ({key}): take another checkpoint.")
        state.setdefault(index[name], {})[kind] = value
    return state


def remember(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]) -> None:
    """Give the optimiser this state; its options stay."""
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of a checkpoint."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise StockpotError(f"{path} cannot be read ({error}): resume from an earlier checkpoint.") from error


@torch.no_grad()
def copy_into(parameters: Named, stored: dict[str, Tensor], path: Path) -> None:
    """Give the parameters the stored weights: every one of them, or an error and none."""
    if {name: weight.shape for name, weight in stored.items()} != {name: p.shape for name, p in parameters}:
        raise StockpotError(f"{path} is of another model: take another checkpoint.")
    for name, parameter in parameters:
        parameter.copy_(stored[name])
