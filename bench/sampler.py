"""Useful tokens per second of `TorchSampler` against transformers' `generate`, on ragged prompts with early stops.

Two workloads: 256 different prompts, and 32 prompts times 8 samples, which is what a group baseline asks for.

A useful token is one of a response, up to and with its stop token; `generate` also computes the padding behind it,
and no log-probs. Both draw at temperature 1, from the same prompts; the number of stop tokens is chosen so that
responses are about 30 tokens long. The two take turns in one process: the machine's load then weighs on both.

    python bench/sampler.py [--size default|30m] [--threads 1] [--repeats N]

The last line is the ratio at the default model, with 256 different prompts.
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
from transformers import AutoModelForCausalLM, PreTrainedModel

from learner import shape
from stockpot.samplers.torch import TorchSampler
from stockpot.types import Author, Prompt, Request

REQUESTS, NEW, PAD = 256, 64, 0


def build(size: str) -> PreTrainedModel:
    """A model of random weights."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(shape(size)).eval()


def prompts(vocab: int, samples: int = 1) -> list[list[int]]:
    draw = random.Random(0)
    different = [[draw.randrange(1, vocab) for _ in range(draw.randint(4, 24))] for _ in range(REQUESTS // samples)]
    return [text for text in different for _ in range(samples)]


def stockpot_side(model: PreTrainedModel, texts: list[list[int]], stops: list[int]) -> Callable[[int, int], int]:
    sampler = TorchSampler(model, author=Author("bench", 0), stop_tokens=stops, pad=PAD)

    def run(seed: int, new: int = NEW) -> int:
        requests = [Request(Prompt(str(i), text), key=i, max_tokens=new) for i, text in enumerate(texts)]
        return sum(len(rollout) for rollout in sampler.continue_(requests, seed))

    return run


def generate_side(model: PreTrainedModel, texts: list[list[int]], stops: list[int]) -> Callable[[int, int], int]:
    width = max(map(len, texts))
    ids = torch.tensor([[PAD] * (width - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    ends = torch.tensor(stops)

    def run(seed: int, new: int = NEW) -> int:
        torch.manual_seed(seed)
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=new,
                eos_token_id=stops, pad_token_id=PAD,
            )[:, width:]  # fmt: skip
        stopped = torch.isin(out, ends)
        return int(torch.where(stopped.any(1), stopped.int().argmax(1) + 1, out.shape[1]).sum())

    return run


def measure(size: str, repeats: int, samples: int) -> float:
    model = build(size)
    vocab = model.config.vocab_size
    texts, stops = prompts(vocab, samples), list(range(1, 1 + vocab // 42))
    sides = {"generate": generate_side(model, texts, stops), "stockpot": stockpot_side(model, texts, stops)}
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    lengths: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side(0, 4)  # warms up
    for turn in range(1, repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            tokens = side(turn, NEW)
            speeds[name].append(tokens / (time.perf_counter() - start))
            lengths[name].append(tokens / REQUESTS)
    size_of_it = sum(p.numel() for p in model.parameters()) / 1e6
    threads = torch.get_num_threads()
    print(f"{size}, {size_of_it:.1f}M parameters, {threads} thread(s), {REQUESTS // samples} prompts x {samples}")
    for name in sides:
        low, middle, high = min(speeds[name]), statistics.median(speeds[name]), max(speeds[name])
        length = statistics.mean(lengths[name])
        print(f"  {name:10} {middle:8.0f} useful tokens/s  ({low:.0f} to {high:.0f}), mean length {length:.1f}")
    ratios = [ours / theirs for ours, theirs in zip(speeds["stockpot"], speeds["generate"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"  turn by turn: {ratio:.2f} times  ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=("default", "30m"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ratio = 0.0
    for size in (args.size,) if args.size else ("30m", "default"):
        if size == "default":
            measure(size, args.repeats or 5, samples=8)
        ratio = measure(size, args.repeats or (9 if size == "default" else 2), samples=1)
    print(f"ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
