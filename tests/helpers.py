"""Small things that several tests need: random rollouts, every algorithm with every option, a tiny model."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import random
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from stockpot import algorithms, batching
from stockpot.algorithms import Algorithm
from stockpot.types import Author, Batch, Prompt, Rollout, Sampling, Span, Totals

NOW = 120
RUN = "this-run"
LIVE = Author(RUN, NOW)
OLD = Author(RUN, 87)
VOCABULARY = 24
ROOM = 16
"""`Totals.max_tokens` wherever a test needs one."""


def concrete(kind: Any) -> bool:
    """Whether this is an algorithm that can be made."""
    return inspect.isclass(kind) and issubclass(kind, Algorithm) and not inspect.isabstract(kind)


def members() -> dict[str, Algorithm]:
    """What is public in `stockpot.algorithms` and makes an algorithm when called without arguments."""
    found: dict[str, Algorithm] = {}
    for name in algorithms.__all__:
        thing = getattr(algorithms, name)
        if concrete(thing) or (inspect.isfunction(thing) and not inspect.signature(thing).parameters):
            made = thing()
            if isinstance(made, Algorithm):
                found[name] = made
    return found


def defined_in_folder() -> set[type]:
    """Every concrete algorithm of any file in the folder, exported or not."""
    modules = [
        importlib.import_module(f"{algorithms.__name__}.{m.name}") for m in pkgutil.iter_modules(algorithms.__path__)
    ]
    return {kind for module in modules for kind in vars(module).values() if concrete(kind)}


def variants() -> dict[str, Algorithm]:
    """Every member, and every member with one choice (a Literal or a bool) made otherwise: options obey the laws."""
    found: dict[str, Algorithm] = {}
    for name, algorithm in members().items():
        found[name] = algorithm
        hints = get_type_hints(type(algorithm))
        for field in fields(algorithm):  # type: ignore[arg-type]
            hint, current = hints[field.name], getattr(algorithm, field.name)
            choices = get_args(hint) if get_origin(hint) is Literal else (True, False) if hint is bool else ()
            for choice in choices:
                if choice != current:
                    found[f"{name}({field.name}={choice})"] = replace(algorithm, **{field.name: choice})  # type: ignore[type-var]
    return found


def span(rng: random.Random, author: Author, length: int, *, known: bool = True, **details: Any) -> Span:
    """Random tokens, with log-probs in -3..0 that float32 holds exactly."""
    tokens = [rng.randrange(1, VOCABULARY) for _ in range(length)]
    log_probs = [-rng.randrange(1, 3 * 64) / 64 for _ in range(length)] if known else None
    return Span(author, tokens, log_probs, **details)


def rollout(rng: random.Random, *spans: Span, prompt: int = 3, reward: float | None = None) -> Rollout:
    """A rollout of these spans under a random prompt."""
    ids = [rng.randrange(1, VOCABULARY) for _ in range(prompt)]
    return Rollout(Prompt(str(ids), ids), spans, rng.random() if reward is None else reward)


def mixed(rng: random.Random, sampling: Sampling = Sampling()) -> list[Rollout]:
    """One rollout of every kind there is: live, old, old head and live tail, demonstration, untrained pieces."""
    tool = Author("a tool")
    return [
        rollout(rng, span(rng, LIVE, 5), prompt=2),
        rollout(rng, span(rng, OLD, 7, sampling=sampling), prompt=4),
        rollout(rng, span(rng, OLD, 3, kind="prefix"), span(rng, LIVE, 4)),
        rollout(rng, span(rng, OLD, 2, kind="prefix", trained=False), span(rng, LIVE, 3, sampling=sampling), prompt=5),
        rollout(rng, span(rng, Author("a textbook"), 4, known=False, kind="demonstration"), prompt=1),
        rollout(rng, span(rng, LIVE, 2), span(rng, tool, 3, known=False, trained=False), span(rng, LIVE, 1), prompt=6),
        rollout(rng, span(rng, tool, 3, known=False, trained=False), prompt=2),
    ]


def collate(rollouts: Sequence[Rollout], advantages: Sequence[Any] | None = None, **options: Any) -> Batch:
    """`batching.collate` in float64, seen from step NOW of this run."""
    given = advantages if advantages is not None else [r.reward - 0.5 for r in rollouts]  # type: ignore[operator]
    plain = {"run": RUN, "now": NOW, "dtype": torch.float64, "reference_log_probs": authors(rollouts)}
    return batching.collate(rollouts, given, **plain | options)


def authors(rollouts: Sequence[Rollout]) -> list[Tensor]:
    """What the authors gave their tokens, -1.25 where nobody knows: a reference that agrees with everybody."""
    given = [[p for s in r.spans for p in (s.log_probs or [-1.25] * len(s))] for r in rollouts]
    return [torch.tensor(one, dtype=torch.float64) for one in given]


def totals(rollouts: Sequence[Rollout]) -> Totals:
    return batching.totals(rollouts, ROOM)


def authors_own(batch: Batch) -> Tensor:
    """Log-probs of a policy that agrees with every author: the on-policy case. Unknown authors get some number."""
    return torch.where(batch.known, batch.author_log_probs, -1.25).requires_grad_()


def somewhere_else(batch: Batch, seed: int = 0, spread: float = 0.3) -> Tensor:
    """Log-probs of a policy that has moved away from its authors."""
    noise = torch.randn(len(batch.tokens), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (authors_own(batch).detach() + spread * noise).requires_grad_()


def grouped(rollouts: Sequence[Rollout], size: int) -> Iterator[tuple[Rollout, ...]]:
    """Consecutive groups."""
    return (tuple(rollouts[i : i + size]) for i in range(0, len(rollouts), size))


def tiny_model(seed: int = 0) -> Any:
    """A real Qwen3 of a few thousand parameters, in float64, so that differences are bugs and not rounding."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.4,
    )
    return Qwen3ForCausalLM(config).double()
