"""The history keeps what it was given: bit for bit, step by step, through crashes, full disks and other readers."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import stat
import sys
import tempfile
import time
import tracemalloc
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stockpot.history import History
from stockpot.history import file as module
from stockpot.types import Author, Candidate, Prompt, Rollout, Sampling, Span, StockpotError

fork = multiprocessing.get_context("fork")  # children start in milliseconds, for torch is already imported


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a folder with spaces, %41 and ?#" / "history.sqlite"


@pytest.fixture
def history(path: Path) -> Iterator[History]:
    path.parent.mkdir()
    with History.open(path, run="a", vocabulary="v1") as opened:
        yield opened


def one(key: str = "p", step: int = 0, length: int = 3, reward: float | None = 0.0, run: str = "a") -> Rollout:
    span = Span(Author(run, step), range(length), [-0.5] * length)
    return Rollout(Prompt(key, [1, 2]), (span,), reward)


def soup(key: str, source: int, step: int) -> Rollout:
    head = Span(Author("a", 0), [0, 1], [-0.5, -0.5], kind="prefix", trained=False, source=source)
    return Rollout(Prompt(key, [1, 2]), (head, Span(Author("a", step), [3], [-0.1])), 1.0)


def zoo() -> list[Rollout]:
    """Every feature that a rollout can have, and the corner cases of each."""
    prompt = Prompt("2+2", [4, 1, 4], "2 + 2\n\0é😀", {"b": [1, 2.5, None, {"x": True}], "a": "ß", "n": 10**30})
    odd = Sampling(temperature=0.7, top_k=20, top_p=0.95, min_p=0.05)
    live = Span(Author("a", 120), [2**31 - 1, -(2**31), 0], [-0.1, -1e-45, -3e38], sampling=odd)
    old = Span(Author("a", 87), [5, 9], [-0.5, float("-inf")], kind="prefix", trained=False, source=4711)
    outsider = Span(Author("a textbook"), [7, 8, 9], kind="demonstration")
    return [
        Rollout(prompt, (live,), reward=0.1),
        Rollout(prompt, (old, live, Span(Author("a", 121), [3], [-0.0])), reward=None, finish="length"),
        Rollout(Prompt("empty", []), (outsider,), reward=float("inf")),
        Rollout(Prompt("", [1], "", {}), (), reward=-1e-300),
        Rollout(prompt, (Span(Author("", 0), [], []), Span(Author("a textbook"), [1])), reward=1),
        Rollout(prompt, (Span(Author("b", 120), [1], None, sampling=Sampling(temperature=0)),), reward=0.0),
    ]


def bits(rollout: Rollout) -> list[Any]:
    """What `==` on floats would forgive: -0.0, and None against nothing."""
    known = [None if span.log_probs is None else array("f", span.log_probs).tobytes() for span in rollout.spans]
    return [*known, *(array("i", span.tokens).tobytes() for span in rollout.spans)]


def without_id(rollout: Rollout) -> Rollout:
    return Rollout(rollout.prompt, rollout.spans, rollout.reward, rollout.finish)


def dump(path: Path) -> list[Any]:
    """All rows of all tables, as a logical content."""
    with sqlite3.connect(path) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
        return [(name, database.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall()) for name in names]


def in_child(work: Callable[[], None]) -> int | None:
    """Run `work` in a process of its own; its exit code, 0 if it did not raise."""
    child = fork.Process(target=work)
    child.start()
    child.join(20)
    return child.exitcode


# what is read is what was written


def test_everything_about_each_token_comes_back(path: Path, history: History) -> None:
    written = zoo()
    ids = history.append(120, written)
    history.close()
    with History.open(path, read_only=True) as again:
        read = again.read(ids)
        assert [without_id(rollout) for rollout in read] == written
        assert [rollout.id for rollout in read] == ids
        assert [bits(rollout) for rollout in read] == [bits(rollout) for rollout in written]
        assert list(again.find()) == read
        assert (again.run, again.vocabulary) == ("a", "v1")
    assert all(isinstance(span.trained, bool) for rollout in read for span in rollout.spans)


def test_float32_bits_survive(history: History) -> None:
    chance = random.Random(0)
    patterns = array("I", [chance.getrandbits(32) for _ in range(5000)]).tobytes()  # NaNs with payloads among them
    known = array("f")
    known.frombytes(patterns)
    [number] = history.append(0, [Rollout(Prompt("p", [1]), (Span(Author("a", 0), range(5000), known),))])
    [read] = history.read([number])
    assert array("f", read.spans[0].log_probs or ()).tobytes() == patterns


def test_stored_bytes_are_little_endian(path: Path, history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    history.append(0, [Rollout(Prompt("p", [1]), (Span(Author("a", 0), [1, 256], [1.0, -2.0]),))])
    with sqlite3.connect(path) as database:
        [stored] = database.execute("SELECT tokens, log_probs FROM spans")
    assert stored == (b"\1\0\0\0\0\1\0\0", b"\0\0\x80\x3f\0\0\0\xc0")
    monkeypatch.setattr(sys, "byteorder", {"little": "big", "big": "little"}[sys.byteorder])
    assert history.read([1])[0].spans[0].tokens != array("i", [1, 256]), "the other byte order must swap"


def test_read_keeps_the_order_asked_and_refuses_unknown_ids(history: History) -> None:
    history.append(0, [one(length=n) for n in range(1, 6)])
    assert [len(rollout) for rollout in history.read([4, 2, 2, 5])] == [4, 2, 2, 5]
    assert history.read([]) == []
    with pytest.raises(StockpotError, match="no rollout has id 6"):
        history.read([1, 6])


def test_prompts_authors_and_samplings_are_stored_once(path: Path, history: History) -> None:
    for step in range(3):
        outsider = Rollout(Prompt("p", [1, 2]), (Span(Author("x"), [1]),))
        history.append(step, [*(one(key, step) for key in "pqp"), outsider])
    tables = dict(dump(path))
    assert [len(tables[name]) for name in ("prompts", "authors", "samplings")] == [2, 4, 1]


# what may not be stored


def test_a_prompt_key_stands_for_one_prompt(history: History) -> None:
    history.append(0, [Rollout(Prompt("p", [1], "t", {"a": 1, "b": 2}), ())])
    history.append(0, [Rollout(Prompt("p", [1], "t", {"b": 2, "a": 1}), ())])  # the same, in another order
    for other in (Prompt("p", [2], "t", {"a": 1, "b": 2}), Prompt("p", [1], "t", {"a": 1, "b": 3})):
        with pytest.raises(StockpotError, match="under its key; give it a new key"):
            history.append(1, [one("new", 1), Rollout(other, ())])
    assert history.summary()["rollouts"] == 2
    assert history.summary()["prompts"] == 1


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (Rollout(Prompt("bad", [1]), (), reward=float("nan")), "a reward is NaN"),
        (Rollout(Prompt("bad", [1], columns={"a": {1, 2}}), ()), "JSON cannot hold its columns"),
        (Rollout(Prompt("bad", [1], "\ud800"), ()), "surrogates not allowed"),
        (Rollout(Prompt("bad", [1]), (Span(Author("a", 2**80), [1]),)), "int too large"),
        (Rollout(Prompt("bad", [1]), (Span(Author("a", object()), [1]),)), "SQLite refused"),  # type: ignore[arg-type]
    ],
)
def test_a_step_is_stored_whole_or_not_at_all(path: Path, history: History, bad: Rollout, why: str) -> None:
    history.append(0, [one()])
    before = dump(path)
    with pytest.raises(StockpotError, match=why) as told:
        history.append(1, [one("new", 1), bad])
    assert "\n" not in str(told.value)
    assert dump(path) == before
    assert history.append(1, [one("p", 1)]) == [2]


def test_steps_only_grow(history: History) -> None:
    history.append(5, [one(step=5)])
    history.append(5, [one(step=5)])
    with pytest.raises(StockpotError, match=r"step 4 cannot follow step 5; truncate\(4\) first"):
        history.append(4, [one(step=4)])


# questions


def test_candidates_by_prompt_version_and_reward(history: History) -> None:
    for step in range(6):
        pair = [one("p", step, length=step + 1, reward=step / 10), one("q", step, reward=1.0)]
        history.append(step, [*pair, one("p", step, reward=None)])
    p = [Candidate(1 + 3 * step, step, step / 10, step + 1) for step in range(6)]
    assert history.candidates(["p", "nowhere"]) == {"p": p, "nowhere": []}
    assert history.candidates(["q", "p"], oldest=2, newest=4)["p"] == p[2:5]
    assert [row.version for row in history.candidates(["q"], newest=1)["q"]] == [0, 1]
    assert history.candidates(["p"], reward=(0.1, 0.3)) == {"p": p[1:4]}
    assert history.candidates(["p"], reward=(0.4, None)) == {"p": p[4:]}
    assert history.candidates(["p"], newest=4, per_prompt=2) == {"p": p[3:5]}
    assert history.candidates(["p"], per_prompt=0) == {"p": []}
    for row in p:
        [read] = history.read([row.id])
        assert (read.id, len(read), read.reward, read.prompt.key) == (row.id, row.length, row.reward, "p")


def test_candidates_of_one_step_are_ordered_by_id(history: History) -> None:
    rewards = [0.5, 0.1, 0.9, 0.1]
    ids = history.append(0, [one("p", reward=reward) for reward in rewards])
    assert [row.id for row in history.candidates(["p"])["p"]] == ids
    assert [row.id for row in history.candidates(["p"], per_prompt=2)["p"]] == ids[2:]


def test_candidates_read_the_index_alone(history: History) -> None:
    plan = history._database.execute(f"EXPLAIN QUERY PLAN {module.CANDIDATES}", ("p", 0, 9, 0, 1, 5)).fetchall()
    told = " | ".join(row[-1] for row in plan)
    assert "COVERING INDEX candidates (prompt=? AND step>? AND step<?)" in told
    assert "TEMP B-TREE" not in told


def test_find_filters(history: History) -> None:
    mixed = Rollout(Prompt("p", [1, 2]), (Span(Author("a", 0), [1], kind="prefix"), Span(Author("b", 2), [2])), 0.5)
    everything = [one("p", 0, 3, 0.0), one("q", 1, 5, 1.0), one("p", 2, 7, None), mixed]
    ids = [history.append(step, [rollout])[0] for step, rollout in enumerate(everything[:3])]
    ids += history.append(2, [mixed])

    def found(**asked: Any) -> list[int]:
        return [ids.index(rollout.id or 0) for rollout in history.find(**asked)]

    assert found() == [0, 1, 2, 3]
    assert found(prompt="p") == [0, 2, 3]
    assert found(prompt="nowhere") == []
    assert found(versions=(1, 2)) == [1, 2, 3]
    assert found(versions=(None, 1)) == [0, 1]
    assert found(reward=(0.5, None)) == [1, 3]
    assert found(length=(3, 5)) == [0, 1]
    assert found(run="a") == [0, 1, 2]
    assert found(run="b") == [3]
    assert found(limit=2) == [0, 1]
    assert found(prompt="p", versions=(1, None), run="b", limit=5) == [3]


def test_find_streams_off_the_heap_and_holds_no_lock(path: Path, history: History) -> None:
    for step in range(40):
        history.append(step, [one(step=step, length=1000) for _ in range(50)])
    tracemalloc.start()
    stream = history.find()
    first = [next(stream) for _ in range(300)]
    with History.open(path) as other:
        other.append(40, [one(step=40)])  # while the stream stands still
    history.append(41, [one(step=41)])
    rest = sum(1 for _ in stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [rollout.id for rollout in first] == list(range(1, 301))
    assert 300 + rest == 2000, "what came after the call is not part of it"
    assert peak < 6e6 < 2000 * 8000, f"{peak} bytes on the heap for 16 MB of tokens"


def test_uses_counts_rollouts_with_a_prefix(history: History) -> None:
    history.append(0, [one("p"), one("p"), one("p")])
    twice = soup("p", 1, 1)
    twice = Rollout(twice.prompt, (twice.spans[0], *twice.spans), 0.0)  # two pieces of one source count once
    history.append(1, [soup("p", 1, 1), soup("p", 2, 1), twice])
    assert history.uses([3, 2, 1, 99]) == {3: 0, 2: 1, 1: 2, 99: 0}
    replayed = Rollout(Prompt("p", [1, 2]), (Span(Author("a", 0), [1], source=3),))  # a source, but no prefix
    history.append(2, [soup("p", 2, 2), replayed])
    assert history.uses([1, 2, 3]) == {1: 2, 2: 2, 3: 0}
    history.truncate(1)
    assert history.uses([1, 2, 3]) == {1: 0, 2: 0, 3: 0}


def test_summary(path: Path, history: History) -> None:
    empty = history.summary()
    assert (empty["rollouts"], empty["tokens"], empty["steps"], empty["reward"]) == (0, 0, None, None)
    history.append(3, [one("p", 3, 10, 1.0), one("q", 3, 20, 0.0), one("q", 3, 5, None, run="b")])
    history.append(7, [soup("p", 1, 7)])
    told = history.summary()
    size = told.pop("bytes")
    assert told.pop("bytes_per_token") == size / 38
    assert size == sum(file.stat().st_size for file in (path, Path(f"{path}-wal")))
    assert told.pop("reward") == pytest.approx(2 / 3)
    assert (told.pop("runs"), told.pop("steps")) == ({"a": 3, "b": 1}, (3, 7))
    assert told == {"rollouts": 4, "with_prefix": 1, "tokens": 38, "prompts": 2}


# exact resume


def test_truncated_steps_might_never_have_been(tmp_path: Path) -> None:
    def step(n: int, salt: str = "") -> list[Rollout]:
        setup = Sampling(temperature=1 + n / 10)
        new = Rollout(Prompt(f"{salt}{n}", [n]), (Span(Author(f"a{salt}", n), [n], [-0.1], sampling=setup),), 1.0)
        return [one("p", n), new, *([soup("p", 1, n)] if n else [])]

    crashed, smooth = tmp_path / "crashed", tmp_path / "smooth"
    with History.open(crashed) as history:
        for n in range(3):
            history.append(n, step(n))
        kept = dump(crashed)
        for n in range(3, 6):
            history.append(n, step(n, "lost"))
        assert history.truncate(3) == 9
        assert history.truncate(3) == 0
        assert dump(crashed) == kept
        assert history.append(3, step(3)) == [9, 10, 11]
    with History.open(smooth) as history:
        for n in range(4):
            history.append(n, step(n))
    assert dump(crashed) == dump(smooth)
    with History.open(crashed) as history:
        assert history.truncate(-1) == 11
    with History.open(tmp_path / "fresh"):
        assert dump(crashed) == dump(tmp_path / "fresh")


# crashes, other processes and bad disks


def big_step(step: int) -> list[Rollout]:
    """1.6 MB: more than SQLite's buffer holds beside the index, so a step reaches the disk before it is committed."""
    return [one(f"p{n}", step, 1000 + n, float(step)) for n in range(200)]


def test_a_commit_waits_for_the_disk(history: History) -> None:
    """No test can cut the power; these two settings are what SQLite asks for to survive it."""
    told = [history._database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert told == ["wal", 2]


def test_a_killed_writer_leaves_whole_steps(path: Path, history: History) -> None:
    history.close()
    chance, torn = random.Random(0), 0
    for _ in range(8):
        heard, said = os.pipe()

        def write(said: int = said) -> None:
            with History.open(path) as mine:
                first = (mine.summary()["steps"] or (0, -1))[1] + 1
                for step in range(first, 10**6):
                    mine.append(step, big_step(step))
                    os.write(said, step.to_bytes(4, "little"))

        child = fork.Process(target=write)
        child.start()
        os.close(said)
        os.read(heard, 4)  # it is at work: strike
        time.sleep(chance.uniform(0, 0.15))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        rest = os.read(heard, 1 << 16)
        os.close(heard)
        with sqlite3.connect(path) as raw:
            [(integrity,)] = raw.execute("PRAGMA integrity_check")
        assert integrity == "ok"
        with History.open(path) as again:
            first, last = again.summary()["steps"]
            if rest:
                acknowledged = int.from_bytes(rest[-4:], "little")
                assert last >= acknowledged, "a step was reported stored, and is lost"
                torn += last == acknowledged  # the kill fell into the middle of a step
            assert first == 0
            assert again.summary()["rollouts"] == 200 * (last + 1)
            for step in (0, last):
                assert [without_id(rollout) for rollout in again.find(versions=(step, step))] == big_step(step)
            again.truncate(max(1, last))
    assert torn, "no kill fell into a transaction: this test shows nothing"


def test_a_kill_inside_a_transaction(path: Path, history: History) -> None:
    history.append(0, big_step(0))
    history.close()

    class Deadly(str):
        def encode(self, *_: Any) -> bytes:  # pragma: no cover
            raise AssertionError

        def __eq__(self, other: object) -> bool:
            os.kill(os.getpid(), signal.SIGKILL)
            return False

        __hash__ = str.__hash__

    def write() -> None:
        with History.open(path) as mine:
            mine._database.execute("PRAGMA cache_size = 10")  # so that the transaction spills into the log
            twice = [Rollout(Prompt(Deadly("x"), [1]), ()) for _ in range(2)]  # comparing the two keys kills
            mine.append(1, [*big_step(1), *twice])

    assert in_child(write) == -signal.SIGKILL
    assert Path(f"{path}-wal").stat().st_size > 500_000, "the step was half way to the disk"
    with History.open(path) as again:
        assert again.summary()["rollouts"] == 200
        assert again.append(1, big_step(1))[0] == 201
        assert [without_id(rollout) for rollout in again.find()] == [*big_step(0), *big_step(1)]


def test_readers_see_whole_steps_in_one_order_while_a_writer_writes(path: Path, history: History) -> None:
    def write() -> None:
        with History.open(path) as mine:
            for step in range(60):
                mine.append(step, [one("p", step), one("q", step), one("p", step)])

    writer = fork.Process(target=write)
    with History.open(path, read_only=True) as left, History.open(path, read_only=True) as right:
        writer.start()
        seen: list[list[tuple[int | None, int | None]]] = [[], []]
        rounds = 0
        while alive := writer.is_alive() or rounds < 2:
            for n, reader in enumerate((left, right)):
                now = [(rollout.id, rollout.spans[0].author.version) for rollout in reader.find()]
                assert now[: len(seen[n])] == seen[n], "the past has changed"
                assert len(now) % 3 == 0, "a step was seen in part"
                seen[n] = now
                light = reader.candidates(["p", "q"])
                assert len(light["p"]) == 2 * len(light["q"])
            shorter = min(map(len, seen))
            assert seen[0][:shorter] == seen[1][:shorter]
            rounds += 1
        writer.join()
        assert not alive and writer.exitcode == 0
        assert len(list(left.find())) == len(list(right.find())) == 180
    assert rounds > 2


def test_a_full_disk_is_told_and_harms_nothing(path: Path, history: History) -> None:
    history.close()

    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with History.open(path) as mine:
            mine.append(0, big_step(0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, 6_000_000))
            with pytest.raises(StockpotError, match="free some space and resume") as told:
                for step in range(1, 100):
                    mine.append(step, big_step(step))
            assert "\n" not in str(told.value)
            assert mine.summary()["rollouts"] == 200 * step, "the history can still be read, and holds whole steps"
            assert [without_id(rollout) for rollout in mine.find(versions=(0, 0))] == big_step(0)
            Path(path.parent, "steps").write_text(str(step))

    assert in_child(write) == 0
    step = int(Path(path.parent, "steps").read_text())
    with History.open(path) as again:
        assert again.summary()["steps"] == (0, step - 1)
        assert again.append(step, big_step(step))[0] == 200 * step + 1
        assert [without_id(rollout) for rollout in again.find(versions=(step - 1, step - 1))] == big_step(step - 1)


def test_a_locked_history(path: Path, history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    with History.open(path) as other:
        history._database.execute("BEGIN IMMEDIATE")
        asked = time.monotonic()
        with pytest.raises(StockpotError, match="another process is writing to it; wait"):
            other.append(0, [one()])
        assert 0.04 < time.monotonic() - asked < 4, "it waits for a while, as told"
        assert other.summary()["rollouts"] == 0, "reading goes on"
        history._database.execute("ROLLBACK")
        assert other.append(0, [one()]) == [1]


def test_a_read_only_folder_can_be_read_and_not_written() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with History.open(folder / "history.sqlite") as history:
            history.append(0, [one()])
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
        (folder / "history.sqlite").chmod(0o444)

        def visit() -> None:
            if os.getuid() == 0:
                os.setuid(65534)  # root may write anywhere
            with History.open(folder / "history.sqlite", read_only=True) as archive:
                assert len(list(archive.find())) == 1
            for write in (
                lambda: History.open(folder / "new.sqlite"),
                lambda: History.open(folder / "history.sqlite").append(1, [one(step=1)]),
            ):
                with pytest.raises(StockpotError, match=r"that you may write there\.|the right to write there\."):
                    write()

        assert in_child(visit) == 0
        folder.chmod(0o755)


# files that are not what they should be


def test_read_only_refuses_to_write_or_create(path: Path, history: History) -> None:
    with History.open(path, read_only=True) as reader:
        for change in (lambda: reader.append(0, [one()]), lambda: reader.truncate(0)):
            with pytest.raises(StockpotError, match="open for reading only"):
                change()
    with pytest.raises(StockpotError, match="no history to read here"):
        History.open(path.with_name("missing"), read_only=True)
    assert not path.with_name("missing").exists()


def test_another_tokenizer_is_refused(path: Path, history: History) -> None:
    with pytest.raises(StockpotError, match=r"another tokenizer \(v1, not v2\)"):
        History.open(path, vocabulary="v2", read_only=True)
    History.open(path, vocabulary="v1").close()
    History.open(path).close()


def test_a_newer_format_is_refused(path: Path, history: History) -> None:
    history._database.execute("PRAGMA user_version = 3")
    for read_only in (False, True):
        with pytest.raises(StockpotError, match="it has format 3, this stockpot knows 2; upgrade stockpot"):
            History.open(path, read_only=read_only)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_stranger_s_file_is_refused_and_left_alone(tmp_path: Path, read_only: bool) -> None:
    noise, other = tmp_path / "noise", tmp_path / "other.sqlite"
    noise.write_bytes(random.Random(0).randbytes(10_000))
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE photos(id)")
        database.execute("PRAGMA user_version = 1")
    for file in (noise, other):
        before = file.read_bytes()
        with pytest.raises(StockpotError, match="not a stockpot history") as told:
            History.open(file, read_only=read_only)
        assert "\n" not in str(told.value)
        assert file.read_bytes() == before


def test_a_damaged_page_is_told(path: Path, history: History) -> None:
    for step in range(5):
        history.append(step, big_step(step))
    history.close()
    with path.open("r+b") as file:
        file.seek(20 * 4096)
        file.write(b"\xff" * (path.stat().st_size - 21 * 4096))
    with pytest.raises(StockpotError, match="the file is damaged; restore a copy"), History.open(path) as again:
        list(again.find())


def test_lost_tokens_are_told(path: Path, history: History) -> None:
    history.append(0, [one(length=5)])
    history._database.execute("UPDATE spans SET tokens = zeroblob(16), log_probs = NULL")
    with pytest.raises(StockpotError, match="the file is damaged"):
        history.read([1])


def test_a_closed_history_says_so(history: History) -> None:
    history.close()
    history.close()
    with pytest.raises(StockpotError, match="this history is closed"):
        history.summary()


# export


def test_parquet_holds_the_same(tmp_path: Path, history: History) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    written = zoo() + [one("p", 120, n) for n in range(600)]
    history.append(120, written)
    assert history.to_parquet(tmp_path / "out.parquet") == len(written)
    assert [file.name for file in tmp_path.iterdir() if "parquet" in file.name] == ["out.parquet"]
    file = parquet.ParquetFile(tmp_path / "out.parquet")
    assert file.metadata.num_row_groups == 2
    assert file.schema_arrow.metadata[b"vocabulary"] == b"v1"

    def span(row: dict[str, Any]) -> Span:
        return Span(**row | {"author": Author(**row["author"]), "sampling": Sampling(**row["sampling"])})

    read = []
    for row in file.read().to_pylist():
        assert row.pop("step") == 120
        row["prompt"]["columns"] = json.loads(row["prompt"]["columns"])
        read.append(Rollout(**row | {"prompt": Prompt(**row["prompt"]), "spans": tuple(map(span, row["spans"]))}))
    assert read == list(history.find())
    assert [bits(rollout) for rollout in read] == [bits(rollout) for rollout in written]


def test_parquet_failures_are_told(tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(StockpotError, match="cannot be written"):
        history.to_parquet(tmp_path / "no such folder" / "out.parquet")
    (tmp_path / "taken" / "by").mkdir(parents=True)
    with pytest.raises(StockpotError, match="cannot be written"):
        history.to_parquet(tmp_path / "taken")
    assert not list(tmp_path.glob("*.part"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(StockpotError, match=r'pip install "stockpot\[data\]"'):
        history.to_parquet(tmp_path / "out.parquet")
