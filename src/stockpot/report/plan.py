"""A plan as a person reads it: the model, memory by part, tokens and operations of a step, everything assumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from stockpot.config import Config
from stockpot.options import PlanOptions
from stockpot.plan import DEVICES, Assumed, Fleet, Plan, cures
from stockpot.plan import base as law
from stockpot.plan.cures import more
from stockpot.plan.layout import Place, together
from stockpot.report import fleet
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
    several = Fleet(plan, options.gpus)
    place, modes = together(plan, several.gpus), list(several.modes())
    out = Console(highlight=False)
    for line in opening(recipe, plan):
        out.print(line, markup=False, soft_wrap=True)
    out.print(account(place, several.gpus))
    for line in (*verdict(several, place), "", *step(place.plan), ""):
        out.print(line, markup=False, soft_wrap=True)
    for table in (fleet.sizes(modes), fleet.times(modes)):
        out.print(table)
    for line in (*fleet.reading(several, modes), "", "assumed:"):
        out.print(line, markup=False, soft_wrap=True)
    for line in (*assumptions(place.plan), *fleet.assumptions(several)):
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


def account(place: Place, devices: int) -> Table:
    """Memory by part, with the peak of each phase."""
    each = f"each of {devices} {place.plan.device}" if devices > 1 else place.plan.device
    made = Table(title=f"memory on {each}, GB (10^9 bytes)", title_justify="left")
    made.add_column("")
    for name in ("sampling", "learning"):
        made.add_column(name, justify="right")
    made.add_column("how")
    for part in place.parts:
        figures = [f"{part.bytes / law.GB:.2f}" if part.phase in ("always", name) else "" for name in PHASES]
        made.add_row(part.name, *figures, part.how)
    made.add_section()
    made.add_row("at the peak", *[f"{place.peak(name) / law.GB:.2f}" for name in PHASES], "")
    return made


PHASES: tuple[law.Phase, ...] = ("sampling", "learning")


def verdict(several: Fleet, place: Place) -> Iterator[str]:
    """Whether it fits, and what to change where it does not."""
    plan, devices, usable = several.plan, several.gpus, several.usable
    on = f"each {plan.device}" if devices > 1 else plan.device
    need = f"{place.needed / law.GB:.1f} GB at the peak, {usable / law.GB:.1f} GB usable on {on}"
    if place.needed <= usable:
        yield f"fits: {need}"
        return
    yield f"does not fit: {need}"
    options, count = cures(plan, devices), more(plan, devices)
    if options:
        yield f"it would fit with {' '.join(options)}"
    others = [replace(plan, device=name) for name, _ in sorted(DEVICES.items(), key=lambda item: item[1])]
    larger = [other.device for other in others if together(other, devices).needed <= other.usable]
    if larger:
        yield f"as it is it would fit on {f'{devices} ' if devices > 1 else ''}{larger[0]}"
    if count:
        yield f"as it is it would fit on {count} {plan.device} (--gpus {count})"
    if not (options or larger or count):
        parts = plan.parts()
        state = sum(part.bytes for part in parts if part.phase == "always" or part.name.startswith("gradients"))
        copied = next((part.bytes for part in place.parts if part.name.startswith("sampler's weights")), 0.0)
        whole = f", and the {copied / law.GB:.1f} GB that samplers have are not divided" if copied else ""
        yield (
            f"nothing in the recipe can be made small enough: weights, gradients and AdamW alone take "
            f"{state / law.GB:.1f} GB{whole}; take a smaller model or a larger device (more of this do not help)"
        )


def step(plan: Plan) -> Iterator[str]:
    """Tokens and operations of a step, and when its prefixes begin."""
    config, tokens, work = plan.config, plan.tokens(), plan.operations()
    at_once = f"{plan.rows} decoded at a time" + (" on each device" if plan.among > 1 else "")
    yield f"a step  {tokens.rollouts} rollouts, {tokens.prefixed} of them prefixed, {at_once}"
    yield f"tokens  decoded {tokens.decoded:,.0f} expected, {tokens.decoded_most:,} at most"
    yield f"        learned {tokens.learned:,.0f}, read before decoding {tokens.prefilled:,.0f}"
    yield f"        prefix tokens that need no decoding {tokens.saved:,.0f}"
    if tokens.heads:
        yield f"        prefix tokens that older policies decode {tokens.heads:,.0f}"
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


DECODES = "the local engine decodes with the weights as they lie there"


def assumptions(plan: Plan) -> Iterator[str]:
    """Everything that the figures rest on."""
    assumed = plan.assumed
    yield f"the longest prompt has {plan.longest_prompt} tokens (--longest-prompt)"
    yield f"the mean prompt has {plan.mean_prompt} tokens (--mean-prompt)"
    yield f"a response has {assumed.response:g} of max_tokens in the mean (--response), prefixes are cut from such ones"
    yield f"{assumed.reserve:.0%} of the device is left to its driver and to gaps (--reserve)"
    decodes = "samplers have a copy of the weights in that type" if plan.copies else DECODES
    learnt = "an adapter's weights" if plan.adapter else "weights"
    yield f"{learnt}, gradients and AdamW's {law.MOMENTS} moments have {law.MASTER} bytes a number, all on the device"
    yield f"a cached key or value has {plan.decoding} bytes: {decodes}"
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
