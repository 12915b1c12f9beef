"""The same transformers model, faster on a CPU: parts whose elementwise chains cost more than their matrix products.

A model on a CPU spends most of its time moving tensors through memory, not multiplying. What is replaced here gives the
same numbers to rounding, is checked against the original when it is put in, and leaves every parameter where it was:
saving, loading, LoRA and other devices see an ordinary model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "stockpot_float32"


def speed_up(model: Any) -> None:
    """Replace, in place, what is slow on a CPU and known to be the same."""
    if next(model.parameters()).device.type != "cpu":
        return
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and _same_norm(module):
            module.forward = MethodType(_norm_forward, module)
    family = sys.modules[type(model).__module__]
    rotary = getattr(family, "apply_rotary_pos_emb", None)
    if rotary is not None and rotary is not _rotate_both and _same_rotary(rotary):
        family.apply_rotary_pos_emb = _rotate_both  # type: ignore[attr-defined]


# --- RMSNorm --------------------------------------------------------------------------------------------------------


class RMSNorm(torch.autograd.Function):
    """y = w x / sqrt(mean x^2 + eps), keeping x and one number per row.

    With r = 1 / sqrt(mean x^2 + eps):  dx = r (w g) - x r^3 mean(w g x),  dw = sum over rows of g x r.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        y: Tensor = (x * scale).mul_(weight)
        return y.to(dtype)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight, scale = ctx.saved_tensors
        grad, size = grad.to(x.dtype), x.shape[-1]
        product = (x * grad).reshape(-1, size)
        mean = product.mv(weight).div_(size).view_as(scale)
        return (
            (grad * scale).mul_(weight).addcmul_(x, mean.mul_(scale.pow(3)), value=-1),
            product.t().mv(scale.reshape(-1)) if ctx.needs_input_grad[1] else None,
            None,
            None,
        )


def _norm_forward(module: Any, hidden_states: Tensor) -> Tensor:
    """Norms of the float32 stream are read by matrix products only: under autocast they are rounded here, once."""
    x, autocast = hidden_states, torch.is_autocast_enabled("cpu")
    # decoding a few tokens, fewer calls count, not fewer passes
    if x.dtype == torch.float32 and not (torch.is_grad_enabled() or autocast):
        y: Tensor = type(module).forward(module, x)
        return y
    plain = torch.promote_types(x.dtype, module.weight.dtype)
    dtype = torch.get_autocast_dtype("cpu") if autocast and x.dtype == torch.float32 else plain
    y = RMSNorm.apply(x, module.weight, module.variance_epsilon, dtype)  # type: ignore[no-untyped-call]
    return y


@torch.enable_grad()
def _same_norm(module: Any) -> bool:
    """Whether this is the plain RMSNorm: some families add 1 to the weight, or put it elsewhere."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 1 or not hasattr(module, "variance_epsilon"):
        return False
    x = torch.linspace(-2.0, 3.0, 2 * len(weight), dtype=weight.dtype).view(2, -1)
    theirs, ours = type(module).forward(module, x), _norm_forward(module, x)
    return torch.allclose(theirs, ours, rtol=1e-5, atol=1e-6, equal_nan=True)


# --- rotary positions -----------------------------------------------------------------------------------------------


class Rotary(torch.autograd.Function):
    """x cos + rotate(x) sin, where rotate((a, b)) = (-b, a) in halves; backward turns the other way."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1.0)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1.0), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    half = x.shape[-1] // 2
    y = x * cos
    y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    y[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return y


def _rotate_both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """The function `apply_rotary_pos_emb` of transformers' models."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return Rotary.apply(q, cos, sin), Rotary.apply(k, cos, sin)  # type: ignore[no-untyped-call]


@torch.no_grad()
def _same_rotary(original: Any) -> bool:
    """Whether a family turns whole heads, in halves: others turn neighbours, or a part."""
    q, k = torch.linspace(-2.0, 3.0, 48).view(1, 2, 3, 8), torch.linspace(1.0, -1.0, 24).view(1, 1, 3, 8)
    angles = torch.linspace(0.0, 2.0, 12).view(1, 3, 4).repeat(1, 1, 2)
    try:
        theirs = original(q, k, angles.cos(), angles.sin())
    except (TypeError, ValueError, RuntimeError):  # takes other arguments
        return False
    ours = _rotate_both(q, k, angles.cos(), angles.sin())
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


# --- attention ------------------------------------------------------------------------------------------------------


@contextmanager
def attention(model: Any) -> Iterator[None]:
    """Within, attention runs in float32, although the model runs in bfloat16.

    The bfloat16 kernel's backward takes several times as long on a CPU as float32's, and is less exact.
    """
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    if before == "sdpa":
        AttentionInterface.register(ATTENTION, _attend)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    with torch.autocast("cpu", enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), *args, **kwargs)
