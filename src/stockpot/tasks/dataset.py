"""Any dataset in TRL's form, judged by any reward function in TRL's form."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stockpot.calling import accepted
from stockpot.tasks.base import Split, Task
from stockpot.types import StockpotError

COLUMN = re.compile(r"\{(\w+)\}")
"""A column's name in a template; other braces stand for themselves."""


@dataclass(frozen=True)
class Dataset(Task):
    """Rows with a `prompt` (text or messages) from a file or the hub; other columns go to the judge by name."""

    train: str = ""
    """JSONL or Parquet file, or a hub id, of training prompts."""
    test: str = ""
    """The same for held-out prompts; empty: the last tenth of the training rows (at least one) is held out."""
    judge: str = ""
    """The reward function: `file.py:function` or `module:function`, called as TRL calls it."""
    template: str = ""
    """How a prompt is made of a row: text with columns named in braces, as in "{problem} Think first."; empty: the
    column `prompt` as it is."""
    only: int = 0
    """Train on this many rows, spread evenly over the training rows; 0 takes all."""
    closing: str = ""
    """The words that close the thinking of a response, such as </think>: `stockpot budget` cuts before them."""

    def __post_init__(self) -> None:
        if self.only < 0:
            raise StockpotError(f"task.only must be 0 (all rows) or more, not {self.only}.")

    def rows(self, split: Split) -> Sequence[Mapping[str, Any]]:
        if not self.train:
            raise StockpotError("no dataset was named: give one with --task.train FILE.jsonl.")
        load_function(self.judge)  # one that cannot be loaded is told now, not after the first rollouts
        rows, held_out = self.read(self.train, "train"), 0
        if not self.test:
            if len(rows) < 2:
                raise StockpotError(
                    f"{self.train} has {len(rows)} rows, too few to hold any out: add some, or name a --task.test."
                )
            held_out = max(1, len(rows) // 10)
        if split == "test":
            return [self.asked(row) for row in (self.read(self.test, "test") if self.test else rows[-held_out:])]
        rows = rows[: len(rows) - held_out]
        if self.only > len(rows):
            raise StockpotError(f"task.only is {self.only}, but {self.train} has {len(rows)} rows to train on.")
        return [self.asked(row) for row in spread(rows, self.only)]

    def read(self, name: str, split: Split) -> Sequence[Mapping[str, Any]]:
        """All rows of a file or hub dataset."""
        return read_rows(name, split)

    def asked(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row with its prompt, where a template makes it."""
        if not self.template:
            return row
        missing = set(COLUMN.findall(self.template)) - row.keys()
        if missing:
            has = ", ".join(map(str, row))
            raise StockpotError(
                f"task.template names {{{sorted(missing)[0]}}}, but the rows of the dataset have {has}."
            )
        return {**row, "prompt": COLUMN.sub(lambda name: str(row[name[1]]), self.template)}

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        judge = load_function(self.judge)
        rest = accepted(judge, {name: columns.pop(name) for name in ("completion_ids",) if name in columns})
        result: list[float] = judge(prompts=prompts, completions=completions, **rest, **columns)
        return result


def spread(rows: Sequence[Any], count: int) -> Sequence[Any]:
    """`count` of the rows at even distances, the same at every call; all of them where `count` is 0."""
    return [rows[i * len(rows) // count] for i in range(count)] if count else rows


@cache
def read_rows(name: str, split: str) -> list[dict[str, Any]]:
    """All rows of a JSONL, JSON or Parquet file, or of a split of a hub dataset.

    `split` may carry the configuration of a hub dataset: `configuration:split`.
    """
    return list(open_rows(name, split))


def open_rows(name: str, split: str, columns: Sequence[str] = ()) -> Iterable[dict[str, Any]]:
    """The same one by one; where only some `columns` are wanted, a large dataset is not read for the others."""
    path = Path(name)
    if path.suffix in (".jsonl", ".json", ".parquet"):
        if not path.is_file():
            raise StockpotError(f"there is no dataset file {name}: check its path.")
        return _parquet(path, columns) if path.suffix == ".parquet" else _json(path)
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise StockpotError(f'reading {name} needs `pip install "stockpot[data]"` (JSONL files do not).') from error
    configuration, _, part = split.rpartition(":")
    try:
        found = datasets.load_dataset(name, *filter(None, [configuration]), split=part)
        wanted = [column for column in found.column_names if column in columns]
        return found.select_columns(wanted) if wanted else found  # type: ignore[no-any-return]
    except Exception as error:
        raise StockpotError(f"cannot load the dataset {name}: {str(error).splitlines()[0]}") from error


def _json(path: Path) -> list[dict[str, Any]]:
    """Lines of objects, or one list of them. Lines end at line feeds alone: LaTeX and prose hold other marks."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise StockpotError(f"{path} is not JSON lines ({error}): write one object a line.") from error
    if not all(isinstance(row, dict) for row in rows):
        raise StockpotError(f'{path} has lines that are no objects: write each as {{"prompt": ..., ...}}.')
    return list(rows)


def _parquet(path: Path, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise StockpotError(f'reading {path} needs `pip install "stockpot[data]"` (JSONL files do not).') from error
    try:
        wanted = [column for column in parquet.read_schema(path).names if column in columns]
        rows: list[dict[str, Any]] = parquet.read_table(path, columns=wanted or None).to_pylist()
    except Exception as error:
        raise StockpotError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    return rows


@cache
def load_function(name: str) -> Any:
    """`file.py:function` or `module:function`."""
    place, _, function = name.rpartition(":")
    if not place:
        raise StockpotError("no judge was named: give one with --task.judge FILE.py:FUNCTION.")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location("stockpot_judge", place)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        return getattr(module, function)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise StockpotError(f"cannot load the judge {name} ({why}): check the file and the function's name.") from error
