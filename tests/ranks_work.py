"""What test_ranks has several processes do: `python ranks_work.py WORLD FOLDER` runs all cases of one world.

Every case is a short life of a learner; what it ends with is written down for the test to compare.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from stockpot import scoring
from stockpot.algorithms import GRPO, PPO
from stockpot.config import Config
from stockpot.engines.base import Lesson
from stockpot.engines.ranks import Rank
from stockpot.learner import Learner
from stockpot.lora import LoRA
from stockpot.regularizers import KL, EntropyBonus
from stockpot.types import Author, Prompt, Rollout, Span
from tiny import recipe

RUN = "the-run"
LENGTHS = (31, 2, 17, 1, 9, 24, 5)
"""Of responses: uneven, so that learners have different numbers of passes."""


def base(**learner: Any) -> Config:
    """A configuration without what only a whole run needs."""
    # not cut, where nothing else is said: a gradient that is cut to a norm does not show its size
    options = {"learning_rate": 1e-3, "max_grad_norm": 1e9, "dtype": "float32", "weight_decay": 0.1}
    return replace(
        recipe, algorithm=GRPO(), entropy=EntropyBonus(0.01), kl=KL(), max_tokens=32, threads=1, device="cpu",
        learner=Learner(**options | learner),
    )  # fmt: skip


MOVING = KL(0.05, reference="ema", rate=0.25)
CASES: dict[str, Config] = {
    "fsdp": replace(base(tokens_per_pass=48), kl=MOVING),
    "ddp": replace(base(tokens_per_pass=48, parallel="ddp"), kl=MOVING),
    "fsdp-lora": replace(base(tokens_per_pass=48, lora=LoRA(rank=3)), kl=MOVING),
    "ddp-lora": replace(base(tokens_per_pass=48, lora=LoRA(rank=3), parallel="ddp"), kl=KL(0.05)),
    "fsdp-recompute": base(tokens_per_pass=48, gradient_checkpointing=True, logits_mb=1, max_grad_norm=0.05),
    "ddp-recompute": base(
        tokens_per_pass=48, gradient_checkpointing=True, logits_mb=1, max_grad_norm=0.05, parallel="ddp"
    ),
    "fsdp-bf16": base(dtype="bfloat16"),
    "ddp-bf16": base(dtype="bfloat16", parallel="ddp"),
    "fsdp-lora-bf16": base(dtype="bfloat16", lora=LoRA(rank=3)),
    "fsdp-critic": replace(base(tokens_per_pass=48), algorithm=PPO()),
    "ddp-critic": replace(base(tokens_per_pass=48, parallel="ddp"), algorithm=PPO()),
}
MODELS = dict.fromkeys(("fsdp-recompute", "ddp-recompute", "fsdp-critic"), "tied")
"""Which model's folder a case starts from, where it is not the one without tied embeddings."""
SPOILT = ("fsdp", "ddp", "fsdp-lora")


def rollouts(seed: int = 0, count: int = len(LENGTHS)) -> tuple[Rollout, ...]:
    """Rollouts of every kind, of uneven lengths."""
    rng = random.Random(seed)
    live, old = Author(RUN, 0), Author("another", 7)

    def one(i: int, length: int) -> Rollout:
        ids = [rng.randrange(3, 250) for _ in range(length)]
        spans: tuple[Span, ...] = (Span(live, ids),)
        if i % 3 == 2:
            head = length // 2
            spans = (Span(old, ids[:head], kind="prefix", trained=i % 2 == 0), Span(live, ids[head:]))
        return Rollout(Prompt(str(i), [rng.randrange(3, 250) for _ in range(2 + i)]), spans, rng.random())

    return tuple(one(i, length) for i, length in enumerate(LENGTHS[:count]))


def lesson(of: Any, config: Config, seed: int = 0, count: int = len(LENGTHS)) -> Lesson:
    """What authors and the reference gave the tokens lies near what the policy gives them: most are not clipped."""
    given, scores = rollouts(seed, count), of.score(rollouts(seed, count), "policy")
    draw = torch.Generator().manual_seed(seed)

    def noise(like: Tensor, size: float) -> Tensor:
        return size * (2 * torch.rand(len(like), generator=draw) - 1)

    written = []
    for rollout, scored in zip(given, scores, strict=True):
        near = (scored + noise(scored, 0.2)).split([len(span) for span in rollout.spans])
        spans = (replace(s, log_probs=n.tolist()) for s, n in zip(rollout.spans, near, strict=True))
        written.append(replace(rollout, spans=tuple(spans)))
    advantages = tuple((2 * torch.rand(count, generator=draw) - 1).tolist())
    values = tuple(noise(s, 1.0) for s in scores) if isinstance(config.algorithm, PPO) else None
    returns = tuple(v + noise(v, 1.0) for v in values) if values else None
    reference = tuple(s + noise(s, 0.5) for s in scores) if config.kl.active else None
    return Lesson(tuple(written), advantages, tuple(i // 2 for i in range(count)), reference, values, returns)


def watched(rank: Any, whole: Any) -> list[dict[str, Tensor]]:
    """Gradients of each step, as the optimiser gets them."""
    seen: list[dict[str, Tensor]] = []
    policy, step = rank.policy, rank.policy.optimizer.step

    def look(*words: Any) -> None:
        seen.append(whole([(n, p.grad) for n, p in policy.model.named_parameters() if p.grad is not None]))
        step(*words)

    policy.optimizer.step = look
    return seen


def whole(rank: Rank, tensors: Any) -> dict[str, Tensor]:
    if rank.world == 1:
        return {name: tensor.detach().clone() for name, tensor in tensors}
    return rank.group.whole(tensors)  # type: ignore[attr-defined]


def live(rank: Rank, config: Config) -> dict[str, Any]:
    """Score, step, step, and what there is then."""
    # a megabyte is far more than this vocabulary's logits need: there, chunks of some five tokens are forced
    scoring.COPIES = 200 if config.learner.logits_mb == 1 else 4
    grads = watched(rank, lambda tensors: whole(rank, tensors))
    given = lesson(rank, config)
    found: dict[str, Any] = {"before": rank.score(given.rollouts, "policy")}
    if config.needs_reference:
        found["reference"] = rank.score(given.rollouts, "reference")
    found["update"] = rank.learn(given, 1)
    rank.advance(1)
    found["weights"] = rank.weights()
    rank.learn(lesson(rank, config, 1, count=1), 2)  # most have no rollout at all
    rank.advance(2)
    found["after"] = rank.score(given.rollouts, "policy")
    if config.needs_reference:
        found["reference after"] = rank.score(given.rollouts, "reference")
    if isinstance(config.algorithm, PPO):
        found["values after"] = rank.score(given.rollouts, "critic")
    found["grads"] = list(grads)  # of these steps, not of later ones
    found["held"] = held(rank)
    return found


def held(rank: Rank) -> dict[str, int]:
    """Numbers that this process has of weights and moments, and how many there are in all."""
    state = rank.policy.optimizer.state.values()
    tensors = {"weights": list(rank.policy.model.parameters()), "moments": [entry["exp_avg"] for entry in state]}
    own = {what: sum(getattr(t, "_local_tensor", t).numel() for t in some) for what, some in tensors.items()}
    return own | {f"{what} in all": sum(t.numel() for t in some) for what, some in tensors.items()}


def spoilt(rank: Rank, config: Config) -> dict[str, Any]:
    """A loss that is no number on one learner."""
    given = lesson(rank, config)
    before = rank.weights()
    update = rank.learn(replace(given, advantages=(math.nan, *given.advantages[1:])), 1)
    after = rank.weights()
    same = all(torch.equal(before[name], after[name]) for name in before)
    return {"skipped": update.skipped, "same": same, "steps": update.metrics["skipped_steps"]}


SAVED = ("fsdp", "ddp", "fsdp-lora", "fsdp-critic")
"""Cases whose checkpoint, after two steps of a group of two, is gone on from."""
GONE_ON = {
    1: ("fsdp", "ddp", "fsdp-lora", "fsdp-critic"),
    2: (),
    4: ("fsdp", "ddp", "fsdp-lora", "fsdp-critic", "fsdp from ddp", "ddp from fsdp"),
}
"""By the number that goes on: a case, or one from the checkpoint of another."""


def go_on(one: Rank, config: Config) -> tuple[dict[str, float], dict[str, Tensor], list[Tensor]]:
    """The third step, and what there is then."""
    given = lesson(one, config, 3)
    update = one.learn(given, 3)
    one.advance(3)
    of = "reference" if config.needs_reference else "policy"
    return update.metrics, one.weights(), one.score(given.rollouts, of)  # type: ignore[arg-type]


def run(rank: int, world: int, folder: Path) -> None:
    """All cases, one group after the other."""
    found: dict[str, Any] = {}

    def learner(name: str, purpose: str, source: str = "", version: int = 0) -> Rank:
        meeting, model = f"file://{folder}/meeting-{world}-{name}-{purpose}", str(folder / MODELS.get(name, "model"))
        return Rank(CASES[name], RUN, source or model, model, version, rank=rank, world=world, meeting=meeting)

    for name, config in CASES.items():
        one = learner(name, "live")
        found[name] = live(one, config)
        if name in SAVED and world == 2:
            out = folder / f"saved-{name}"
            out.mkdir(exist_ok=True)
            one.save(out)
            if rank == 0:
                (folder / f"saved-{name}.done").touch()
            found[name]["next"] = go_on(one, config)
        if name in SPOILT:
            found[name]["spoilt"] = spoilt(one, config)
        one.close()
    for words in GONE_ON[world]:
        name, _, other = words.partition(" from ")
        source = folder / f"saved-{other or name}"
        wait_for(source.with_suffix(".done"))
        one = learner(name, f"on-{other}", str(source), 2)
        found[f"{words}, gone on"] = go_on(one, CASES[name])
        one.close()
    torch.save(found, folder / f"found-{world}-{rank}.pt")


def wait_for(path: Path, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(str(path))
        time.sleep(0.05)


def main(world: int, folder: Path) -> int:
    """Start the processes by fork, so that libraries are imported once."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run, args=(rank, world, folder)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode or 0) for process in processes)


if __name__ == "__main__":
    import transformers  # noqa: F401

    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
