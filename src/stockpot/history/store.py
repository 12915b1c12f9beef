"""What past policies wrote: an append-only store of rollouts in one SQLite file. It remembers, it never decides.

A step is one transaction: after a power cut it is there as a whole or not at all. Tokens are kept as int32 and
log-probs as float32, so a rollout that is read equals the one that was written, bit for bit. Ids and steps grow
together, so forgetting the steps after a checkpoint (`truncate`) leaves the store as if they had never been written.
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from math import inf, isnan
from pathlib import Path
from typing import Any

from stockpot.history import parquet
from stockpot.history.file import (
    CANDIDATES,
    ONCE,
    RUNS,
    TOTALS,
    USES,
    Execute,
    connect,
    errors,
    inspect,
    is_first_format,
    lay_out,
)
from stockpot.history.rows import Once, Score, fingerprint, load, prompt_row, to_array, to_bytes
from stockpot.types import KINDS, Candidate, Rollout, StockpotError

PAGE = 128
"""Rollouts on the heap at a time while streaming."""
Bounds = tuple[float | None, float | None]
"""Lowest and highest value, both included; None leaves that end open."""


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
        with errors(path):
            database = connect(path, read_only)
            try:
                if not read_only:
                    lay_out(database, {"run": run, "vocabulary": vocabulary})
                stored = inspect(database, path, vocabulary)
            except BaseException:
                database.close()
                raise
        return cls(path, database, stored["run"], stored["vocabulary"])

    def append(self, step: int, rollouts: Sequence[Rollout], scores: Sequence[Score] = ()) -> list[int]:
        """Store what was sampled at `step` (its live ends are by the policy of that version); their ids, in order.

        With it, the `scores` that a reference gave to these or to other responses.
        """
        rollouts = list(rollouts)
        with self._transaction("BEGIN IMMEDIATE") as execute:
            last, newest = execute("SELECT id, step FROM rollouts ORDER BY id DESC LIMIT 1").fetchone() or (0, step)
            if step < newest:
                raise StockpotError(f"{self.path}: step {step} cannot follow step {newest}; truncate({step}) first.")
            once = Once(execute)
            for number, rollout in enumerate(rollouts, last + 1):
                writer = None
                for position, span in enumerate(rollout.spans):
                    setup, author = span.sampling, span.author
                    writer = once("authors", number, author.run, author.version)
                    sampling = once("samplings", number, setup.temperature, setup.top_k, setup.top_p, setup.min_p)
                    known = None if span.log_probs is None else to_bytes("f", span.log_probs)
                    head = (number, position, writer, KINDS.index(span.kind), sampling, span.trained, span.source)
                    execute("INSERT INTO spans VALUES (?,?,?,?,?,?,?,?,?)", (*head, to_bytes("i", span.tokens), known))
                if rollout.reward is not None and isnan(rollout.reward):  # SQLite would store None
                    raise StockpotError(f"prompt {rollout.prompt.key!r}: a reward is NaN; mend the reward function.")
                prompt = once("prompts", number, *prompt_row(rollout.prompt))
                lengths = (len(rollout), rollout.prefix_length)
                row = (number, step, prompt, writer, rollout.reward, *lengths, rollout.finish)
                execute("INSERT INTO rollouts VALUES (?,?,?,?,?,?,?,?)", row)
            for score in scores:
                name, given = (score.response, score.reference), to_bytes("f", score.log_probs)
                execute("INSERT OR IGNORE INTO scores VALUES (?,?,?,?)", (*name, step, given))
        return list(range(last + 1, last + 1 + len(rollouts)))

    def scores(self, rollouts: Sequence[Rollout], reference: str) -> dict[bytes, array[float]]:
        """What the reference of that name gave the tokens of these responses, where it has read them."""
        names = {fingerprint(rollout) for rollout in rollouts}
        with self._transaction() as execute:
            if is_first_format(self._database):
                return {}
            query = "SELECT log_probs FROM scores WHERE response = ? AND reference = ?"
            rows = ((name, execute(query, (name, reference)).fetchone()) for name in names)
            return {name: to_array("f", row[0]) for name, row in rows if row is not None}

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
            return {key: [Candidate._make(row) for row in reversed(rows)] for key, rows in newest_first}

    def read(self, ids: Sequence[int]) -> list[Rollout]:
        """The rollouts with these ids, in the order asked."""
        with self._transaction() as execute:
            stored = {rollout.id: rollout for _, rollout in load(execute, ids)}
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
            execute("DELETE FROM scores WHERE step >= ?", (step,))
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
        """Write one row per rollout, its spans in a list; how many. Needs pyarrow."""
        return parquet.export(self._stream({}), path, {"run": self.run, "vocabulary": self.vocabulary}, 4 * PAGE)

    def close(self) -> None:
        with errors(self.path):
            self._database.close()

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self, begin: str = "BEGIN") -> Iterator[Execute]:
        """One view of the store (to read), or one change to it (to write) that is undone whole if anything fails."""
        with errors(self.path):
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
                page = load(execute, ids)
            yield from page
            last = ids[-1] if len(ids) == PAGE else newest


def _ends(bounds: Bounds | None) -> tuple[float, float]:
    low, high = bounds or (None, None)
    return -inf if low is None else low, inf if high is None else high
