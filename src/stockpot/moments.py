"""What an optimiser remembers, as tensors with names: to be written beside the weights, and taken back whole."""

from __future__ import annotations

import warnings
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


def read(path: Path, small: bool = False) -> dict[str, Tensor]:
    """The tensors of a file of a checkpoint, and those that several learners wrote in pieces beside it.

    `small`: only tensors that are one number.
    """
    try:
        found = load_file(path)
        if small:
            return {name: tensor for name, tensor in found.items() if not tensor.shape}
        return found | joined(path) if pieces(path).is_dir() else found
    except (SafetensorError, OSError) as error:
        raise StockpotError(f"{path} cannot be read ({error}): resume from an earlier checkpoint.") from error


def pieces(path: Path) -> Path:
    """The folder beside a file of a checkpoint that holds tensors in pieces, each as one learner had it."""
    return path.with_suffix(".pieces")


def reader(path: Path) -> Any:
    """Reads a file and the pieces beside it for torch.distributed.checkpoint, whoever wrote them."""
    files = [str(file) for file in (path, *sorted(pieces(path).glob("*.safetensors"))) if file.is_file()]
    made = storage().HuggingFaceStorageReader(str(path.parent))
    made.fs.ls = lambda folder: files
    return made


def known(source: Any, path: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor that is not one number; an error where a piece is missing, and noise would be."""
    found = {}
    for name, entry in source.read_metadata().state_dict_metadata.items():
        if sum(chunk.sizes.numel() for chunk in entry.chunks) != entry.size.numel():
            raise StockpotError(f"a piece of {name} is missing in {pieces(path)}: take an earlier checkpoint.")
        if entry.size:
            found[name] = (tuple(entry.size), entry.properties.dtype)
    return found


def joined(path: Path) -> dict[str, Tensor]:
    """Pieces put together."""
    from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

    source = reader(path)
    whole = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in known(source, path).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of doing what it is asked to: to load in one process
        dcp_load(whole, storage_reader=source, no_dist=True)
    return whole


def storage() -> Any:
    """PyTorch's way to write distributed checkpoints as safetensors."""
    try:
        from torch.distributed.checkpoint import hf_storage
    except ImportError as error:
        raise StockpotError("checkpoints of several learners need torch 2.9 or newer: upgrade it.") from error
    return hf_storage


@torch.no_grad()
def copy_into(parameters: Named, stored: dict[str, Tensor], path: Path) -> None:
    """Give the parameters the stored weights: every one of them, or an error and none."""
    if {name: weight.shape for name, weight in stored.items()} != {name: p.shape for name, p in parameters}:
        raise StockpotError(f"{path} is of another model: take another checkpoint.")
    for name, parameter in parameters:
        parameter.copy_(stored[name])
