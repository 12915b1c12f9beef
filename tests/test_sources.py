"""Where old heads come from besides the history: snapshots that still write, experience worth repeating, outsiders."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import LIVE, OLD, collate, rollout, somewhere_else, span, tiny_model
from runs import assert_same_bits, metrics, stockpot
from stockpot.algorithms import GRPO, RLOO, ExGRPO
from stockpot.engines.local import LocalEngine
from stockpot.history import History
from stockpot.models import load_model
from stockpot.policy import Learner, Policy
from stockpot.prefixes import Demonstrations, Experience, FromCheckpoints, FromHistory, PrefixRule, Replay
from stockpot.prefixes.experience import surprise
from stockpot.record import Run
from stockpot.snapshots import Snapshots
from stockpot.tasks import Countdown, Dataset
from stockpot.train import train
from stockpot.types import Candidate, Rollout, StockpotError
from test_loop import short, stored
from tiny import recipe

# --- snapshots ------------------------------------------------------------------------------------------------------


def weights(model: Any) -> dict[str, Any]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("on_disk", [False, True])
def test_snapshots_give_back_the_bits_of_the_newest_few(on_disk: bool, tmp_path: Path) -> None:
    kept = Snapshots(2, tmp_path / "scratch" if on_disk else None)
    models = {version: tiny_model(version) for version in (0, 5, 10)}
    for version, model in models.items():
        kept.take(version, model)
    assert kept.versions == [5, 10]
    (tmp_path / "checkpoint").mkdir()
    kept.save(tmp_path / "checkpoint")
    assert len(list((tmp_path / "scratch").glob("*"))) == 2 * on_disk
    again = Snapshots(2, tmp_path / "other" if on_disk else None)
    again.restore(tmp_path / "checkpoint")
    for store in (kept, again):
        blank = tiny_model(99)
        store.load(5, blank)
        assert same(weights(blank), weights(models[5]))
    with torch.no_grad():
        next(models[10].parameters()).add_(1.0)  # what was taken does not move with the model
    kept.load(10, blank)
    assert not same(weights(blank), weights(models[10]))


def test_snapshots_on_disk_cost_a_checkpoint_no_second_copy(tmp_path: Path) -> None:
    kept = Snapshots(1, tmp_path / "scratch")
    kept.take(3, tiny_model())
    (tmp_path / "checkpoint").mkdir()
    kept.save(tmp_path / "checkpoint")
    (linked,) = (tmp_path / "checkpoint").iterdir()
    assert os.stat(linked).st_nlink == 2


# --- live prefixes --------------------------------------------------------------------------------------------------

LIVE_RULE = FromCheckpoints(share=0.5, every=2, keep=2, min_age=1, shortest=2, longest=9)


@pytest.fixture(scope="module")
def written(started: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps whose prefixes come from snapshots; every checkpoint is kept."""
    folder = tmp_path_factory.mktemp("live") / "run"
    train(short(started, prefixes=LIVE_RULE, steps=6, checkpoint_every=1, keep_checkpoints=9), folder)
    return folder


def prefixed(run: Path) -> list[tuple[int, Rollout]]:
    return [(step, r) for step in range(6) for r in stored(run, step) if r.prefix_length]


def test_a_live_prefix_is_signed_and_priced_by_the_version_that_wrote_it(written: Path) -> None:
    """The stored log-probs are those of that version's checkpoint, scored anew; the live policy's are others."""
    found = prefixed(written)
    versions = {(step, r.spans[0].author.version) for step, r in found}
    assert len({version for _, version in versions}) >= 2
    assert all(version in (0, 2, 4)[max(0, step // 2 - 1) : step // 2 + 1] for step, version in versions)
    for version in sorted({version for _, version in versions if version is not None}):
        model = load_model(str(written / "checkpoints" / f"step-{version}"), torch.device("cpu"))
        mine = [r for _, r in found if r.spans[0].author.version == version]
        scores = Policy(model, Learner()).score(mine, "policy")
        for one, scored in zip(mine, scores, strict=True):
            head, tail = one.spans
            assert head.kind == "prefix" and head.source is None and head.trained
            assert tail.author.version != version and tail.kind == "continuation"
            told = torch.tensor(list(head.log_probs or ()))
            assert torch.allclose(scored[: len(head)], told, atol=1e-4)
            assert not torch.allclose(scored[len(head) :], torch.tensor(list(tail.log_probs or ())), atol=1e-3)


def test_live_prefixes_are_as_long_as_drawn_and_never_hold_a_stop_token(written: Path) -> None:
    rows = metrics(written)
    for step in range(6):
        lengths = [r.prefix_length for r in stored(written, step) if r.prefix_length]
        assert all(1 <= length <= LIVE_RULE.longest for length in lengths)
        assert sum(length < LIVE_RULE.shortest for length in lengths) <= rows[step + 1]["prefix/ended_early"]
        assert all(1 not in span.tokens for r in stored(written, step) for span in r.spans[:-1])
    assert {r.prefix_length for _, r in prefixed(written)} > set(range(3, 9))


def test_what_live_prefixes_cost_is_counted(written: Path) -> None:
    """At step 0 nobody is old enough; after it, all are there, and their tokens and dropped stop tokens add up."""
    first, *rest = metrics(written)[1:]
    size = recipe.prompts_per_step * recipe.group_size // 2
    assert first["prefix/missing"] == size and first["prefix/decoded"] == 0
    for step, row in enumerate(rest, 1):
        rollouts = stored(written, step)
        heads = sum(r.prefix_length for r in rollouts)
        assert row["prefix/missing"] == size - sum(r.prefix_length > 0 for r in rollouts)
        assert row["prefix/decoded"] == heads + row["prefix/ended_early"]
        assert row["rollout/decoded"] == sum(map(len, rollouts)) + row["prefix/ended_early"]


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_run_with_snapshots_resumes_in_the_same_bits(where: str, started: str, tmp_path: Path) -> None:
    """From a checkpoint at which the snapshots in use are older than it, and one of them is gone at the end."""
    config = short(started, prefixes=replace(LIVE_RULE, where=where), steps=6, checkpoint_every=3)
    straight, broken = tmp_path / "a" / "run", tmp_path / "b" / "run"
    train(config, straight)
    train(config, broken)
    shutil.rmtree(broken / "checkpoints" / "step-6")
    shutil.rmtree(broken / "snapshots", ignore_errors=True)
    assert [path.name for path in (broken / "checkpoints" / "step-3").glob("snapshot-*")]
    train(config, broken, resume=True)
    assert_same_bits(straight, broken)


@pytest.mark.parametrize(
    "rule", [Replay(share=0.5, min_age=1), Experience(warmup=1), Demonstrations()], ids=lambda rule: type(rule).__name__
)
def test_a_run_of_any_source_resumes_in_the_same_bits(rule: PrefixRule, started: str, tmp_path: Path) -> None:
    """With what it replays and demonstrates read again from the store and the task."""
    config = short(started, prefixes=rule, steps=6, checkpoint_every=3)
    straight, broken = tmp_path / "a" / "run", tmp_path / "b" / "run"
    train(config, straight)
    train(config, broken)
    assert any(row.get("prefix/missing", 0) < 8 and row["rollout/decoded"] > 0 for row in metrics(straight)[4:])
    shutil.rmtree(broken / "checkpoints" / "step-6")
    train(config, broken, resume=True)
    assert_same_bits(straight, broken)


def test_two_writers_share_the_prompts(started: str, tmp_path: Path) -> None:
    train(short(started, prefixes=replace(LIVE_RULE, every=1, keep=4, writers_per_step=2), steps=4), tmp_path / "run")
    for step in (2, 3):
        by_prompt: dict[str, set[int | None]] = {}
        for one in stored(tmp_path / "run", step):
            if one.prefix_length:
                by_prompt.setdefault(one.prompt.key, set()).add(one.spans[0].author.version)
        assert all(len(versions) == 1 for versions in by_prompt.values())
        assert len(set().union(*by_prompt.values())) == 2


def test_writers_are_of_the_ages_asked_for() -> None:
    rule = FromCheckpoints(every=5, keep=9, min_age=7, max_age=20, writers_per_step=9)
    assert sorted(rule.writers([0, 5, 10, 15, 20, 25], 27, random.Random(0))) == [10, 15, 20]
    recent = FromCheckpoints(every=5, keep=9, min_age=1, ages="recent", half_life=5)
    rng = random.Random(0)
    drawn = [recent.writers([20, 25], 27, rng)[0] for _ in range(3000)]
    assert drawn.count(25) / len(drawn) == pytest.approx(2 / 3, abs=0.03)  # five steps younger: twice as likely


def test_an_engine_without_snapshots_says_who_can_write(started: str) -> None:
    engine = LocalEngine(short(started, prefixes=LIVE_RULE), "run", started, started)
    assert list(engine.past) == []
    with pytest.raises(StockpotError, match="version 3 cannot write any more"):
        engine.sample([], 0, 3)


# --- experience -----------------------------------------------------------------------------------------------------


def known(*rates: float) -> dict[str, list[Candidate]]:
    """A prompt for each success rate at its last visit; at an earlier one all were right."""
    return {
        f"{rate:g}": [Candidate(1, 0, 1.0, 9)] + [Candidate(2 + i, 5, float(i < rate * 8), 9) for i in range(8)]
        for rate in rates
    }


def test_prompts_half_solved_come_back_most_and_solved_ones_never() -> None:
    """Weights of a normal curve: at 0 and at 1/2 they are as exp(-2) to 1 with the default width."""
    rule, counts = Experience(share=0.34), {"0": 0, "0.5": 0, "1": 0}
    rng = random.Random(0)
    for _ in range(4000):
        (chosen,) = rule.invite(known(0, 0.5, 1), 3, 9, rng)
        counts[chosen] += 1
    assert counts["1"] == 0
    assert counts["0"] / counts["0.5"] == pytest.approx(0.1353, rel=0.15)


def test_a_prompt_never_solved_or_never_asked_has_no_experience() -> None:
    never = {"failed": [Candidate(1, 0, 0.0, 9)], "new": []}
    assert Experience(share=1).invite(never, 8, 9, random.Random(0)) == []
    assert len(Experience(share=0.5).invite(known(0.1, 0.2, 0.3, 0.4), 4, 9, random.Random(0))) == 2


def test_the_surest_success_is_replayed(started: str, tmp_path: Path) -> None:
    """In a real run: guests have one old head, a success; no success stored for the prompt was less surprising."""
    seen: list[tuple[int, int, list[Rollout]]] = []
    rule = Experience(share=0.5)
    train(short(started, prefixes=rule, algorithm=ExGRPO(), steps=5), tmp_path / "run")
    rows = metrics(tmp_path / "run")[1:]
    assert rows[0]["prefix/missing"] == recipe.prompts_per_step // 2
    assert any(row["prefix/missing"] < recipe.prompts_per_step // 2 for row in rows)
    with History.open(tmp_path / "run" / "history.sqlite", read_only=True) as history:
        rng = random.Random(0)
        keys = [r.prompt.key for r in history.find(versions=(0, 0))]
        for candidates in history.candidates(sorted(set(keys)), newest=3).values():
            wins = history.read(rule.choose(candidates, 4, 4, rng))
            assert all((r.reward or 0) > 0.5 for r in wins)
            preferred = rule.prefer(wins, 4, 4)
            assert [r.id for r in preferred] == [r.id for r in sorted(wins, key=surprise)[:1]]
            seen.append((len(wins), len(preferred), wins))
    assert any(count > 1 for count, _, _ in seen)
    for row in rows:
        replayed = recipe.prompts_per_step // 2 - row["prefix/missing"]
        assert row["prefix/share"] == replayed / (recipe.prompts_per_step * recipe.group_size)


# --- outsiders ------------------------------------------------------------------------------------------------------


def test_demonstrations_stand_whole_in_their_groups_and_are_judged(started: str, tmp_path: Path) -> None:
    train(short(started, prefixes=Demonstrations(exactly=2, warmup=1)), tmp_path / "run")
    first, *rest = metrics(tmp_path / "run")[1:]
    fresh = recipe.prompts_per_step * (recipe.group_size - 2)
    assert "demonstration/tokens" not in first and first["prefix/missing"] == 0
    for step, row in enumerate(rest, 1):
        assert row["demonstration/tokens"] > 0 and row["prefix/missing"] == 0
        assert len(stored(tmp_path / "run", step)) == fresh  # what an outsider wrote is not stored as the run's own
        assert row["rollout/decoded"] == sum(map(len, stored(tmp_path / "run", step)))


def test_countdown_demonstrates_right_answers() -> None:
    task = Countdown(luck=0.0, largest=15)
    rows = task.rows("train")[:50]
    told = [task.demonstrate(row, 2) for row in rows]
    assert told == [task.demonstrate(row, 2) for row in rows]
    flat = [(row, text) for row, texts in zip(rows, told, strict=True) for text in texts]
    columns: dict[str, Any] = {name: [row[name] for row, _ in flat] for name in ("numbers", "target")}
    assert task.reward([], [text for _, text in flat], **columns) == [1.0] * 100


def test_a_dataset_demonstrates_with_its_column() -> None:
    task = Dataset(train="a.jsonl")
    assert task.demonstrate({"demonstration": "so"}, 3) == ["so"]
    assert task.demonstrate({"demonstration": ["a", "b"]}, 1) == ["a"]
    assert task.demonstrate({"prompt": "?"}, 1) == []


def test_demonstrations_without_room_are_missing(started: str, tmp_path: Path) -> None:
    train(short(started, prefixes=Demonstrations(), max_tokens=8, steps=1), tmp_path / "run")
    assert metrics(tmp_path / "run")[1]["prefix/missing"] == recipe.prompts_per_step


# --- clips of their own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [GRPO, RLOO])
def test_prefix_tokens_have_bounds_of_their_own(make: Callable[..., GRPO | RLOO]) -> None:
    """Each token's term is that of the plain clip with the bounds of its kind."""
    rng = random.Random(1)
    some = [rollout(rng, span(rng, OLD, 6, kind="prefix"), span(rng, LIVE, 6)) for _ in range(4)]
    batch = collate(some, [1.0, -1.0, 0.5, -2.0])
    log_probs = somewhere_else(batch, spread=0.6)
    ours = make(prefix_clip_low=0.5, prefix_clip_high=1.0).loss(log_probs, batch)
    plain, wide = make().loss(log_probs, batch), make(clip_low=0.5, clip_high=1.0).loss(log_probs, batch)
    old = batch.kind == 1
    assert torch.equal(ours.loss, torch.where(old, wide.loss, plain.loss))
    assert torch.equal(ours.clipped, torch.where(old, wide.clipped, plain.clipped))
    assert not torch.equal(plain.loss[old], wide.loss[old])


# --- refusals -------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "ages no snapshot has": (lambda: FromCheckpoints(every=5, keep=2, min_age=10), "never older than 9"),
    "no snapshots": (lambda: FromCheckpoints(keep=0), "at least 1: else nobody writes"),
    "lengths": (lambda: FromCheckpoints(shortest=9, longest=8), "shortest <= longest"),
    "ages": (lambda: FromCheckpoints(min_age=9, max_age=8), "no rollout can be both"),
    "words": (lambda: FromCheckpoints(ages="old"), "one of uniform, recent"),  # type: ignore[arg-type]
    "experience": (lambda: Experience(width=0), "width be above 0"),
    "experience's ages": (lambda: Experience(min_age=0), "at least 1"),
    "demonstrations": (lambda: Demonstrations(exactly=0), "at least 1"),
    "bounds": (lambda: GRPO(prefix_clip_low=2), "must lie in 0..1"),
    "bounds of a rollout": (lambda: RLOO(level="rollout", prefix_clip_high=1), "need level token"),
    "nothing left to write": (lambda: replace(recipe, prefixes=replace(LIVE_RULE, longest=32)), "leaves no room"),
    "nothing left to write, cut": (
        lambda: replace(recipe, prefixes=FromHistory(where="tokens", cut_tokens=32)), "leaves no room",
    ),
    "a cut at the end": (lambda: FromHistory(cut_low=1.0, cut_high=1.0), "leaves no continuation"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_sources_are_refused_in_one_line(name: str) -> None:
    make, told = REFUSED[name]
    with pytest.raises(StockpotError, match=told) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_ages_that_a_short_run_never_reaches_are_told_before_it_starts(started: str, tmp_path: Path) -> None:
    told = stockpot(
        "train", "tests/tiny.py" if Path("tests/tiny.py").exists() else Path(__file__).with_name("tiny.py"),
        "--model", started, "--prefixes", "history", "--prefixes.min-age", "6", "--out", tmp_path / "run",
    )  # fmt: skip
    assert told.code == 0 and "no rollout of its 6 steps will get a prefix" in told.err


def test_a_history_of_another_tokenizer_is_refused_before_training(started: str, tmp_path: Path) -> None:
    train(short(started, steps=1), tmp_path / "run")
    with History.open(tmp_path / "run" / "history.sqlite") as history:
        history._database.execute("UPDATE meta SET value = 'another' WHERE key = 'vocabulary'")
    config = short(started, steps=2)
    with pytest.raises(StockpotError, match="another tokenizer"):
        train(config, tmp_path / "run", resume=True)
    assert len(Run.open(tmp_path / "run").metrics()) == 2
