"""What an off-policy researcher looks at: the rollouts of a step, and the flat stream of tokens of an update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from stockpot import ops
from stockpot.algorithms.base import Terms
from stockpot.types import KINDS, Batch, Rollout

AGE_EDGES = (0, 1, 4, 8, 16, 32, 64)
"""Youngest age of each bucket after the first, which is for authors without an age."""
AGES = ("unknown", "0", "1-3", "4-7", "8-15", "16-31", "32-63", "64+")
PARTS = ("all", *KINDS, *(f"age/{name}" for name in AGES))
"""What tokens are split by. The kinds share the tokens among themselves, and so do the ages."""
POINTS = {"ratio_p01": 0.01, "ratio_p10": 0.1, "ratio_p50": 0.5, "ratio_p90": 0.9, "ratio_p99": 0.99, "ratio_max": 1.0}
COLUMNS = (
    "tokens", "known", "entropy", "clipped", "ratio", "ratio_square", "distance", "push", "push_lost", "advantage",
    "advantage_size", "steered", "weight", "aged", "age",
)  # fmt: skip
"""What is summed over the tokens of each part: every mean is made of two of these."""


@dataclass(frozen=True, slots=True)
class View:
    """One micro-batch as the update saw it: everything detached, shape [N]."""

    ratio: Tensor
    weight: Tensor
    """What the loss really multiplied A grad log pi by; 0 for a clipped token, no number where A is 0."""
    clipped: Tensor
    entropy: Tensor
    advantages: Tensor
    log_ratio: Tensor
    known: Tensor
    kind: Tensor
    age: Tensor
    index: Tensor
    trained: Tensor


def view(log_probs: Tensor, entropy: Tensor, terms: Terms, batch: Batch) -> View:
    """To be taken before the backward pass, which frees what the weights are read from."""
    return View(
        ratio=terms.ratio,
        weight=effective_weight(log_probs, terms, batch),
        clipped=terms.clipped,
        entropy=entropy.detach(),
        advantages=batch.advantages,
        log_ratio=ops.log_ratio(log_probs.detach(), batch.author_log_probs, batch.known),
        known=batch.known,
        kind=batch.kind,
        age=batch.age,
        index=batch.index,
        trained=batch.trained,
    )


def effective_weight(log_probs: Tensor, terms: Terms, batch: Batch) -> Tensor:
    """w_t [N] for which the gradient of the loss, as it was computed, is that of -sum_t w_t A_t log pi(y_t).

    Measured and not declared: the loss is differentiated by the log-probs alone, which costs a few operations on N
    numbers. So it holds for a clip, a cap, a shaped probability, one ratio for a whole rollout, and a loss of your own.
    """
    total = torch.where(batch.trained, terms.loss, 0.0).sum()
    slope = None
    if total.requires_grad:
        (slope,) = torch.autograd.grad(total, log_probs, retain_graph=True, allow_unused=True)
    return -(torch.zeros_like(log_probs) if slope is None else slope).detach() / batch.advantages


def summarise(views: Sequence[View]) -> dict[str, float]:
    """Metrics of a whole update; `docs/metrics.md` explains each. Parts that do not occur have no metrics.

    Nothing leaves the device before the end, and then all of it at once.
    """
    stream = View(*(torch.cat([getattr(v, f.name) for v in views]) for f in fields(View)))
    if stream.kind.device.type == "mps":  # knows no float64
        stream = View(*(getattr(stream, f.name).cpu() for f in fields(View)))
    chosen = stream.trained.nonzero().squeeze(-1)
    if not len(chosen):
        return {}
    tokens = View(*(getattr(stream, f.name)[chosen] for f in fields(View)))
    member = members(tokens)
    wide = member[: 1 + len(KINDS)]
    sums = member.double() @ torch.stack(columns(tokens), dim=1)
    ratios = quantiles(tokens.ratio, wide & tokens.known, list(POINTS.values()))
    weights = quantiles(tokens.weight, wide & (tokens.advantages != 0), [0.99])
    sizes = (len(PARTS) * len(COLUMNS), ratios.numel(), weights.numel(), 2 * len(PLACES), 1 + len(MISMATCH))
    found_at = (sums.flatten(), ratios.flatten(), weights.flatten(), at_places(stream), mismatch(tokens))
    of_parts, of_ratios, of_weights, of_places, (fresh, *off) = pieces(torch.cat(found_at).tolist(), sizes)
    metrics: dict[str, float] = {}
    for i, part in enumerate(PARTS):
        found = dict(zip(COLUMNS, of_parts[i * len(COLUMNS) :], strict=False))
        if not found["tokens"]:
            continue
        named = figures(found)
        if i <= len(KINDS):
            points = of_ratios[i * len(POINTS) : (i + 1) * len(POINTS)]
            named |= extras(found, points, of_weights[i])
        metrics |= {f"{part}/{name}": value for name, value in named.items()}
    counted = zip(PLACES, of_places[: len(PLACES)], of_places[len(PLACES) :], strict=True)
    metrics |= dict(zip(MISMATCH, off, strict=True)) if fresh else {}
    return metrics | {name: total / count for name, total, count in counted if count}


MISMATCH = ("mismatch/mean", "mismatch/max")
"""They say something of a step's first update alone: after it the policy is no longer the one that wrote."""


def mismatch(tokens: View) -> Tensor:
    """How many tokens the live policy has just written; mean and largest |author's log-prob - learner's| of theirs."""
    fresh = tokens.known & (tokens.age == 0) & (tokens.kind == KINDS.index("continuation"))
    off = torch.where(fresh, tokens.log_ratio.double().abs(), 0.0)
    count = fresh.sum().double()
    return torch.stack([count, off.sum() / count.clamp_min(1), off.max()])


def told(notes: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Means, over the rollouts that have them, of the figures that a loss gave for the rollouts of each micro-batch."""
    names = dict.fromkeys(name for figures in notes for name in figures)
    joined = {name: torch.cat([figures[name].cpu().double() for figures in notes]) for name in names}
    return {name: float(values.nanmean()) for name, values in joined.items() if not values.isnan().all()}


def members(tokens: View) -> Tensor:
    """[parts, N] bool: which tokens belong to which of `PARTS`."""
    edges = torch.tensor(AGE_EDGES, device=tokens.age.device)
    bucket = torch.bucketize(tokens.age, edges, right=True)  # how many edges are no larger: 0 for age -1
    kinds = tokens.kind == torch.arange(len(KINDS), device=edges.device).unsqueeze(1)
    ages = bucket == torch.arange(len(AGES), device=edges.device).unsqueeze(1)
    return torch.cat([torch.ones_like(kinds[:1]), kinds, ages])


def columns(tokens: View) -> list[Tensor]:
    """`COLUMNS` [N] each, in double precision. What has no number at a token is 0 there, and is counted apart."""
    ratio, advantages = tokens.ratio.double(), tokens.advantages.double()
    known, clipped, aged, steered = tokens.known, tokens.clipped, tokens.age >= 0, tokens.advantages != 0
    raw = torch.where(known, ratio, 0.0)
    distance = ops.ratio(tokens.log_ratio.double()) - 1 - tokens.log_ratio.double()
    push = (advantages * ratio).abs()
    found = (
        torch.ones_like(ratio), known, tokens.entropy, clipped, raw, raw.square(), torch.where(known, distance, 0.0),
        push, push * clipped, advantages, advantages.abs(), steered, torch.where(steered, tokens.weight, 0.0), aged,
        torch.where(aged, tokens.age, 0),
    )  # fmt: skip
    return [column.double() for column in found]


def figures(sums: dict[str, float]) -> dict[str, float]:
    """What every part has. Tokens whose author's log-prob nobody knows have no ratio: left out there, and counted."""
    tokens, known = sums["tokens"], sums["known"]
    named = {
        "tokens": tokens,
        "unknown_tokens": tokens - known,
        "entropy": sums["entropy"] / tokens,
        "clip_share": sums["clipped"] / tokens,
        "clip_loss": sums["push_lost"] / max(sums["push"], 1e-30),
        "advantage_mean": sums["advantage"] / tokens,
    }
    if known:
        named |= {
            "ratio_mean": sums["ratio"] / known,
            "ess": sums["ratio"] ** 2 / (sums["ratio_square"] * known),
            "kl_to_author": sums["distance"] / known,
        }
    return named


def extras(sums: dict[str, float], points: Sequence[float], weight: float) -> dict[str, float]:
    """What only `all` and the kinds have."""
    named = dict(zip(POINTS, points, strict=True)) if sums["known"] else {}
    if sums["steered"]:
        named |= {"weight_mean": sums["weight"] / sums["steered"], "weight_p99": weight}
    return named | {
        "advantage_abs": sums["advantage_size"] / sums["tokens"],
        "age_mean": sums["age"] / sums["aged"] if sums["aged"] else -1.0,
    }


PLACES = (
    "advantage/with_prefix", "advantage/without_prefix", "continuation/entropy_at_cut", "continuation/entropy_at_start",
)  # fmt: skip


def at_places(stream: View) -> Tensor:
    """Totals of `PLACES`, then how many each is the total of. A rollout counts once, however long it is.

    The stream holds all tokens, so that a cut is seen behind a prefix that is not trained.
    """
    first, prefix = stream.index == 0, stream.kind == KINDS.index("prefix")
    rollout = first.cumsum(0) - 1  # a number of its own across micro-batches
    length, head = (ops.per_rollout(x.double(), rollout, len(first)) for x in (torch.ones_like(first), prefix))
    share = stream.advantages.double() / length[rollout]
    begun = head[rollout] > 0
    live = stream.trained & (stream.kind == KINDS.index("continuation"))
    at_cut, at_start = live & ~first & prefix.roll(1), live & first
    entropy = stream.entropy.double()
    pairs = ((share, begun), (share, ~begun), (entropy, at_cut), (entropy, at_start))
    counted = (first & begun, first & ~begun, at_cut, at_start)
    totals = [torch.where(mask, values, 0.0).sum() for values, mask in pairs]
    return torch.stack(totals + [mask.sum().double() for mask in counted])


def quantiles(values: Tensor, member: Tensor, points: Sequence[float]) -> Tensor:
    """[G, Q] quantiles of `values` [N] among the members [G, N] of each group, linear between neighbours.

    One sort serves all groups. A group without members gets some number.
    """
    ordered, order = values.double().sort(stable=True)
    seen = member[:, order].cumsum(-1)
    place = torch.tensor(points, dtype=torch.float64, device=values.device) * (seen[:, -1:] - 1).clamp_min(0)
    low, high = (torch.searchsorted(seen, p.long() + 1).clamp_max(len(values) - 1) for p in (place, place.ceil()))
    return ordered[low].lerp(ordered[high], place.frac())


def pieces(numbers: Sequence[float], sizes: Sequence[int]) -> Iterator[Sequence[float]]:
    """Consecutive pieces of these sizes."""
    start = 0
    for size in sizes:
        yield numbers[start : start + size]
        start += size


def describe(rollouts: Sequence[Rollout], group_size: int) -> dict[str, float]:
    """What the step's rollouts look like; `docs/metrics.md` explains each figure."""
    rewards = [r.reward or 0.0 for r in rollouts]
    heads = [r.prefix_length for r in rollouts]
    old = [reward for reward, head in zip(rewards, heads, strict=True) if head]
    new = [reward for reward, head in zip(rewards, heads, strict=True) if not head]
    groups = [rewards[i : i + group_size] for i in range(0, len(rewards), group_size)]
    metrics = {
        "reward/mean": mean(rewards),
        "reward/flat_groups": mean([float(min(g) == max(g)) for g in groups]),
        "rollout/length": mean([len(r) for r in rollouts]),
        "rollout/truncated": mean([float(r.finish == "length") for r in rollouts]),
        "rollout/decoded": float(sum(len(r) for r in rollouts) - sum(heads)),
        "rollout/prefixed": float(sum(heads)),
        "prefix/share": len(old) / len(rollouts),
        "prefix/tokens": float(sum(heads)),
    }
    if new:
        metrics["reward/without_prefix"] = mean(new)
    return metrics | ({"reward/with_prefix": mean(old)} | lengths(rollouts) if old else {})


def lengths(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """How long the prefixes are, over the rollouts that have one."""
    begun = [r for r in rollouts if r.prefix_length]
    heads = torch.tensor([r.prefix_length for r in begun], dtype=torch.float64)
    low, high = quantiles(heads, torch.ones(1, len(heads), dtype=torch.bool), [0.1, 0.9])[0].tolist()
    return {
        "prefix/length": float(heads.mean()),
        "prefix/length_p10": low,
        "prefix/length_p90": high,
        "prefix/length_share": mean([r.prefix_length / len(r) for r in begun]),
    }


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def average(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over the optimiser steps that have it; of `MISMATCH`, what the first one has."""
    names = dict.fromkeys(name for i, row in enumerate(rows) for name in row if i == 0 or name not in MISMATCH)
    return {name: mean([row[name] for row in rows[: 1 if name in MISMATCH else None] if name in row]) for name in names}
