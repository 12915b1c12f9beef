"""The shape of a model without its weights: from a folder, from the hub, or from a table of published shapes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from stockpot import lora
from stockpot.models import is_folder, load_config
from stockpot.types import StockpotError

QWEN2 = {"model_type": "qwen2", "vocab_size": 152064, "tie_word_embeddings": False}
QWEN2_MATH = QWEN2 | {"num_hidden_layers": 28, "max_position_embeddings": 4096}
QWEN2_LARGE = QWEN2 | {
    "hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 8, "max_position_embeddings": 131072,
}  # fmt: skip
QWEN3_4B = {
    "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "head_dim": 128,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
}  # fmt: skip

PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-Math-1.5B": QWEN2_MATH
    | {
        "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
        "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-Math-7B": QWEN2_MATH
    | {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4},
    "Qwen/Qwen2.5-14B": QWEN2_LARGE | {"intermediate_size": 13824, "num_hidden_layers": 48},
    "Qwen/Qwen2.5-32B": QWEN2_LARGE | {"intermediate_size": 27648, "num_hidden_layers": 64},
    "Qwen/Qwen3-4B": QWEN3_4B | {"max_position_embeddings": 40960},
    "Qwen/Qwen3-4B-Base": QWEN3_4B | {"max_position_embeddings": 32768},
    "meta-llama/Llama-3.1-8B-Instruct": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "tie_word_embeddings": False, "max_position_embeddings": 131072,
    },
    "THUDM/glm-4-9b-hf": {
        "model_type": "glm", "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696,
        "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128,
        "attention_bias": True, "tie_word_embeddings": False, "max_position_embeddings": 8192, "pad_token_id": 151329,
    },
}  # fmt: skip
"""What the models' own config.json files say of their size, for machines that cannot reach the hub."""


@dataclass(frozen=True)
class Shape:
    """What memory and operations depend on. Numbers of parameters are counted, on a model without storage."""

    name: str
    source: str
    """Where the shape was found."""
    parameters: int
    blocks: int
    """Parameters of the layers between embedding and head."""
    embedding: int
    """Parameters of the embedding; the head has as many, the same ones where they are tied."""
    tied: bool
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    positions: int
    """The model's context; 0 where it has no limit."""
    normed_heads: bool
    """Whether queries and keys have a norm of their own, as Qwen3's."""
    linears: tuple[tuple[str, int], ...] = ()
    """Linear layers by the last part of their names: inputs and outputs, summed over all that are called so."""


def shape_of(name: str) -> Shape:
    """The shape of a model folder or hub id: its own config.json where it can be had, else the table."""
    try:
        config, source = load_config(name), "its config.json"
    except StockpotError as error:
        if is_folder(name):
            raise
        if name not in PUBLISHED:
            raise StockpotError(
                f"the shape of {name} is not known here and the hub does not give it: name a model folder with "
                f"--model, or one of {', '.join(PUBLISHED)}."
            ) from error
        config, source = published(name), "stockpot's table, since the hub does not give it"
    return measure(config, name, source)


def published(name: str) -> Any:
    """The transformers config that the table gives for a hub id."""
    from transformers import AutoConfig

    entry = dict(PUBLISHED[name])
    return AutoConfig.for_model(entry.pop("model_type"), **entry)


def measure(config: Any, name: str, source: str) -> Shape:
    """The shape that a transformers config describes."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config(decoder=True)
    embedding = model.get_input_embeddings().weight
    tied = bool(text.tie_word_embeddings)
    parameters = sum(p.numel() for p in model.parameters())
    names = [name for name, _ in model.named_modules()]
    return Shape(
        name=name,
        source=source,
        parameters=parameters,
        blocks=parameters - embedding.numel() * (1 if tied else 2),
        embedding=embedding.numel(),
        tied=tied,
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocabulary=embedding.shape[0],
        positions=getattr(text, "max_position_embeddings", None) or 0,
        normed_heads=any(name.endswith("q_norm") for name in names),
        linears=tuple(sorted(lora.linears(model).items())),
    )


def memory_here() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
