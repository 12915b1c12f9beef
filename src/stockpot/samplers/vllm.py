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
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from stockpot import lora as adapters
from stockpot.lora import LoRA
from stockpot.samplers.base import ModelSampler
from stockpot.samplers.draw import mix, signed
from stockpot.types import Author, Request, Rollout, Sampling, StockpotError

COOLEST, HOTTEST = 0.01, 2.0
"""Temperatures that vLLM samples at; below the first it takes the first, above the second it refuses."""
BLOCK = 32
"""Tokens in a block of the prefix cache: what is shared is whole blocks. A CPU wants multiples of 32."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights are handed over as they lie in memory
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the one whose truncations and random numbers are described above
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # this process has other work for its threads
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True)
class VLLM:
    """How vLLM runs; read with `--sampler vllm` only."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What weights and keys are kept in and matrices multiplied in. auto: bfloat16 on a GPU, else float32."""
    memory_gb: float = 1.0
    """Room for keys and values, in GiB."""
    eager: bool = True
    """Start at once; without it vLLM compiles the model first, and on a GPU records CUDA graphs."""
    keep_cache: bool = False
    """Keep what was read of prompts from one call to the next while the weights stay. Saves reading where calls share
    long heads; log-probs then depend, in their last bits, on what was asked before."""
    context: int = 0
    """Longest sequence, prompt and response; 0 is what the model reads. Less leaves room for more sequences."""

    def __post_init__(self) -> None:
        if self.memory_gb <= 0 or self.context < 0:
            raise StockpotError("vllm.memory_gb must be above 0 and vllm.context 0 or more.")


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
        config, self._names = _outline(model)
        positions = getattr(config, "max_position_embeddings", None) or 0
        limit = min(length for length in (positions, options.context) if length) if positions or options.context else 0
        if not limit:
            raise StockpotError(f"{model} does not say how many tokens it reads: set vllm.context.")
        super().__init__(author, stop_tokens, limit, config.vocab_size)
        if max_rows < 1:
            raise StockpotError(f"max_rows must be 1 or more, not {max_rows}.")
        self.max_rows, self.lora, self.keep_cache = max_rows, lora, options.keep_cache
        self._adapter: Any = None
        self._adapters, self._folder = 0, tempfile.TemporaryDirectory(prefix="stockpot-adapter-")
        self.cached_tokens = 0
        """Tokens of the last call's prompts and prefixes that were not read, since the cache knew them."""
        self._end_the_last()
        self._llm = _start(model, limit, max_rows, options, lora)
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
        self._llm.collective_rpc(_reload, args=([(name, tensor.detach()) for name, tensor in weights.items()],))
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

    def continue_(self, requests: Sequence[Request], seed: int) -> list[Rollout]:
        """All requests at once; rollouts come back in their order."""
        self._check_running()
        if not requests:
            return []
        contexts = [self.context(request) for request in requests]
        draws = [_parameters(request, seed, self.stop_tokens) for request in requests]
        prompts = [{"prompt_token_ids": context.tolist()} for context in contexts]
        if not self.keep_cache:
            self._forget()
        with _environment():
            answers = self._llm.generate(prompts, draws, use_tqdm=False, lora_request=self._adapter)
        self.cached_tokens = sum(answer.num_cached_tokens or 0 for answer in answers)
        return [self._read(*pair) for pair in zip(requests, answers, strict=True)]

    def _read(self, request: Request, answer: Any) -> Rollout:
        (output,) = answer.outputs
        log_probs = output.logprobs.logprobs
        if request.sampling.temperature == 0:  # the distribution sampled from has one token
            log_probs = [0.0 if math.isfinite(number) else number for number in log_probs]
        if len(log_probs) != len(output.token_ids) or list(output.logprobs.token_ids) != list(output.token_ids):
            raise StockpotError("vLLM's log-probs are not those of its tokens: this version of vLLM cannot be used.")
        if not all(map(math.isfinite, log_probs)):
            raise StockpotError("the model's logits are not finite: its weights hold NaN or infinity.")
        return self.rollout(request, list(output.token_ids), log_probs)


def ready() -> None:
    """One line where vLLM is missing."""
    try:
        with _environment():
            import vllm  # noqa: F401
    except ImportError as error:
        raise StockpotError(
            "sampler vllm needs vLLM, which is not installed here: see docs/vllm.md, or take sampler torch."
        ) from error


def _reload(worker: Any, weights: list[tuple[str, Tensor]]) -> None:
    """Run by vLLM's worker, which is in this process.

    On a CPU vLLM multiplies by packed copies of the weights. It packs anew what it loads, but a head that is tied to
    the embedding is loaded by nobody, and would go on with the copy of the old one.
    """
    worker.model_runner.reload_weights(weights_iterator=iter(weights))
    for module in worker.model_runner.get_model().modules():
        if type(module).__name__ == "ParallelLMHead" and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


def _outline(model: str) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """A model's text config, and its parameters' names and shapes; nothing is loaded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config)
    names = {name: tuple(parameter.shape) for name, parameter in bare.named_parameters()}
    return config.get_text_config(decoder=True), names


def _start(model: str, limit: int, rows: int, options: VLLM, lora: LoRA) -> Any:
    """The engine, with everything that would change what is sampled set by hand."""
    wish = options.dtype
    if wish == "auto":
        wish = "bfloat16" if torch.cuda.is_available() else "float32"
    worn = {}
    if lora.rank:
        rank = next((rank for rank in RANKS if rank >= lora.rank), 0)
        if not rank:
            raise StockpotError(f"vLLM knows adapters up to rank {RANKS[-1]}, not {lora.rank}.")
        worn = {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1, "max_cpu_loras": 1}
    with _environment():
        from vllm import LLM

        return LLM(
            model,
            dtype=wish,
            enforce_eager=options.eager,
            kv_cache_memory_bytes=int(options.memory_gb * 2**30),
            block_size=BLOCK,
            max_model_len=limit,
            max_num_seqs=rows,
            max_num_batched_tokens=max(limit, 8192),
            enable_chunked_prefill=False,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            skip_tokenizer_init=True,
            use_tqdm_on_load=False,
            **worn,
        )


def _parameters(request: Request, seed: int, stops: frozenset[int]) -> Any:
    """The request in vLLM's words, or a refusal where there are none."""
    from vllm import SamplingParams

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


@contextmanager
def _environment() -> Iterator[None]:
    """Within, vLLM's switches are set; afterwards variables are as they were, and threads can be set again.

    vLLM preloads libraries into every program that this process starts later, and makes `set_num_threads` do nothing.
    """
    before, threads = dict(os.environ), torch.set_num_threads
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        torch.set_num_threads = threads
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
