"""The sampler's fast lane: one decoding step of a small Llama-shaped model, with weights laid side by side.

At a few million parameters most of a step goes into the hundreds of small calls that transformers' modules make, and
into narrow products. Here query, key and value are one product, gate and up another, and products add to the
residual themselves. The numbers are the model's own up to rounding; a test compares them. Any other model, a large one,
or one that somebody has hooked or adapted takes its own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from stockpot.samplers.cache import RowCache, attend

Mask = Tensor | dict[str, Tensor]
Step = Callable[[Tensor, Mask, Tensor, RowCache], Tensor]

FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
LARGEST = 768
"""Hidden size up to which it pays: beyond, the products are wide enough, and the copy of the weights is dear."""


def fused_step(model: Any) -> Step | None:
    """A step (ids [rows, 1], mask, positions [rows, 1], cache) -> logits [rows, V], from copies of today's weights."""
    if type(model).__name__ not in FAMILY or model.config.hidden_size > LARGEST or model.dtype.itemsize < 4:
        return None
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return None
    layers = [_Layer(layer) for layer in model.model.layers]
    if not all(layer.plain for layer in layers):
        return None
    kinds = getattr(model.config, "layer_types", None)
    body, head = model.model, model.lm_head

    def step(ids: Tensor, mask: Mask, positions: Tensor, cache: RowCache) -> Tensor:
        hidden = body.embed_tokens(ids[:, 0])
        cos, sin = body.rotary_emb(hidden, positions)
        first, second = sin.chunk(2, dim=-1)
        sin = torch.cat([-first, second], dim=-1)  # the sign of "rotate half", once instead of in every layer
        for i, layer in enumerate(layers):
            seen = mask[kinds[i]] if isinstance(mask, dict) else mask
            hidden = layer(hidden, cos, sin, seen, cache, i)
        logits: Tensor = head(body.norm(hidden))
        return logits

    return step


class _Layer:
    """One decoder layer: what `LlamaDecoderLayer` does to one token per row."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        read = (attention.q_proj, attention.k_proj, attention.v_proj)
        write = (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        self.plain = all(type(module) is nn.Linear for module in (*read, *write)) and not any(
            module.bias is not None for module in write
        )
        if not self.plain:
            return
        self.attention, self.act, self.size = attention, mlp.act_fn, attention.head_dim
        self.norms = layer.input_layernorm, layer.post_attention_layernorm
        self.heads, self.kv_heads = (module.out_features // self.size for module in read[:2])
        self.read = torch.cat([module.weight for module in read])
        self.bias = torch.cat([module.bias for module in read]) if read[0].bias is not None else None
        self.out, self.down = attention.o_proj.weight.t(), mlp.down_proj.weight.t()
        self.gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        self.scale: Tensor | None = None
        if hasattr(attention, "q_norm"):  # Qwen3 norms queries and keys, head by head
            scales = attention.q_norm.weight.expand(self.heads, -1), attention.k_norm.weight.expand(self.kv_heads, -1)
            self.scale = torch.cat(scales)

    def __call__(self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: RowCache, i: int) -> Tensor:
        read = linear(_norm(hidden, self.norms[0]), self.read, self.bias).view(len(hidden), -1, self.size)
        turned, value = read[:, : -self.kv_heads], read[:, -self.kv_heads :]
        if self.scale is not None:
            turned = rms_norm(turned, (self.size,), None, self.attention.q_norm.variance_epsilon) * self.scale
        turned = (turned * cos).addcmul_(turned.roll(self.size // 2, -1), sin)
        query, key = turned[:, : self.heads, None], turned[:, self.heads :, None]
        keys, values = cache.update(key, value[:, :, None], i)
        seen = attend(self.attention, query, keys, values, mask, scaling=self.attention.scaling)[0]
        hidden = torch.addmm(hidden, seen.view(len(hidden), -1), self.out)
        gate, up = linear(_norm(hidden, self.norms[1]), self.gate_up).chunk(2, dim=-1)
        return torch.addmm(hidden, self.act(gate).mul_(up), self.down)


def _norm(hidden: Tensor, norm: Any) -> Tensor:
    return rms_norm(hidden, (hidden.shape[-1],), norm.weight, norm.variance_epsilon)
