"""What to change where a plan does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from stockpot.plan.account import Plan
from stockpot.plan.layout import Place, together

MOST = 1024
"""Devices that are tried at most."""


def cures(plan: Plan, devices: int = 1) -> list[str]:
    """Options that make it fit, tried in turn and kept together; empty where none of them can."""
    words: dict[str, str] = {}
    place = together(plan, devices)
    while place.needed > plan.usable:
        learning = place.peak("learning") > plan.usable
        tried = ((flag, made, together(made, devices)) for flag, made in smaller(plan, place, learning))
        step = next((found for found in tried if found[2].needed < place.needed), None)
        if step is None:
            return []
        flag, plan, place = step
        words[flag.split()[0]] = flag
    return list(words.values())


def more(plan: Plan, devices: int) -> int:
    """Devices of this kind on which it fits as it is, more than there are; 0 where more do not help."""
    tried = (n for n in range(devices + 1, MOST) if n <= 16 or n % 8 == 0)
    return next((n for n in tried if together(plan, n).needed <= plan.usable), 0) if plan.device != "cpu" else 0


def smaller(plan: Plan, place: Place, learning: bool) -> Iterator[tuple[str, Plan]]:
    """Changes that need less memory, the cheapest first, with the option that makes each."""
    config, learner, rows = plan.config, plan.config.learner, place.plan.rows
    if not learning:
        if rows > 1:
            yield f"--decode-rows {rows // 2}", changed(plan, decode_rows=rows // 2)
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
