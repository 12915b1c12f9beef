"""What to change where a plan does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from stockpot.plan.account import Plan


def cures(plan: Plan) -> list[str]:
    """Options that make it fit, tried in turn and kept together; empty where none of them can."""
    words: dict[str, str] = {}
    while not plan.fits:
        learning = plan.peak("learning") > plan.usable
        step = next(((flag, made) for flag, made in smaller(plan, learning) if made.needed < plan.needed), None)
        if step is None:
            return []
        flag, plan = step
        words[flag.split()[0]] = flag
    return list(words.values())


def smaller(plan: Plan, learning: bool) -> Iterator[tuple[str, Plan]]:
    """Changes that need less memory, the cheapest first, with the option that makes each."""
    config, learner = plan.config, plan.config.learner
    if not learning:
        if plan.rows > 1:
            yield f"--decode-rows {plan.rows // 2}", changed(plan, decode_rows=plan.rows // 2)
        return
    if not learner.gradient_checkpointing:
        made = replace(learner, gradient_checkpointing=True)
        yield "--learner.gradient-checkpointing", changed(plan, learner=made)
    if learner.tokens_per_pass > plan.longest_prompt + config.max_tokens:
        made = replace(learner, tokens_per_pass=learner.tokens_per_pass // 2)
        yield f"--learner.tokens-per-pass {made.tokens_per_pass}", changed(plan, learner=made)
    if learner.logits_mb > 64:
        made = replace(learner, logits_mb=learner.logits_mb // 2)
        yield f"--learner.logits-mb {made.logits_mb}", changed(plan, learner=made)
    if config.max_tokens > 256:
        yield f"--max-tokens {config.max_tokens // 2}", changed(plan, max_tokens=config.max_tokens // 2)


def changed(plan: Plan, **changes: object) -> Plan:
    """The plan of the configuration with these fields set."""
    return replace(plan, config=replace(plan.config, **changes))  # type: ignore[arg-type]
