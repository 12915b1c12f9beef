"""The whole of a run in one frozen value: components and numbers, all of them overridable from the command line."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal

from stockpot.algorithms import GRPO, LUFFY, M2PO, RLOO, SPO, TOPR, Algorithm, ExGRPO
from stockpot.algorithms.base import ActorCritic
from stockpot.as_json import load_file
from stockpot.mismatch import Correction
from stockpot.policy import Learner
from stockpot.prefixes import FromCheckpoints, FromHistory, Offline, PrefixRule, StoredRule
from stockpot.regularizers import KL, EntropyBonus
from stockpot.rewards.penalties import Penalties
from stockpot.samplers.vllm import VLLM
from stockpot.samplers.vllm import check as check_vllm
from stockpot.selection import Select
from stockpot.tasks.base import EmbeddedTask, Task
from stockpot.tasks.countdown import Countdown
from stockpot.types import Sampling, StockpotError


@dataclass(frozen=True)
class Start:
    """The supervised start: how an embedded model is taught before it learns by itself. Unused with `--model`."""

    steps: int = 1200
    """Updates on fresh demonstrations."""
    batch: int = 64
    """Demonstrations per update."""
    learning_rate: float = 4e-3
    """Peak; it rises for a tenth of the steps and falls to nothing along a cosine."""


@dataclass(frozen=True)
class Evaluation:
    """How the held-out prompts are measured, before, during and after."""

    samples: int = 16
    """Samples per prompt: pass@k is drawn for k = 1, 2, 4, ... up to it."""
    prompts: int = 128
    """Held-out prompts used, from the head of the test split."""
    every: int = 20
    """Steps between evaluations; 0 evaluates only before and after."""
    sampling: Sampling = Sampling()
    """The distribution evaluated."""
    ks: tuple[int, ...] = ()
    """Further k that pass@k is drawn for, such as 10."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.prompts < 1 or self.every < 0:
            raise StockpotError("evaluation.samples and prompts must be at least 1, evaluation.every at least 0.")
        if not all(1 <= k <= self.samples for k in self.ks):
            raise StockpotError(f"evaluation.ks must lie in 1..{self.samples}: pass@k needs at least k samples.")


@dataclass(frozen=True)
class Config:
    """One run. The defaults are the embedded recipe: SOUP prefixes from history over GRPO, on countdown."""

    task: Task = Countdown()
    """Prompts and reward."""
    model: str = ""
    """A model folder or hub id to start from; empty: the task's own small model, taught first."""
    start: Start = Start()
    """The supervised start of the task's own model."""
    algorithm: Algorithm = GRPO()
    """Advantages and loss."""
    prefixes: PrefixRule = FromHistory()
    """Which rollouts begin with what a past policy wrote."""
    entropy: EntropyBonus = EntropyBonus()
    """Entropy bonus, added to any algorithm."""
    kl: KL = KL()
    """KL to a reference, added to any algorithm."""
    learner: Learner = Learner(learning_rate=2e-4, tokens_per_pass=2048)
    """The optimiser and its memory."""
    sampling: Sampling = Sampling()
    """The distribution that rollouts are drawn from, and at which log-probs, ratios and entropy are taken."""
    penalties: Penalties = Penalties()
    """What is taken off the rewards of training: repetition, responses out of room, garbled text."""
    select: Select = Select()
    """Which of a step's rollouts are trained on, and whether groups that teach nothing make way for others."""
    only: str = ""
    """Train on the prompts that this file names, and no others: what `stockpot select` wrote. Empty: on all."""
    evaluation: Evaluation = Evaluation()
    """Held-out measurement."""
    steps: int = 100
    """Steps of the arrow: prompt -> prefix -> continuation -> reward -> advantage -> loss -> update -> history."""
    prompts_per_step: int = 32
    """Prompts in a step."""
    group_size: int = 8
    """K: rollouts of each prompt."""
    max_tokens: int = 96
    """Room for a response, its prefix included."""
    sampler: Literal["torch", "vllm"] = "torch"
    """Who writes the rollouts: the reference sampler, or vLLM where it is installed (docs/vllm.md)."""
    vllm: VLLM = VLLM()
    """How vLLM runs."""
    correction: Correction = Correction()
    """What is done about tokens that sampler and learner find far from equally likely."""
    decode_rows: int = 256
    """Most rollouts decoded at one time: it bounds the memory of keys and values, not the result."""
    updates_per_step: int = 1
    """Optimiser steps that a step's rollouts are split over, whole groups to each."""
    refresh_every: int = 1
    """Steps between the moments when the policy that writes gets the weights of the one that learns (SPO takes 10).
    In between the rollouts are by an older version, and say so."""
    epochs: int = 1
    """Times that a step's rollouts are learnt from, one pass after the other, with the advantages of the first."""
    checkpoint_every: int = 20
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay; the best one stays beside them."""
    seed: int = 0
    """Everything random follows from it."""
    threads: int = 1
    """Processor threads. One is safe: two on shared cores wait for each other, and small models gain little. Part of
    the configuration, because sums come out in another order with another number."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model lives; auto takes the best there is."""
    engine: Literal["local", "ray"] = "local"
    """Where the work is done: local is this process; ray spreads it over processes and machines, and restarts them."""
    learners: int = 1
    """Processes that learn together. More than one, and what follows, with --engine ray."""
    samplers: int = 1
    """Processes that write rollouts."""
    reward_workers: int = 0
    """Processes that judge rollouts; 0: they are judged where the loop runs."""
    ahead: int = 0
    """Steps that samplers may be ahead of the learner: no token is older than that when it is first trained on (with
    refresh_every above 1: than it says). 0: they wait for each other."""
    loggers: tuple[Literal["trackio", "wandb", "tensorboard"], ...] = ()
    """Where metrics go besides metrics.jsonl."""

    def __post_init__(self) -> None:
        for name in (
            "prompts_per_step",
            "group_size",
            "max_tokens",
            "decode_rows",
            "updates_per_step",
            "refresh_every",
            "epochs",
            "checkpoint_every",
            "keep_checkpoints",
            "threads",
            "learners",
            "samplers",
        ):
            if getattr(self, name) < 1:
                raise StockpotError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("steps", "reward_workers", "ahead"):
            if getattr(self, name) < 0:
                raise StockpotError(f"{name} must be 0 or more, not {getattr(self, name)}.")
        if self.group_size < 2 and isinstance(self.algorithm, (GRPO, RLOO, M2PO, TOPR, LUFFY, ExGRPO)):
            raise StockpotError(
                f"{type(self.algorithm).__name__} compares the rollouts of a group: group_size must be at least 2 "
                "(or use --algorithm reinforce --algorithm.no-baseline)."
            )
        if self.prompts_per_step % self.updates_per_step:
            raise StockpotError("prompts_per_step must be a multiple of updates_per_step: groups are not split.")
        if self.kl.centred and isinstance(self.algorithm, ActorCritic):
            raise StockpotError(
                "kl.centred compares the rollouts of a group, but a critic is the baseline: turn it off."
            )
        if self.sampling.temperature == 0:
            raise StockpotError("sampling.temperature must be above 0 in training: greedy rollouts teach nothing.")
        if isinstance(self.prefixes, FromHistory) and self.prefixes.where == "step" and not self.task.step_words:
            raise StockpotError(
                f"prefixes.where is step, but {type(self.task).__name__} names no words that end a step: cut elsewhere."
            )
        rule = self.prefixes
        longest = rule.cut_tokens if isinstance(rule, FromHistory) and rule.where == "tokens" else 0
        longest = rule.longest if isinstance(rule, FromCheckpoints) else longest
        if longest >= self.max_tokens:
            raise StockpotError(
                f"a prefix of {longest} tokens leaves no room for a continuation: max_tokens is {self.max_tokens}."
            )
        self.correction.check(self.algorithm)
        if self.sampler == "vllm":
            check_vllm(self.sampling)
            check_vllm(self.evaluation.sampling)
        self._check_select()
        self._check_soft()
        if self.learner.lora.rank and isinstance(self.algorithm, ActorCritic) and self.algorithm.critic.kind != "head":
            raise StockpotError(
                "a separate critic would be a second whole model beside the adapter: set algorithm.critic.kind to head."
            )
        if not self.model and not isinstance(self.task, EmbeddedTask):
            raise StockpotError(f"{type(self.task).__name__} brings no model of its own: give one with --model.")

    def _check_select(self) -> None:
        """What does not go together with training on a part of each group, or asking again."""
        self.select.check(self.group_size)
        if self.select.size == 1 and self.select.advantages == "subset":
            raise StockpotError(
                "select.advantages is subset, but a subset of one has nothing to compare with: use all."
            )
        if self.select.refill and isinstance(self.prefixes, StoredRule) and self.prefixes.invites:
            raise StockpotError(
                f"select.refill asks further prompts, but {type(self.prefixes).__name__} chooses the prompts itself: "
                "set select.refill to 0 or take other prefixes."
            )
        if self.select.refill and isinstance(self.algorithm, (SPO, ActorCritic)):
            raise StockpotError(
                f"select.refill drops groups whose rewards are all equal, but {type(self.algorithm).__name__} learns "
                "from them: set select.refill to 0."
            )
        if self.select.size and self.select.advantages == "subset" and isinstance(self.algorithm, SPO):
            raise StockpotError(
                "select.advantages is subset, but SPO's Q0 is the prompt's own, and rollouts chosen by their rewards "
                "would bias it: use all."
            )

    def _check_soft(self) -> None:
        """What does not go together around SPO and weights that are refreshed late."""
        if self.refresh_every > 1 and isinstance(self.algorithm, (LUFFY, ExGRPO)):
            raise StockpotError(
                f"{type(self.algorithm).__name__} knows the live policy's tokens by their age 0, which a late "
                "policy's have not: refresh_every must be 1."
            )
        if isinstance(self.prefixes, Offline) and not self.prefixes.path:
            raise StockpotError("prefixes.path names no file: give a history or a JSONL of solutions.")
        if not isinstance(self.algorithm, SPO):
            return
        if self.kl.in_advantage:
            raise StockpotError("SPO holds the policy to the reference by itself: kl.estimator k1 has no place beside.")
        if self.algorithm.q0 == "reference" and self.kl.reference != "frozen":
            raise StockpotError(
                f"algorithm.q0 reference is estimated once, from a frozen reference, but kl.reference is "
                f"{self.kl.reference}: set algorithm.q0 to online or group."
            )
        if self.algorithm.q0 == "group" and self.group_size < 2:
            raise StockpotError("algorithm.q0 group compares the rollouts of a group: group_size must be at least 2.")

    @property
    def needs_reference(self) -> bool:
        """Whether the reference must be there: for a KL, or for an algorithm that reads its log-probs."""
        return self.kl.active or self.algorithm.needs_reference

    def writer(self, now: int) -> int:
        """The version that writes at step `now`."""
        return now - now % self.refresh_every

    def begins(self, now: int) -> range:
        """Steps whose rollouts may be begun at step `now`: with late weights, those that the same version writes."""
        last = (
            now + self.ahead
            if self.refresh_every == 1
            else min(now + self.ahead, self.writer(now + self.refresh_every) - 1)
        )
        return range(now, min(last + 1, self.steps))


def load_recipe(name: str) -> Config:
    """A recipe by its name in `stockpot.recipes`, or a Python file; either holds a `recipe = Config(...)`."""
    known = f"stockpot.recipes.{name.replace('-', '_')}"
    module = load_file(name) if name.endswith(".py") else importlib.import_module(known)
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Config):
        raise StockpotError(f"the recipe {name} defines no `recipe = Config(...)`.")
    return recipe
