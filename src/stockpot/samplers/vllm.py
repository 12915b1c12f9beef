"""vLLM behind the sampler contract: its engine in this process, weights replaced in place, random numbers of our own.

So that it says what the reference sampler would say, it is asked for processed log-probs (by default vLLM tells those
at temperature 1), for a seed for every request, and for stop tokens by id and no others. Prompts are never read in
pieces: vLLM would draw a random number for each, and on a CPU it cannot put it back. Its older model runner is taken,
whose order of truncations is known: temperature, min-p, top-k, top-p.

Ours is temperature, top-k, top-p, min-p. Min-p and top-k can change places, since neither asks how much probability is
left; min-p and top-p cannot, so the two together are refused, and so are temperatures that vLLM would move or refuse.
A token on the very edge of a truncation may fall on either side of it, since the two sum in another order.

New weights leave vLLM's prefix cache as it was, full of what the old ones thought, so it is emptied at each `load`. It
is emptied at each call too (`VLLM.keep_cache`): what a call returns then follows from requests, seed and weights alone.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from stockpot import lora as adapters
from stockpot.lora import LoRA
from stockpot.samplers.base import ModelSampler, Seed, Until, over, seeds_of
from stockpot.samplers.draw import mix, signed
from stockpot.samplers.vllm_process import VLLM, environment, model_alone, outline, ready, reload, start
from stockpot.types import Author, Request, Rollout, Sampling, StockpotError

__all__ = ["VLLM", "VLLMSampler", "check", "seed_of"]

COOLEST, HOTTEST = 0.01, 2.0
"""Temperatures that vLLM samples at; below the first it takes the first, above the second it refuses."""


class VLLMSampler(ModelSampler):
    """Continues requests with vLLM, from the weights of a model folder or hub id until others are `load`ed.

    `max_rows` bounds the sequences decoded at one time. With `lora.rank` above 0 the folder is the base and what is
    loaded is an adapter. `pad` is not needed: nothing is padded. There is one vLLM in a process, since it takes the
    process's torch.distributed group for itself: starting another ends the one before.
    """

    _started: ClassVar[int] = 0
    _last: ClassVar[Any] = None

    def __init__(
        self,
        model: str,
        *,
        author: Author,
        stop_tokens: Sequence[int],
        pad: int = 0,
        max_rows: int = 256,
        options: VLLM = VLLM(),
        lora: LoRA = LoRA(),
    ) -> None:
        ready()
        config, self._names = outline(model)
        positions = getattr(config, "max_position_embeddings", None) or 0
        limit = min(length for length in (positions, options.context) if length) if positions or options.context else 0
        if not limit:
            raise StockpotError(f"{model} does not say how many tokens it reads: set vllm.context.")
        super().__init__(author, stop_tokens, limit, config.vocab_size)
        if max_rows < 1:
            raise StockpotError(f"max_rows must be 1 or more, not {max_rows}.")
        self.max_rows, self.lora, self.keep_cache = max_rows, lora, options.keep_cache
        self._adapter: Any = None
        self._adapters, self._folder = 0, tempfile.TemporaryDirectory(prefix="stockpot-vllm-")
        self.cached_tokens = 0
        """Tokens of the last call's prompts and prefixes that were not read, since the cache knew them."""
        self._end_the_last()
        self._llm = start(model_alone(model, Path(self._folder.name) / "model"), limit, max_rows, options, lora)
        VLLMSampler._last = weakref.ref(self._llm.llm_engine.engine_core)
        self._number = VLLMSampler._started = VLLMSampler._started + 1

    @staticmethod
    def _end_the_last() -> None:
        """Now, and not whenever its memory is collected: its end would take the next one's group with it."""
        last = VLLMSampler._last and VLLMSampler._last()
        if last is not None:
            last.shutdown()

    def _check_running(self) -> None:
        if self._number != VLLMSampler._started:
            raise StockpotError("this vLLM was ended when another was started: a process has one at a time.")

    @property
    def version(self) -> int | None:
        """Version of the policy whose weights it has."""
        return self.author.version

    def load(self, weights: Mapping[str, Tensor], version: int | None) -> None:
        """Take these weights, by the model's own names (tied ones once), and sign as this version from now on.

        With LoRA they are the adapter's, and go to vLLM as an adapter with a number of its own.
        """
        self._check_running()
        if self.lora.rank:
            self._wear(weights)
        else:
            self._replace(weights)
        self.author = replace(self.author, version=version)

    def _replace(self, weights: Mapping[str, Tensor]) -> None:
        found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if found != self._names:
            odd = sorted(found.items() ^ self._names.items())[0][0]
            raise StockpotError(f"the weights for vLLM are those of another model: {odd} is not the same in both.")
        self._llm.collective_rpc(reload, args=([(name, tensor.detach()) for name, tensor in weights.items()],))
        self._forget()

    def _forget(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise StockpotError("vLLM would not empty its prefix cache: do not load weights while it is sampling.")

    def _wear(self, weights: Mapping[str, Tensor]) -> None:
        """An adapter under a new number: what the cache knows is filed under the number, and cannot be mixed up."""
        from vllm.lora.request import LoRARequest

        if not weights or any(".lora_" not in name for name in weights):
            raise StockpotError("vLLM holds the base and wants an adapter's weights: start it without LoRA for others.")
        last, self._adapters = self._adapter, self._adapters + 1
        folder = Path(self._folder.name) / str(self._adapters)
        folder.mkdir()
        named = {adapters.PREFIX + n.replace(f".{adapters.NAME}.", "."): w for n, w in weights.items()}
        save_file({name: w.detach().cpu().contiguous() for name, w in named.items()}, folder / adapters.WEIGHTS)
        layers = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in named})
        told = {"peft_type": "LORA", "r": self.lora.rank, "lora_alpha": self.lora.alpha, "target_modules": layers}
        (folder / adapters.CONFIG).write_text(json.dumps(told | {"bias": "none"}))
        self._adapter = LoRARequest(str(self._adapters), self._adapters, str(folder))
        self._llm.llm_engine.add_lora(self._adapter)
        if last is not None:
            self._llm.llm_engine.remove_lora(last.lora_int_id)
            shutil.rmtree(last.lora_path)

    def stretch(
        self, requests: Sequence[Request], seed: Seed, until: Until | None = None, again: bool = False
    ) -> list[tuple[Rollout, bool]]:
        """As every sampler of a model; `again` changes nothing, since contexts are always read in one pass.

        What `until` has cut short goes on with other random numbers: vLLM makes them from a seed and the number of
        tokens drawn with it, and takes up no generator in the middle.
        """
        self._check_running()
        if not requests:
            return []
        contexts = [self.context(request) for request in requests]
        seeds, stops = seeds_of(seed, len(requests)), self.stop_tokens
        draws = [_parameters(r, own, stops, whole=until is None) for r, own in zip(requests, seeds, strict=True)]
        if not self.keep_cache:
            self._forget()
        with environment():
            flight = _Flight(self, requests)
            self._decode(contexts, draws, flight, until)
        self.cached_tokens = sum(answer.num_cached_tokens or 0 for answer in flight.answers.values())
        made = flight.made(range(len(requests)))
        return [(rollout, over(rollout, request)) for rollout, request in zip(made, requests, strict=True)]

    def _decode(
        self, contexts: Sequence[array[int]], draws: Sequence[Any], flight: _Flight, until: Until | None
    ) -> None:
        """Note the last that vLLM said of each request; afterwards it is at work on none, come what may."""
        engine, answers, names = self._llm.llm_engine, flight.answers, [str(i) for i in range(len(contexts))]
        try:
            for name, context, draw in zip(names, contexts, draws, strict=True):
                prompt = {"prompt_token_ids": context.tolist()}
                engine.add_request(name, prompt, draw, lora_request=self._adapter)
            while engine.has_unfinished_requests():
                answers |= {answer.request_id: answer for answer in engine.step()}
                if until is not None and until(flight):
                    break
        finally:
            engine.abort_request([names[i] for i in flight.left()])


class _Flight:
    """What is asked of vLLM, and the last that it said of each, by the number that it knows it by."""

    def __init__(self, sampler: VLLMSampler, requests: Sequence[Request]) -> None:
        self.sampler, self.requests = sampler, requests
        self.answers: dict[str, Any] = {}

    def left(self) -> list[int]:
        """The requests that are not whole yet."""
        answers = ((i, self.answers.get(str(i))) for i in range(len(self.requests)))
        return [i for i, answer in answers if answer is None or not answer.finished]

    def made(self, places: Sequence[int]) -> list[Rollout]:
        """What there is of these requests."""
        return [self._read(self.requests[i], self.answers.get(str(i))) for i in places]

    def _read(self, request: Request, answer: Any) -> Rollout:
        if answer is None:  # its first token was not drawn yet
            return self.sampler.rollout(request, [], [])
        (output,) = answer.outputs
        log_probs = output.logprobs.logprobs
        if request.sampling.temperature == 0:  # the distribution sampled from has one token
            log_probs = [0.0 if math.isfinite(number) else number for number in log_probs]
        if len(log_probs) != len(output.token_ids) or list(output.logprobs.token_ids) != list(output.token_ids):
            raise StockpotError("vLLM's log-probs are not those of its tokens: this version of vLLM cannot be used.")
        if not all(map(math.isfinite, log_probs)):
            raise StockpotError("the model's logits are not finite: its weights hold NaN or infinity.")
        return self.sampler.rollout(request, list(output.token_ids), log_probs)


def _parameters(request: Request, seed: int, stops: frozenset[int], whole: bool) -> Any:
    """The request in vLLM's words, or a refusal where there are none; `whole`: it need not tell before the end."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    sampling, done = request.sampling, sum(len(span) for span in request.prefix)
    check(sampling)
    return SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=seed_of(seed, request.key, done),
        max_tokens=request.max_tokens - done,
        stop_token_ids=sorted(stops),
        ignore_eos=True,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY if whole else RequestOutputKind.CUMULATIVE,
    )


def check(sampling: Sampling) -> None:
    """Refuse what vLLM would sample from another distribution than the one asked for."""
    if sampling.temperature and not COOLEST <= sampling.temperature <= HOTTEST:
        raise StockpotError(
            f"vLLM samples at temperatures of {COOLEST} to {HOTTEST} and at 0, not at {sampling.temperature}: take "
            "another, or sampler torch."
        )
    if sampling.min_p > 0 and sampling.top_p < 1:
        raise StockpotError(
            "vLLM applies min_p before top_p, stockpot after it, and the two orders keep different tokens: set one of "
            "them, or take sampler torch."
        )


def seed_of(seed: int, key: int, done: int) -> int:
    """The seed of one request, as the reference sampler mixes it; and another one for each length of its prefix."""
    base = mix(torch.tensor(signed(key)) ^ mix(torch.tensor(signed(seed))))
    return int(mix(base + done)) & (2**63 - 1)
