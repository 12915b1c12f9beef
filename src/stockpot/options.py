"""The options of each command that are not the run's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Resume:
    """Go on with a run from its newest whole checkpoint; it ends in the same bits as a run never stopped."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder."""


@dataclass(frozen=True)
class Eval:
    """pass@k on held-out prompts, with 95 % intervals over problems."""

    model: Annotated[Positional[str], arg(metavar="RUN|MODEL")]
    """A run folder (its last checkpoint is taken), or a model folder or hub id."""
    recipe: str = "countdown"
    """For a model that is no run: the recipe, by name or .py file, whose task and room for a response are used."""
    step: int | None = None
    """In a run: the checkpoint of this step instead of the last."""
    samples: int | None = None
    """Samples per prompt; default as in the run, with --prefix-from 64."""
    prompts: int | None = None
    """Held-out prompts; default as in the run."""
    temperature: float | None = None
    """Sampling temperature; default as in the run."""
    top_p: float | None = None
    """Nucleus sampling; default as in the run."""
    seed: int = 0
    """Seed of the samples."""
    json: Path | None = None
    """Also write the result to this file."""
    prefix_from: Annotated[str | None, arg(metavar="STEP|all")] = None
    """SOUP inference against the single model: in the second arm the run's checkpoint of this older step writes the
    head of each response; several with commas, or all that are kept, share the samples of each prompt evenly."""
    prefix_low: float = 0.1
    """With --prefix-from: a head's length lies evenly between this fraction of the single model's mean length ..."""
    prefix_high: float = 0.6
    """... and this one."""


@dataclass(frozen=True)
class Show:
    """Rollouts of a run in the terminal: tokens coloured by author, with prompt and reward."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder."""
    step: int | None = None
    """Rollouts of this step; default the last one."""
    prompt: str | None = None
    """Only this prompt (its key, as shown)."""
    count: int = 8
    """How many to show."""
    prefixed: bool = False
    """Only rollouts that begin with a prefix."""


@dataclass(frozen=True)
class HistoryOptions:
    """What a run's store of rollouts holds."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder."""
    parquet: Path | None = None
    """Export all rollouts to this Parquet file."""
