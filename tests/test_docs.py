"""README and docs are run, not believed: Python blocks, commands, links."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from runs import stockpot
from stockpot import cli, reading
from test_cli import options

ROOT = Path(__file__).parents[1]
PAGES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if path.exists()]
BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.M | re.S)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def blocks(page: Path, *languages: str) -> list[str]:
    return [textwrap.dedent(text) for _, name, text in BLOCK.findall(page.read_text()) if name in languages]


@every_page
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    """All blocks of a page in one interpreter, in order, as a reader would paste them. What trains is only compiled."""
    code = "".join(blocks(page, "python", "py"))
    compile(code, page.name, "exec")
    cheap = [node for node in ast.parse(code).body if not calls(node, "train")]
    source = "\n".join(ast.unparse(node) for node in cheap)
    if source:
        done = subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr


def calls(node: ast.AST, name: str) -> bool:
    found = (n.func for n in ast.walk(node) if isinstance(n, ast.Call))
    return any(isinstance(f, ast.Name) and f.id == name for f in found)


def commands(page: Path) -> Iterator[list[str]]:
    """`stockpot ...` of the shell blocks and of the text, line ends with a backslash joined."""
    text = page.read_text()
    lines = "\n".join(blocks(page, "", "sh", "bash", "shell", "console")).replace("\\\n", " ").splitlines()
    typed = [line.strip().removeprefix("$ ") for line in lines]
    typed += re.findall(r"`((?:\.venv/bin/)?stockpot [^`]+)`", text)
    for line in typed:
        words = shlex.split(line, comments=True) if re.match(r"(\.venv/bin/)?stockpot\b", line) else []
        if len(words) > 1:
            yield words[1:]


@every_page
def test_commands_exist_with_their_options(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    for command, *words in commands(page):
        if command.startswith("-") or command.isupper():
            continue
        assert command in inspect.getsource(cli.run), f"stockpot {command}"
        known = set(options(command)) | {f"--{name}" for name in reading.COMPONENTS} | {"--out", "--help"}
        for field, name in pairwise(words):
            if field.removeprefix("--") in reading.COMPONENTS and not name.isupper():
                chosen = [f"--{field.removeprefix('--')}", name, "--model", "x"] if name == "dataset" else [field, name]
                known |= set(options_with(command, chosen))
        unknown = {word.split("=")[0] for word in words if word.startswith("--")} - known
        assert not unknown, f"{page.name}: stockpot {command} has no {unknown}"


def options_with(command: str, chosen: list[str]) -> list[str]:
    return re.findall(r"--[\w.-]+", stockpot(command, *chosen, "--help").out)


@every_page
def test_recipes_named_in_commands_exist(page: Path) -> None:
    for command, *words in commands(page):
        if command in ("train", "sft") and words and re.fullmatch(r"[a-z][\w-]*", words[0]):
            assert words[0].replace("-", "_") in reading.recipe_names(), f"{page.name}: no recipe {words[0]}"


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links and pictures point to files; anchors to headings of the page that they name."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ +(.*)$", target.read_text(), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name} links to {link}"


@every_page
def test_files_named_in_code_font_exist(page: Path) -> None:
    """`src/...`, `tests/...`, `docs/...`, `bench/...`: pages outlive the files that they name."""
    for name in re.findall(r"`((?:src|tests|docs|bench)/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), f"{page.name} names {name}"
