"""Rollouts as rows of the tables, and back."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

from stockpot.history.file import ONCE, ROLLOUTS, SPANS, Execute
from stockpot.types import KINDS, Author, Prompt, Rollout, Sampling, Span, StockpotError


class Once:
    """Ids of the rows that are stored once. Lives for one transaction, so that an undone one leaves nothing behind."""

    def __init__(self, execute: Execute) -> None:
        self.execute = execute
        self.ids: dict[tuple[Any, ...], int] = {}

    def __call__(self, table: str, rollout: int, *row: Any) -> int:
        """The id of `row`, brought in by `rollout` if it is new."""
        if (table, row) not in self.ids:
            columns = ONCE[table]
            found = self.execute(f"SELECT id FROM {table} WHERE {' IS ? AND '.join(columns)} IS ?", row).fetchone()
            if found is None:
                insert = f"INSERT INTO {table}({', '.join(columns)}, first) VALUES ({'?, ' * len(row)}?)"
                found = (self.execute(insert, (*row, rollout)).lastrowid,)
            self.ids[table, row] = found[0]
        return self.ids[table, row]


def load(execute: Execute, ids: Sequence[int]) -> list[tuple[int, Rollout]]:
    """Steps and rollouts of those `ids` that are stored, by id."""
    asked = (json.dumps(list(ids)),)
    spans: dict[int, list[Span]] = {}
    for number, kind, trained, source, tokens, known, run, version, *setup in execute(SPANS, asked):
        log_probs = None if known is None else to_array("f", known)
        rest = KINDS[kind], Sampling(*setup), bool(trained), source
        spans.setdefault(number, []).append(Span(Author(run, version), to_array("i", tokens), log_probs, *rest))
    prompts: dict[int, Prompt] = {}
    loaded = []
    for number, step, reward, length, finish, prompt, key, tokens, text, columns in execute(ROLLOUTS, asked):
        if prompt not in prompts:
            prompts[prompt] = Prompt(key, to_array("i", tokens), text, json.loads(columns))
        rollout = Rollout(prompts[prompt], tuple(spans.get(number, ())), reward, finish, number)
        if len(rollout) != length:
            raise sqlite3.DatabaseError(f"rollout {number} is malformed")
        loaded.append((step, rollout))
    return loaded


class Score(NamedTuple):
    """What a reference gave the tokens of a response: read once, kept in the history."""

    response: bytes
    """The response's `fingerprint`."""
    reference: str
    """The reference's name: another one, or the same after it has moved, gives other numbers."""
    log_probs: array[float]


def fingerprint(rollout: Rollout) -> bytes:
    """Names a response by what its log-probs hang on: prompt, tokens, and the distributions they are taken under."""
    name = hashlib.blake2b(to_bytes("i", rollout.prompt.tokens), digest_size=16)
    for span in rollout.spans:
        name.update(repr(span.sampling).encode() + to_bytes("i", span.tokens))
    return name.digest()


def to_bytes(code: str, values: Sequence[float]) -> bytes:
    """Tokens ("i") or log-probs ("f") as they lie in the file: four bytes each, little-endian."""
    stored = array(code, values)
    if sys.byteorder == "big":
        stored.byteswap()
    return stored.tobytes()


def to_array(code: str, stored: bytes) -> array[Any]:
    """`to_bytes` undone."""
    values: array[Any] = array(code)
    values.frombytes(stored)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def prompt_row(prompt: Prompt) -> tuple[str, bytes, str, str]:
    """The columns of table `prompts`; JSON is sorted by name, so that equal prompts have equal rows."""
    try:
        columns = json.dumps(dict(prompt.columns), sort_keys=True, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise StockpotError(f"prompt {prompt.key!r}: JSON cannot hold its columns ({error}); convert them.") from None
    return prompt.key, to_bytes("i", prompt.tokens), prompt.text, columns
