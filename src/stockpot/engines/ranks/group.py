"""Several learners as one: PyTorch's FSDP2 or DDP under the policy, and what they have to tell each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from inspect import signature
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from stockpot import scoring
from stockpot.alone import Alone, Found
from stockpot.diagnostics import View
from stockpot.learner import Learner
from stockpot.types import StockpotError

T = TypeVar("T")


def place(wish: str, rank: int) -> torch.device:
    """The device of a learner: a GPU of its own where there are any, else the CPU."""
    if wish == "mps":
        raise StockpotError("several learners need gloo or nccl, which --device mps has not: use --device cpu.")
    if wish == "cuda" and not torch.cuda.is_available():
        raise StockpotError("--device cuda: PyTorch sees no CUDA device here; use --device cpu.")
    if wish == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", rank % torch.cuda.device_count())


def meet(meeting: str, rank: int, world: int, device: torch.device) -> None:
    """Wait until all are there. What lies on a CPU goes by gloo, what lies on a GPU by nccl."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=world)
    except (RuntimeError, ValueError) as error:
        raise StockpotError(f"learner {rank} of {world} did not find the others at {meeting} ({error}).") from error


class Group(Alone):
    """What all learners of a group do alike, whichever way the weights lie.

    PyTorch takes the mean of gradients over processes. A loss here is a sum over the whole step's denominator, of
    which each learner has its share, so gradients are sums: losses are multiplied by the number of learners.
    """

    def __init__(self, learner: Learner, device: torch.device, rank: int, world: int) -> None:
        self.learner, self.device = learner, device
        self.rank, self.world = rank, world

    def on_cpu(self, model: Any) -> bool:
        return self.device.type == "cpu"

    def passes(self, work: Sequence[T]) -> Iterator[T | None]:
        most = torch.tensor(len(work))
        dist.all_reduce(most, dist.ReduceOp.MAX)
        for i in range(int(most)):
            self.before(last=i + 1 == int(most))
            yield work[i] if i < len(work) else None

    def before(self, last: bool) -> None:
        """What a pass needs to know."""

    def backward(self, loss: Tensor) -> None:
        super().backward(loss * self.world)

    def pool(self, found: Found) -> Found:
        views = [torch.stack([getattr(v, f.name).double().cpu() for f in fields(View)]) for v in found.views]
        kinds = [[getattr(v, f.name).dtype for f in fields(View)] for v in found.views[:1]]
        notes = [{name: figure.detach().cpu() for name, figure in note.items()} for note in found.notes]
        told = self.gather((found.sums, views, kinds, notes, found.values, found.skipped))
        kind = next((kinds[0] for _, _, kinds, *_ in told if kinds), [])
        everyone = [view for _, views, *_ in told for view in views]
        return Found(
            {name: sum(sums[name] for sums, *_ in told) for name in found.sums},
            [View(*(row.to(dtype) for row, dtype in zip(view, kind, strict=True))) for view in everyone],
            [note for _, _, _, notes, *_ in told for note in notes],
            [row for *_, values, _ in told for row in values],
            next((reason for *_, reason in told if reason), ""),
        )

    def gather(self, own: T) -> list[T]:
        """What each learner has, in the order of ranks, on all of them."""
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, own)
        return everyone

    def reduce(self, parameters: Iterable[Tensor]) -> None:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= self.world

    def whole(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors that may lie in pieces, put together on the CPU of rank 0, one after the other; {} elsewhere."""
        found: dict[str, Tensor] = {}
        for name, tensor in tensors:
            full = complete(tensor.detach())
            if self.rank == 0:
                found[name] = full.to("cpu", copy=True).contiguous()
        return found


class Sharded(Group):
    """FSDP2: weights, gradients and optimiser lie in pieces; each layer is put together while it computes."""

    def __init__(self, learner: Learner, device: torch.device, rank: int, world: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        super().__init__(learner, device, rank, world)
        self.mesh = init_device_mesh(device.type, (world,))

    def settle(self, model: Any) -> None:
        """Deal out the layers, and the rest with the root; the model is entered by the root from now on."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        half = self.learner.mixed(self.device.type)
        policy = MixedPrecisionPolicy()
        if half:  # gathered and multiplied in bfloat16; kept, and added up over learners, in float32
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        embedding = model.get_input_embeddings()
        if half and embedding.weight.dtype == torch.float32:
            # the stream between layers keeps float32, as it does where one process runs under autocast
            embedding.register_forward_hook(lambda module, given, states: states.float())
        names = set(model._no_split_modules or ())
        for layer in [m for m in model.modules() if type(m).__name__ in names]:
            fully_shard(layer, mesh=self.mesh, mp_policy=policy)
        fully_shard(model, mesh=self.mesh, mp_policy=policy)
        # the head is called behind the decoder, by itself: what holds both is entered here, and stays whole till `rest`
        setattr(model, scoring.DECODER, MethodType(_decode, model))
        register_fsdp_forward_method(model, scoring.DECODER)

    def clip(self, model: Any, limit: float) -> float:
        return float(complete(torch.nn.utils.clip_grad_norm_(model.parameters(), limit)))

    def rest(self, *models: Any) -> None:
        """Let go of what `settle` leaves whole after a pass: the next one would find old weights in it."""
        for model in models:
            if hasattr(model, "reshard"):
                model.reshard()


def _decode(model: Any, **inputs: Any) -> Any:
    return model.get_decoder()(**inputs)


class Copied(Group):
    """DDP: each learner has all of the weights; gradients are added up in the last pass, while it runs backward."""

    def __init__(self, learner: Learner, device: torch.device, rank: int, world: int) -> None:
        super().__init__(learner, device, rank, world)
        self.wrapper: Any = None

    def settle(self, model: Any) -> None:
        """Bring the model to the device; where it learns, enter it by way of DDP from now on."""
        from torch.nn.parallel import DistributedDataParallel

        model.to(self.device)
        if not any(p.requires_grad for p in model.parameters()):
            return
        kind: Any = DistributedDataParallel
        names = signature(kind).parameters
        still = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # its older name
        wrapper = self.wrapper = kind(Decoder(model), gradient_as_bucket_view=True, **{still: False})
        setattr(model, scoring.DECODER, lambda **inputs: wrapper(**inputs))

    def before(self, last: bool) -> None:
        if self.wrapper is not None:
            self.wrapper.require_backward_grad_sync = last


class Decoder(torch.nn.Module):
    """A model whose forward pass ends before its head; the head's weights are its own all the same."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        """The last hidden states, as the decoder gives them."""
        return _decode(self.model, **inputs)


def complete(tensor: Tensor) -> Tensor:
    """A tensor that may lie in pieces, whole; all learners must ask."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()
