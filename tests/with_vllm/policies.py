"""Policies of random weights with a vLLM beside each, requests of all sorts, and how far the two are apart."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="the vLLM sampler needs the environment of `make vllm`")

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from stockpot import lora
from stockpot.lora import LoRA
from stockpot.policy import Learner, Policy
from stockpot.samplers.vllm import VLLM, VLLMSampler
from stockpot.types import Author, Prompt, Request, Rollout, Sampling, Span

VOCAB, LIMIT, STOPS = 200, 256, (3, 7)
NOW, PAST = Author("run", 9), Author("run", 2)
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": LIMIT, "initializer_range": 0.08,
}  # fmt: skip
TIED, UNTIED = Qwen3Config(**SIZES, tie_word_embeddings=True), LlamaConfig(**SIZES | {"initializer_range": 0.04})
PLAIN = (Sampling(), Sampling(temperature=0.7), Sampling(temperature=1.3))
CUT = (
    Sampling(top_k=9), Sampling(temperature=1.4, top_k=20, top_p=0.8), Sampling(top_p=0.9), Sampling(min_p=0.1),
    Sampling(temperature=0.6, top_k=12, min_p=0.05),
)  # fmt: skip
ADAPTER = LoRA(rank=3, alpha=6.0)


def made(config: Any, folder: Path, rank: int = 0, dtype: Any = "float32") -> tuple[Policy, VLLMSampler]:
    """A policy, and a vLLM that was started from its folder."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    options = replace(ADAPTER, rank=rank)
    lora.adapt(model, options, base=str(folder))
    policy = Policy(model, Learner(lora=options, dtype=dtype), run="run")
    room = VLLM(memory_gb=0.1, dtype=dtype)
    return policy, VLLMSampler(str(folder), author=NOW, stop_tokens=STOPS, max_rows=48, options=room, lora=options)


def ragged(count: int, samplings: Sequence[Sampling], max_tokens: int = 40, repeats: int = 1) -> list[Request]:
    """Prompts of 1..100 tokens, every second with a prefix of 1..30 by two authors, the setups in turn."""
    draw, requests = random.Random(1), []
    for i in range(count):
        prompt = Prompt(f"p{i}", [draw.randrange(8, VOCAB) for _ in range(draw.randint(1, 100))])
        old = [draw.randrange(8, VOCAB) for _ in range(draw.randint(1, 30) if i % 2 else 0)]
        first = Span(PAST, old[:2], [-0.1] * len(old[:2]), kind="prefix", source=i)
        second = Span(Author("someone"), old[2:], kind="prefix", trained=False)
        prefix = tuple(span for span in (first, second) if len(span))
        for _ in range(repeats):
            room = draw.randint(31, max_tokens)
            requests.append(Request(prompt, len(requests), prefix, samplings[i % len(samplings)], room))
    return requests


def words(rollouts: Sequence[Rollout]) -> list[list[int]]:
    return [rollout.tokens.tolist() for rollout in rollouts]


def distances(policy: Policy, rollouts: Sequence[Rollout]) -> torch.Tensor:
    """|author's log-prob - learner's| of every token that vLLM wrote."""
    scores = policy.score(rollouts, "policy")
    pairs = zip(scores, rollouts, strict=True)
    found = [score[-len(r.spans[-1]) :].cpu() - torch.tensor(r.spans[-1].log_probs) for score, r in pairs]
    return torch.cat(found).abs()


def moved(policy: Policy, size: float = 0.05) -> None:
    """Somewhere else, as training would go."""
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in lora.moving(policy.model):
            parameter.add_(torch.randn_like(parameter) * size)


def send(policy: Policy, sampler: VLLMSampler, version: int) -> None:
    sampler.load(dict(lora.moving(policy.model)), version)
