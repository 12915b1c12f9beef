"""`stockpot eval RUN --prefix-from STEP`: SOUP inference against the single model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from stockpot.options import Eval
from stockpot.passk import Estimate
from stockpot.record import write_whole
from stockpot.soup_inference import Comparison, compare
from stockpot.types import Sampling

SAMPLES = 64


def show(options: Eval, prefix_from: str, sampling: Sampling) -> None:
    """Measure both arms and print the tables."""
    found = compare(
        Path(options.model),
        prefix_from,
        samples=SAMPLES if options.samples is None else options.samples,
        prompts=options.prompts,
        seed=options.seed,
        step=options.step,
        low=options.prefix_low,
        high=options.prefix_high,
        sampling=sampling,
        progress=True,
    )
    out = Console(highlight=False)
    for table in (by_samples(found), by_tokens(found)):
        out.print(table)
        out.print()
    for line in notes(found):
        out.print(line, soft_wrap=True)
    if options.json is not None:
        write_whole(options.json, json.dumps(found.to_json(), indent=1) + "\n")


def by_samples(found: Comparison) -> Table:
    """pass@k by k, both arms with as many samples."""
    steps = ", ".join(str(one.step) for one in found.heads)
    title = f"{found.run}, {len(found.prompts)} prompts x {found.single.samples} samples: step {found.step} alone, and "
    made = plain(title + f"after heads by step {steps} (SOUP)", "", "single", "SOUP", "SOUP - single")
    for row in found.equal_samples:
        made.add_row(f"pass@{row.single_samples:g}", str(row.single), str(row.soup), signed(row.difference))
    return made


def by_tokens(found: Comparison) -> Table:
    """Both arms with as many decoded tokens."""
    title = "At the same number of decoded tokens for each prompt"
    made = plain(title, "tokens", "samples: single", "SOUP", "pass: single", "SOUP", "SOUP - single")
    for row in found.equal_tokens:
        counts = (f"{row.single_samples:.4g}", f"{row.soup_samples:.4g}")
        made.add_row(
            f"{row.tokens:.0f}", *counts, f"{row.single.mean:.3f}", f"{row.soup.mean:.3f}", signed(row.difference)
        )
    return made


def notes(found: Comparison) -> Iterator[str]:
    """What else is to be known of the numbers."""
    arms = (found.single, found.soup)
    yield "Brackets: 95 % intervals over problems, in a difference paired. Other training runs may differ by more."
    for name, values in (
        ("tokens decoded per sample", [f"{arm.length:.1f}" for arm in arms]),
        ("ran out of room", [f"{arm.truncated:.3f}" for arm in arms]),
        ("not judged", [str(arm.unjudged) for arm in arms]),
    ):
        yield f"{name}: single {values[0]}, SOUP {values[1]}"
    for one in found.heads:
        yield (
            f"heads by step {one.step}: {one.samples}, {one.tokens / max(1, one.samples):.1f} tokens each, "
            f"{one.correct} right in the end; {one.stopped} finished before their cut, {one.empty} of them empty"
        )


def plain(title: str, *columns: str) -> Table:
    """A table without walls, numbers to the right."""
    made = Table(
        title=title, title_justify="left", box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column in columns:
        made.add_column(column, justify="right")
    return made


def signed(estimate: Estimate) -> str:
    """A difference with its interval, every number with its sign.

    >>> signed(Estimate(0.5, -0.25, 0.75))
    '+0.500 [-0.250, +0.750]'
    """
    return f"{estimate.mean:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"
