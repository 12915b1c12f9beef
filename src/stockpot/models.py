"""Loading models and tokenizers, with errors that name the cause."""

from __future__ import annotations

import os
import socket
import urllib.request
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from stockpot import lora
from stockpot.types import StockpotError


def pick_device(wish: str) -> torch.device:
    """The device asked for, or the best there is: cuda, then mps, then cpu."""
    if wish != "auto":
        if wish == "cuda" and not torch.cuda.is_available():
            raise StockpotError("--device cuda: PyTorch sees no CUDA device here; use --device cpu.")
        if wish == "mps" and not torch.backends.mps.is_available():
            raise StockpotError("--device mps: PyTorch sees no Apple GPU here; use --device cpu.")
        return torch.device(wish)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_model(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """A causal language model from a folder or a hub id, in float32 master weights, every one of them finite.

    A folder that holds a LoRA adapter gives its base with the adapter in it, which alone may learn.
    """
    from transformers import AutoModelForCausalLM

    base = lora.base_of(Path(name))
    model = _load(AutoModelForCausalLM, base or name, dtype=dtype)
    model.to(device)
    if base:
        lora.load(model, Path(name))
    check_finite(model, name)
    return model


def load_config(name: str) -> Any:
    """The transformers config of a model folder or hub id."""
    from transformers import AutoConfig

    return _load(AutoConfig, name)


def without_weights(name: str) -> Any:
    """A model's shape, with its generation config: no numbers are loaded, and it computes nothing."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = load_config(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if not Path(name).exists() or (Path(name) / "generation_config.json").is_file():
        with suppress(OSError):  # there is none: the model's own defaults
            model.generation_config = GenerationConfig.from_pretrained(name, local_files_only=_cached_only(name))
    return model


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model folder or hub id, or of a folder that holds nothing else."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if (Path(name) / "tokenizer.json").is_file() and not (Path(name) / "config.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(name)
    return _load(AutoTokenizer, name)


def check_finite(model: Any, name: str) -> None:
    """Refuse weights that are not numbers before they spoil a run."""
    for parameter_name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise StockpotError(
                f"the weights of {name} are not finite ({parameter_name}): take an earlier checkpoint, or lower the "
                "learning rate that made it."
            )


def is_folder(name: str) -> bool:
    """Whether a model's name is that of a folder, not of a repository on the hub; one without a model is refused."""
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()
    if looks_local and not (Path(name).expanduser() / "config.json").is_file():
        raise StockpotError(f"there is no model in {name}: a folder with a config.json is needed (or a hub id).")
    return looks_local


@cache
def hub_answers(seconds: float = 3.0) -> bool:
    """Whether the Hugging Face hub can be reached: asked once, since its own client tries for half a minute."""
    address = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if urllib.request.getproxies():
        return True
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), seconds).close()
    except OSError:
        return False
    return True


def _cached_only(name: str) -> bool:
    return not is_folder(name) and not hub_answers()


def _load(kind: Any, name: str, **options: Any) -> Any:
    cached_only = _cached_only(name)
    try:
        return kind.from_pretrained(name, local_files_only=cached_only, **options)
    except Exception as error:  # transformers raises many kinds; all of them mean that there is no model here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if cached_only:
            raise StockpotError(
                f"cannot load {name}: it is in no folder of that name nor in the cache, and the Hugging Face hub "
                "cannot be reached; download it where the hub can be, and name its folder with --model."
            ) from error
        raise StockpotError(f"cannot load {name} ({reason}): check the folder or the hub id.") from error


def stop_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a response: the tokenizer's and those of the generation config."""
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(listed if isinstance(listed, (list, tuple)) else [listed])} - {None}
    if not found:
        raise StockpotError("neither the tokenizer nor the generation config names a stop token (eos_token_id).")
    return tuple(sorted(found))


def vocabulary_of(tokenizer: Any) -> str:
    """A fingerprint of a tokenizer: token ids of one mean nothing to another."""
    import hashlib

    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(repr(words).encode()).hexdigest()[:16]
