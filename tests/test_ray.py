"""The Ray engine: the same run as the local engine, and a run that does not wait; real actors of a tiny model."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import warm
from moments import at_tokens
from runs import TINY, assert_same_bits, dump, metrics, stockpot, trained
from stockpot import prompts, train
from stockpot.config import Config, load_recipe
from stockpot.engines import make
from stockpot.engines.local import LocalEngine
from stockpot.history import History
from stockpot.types import Author, Prompt, Request, Rollout, Sampling, Span, StockpotError

ray = pytest.importorskip("ray")

from stockpot.engines.ray import crew, ledger, session, weights  # noqa: E402
from stockpot.engines.ray.actors import SamplerActor  # noqa: E402
from stockpot.engines.ray.engine import RayEngine  # noqa: E402


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, str]]:
    with warm.cluster() as joined:
        yield joined


def spread(out: Path, *words: object) -> Path:
    """A tiny run under Ray; nothing but progress may be said of it."""
    told = trained("--engine", "ray", "--out", out, *words)
    assert [line for line in told.complaints if not line.startswith("sampling the reference ")] == []
    return out


def timings(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]


def rollouts(run: Path, step: int) -> list[Rollout]:
    with History.open(run / "history.sqlite", read_only=True) as history:
        return list(history.find(versions=(step, step)))


def assert_whole(run: Path, config: Config, steps: int) -> None:
    """Every step is in the history once: each of its prompts with a whole group, no rollout twice, none missing."""
    pool = prompts.load_prompts(config.task, "train", config.task.tokenizer(), context=0, max_tokens=config.max_tokens)  # type: ignore[attr-defined]
    assert [line["step"] for line in metrics(run)] == list(range(steps + 1))
    for step in range(steps):
        asked = prompts.pick(pool, step, config.prompts_per_step, config.seed)
        stored = Counter(rollout.prompt.key for rollout in rollouts(run, step))
        assert stored == {prompt.key: config.group_size for prompt in asked}, f"step {step}"
        assert all(0 < len(rollout) <= config.max_tokens for rollout in rollouts(run, step))


# --- synchronous ----------------------------------------------------------------------------------------------------


def test_one_sampler_and_one_learner_make_the_run_of_the_local_engine(
    cluster: object, finished: Path, tmp_path: Path
) -> None:
    """Weights, optimiser, reference, history with its SOUP prefixes, metrics: to the bit."""
    run = spread(tmp_path / "run", "--reward-workers", 1)
    assert_same_bits(finished, run)
    assert any(span.kind == "prefix" for rollout in rollouts(run, 5) for span in rollout.spans)
    last, page = timings(run)[-1], (TINY.parents[1] / "docs" / "metrics.md").read_text()
    assert not [name for name in last if f"`{name}`" not in page and name != "step"], "explain it in docs/metrics.md"
    assert last["requests/asked"] == last["requests/finished"] == 6 * 16 + 3 * 32
    assert (last["requests/in_flight"], last["trained_age/max"]) == (0, 0)


def test_more_of_each_make_the_same_run_within_rounding(cluster: object, finished: Path, tmp_path: Path) -> None:
    run = spread(tmp_path / "run", "--samplers", 2, "--learners", 2, "--reward-workers", 2, "--steps", 4)
    for ours, theirs in zip(metrics(run), metrics(finished), strict=False):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=2e-5)
    again = spread(tmp_path / "again" / "run", "--samplers", 2, "--learners", 2, "--reward-workers", 2, "--steps", 4)
    assert dump(again) == dump(run), "who decoded what left a trace"


def test_snapshots_and_late_weights_write_as_they_do_locally(cluster: object, started: str, tmp_path: Path) -> None:
    words = ["--prefixes", "checkpoints", "--prefixes.every", 1, "--prefixes.keep", 3, "--prefixes.min-age", 1]
    words += ["--prefixes.longest", 12, "--refresh-every", 2, "--model", started, "--steps", 5]
    trained("--out", tmp_path / "run", *words)
    assert_same_bits(tmp_path / "run", spread(tmp_path / "ray" / "run", *words))
    assert any(r.prefix_length for r in rollouts(tmp_path / "run", 4)), "nothing was tested"


@pytest.mark.parametrize(
    "words",
    [
        ["--learner.lora.rank", 4, "--select.refill", 1, "--select.size", 2, "--select.how", "random"],
        ["--algorithm", "ppo", "--updates-per-step", 2],
        ["--algorithm", "spo", "--algorithm.q0", "reference", "--algorithm.samples", 2, "--kl.reference", "frozen"],
    ],
    ids=lambda words: str(words[1]),
)
def test_whatever_learns_learns_the_same(
    cluster: object, started: str, tmp_path: Path, words: Sequence[object]
) -> None:
    """An adapter, a critic, a reference that is asked before training; parts of groups, further rounds."""
    trained("--out", tmp_path / "run", *words, "--model", started, "--steps", 3)
    assert_same_bits(tmp_path / "run", spread(tmp_path / "ray" / "run", *words, "--model", started, "--steps", 3))


def test_late_weights_let_samplers_run_on_without_changing_anything(
    cluster: object, started: str, tmp_path: Path
) -> None:
    """Who writes is fixed for three steps, so they may be begun at once."""
    words = ["--prefixes", "none", "--refresh-every", 3, "--model", started, "--steps", 7]
    trained("--out", tmp_path / "run", *words)
    run = spread(tmp_path / "ray" / "run", *words, "--ahead", 9)
    assert_same_bits(tmp_path / "run", run)
    assert timings(run)[1]["requests/in_flight"] > 0 or timings(run)[1]["requests/finished"] > 16 + 32, "nobody ran on"
    assert load_recipe(str(TINY)).begins(3) == range(3, 4)


def test_a_resumed_run_ends_in_the_same_bits(cluster: object, finished: Path, tmp_path: Path) -> None:
    """Stopped by an error in a reward worker, told in one line, and resumed."""
    recipe = tmp_path / "failing.py"
    recipe.write_text(
        "import os\nfrom dataclasses import dataclass, fields, replace\nfrom stockpot.as_json import load_file\n"
        f"tiny = load_file({str(TINY)!r})\n"
        "@dataclass(frozen=True)\nclass Failing(tiny.Chatter):\n"
        "    def reward(self, prompts, completions, **columns):\n"
        f"        if os.path.exists({str(tmp_path / 'stop')!r}): raise ValueError('enough')\n"
        "        return super().reward(prompts, completions, **columns)\n"
        "task = tiny.recipe.task\n"
        "given = {f.name: getattr(task, f.name) for f in fields(task) if f.init}\n"
        "recipe = replace(tiny.recipe, task=Failing(**given))\n"
    )
    run = tmp_path / "run"
    words = ["train", recipe, "--engine", "ray", "--reward-workers", "1", "--out", run]
    (tmp_path / "stop").touch()
    told = stockpot(*words, "--steps", 6)
    assert told.code == 2 and "raised ValueError: enough" in told.err and told.err.count("stockpot:") == 1
    (tmp_path / "stop").unlink()
    assert stockpot("resume", run).code == 0
    assert_same_bits(finished, run)


def test_a_run_joins_the_cluster_that_it_is_told_of_and_leaves_it_as_it_was(
    cluster: tuple[str, str], finished: Path, tmp_path: Path
) -> None:
    """The plain command in a process of its own, with RAY_ADDRESS; its actors are gone with it, the cluster is not."""
    run = tmp_path / "run"
    words = [sys.executable, "-m", "stockpot.cli", "train", TINY, "--engine", "ray", "--out", run]
    environment = os.environ | {"RAY_ADDRESS": cluster[0], "COLUMNS": "100"}
    whole, least = ray.cluster_resources()["CPU"], math.inf
    with subprocess.Popen([*map(str, words)], env=environment, stderr=subprocess.PIPE, text=True) as life:
        until = time.monotonic() + 280
        while life.poll() is None:
            assert time.monotonic() < until
            least = min(least, ray.available_resources().get("CPU", 0))
            time.sleep(0.05)
        assert life.returncode == 0, life.stderr and life.stderr.read()
    assert least <= whole - 2, "a learner and a sampler were not placed in it"
    assert_same_bits(finished, run)
    until = time.monotonic() + 60
    while ray.available_resources().get("CPU") != whole:
        assert time.monotonic() < until, "something of it is still there"
        time.sleep(0.1)


class Slow:
    """Takes so long over everything."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def hello(self) -> dict[str, Any]:
        return {"pid": 0}

    def work(self) -> float:
        time.sleep(self.seconds)
        return self.seconds


@pytest.fixture
def team(cluster: object) -> Iterator[Callable[..., crew.Crew]]:
    """A crew of workers of these speeds."""
    actors: list[Any] = []

    def made(*seconds: float, depth: int = 1) -> crew.Crew:
        actors.extend(ray.remote(Slow).remote(one) for one in seconds)
        return crew.Crew("worker", actors, depth)

    yield made
    for actor in actors:
        ray.kill(actor)


def test_a_slow_worker_gets_less_and_stalls_nobody(team: Callable[..., crew.Crew]) -> None:
    workers, results = team(0.01, 2.0), list[float]()
    for _ in range(12):
        workers.put(lambda actor: actor.work.remote(), results.append)
    crew.Office(workers).until(lambda: len(results) == 12)
    assert results.count(2.0) <= 2 and workers.doubled == 0


def test_what_a_worker_hangs_on_is_given_to_another(
    team: Callable[..., crew.Crew], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, and told; whoever hangs is given nothing more."""
    monkeypatch.setattr(crew, "PATIENCE", 1.0)
    workers, results = team(0.2, 0.2, 3600.0, depth=2), list[float]()
    crew.Office(workers).until(lambda: workers.awake)
    for goal in (3, 15):
        while len(results) + len(workers.waiting) < goal:
            workers.put(lambda actor: actor.work.remote(), results.append)
        began = time.monotonic()
        crew.Office(workers).until(lambda goal=goal: len(results) == goal)  # type: ignore[misc]
        assert time.monotonic() - began < 30
    assert results == [0.2] * 15 and workers.doubled == 1
    assert capsys.readouterr().err.count("a worker is slow: another one is given the same work") == 1


def test_a_sampler_that_stands_still_changes_nothing(
    cluster: object, started: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of a run: another writes what it was to write, and the run has the same bits."""
    words = ["--samplers", 2, "--model", started, "--steps", 3]
    calm, stopped = spread(tmp_path / "calm" / "run", *words), list[int]()
    monkeypatch.setattr(crew, "PATIENCE", 1.0)
    real = train.Loop.step

    def step(loop: Any, now: int, history: Any) -> Any:
        if now == 1:
            stopped.append(loop.engine.samplers.members[0].process)
            os.kill(stopped[0], signal.SIGSTOP)
        return real(loop, now, history)

    monkeypatch.setattr(train.Loop, "step", step)
    try:
        told = trained("--engine", "ray", "--out", tmp_path / "run", *words)
    finally:
        for process in stopped:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    assert_same_bits(calm, tmp_path / "run")
    assert "a sampler is slow" in told.err and timings(tmp_path / "run")[-1]["sampler/doubled"] >= 1


def test_chunks_are_whole_prompts_and_lose_nothing() -> None:
    requests = [Request(Prompt(str(i // 4), [1]), key=i) for i in range(50)]
    for workers in (1, 2, 3, 7):
        cut = list(ledger.chunks(requests, workers))
        assert [request for chunk in cut for request in chunk] == requests
        ends = [chunk[-1].prompt.key for chunk in cut]
        assert len(set(ends)) == len(ends), "a prompt was split"
        assert len(cut) == 1 if workers == 1 else len(cut) > workers
    assert list(ledger.chunks([], 2)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_travel_whole(dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 5).to(dtype)
    (back,) = weights.unpack(weights.pack({"w": tensor})).values()
    assert back.dtype == dtype and torch.equal(back, tensor)


# --- asynchronous ---------------------------------------------------------------------------------------------------


def local(started: str) -> LocalEngine:
    config = replace(load_recipe(str(TINY)), model=started)
    return LocalEngine(config, "run", started, started)


def some_requests(engine: LocalEngine, count: int = 6, room: int = 24) -> list[Request]:
    config = load_recipe(str(TINY))
    pool = prompts.load_prompts(config.task, "train", engine.tokenizer, context=0, max_tokens=room)
    return [Request(pool[i // 3], key=i, sampling=Sampling(top_p=0.95), max_tokens=room) for i in range(count)]


@pytest.mark.parametrize("rows", [256, 2])
def test_a_stretch_that_is_interrupted_goes_on_as_if_it_had_not(started: str, rows: int) -> None:
    """With the same weights: the same tokens and log-probs, wherever it is cut, with and without a queue for rows."""
    engine = local(started)
    engine.sampler.max_rows = rows
    requests = some_requests(engine)
    whole = engine.sampler.continue_(requests, 7)
    left, done, cuts = dict(enumerate(requests)), dict[int, Rollout](), 0
    while left:
        steps = iter(range(5))
        made = engine.sampler.stretch(
            list(left.values()), 7, lambda _, steps=steps: next(steps, None) is None, cuts > 0
        )
        cuts += 1
        for (key, request), (part, over) in zip(list(left.items()), made, strict=True):
            left[key] = replace(request, prefix=part.spans)
            if over:
                done[key] = part
                del left[key]
    assert cuts > 3
    for key, rollout in enumerate(whole):
        assert done[key].tokens == rollout.tokens and done[key].finish == rollout.finish
        given = [p for span in done[key].spans for p in span.log_probs or ()]
        assert given == pytest.approx(list(rollout.spans[0].log_probs or ()), abs=1e-5)


def test_weights_are_swapped_in_mid_flight(cluster: object, started: str) -> None:
    """Each piece is signed by the version that wrote it, with the log-probs that this version gives it."""
    engine = local(started)
    versions = [{name: p.detach().clone() for name, p in engine.policy.model.named_parameters()}]
    for _ in range(2):
        versions.append({name: p + 0.05 * torch.randn_like(p) for name, p in versions[-1].items()})
    boxes = [[ray.put(weights.pack(version))] for version in versions]
    config = replace(load_recipe(str(TINY)), model=started, engine="ray", ahead=2)
    brief = session.Brief(session.to_json(config), "run", started, str(Path.cwd()))
    actor = SamplerActor(brief)
    at_tokens(actor, {8: lambda: actor.tell((0, 1), boxes[1]), 16: lambda: actor.tell((0, 2), boxes[2])})
    found, seconds = actor.write(some_requests(engine), 7, (0, 0), boxes[0], True)
    assert seconds > 0
    swapped = 0
    for rollout in found:
        written = [span.author.version for span in rollout.spans]
        assert written == sorted(set(written)) and {span.author.run for span in rollout.spans} == {"run"}
        assert rollout.prefix_length == 0 and all(span.kind == "continuation" for span in rollout.spans)
        assert rollout.finish == "stop" or len(rollout) == 24
        swapped += len(written) == 3
        place = 0
        for span in rollout.spans:
            with torch.no_grad():
                for name, parameter in engine.policy.model.named_parameters():
                    parameter.copy_(versions[span.author.version][name])
            (scored,) = engine.score([rollout], "policy")
            assert scored[place : place + len(span)].tolist() == pytest.approx(list(span.log_probs or ()), abs=2e-4)
            place += len(span)
    assert swapped > 0, "nothing was tested"
    fixed, _ = actor.write(some_requests(engine), 7, (0, 0), boxes[0], False)
    assert {span.author.version for rollout in fixed for span in rollout.spans} == {0}, "follows nobody"


def test_samplers_run_ahead_within_the_bound(cluster: object, started: str, tmp_path: Path) -> None:
    """Nothing is lost, nothing is older than it may be, something is older than 0, and all of it is counted."""
    words = ["--ahead", 2, "--samplers", 2, "--steps", 10, "--model", started, "--checkpoint-every", 5]
    run = spread(tmp_path / "run", *words)
    config = load_recipe(str(TINY))
    assert_whole(run, config, 10)
    ages = Counter[int]()
    for step in range(10):
        for rollout in rollouts(run, step):
            for span in rollout.spans:
                if span.kind == "continuation":
                    ages[step - (span.author.version or 0)] += len(span)
    assert min(ages) >= 0 and 0 < max(ages) <= 2, ages
    for line in timings(run)[1:]:
        counted = line["requests/finished"] + line["requests/in_flight"] + line["requests/withdrawn"]
        assert line["requests/asked"] == counted
        assert line["trained_age/max"] <= 2 and 0 <= line["trained_age/mean"] <= 2
        assert 0 <= line["idle/learner"] <= 1 and 0 <= line["idle/samplers"] <= 1
        assert line["queue/waiting"] >= 0
    assert timings(run)[-1]["requests/in_flight"] == 0
    assert any("age/1-3/tokens" in line for line in metrics(run)), "the loss saw no old token"
    assert all(math.isfinite(line["loss"]) for line in metrics(run)[1:])


def test_a_token_beyond_the_bound_is_not_trained_on() -> None:
    """The engine looks itself, whatever should have made it impossible."""
    old = Span(Author("run", 3), [5, 6], [-1.0, -1.0])
    head = replace(old, kind="prefix", author=Author("run", 0))
    rollout = Rollout(Prompt("p", [1]), (head, old, Span(Author("else", 0), [7], [-1.0])))
    assert ledger.ages([rollout], "run", 6) == {3: 2}
    engine = RayEngine.__new__(RayEngine)
    engine.config = replace(load_recipe(str(TINY)), engine="ray", ahead=2)
    engine.run, engine.version, engine.ledger = "run", 6, ledger.Ledger(1)
    lesson: Any = type("Lesson", (), {"rollouts": (rollout,)})
    with pytest.raises(StockpotError, match="3 versions old, but the bound is 2"):
        engine.learn(lesson, 0)
    with pytest.raises(StockpotError, match="step 9 is more than ahead=2"):
        engine.begin([], 0, 9)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--samplers", 2], "samplers is 2, but the local engine is one process: add --engine ray"),
        (["--ahead", 1], "ahead is 1, but the local engine"),
        (["--engine", "ray", "--learners", 0], "learners must be at least 1"),
        (["--engine", "ray", "--ahead", -1], "ahead must be 0 or more"),
        (["--engine", "ray", "--ahead", 1, "--prefixes", "checkpoints", "--prefixes.longest", 12], "set ahead to 0"),
        (["--engine", "ray", "--ahead", 1, "--algorithm", "luffy"], "LUFFY knows the live policy's tokens"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(words: Sequence[object], why: str, tmp_path: Path) -> None:
    told = stockpot("train", TINY, "--out", tmp_path / "run", *words)
    assert told.code == 2 and why in told.err and told.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_or_failing_ray_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, started: str
) -> None:
    words = ["train", TINY, "--engine", "ray", "--model", started, "--out", tmp_path / "run"]
    monkeypatch.setattr(make, "find_spec", lambda name: None)
    told = stockpot(*words)
    assert told.code == 2 and told.err == 'stockpot: --engine ray needs Ray: `pip install "stockpot[ray]"`.\n'
    monkeypatch.undo()

    def fails(**options: Any) -> None:
        raise RuntimeError("no port\nis free")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fails)
    for address, what in (("", "cannot start Ray (no port is free)"), ("10.0.0.1:6379", "cannot join the Ray at 10.0")):
        monkeypatch.setenv("RAY_ADDRESS", address)
        told = stockpot(*words)
        assert told.code == 2 and what in told.err and told.err.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_a_missing_vllm_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(make, "find_spec", lambda name: None if name == "vllm" else True)
    told = stockpot("train", TINY, "--engine", "ray", "--sampler", "vllm", "--out", tmp_path / "run")
    assert told.code == 2 and "sampler vllm needs vLLM, which is not installed here" in told.err
    assert told.err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_cluster_that_is_too_small_is_told(
    cluster: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, started: str
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    told = stockpot("train", TINY, "--engine", "ray", "--samplers", 3, "--model", started, "--out", tmp_path / "run")
    assert told.code == 2 and "it has 2 CPUs" in told.err and told.err.count("\n") == 1
