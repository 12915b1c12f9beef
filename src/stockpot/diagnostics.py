"""What an off-policy researcher looks at: the rollouts of a step, and the flat stream of tokens of an update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stockpot import ops
from stockpot.algorithms.base import Terms
from stockpot.types import KINDS, Batch, Rollout


@dataclass(frozen=True, slots=True)
class View:
    """One micro-batch as the update saw it: everything detached, shape [N]."""

    ratio: Tensor
    clipped: Tensor
    entropy: Tensor
    advantages: Tensor
    log_ratio: Tensor
    kind: Tensor
    age: Tensor
    trained: Tensor


def view(log_probs: Tensor, entropy: Tensor, terms: Terms, batch: Batch) -> View:
    return View(
        ratio=terms.ratio,
        clipped=terms.clipped,
        entropy=entropy.detach(),
        advantages=batch.advantages,
        log_ratio=ops.log_ratio(log_probs.detach(), batch.author_log_probs, batch.known),
        kind=batch.kind,
        age=batch.age,
        trained=batch.trained,
    )


def summarise(views: Sequence[View]) -> dict[str, float]:
    """Metrics of a whole update; `docs/metrics.md` explains each. Kinds that do not occur have no metrics."""

    def whole(name: str) -> Tensor:
        return torch.cat([getattr(v, name) for v in views])

    trained = whole("trained")
    kind, ratio, clipped = whole("kind")[trained], whole("ratio")[trained], whole("clipped")[trained]
    weight = (whole("advantages")[trained] * ratio).abs()
    log_ratio, entropy, age = whole("log_ratio")[trained], whole("entropy")[trained], whole("age")[trained]
    metrics: dict[str, float] = {}
    for code, name in [(-1, "all"), *enumerate(KINDS)]:
        mask = trained.new_ones(kind.shape) if code < 0 else kind == code
        if not mask.any():
            continue
        known_age = age[mask & (age >= 0)]
        metrics |= {
            f"{name}/tokens": float(mask.sum()),
            f"{name}/entropy": float(entropy[mask].mean()),
            f"{name}/ratio_mean": float(ratio[mask].mean()),
            f"{name}/ratio_max": float(ratio[mask].max()),
            f"{name}/clip_share": float(clipped[mask].float().mean()),
            f"{name}/clip_loss": float((weight * clipped)[mask].sum() / weight[mask].sum().clamp_min(1e-30)),
            f"{name}/ess": float(ops.effective_sample_size(ratio[mask])),
            f"{name}/kl_to_author": float((ops.ratio(log_ratio[mask]) - 1 - log_ratio[mask]).mean()),
            f"{name}/age_mean": float(known_age.float().mean()) if known_age.numel() else -1.0,
        }
    return metrics


def describe(rollouts: Sequence[Rollout], group_size: int) -> dict[str, float]:
    """What the step's rollouts look like; `docs/metrics.md` explains each figure."""
    rewards = [r.reward or 0.0 for r in rollouts]
    heads = [r.prefix_length for r in rollouts]
    old = [reward for reward, head in zip(rewards, heads, strict=True) if head]
    new = [reward for reward, head in zip(rewards, heads, strict=True) if not head]
    groups = [rewards[i : i + group_size] for i in range(0, len(rewards), group_size)]
    metrics = {
        "reward/mean": mean(rewards),
        "reward/without_prefix": mean(new),
        "reward/flat_groups": mean([float(min(g) == max(g)) for g in groups]),
        "rollout/length": mean([len(r) for r in rollouts]),
        "rollout/truncated": mean([float(r.finish == "length") for r in rollouts]),
        "rollout/decoded": float(sum(len(r) for r in rollouts) - sum(heads)),
        "prefix/share": len(old) / len(rollouts),
        "prefix/tokens": float(sum(heads)),
    }
    return metrics | ({"reward/with_prefix": mean(old)} if old else {})


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def average(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over the optimiser steps that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: mean([row[name] for row in rows if name in row]) for name in names}
