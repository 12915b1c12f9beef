"""One step's tensors in the two shapes: our flat stream, and the peers' padded rectangle of responses."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from helpers import OLD, collate, rollout, somewhere_else, span, totals
from stockpot import ops
from stockpot.algorithms import Algorithm
from stockpot.algorithms.base import denominator
from stockpot.types import Batch, Rollout

ROOM = 16
TOLERANCE = 1e-6
"""Largest difference allowed of losses and of each token's gradient (float64 here, some float32 there)."""


@dataclass(frozen=True)
class Step:
    """Rollouts of unequal lengths, an old author, and a policy that has moved on far enough for clips to bite."""

    rollouts: list[Rollout]
    advantages: list[float]
    batch: Batch
    log_probs: Tensor
    reference: Tensor

    @staticmethod
    def make(seed: int = 0, spread: float = 0.3) -> Step:
        """Random, and the same for the same seed."""
        rng = random.Random(seed)
        rollouts = [rollout(rng, span(rng, OLD, length)) for length in (5, 9, 1, 7, 3, 9)]
        advantages = [rng.uniform(-1.5, 1.5) for _ in rollouts]
        batch = collate(rollouts, advantages)
        log_probs = somewhere_else(batch, seed=seed, spread=spread)
        reference = somewhere_else(batch, seed=seed + 100, spread=0.5).detach()
        return Step(rollouts, advantages, batch, log_probs, reference)

    def ours(self, algorithm: Algorithm, kl: float = 0.0, room: int = ROOM) -> tuple[Tensor, Tensor]:
        """Loss and gradient with respect to the flat log-probs, as `Policy.update` reduces them."""
        sizes = totals(self.rollouts)
        sizes = type(sizes)(sizes.tokens, sizes.rollouts, room)
        terms = algorithm.loss(self.log_probs, self.batch).loss
        if kl:
            terms = terms + kl * ops.kl(self.log_probs, self.reference, "k3")
        loss = ops.reduce(terms, self.batch.trained, denominator(algorithm.normalise, self.batch, sizes))
        return loss.detach(), torch.autograd.grad(loss, self.log_probs)[0]

    @property
    def mask(self) -> Tensor:
        """[S, T] where the rectangle holds a token."""
        lengths = self.batch.lengths.unsqueeze(1)
        return torch.arange(int(lengths.max())).unsqueeze(0) < lengths

    def rectangle(self, flat: Tensor) -> Tensor:
        """[N] -> [S, T], padded with zeros; gradients flow back to the stream."""
        mask = self.mask
        return torch.zeros(mask.shape, dtype=flat.dtype).masked_scatter(mask, flat)


def assert_parity(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    """Same loss, same gradient, and a gradient worth comparing."""
    torch.testing.assert_close(ours[0].double(), theirs[0].double(), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(ours[1].double(), theirs[1].double(), rtol=0, atol=TOLERANCE)
    assert ours[1].abs().max() > 1e-3
