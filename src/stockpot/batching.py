"""Rollouts -> tensors. The only place where masks are made."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from stockpot.types import KINDS, Author, Batch, Prompt, Rollout, Sampling, Span, StockpotError, Totals

FILLER = Rollout(Prompt("", [0]), (Span(Author(""), [0], trained=False),))
"""Stands in for work where there is none: two tokens, of which none is trained."""


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
    values: Sequence[Tensor] | None = None,
    returns: Sequence[Tensor] | None = None,
    pack_to: int = 0,
    pad: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Batch:
    """One micro-batch: every rollout in a row of its own, or several to a row when `pack_to` gives a row's length.

    `advantages` holds a number per rollout, or a number per response token. Ages are counted at version `now` of `run`.
    """
    responses = [len(rollout) for rollout in rollouts]
    samplings: dict[Sampling, int] = {}
    tensors = _rows(rollouts, pack_to, pad) | _of_spans(rollouts, run, now, samplings)
    return Batch(
        **{name: tensor.to(device) for name, tensor in tensors.items()},
        author_log_probs=_joined((_log_probs(s) for r in rollouts for s in r.spans), "f").to(device, dtype),
        advantages=_per_token(advantages, responses).to(device, dtype),
        rewards=torch.tensor([r.reward or 0.0 for r in rollouts], dtype=dtype, device=device),
        lengths=torch.tensor([trained_length(r) for r in rollouts], device=device),
        group=torch.tensor(list(groups) if groups is not None else [0] * len(rollouts), device=device),
        samplings=tuple(samplings) or (Sampling(),),
        reference_log_probs=_stream(reference_log_probs, dtype, device),
        values=_stream(values, dtype, device),
        returns=_stream(returns, dtype, device),
    )


def _stream(pieces: Sequence[Tensor] | None, dtype: torch.dtype, device: torch.device | str) -> Tensor | None:
    """A tensor per rollout, laid end to end."""
    return None if pieces is None else torch.cat([piece.to(device, dtype) for piece in pieces])


def _rows(rollouts: Sequence[Rollout], pack_to: int, pad: int) -> dict[str, Tensor]:
    """What the model reads, and where in it each response token stands.

    All sequences are laid end to end: `whose` each token is, and its `place` there. Operations on whole tensors then
    do what a loop over tokens would; with 25,000 tokens a step, that loop is several per cent of the update.
    """
    prompts = [len(rollout.prompt.tokens) for rollout in rollouts]
    if 0 in prompts:
        empty = rollouts[prompts.index(0)].prompt.key
        raise StockpotError(f"prompt {empty!r} is empty: there is nothing to predict the first token from.")
    sizes = [prompt + len(rollout) for prompt, rollout in zip(prompts, rollouts, strict=True)]
    rows = _pack(sizes, pack_to)
    width = max((sum(sizes[i] for i in row) for row in rows), default=1)
    home, first, segment = _places(rows, sizes)
    whose = _repeat(range(len(rollouts)), sizes)
    place = torch.arange(len(whose)) - _repeat(list(accumulate(sizes, initial=0))[:-1], sizes)
    row, column = _repeat(home, sizes), _repeat(first, sizes) + place
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    positions = torch.arange(width).repeat(len(rows), 1)
    segments = torch.full((len(rows), width), -1, dtype=torch.long)
    tokens = _joined((ids for r in rollouts for ids in (r.prompt.tokens, *(s.tokens for s in r.spans))), "i").long()
    ids[row, column], positions[row, column], segments[row, column] = tokens, place, _repeat(segment, sizes)
    index = place - _repeat(prompts, sizes)
    flat = {"row": row, "column": column, "tokens": tokens, "index": index, "rollout": whose}
    return {"ids": ids, "positions": positions, "segments": segments} | {n: t[index >= 0] for n, t in flat.items()}


def _of_spans(rollouts: Sequence[Rollout], run: str, now: int, samplings: dict[Sampling, int]) -> dict[str, Tensor]:
    """What a token has from its span; `samplings` is filled with the setups in the order they are met."""
    spans = [span for rollout in rollouts for span in rollout.spans]
    ages = [span.author.age(now) if span.author.run == run else None for span in spans]
    columns: dict[str, list[int]] = {
        "age": [-1 if age is None else age for age in ages],
        "kind": [KINDS.index(span.kind) for span in spans],
        "sampling": [samplings.setdefault(span.sampling, len(samplings)) for span in spans],
        "trained": [span.trained for span in spans],
        "known": [span.log_probs is not None for span in spans],
    }
    lengths = [len(span) for span in spans]
    flat = {name: _repeat(values, lengths) for name, values in columns.items()}
    return flat | {name: flat[name].bool() for name in ("trained", "known")}


def _repeat(values: Iterable[int], times: Sequence[int]) -> Tensor:
    """Each value as often as its neighbour in `times` says."""
    return torch.tensor(list(values), dtype=torch.long).repeat_interleave(torch.tensor(times, dtype=torch.long))


def _joined(parts: Iterable[Sequence[float]], typecode: str) -> Tensor:
    """Stored ids ("i") or log-probs ("f"), end to end, without a Python object per token."""
    joined = array(typecode)
    for part in parts:
        joined.extend(part)  # type: ignore[arg-type]
    kind = torch.int32 if typecode == "i" else torch.float32
    return torch.frombuffer(joined, dtype=kind) if joined else torch.empty(0, dtype=kind)


def _log_probs(span: Span) -> Sequence[float]:
    return array("f", bytes(4 * len(span))) if span.log_probs is None else span.log_probs


def _per_token(advantages: Sequence[float | Sequence[float]], responses: Sequence[int]) -> Tensor:
    """Advantages [N] in double precision, from a number per rollout or a number per token."""
    numbers = [[a] * n if isinstance(a, (int, float)) else a for a, n in zip(advantages, responses, strict=True)]
    if [len(part) for part in numbers] != list(responses):
        raise StockpotError("there must be one number per rollout in advantages, or one per response token.")
    return torch.tensor([number for part in numbers for number in part], dtype=torch.float64)


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


def _places(rows: Sequence[Sequence[int]], sizes: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Where each sequence stands: its row, its first column, and its number in the row."""
    home, first, segment = [0] * len(sizes), [0] * len(sizes), [0] * len(sizes)
    for row, members in enumerate(rows):
        column = 0
        for number, i in enumerate(members):
            home[i], first[i], segment[i] = row, column, number
            column += sizes[i]
    return home, first, segment


def attention_blocks(batch: Batch) -> Tensor:
    """[B, 1, T, T] bool: who may look at whom when rows are packed. Causal, and never across sequences.

    Padding may look at itself, since a row of nothing but False has no softmax.
    """
    same = batch.segments.unsqueeze(-1) == batch.segments.unsqueeze(-2)
    width = batch.ids.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=batch.ids.device).tril()
    return (same & causal).unsqueeze(1)
