"""Any dataset in TRL's form, judged by any reward function in TRL's form."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

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
        rows, held_out = read_rows(self.train, "train"), 0
        if not self.test:
            if len(rows) < 2:
                raise StockpotError(
                    f"{self.train} has {len(rows)} rows, too few to hold any out: add some, or name a --task.test."
                )
            held_out = max(1, len(rows) // 10)
        if split == "test":
            return [self._asked(row) for row in (read_rows(self.test, "test") if self.test else rows[-held_out:])]
        rows = rows[: len(rows) - held_out]
        if self.only > len(rows):
            raise StockpotError(f"task.only is {self.only}, but {self.train} has {len(rows)} rows to train on.")
        return [self._asked(row) for row in spread(rows, self.only)]

    def _asked(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
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
        result: list[float] = load_function(self.judge)(prompts=prompts, completions=completions, **columns)
        return result


def spread(rows: list[Any], count: int) -> list[Any]:
    """`count` of the rows at even distances, the same at every call; all of them where `count` is 0."""
    return [rows[i * len(rows) // count] for i in range(count)] if count else rows


@cache
def read_rows(name: str, split: Split) -> list[dict[str, Any]]:
    """All rows of a JSONL or Parquet file, or of a split of a hub dataset."""
    path = Path(name)
    if path.suffix in (".jsonl", ".json"):
        if not path.is_file():
            raise StockpotError(f"there is no dataset file {name}: check its path.")
        try:
            rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        except ValueError as error:
            raise StockpotError(f"{name} is not JSON lines ({error}): write one object a line.") from error
        if not all(isinstance(row, dict) for row in rows):
            raise StockpotError(f'{name} has lines that are no objects: write each as {{"prompt": ..., ...}}.')
        return rows
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise StockpotError(f'reading {name} needs `pip install "stockpot[data]"` (JSONL files do not).') from error
    try:
        if path.suffix == ".parquet":
            return list(datasets.load_dataset("parquet", data_files=name, split="train"))
        return list(datasets.load_dataset(name, split=split))
    except Exception as error:
        raise StockpotError(f"cannot load the dataset {name}: {str(error).splitlines()[0]}") from error


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
