"""Tokens per second of `VLLMSampler` against `TorchSampler`, the reference, on the same requests.

Two workloads of each model: responses of equal length (no stop tokens), and ragged ones, which stop tokens end after
30 tokens or so. There are twice as many requests as rows; prompts differ in length and content. The two samplers take
turns in one process, so that the machine's load weighs on both. Weights are random, the temperature is 1, float32 on
both sides, vLLM without compilation. A token counts up to and with its stop token.

    .venv-vllm/bin/python bench/vllm.py [--size default|30m] [--repeats N] [--requests N]

Also told: the seconds that a new version's weights take to be sent, and how far the two models are apart on what vLLM
wrote. The last line has the ratios.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from sampler import build
from stockpot.policy import Learner, Policy
from stockpot.samplers.base import Sampler
from stockpot.samplers.torch import TorchSampler
from stockpot.samplers.vllm import VLLM, VLLMSampler
from stockpot.types import Author, Prompt, Request

AUTHOR, NEW = Author("bench", 0), 64
SIZES = {"default": 256, "30m": 64}
"""Requests of each."""


def requests(vocabulary: int, count: int) -> list[Request]:
    draw = random.Random(0)
    texts = [[draw.randrange(1, vocabulary) for _ in range(draw.randint(4, 24))] for _ in range(count)]
    return [Request(Prompt(str(i), text), key=i, max_tokens=NEW) for i, text in enumerate(texts)]


def measure(size: str, repeats: int, count: int) -> list[str]:
    model = build(size)
    vocabulary = model.config.vocab_size
    asked, ends = requests(vocabulary, count), list(range(1, 1 + vocabulary // 42))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        room = VLLM(memory_gb=0.5, dtype="float32")
        theirs = VLLMSampler(folder, author=AUTHOR, stop_tokens=(), max_rows=count // 2, options=room)
    start = time.perf_counter()
    theirs.load(dict(model.named_parameters()), 0)
    sent = time.perf_counter() - start
    weights = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{size}: {weights:.1f}M parameters, {count} requests, {torch.get_num_threads()} thread(s)", flush=True)
    found = []
    for name, stops in (("equal", list[int]()), ("ragged", ends)):
        ours = TorchSampler(model, author=AUTHOR, stop_tokens=stops, max_rows=count // 2)
        theirs.stop_tokens = frozenset(stops)
        sides: dict[str, Sampler] = {"torch": ours, "vllm": theirs}
        speeds: dict[str, list[float]] = {side: [] for side in sides}
        for sampler in sides.values():
            sampler.continue_(asked[:8], 0)  # warms up
        for turn in range(1, repeats + 1):
            for side, sampler in sides.items():
                start = time.perf_counter()
                written = sum(map(len, sampler.continue_(asked, turn)))
                speeds[side].append(written / (time.perf_counter() - start))
        for side, values in speeds.items():
            low, middle, high = min(values), statistics.median(values), max(values)
            print(f"  {name:7} {side:6} {middle:8.0f} tokens/s  ({low:.0f} to {high:.0f})")
        ratios = [v / t for v, t in zip(speeds["vllm"], speeds["torch"], strict=True)]
        ratio = statistics.median(ratios)
        print(
            f"  {name:7} vllm / torch, turn by turn: {ratio:.2f}  ({min(ratios):.2f} to {max(ratios):.2f})", flush=True
        )
        found.append(f"{size} {name} {ratio:.2f}")
    rollouts = theirs.continue_(asked[:32], 7)
    pairs = zip(Policy(model, Learner()).score(rollouts, "policy"), rollouts, strict=True)
    off = max(float((score - torch.tensor(r.spans[-1].log_probs)).abs().max()) for score, r in pairs)
    print(f"  weights sent in {1000 * sent:.0f} ms; log-probs apart by at most {off:.1e}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=tuple(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, help="instead of 256 (default) and 64 (30m)")
    args = parser.parse_args()
    sys.path.remove(str(Path(__file__).parent))  # where `import vllm` would find this file
    torch.set_num_threads(args.threads)
    sizes = (args.size,) if args.size else tuple(SIZES)
    print(
        "vllm / torch:",
        *(line for size in sizes for line in measure(size, args.repeats, args.requests or SIZES[size])),
        sep="  ",
    )


if __name__ == "__main__":
    main()
