"""The SQLite file itself: its tables, how it is opened, and its errors in our words."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from stockpot.types import StockpotError

APPLICATION, FORMAT = 0x53544F43, 2
"""Marks in the header of the file: that it is ours ("STOC"), and the version of its schema (1 had no scores)."""
PATIENCE = 30.0
"""Seconds to wait for another process's write lock."""
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
SCORES = """CREATE TABLE scores(response BLOB NOT NULL, reference TEXT NOT NULL, step INTEGER NOT NULL,
    log_probs BLOB NOT NULL, PRIMARY KEY(response, reference))"""
"""What a reference gave the tokens of a response: by the fingerprint of the response, so that who wrote it, and
whether it is stored here, plays no part. Since format 2."""
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

Execute = Callable[..., sqlite3.Cursor]


def connect(path: Path, read_only: bool) -> sqlite3.Connection:
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


def lay_out(database: sqlite3.Connection, meta: Mapping[str, str]) -> None:
    """Make an empty file a history, in one transaction; bring one of format 1 up to date; leave others as they are."""
    empty = "SELECT count(*) = 0 FROM sqlite_master"
    if database.execute(empty).fetchone()[0]:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("BEGIN IMMEDIATE")
        if database.execute(empty).fetchone()[0]:  # still: no other process was faster
            for statement in (*SCHEMA.split(";"), SCORES):
                database.execute(statement)
            database.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            database.execute(f"PRAGMA application_id = {APPLICATION}")
            database.execute(f"PRAGMA user_version = {FORMAT}")
        database.execute("COMMIT")
    if is_first_format(database):
        database.execute("BEGIN IMMEDIATE")
        if is_first_format(database):  # still
            database.execute(SCORES)
            database.execute(f"PRAGMA user_version = {FORMAT}")
        database.execute("COMMIT")
    database.execute("PRAGMA synchronous = FULL")


def is_first_format(database: sqlite3.Connection) -> bool:
    """Whether it is a history without scores: written by an older stockpot, and read by this one as it is."""
    marks = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    return tuple(marks) == (APPLICATION, 1)


def inspect(database: sqlite3.Connection, path: Path, vocabulary: str) -> dict[str, str]:
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
def errors(path: Path) -> Iterator[None]:
    """Tell SQLite's errors in our words: one line, the cause and the cure."""
    try:
        yield
    except (sqlite3.Error, UnicodeEncodeError, OverflowError) as error:
        told = next((cure for words, cure in CURES.items() if words in str(error)), f"SQLite refused ({error})")
        raise StockpotError(f"{path}: {told}.") from error
