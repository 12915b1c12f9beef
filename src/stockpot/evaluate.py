"""Held-out measurement: pass@k without bias, with intervals. It never writes to the history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stockpot.config import Evaluation
from stockpot.engines.base import Engine
from stockpot.passk import Estimate, bootstrap, mean_pass_at_k
from stockpot.rewards.score import RewardFunction
from stockpot.tasks.base import Task
from stockpot.types import Prompt, Request, Rollout


@dataclass(frozen=True)
class Result:
    """What an evaluation found."""

    pass_at: dict[int, Estimate]
    """pass@k for k = 1, 2, 4, ... up to the number of samples."""
    entropy: Estimate
    """Nats per token: minus the mean log-prob of the tokens sampled, which estimates it without bias."""
    length: float
    """Mean response length in tokens."""
    truncated: float
    """Share of responses that ran out of room."""
    unjudged: int
    """Responses that the reward function could not judge, counted as wrong."""
    rollouts: tuple[Rollout, ...]
    distinct: Estimate | None = None
    """Different right answers among a prompt's samples, where the task can tell answers apart."""
    observed: dict[str, float] = field(default_factory=dict)
    """What the task has to say about its responses."""

    def metrics(self) -> dict[str, float]:
        """As a line of metrics.jsonl has them."""
        ends = {k: estimate for k, estimate in self.pass_at.items() if k in (1, max(self.pass_at))}
        return {
            **{f"test/pass@{k}": estimate.mean for k, estimate in self.pass_at.items()},
            **{f"test/pass@{k}/low": estimate.low for k, estimate in ends.items()},
            **{f"test/pass@{k}/high": estimate.high for k, estimate in ends.items()},
            "test/entropy": self.entropy.mean,
            "test/length": self.length,
            "test/truncated": self.truncated,
            "test/unjudged": float(self.unjudged),
            **({} if self.distinct is None else {"test/distinct": self.distinct.mean}),
            **self.observed,
        }


def evaluate(
    engine: Engine,
    prompts: Sequence[Prompt],
    reward: RewardFunction,
    how: Evaluation,
    *,
    max_tokens: int,
    seed: int,
    task: Task | None = None,
) -> Result:
    """Sample every prompt, judge, count. A response is right when its reward is above 0.5.

    The task tells how many different answers some right ones are, and what else it sees in its responses.
    """
    prompts = prompts[: how.prompts]
    requests = [
        Request(prompt, key=i * how.samples + j, sampling=how.sampling, max_tokens=max_tokens)
        for i, prompt in enumerate(prompts)
        for j in range(how.samples)
    ]
    rollouts, unjudged = engine.judge(engine.sample(requests, seed), reward)
    counts = [(how.samples, c) for c in correct(rollouts, how.samples)]
    lengths = [len(r) for r in rollouts]
    surprise = [-sum(r.spans[-1].log_probs or [0.0]) for r in rollouts]
    mean_length = sum(lengths) / len(lengths)
    return Result(
        pass_at={k: mean_pass_at_k(counts, k) for k in sizes(how.samples, how.ks)},
        entropy=bootstrap([s / mean_length for s in surprise], resamples=200),
        length=mean_length,
        truncated=sum(r.finish == "length" for r in rollouts) / len(rollouts),
        unjudged=unjudged,
        rollouts=tuple(rollouts),
        distinct=None if task is None else variety(rollouts, how.samples, task.distinct, engine.tokenizer),
        observed={} if task is None else observe(rollouts, task, engine.tokenizer, "test"),
    )


def variety(
    rollouts: Sequence[Rollout], samples: int, distinct: Callable[[Sequence[str]], int | None], tokenizer: Any
) -> Estimate | None:
    """How many different right answers a prompt's samples hold, in the mean; None where the task cannot tell."""
    counts = []
    for first in range(0, len(rollouts), samples):
        right = [list(r.tokens) for r in rollouts[first : first + samples] if (r.reward or 0.0) > 0.5]
        count = distinct(tokenizer.batch_decode(right, skip_special_tokens=True))
        if count is None:
            return None
        counts.append(float(count))
    return bootstrap(counts)


def observe(rollouts: Sequence[Rollout], task: Task, tokenizer: Any, where: str) -> dict[str, float]:
    """What the task has to say about rollouts that have their rewards, as metrics named `where`/...

    A task that says nothing costs nothing: no text is made for it.
    """
    if not rollouts or type(task).observe is Task.observe:
        return {}
    texts = tokenizer.batch_decode([list(r.tokens) for r in rollouts], skip_special_tokens=True)
    told = task.observe(texts, [r.reward or 0.0 for r in rollouts])
    return {f"{where}/{name}": float(value) for name, value in told.items()}


def correct(rollouts: Sequence[Rollout], samples: int) -> list[int]:
    """How many of each prompt's samples are right, where they lie prompt by prompt."""
    right = [(rollout.reward or 0.0) > 0.5 for rollout in rollouts]
    return [sum(right[first : first + samples]) for first in range(0, len(right), samples)]


def sizes(samples: int, further: Sequence[int] = ()) -> list[int]:
    """The k of pass@k: 1, 2, 4, ... and the number of samples itself, and what else is asked for.

    >>> sizes(6), sizes(20, (10,))
    ([1, 2, 4, 6], [1, 2, 4, 8, 10, 16, 20])
    """
    return sorted({*(2**i for i in range(20) if 2**i < samples), samples, *further})
