"""Tokens and operations of one step: what follows from the mathematics, on whatever devices it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot.plan.base import Operations, Tokens
from stockpot.plan.lengths import mean_prefix, selected, taken_whole, whole_passes
from stockpot.prefixes import LiveRule

if TYPE_CHECKING:
    from stockpot.plan.account import Plan


def tokens(plan: Plan) -> Tokens:
    """Of a step that has the prefixes it asks for."""
    config, mean = plan.config, plan.assumed.response * plan.config.max_tokens
    prefixed = config.prompts_per_step * config.prefixes.wanted(config.group_size, config.steps)
    whole, live = taken_whole(config.prefixes), isinstance(config.prefixes, LiveRule)
    prefix = mean if whole else mean_prefix(config, mean)
    rollouts = config.prompts_per_step * config.group_size
    heads = prefixed * prefix
    untrained = getattr(config.prefixes, "gradient", "ratio") == "none"
    continued = 0 if whole else prefixed
    return Tokens(
        rollouts=rollouts,
        prefixed=prefixed,
        decoded_most=rollouts * config.max_tokens,
        decoded=rollouts * mean - heads,
        saved=0.0 if live else heads,
        heads=heads if live else 0.0,
        prefilled=config.prompts_per_step * plan.mean_prompt + continued * (plan.mean_prompt + prefix),
        learned=(rollouts * mean - (heads if untrained else 0)) * selected(config),
    )


def operations(plan: Plan) -> Operations:
    """Of the same step: 2 per parameter and token forward, twice that backward; attention, causal, beside it."""
    shape, config, counted = plan.shape, plan.config, tokens(plan)
    response = plan.assumed.response * config.max_tokens
    attention = 2 * shape.layers * shape.heads * shape.head_dim
    head = 2 * shape.embedding
    each_token = 2 * shape.blocks + head + 2 * attention * (plan.mean_prompt + response / 2)
    decode = (counted.decoded + counted.heads) * each_token

    def forward(length: float) -> float:
        return 2 * shape.blocks * length + attention * length * (length + 1)

    prefill = config.prompts_per_step * forward(plan.mean_prompt)
    if counted.prefixed and not taken_whole(config.prefixes):
        prefix = (counted.saved + counted.heads) / counted.prefixed
        prefill += counted.prefixed * forward(plan.mean_prompt + prefix)
    whole = whole_passes(config.algorithm)
    scored = 1 + config.kl.in_advantage if config.kl.active and not whole else 0
    each = 2 if plan.adapter else 3  # the frozen weights have no gradient, what passes through them has
    taught = (each + config.learner.gradient_checkpointing) * config.epochs
    passes = taught + scored + bool(plan.critic) + taught * (plan.critic == "separate")
    chunked = plan.pass_tokens * plan.logits_row > config.learner.logits_mb * 2**20
    heads = (each + chunked) * config.epochs + scored
    learned = counted.rollouts * selected(config)
    learn = learned * (passes * forward(plan.mean_prompt + response) + heads * head * response)
    learn += counted.rollouts * whole * (forward(plan.mean_prompt + response) + head * response)
    return Operations(decode, prefill, learn)
