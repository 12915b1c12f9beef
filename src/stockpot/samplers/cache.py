"""What decoding needs of transformers: a key-value cache that is written in place, and an attention that reads it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from stockpot.types import StockpotError


class RowCache(Cache):  # type: ignore[misc]
    """Keys and values [rows, heads, columns, size] per layer; `begin`..`end` are the columns in use."""

    def __init__(self, rows: int, columns: int, layers: int) -> None:
        super().__init__(layers=[RowLayer(self) for _ in range(layers)])
        self.rows, self.columns, self.begin, self.end = rows, columns, 0, 0
        self.target = slice(0)
        """The rows that the model is run for."""
        self.reading: tuple[Tensor, Tensor] | None = None
        """While contexts are read: which of them each target row continues, and in which order its columns come."""

    def clear(self, rows: slice, before: int) -> None:
        """Zeros where a new row has nothing: it is masked there, but 0 x NaN is NaN."""
        for store in self._stores():
            store[rows, :, :before] = 0

    def move(self, source: Tensor, to: Tensor) -> None:
        for store in self._stores() if len(to) else ():
            store[to, :, self.begin : self.end] = store[source, :, self.begin : self.end]

    def slide(self, distance: int, rows: int) -> None:
        self.end -= distance
        for store in self._stores() if distance and rows else ():
            store[:rows, :, : self.end] = store[:rows, :, distance : self.end + distance].clone()

    def _stores(self) -> Iterator[Tensor]:
        return (store for layer in self.layers for store in (layer.keys, layer.values) if store is not None)


class RowLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a `RowCache`. A decoding step reads views of it; a prefill reads only itself."""

    def __init__(self, cache: RowCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, columns = self.cache.rows, self.cache.columns
        self.keys, self.values = (
            states.new_empty(rows, states.shape[1], columns, states.shape[3]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        cache, rows = self.cache, self.cache.target
        if cache.reading:
            context, columns = cache.reading
            new = slice(cache.end - columns.shape[1], cache.end)
            self.keys[rows, :, new] = key_states[context[:, None], :, columns].transpose(1, 2)
            self.values[rows, :, new] = value_states[context[:, None], :, columns].transpose(1, 2)
            return key_states, value_states
        self.keys[rows, :, cache.end - 1] = key_states[:, :, 0]
        self.values[rows, :, cache.end - 1] = value_states[:, :, 0]
        return self.keys[rows, :, cache.begin : cache.end], self.values[rows, :, cache.begin : cache.end]

    def get_seq_length(self) -> int:
        return 0 if self.cache.reading else self.cache.end - self.cache.begin

    def get_max_length(self) -> int:
        return self.cache.columns

    def get_max_cache_shape(self) -> int:
        """The name of `get_max_length` before transformers 5.20."""
        return self.cache.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


def attention_layers(model: PreTrainedModel) -> list[tuple[str, int | None]]:
    """Kind and sliding window (None: sees everything) of every layer; the models we cannot decode are refused here."""
    config, name = model.config.get_text_config(decoder=True), type(model).__name__
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # what a LoRA adapter wraps
    kinds = getattr(config, "layer_types", None)
    layers = []
    for i, layer in enumerate(DynamicCache(config=config).layers):
        kind = kinds[i] if kinds else type(layer).__name__
        if kind == "chunked_attention" or type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise StockpotError(f"{name} has {kind} layers, which TorchSampler cannot decode: use another sampler.")
        layers.append((kind, getattr(layer, "sliding_window", None)))
    if config.is_encoder_decoder or "position_ids" not in inspect.signature(inner.forward).parameters:
        raise StockpotError(f"{name} is no decoder that takes position_ids: TorchSampler cannot batch it.")
    return layers


@contextmanager
def ready(model: PreTrainedModel, config: Any) -> Iterator[None]:
    """The model as decoding wants it, and afterwards as it was: evaluation mode, an attention that takes our masks."""
    training = [module for module in model.modules() if module.training]
    attention = config._attn_implementation
    model.eval()
    if attention == "sdpa" or "flash" in attention or "flex" in attention:
        config._attn_implementation = "stockpot"
    try:
        yield
    finally:
        config._attn_implementation = attention
        for module in training:
            module.training = True


def attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """One query per row against views of the cache, in two batched products; anything else is left to SDPA.

    On a CPU this takes three quarters of SDPA's time. Half precision needs SDPA's float32 sums.
    """
    rows, heads, length, size = query.shape
    plain = query.device.type == "cpu" and query.dtype.itemsize >= 4 and kwargs.get("position_bias") is None
    if length > 1 or not plain or attention_mask is None or attention_mask.shape[1] > 1:
        result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return result
    kv_heads, columns = key.shape[1:3]
    grouped = query.reshape(rows * kv_heads, heads // kv_heads, size)
    scores = torch.bmm(grouped, key.flatten(0, 1).transpose(1, 2)).mul_(kwargs.get("scaling") or size**-0.5)
    scores = scores.view(rows, kv_heads, -1, columns).add_(attention_mask).softmax(dim=-1)
    output = torch.bmm(scores.view(rows * kv_heads, -1, columns), value.flatten(0, 1))
    return output.view(rows, 1, heads, -1), None


AttentionInterface.register("stockpot", attend)
AttentionMaskInterface.register("stockpot", sdpa_mask)
