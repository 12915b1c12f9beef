"""The curves of a run as one PNG, for the places where people look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PANELS: tuple[tuple[str, dict[str, str]], ...] = (
    ("held-out pass@k", {"test/pass@1": "pass@1", "test/pass@4": "pass@4", "test/pass@16": "pass@16"}),
    ("reward", {"reward/mean": "all", "reward/without_prefix": "fresh", "reward/with_prefix": "with prefix"}),
    ("entropy (nats a token)", {"all/entropy": "sampled in training", "test/entropy": "held out"}),
    ("gradient lost to clipping", {"continuation/clip_loss": "continuation", "prefix/clip_loss": "prefix"}),
    ("effective sample size", {"continuation/ess": "continuation", "prefix/ess": "prefix"}),
    ("tokens", {"rollout/length": "response length", "prefix/age_mean": "age of prefix tokens (steps)"}),
)


def draw(metrics: Sequence[dict[str, Any]], path: Path, title: str) -> bool:
    """Draw; False when matplotlib is missing, which `pip install "stockpot[plots]"` cures."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7), constrained_layout=True)
    for axis, (name, lines) in zip(axes.flat, PANELS, strict=True):
        drawn = False
        for key, label in lines.items():
            points = [(row["step"], row[key]) for row in metrics if row.get(key) is not None]
            if points:
                drawn = True
                axis.plot(
                    *zip(*points, strict=True), label=label, marker="o" if len(points) < 20 else None, linewidth=1.6
                )
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if drawn:
            axis.legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=13)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True
