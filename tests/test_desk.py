"""A sampler's desk under Ray: who is written with whom, who goes first, and when each call is answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from moments import at_tokens
from runs import TINY
from stockpot import prompts
from stockpot.config import load_recipe
from stockpot.engines.local import LocalEngine
from stockpot.engines.ray.desk import Desk, Job, Stamp
from stockpot.samplers.base import ModelSampler
from stockpot.types import Request, Rollout, StockpotError


class Office:
    """A desk whose sampler never stops before it is out of room, calls to it in threads, and what came of them."""

    def __init__(self, started: str, rows: int = 256, wide: bool = True) -> None:
        engine = LocalEngine(replace(load_recipe(str(TINY)), model=started), "run", started, started)
        assert isinstance(engine.sampler, ModelSampler)
        self.sampler, self.real = engine.sampler, engine.sampler.stretch
        self.sampler.stop_tokens = frozenset()
        config = load_recipe(str(TINY))
        self.pool = prompts.load_prompts(config.task, "train", engine.tokenizer, context=0, max_tokens=64)
        self.weights = {name: p.detach().clone() for name, p in engine.policy.model.named_parameters()}
        self.desk = Desk(self.sampler, rows, 1, wide, lambda box: box)
        self.crowds: list[int] = []
        """Requests of each stretch."""
        self.moments: dict[int, Callable[[], object]] = {}
        """What happens after so many tokens, counted over all stretches."""
        self.answers: list[tuple[str, list[Rollout], float]] = []
        self.threads: list[threading.Thread] = []
        self.sampler.stretch = self.stretch  # type: ignore[method-assign]
        at_tokens(self, self.moments)

    def stretch(self, requests: Sequence[Request], *rest: Any) -> Any:
        self.crowds.append(len(requests))
        return self.real(requests, *rest)

    def requests(self, count: int, room: int) -> list[Request]:
        return [Request(self.pool[i % 3], key=i, max_tokens=room) for i in range(count)]

    def ask(self, name: str, count: int, room: int, seed: int, follow: bool = True, stamp: Stamp = (0, 0)) -> None:
        """Call, and come back once it lies on the desk."""
        job = Job(self.requests(count, room), seed, (stamp, self.weights), follow)

        def call() -> None:
            self.answers.append((name, *self.desk.write(job)))

        self.threads.append(threading.Thread(target=call))
        self.threads[-1].start()
        while job not in self.desk.jobs and not job.ended.is_set():
            time.sleep(0.001)

    def finish(self) -> list[str]:
        """Wait for all; the order in which they were answered."""
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()
        return [name for name, _, _ in self.answers]


@pytest.fixture
def office(started: str) -> Iterator[Office]:
    yield Office(started)


def test_what_follows_the_weights_is_written_together(office: Office) -> None:
    """Who comes while few are left joins them; a fixed version goes before; each call is answered when it is whole."""
    asked = {"long": (1, 64, 7), "short": (6, 12, 8), "fixed": (2, 12, 9)}
    office.moments[9] = lambda: office.ask("short", *asked["short"])
    office.moments[33] = lambda: office.ask("fixed", *asked["fixed"], False)
    office.ask("long", *asked["long"])
    assert office.finish() == ["short", "fixed", "long"], "nobody waits for the long one"
    assert office.crowds == [1, 7, 2, 1], "alone; together; the fixed version alone; the rest"
    assert all(seconds > 0 for _, _, seconds in office.answers)
    for name, written, _ in office.answers:
        count, room, seed = asked[name]
        whole = office.real(office.requests(count, room), seed)
        assert [r.tokens for r in written] == [r.tokens for r, _ in whole], "with random numbers of its own call"
        assert {len(r) for r in written} == {room}


def test_a_call_that_is_whole_is_answered_while_others_go_on(office: Office) -> None:
    """Two that come together, one of them short: no stretch ends for it, and its answer is there before the end."""
    seen: list[int] = []
    office.moments[1] = lambda: (office.ask("short", 2, 10, 1), office.ask("long", 2, 60, 2))
    office.moments[50] = lambda: seen.append(len(office.answers))
    office.ask("first", 1, 6, 3)
    assert office.finish() == ["first", "short", "long"]
    assert office.crowds == [1, 4], "read anew for nobody"
    assert seen == [2]


def test_newer_weights_interrupt_all_and_let_in_who_waits(office: Office) -> None:
    """Six that wait find room beside six, though more than few are left: all are read again anyway."""
    office.moments[5] = lambda: office.ask("more", 6, 20, 2)
    office.moments[9] = lambda: office.desk.tell(((0, 1), office.weights))
    office.ask("some", 6, 20, 1)
    assert office.finish() == ["some", "more"]
    assert office.crowds == [6, 12]
    told = {name: written for name, written, _ in office.answers}
    assert all([span.author.version for span in r.spans] == [0, 1] for r in told["some"])
    assert all([span.author.version for span in r.spans] == [1] for r in told["more"])


def test_on_a_cpu_who_comes_first_is_written_first(started: str) -> None:
    """Whether one row is left or all are, at a swap or not."""
    office = Office(started, wide=False)
    office.moments[1] = lambda: office.ask("more", 6, 20, 2)
    office.moments[9] = lambda: office.desk.tell(((0, 1), office.weights))
    office.ask("some", 1, 60, 1)
    assert office.finish() == ["some", "more"]
    assert office.crowds == [1, 1, 6], "begun; again for newer weights; the others"


def test_no_more_are_under_way_than_there_are_rows(started: str) -> None:
    office = Office(started, rows=8)
    office.moments[1] = lambda: [office.ask(str(i), 4, 12, i) for i in range(5)]
    office.ask("first", 4, 12, 9)
    assert sorted(office.finish()) == ["0", "1", "2", "3", "4", "first"]
    assert max(office.crowds) == 8 and sum(office.crowds) >= 24


def test_an_error_is_told_and_the_next_call_is_served(office: Office) -> None:
    beyond = Job(office.requests(1, 10**6), 1, ((0, 0), office.weights), True)
    with pytest.raises(StockpotError, match="but the model reads"):
        office.desk.write(beyond)
    office.ask("next", 2, 12, 1)
    assert office.finish() == ["next"]


def test_a_life_that_has_ended_is_written_for_no_more(office: Office) -> None:
    office.moments[9] = lambda: office.desk.tell(((1, 0), office.weights))
    office.moments[20] = lambda: pytest.fail("it is written on")
    office.ask("old", 2, 60, 1)
    assert office.finish() == ["old"] and office.answers[0][1] == []
    del office.moments[20]
    office.ask("new", 2, 12, 1, stamp=(1, 0))
    assert office.finish() == ["old", "new"] and len(office.answers[1][1]) == 2
