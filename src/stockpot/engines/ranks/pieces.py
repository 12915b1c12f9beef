"""Checkpoints of weights that lie in pieces, by torch.distributed.checkpoint: safetensors, no pickle.

The folder is what one process writes, and one process can read it: weights whole, for any tool, by Hugging Face's own
writer. Only what is large, the optimiser's moments and a reference, is written by each learner for itself, in a folder
`NAME.pieces` beside `NAME`, which has the small rest. Any number of learners reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from stockpot import lora, moments
from stockpot.engines.ranks.group import Group
from stockpot.policy import COUNTS, OPTIMIZER, REFERENCE, Policy
from stockpot.types import StockpotError


def save(policy: Policy, group: Group, folder: Path, mark: str) -> None:
    """What `Policy.save` writes, by all learners together. `mark` is the fingerprint of an adapter's base."""
    model = policy.model
    weights = group.whole(lora.moving(model))
    if group.rank == 0 and lora.adapted(model):
        lora.save(model, folder, weights, mark)
    elif group.rank == 0:
        model.save_pretrained(folder, state_dict=weights)
    tensors = moments.named(policy.optimizer, moments.trained(model))
    counts = {name: torch.tensor(getattr(policy, name)) for name in COUNTS}
    _write(folder / OPTIMIZER, tensors, counts)
    if policy.reference is not None and (own := dict(policy.reference.named_parameters())):
        _write(folder / REFERENCE, own, {})
    if policy.critic is not None and group.rank == 0:
        policy.critic.save(folder)
    dist.barrier()


def restore(policy: Policy, folder: Path) -> None:
    """What `Policy.restore` reads: each learner the pieces that it holds, written by however many."""
    parameters = moments.trained(policy.model)
    small = moments.read(folder / OPTIMIZER, small=True)
    counts = {name: int(small.pop(name, 0)) for name in COUNTS}
    kinds = ("exp_avg", "exp_avg_sq") if small else ()  # nothing is remembered before the first step
    state = {f"{kind}/{name}": torch.zeros_like(p.detach()) for name, p in parameters for kind in kinds}
    _read(folder / OPTIMIZER, state)
    steps = {key: small[key] for key in small if key.startswith("step/")}
    sorted_state = moments.sorted_out(state | steps, parameters, folder / OPTIMIZER)
    reference = policy.reference
    if reference is not None and (folder / REFERENCE).exists():
        _read(folder / REFERENCE, {name: p.detach() for name, p in reference.named_parameters()})
    if policy.critic is not None:
        policy.critic.restore(folder)
    moments.remember(policy.optimizer, sorted_state)
    policy.version, policy.skipped_steps = counts["version"], counts["skipped_steps"]


def _write(path: Path, tensors: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> None:
    """Small tensors and counts by the first learner; of large ones each learner's own pieces."""
    from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

    large = {name: tensor for name, tensor in tensors.items() if hasattr(tensor, "full_tensor")}
    if dist.get_rank() == 0:
        save_file({n: t for n, t in tensors.items() if n not in large} | dict(counts), path)
    if large:
        writer = moments.storage().HuggingFaceStorageWriter(str(moments.pieces(path)), save_distributed=True)
        dcp_save(dict(large), storage_writer=writer)


def _read(path: Path, into: dict[str, Any]) -> None:
    """Fill these tensors, of which this learner may hold pieces: all that the file has, or an error."""
    from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

    reader = moments.reader(path)
    known = {name: size for name, (size, _) in moments.known(reader, path).items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in into.items()}
    if known != wanted:
        wrong = sorted(name for name in known.keys() | wanted.keys() if known.get(name) != wanted.get(name))
        raise StockpotError(f"{path} is of another model ({wrong[0]}): take another checkpoint.")
    if into:
        dcp_load(into, storage_reader=reader)
