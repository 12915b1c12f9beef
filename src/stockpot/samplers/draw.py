"""Random numbers that hang on nothing but a key and a place, and the tokens drawn by them."""

from __future__ import annotations

import torch
from torch import Tensor

from stockpot.ops import process_logits
from stockpot.types import Sampling


def choose(logits: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [rows] by inversion of the distribution function at `uniform`, and their processed log-probs."""
    logits = process_logits(logits, sampling)
    normaliser = logits.logsumexp(dim=-1)
    if sampling.temperature == 0:
        return logits.argmax(dim=-1), normaliser - normaliser  # 0, or NaN if the logits are not finite
    below = (logits - normaliser[:, None]).exp().cumsum(dim=-1, dtype=uniform.dtype)
    tokens = torch.searchsorted(below, (uniform * below[:, -1])[:, None], right=True).clamp_(max=logits.shape[-1] - 1)
    return tokens.squeeze(1), logits.gather(1, tokens).squeeze(1) - normaliser


def uniform(base: Tensor, index: Tensor) -> Tensor:
    """The random number in [0, 1) of token `index` of a row. One bit less than its type can hold: u x total < total."""
    bits = mix(base + (index + 1) * -0x61C8864680B583EB)
    if bits.device.type == "mps":  # knows no float64
        return _shift(bits, 41).float() * 2.0**-23
    return _shift(bits, 12).double() * 2.0**-52


def mix(x: Tensor) -> Tensor:
    """The output function of splitmix64 (Steele, Lea and Flood 2014) in wrapping int64."""
    x = (x ^ _shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift to the right with zeros coming in, which int64 alone does not do."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def signed(number: int) -> int:
    """Any integer as 64 bits in two's complement."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
