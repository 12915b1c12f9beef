"""A supervised start from a file: examples packed into rows, loss on the response alone, resumable to the same bits."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stockpot import batching, checkpoints, console, lora
from stockpot.algorithms import Supervised
from stockpot.as_json import to_json
from stockpot.config import Config
from stockpot.models import load_model, load_tokenizer, pick_device
from stockpot.policy import Learner, Policy
from stockpot.prompts import pick, to_prompt
from stockpot.record import read_lines, write_whole
from stockpot.seeds import derive
from stockpot.start import schedule
from stockpot.tasks.base import EmbeddedTask
from stockpot.types import Author, Batch, Prompt, Rollout, Span, StockpotError


@dataclass(frozen=True)
class Course:
    """What is taught and how, beside the configuration."""

    data: Path
    """JSONL file with `prompt` and `completion`."""
    epochs: float = 3.0
    """Times round it."""
    pack: int = 512
    """Tokens of a row that several examples share; 0 gives each a row of its own."""
    checkpoint: int = 50
    """Updates between checkpoints."""

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.pack < 0 or self.checkpoint < 1:
            raise StockpotError("--epochs must be above 0, --pack 0 or more, --checkpoint at least 1.")

    def steps(self, examples: int, batch: int) -> int:
        """Updates that make so many times round."""
        return max(1, math.ceil(self.epochs * examples / batch))


def learn(config: Config, course: Course, folder: Path) -> dict[str, Any]:
    """Teach the file's examples and save the model as a Hugging Face folder; returns what is in its training.json.

    Work is done in a folder beside it: what is found there under the same conditions is gone on with. With
    `learner.lora.rank` an adapter of `config.model` is taught and saved, as peft has them.
    """
    torch.set_num_threads(config.threads)
    lora.ready(config.learner.lora)
    if config.learner.lora.rank and not config.model:
        raise StockpotError(
            "LoRA trains an adapter beside a model that stays as it is: name it with --model, or leave out "
            "--learner.lora.rank."
        )
    work = folder.with_name(f".{folder.name}.part")
    conditions = _conditions(config, course)
    _same(work, conditions)
    last = checkpoints.latest(work / "checkpoints", console.tell)
    begin = 0 if last is None else last.step
    model, tokenizer = _model(config, None if last is None else str(last.folder))
    examples, dropped = load_examples(course.data, tokenizer, getattr(model.config, "max_position_embeddings", 0) or 0)
    for why, number in sorted(dropped.items()):
        console.tell(f"{number} of {number + len(examples)} examples were left out: {why}")
    steps = course.steps(len(examples), config.start.batch)
    learner = replace(config.learner, learning_rate=config.start.learning_rate, warmup=0)
    policy = Policy(model, learner, pad=tokenizer.pad_token_id or 0)
    losses: list[float] = []
    if last is not None:
        policy.restore(last.folder)
        losses = json.loads((last.folder / LOSSES).read_text())
    checkpoints.rewind(work / "checkpoints", begin)
    _mark(work, conditions)

    def save(to: Path) -> None:
        policy.save(to)
        (to / LOSSES).write_text(json.dumps(losses))

    with console.bar("teaching", steps, done=begin) as bar:
        for step in range(begin, steps):
            losses.append(_step(policy, learner, examples, config, course, step, steps))
            bar.advance(loss=losses[-1], epoch=(step + 1) * config.start.batch / len(examples))
            if (step + 1) % course.checkpoint == 0 and step + 1 < steps:
                checkpoints.write(work / "checkpoints", step + 1, None, save)
                checkpoints.prune(work / "checkpoints", 1)
    told = {
        "examples": len(examples), "left_out": dict(sorted(dropped.items())), "steps": steps, "epochs": course.epochs,
        "response_tokens": sum(map(len, examples)), "losses": losses, **conditions,
    }  # fmt: skip
    _finish(policy, tokenizer, told, work, folder)
    return told


LOSSES = "losses.json"


def _model(config: Config, checkpoint: str | None) -> tuple[Any, Any]:
    """Model and tokenizer: those asked for, or the embedded task's own, made by the seed; weights of a checkpoint.

    With LoRA the model is frozen, and in it is the adapter of the checkpoint, or a new one.
    """
    device, options, wish = pick_device(config.device), config.learner.lora, config.learner.dtype
    if config.model:
        half = options.keeps_half(wish == "bfloat16" or (wish == "auto" and device.type == "cuda"))
        model = load_model(checkpoint or config.model, device, torch.bfloat16 if half else torch.float32)
        if not options.rank and lora.adapted(model):
            lora.merge(model)
        if checkpoint is None and lora.adapted(model):
            raise StockpotError(
                f"{config.model} is an adapter itself: `stockpot export` it, and teach what that writes."
            )
        lora.adapt(model, options, base=config.model, seed=derive(config.seed, "lora"))
        return model, load_tokenizer(config.model)
    assert isinstance(config.task, EmbeddedTask)
    if checkpoint:
        return load_model(checkpoint, device), config.task.tokenizer()
    from transformers import AutoModelForCausalLM

    torch.manual_seed(config.seed)
    return AutoModelForCausalLM.from_config(config.task.model_config()).to(device), config.task.tokenizer()


def _conditions(config: Config, course: Course) -> dict[str, Any]:
    """What decides the bits of the result."""
    if not course.data.is_file():
        raise StockpotError(f"there is no file of examples {course.data}: check its path.")
    told = {"learner": to_json(config.learner), "start": to_json(config.start), "task": to_json(config.task)}
    return {
        "data": hashlib.sha256(course.data.read_bytes()).hexdigest(), "model": config.model, "seed": config.seed,
        "epochs": course.epochs, "pack": course.pack, "checkpoint": course.checkpoint, "config": told,
    }  # fmt: skip


def _same(work: Path, conditions: dict[str, Any]) -> None:
    """Refuse to go on with work that was begun under other conditions."""
    marker = work / "conditions.json"
    if marker.exists() and json.loads(marker.read_text()) != json.loads(json.dumps(conditions)):
        raise StockpotError(
            f"{work} holds an unfinished start with other data or options: begin it again with those, or remove it."
        )


def _mark(work: Path, conditions: dict[str, Any]) -> None:
    """Note the conditions, now that nothing was found wrong with them."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        write_whole(work / "conditions.json", json.dumps(conditions))
    except OSError as error:
        why = error.strerror or error
        raise StockpotError(f"cannot write into {work} ({why}): name another folder with --out.") from error


def load_examples(path: Path, tokenizer: Any, context: int) -> tuple[list[Rollout], Counter[str]]:
    """The file's examples as rollouts by an outsider, and how many were left out and why."""
    examples: list[Rollout] = []
    dropped: Counter[str] = Counter()
    try:
        lines = list(read_lines(path))
    except ValueError as error:
        raise StockpotError(f"{path} is not JSON lines ({error}): write one object a line.") from error
    for number, line in enumerate(lines):
        if not isinstance(line, dict) or "completion" not in line:
            raise StockpotError(f"line {number + 1} of {path} is no object with prompt and completion: mend it.")
        completion = line["completion"]
        if isinstance(completion, list) and completion and isinstance(completion[-1], dict):
            completion = completion[-1].get("content")
        if not isinstance(completion, str) or not completion.strip():
            dropped["no text in the completion"] += 1
            continue
        prompt = to_prompt({"prompt": line.get("prompt", "")}, tokenizer, number)
        rollout = example(prompt, completion, tokenizer)
        if context and len(prompt.tokens) + len(rollout) > context:
            dropped[f"longer than the model's context of {context} tokens"] += 1
            continue
        examples.append(rollout)
    if not examples:
        raise StockpotError(f"{path} has no example that can be taught: it has {len(lines)} lines.")
    return examples, dropped


def example(prompt: Prompt, completion: str, tokenizer: Any) -> Rollout:
    """One span by nobody we know, closed by the stop token."""
    ids = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return Rollout(prompt, (Span(Author("examples"), ids, kind="demonstration"),), reward=1.0)


def _step(
    policy: Policy, learner: Learner, examples: Sequence[Rollout], config: Config, course: Course, step: int, steps: int
) -> float:
    """One update on the examples of a step; their order follows from the seed alone. Returns the loss."""
    torch.manual_seed(derive(config.seed, "sft", step))
    chosen = [examples[i] for i in pick(range(len(examples)), step, config.start.batch, config.seed)]
    policy.learner = replace(learner, learning_rate=learner.learning_rate * schedule(step, steps))
    batches = list(passes(chosen, course.pack, learner.tokens_per_pass, policy))
    update = policy.update(batches, Supervised(), batching.totals(chosen, max(map(len, chosen))), watch=False)
    if update.skipped:
        raise StockpotError(f"teaching failed at step {step}: {update.skipped}; lower --start.learning-rate.")
    return update.metrics["loss"]


def passes(chosen: Sequence[Rollout], pack: int, budget: int, policy: Policy) -> Iterator[Batch]:
    """Micro-batches: examples in rows of `pack` tokens, several to a row, with at most `budget` tokens to a pass.

    Longest first, so that the short ones fill what the long ones leave; one longer than a row gets a row of its own.
    """
    lengths = [len(r.prompt.tokens) + len(r) for r in chosen]
    if not pack:
        parts = list(batching.split(lengths, budget))
    else:
        width = max(pack, *lengths)
        room = max(1, budget // width) * width
        parts, used = [[]], 0
        for i in sorted(range(len(chosen)), key=lambda i: (-lengths[i], i)):
            if parts[-1] and used + lengths[i] > room:
                parts.append([])
                used = 0
            parts[-1].append(i)
            used += lengths[i]
    for part in parts:
        some = [chosen[i] for i in part]
        yield batching.collate(some, [1.0] * len(some), pack_to=pack, pad=policy.pad, device=policy.device)


def _finish(policy: Policy, tokenizer: Any, told: dict[str, Any], work: Path, folder: Path) -> None:
    """The model into its place, whole, and the work away."""
    made = work / "model"
    try:
        made.mkdir(parents=True, exist_ok=True)
        lora.save(policy.model, made) if lora.adapted(policy.model) else policy.model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        write_whole(made / "training.json", json.dumps(told, indent=1) + "\n")
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rmdir()  # an empty one that the user made
        made.rename(folder)
    except Exception as error:  # safetensors has errors of its own beside OSError
        raise StockpotError(f"cannot write the taught model into {folder} ({error}): free some space there.") from error
    shutil.rmtree(work, ignore_errors=True)
