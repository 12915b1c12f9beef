"""What every engine that learns does alike: load the policy's model, and make micro-batches of a lesson."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stockpot import batching, lora
from stockpot.config import Config
from stockpot.engines.base import Lesson
from stockpot.models import load_model
from stockpot.policy import Policy
from stockpot.seeds import derive
from stockpot.types import Batch, StockpotError


def policy_model(config: Config, weights: str, origin: str, device: torch.device, kind: str = "") -> Any:
    """The model of these weights; with LoRA, frozen, and an adapter in it: that of the weights, or a new one.

    `kind` of device will compute, where it is another one than where the model is loaded.
    """
    options = config.learner.lora
    half = options.keeps_half(config.learner.mixed(kind or device.type))
    model = load_model(weights, device, torch.bfloat16 if half else torch.float32)
    if not options.rank and lora.adapted(model):
        lora.merge(model)
    if weights == origin and lora.adapted(model):
        raise StockpotError(f"{origin} is an adapter itself: `stockpot export` it, and train what that writes.")
    lora.adapt(model, options, base=origin, seed=derive(config.seed, "lora"))
    return model


def micro_batches(config: Config, policy: Policy, lesson: Lesson, mine: Sequence[int]) -> list[Batch]:
    """The rollouts of a lesson with these numbers, in passes that fit; ages are counted at the policy's version."""
    lengths = [len(lesson.rollouts[i].prompt.tokens) + len(lesson.rollouts[i]) for i in mine]
    parts = batching.split(lengths, config.learner.tokens_per_pass)
    return [_collate(policy, lesson, [mine[i] for i in chosen]) for chosen in parts]


def _collate(policy: Policy, lesson: Lesson, chosen: Sequence[int]) -> Batch:
    def of(pieces: Sequence[Tensor] | None) -> list[Tensor] | None:
        return None if pieces is None else [pieces[i] for i in chosen]

    return batching.collate(
        [lesson.rollouts[i] for i in chosen],
        [lesson.advantages[i] for i in chosen],
        run=policy.run,
        now=policy.version,
        groups=[lesson.groups[i] for i in chosen],
        reference_log_probs=of(lesson.reference_log_probs),
        values=of(lesson.values),
        returns=of(lesson.returns),
        pad=policy.pad,
        device=policy.device,
    )
