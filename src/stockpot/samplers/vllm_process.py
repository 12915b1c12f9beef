"""Starting a vLLM in this process, and what is said to it behind its public face."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stockpot.lora import LoRA
from stockpot.types import StockpotError

BLOCK = 32
"""Tokens in a block of the prefix cache: what is shared is whole blocks. A CPU wants multiples of 32."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""
MISSING = "sampler vllm needs vLLM, which is not installed here: see docs/vllm.md, or take sampler torch."
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


def ready() -> None:
    """One line where vLLM is missing."""
    try:
        with environment():
            import vllm  # noqa: F401
    except ImportError as error:
        raise StockpotError(MISSING) from error


def outline(model: str) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """A model's text config, and its parameters' names and shapes; nothing is loaded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config)
    names = {name: tuple(parameter.shape) for name, parameter in bare.named_parameters()}
    return config.get_text_config(decoder=True), names


def model_alone(model: str, room: Path) -> str:
    """The folder to load, since vLLM loads every tensor in one: of a checkpoint of ours, links to the model alone."""
    folder = Path(model)
    if not (folder / "optimizer.safetensors").is_file():
        return model
    room.mkdir()
    for path in folder.iterdir():
        if path.is_file() and (path.suffix != ".safetensors" or path.name.startswith("model")):
            (room / path.name).symlink_to(path.resolve())
    return str(room)


def start(model: str, limit: int, rows: int, options: VLLM, lora: LoRA) -> Any:
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
    with environment():
        from vllm import LLM

        try:
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
        except Exception as error:  # of many kinds: too little memory, a model that it does not know
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise StockpotError(
                f"vLLM does not start on {model}: {reason} See --vllm.memory-gb, --vllm.context."
            ) from error


def reload(worker: Any, weights: list[tuple[str, Tensor]]) -> None:
    """Run by vLLM's worker, which is in this process.

    On a CPU vLLM multiplies by packed copies of the weights. It packs anew what it loads, but a head that is tied to
    the embedding is loaded by nobody, and would go on with the copy of the old one.
    """
    worker.model_runner.reload_weights(weights_iterator=iter(weights))
    for module in worker.model_runner.get_model().modules():
        if type(module).__name__ == "ParallelLMHead" and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


@contextmanager
def environment() -> Iterator[None]:
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
