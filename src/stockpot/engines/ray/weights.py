"""Weights on their way from one process to another: numpy arrays, which Ray hands over without copying."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Box = dict[str, tuple[str, Any]]
"""By name: the type of a tensor and its values, those of two bytes as whole numbers, since numpy has no bfloat16."""


def pack(weights: Mapping[str, Tensor]) -> Box:
    """Tensors on any device as arrays."""
    box: Box = {}
    for name, tensor in weights.items():
        kind = str(tensor.dtype).partition(".")[2]
        plain = tensor.detach().cpu().contiguous()
        box[name] = kind, (plain.view(torch.int16) if kind == "bfloat16" else plain).numpy()
    return box


def unpack(box: Box) -> dict[str, Tensor]:
    """Tensors that share the arrays' memory: look, do not touch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that arrays of Ray's must not be written to
        return {
            name: torch.from_numpy(array).view(torch.bfloat16) if kind == "bfloat16" else torch.from_numpy(array)
            for name, (kind, array) in box.items()
        }
