"""A JSONL file that only grows: each line an object under a key. What a kill tears off is cut away and made again."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from stockpot.types import StockpotError

Item = tuple[str, Mapping[str, Any]]


class Shelf:
    """Open for one process at a time. The first line, `head`, says under which conditions the others were made.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "answers.jsonl"
    >>> with Shelf(path, {"seed": 0}) as shelf:
    ...     shelf.append([("a", {"n": 1}), ("b", {"n": 2})])
    >>> with Shelf(path, {"seed": 0}) as shelf:
    ...     print(len(shelf), "b" in shelf, shelf["a"])
    2 True {'n': 1}
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path = path
        self._lines: dict[str, dict[str, Any]] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            why = error.strerror or error
            raise StockpotError(f"cannot write {path} ({why}): check your rights, or name another folder.") from error
        try:
            self._open(json.loads(json.dumps(head)))
        except BaseException:
            self._file.close()
            raise

    def _open(self, head: dict[str, Any]) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StockpotError(f"another process writes {self.path}: wait for it, or name another folder.") from error
        self._file.seek(0)
        stored = self._file.read()
        whole = stored[: stored.rfind(b"\n") + 1]
        if len(whole) < len(stored):
            self._file.truncate(len(whole))
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            self._lines = {line.pop("key"): line for line in lines[1:]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StockpotError(f"{self.path} is damaged ({error}): move it away to make it anew.") from error
        if not lines:
            self._write([head])
        elif lines[0] != head:
            raise StockpotError(f"{self.path} was made under other conditions: move it away, or name another folder.")

    def append(self, items: Sequence[Item]) -> None:
        """Add lines; they are on the disk when this returns. A key that is there already keeps what it has."""
        new: dict[str, dict[str, Any]] = {}
        for key, line in items:
            if key not in self._lines:
                new.setdefault(key, dict(line))
        self._write([{"key": key, **line} for key, line in new.items()])
        self._lines |= new

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        end = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            why = error.strerror or error
            os.truncate(self.path, end)
            raise StockpotError(f"cannot write {self.path} ({why}): free some space and begin again.") from error

    def close(self) -> None:
        """Let others have it."""
        self._file.close()

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __contains__(self, key: object) -> bool:
        return key in self._lines

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._lines[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)
