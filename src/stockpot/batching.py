"""Rollouts -> tensors. The only place where masks are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stockpot.types import KINDS, Batch, Rollout, Sampling, Totals


def totals(rollouts: Sequence[Rollout], max_tokens: int) -> Totals:
    """The sizes of one update, counted before it is split."""
    lengths = [trained_length(rollout) for rollout in rollouts]
    return Totals(tokens=sum(lengths), rollouts=sum(length > 0 for length in lengths), max_tokens=max_tokens)


def trained_length(rollout: Rollout) -> int:
    return sum(len(span) for span in rollout.spans if span.trained)


def split(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices of sequences, in micro-batches of similar length whose padded size stays within the budget.

    A sequence longer than the budget gets a micro-batch of its own: nothing is dropped.
    """
    chosen: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if chosen and lengths[chosen[0]] * (len(chosen) + 1) > token_budget:
            yield chosen
            chosen = []
        chosen.append(index)
    if chosen:
        yield chosen


def collate(
    rollouts: Sequence[Rollout],
    advantages: Sequence[float | Sequence[float]],
    *,
    run: str = "",
    now: int = 0,
    groups: Sequence[int] | None = None,
    reference_log_probs: Sequence[Tensor] | None = None,
    pack_to: int = 0,
    pad: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Batch:
    """One micro-batch: every rollout in a row of its own, or several to a row when `pack_to` gives a row's length.

    `advantages` holds a number per rollout, or a number per response token. Ages are counted at version `now` of `run`.
    """
    rows = _pack([len(r.prompt.tokens) + len(r) for r in rollouts], pack_to)
    width = max((sum(len(rollouts[i].prompt.tokens) + len(rollouts[i]) for i in row) for row in rows), default=1)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    positions = torch.arange(width).repeat(len(rows), 1)
    segments = torch.full((len(rows), width), -1, dtype=torch.long)
    start = [(0, 0)] * len(rollouts)
    for row, members in enumerate(rows):
        column = 0
        for segment, i in enumerate(members):
            sequence = list(rollouts[i].prompt.tokens) + list(rollouts[i].tokens)
            end = column + len(sequence)
            ids[row, column:end] = torch.tensor(sequence)
            positions[row, column:end] = torch.arange(len(sequence))
            segments[row, column:end] = segment
            start[i] = (row, column + len(rollouts[i].prompt.tokens))
            column = end

    samplings: dict[Sampling, int] = {}
    flat: dict[str, list[float]] = {name: [] for name in (
        "row", "column", "trained", "author", "known", "age", "kind", "sampling", "index", "rollout", "advantage")}
    for i, rollout in enumerate(rollouts):
        row, first = start[i]
        n = len(rollout)
        flat["row"] += [row] * n
        flat["column"] += range(first, first + n)
        flat["index"] += range(n)
        flat["rollout"] += [i] * n
        advantage = advantages[i]
        flat["advantage"] += [advantage] * n if isinstance(advantage, (int, float)) else list(advantage)
        for span in rollout.spans:
            age = span.author.age(now) if span.author.run == run else None
            flat["trained"] += [span.trained] * len(span)
            flat["author"] += [0.0] * len(span) if span.log_probs is None else span.log_probs
            flat["known"] += [span.log_probs is not None] * len(span)
            flat["age"] += [-1 if age is None else age] * len(span)
            flat["kind"] += [KINDS.index(span.kind)] * len(span)
            flat["sampling"] += [samplings.setdefault(span.sampling, len(samplings))] * len(span)

    def whole(name: str) -> Tensor:
        return torch.tensor(flat[name], dtype=torch.long).to(device)

    row_n, column_n = whole("row"), whole("column")
    ids = ids.to(device)
    return Batch(
        ids=ids,
        positions=positions.to(device),
        segments=segments.to(device),
        row=row_n,
        column=column_n,
        tokens=ids[row_n, column_n],
        trained=whole("trained").bool(),
        author_log_probs=torch.tensor(flat["author"], dtype=dtype, device=device),
        known=whole("known").bool(),
        age=whole("age"),
        kind=whole("kind"),
        sampling=whole("sampling"),
        index=whole("index"),
        rollout=whole("rollout"),
        advantages=torch.tensor(flat["advantage"], dtype=dtype, device=device),
        rewards=torch.tensor([r.reward or 0.0 for r in rollouts], dtype=dtype, device=device),
        lengths=torch.tensor([trained_length(r) for r in rollouts], device=device),
        group=torch.tensor(list(groups) if groups is not None else [0] * len(rollouts), device=device),
        samplings=tuple(samplings) or (Sampling(),),
        reference_log_probs=None if reference_log_probs is None
        else torch.cat([log_probs.to(device, dtype) for log_probs in reference_log_probs]),
    )


def _pack(lengths: Sequence[int], pack_to: int) -> list[list[int]]:
    """Which sequences share a row: first fit in the given order; one each when not packing."""
    if pack_to <= 0:
        return [[i] for i in range(len(lengths))]
    rows: list[list[int]] = []
    used: list[int] = []
    for i, length in enumerate(lengths):
        for row, taken in enumerate(used):
            if taken + length <= pack_to:
                rows[row].append(i)
                used[row] += length
                break
        else:
            rows.append([i])
            used.append(length)
    return rows


def attention_blocks(batch: Batch) -> Tensor:
    """[B, 1, T, T] bool: who may look at whom when rows are packed. Causal, and never across sequences.

    Padding may look at itself, since a row of nothing but False has no softmax.
    """
    same = batch.segments.unsqueeze(-1) == batch.segments.unsqueeze(-2)
    width = batch.ids.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=batch.ids.device).tril()
    return (same & causal).unsqueeze(1)
