"""How long responses are, and how long a batch waits for its longest: the expected maximum of n draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["lognormal", "geometric", "fixed"]


@dataclass(frozen=True, eq=False)
class Lengths:
    """A distribution of lengths in tokens, 1 or more, by its survival function."""

    survival: Tensor
    """P(length > t) for t = 0, 1, ...; what lies beyond is 0."""

    @property
    def mean(self) -> float:
        return float(self.survival.sum())

    @property
    def span(self) -> float:
        """Mean place of a token in its response, counted from 0."""
        places = torch.arange(len(self.survival), dtype=torch.float64)
        return float((places * self.survival).sum() / max(self.mean, 1e-12))

    def longest(self, draws: float) -> float:
        """Expected maximum of so many draws: the sum over t of P(one of them is longer than t)."""
        return float(alive([(draws, self)], len(self.survival)).sum())

    def after(self, head: float) -> Lengths:
        """What is left of a response behind its first `head` tokens, if it is longer than those."""
        begin = min(round(head), len(self.survival) - 1)
        rest = self.survival[begin:]
        return Lengths(rest / rest[0]) if rest[0] > 0 else Lengths(torch.ones(1, dtype=torch.float64))

    def scaled(self, factor: float) -> Lengths:
        """Lengths times a factor: what is left behind a cut at a fraction of each response."""
        count = max(1, math.ceil(len(self.survival) * factor))
        places = (torch.arange(count, dtype=torch.float64) / max(factor, 1e-9)).long()
        kept = self.survival[places.clamp_(max=len(self.survival) - 1)]
        return Lengths(torch.cat([torch.ones(1, dtype=torch.float64), kept[1:]]))

    def capped(self, shortest: int, longest: int) -> Lengths:
        """The first tokens of a response, as many as drawn evenly between the two, or all where it has fewer."""
        places = torch.arange(longest, dtype=torch.float64)
        drawn = ((longest - places) / (longest - shortest + 1)).clamp_(max=1.0)
        padded = torch.zeros(longest, dtype=torch.float64)
        count = min(longest, len(self.survival))
        padded[:count] = self.survival[:count]
        return Lengths(drawn * padded)


def alive(crowds: Sequence[tuple[float, Lengths]], steps: int) -> Tensor:
    """P(some of them is longer than t) for t below `steps`; a crowd is a number of draws and their distribution."""
    none = torch.ones(steps, dtype=torch.float64)
    for count, lengths in crowds:
        own = torch.zeros(steps, dtype=torch.float64)
        own[: len(lengths.survival)] = lengths.survival[:steps]
        none *= (1 - own) ** count
    return 1 - none


def drawn(kind: Kind, mean: float, spread: float, most: int) -> Lengths:
    """Lengths of 1 to `most` tokens with this mean, what would be longer cut there; `spread` is lognormal's sigma."""
    mean = min(max(mean, 1.0), float(most))
    places = torch.arange(most, dtype=torch.float64)
    if kind == "fixed" or mean >= most or most == 1:
        whole = (mean - places).clamp_(0, 1)
        return Lengths(whole)
    if kind == "geometric":
        return Lengths(_solved(lambda stays: stays**places, mean, 1e-9, 1.0))
    logs, wide = places.clamp(min=1e-9).log(), spread * math.sqrt(2)
    most_of = 3 * math.log(most) + 20 * spread
    return Lengths(_solved(lambda centre: 0.5 * torch.erfc((logs - centre) / wide), mean, -most_of, most_of))


def _solved(made: Callable[[float], Tensor], mean: float, low: float, high: float) -> Tensor:
    """The survival function of this mean, which grows with its parameter."""
    for _ in range(80):
        middle = (low + high) / 2
        if float(made(middle).sum()) < mean:
            low = middle
        else:
            high = middle
    return made(high)


def observed(lengths: Sequence[int]) -> Lengths:
    """The distribution of these lengths themselves."""
    counts = torch.bincount(torch.tensor(list(lengths)))
    return Lengths(1 - counts.double().cumsum(0)[:-1] / counts.sum())
