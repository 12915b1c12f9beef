"""The options of each command that are not the run's configuration."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from stockpot.options.thinking import Budget, Sft, SftData
from stockpot.types import StockpotError

__all__ = [
    "BenchOptions",
    "Budget",
    "CompareLosses",
    "Eval",
    "Grade",
    "HistoryOptions",
    "PlanOptions",
    "Resume",
    "SelectOptions",
    "Sft",
    "SftData",
    "Show",
    "parted",
]


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
    bench: Annotated[str | None, arg(metavar="NAMES")] = None
    """Benchmarks with commas between, such as math500,aime24,humaneval; NAME=SOURCE takes one from a file or hub id.
    Everything below is for these."""
    k: int = 32
    """With --bench: samples per problem."""
    data: str = ""
    """With --bench: the folder that holds the benchmarks' files; default the folder that the variable STOCKPOT_BENCH
    names, else the Hugging Face hub."""
    limit: int | None = None
    """With --bench: only the first so many problems of each."""
    max_tokens: int | None = None
    """With --bench: room for a response; default 4096, or what the context leaves."""
    template: str = "auto"
    """With --bench: how problems are put: chat, plain, or a name such as qwen-boxed; auto is chat for
    instruct models, else plain."""
    rows: int = 64
    """With --bench: most responses sampled at one time: it bounds the memory of keys and values."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """With --bench: where the model lives; auto takes the best there is."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """With --bench: the type of the weights; auto is bfloat16 on CUDA, else float32."""
    out: Path | None = None
    """With --bench: the folder of samples, grades and results; a stopped evaluation goes on there. Default
    runs/eval-MODEL."""


@dataclass(frozen=True)
class Export:
    """A checkpoint as one plain Hugging Face folder: weights and tokenizer, an adapter merged into its base."""

    run: Annotated[Positional[Path], arg(metavar="RUN|CHECKPOINT")]
    """A run folder (its last checkpoint is taken), a checkpoint's own folder, or an adapter of `stockpot sft`."""
    out: Path
    """The folder to write; it must not hold anything yet."""
    step: int | None = None
    """In a run: the checkpoint of this step instead of the last."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of the weights written; merging is done in float32 either way."""


@dataclass(frozen=True)
class Grade:
    """Grade the stored samples of a benchmark evaluation again; nothing is sampled."""

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """A folder that `stockpot eval --bench` made."""
    json: Path | None = None
    """Also write the results to this file."""


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


@dataclass(frozen=True)
class BenchOptions:
    """Make a study's runs, those that are missing, and print its tables and verdicts."""

    study: Annotated[Positional[Literal["soup", "spo", "t1"]], arg(metavar="STUDY")]
    """Which study."""
    out: Path | None = None
    """Folder of its results; default runs/bench-STUDY."""
    parts: tuple[str, ...] = ()
    """Only these parts of it, in this order; default all. `report` only prints what is there."""
    jobs: int = 1
    """Runs at a time, each on a thread of its own."""


@dataclass(frozen=True)
class CompareLosses:
    """Whose gradient points where the true one does, and how noisily, on what the run's history holds."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder; nothing in it is changed."""
    step: int | None = None
    """The policy is the checkpoint of this step instead of the last."""
    losses: str = ""
    """Names with commas between, as --algorithm knows them; default all of them but spo, a regression."""
    ages: str = ""
    """Age bands of the stored rollouts, such as 1-3,4-15,16-; default the whole history, in thirds."""
    prompts: int = 32
    """Prompts in each batch, the same in all; fewer where fewer have rollouts enough."""
    group_size: int | None = None
    """Stored rollouts of each prompt in a batch; default as in the run."""
    batches: int = 2
    """Batches of each age band; no rollout is in two."""
    fresh: int = 256
    """Fresh samples of each prompt, from which the true gradient is estimated."""
    seed: int = 0
    """Seed of the choice of prompts and rollouts, and of the samples."""
    json: Path | None = None
    """Also write the result to this file."""


@dataclass(frozen=True)
class SelectOptions:
    """Sample the training prompts and keep those that the policy solves now and then, as a file to train on.

    Besides these it takes every option of `stockpot train`: task, sampling, room for a response, seed.
    """

    policy: Annotated[Positional[str], arg(metavar="RUN|MODEL")]
    """A run folder (its last checkpoint is taken), or a model folder or hub id."""
    recipe: Annotated[Positional[str], arg(metavar="RECIPE")] = ""
    """For a model that is no run: whose task, sampling and room for a response are used (default countdown)."""
    out: Path | None = None
    """The file to write: a row for each prompt kept, with its pass rate and interval."""
    samples: int = 16
    """Responses to each prompt."""
    low: float = 0.0
    """Keep prompts whose pass rate is above this ..."""
    high: float = 0.3
    """... and at most this."""
    keep_zero: bool = False
    """Keep prompts that were never solved, too."""
    prompts: int | None = None
    """Look at this many training prompts, the first; default all."""
    step: int | None = None
    """In a run: the checkpoint of this step instead of the last."""

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise StockpotError(f"--low {self.low:g} and --high {self.high:g} must lie in 0..1, low before high.")
        if self.samples < 1 or (self.prompts is not None and self.prompts < 1):
            raise StockpotError("--samples and --prompts must be at least 1.")


@dataclass(frozen=True)
class PlanOptions:
    """What a recipe would take: memory by part, tokens and operations of a step, and its seconds on-policy, with old
    prefixes, and asynchronously, by a stated cost model. Nothing is loaded.

    Besides these it takes the recipe, and every option of `stockpot train`.
    """

    gpu: str = "h100"
    """The device: a100, a100-40, h100, h200, b200, l40s, or cpu for this machine."""
    gpus: int = 1
    """How many of them; with cpu, processes on this machine."""
    longest_prompt: int = 1024
    """Assumed tokens of the longest prompt, or what the context leaves."""
    mean_prompt: int = 128
    """Assumed tokens of a prompt in the mean."""
    response: float = 0.5
    """Assumed share of max_tokens that a response has in the mean."""
    reserve: float = 0.08
    """Share of the device's memory that is left to its driver and to gaps."""
    lengths: Literal["lognormal", "geometric", "fixed"] = "lognormal"
    """Assumed spread of lengths around their mean, cut at max_tokens: what stragglers come from."""
    spread: float = 0.7
    """With lognormal: assumed standard deviation of the logarithm of a length."""
    mfu: float = 0.4
    """Assumed share of the device's peak that learning reaches, recomputation counted as work."""
    reached: float = 0.7
    """Assumed share of peak and bandwidth that decoding and reading contexts reach."""
    step_ms: float | None = None
    """Assumed overhead of a decoding step in milliseconds; default so much for each layer, as printed."""
    pass_ms: float | None = None
    """Assumed overhead of a pass over contexts or rollouts in milliseconds; default likewise."""
    reward_ms: float = 1.0
    """Assumed milliseconds of judging a rollout, on one processor for each device."""
    peak_tflops: float = 0.0
    """10^12 operations a second of the device; default by its data sheet, with cpu measured on the spot."""
    bandwidth: float = 0.0
    """GB a second of the device's memory; default likewise."""
    link: float = 0.0
    """GB a second between devices; default likewise."""


def parted(words: list[str], kind: type) -> tuple[list[str], list[str]]:
    """The words that are options of `kind`, with their values, and the rest."""
    if {"-h", "--help"} & set(words):
        return ["--help"], []
    names = {field.name.replace("_", "-"): field.type == "bool" for field in fields(kind)}
    flags = {f"--{name}" for name in names} | {f"--no-{name}" for name, alone in names.items() if alone}
    valued = {f"--{name}" for name, alone in names.items() if not alone}
    own: list[str] = []
    rest: list[str] = []
    for i, word in enumerate(words):
        follows = i > 0 and words[i - 1] in valued
        (own if follows or word.partition("=")[0] in flags else rest).append(word)
    return own, rest
