"""From the words of a command line to options and configurations, with complaints of one line."""

from __future__ import annotations

import contextlib
import copy
import difflib
import io
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

COMPONENTS = ("algorithm", "prefixes", "task")

COMPONENT_HELP = """\
Components are chosen by name, and their numbers set with dots:

  --algorithm NAME   {algorithm}
  --prefixes NAME    {prefixes}
  --task NAME        {task}
  --out DIR          folder to write into; it must not hold anything yet (default for a run: runs/RECIPE)

  stockpot train --algorithm rloo --algorithm.clip-high 0.28 --prefixes.share 0.5 --steps 200
"""


def read_config(prog: str, words: list[str], base: Any = None) -> tuple[Path | None, str, Any]:
    """(--out, the recipe's name, the config): recipe first, then components by name, then their numbers.

    With a `base`, such as the config of a run, the words change that instead of a recipe.
    """
    from stockpot.config import load_recipe

    named = bool(words) and not words[0].startswith("-")
    name, rest = (words[0], words[1:]) if named else ("countdown", words)
    if not name.endswith(".py") and name.replace("-", "_") not in recipe_names():
        refuse(f"there is no recipe {name}", name, recipe_names(), "or name a .py file.")
    config = load_recipe(name) if base is None else base
    rest, out = take(rest, "--out")
    default = copy.copy(config)
    for field in COMPONENTS:
        rest, chosen = take(rest, f"--{field}")
        if chosen is not None:  # set without the checks of a Config, which is checked once it is whole
            object.__setattr__(default, field, component(field, chosen))
    if {"-h", "--help"} & set(rest):
        print(COMPONENT_HELP.format(**{field: ", ".join(members(field)) for field in COMPONENTS}))
    return None if out is None else Path(out), name, parse(prog, type(config), rest, default)


def read_both(prog: str, kind: Any, words: list[str]) -> tuple[Any, Path | None, Any]:
    """(a command's own options, --out, the config) of a command that takes both; help is of both."""
    from stockpot.options import parted

    if {"-h", "--help"} & set(words):
        with contextlib.suppress(SystemExit):
            read_config(prog, words)
        parse(prog, kind, ["--help"])
    own, rest = parted(words, kind)
    options = parse(prog, kind, own)
    out, _, config = read_config(prog, rest)
    return options, out, config


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
            "checkpoints": prefixes.FromCheckpoints,
            "replay": prefixes.Replay,
            "experience": prefixes.Experience,
            "demonstrations": prefixes.Demonstrations,
            "offline": prefixes.Offline,
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
