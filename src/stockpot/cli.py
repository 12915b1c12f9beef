"""stockpot COMMAND ...: see `stockpot --help`."""

from __future__ import annotations

import contextlib
import copy
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from stockpot.options import Eval, HistoryOptions, PlanOptions, Resume, Show, parted

HELP = """\
stockpot: reinforcement learning for language models from what their own past policies wrote.

  stockpot train [RECIPE] [--out DIR] [OPTIONS]   build, teach and train; without a recipe: countdown, on a laptop
  stockpot plan [RECIPE] [--gpu NAME] [OPTIONS]   what a recipe would take on a device; nothing is loaded
  stockpot resume RUN                             go on with a run that was stopped or killed
  stockpot eval RUN|MODEL [OPTIONS]               pass@k on held-out prompts, with intervals
  stockpot show RUN [OPTIONS]                     rollouts in the terminal, tokens coloured by author
  stockpot history RUN [--parquet FILE]           what the run's store of rollouts holds
  stockpot sft [RECIPE] --out DIR [OPTIONS]       only the supervised start: a Hugging Face folder

A RECIPE is a name from stockpot.recipes ({recipes}) or a Python file that defines `recipe = Config(...)`.
`stockpot COMMAND --help` explains every option.
"""

COMPONENTS = ("algorithm", "prefixes", "task")

COMPONENT_HELP = """\
Components are chosen by name, and their numbers set with dots:

  --algorithm NAME   {algorithm}
  --prefixes NAME    {prefixes}
  --task NAME        {task}
  --out DIR          folder to write into; it must not hold anything yet (default for a run: runs/RECIPE)

  stockpot train --algorithm rloo --algorithm.clip-high 0.28 --prefixes.share 0.5 --steps 200
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
        "show": show,
        "history": history,
        "sft": sft,
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
    from stockpot.config import Config, from_json
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
    config = None
    if not (Path(options.model) / "metrics.jsonl").exists():
        _, _, config = read_config("stockpot eval", [options.recipe, "--model", options.model])
    go(options, config)


def show(words: list[str]) -> None:
    """`stockpot show`."""
    from stockpot.report.rollouts import show as go

    go(parse("stockpot show", Show, words))


def history(words: list[str]) -> None:
    """`stockpot history`."""
    from stockpot.report.store import show as go

    go(parse("stockpot history", HistoryOptions, words))


def sft(words: list[str]) -> None:
    """`stockpot sft`."""
    import torch

    from stockpot import console
    from stockpot.start import teach
    from stockpot.tasks.base import EmbeddedTask
    from stockpot.types import StockpotError

    out, _, config = read_config("stockpot sft", words)
    if out is None:
        raise StockpotError("stockpot sft writes a model folder: name it with --out.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StockpotError(f"{out} already holds something: name another folder with --out.")
    if not isinstance(config.task, EmbeddedTask):
        raise StockpotError(
            f"{type(config.task).__name__} brings no demonstrations: only embedded tasks can be taught."
        )
    torch.set_num_threads(config.threads)
    teach(config.task, config.start, out, seed=config.seed, device=config.device)
    console.tell(f"the taught model is in {out}")


# --- reading the command line ----------------------------------------------------------------------------------------


def read_config(prog: str, words: list[str]) -> tuple[Path | None, str, Any]:
    """(--out, the recipe's name, the config): recipe first, then components by name, then their numbers."""
    from stockpot.config import load_recipe

    named = bool(words) and not words[0].startswith("-")
    name, rest = (words[0], words[1:]) if named else ("countdown", words)
    if not name.endswith(".py") and name.replace("-", "_") not in recipe_names():
        refuse(f"there is no recipe {name}", name, recipe_names(), "or name a .py file.")
    config = load_recipe(name)
    rest, out = take(rest, "--out")
    default = copy.copy(config)
    for field in COMPONENTS:
        rest, chosen = take(rest, f"--{field}")
        if chosen is not None:  # set without the checks of a Config, which is checked once it is whole
            object.__setattr__(default, field, component(field, chosen))
    if {"-h", "--help"} & set(rest):
        print(COMPONENT_HELP.format(**{field: ", ".join(members(field)) for field in COMPONENTS}))
    return None if out is None else Path(out), name, parse(prog, type(config), rest, default)


def parse(prog: str, kind: Any, words: list[str], default: Any = None) -> Any:
    """tyro, with its complaints put into one line."""
    import tyro

    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(kind, prog=prog, args=words, **({} if default is None else {"default": default}))
    except SystemExit as error:
        if not error.code:
            raise
        from stockpot.types import StockpotError

        raise StockpotError(one_line(told.getvalue(), prog)) from None


def one_line(box: str, prog: str) -> str:
    """What tyro drew as a box, as one sentence that names the nearest right option."""
    lines = [line.strip(" │") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    ruled = [
        " ".join(part) for rule, part in groupby(lines, lambda line: bool(re.fullmatch("─+|-+", line))) if not rule
    ]
    told = [" ".join(part.split()) for part in ruled]
    cause = told["│" not in box].rstrip(".")  # where boxes cannot be drawn, a title stands above a rule of its own
    near = re.search(r"Perhaps you meant:? (--[\w.-]+)", " ".join(told))
    cause = re.sub(r"^Unrecognized options: (\S+?),?( .*|$)", r"there is no option \1", cause)
    return f"{cause}" + (f"; did you mean {near[1]}?" if near else ".") + f" `{prog} --help` explains every option."


def take(words: list[str], flag: str) -> tuple[list[str], str | None]:
    """Take `flag NAME` (or `flag=NAME`) out of the words."""
    for i, word in enumerate(words):
        if word == flag:
            if i + 1 == len(words) or words[i + 1].startswith("-"):
                from stockpot.types import StockpotError

                raise StockpotError(f"{flag} needs a value after it.")
            return words[:i] + words[i + 2 :], words[i + 1]
        if word.startswith(flag + "="):
            return words[:i] + words[i + 1 :], word.partition("=")[2]
    return words, None


def members(field: str) -> dict[str, Callable[[], Any]]:
    """What a component's option accepts: everything public in its module that makes one without arguments."""
    from stockpot import algorithms, prefixes, tasks

    if field == "prefixes":
        return {
            "history": prefixes.FromHistory,
            "none": prefixes.NoPrefixes,
            "replay": prefixes.Replay,
            "prefixrl": prefixes.prefixrl,
        }
    module = algorithms if field == "algorithm" else tasks
    skip = {"Algorithm", "Terms", "Supervised", "Task", "EmbeddedTask"}
    return {name.lower().replace("_", "-"): getattr(module, name) for name in module.__all__ if name not in skip}


def component(field: str, name: str) -> Any:
    """The component of that name, with its own defaults."""
    known = members(field)
    if name.lower() not in known:
        refuse(f"--{field} knows no {name}", name.lower(), known, f"it knows {', '.join(known)}.")
    return known[name.lower()]()


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    folder = Path(__file__).parent / "recipes"
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def new_folder(recipe: str) -> Path:
    """runs/RECIPE, or runs/RECIPE-2 and so on: nothing is written over."""
    name = Path(recipe).stem
    candidates = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 10**6))
    return next(folder for folder in candidates if not folder.exists())


def refuse(cause: str, word: str, known: Any, cure: str) -> NoReturn:
    """Refuse a word in one line that names the nearest right one."""
    from stockpot.types import StockpotError

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    raise StockpotError(f"{cause}; " + (f"did you mean {near[0]}? " if near else "") + cure)


if __name__ == "__main__":
    sys.exit(main())
