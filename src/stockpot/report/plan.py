"""A plan as a person reads it: the model, memory by part, tokens and operations of a step, everything assumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from rich.console import Console
from rich.table import Table

from stockpot.config import Config
from stockpot.options import PlanOptions
from stockpot.plan import DEVICES, Assumed, Plan, cures
from stockpot.plan import base as law
from stockpot.samplers.torch import PREFILL_TOKENS
from stockpot.scoring import COPIES
from stockpot.shapes import measure, shape_of
from stockpot.tasks import Dataset
from stockpot.tasks.base import EmbeddedTask


def show(recipe: str, config: Config, options: PlanOptions) -> None:
    """Print the plan of a recipe."""
    if config.model or not isinstance(config.task, EmbeddedTask):
        shape = shape_of(config.model)
    else:
        shape = measure(config.task.model_config(), f"the model of {type(config.task).__name__}", "the task")
    assumed = Assumed(**{field.name: getattr(options, field.name) for field in fields(Assumed)})
    plan = Plan(config, shape, options.gpu, assumed)
    out = Console(highlight=False)
    for line in opening(recipe, plan):
        out.print(line, markup=False, soft_wrap=True)
    out.print(account(plan))
    for line in (*verdict(plan), "", *step(plan), "", "assumed:"):
        out.print(line, markup=False, soft_wrap=True)
    for line in assumptions(plan):
        out.print(f"- {line}", markup=False, soft_wrap=True)


def opening(recipe: str, plan: Plan) -> Iterator[str]:
    """What is planned: model, data, judge."""
    shape, task = plan.shape, plan.config.task
    yield f"recipe  {recipe}"
    yield f"model   {shape.name}, {shape.parameters:,} parameters (shape from {shape.source})"
    yield (
        f"        {shape.layers} layers of {shape.hidden}, {shape.heads} heads, {shape.kv_heads} for keys and values, "
        f"of {shape.head_dim}, vocabulary {shape.vocabulary}, context {shape.positions or 'without limit'}"
    )
    if isinstance(task, Dataset):
        rows = f"{task.only} rows of " if task.only else ""
        yield f"data    {rows}{task.train}, held out: {task.test or 'its last tenth'}, judge {task.judge}"
    else:
        yield f"data    {type(task).__name__}, which makes its own"


def account(plan: Plan) -> Table:
    """Memory by part, with the peak of each phase."""
    made = Table(title=f"memory on {plan.device}, GB (10^9 bytes)", title_justify="left")
    made.add_column("")
    for name in ("sampling", "learning"):
        made.add_column(name, justify="right")
    made.add_column("how")
    for part in plan.parts():
        figures = [f"{part.bytes / law.GB:.2f}" if part.phase in ("always", name) else "" for name in PHASES]
        made.add_row(part.name, *figures, part.how)
    made.add_section()
    made.add_row("at the peak", *[f"{plan.peak(name) / law.GB:.2f}" for name in PHASES], "")
    return made


PHASES: tuple[law.Phase, ...] = ("sampling", "learning")


def verdict(plan: Plan) -> Iterator[str]:
    """Whether it fits, and what to change where it does not."""
    need = f"{plan.needed / law.GB:.1f} GB at the peak, {plan.usable / law.GB:.1f} GB usable on {plan.device}"
    if plan.fits:
        yield f"fits: {need}"
        return
    yield f"does not fit: {need}"
    options = cures(plan)
    if options:
        yield f"it would fit with {' '.join(options)}"
    larger = [
        name
        for name, memory in sorted(DEVICES.items(), key=lambda item: item[1])
        if Plan(plan.config, plan.shape, name, plan.assumed).fits
    ]
    if larger:
        yield f"as it is it would fit on {larger[0]}"
    elif not options:
        state = sum(part.bytes for part in plan.parts() if part.phase == "always" or part.name.startswith("gradients"))
        yield (
            f"nothing in the recipe can be made small enough: weights, gradients and AdamW alone take "
            f"{state / law.GB:.1f} GB; take a smaller model or a larger device (stockpot uses one)"
        )


def step(plan: Plan) -> Iterator[str]:
    """Tokens and operations of a step, and when its prefixes begin."""
    config, tokens, work = plan.config, plan.tokens(), plan.operations()
    yield f"a step  {tokens.rollouts} rollouts, {tokens.prefixed} of them prefixed, {plan.rows} decoded at a time"
    yield f"tokens  decoded {tokens.decoded:,.0f} expected, {tokens.decoded_most:,} at most"
    yield f"        learned {tokens.learned:,.0f}, read before decoding {tokens.prefilled:,.0f}"
    yield f"        prefix tokens that need no decoding {tokens.saved:,.0f}"
    decode, prefill, learn = (f"{number / 1e12:,.3g}" for number in (work.decode, work.prefill, work.learn))
    yield f"TFLOP   decode {decode}, prefill {prefill}, learn {learn}"
    prompts = known_prompts(config.task)
    if prompts and tokens.prefixed:
        epoch = prompts / config.prompts_per_step
        begin = min(int(epoch), config.steps)
        yield (
            f"epoch   {prompts} prompts are {epoch:.1f} steps: of {config.steps} steps {config.steps - begin} can have "
            f"prefixes from the history, since a prompt's past begins when it is met again"
        )


def known_prompts(task: Any) -> int:
    """How many training prompts a task says it has; 0 where only reading them would tell."""
    return int(task.only if isinstance(task, Dataset) else getattr(task, "train_prompts", 0))


def assumptions(plan: Plan) -> Iterator[str]:
    """Everything that the figures rest on."""
    assumed = plan.assumed
    yield f"the longest prompt has {plan.longest_prompt} tokens (--longest-prompt)"
    yield f"the mean prompt has {plan.mean_prompt} tokens (--mean-prompt)"
    yield f"a response has {assumed.response:g} of max_tokens in the mean (--response), prefixes are cut from such ones"
    yield f"{assumed.reserve:.0%} of the device is left to its driver and to gaps (--reserve)"
    learnt = "an adapter's weights" if plan.adapter else "weights"
    yield f"{learnt}, gradients and AdamW's {law.MOMENTS} moments have {law.MASTER} bytes a number, all on the device"
    yield f"a cached key or value has {plan.stored} bytes: the local engine decodes with the weights as they lie there"
    yield (
        f"the cache has a column for every token of the longest prompt, of the longest prefix, and of a response (two "
        f"where rows are filled again), and {law.LOOK} more on a GPU"
    )
    yield f"drawing tokens takes {law.DRAWN} bytes a logit; a prefill reads {PREFILL_TOKENS} tokens, or one context"
    yield f"a pass has {plan.pass_tokens} tokens, of whose logits {COPIES} copies in float32 are alive, in chunks"
    yield (
        f"activations are those of a gated MLP and grouped attention: {plan.saved_per_token():,.0f} bytes a token and "
        f"layer, and {law.WORKING_LAYERS} layer's once more while its gradients are made"
    )
    yield "sampling and learning take turns, and each gives back what it took"
    yield "operations are those of the mathematics on real tokens: no padding, 2 per multiplication and addition"
