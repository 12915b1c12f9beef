"""What past policies wrote: an append-only store of rollouts in one SQLite file. It remembers, it never decides.

A step is one transaction: after a power cut it is there as a whole or not at all. Tokens are kept as int32 and
log-probs as float32, so a rollout that is read equals the one that was written, bit for bit. Ids and steps grow
together, so forgetting the steps after a checkpoint (`truncate`) leaves the store as if they had never been written.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import islice
from math import inf, isnan
from pathlib import Path
from typing import Any

from .types import KINDS, Author, Candidate, Prompt, Rollout, Sampling, Span, StockpotError

APPLICATION, FORMAT = 0x53544F43, 1
"""Marks in the header of the file: that it is ours ("STOC"), and which version of the schema below it has."""
PATIENCE = 30.0
"""Seconds to wait for another process's write lock."""
PAGE = 128
"""Rollouts on the heap at a time while streaming."""
ONCE = {
    "prompts": ("key", "tokens", "text", "columns"),
    "authors": ("run", "version"),
    "samplings": ("temperature", "top_k", "top_p", "min_p"),
}
"""Tables whose rows are stored once, when first needed; their column `first` is the rollout that needed them."""

SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE prompts(id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, tokens BLOB NOT NULL, text TEXT NOT NULL,
    columns TEXT NOT NULL, first INTEGER NOT NULL);
CREATE TABLE authors(id INTEGER PRIMARY KEY, run TEXT NOT NULL, version INTEGER, first INTEGER NOT NULL,
    UNIQUE(run, version));
CREATE TABLE samplings(id INTEGER PRIMARY KEY, temperature REAL NOT NULL, top_k INTEGER NOT NULL, top_p REAL NOT NULL,
    min_p REAL NOT NULL, first INTEGER NOT NULL, UNIQUE(temperature, top_k, top_p, min_p));
CREATE TABLE rollouts(id INTEGER PRIMARY KEY, step INTEGER NOT NULL, prompt INTEGER NOT NULL, writer INTEGER,
    reward REAL, length INTEGER NOT NULL, prefix INTEGER NOT NULL, finish TEXT NOT NULL);
CREATE TABLE spans(rollout INTEGER NOT NULL, position INTEGER NOT NULL, author INTEGER NOT NULL, kind INTEGER NOT NULL,
    sampling INTEGER NOT NULL, trained INTEGER NOT NULL, source INTEGER, tokens BLOB NOT NULL, log_probs BLOB,
    PRIMARY KEY(rollout, position));
CREATE INDEX candidates ON rollouts(prompt, step, id, reward, length);
CREATE INDEX sources ON spans(source, kind) WHERE source IS NOT NULL
"""
SPANS = """SELECT rollout, kind, trained, source, tokens, log_probs, run, version, temperature, top_k, top_p, min_p
FROM spans CROSS JOIN authors ON authors.id = author CROSS JOIN samplings ON samplings.id = sampling
WHERE rollout IN (SELECT value FROM json_each(?)) ORDER BY rollout, position"""
ROLLOUTS = """SELECT rollouts.id, step, reward, length, finish, prompt, key, tokens, text, columns
FROM rollouts CROSS JOIN prompts ON prompts.id = prompt
WHERE rollouts.id IN (SELECT value FROM json_each(?)) ORDER BY rollouts.id"""
CANDIDATES = """SELECT id, step, reward, length FROM rollouts WHERE prompt = (SELECT id FROM prompts WHERE key = ?)
AND step BETWEEN ? AND ? AND reward BETWEEN ? AND ? ORDER BY step DESC, id DESC LIMIT ?"""
USES = """SELECT source, count(DISTINCT rollout) FROM spans
WHERE source IN (SELECT value FROM json_each(?)) AND kind = ? GROUP BY source"""
TOTALS = "SELECT count(*), ifnull(sum(length), 0), min(step), max(step), avg(reward), total(prefix > 0) FROM rollouts"
RUNS = """SELECT run, sum(n) FROM (SELECT writer, count(*) AS n FROM rollouts GROUP BY writer)
JOIN authors ON id = writer GROUP BY run ORDER BY run"""

CURES = {
    "prompts.key": "a prompt's tokens, text or columns differ from those stored under its key; give it a new key",
    "not a database": "this is not a stockpot history; name another file, or move this one away",
    "malformed": "the file is damaged; restore a copy of it, or move it away to begin anew",
    "full": "the disk is full; free some space and resume, the steps before this one are safe",
    "disk I/O": "the disk failed (full, over quota or broken); free some space and resume, the steps before are safe",
    "readonly": "it is open for reading only; open it without read_only, or give yourself the right to write there",
    "unable to open": "it cannot be opened; check that its folder exists and that you may write there",
    "locked": "another process is writing to it; wait for that run to end, or give this one a folder of its own",
    "closed database": "this history is closed; open it again",
}
"""Words of SQLite's errors, and what they mean to the user."""

Bounds = tuple[float | None, float | None]
"""Lowest and highest value, both included; None leaves that end open."""
Execute = Callable[..., sqlite3.Cursor]


class History:
    """The store of a run.

    >>> from tempfile import mkdtemp
    >>> history = History.open(Path(mkdtemp(), "history.sqlite"), run="my-run")
    >>> live = Span(Author("my-run", 87), [5, 9, 2], [-0.5, -0.25, -1.0])
    >>> history.append(87, [Rollout(Prompt("2+2", [4, 1, 4]), (live,), reward=1.0)])
    [1]
    >>> history.candidates(["2+2"], newest=100)
    {'2+2': [Candidate(id=1, version=87, reward=1.0, length=3)]}
    >>> history.read([1])[0].spans == (live,)
    True
    """

    def __init__(self, path: Path, database: sqlite3.Connection, run: str, vocabulary: str) -> None:
        self.path, self.run, self.vocabulary = path, run, vocabulary
        self._database = database

    @classmethod
    def open(cls, path: Path, *, run: str = "", vocabulary: str = "", read_only: bool = False) -> History:
        """Open the history at `path`, or create it. `vocabulary` is a fingerprint of the tokenizer: ids hang on it."""
        path = Path(path).resolve()
        if read_only and not path.is_file():
            raise StockpotError(f"{path}: there is no history to read here; check the path.")
        with _errors(path):
            database = _connect(path, read_only)
            try:
                if not read_only:
                    _lay_out(database, {"run": run, "vocabulary": vocabulary})
                stored = _inspect(database, path, vocabulary)
            except BaseException:
                database.close()
                raise
        return cls(path, database, stored["run"], stored["vocabulary"])

    def append(self, step: int, rollouts: Sequence[Rollout]) -> list[int]:
        """Store what was sampled at `step` (its live ends are by the policy of that version); their ids, in order."""
        rollouts = list(rollouts)
        with self._transaction("BEGIN IMMEDIATE") as execute:
            last, newest = execute("SELECT id, step FROM rollouts ORDER BY id DESC LIMIT 1").fetchone() or (0, step)
            if step < newest:
                raise StockpotError(f"{self.path}: step {step} cannot follow step {newest}; truncate({step}) first.")
            once = _Once(execute)
            for number, rollout in enumerate(rollouts, last + 1):
                writer = None
                for position, span in enumerate(rollout.spans):
                    setup, author = span.sampling, span.author
                    writer = once("authors", number, author.run, author.version)
                    sampling = once("samplings", number, setup.temperature, setup.top_k, setup.top_p, setup.min_p)
                    known = None if span.log_probs is None else _bytes("f", span.log_probs)
                    head = (number, position, writer, KINDS.index(span.kind), sampling, span.trained, span.source)
                    execute("INSERT INTO spans VALUES (?,?,?,?,?,?,?,?,?)", (*head, _bytes("i", span.tokens), known))
                if rollout.reward is not None and isnan(rollout.reward):  # SQLite would store None
                    raise StockpotError(f"prompt {rollout.prompt.key!r}: a reward is NaN; mend the reward function.")
                prompt = once("prompts", number, *_prompt_row(rollout.prompt))
                lengths = (len(rollout), rollout.prefix_length)
                row = (number, step, prompt, writer, rollout.reward, *lengths, rollout.finish)
                execute("INSERT INTO rollouts VALUES (?,?,?,?,?,?,?,?)", row)
        return list(range(last + 1, last + 1 + len(rollouts)))

    def candidates(
        self,
        prompts: Sequence[str],
        *,
        oldest: int | None = None,
        newest: int | None = None,
        reward: Bounds | None = None,
        per_prompt: int | None = None,
    ) -> dict[str, list[Candidate]]:
        """The rollouts of each prompt, by id, without their tokens; with `per_prompt` only that many of the newest.

        Every prompt asked for gets a list, maybe empty; a rollout without reward is no candidate.
        Each prompt is one short stretch of a covering index, so the size of the store does not matter.
        """
        low, high = _ends(reward)
        window = (-(2**62) if oldest is None else oldest, 2**62 if newest is None else newest)
        bounds = (*window, low, high, -1 if per_prompt is None else per_prompt)
        with self._transaction() as execute:
            newest_first = ((key, execute(CANDIDATES, (key, *bounds)).fetchall()) for key in prompts)
            return {key: [Candidate(*row) for row in reversed(rows)] for key, rows in newest_first}

    def read(self, ids: Sequence[int]) -> list[Rollout]:
        """The rollouts with these ids, in the order asked."""
        with self._transaction() as execute:
            stored = {rollout.id: rollout for _, rollout in _load(execute, ids)}
        for number in ids:
            if number not in stored:
                raise StockpotError(f"{self.path}: no rollout has id {number}; ask `candidates` or `find` for ids.")
        return [stored[number] for number in ids]

    def find(
        self,
        *,
        prompt: str | None = None,
        versions: Bounds | None = None,
        reward: Bounds | None = None,
        length: Bounds | None = None,
        run: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Rollout]:
        """Stream rollouts by id, a page at a time. `run` is the last span's author's, who wrote the live end."""
        where: dict[str, tuple[Any, ...]] = {}
        for column, bounds in (("step", versions), ("reward", reward), ("length", length)):
            if bounds is not None:
                where[f"{column} BETWEEN ? AND ?"] = _ends(bounds)
        if prompt is not None:
            where["prompt = (SELECT id FROM prompts WHERE key = ?)"] = (prompt,)
        if run is not None:
            where["writer IN (SELECT id FROM authors WHERE run = ?)"] = (run,)
        return (rollout for _, rollout in islice(self._stream(where), limit))

    def uses(self, ids: Sequence[int]) -> dict[int, int]:
        """How many stored rollouts have a prefix cut from each of these; counted from the spans, so it cannot drift."""
        with self._transaction() as execute:
            return dict.fromkeys(ids, 0) | dict(execute(USES, (json.dumps(list(ids)), KINDS.index("prefix"))))

    def truncate(self, step: int) -> int:
        """Forget the rollouts of `step` and later, and all that came in with them; how many. For an exact resume."""
        with self._transaction("BEGIN IMMEDIATE") as execute:
            first = execute("SELECT min(id) FROM rollouts WHERE step >= ?", (step,)).fetchone()
            execute("DELETE FROM spans WHERE rollout >= ?", first)
            for table in ONCE:
                execute(f"DELETE FROM {table} WHERE first >= ?", first)
            return execute("DELETE FROM rollouts WHERE id >= ?", first).rowcount

    def summary(self) -> dict[str, Any]:
        """What is in it, in figures."""
        with self._transaction() as execute:
            rollouts, tokens, first, last, reward, prefixed = execute(TOTALS).fetchone()
            prompts = execute("SELECT count(*) FROM prompts").fetchone()[0]
            runs = dict(execute(RUNS))
        size = sum(file.stat().st_size for file in (self.path, Path(f"{self.path}-wal")) if file.exists())
        steps, per_token = None if first is None else (first, last), size / tokens if tokens else None
        counts = {"rollouts": rollouts, "with_prefix": int(prefixed), "tokens": tokens, "prompts": prompts}
        return counts | {"runs": runs, "steps": steps, "reward": reward, "bytes": size, "bytes_per_token": per_token}

    def to_parquet(self, path: Path) -> int:
        """Write one row per rollout, its spans in a list; how many. Streamed, and written aside until it is whole."""
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise StockpotError('Parquet needs pyarrow, which is missing; run: pip install "stockpot[data]"') from None
        path = Path(path)
        aside, count = path.with_name(f"{path.name}.part"), 0
        schema = _parquet_schema(pyarrow).with_metadata({"run": self.run, "vocabulary": self.vocabulary})
        try:
            with parquet.ParquetWriter(aside, schema) as writer:
                stream = self._stream({})
                while page := [_parquet_row(*stored) for stored in islice(stream, 4 * PAGE)]:
                    writer.write_table(pyarrow.Table.from_pylist(page, schema))
                    count += len(page)
            os.replace(aside, path)
        except OSError as error:
            raise StockpotError(f"{path}: cannot be written ({error}); check its folder and the room there.") from error
        finally:
            aside.unlink(missing_ok=True)
        return count

    def close(self) -> None:
        with _errors(self.path):
            self._database.close()

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self, begin: str = "BEGIN") -> Iterator[Execute]:
        """One view of the store (to read), or one change to it (to write) that is undone whole if anything fails."""
        with _errors(self.path):
            self._database.execute(begin)
            try:
                yield self._database.execute
                self._database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has already rolled back after some errors
                    self._database.execute("ROLLBACK")
                raise

    def _stream(self, where: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[int, Rollout]]:
        """Steps and rollouts by id, of those stored when the first is asked for. Between pages no lock is held."""
        conditions = " AND ".join(("id > ? AND id <= ?", *where))
        query = f"SELECT id FROM rollouts WHERE {conditions} ORDER BY id LIMIT {PAGE}"
        values = [value for group in where.values() for value in group]
        with self._transaction() as execute:
            last, newest = 0, execute("SELECT ifnull(max(id), 0) FROM rollouts").fetchone()[0]
        while last < newest:
            with self._transaction() as execute:
                ids = [number for (number,) in execute(query, (last, newest, *values))]
                page = _load(execute, ids)
            yield from page
            last = ids[-1] if len(ids) == PAGE else newest


class _Once:
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


def _connect(path: Path, read_only: bool) -> sqlite3.Connection:
    """A connection. Readers need lock files beside the store; where none can be made (an archive) they read without."""
    mode = "ro" if read_only else "rwc"
    database = sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, timeout=PATIENCE, isolation_level=None)
    try:
        database.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.Error as error:
        database.close()
        unlockable = any(words in str(error) for words in ("unable to open", "readonly"))
        if not read_only or not unlockable or Path(f"{path}-wal").exists():
            raise
        database = sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True, isolation_level=None)
    return database


def _lay_out(database: sqlite3.Connection, meta: Mapping[str, str]) -> None:
    """Make an empty file a history, in one transaction; leave any other as it is."""
    empty = "SELECT count(*) = 0 FROM sqlite_master"
    if database.execute(empty).fetchone()[0]:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("BEGIN IMMEDIATE")
        if database.execute(empty).fetchone()[0]:  # still: no other process was faster
            for statement in SCHEMA.split(";"):
                database.execute(statement)
            database.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            database.execute(f"PRAGMA application_id = {APPLICATION}")
            database.execute(f"PRAGMA user_version = {FORMAT}")
        database.execute("COMMIT")
    database.execute("PRAGMA synchronous = FULL")


def _inspect(database: sqlite3.Connection, path: Path, vocabulary: str) -> dict[str, str]:
    """What the file says of itself, if it is a history that this version and this tokenizer can read."""
    if database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
        raise sqlite3.DatabaseError("file is not a database of ours")
    if (version := database.execute("PRAGMA user_version").fetchone()[0]) > FORMAT:
        raise StockpotError(f"{path}: it has format {version}, this stockpot knows {FORMAT}; upgrade stockpot.")
    stored = dict(database.execute("SELECT key, value FROM meta"))
    if vocabulary and stored["vocabulary"] not in ("", vocabulary):
        had = f"its ids are of another tokenizer ({stored['vocabulary']}, not {vocabulary})"
        raise StockpotError(f"{path}: {had}; use that tokenizer, or begin a history of your own.")
    return stored


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Tell SQLite's errors in our words: one line, the cause and the cure."""
    try:
        yield
    except (sqlite3.Error, UnicodeEncodeError, OverflowError) as error:
        told = next((cure for words, cure in CURES.items() if words in str(error)), f"SQLite refused ({error})")
        raise StockpotError(f"{path}: {told}.") from error


def _load(execute: Execute, ids: Sequence[int]) -> list[tuple[int, Rollout]]:
    """Steps and rollouts of those `ids` that are stored, by id."""
    asked = (json.dumps(list(ids)),)
    spans: dict[int, list[Span]] = {}
    for number, kind, trained, source, tokens, known, run, version, *setup in execute(SPANS, asked):
        log_probs = None if known is None else _array("f", known)
        rest = KINDS[kind], Sampling(*setup), bool(trained), source
        spans.setdefault(number, []).append(Span(Author(run, version), _array("i", tokens), log_probs, *rest))
    prompts: dict[int, Prompt] = {}
    loaded = []
    for number, step, reward, length, finish, prompt, key, tokens, text, columns in execute(ROLLOUTS, asked):
        if prompt not in prompts:
            prompts[prompt] = Prompt(key, _array("i", tokens), text, json.loads(columns))
        rollout = Rollout(prompts[prompt], tuple(spans.get(number, ())), reward, finish, number)
        if len(rollout) != length:
            raise sqlite3.DatabaseError(f"rollout {number} is malformed")
        loaded.append((step, rollout))
    return loaded


def _bytes(code: str, values: Sequence[float]) -> bytes:
    """Tokens ("i") or log-probs ("f") as they lie in the file: four bytes each, little-endian."""
    stored = array(code, values)
    if sys.byteorder == "big":
        stored.byteswap()
    return stored.tobytes()


def _array(code: str, stored: bytes) -> array[Any]:
    """`_bytes` undone."""
    values: array[Any] = array(code)
    values.frombytes(stored)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _ends(bounds: Bounds | None) -> tuple[float, float]:
    low, high = bounds or (None, None)
    return -inf if low is None else low, inf if high is None else high


def _prompt_row(prompt: Prompt) -> tuple[str, bytes, str, str]:
    """The columns of table `prompts`; JSON is sorted by name, so that equal prompts have equal rows."""
    try:
        columns = json.dumps(dict(prompt.columns), sort_keys=True, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise StockpotError(f"prompt {prompt.key!r}: JSON cannot hold its columns ({error}); convert them.") from None
    return prompt.key, _bytes("i", prompt.tokens), prompt.text, columns


def _parquet_schema(pa: Any) -> Any:
    """`Rollout` in Arrow's types; a prompt's columns are JSON, for no two data sets have the same."""
    tokens, text, whole, real = pa.list_(pa.int32()), pa.string(), pa.int64(), pa.float64()
    author = pa.struct({"run": text, "version": whole})
    sampling = pa.struct({"temperature": real, "top_k": whole, "top_p": real, "min_p": real})
    span = {"author": author, "tokens": tokens, "log_probs": pa.list_(pa.float32()), "kind": text, "sampling": sampling}
    spans = pa.list_(pa.struct(span | {"trained": pa.bool_(), "source": whole}))
    prompt = pa.struct({"key": text, "tokens": tokens, "text": text, "columns": text})
    row = {"id": whole, "step": whole, "prompt": prompt, "spans": spans, "reward": real, "finish": text}
    return pa.schema(list(row.items()))


def _parquet_row(step: int, rollout: Rollout) -> dict[str, Any]:
    row = asdict(rollout) | {"step": step}
    row["prompt"]["columns"] = json.dumps(row["prompt"]["columns"], ensure_ascii=False)
    return row
