"""The supervised start: a small model is made and taught the task's demonstrations."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from stockpot import batching, console, lora
from stockpot.algorithms import Supervised
from stockpot.config import Config, Start
from stockpot.models import pick_device
from stockpot.policy import Learner, Policy
from stockpot.prompts import load_prompts, only
from stockpot.tasks.base import SPLITS, EmbeddedTask
from stockpot.types import Author, Prompt, Rollout, Span, StockpotError


def teach(task: EmbeddedTask, start: Start, folder: Path, *, seed: int, device: str = "auto") -> float:
    """Make the task's model, teach it, and save it as a Hugging Face folder. Returns the last loss, in nats a token."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    tokenizer = task.tokenizer()
    model = AutoModelForCausalLM.from_config(task.model_config()).to(pick_device(device))
    learner = Learner(learning_rate=start.learning_rate, weight_decay=0.01, tokens_per_pass=2048)
    policy = Policy(model, learner, pad=tokenizer.pad_token_id)
    demonstrations = task.demonstrations(seed)
    loss = math.nan
    with console.bar("teaching", start.steps) as bar:
        for step in range(start.steps):
            rollouts = [demonstration(*next(demonstrations), tokenizer) for _ in range(start.batch)]
            policy.learner = replace(learner, learning_rate=start.learning_rate * schedule(step, start.steps))
            lengths = [len(r.prompt.tokens) + len(r) for r in rollouts]
            batches = [
                batching.collate(
                    [rollouts[i] for i in chosen], [1.0] * len(chosen), pad=policy.pad, device=policy.device
                )
                for chosen in batching.split(lengths, learner.tokens_per_pass)
            ]
            update = policy.update(batches, Supervised(), batching.totals(rollouts, max(lengths)), watch=False)
            if update.skipped:
                raise StockpotError(f"teaching failed at step {step}: {update.skipped}; lower --start.learning-rate.")
            loss = update.metrics["loss"]
            bar.advance(loss=loss)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except Exception as error:  # safetensors has errors of its own beside OSError
        raise StockpotError(f"cannot write the taught model into {folder} ({error}): free some space there.") from error
    return loss


def schedule(step: int, steps: int) -> float:
    """Factor on the learning rate: up over the first tenth, down to nothing along a cosine."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))


def demonstration(prompt: str, response: str, tokenizer: object) -> Rollout:
    """Text by an outsider as a rollout: one span, log-prob unknown, closed by the stop token."""
    encode = tokenizer  # a Hugging Face tokenizer is a function
    ids = encode(response)["input_ids"] + [tokenizer.eos_token_id]  # type: ignore[operator,attr-defined]
    span = Span(Author("demonstrations"), ids, kind="demonstration")
    return Rollout(Prompt(prompt, encode(prompt)["input_ids"], prompt), (span,), reward=1.0)  # type: ignore[operator]


def check(config: Config, task: EmbeddedTask) -> None:
    """Find a mistake in prompts or room before a minute goes into teaching."""
    load = {"context": getattr(task.model_config(), "max_position_embeddings", 0) or 0, "max_tokens": config.max_tokens}
    for split in SPLITS:
        found = load_prompts(task, split, task.tokenizer(), **load)
        only(found, config.only if split == "train" else "")


def prepare(config: Config, folder: Path) -> str:
    """Where the policy starts from: the model asked for, or the task's own, taught once into the run folder."""
    lora.ready(config.learner.lora)  # before a minute goes into teaching
    if config.model:
        return config.model
    if not (folder / "config.json").exists():
        assert isinstance(config.task, EmbeddedTask)
        check(config, config.task)
        aside = folder.with_name(f".{folder.name}.part")
        teach(config.task, config.start, aside, seed=config.seed, device=config.device)
        aside.rename(folder)
    return str(folder)
