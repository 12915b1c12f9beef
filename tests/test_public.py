"""What `stockpot` promises: a few names, each explained, and an import that costs nothing."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import stockpot

PUBLIC = [
    "GRPO", "RLOO", "Algorithm", "Author", "Config", "Countdown", "Dataset", "FromHistory", "Group", "History",
    "NoPrefixes", "Policy", "Prompt", "Reinforce", "Rollout", "Sampling", "Span", "StockpotError", "Task",
    "TorchSampler",
]  # fmt: skip
"""Written out a second time on purpose: what is public grows and shrinks by decision, not by accident."""


def test_the_public_names_are_these() -> None:
    assert stockpot.__all__ == PUBLIC
    assert len(PUBLIC) <= 20
    shouting, other = [n for n in PUBLIC if n.isupper()], [n for n in PUBLIC if not n.isupper()]
    assert sorted(shouting) + sorted(other) == PUBLIC, "sorted as the linter sorts names"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_says_what_it_is(name: str) -> None:
    """In words of its own: neither inherited from a base nor the signature that a dataclass makes up."""
    thing = getattr(stockpot, name)
    told = thing.__dict__.get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert told and not told.startswith(f"{thing.__name__}(")
    assert thing.__module__.startswith("stockpot.")


def test_type_checkers_see_the_same_names() -> None:
    """The imports for type checkers, the rooms of the names, and `__all__` are three lists of one thing."""
    tree = ast.parse(Path(stockpot.__file__).read_text())
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (node.module, alias.name) for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    rooms = {(f"stockpot.{room}", name) for room, names in stockpot._ROOMS.items() for name in names}
    assert seen == rooms
    assert sorted(name for _, name in rooms) == sorted(stockpot.__all__)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="stockpot has no Nonsense"):
        stockpot.Nonsense  # noqa: B018


def test_import_loads_nothing_heavy_and_names_work_in_a_fresh_interpreter() -> None:
    code = (
        "import sys, stockpot\n"
        "assert not {'torch', 'transformers', 'numpy', 'tyro'} & set(sys.modules)\n"
        "from stockpot import Rollout, GRPO\n"
        "import stockpot.train\n"
        "print(Rollout.__name__, GRPO().clip_low, callable(stockpot.train.train), stockpot.__version__)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert told.stdout.split() == ["Rollout", "0.2", "True", stockpot.__version__], told.stderr


def test_help_and_version_come_at_once() -> None:
    """`stockpot --help` must not wait for torch."""
    code = (
        "import sys; from stockpot import cli\n"
        "assert cli.main(['--help']) == cli.main(['--version']) == 0\n"
        "assert cli.main(['nonsense']) == 2\n"
        "print('transformers' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert told.returncode == 0 and told.stdout.splitlines()[-1] == "False", told.stderr
