"""The shape of the house: who may import whom, how large a room may grow, and that every door has a sign.

Read from the syntax trees, so an import inside a function counts like any other.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stockpot.types

SOURCE = Path(stockpot.types.__file__).parent

LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("reading",),
    ("bench",),
    ("recipes",),
    ("report",),
    ("train", "soup_inference", "benchmarks", "budgets", "traces", "sft"),
    ("evaluate", "start", "heads", "judged", "compare", "plan", "pens"),
    ("library", "soft"),
    ("engines",),
    ("config",),
    ("prompts", "shapes"),
    (
        "tasks",
        "rewards",
        "samplers",
        "history",
        "policy",
        "record",
        "checkpoints",
        "console",
        "models",
        "options",
        "snapshots",
        "shelf",
    ),
    ("critic", "learner"),
    ("lora",),
    ("alone", "fused", "moments", "sandbox"),
    ("diagnostics", "mismatch"),
    ("algorithms", "regularizers", "prefixes", "batching", "passk", "scoring", "selection", "written"),
    ("as_json", "calling", "clock", "ops", "seeds"),
    ("types",),
)
"""Top to bottom. A room imports from the layers below its own, and from nothing beside it."""
PURE = {room for layer in LAYERS[LAYERS.index(("diagnostics", "mismatch")) :] for room in layer}
"""Rooms where torch and the standard library are all there is: the mathematics can be read and tested alone."""

LONGEST_FILE, LONGEST_FUNCTION = 300, 60
LONGEST = {"train.py": 200}
"""Files held to another length than the rest."""

HEIGHT = {room: -depth for depth, layer in enumerate(LAYERS) for room in layer}
FILES = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
every_file = pytest.mark.parametrize("name", FILES)


def room(name: str) -> str:
    """`samplers/torch.py` -> samplers; `ops.py` -> ops; the package's own file has no room."""
    return name.split("/")[0].removesuffix(".py")


def imports(name: str) -> Iterator[str]:
    """Everything a file imports, as dotted names; relative ones made absolute."""
    package = ["stockpot", *name.split("/")[:-1]]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_of(name: str) -> set[str]:
    """The rooms that a file imports from."""
    inside = {dotted.split(".")[1] for dotted in imports(name) if dotted.startswith("stockpot.")}
    return inside - {"__version__"}


def test_every_module_has_a_room() -> None:
    """A new module fails here until someone has thought about where it stands."""
    unknown = {room(name) for name in FILES} - set(HEIGHT) - {"__init__"}
    assert not unknown, f"give {unknown} a place in LAYERS"


@every_file
def test_imports_go_down(name: str) -> None:
    own = room(name)
    if own == "__init__":
        return
    wrong = {other for other in rooms_of(name) if other != own and HEIGHT.get(other, 0) >= HEIGHT[own]}
    assert not wrong, f"{name} stands beside or below {wrong}"


@pytest.mark.parametrize("name", [name for name in FILES if room(name) in PURE])
def test_the_pure_part_imports_torch_and_the_standard_library_only(name: str) -> None:
    outside = {dotted.split(".")[0] for dotted in imports(name)} - set(sys.stdlib_module_names) - {"stockpot"}
    assert outside <= {"torch"}


def test_the_pure_part_brings_nothing_else_into_a_fresh_interpreter() -> None:
    """What the syntax cannot show: an import by way of another, the package's own file included."""
    modules = [f"stockpot.{name.removesuffix('.py').replace('/', '.')}" for name in FILES if room(name) in PURE]
    code = (
        "import sys, importlib, torch\n"
        "before = set(sys.modules)\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(*(new - set(sys.stdlib_module_names)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert set(told.stdout.split()) <= {"stockpot", "torch"}


@every_file
def test_a_file_fits_a_sitting(name: str) -> None:
    lines = len(FILES[name].read_text().splitlines())
    assert lines <= LONGEST.get(name, LONGEST_FILE)


@every_file
def test_a_function_fits_a_screen(name: str) -> None:
    functions = [n for n in ast.walk(TREES[name]) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno >= LONGEST_FUNCTION}  # type: ignore[operator]
    assert not long


# --- docstrings -----------------------------------------------------------------------------------------------------

Function = ast.FunctionDef | ast.AsyncFunctionDef
CLASSES = {node.name: node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def bases(kind: ast.ClassDef) -> Iterator[str]:
    """Names of the classes that a class builds on, `Base[T]` and `module.Base` included."""
    for base in kind.bases:
        plain = base.value if isinstance(base, ast.Subscript) else base
        yield plain.attr if isinstance(plain, ast.Attribute) else ast.unparse(plain)


def explained_above(kind: ast.ClassDef, method: str) -> bool:
    """Whether a base says what the method does; a base from another library is taken to."""
    for base in bases(kind):
        known = CLASSES.get(base)
        if known is None:
            if base not in {"ABC", "Protocol", "Exception"}:
                return True
            continue
        told = any(isinstance(m, Function) and m.name == method and ast.get_docstring(m) for m in known.body)
        if told or explained_above(known, method):
            return True
    return False


def unsigned(tree: ast.Module) -> Iterator[str]:
    """Public classes, functions and methods that neither say what they are nor show it in one statement."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node) and not (isinstance(node, Function) and len(node.body) == 1):
                yield node.name
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                setter = any(ast.unparse(d).endswith(".setter") for d in getattr(method, "decorator_list", ()))
                if isinstance(method, Function) and not method.name.startswith("_") and not setter:
                    said = ast.get_docstring(method) or len(method.body) == 1 or explained_above(node, method.name)
                    if not said:
                        yield f"{node.name}.{method.name}"


@every_file
def test_what_is_public_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(TREES[name]) or not TREES[name].body, "a file begins with what it is for"
    assert not list(unsigned(TREES[name]))
