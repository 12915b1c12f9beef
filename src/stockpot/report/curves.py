"""The curves of a run as one PNG, for the places where people look."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Panel:
    """One set of axes."""

    title: str
    lines: dict[str, str]
    """Metric -> label. A pattern names several metrics: `*` stands for the part that is put into the label."""
    band: tuple[str, str, str] | None = None
    """Metrics at the lower and upper edge of a shaded band, and its label."""
    needs: dict[str, str] = field(default_factory=dict)
    """Metrics that are above 0 in some step of a run that has something to show here, and what is said if not."""


WHOLE = {"prefix/share": "no rollout began with a prefix"}
TRAINED = {**WHOLE, "prefix/entropy": "no token of a prefix was trained"}
PANELS = (
    Panel("held-out pass@k", {"test/pass@*": "pass@{}"}),
    Panel("reward", {"reward/mean": "all", "reward/without_prefix": "fresh", "reward/with_prefix": "with prefix"}),
    Panel("advantage", {"advantage/without_prefix": "fresh", "advantage/with_prefix": "with prefix"}),
    Panel(
        "entropy (nats a token)",
        {
            "all/entropy": "sampled in training",
            "test/entropy": "held out",
            "continuation/entropy_at_cut": "first token after a prefix",
            "continuation/entropy_at_start": "first token of a fresh response",
        },
    ),
    Panel(
        "share of gradient lost to clipping",
        {f"{kind}/clip_loss": kind for kind in ("continuation", "prefix", "demonstration")},
    ),
    Panel("effective sample size, by age of tokens", {"age/*/ess": "age {}"}),
    Panel(
        "ratio of prefix tokens, before the clip",
        {"prefix/ratio_p50": "median"},
        ("prefix/ratio_p10", "prefix/ratio_p90", "p10 to p90"),
        TRAINED,
    ),
    Panel(
        "prefix length (tokens)",
        {"prefix/length": "mean"},
        ("prefix/length_p10", "prefix/length_p90", "p10 to p90"),
        WHOLE,
    ),
    Panel("tokens", {"rollout/length": "response length", "prefix/age_mean": "age of prefix tokens (steps)"}),
)
SOFT = Panel(
    "soft value Q along responses (SPO)",
    {
        "spo/q0": "before the first token (Q0)",
        "spo/q_half": "after half of it",
        "spo/q_end_better": "at the end, reward above Q0",
        "spo/q_end_worse": "at the end, reward below Q0",
    },
)
"""Drawn where a run has it."""


def draw(metrics: Rows, path: Path, title: str) -> bool:
    """Draw; False when matplotlib is missing, which `pip install "stockpot[plots]"` cures."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    picture(metrics, title).savefig(path, dpi=110)
    return True


def picture(metrics: Rows, title: str) -> Any:
    """The figure, one panel each of `PANELS`, and SPO's; a panel without curves says why."""
    from matplotlib.figure import Figure

    panels = [*PANELS, SOFT] if any("spo/q0" in row for row in metrics) else [*PANELS]
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(15, 11 / 3 * rows), layout="constrained")
    axes = list(figure.subplots(rows, 3).flat)
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes, panels, strict=False):
        axis.set_title(panel.title, fontsize=11)
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        curves = {label: points(metrics, key) for key, label in named(panel.lines, metrics).items()}
        for label, (steps, values) in curves.items():
            axis.plot(steps, values, label=label, marker="o" if len(steps) < 20 else None, markersize=4, linewidth=1.6)
        if panel.band and curves:
            low, high, label = panel.band
            (steps, floor), (_, ceiling) = points(metrics, low), points(metrics, high)
            axis.fill_between(steps, floor, ceiling, alpha=0.2, linewidth=0, label=label)
        if curves:
            axis.legend(frameon=False, fontsize=9)
        else:
            why = reason(panel, metrics)
            axis.text(0.5, 0.5, why, transform=axis.transAxes, ha="center", va="center", color="0.4", wrap=True)
            axis.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize=13)
    return figure


def named(lines: dict[str, str], metrics: Rows) -> dict[str, str]:
    """The lines of a panel that the run has figures for, patterns filled in."""
    seen = dict.fromkeys(key for row in metrics for key, value in row.items() if value is not None)
    found: dict[str, str] = {}
    for pattern, label in lines.items():
        shape = re.compile(re.escape(pattern).replace(r"\*", "([^/]+)"))
        matches = [match for key in seen if (match := shape.fullmatch(key))]
        for match in sorted(matches, key=lambda m: [int(n) for n in re.findall(r"\d+", m[0])]):
            found[match[0]] = label.format(*match.groups())
    return found


def points(metrics: Rows, key: str) -> tuple[list[int], list[float]]:
    """Steps and values from the first to the last line that has the metric.

    A line that lacks it is passed over; one that has it as null, since it was not finite, makes a gap.
    """
    have = [(row["step"], row[key]) for row in metrics if key in row]
    return [step for step, _ in have], [nan if value is None else value for _, value in have]


def reason(panel: Panel, metrics: Rows) -> str:
    """Why a panel is empty."""
    if not any(row["step"] > 0 for row in metrics):
        return "no step was recorded yet"
    keys = [*panel.lines, *(panel.band or ())[:2]]
    if any(key in row for row in metrics for key in keys):
        return "no figure was finite"
    for metric, why in panel.needs.items():
        if not any(row.get(metric) for row in metrics):
            return why
    return f"not recorded in this run:\n{', '.join(panel.lines)}"
