"""stockpot COMMAND ...: see `stockpot --help`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from stockpot.options import (
    BenchOptions,
    Budget,
    CompareLosses,
    Eval,
    Export,
    Grade,
    HistoryOptions,
    PlanOptions,
    Resume,
    SelectOptions,
    Sft,
    SftData,
    Show,
    parted,
)
from stockpot.reading import members, new_folder, parse, read_both, read_config, recipe_names, refuse

HELP = """\
stockpot: reinforcement learning for language models from what their own past policies wrote.

  stockpot train [RECIPE] [--out DIR] [OPTIONS]   build, teach and train; without a recipe: countdown, on a laptop
  stockpot plan [RECIPE] [--gpu NAME] [OPTIONS]   what a recipe would take on a device; nothing is loaded
  stockpot resume RUN                             go on with a run that was stopped or killed
  stockpot eval RUN|MODEL [OPTIONS]               pass@k on held-out prompts, with intervals
  stockpot eval MODEL --bench NAMES [OPTIONS]     the same on MATH-500, AIME, HumanEval, ...; resumable
  stockpot export RUN --out DIR                   a checkpoint as one Hugging Face folder, an adapter merged
  stockpot grade FOLDER                           its stored samples graded again
  stockpot budget RUN|MODEL [OPTIONS]             accuracy against thinking tokens, for several checkpoints
  stockpot show RUN [OPTIONS]                     rollouts in the terminal, tokens coloured by author
  stockpot history RUN [--parquet FILE]           what the run's store of rollouts holds
  stockpot compare-losses RUN [OPTIONS]           whose gradient is the true one's, on what the history holds
  stockpot select RUN|MODEL [RECIPE] --out FILE   the training prompts that it solves now and then, as a file
  stockpot sft [RECIPE] --out DIR [OPTIONS]       only the supervised start: a Hugging Face folder
  stockpot sft-data [RECIPE] --out FILE [OPTIONS] traces of trial and error for it, from attempts and critiques
  stockpot bench STUDY [OPTIONS]                  the runs behind a table of claims, resumable

A RECIPE is a name from stockpot.recipes ({recipes}) or a Python file that defines `recipe = Config(...)`.
`stockpot COMMAND --help` explains every option.
"""


def main(words: Sequence[str] | None = None) -> int:
    """Entry point. A mistake of the user's ends in one line and exit code 2, never in a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    arguments = list(sys.argv[1:] if words is None else words)
    from stockpot.types import StockpotError

    try:
        return run(arguments)
    except StockpotError as error:
        print(f"stockpot: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stockpot: interrupted; `stockpot resume RUN` goes on from the last checkpoint.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"stockpot: {where}{error.strerror or error}; check the path, your rights and the room.", file=sys.stderr)
        return 2


def run(words: list[str]) -> int:
    """Hand the words to their command."""
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": train,
        "plan": plan,
        "resume": resume,
        "eval": evaluate,
        "export": export,
        "grade": grade,
        "budget": budget,
        "show": show,
        "history": history,
        "compare-losses": compare_losses,
        "select": select,
        "sft": sft,
        "sft-data": sft_data,
        "bench": bench,
    }
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP.format(recipes=", ".join(recipe_names())), end="")
        return 0
    if words[0] == "--version":
        from stockpot import __version__

        print(__version__)
        return 0
    if words[0] not in commands:
        refuse(f"there is no command {words[0]}", words[0], commands, "stockpot --help lists them all.")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    commands[words[0]](words[1:])
    return 0


# --- commands --------------------------------------------------------------------------------------------------------


def train(words: list[str]) -> None:
    """`stockpot train`."""
    from stockpot.report.summary import finish
    from stockpot.train import train as go

    out, recipe, config = read_config("stockpot train", words)
    finish(go(config, out or new_folder(recipe)))


def plan(words: list[str]) -> None:
    """`stockpot plan`."""
    from stockpot.report.plan import show as go

    own, rest = parted(words, PlanOptions)
    options = parse("stockpot plan", PlanOptions, own)
    _, recipe, config = read_config("stockpot plan", rest)
    go(recipe, config, options)


def resume(words: list[str]) -> None:
    """`stockpot resume`."""
    from stockpot.as_json import from_json
    from stockpot.config import Config
    from stockpot.record import Run
    from stockpot.report.summary import finish
    from stockpot.train import train as go

    options = parse("stockpot resume", Resume, words)
    config = from_json(Run.open(options.run).config)
    assert isinstance(config, Config)
    finish(go(config, options.run, resume=True))


def evaluate(words: list[str]) -> None:
    """`stockpot eval`."""
    from stockpot.report.evaluation import evaluate as go

    options = parse("stockpot eval", Eval, words)
    if options.bench is not None:
        from stockpot.benchmarks.command import evaluate as measure

        measure(options)
        return
    config = None
    if not (Path(options.model) / "metrics.jsonl").exists():
        _, _, config = read_config("stockpot eval", [options.recipe, "--model", options.model])
    go(options, config)


def export(words: list[str]) -> None:
    """`stockpot export`."""
    from stockpot.report.export import export as go

    go(parse("stockpot export", Export, words))


def grade(words: list[str]) -> None:
    """`stockpot grade`."""
    from stockpot.benchmarks.command import grade as go

    go(parse("stockpot grade", Grade, words))


def budget(words: list[str]) -> None:
    """`stockpot budget`."""
    from stockpot.report.budget import show as go

    options = parse("stockpot budget", Budget, words)
    config = None
    if not (Path(options.model) / "metrics.jsonl").exists():
        _, _, config = read_config("stockpot budget", [options.recipe, "--model", options.model])
    go(options, config)


def show(words: list[str]) -> None:
    """`stockpot show`."""
    from stockpot.report.rollouts import show as go

    go(parse("stockpot show", Show, words))


def history(words: list[str]) -> None:
    """`stockpot history`."""
    from stockpot.report.store import show as go

    go(parse("stockpot history", HistoryOptions, words))


def compare_losses(words: list[str]) -> None:
    """`stockpot compare-losses`."""
    from stockpot.report.compare import show as go

    go(parse("stockpot compare-losses", CompareLosses, words), members("algorithm"))


def select(words: list[str]) -> None:
    """`stockpot select`."""
    from stockpot.as_json import from_json
    from stockpot.record import Run
    from stockpot.report.select import select as go
    from stockpot.types import StockpotError

    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    own, rest = parted(words[first:], SelectOptions)
    options = parse("stockpot select", SelectOptions, [*words[:first], *own])
    run = Run.open(Path(options.policy)) if (Path(options.policy) / "metrics.jsonl").exists() else None
    if run is not None and options.recipe:
        raise StockpotError(f"{options.policy} is a run and has a recipe of its own: leave {options.recipe} out.")
    given = rest if run else [options.recipe or "countdown", *rest, "--model", options.policy]
    _, _, config = read_config("stockpot select", given, from_json(run.config) if run else None)
    go(options, config, run)


def sft(words: list[str]) -> None:
    """`stockpot sft`."""
    import torch

    from stockpot import console
    from stockpot.sft import Course, learn
    from stockpot.start import teach
    from stockpot.tasks.base import EmbeddedTask
    from stockpot.types import StockpotError

    options, out, config = read_both("stockpot sft", Sft, words)
    if out is None:
        raise StockpotError("stockpot sft writes a model folder: name it with --out.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StockpotError(f"{out} already holds something: name another folder with --out.")
    if options.data is not None:
        learn(config, Course(options.data, options.epochs, options.pack, options.checkpoint), out)
    elif isinstance(config.task, EmbeddedTask):
        if config.model or config.learner.lora.rank:
            raise StockpotError(
                "without --data the task's own small model is made, and taught whole: to teach --model, or an adapter "
                "of it, name examples with --data FILE.jsonl."
            )
        torch.set_num_threads(config.threads)
        teach(config.task, config.start, out, seed=config.seed, device=config.device)
    else:
        raise StockpotError(
            f"{type(config.task).__name__} brings no demonstrations: teach a file of them with --data FILE.jsonl."
        )
    console.tell(f"the taught model is in {out}")


def sft_data(words: list[str]) -> None:
    """`stockpot sft-data`."""
    from stockpot.report.traces import make

    options, out, config = read_both("stockpot sft-data", SftData, words)
    make(options, config, out)


def bench(words: list[str]) -> None:
    """`stockpot bench`."""
    from stockpot.bench.command import go

    go(parse("stockpot bench", BenchOptions, words))


if __name__ == "__main__":
    sys.exit(main())
