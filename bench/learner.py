"""How much of the machine's matrix speed a whole update of `Policy` reaches, from rollouts to new weights.

Counted are the operations that the model's mathematics asks for, on real tokens (no padding, nothing computed twice):

    6 x parameters of the blocks x tokens          prompt and response; forward 2, backward 4
    + 6 x vocabulary x hidden x response tokens    the head sees only the positions that predict a response
    + 6 x layers x heads x head size x n (n + 1)   attention, causal: summed over rollouts of n tokens

The time is that of a step: collating, forward, loss, backward, clipping, AdamW. The peak is the best of several large
square matrix products of the same type, with the same threads. The two take turns in one process, and each turn has
its own ratio: the machine's load then weighs on both. With one thread, time is the processor's own, which other
processes cannot take away.

    python bench/learner.py [--threads 1] [--turns N] [--tokens-per-pass 2048]

With `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` in the environment, Linux may give tensors huge pages: up to 8 % faster.
The last line is the ratio at the default model in float32.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from stockpot import batching
from stockpot.algorithms import GRPO
from stockpot.policy import Learner, Policy
from stockpot.tasks.countdown import Countdown
from stockpot.types import Author, Prompt, Rollout, Span

RUN = "bench"
Type = Literal["float32", "bfloat16"]


def clock() -> float:
    """Seconds: of this process with one thread, of the world with more."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def shape(size: str) -> Any:
    """The config of a model."""
    if size == "default":
        return Countdown().model_config()
    return Qwen3Config(
        vocab_size=512, hidden_size=512, intermediate_size=1536, num_hidden_layers=10, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, tie_word_embeddings=True, max_position_embeddings=256,
    )  # fmt: skip


def ragged(count: int, vocabulary: int) -> list[Rollout]:
    """Rollouts in groups of 8: a prompt of 6 tokens, 10 to 80 of response, a reward by chance."""
    draw = random.Random(0)

    def one(number: int) -> Rollout:
        length = draw.randint(10, 80)
        written = [draw.randrange(vocabulary) for _ in range(length)]
        span = Span(Author(RUN, 0), written, [draw.uniform(-3, -1) for _ in range(length)])
        prompt = Prompt(str(number // 8), [draw.randrange(vocabulary) for _ in range(6)])
        return Rollout(prompt, (span,), reward=float(draw.random() < 0.5))

    return [one(number) for number in range(count)]


def operations(config: Any, model: Any, rollouts: Sequence[Rollout]) -> float:
    """The formula above."""
    lengths = [len(r.prompt.tokens) + len(r) for r in rollouts]
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    head = config.vocab_size * config.hidden_size * sum(len(r) for r in rollouts)
    attention = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return 6.0 * (blocks * sum(lengths) + head + attention * sum(n * (n + 1) for n in lengths))


def peak(dtype: torch.dtype, size: int = 2048, tries: int = 3) -> float:
    """Operations per second of the best of some square products."""
    a, b = torch.randn(2, size, size).to(dtype)
    times = []
    for _ in range(tries):
        start = clock()
        a @ b
        times.append(clock() - start)
    return 2.0 * size**3 / min(times)


def measure(size: str, dtype: Type, count: int, turns: int, tokens_per_pass: int) -> float:
    """The median over turns of achieved operations per second over the peak's."""
    torch.manual_seed(0)
    config = shape(size)
    model = AutoModelForCausalLM.from_config(config)
    policy = Policy(model, Learner(learning_rate=1e-5, tokens_per_pass=tokens_per_pass, dtype=dtype), run=RUN)
    rollouts = ragged(count, config.vocab_size)
    lengths = [len(r.prompt.tokens) + len(r) for r in rollouts]
    advantages = [(r.reward or 0.0) - 0.5 for r in rollouts]
    work = operations(config, model, rollouts)

    def step() -> tuple[float, float]:
        start = clock()
        batches = [
            batching.collate([rollouts[i] for i in chosen], [advantages[i] for i in chosen], run=RUN)
            for chosen in batching.split(lengths, tokens_per_pass)
        ]
        collated = clock()
        update = policy.update(batches, GRPO(), batching.totals(rollouts, 80))
        assert not update.skipped
        return clock() - start, collated - start

    step()  # the first steps of a process are slower
    step()
    times, collating, peaks, ratios = [], [], [peak(getattr(torch, dtype))], []
    for _ in range(turns):
        taken, of_it = step()
        peaks.append(peak(getattr(torch, dtype)))
        times.append(taken)
        collating.append(of_it / taken)
        ratios.append(work / taken / statistics.mean(peaks[-2:]))
    ratio, middle = statistics.median(ratios), statistics.median(times)
    millions, speed = sum(p.numel() for p in model.parameters()) / 1e6, work / middle / 1e9
    print(f"{size}, {millions:.2f}M parameters, {dtype}, {torch.get_num_threads()} thread(s), {count} rollouts")
    print(f"  step {middle:.2f} s ({min(times):.2f} to {max(times):.2f}), {sum(lengths) / middle:.0f} real tokens/s")
    print(f"  collating takes {statistics.median(collating):.1%} of it")
    print(f"  {speed:.0f} GFLOP/s; the peak is {statistics.median(peaks) / 1e9:.0f} (at best {max(peaks) / 1e9:.0f})")
    print(f"  turn by turn: {ratio:.3f} of the peak ({min(ratios):.3f} to {max(ratios):.3f})", flush=True)
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int)
    parser.add_argument("--tokens-per-pass", type=int, default=2048)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    measure("30m", "float32", 32, args.turns or 4, min(1024, args.tokens_per_pass))
    measure("30m", "bfloat16", 32, args.turns or 7, min(1024, args.tokens_per_pass))
    ratio = measure("default", "float32", 512, args.turns or 9, args.tokens_per_pass)
    print(f"ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
