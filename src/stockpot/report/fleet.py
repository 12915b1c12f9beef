"""Modes side by side: memory, tokens and seconds of a step, how they are to be read, and what they rest on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from rich.table import Table

from stockpot.plan import Fleet, Mode, Seconds
from stockpot.plan import base as law


def sizes(modes: Sequence[Mode]) -> Table:
    """Who stands where, memory of the device that needs most, and tokens."""
    made = Table(title="modes: devices, memory of one in GB, tokens of a step", title_justify="left")
    for name in ("mode", "devices", "GB", "fits", "decoded", "by older", "learned"):
        made.add_column(name, justify="left" if name == "mode" else "right", no_wrap=True)
    for mode in modes:
        tokens = mode.tokens
        made.add_row(
            mode.name, devices(mode), " + ".join(f"{place.needed / law.GB:.1f}" for place in mode.places),
            "yes" if mode.fits else "no", f"{tokens.decoded:,.0f}", f"{tokens.heads:,.0f}", f"{tokens.learned:,.0f}",
        )  # fmt: skip
    return made


def devices(mode: Mode) -> str:
    """How many do what."""
    return f"{mode.samplers} + {mode.learners}" if mode.apart else str(mode.samplers)


def times(modes: Sequence[Mode]) -> Table:
    """Seconds of a step, and its ratio to the first mode's."""
    made = Table(title="seconds of a step, mean over devices; x: ratio to on-policy", title_justify="left")
    made.add_column("mode", no_wrap=True)
    for name in (*(field.name for field in fields(Seconds)), "step", "x"):
        made.add_column(name, justify="right", no_wrap=True)
    first = modes[0].seconds.step
    for mode in modes:
        spent = mode.seconds
        parts = [plain(getattr(spent, field.name)) for field in fields(Seconds)]
        made.add_row(mode.name, *parts, plain(spent.step), f"{spent.step / first:.2f}")
    return made


def plain(seconds: float) -> str:
    """Three figures that count, and no powers of ten."""
    digits = next((n for n, limit in enumerate((100, 10, 1, 0.1)) if seconds >= limit), 4)
    return f"{seconds:.{digits}f}"


def reading(fleet: Fleet, modes: Sequence[Mode]) -> Iterator[str]:
    """What the tables do not say by themselves."""
    spread, config = fleet.spread, fleet.plan.config
    rollouts = config.prompts_per_step * config.group_size
    longest = spread.longest(rollouts)
    yield (
        f"stragglers: the longest of {rollouts} responses is expected to have {longest:,.0f} tokens, "
        f"{longest / spread.mean:.1f} times the mean"
    )
    if fleet.gpus < 2:
        yield "asynchronous: samplers and learners apart need two devices (--gpus 2)"
    for mode in modes:
        if mode.apart:
            tried = "no division fits; of all, " if not mode.fits else ""
            yield f"{mode.name}: {tried}{mode.samplers} sample, {mode.learners} learn, the best division found"


def assumptions(fleet: Fleet) -> Iterator[str]:
    """Everything that the seconds rest on."""
    told, device, spread = fleet.plan.assumed, fleet.device, fleet.spread
    how = {"lognormal": f"lognormal, sigma {told.spread:g} (--spread)", "geometric": "geometric", "fixed": "all equal"}
    chosen = f"as measured, mean {spread.mean:.1f}" if fleet.lengths else f"{how[told.lengths]} (--lengths), ours"
    source = "measured here, or given" if fleet.plan.device == "cpu" else "by data sheet, or given"
    kinds = f"{device.half:.4g} TFLOP/s in bfloat16 and {device.single:.4g} in float32"
    yield f"lengths are {chosen}, cut at max_tokens; a batch takes as long as its longest, tokens where nobody waits"
    yield f"peaks {source}: {kinds} (--peak-tflops), {device.bandwidth:.4g} GB/s of memory (--bandwidth)"
    yield (
        f"links: {device.link:.4g} GB/s between devices (--link), {device.network:.4g} between nodes of {device.node}, "
        f"{device.host:.4g} to the machine's memory"
    )
    yield (
        f"a decoding step takes the longer of its operations and its bytes (weights once, cache of the live rows), at "
        f"{told.reached:.0%} of the peaks (--reached); reading contexts likewise"
    )
    yield f"learning reaches {told.mfu:.0%} of the peak (--mfu), recomputation counted as work; AdamW reads its state"
    who = {"cpu": "the reference sampler", "reference": "the reference sampler", "engine": "an engine such as vLLM"}
    step, each = (fleet.overhead(what) * 1e3 for what in ("step", "pass"))
    yield (
        f"{who[fleet.sampler]} decodes, with {step:.3g} ms of overhead a step (--step-ms); a pass over contexts or "
        f"rollouts has {each:.3g} ms (--pass-ms); ours, not measured"
    )
    yield f"judging a rollout takes {told.reward_ms:g} ms (--reward-ms), on one processor for each device"
    if fleet.gpus > 1:
        yield from several()


def several() -> Iterator[str]:
    """What the seconds of more than one device rest on."""
    yield (
        "learners share the state by FSDP2 (two gathers and a scatter each pass) or all have it (DDP), whichever needs "
        "less memory; their talk goes on beside calculating, and counts under sync only where it takes longer"
    )
    yield "every sampler has the whole model: no tensor parallelism; prompts are dealt evenly; evaluation is left out"
    yield (
        "apart, in turns: each waits for the other; asynchronous: nobody waits but for what is slower, rows are always "
        "full, weights are swapped while responses are under way"
    )
