"""LoRA: two thin matrices beside each frozen one learn in its place; peft makes them, inside an ordinary model.

The model stays of its own class, with `W x + alpha / rank * B A x` where `W x` was: sampler, learner and critic see
nothing new. The policy's past, and its reference, are then other values of A and B, or none, in the same model.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from stockpot import moments
from stockpot.types import StockpotError

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
NAME, PREFIX = "default", "base_model.model."
ALL = "all-linear"


@dataclass(frozen=True)
class LoRA:
    """Train an adapter instead of the model's own weights; rank 0 trains the model itself."""

    rank: int = 0
    """Rows of A and columns of B; 0 is no LoRA. Learning rates want to be some ten times those of full training."""
    alpha: float = 32.0
    """The adapter's product counts alpha / rank times."""
    targets: tuple[str, ...] = (ALL,)
    """Which linear layers get one, by the last part of their names; all-linear is every one but the head."""
    weights: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the frozen weights are kept in; auto: bfloat16 where matrices are multiplied in it (`learner.dtype`)."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0 or not self.targets:
            raise StockpotError("learner.lora: rank is 0 or more, alpha above 0, and targets name at least one layer.")

    def keeps_half(self, mixed: bool) -> bool:
        """Whether the frozen weights are in bfloat16, where matrices are (`mixed`) or are not multiplied in it."""
        return self.rank > 0 and (self.weights == "bfloat16" or (self.weights == "auto" and mixed))


def ready(options: LoRA) -> Any:
    """peft, or one line that says how to get it; None where no LoRA is asked for."""
    if not options.rank:
        return None
    try:
        import peft
    except ImportError as error:
        raise StockpotError(
            'learner.lora needs the library peft: `pip install "stockpot[lora]"`, or set learner.lora.rank to 0.'
        ) from error
    return peft


# --- in a model ------------------------------------------------------------------------------------------------------


def linears(model: Any) -> dict[str, int]:
    """The linear layers of a model but its head, by the last part of their names: inputs and outputs, summed."""
    head, found = model.get_output_embeddings(), dict[str, int]()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            last = name.rpartition(".")[2]
            found[last] = found.get(last, 0) + module.in_features + module.out_features
    return found


def chosen(names: Iterable[str], wish: Sequence[str]) -> list[str]:
    """Which of these layers get an adapter."""
    known = sorted(names)
    unknown = sorted(set(wish) - set(known) - {ALL})
    if unknown or not known:
        raise StockpotError(
            f"learner.lora.targets: the model has no linear layer {', '.join(unknown) or 'at all'} beside its head; "
            f"it has {', '.join(known) or 'none'}."
        )
    return known if ALL in wish else sorted(set(wish))


def adapt(model: Any, options: LoRA, *, base: str = "", seed: int = 0) -> None:
    """Put an adapter into the model that changes nothing yet, and freeze the rest. `base` is what others load it by."""
    peft = ready(options)
    if peft is None or adapted(model):
        return
    names = chosen(linears(model), options.targets)
    _inject(model, peft.LoraConfig(
        r=options.rank, lora_alpha=options.alpha, target_modules=names, lora_dropout=0.0, bias="none",
        task_type="CAUSAL_LM", base_model_name_or_path=base,
    ))  # fmt: skip
    generator = torch.Generator().manual_seed(seed)  # on the CPU, whatever the device
    with torch.no_grad():
        for name, parameter in moving(model):
            start = torch.zeros(parameter.shape)
            if ".lora_A." in name:
                start.uniform_(-1.0, 1.0, generator=generator).mul_(parameter.shape[1] ** -0.5)
            parameter.copy_(start)


def _inject(model: Any, config: Any) -> None:
    import peft

    training = model.training
    peft.inject_adapter_in_model(config, model, adapter_name=NAME)
    model.requires_grad_(False).train(training)
    for _, parameter in moving(model):
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()  # a small step is lost on a weight that has 8 bits
        parameter.requires_grad_(True)


def adapted(model: Any) -> bool:
    """Whether there is an adapter in the model."""
    return bool(getattr(model, "peft_config", None))


def moving(model: Any) -> list[tuple[str, Tensor]]:
    """What training moves, by name: the adapter, or all of a model that has none."""
    own = list(model.named_parameters())
    return [(n, p) for n, p in own if ".lora_A." in n or ".lora_B." in n] if adapted(model) else own


def _layers(model: Any) -> list[tuple[str, Any]]:
    return [(name, m) for name, m in model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]


@contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """Within, the model is its base, to the bit."""
    layers, learn = _layers(model), [p.requires_grad for _, p in moving(model)]
    try:
        for _, layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for _, layer in layers:
            layer.enable_adapters(True)
        for (_, parameter), wish in zip(moving(model), learn, strict=True):
            parameter.requires_grad_(wish)


@contextmanager
def borrowed(model: Any) -> Iterator[None]:
    """Within, other values may be put into the adapter; afterwards it is as it was, to the bit."""
    own = moving(model)
    kept = [p.detach().clone() for _, p in own]
    try:
        yield
    finally:
        with torch.no_grad():
            for (_, parameter), value in zip(own, kept, strict=True):
                parameter.copy_(value)


class Reference:
    """What a KL is measured against while an adapter learns: the same model without it, or with older values in it."""

    def __init__(self, model: Any, moves: bool) -> None:
        self.model = model
        self._copy = {name: p.detach().clone() for name, p in moving(model)} if moves else {}

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Its own values of the adapter; none where it is the base itself."""
        return iter(self._copy.items())

    @contextmanager
    def worn(self) -> Iterator[None]:
        """Within, the model is the reference."""
        if not self._copy:
            with switched_off(self.model):
                yield
            return
        with borrowed(self.model):
            with torch.no_grad():
                for name, parameter in moving(self.model):
                    parameter.copy_(self._copy[name])
            yield


@contextmanager
def dressed(reference: Any) -> Iterator[Any]:
    """Within, what is given reads as the reference does: a model, or None for the policy's own, dressed as it."""
    if isinstance(reference, Reference):
        with reference.worn():
            yield None
    else:
        yield reference


def twin(model: Any) -> Any:
    """A reference that is as the model is now, and can move: a model too, or other values of the adapter."""
    return Reference(model, moves=True) if adapted(model) else copy.deepcopy(model)


@torch.no_grad()
def merge(model: Any) -> None:
    """Add the adapter to the weights that it stands beside: a plain model again."""
    for name, layer in _layers(model):
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())
    del model.peft_config
    model.requires_grad_(True)


# --- on disk ---------------------------------------------------------------------------------------------------------


def save(model: Any, folder: Path, own: Mapping[str, Tensor] | None = None, mark: str = "") -> None:
    """The adapter in peft's own format, with the base's name, its configuration and a fingerprint of its weights.

    Where the model lies in pieces, the adapter's tensors are given, and the base's fingerprint.
    """
    own = dict(moving(model)) if own is None else own
    config = model.peft_config[NAME]
    told = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    told["base_model_name_or_path"] = _seen_from(folder, config.base_model_name_or_path or "")
    told["inference_mode"] = True
    (folder / CONFIG).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    weights = {PREFIX + name.replace(f".{NAME}.", "."): p.detach().contiguous() for name, p in own.items()}
    save_file(weights, folder / WEIGHTS)
    (folder / BASE).write_text(json.dumps({"fingerprint": mark or fingerprint(model)}) + "\n")
    model.config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)


def base_of(folder: Path) -> str:
    """The model that an adapter's folder belongs to; empty where the folder holds no adapter."""
    if not (folder / CONFIG).is_file():
        return ""
    try:
        name = json.loads((folder / CONFIG).read_text())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise StockpotError(f"{folder / CONFIG} is damaged: take another checkpoint.") from error
    if not isinstance(name, str) or not name:
        raise StockpotError(f"{folder / CONFIG} names no base_model_name_or_path: write the base model's there.")
    return str((folder / name).resolve()) if name.startswith("..") else name


def load(model: Any, folder: Path) -> None:
    """Put the adapter of a folder into its base."""
    peft, path = ready(LoRA(rank=1)), folder / WEIGHTS
    config = peft.LoraConfig.from_pretrained(str(folder))
    if config.use_dora or config.modules_to_save or config.bias != "none":
        raise StockpotError(f"{folder} holds more than a plain LoRA adapter: merge it with peft, and take the result.")
    try:
        told = json.loads((folder / BASE).read_text())["fingerprint"] if (folder / BASE).is_file() else ""
    except (ValueError, KeyError, TypeError) as error:
        raise StockpotError(f"{folder / BASE} is damaged: take another checkpoint.") from error
    if told and told != fingerprint(model):
        raise StockpotError(
            f"{base_of(folder)} is not the model that the adapter in {folder} was trained on: put that one back."
        )
    _inject(model, config)
    stored = {PREFIX + n.replace(f".{NAME}.", "."): n for n, _ in moving(model)}
    weights = {stored.get(name, name): weight for name, weight in moments.read(path).items()}
    moments.copy_into(moving(model), weights, path)


def fingerprint(model: Any) -> str:
    """Of the frozen weights: names, shapes and the first numbers of each, the same in float32 and in bfloat16."""
    told = hashlib.sha256()
    for name, p in model.named_parameters():
        if ".lora_A." not in name and ".lora_B." not in name:
            few = p.detach().reshape(-1)[:64].to(torch.bfloat16).float().tolist()
            told.update(repr((name.replace(".base_layer.", "."), tuple(p.shape), few)).encode())
    return told.hexdigest()[:16]


def _seen_from(folder: Path, base: str) -> str:
    """A base that lies in the same run as the checkpoint is named from there, so that a run may be moved."""
    if not base or not Path(base).is_dir():
        return base
    here, there = folder.resolve(), Path(base).resolve()
    return os.path.relpath(there, here) if here.parent.parent in there.parents else str(there)
