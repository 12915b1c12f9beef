"""Useful tokens per second of `TorchSampler` against transformers' `generate`, on ragged prompts with early stops.

A useful token is one of a response, up to and with its stop token; `generate` also computes the padding behind it, and no
log-probs. Both draw at temperature 1, from the same prompts; the number of stop tokens is chosen so that responses are
about 30 tokens long. The two take turns in one process: the machine's load then weighs on both.

    python bench/sampler.py [--size default|30m] [--threads 1] [--repeats 7]

The last line is the ratio at the default model.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from stockpot.samplers.torch import TorchSampler
from stockpot.types import Author, Prompt, Request

REQUESTS, NEW, PAD = 256, 64, 0


def build(size: str) -> PreTrainedModel:
    """A model of random weights."""
    torch.manual_seed(0)
    hidden, inter, layers, heads, size_of_head, vocab = {
        "default": (128, 384, 4, 4, 32, 128),
        "30m": (512, 1536, 10, 8, 64, 512),
    }[size]
    config = Qwen3Config(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=inter, num_hidden_layers=layers, head_dim=size_of_head,
        num_attention_heads=heads, num_key_value_heads=heads // 2, tie_word_embeddings=True, max_position_embeddings=256,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def prompts(vocab: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(1, vocab) for _ in range(draw.randint(4, 24))] for _ in range(REQUESTS)]


def stockpot_side(model: PreTrainedModel, texts: list[list[int]], stops: list[int]) -> Callable[[int], int]:
    sampler = TorchSampler(model, author=Author("bench", 0), stop_tokens=stops, pad=PAD)
    requests = [Request(Prompt(str(i), text), key=i, max_tokens=NEW) for i, text in enumerate(texts)]
    return lambda seed: sum(len(rollout) for rollout in sampler.continue_(requests, seed))


def generate_side(model: PreTrainedModel, texts: list[list[int]], stops: list[int]) -> Callable[[int], int]:
    width = max(map(len, texts))
    ids = torch.tensor([[PAD] * (width - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    ends = torch.tensor(stops)

    def run(seed: int) -> int:
        torch.manual_seed(seed)
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=NEW,
                eos_token_id=stops, pad_token_id=PAD,
            )[:, width:]  # fmt: skip
        stopped = torch.isin(out, ends)
        return int(torch.where(stopped.any(1), stopped.int().argmax(1) + 1, out.shape[1]).sum())

    return run


def measure(size: str, repeats: int) -> float:
    model = build(size)
    vocab = model.config.vocab_size
    texts, stops = prompts(vocab), list(range(1, 1 + vocab // 42))
    sides = {"generate": generate_side(model, texts, stops), "stockpot": stockpot_side(model, texts, stops)}
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    lengths: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            tokens = side(turn)
            if turn:  # the first turn warms up
                speeds[name].append(tokens / (time.perf_counter() - start))
                lengths[name].append(tokens / REQUESTS)
    print(f"{size}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {torch.get_num_threads()} thread(s)")
    for name in sides:
        low, middle, high = min(speeds[name]), statistics.median(speeds[name]), max(speeds[name])
        length = statistics.mean(lengths[name])
        print(f"  {name:10} {middle:8.0f} useful tokens/s  ({low:.0f} to {high:.0f}), mean length {length:.1f}")
    ratios = [ours / theirs for ours, theirs in zip(speeds["stockpot"], speeds["generate"], strict=True)]
    print(f"  turn by turn: {statistics.median(ratios):.2f} times  ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("default", "30m"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ratios = {}
    for size in (args.size,) if args.size else ("30m", "default"):
        ratios[size] = measure(size, args.repeats or {"default": 9, "30m": 3}[size])
    print(f"ratio {list(ratios.values())[-1]:.2f}")


if __name__ == "__main__":
    main()
