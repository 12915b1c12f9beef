"""The reference sampler: batched decoding of any `AutoModelForCausalLM`, with an own key-value cache.

Three things make it fast. The cache is allocated once and written in place, where transformers concatenates a new
one for every token. Rows that finish leave: the last live rows move into their places, so no step computes
tokens that nobody wants, and waiting requests take the room. And equal contexts are read once: K samples of one
prompt cost one prefill.

All rows write the same column of the cache, so a row of context length n begins n columns to the left of where it
was admitted, and what lies before that is masked. The last token of a context is left to the first decoding step:
then there is only one place where tokens are drawn.

A prefix is read in one pass with its prompt when its request waits for a row. Where all requests have a row from the
start, the number of steps is that of the longest response whatever the others do: then prefixes are read along, a
token at a step, while the other rows write; equal prompts are still read once, and no row pays for columns that only
the prefixes of others need.

The random numbers are a hash of (seed, request key, index of the token in the response). No generator has a
state, so a request gets the same tokens in any batch and order, up to rounding in the logits.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stockpot.lora import moving
from stockpot.samplers.base import ModelSampler, Seed, Until, over, seeds_of
from stockpot.samplers.cache import RowCache, attention_layers, ready
from stockpot.samplers.draw import choose, mix, signed, uniform
from stockpot.types import Author, Request, Rollout, Sampling, StockpotError

PREFILL_TOKENS = 1024
"""Tokens of one prefill pass: enough to fill the cores, few enough to stay in their caches; bounds the memory."""
DEAD_SHARE = 1 / 16
"""Finished rows leave once they are more than this share. Up to 1/8 is as fast; if they stay, it takes 1.7 times."""
ROOM_SHARE = 1 / 4
"""Waiting requests come in once this share of the rows is free: small prefills are slow."""

REQUEST, LAST, START, ROOM, INDEX, SETUP, BASE = range(7)
"""What is known of a row: its request, last token, first column in the cache, tokens that it may still write, index
of the next one in the response, sampling setup, base of its random numbers."""


class TorchSampler(ModelSampler):
    """Decodes with a torch model, which may be trained between calls: nothing of it is copied.

    `max_rows` bounds the memory, to that many rows of the longest context and response (twice the response's
    room when there are more requests than rows).
    """

    def __init__(
        self, model: PreTrainedModel, *, author: Author, stop_tokens: Sequence[int], pad: int = 0, max_rows: int = 256
    ) -> None:
        self.model, self.pad, self.max_rows = model, pad, max_rows
        self._config = model.config.get_text_config(decoder=True)
        self._layers = attention_layers(model)
        limit = getattr(self._config, "max_position_embeddings", None) or sys.maxsize
        super().__init__(author, stop_tokens, limit, self._config.vocab_size)
        if max_rows < 1:
            raise StockpotError(f"max_rows must be 1 or more, not {max_rows}.")

    @torch.inference_mode()
    def stretch(
        self, requests: Sequence[Request], seed: Seed, until: Until | None = None, again: bool = False
    ) -> list[tuple[Rollout, bool]]:
        """As every sampler of a model; what is continued `again` has its prefix read in one pass."""
        if not requests:
            return []
        contexts = [self.context(request) for request in requests]
        along = len(requests) <= self.max_rows and not again
        if along:
            contexts = [context[: len(r.prompt.tokens)] for r, context in zip(requests, contexts, strict=True)]
        with ready(self.model, self._config):
            rows = _Rows(self, requests, contexts, seeds_of(seed, len(requests)))
            rows.turnover()
            while rows.count:
                rows.step()
                if until is not None and until(rows):
                    break
                if rows.steps % rows.lag == 0:
                    rows.turnover()
        made = rows.made(range(len(requests)))
        return [(rollout, over(rollout, request)) for rollout, request in zip(made, requests, strict=True)]

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], version: int | None) -> None:
        """Into the model itself."""
        for name, parameter in moving(self.model):
            parameter.copy_(weights[name])
        self.author = replace(self.author, version=version)


class _Rows:
    """The rows being decoded, the requests that wait for one, and what has been drawn so far."""

    def __init__(
        self, sampler: TorchSampler, requests: Sequence[Request], contexts: list[array[int]], seeds: Sequence[int]
    ) -> None:
        self.sampler, self.requests, self.contexts = sampler, requests, contexts
        self.model, self.pad, self.limit = sampler.model, sampler.pad, sampler.limit
        self.windows = dict(sampler._layers)
        device, self.dtype, self.most = self.model.device, self.model.dtype, min(sampler.max_rows, len(requests))
        self.waiting = sorted(range(len(requests)), key=lambda i: (len(contexts[i]), contexts[i].tobytes()))
        self.samplings = list(dict.fromkeys(request.sampling for request in requests))
        done = [len(context) - len(r.prompt.tokens) for r, context in zip(requests, contexts, strict=True)]
        rooms = [r.max_tokens - length for r, length in zip(requests, done, strict=True)]
        told = [[*chain(*(span.tokens for span in r.prefix))][n:] for r, n in zip(requests, done, strict=True)]
        longest = max(map(len, told))
        fields: dict[int, list[int]] = {
            REQUEST: list(range(len(requests))),
            LAST: [context[-1] for context in contexts],
            START: [1 - len(context) for context in contexts],  # seen from the column where it is admitted
            ROOM: rooms,
            INDEX: done,
            SETUP: [self.samplings.index(request.sampling) for request in requests],
            BASE: [signed(request.key) for request in requests],
        }
        self.fields = torch.tensor([fields[i] for i in range(len(fields))], device=device)
        self.fields[BASE] = mix(self.fields[BASE] ^ mix(torch.tensor([*map(signed, seeds)], device=device)))
        told = [[*prefix, *[-1] * (longest - len(prefix))] for prefix in told]
        self.told = torch.tensor(told, device=device) if longest else None  # what rows read instead of drawing
        self.state = self.fields.new_zeros(len(fields), self.most)
        self.count = self.steps = 0
        self.lag = 1 if device.type == "cpu" else 8  # steps between looks at who is done: a look waits for the device
        width, refilled = len(contexts[self.waiting[-1]]) - 1, len(requests) > self.most
        self.places = torch.arange(width + max(rooms) * (1 + refilled) + self.lag, device=device)
        self.cache = RowCache(self.most, len(self.places), len(sampler._layers))
        self.cache.begin = self.cache.end = width
        self.stops = torch.zeros(sampler._config.vocab_size, dtype=torch.bool, device=device)
        self.stops[list(sampler.stop_tokens)] = True
        self.trace: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def turnover(self) -> None:
        """Finished rows leave and waiting requests come in, where enough of them make it worth it."""
        live = self.state[ROOM, : self.count] > 0
        kept = int(live.sum())
        admit = bool(self.waiting) and self.most - kept >= self.most * ROOM_SHARE
        if not admit and kept and self.count - kept <= self.count * DEAD_SHARE:
            return
        holes = (~live[:kept]).nonzero().squeeze(1)
        movers = live[kept:].nonzero().squeeze(1) + kept
        self.state[:, holes] = self.state[:, movers]  # the last live rows: as little is copied as can be
        self.cache.move(movers, holes)
        self.count = kept
        if admit:
            self._admit()
        if self.count:
            self._arrange()

    def _admit(self) -> None:
        """Fill the free rows, longest contexts first, so that those read together are of similar length."""
        widest = len(self.contexts[self.waiting[-1]]) - 1
        first = int(self.state[START, : self.count].min()) if self.count else self.cache.end
        distance = min(first, self.cache.end - widest)  # columns that no row needs any more
        self.cache.slide(distance, self.count)
        self.state[START, : self.count] -= distance
        while self.waiting and self.count < self.most:
            chunk: list[tuple[int, int]] = []
            unique: dict[bytes, int] = {}
            width = len(self.contexts[self.waiting[-1]]) - 1
            while self.waiting and self.count + len(chunk) < self.most:
                key = self.contexts[self.waiting[-1]].tobytes()
                if key not in unique and unique and (len(unique) + 1) * width > PREFILL_TOKENS:
                    break
                chunk.append((self.waiting.pop(), unique.setdefault(key, len(unique))))
            self._prefill(chunk, list(unique), width)

    def _prefill(self, chunk: list[tuple[int, int]], unique: list[bytes], width: int) -> None:
        """Give rows to `chunk` (request, its context's index in `unique`); read the contexts less their last tokens.

        Here padding is on the right, where causal attention needs no mask for it. On the way into the cache every
        context is rolled to end at the common column; what the padding left lands before its start and is masked.
        """
        device, rows = self.model.device, slice(self.count, self.count + len(chunk))
        requests, which = torch.tensor(chunk, device=device).unbind(1)
        self.state[:, rows] = self.fields[:, requests]
        self.state[START, rows] += self.cache.end
        self.cache.clear(rows, self.cache.end - width)
        self.count = rows.stop
        if width == 0:
            return
        bodies = [array("i", data)[:-1] for data in unique]
        ids = torch.tensor([[*body] + [self.pad] * (width - len(body)) for body in bodies], device=device)
        lengths = torch.tensor([len(body) for body in bodies], device=device)
        self.cache.target = rows
        self.cache.reading = which, (self.places[:width] + lengths[which, None]) % width
        self._forward(ids, None, self.places[:width].expand_as(ids))
        self.cache.reading = None

    def step(self) -> None:
        """One token for every row."""
        cache, count = self.cache, self.count
        request, last, start, room, index, _, base = self.state[:, :count]
        cache.target, column = slice(count), cache.end
        cache.end += 1
        masks = {}
        for name, window in self.windows.items():
            if window and column >= window:
                self.masks[name][..., column - window] = torch.finfo(self.dtype).min
            masks[name] = self.masks[name][..., cache.begin : cache.end]
        positions = (column - start).clamp_(max=self.limit - 1)  # a finished row may linger for some steps
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        logits = self._forward(last[:, None], mask, positions[:, None])
        live = room > 0
        tokens, log_probs = self._draw(logits, uniform(base, index))
        if self.told is not None and self.steps < self.told.shape[1]:  # index is the step: nobody came in later
            told = self.told[request, self.steps]
            reads = told >= 0
            tokens, live = torch.where(reads, told, tokens), live & ~reads
        self.trace.append((request.clone(), tokens, log_probs, live))
        last.copy_(tokens)
        index += 1
        room -= 1
        room.masked_fill_(self.stops[tokens] & live, 0)
        self.steps += 1

    def _draw(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """A token and its log-prob per row, the rows of each sampling setup together."""
        if len(self.setups) == 1:
            return choose(logits, self.setups[0][0], uniform)
        tokens, log_probs = torch.empty_like(uniform, dtype=torch.long), torch.empty_like(logits[:, 0])
        for sampling, rows in self.setups:
            tokens[rows], log_probs[rows] = choose(logits[rows], sampling, uniform[rows])
        return tokens, log_probs

    def _forward(self, ids: Tensor, mask: Tensor | dict[str, Tensor] | None, positions: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _arrange(self) -> None:
        """Work out what depends on which rows there are: the window on the cache, masks, rows of each setup."""
        starts, setups = self.state[START, : self.count], self.state[SETUP, : self.count]
        self.cache.begin = int(starts.min())
        self.masks = {}
        for name, window in self.windows.items():
            seen = (self.places >= starts[:, None]) & (self.places >= (self.cache.end - window if window else 0))
            mask = torch.zeros(seen.shape, dtype=self.dtype, device=seen.device)
            self.masks[name] = mask.masked_fill_(~seen, torch.finfo(self.dtype).min)[:, None, None]
        self.setups: list[tuple[Sampling, Tensor]] = []
        for i, sampling in enumerate(self.samplings):
            rows = (setups == i).nonzero().squeeze(1) if len(self.samplings) > 1 else starts
            if len(rows):
                self.setups.append((sampling, rows))

    def left(self) -> list[int]:
        """The requests that are not whole yet."""
        live = self.state[ROOM, : self.count] > 0
        return [*self.waiting, *self.state[REQUEST, : self.count][live].tolist()]

    def made(self, places: Sequence[int]) -> list[Rollout]:
        """What there is of these requests."""
        tokens, log_probs = self.drawn()
        return [self.sampler.rollout(self.requests[i], tokens[i], log_probs[i]) for i in places]

    def drawn(self) -> tuple[list[list[int]], list[list[float]]]:
        """Tokens and log-probs of every request, in the order of the requests."""
        request, tokens, log_probs, live = (torch.cat(parts).cpu() for parts in zip(*self.trace, strict=True))
        request, tokens, log_probs = request[live], tokens[live], log_probs[live]
        if not log_probs.isfinite().all():
            raise StockpotError("the model's logits are not finite: its weights hold NaN or infinity.")
        order = request.argsort(stable=True)
        sizes = request.bincount(minlength=self.fields.shape[1]).tolist()
        cut = [torch.split(values[order], sizes) for values in (tokens, log_probs)]
        return [part.tolist() for part in cut[0]], [part.tolist() for part in cut[1]]
