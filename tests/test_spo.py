"""SPO: its laws by enumeration, where Q0 comes from, and whole runs with the tiny model."""

from __future__ import annotations

import json
import math
import re
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from runs import assert_same_bits, metrics, stockpot
from stockpot import ops
from stockpot.algorithms import LUFFY, SPO
from stockpot.algorithms.base import denominator
from stockpot.algorithms.spo import blend, interval, log_mean, path, soft_value
from stockpot.batching import totals
from stockpot.config import Config
from stockpot.history import History, Score, fingerprint
from stockpot.prefixes import NoPrefixes, Offline, Replay
from stockpot.regularizers import KL
from stockpot.report.curves import SOFT, picture
from stockpot.soft import Soft
from stockpot.soft.baseline import weighed
from stockpot.train import train
from stockpot.types import Author, Group, Prompt, Rollout, Span, StockpotError
from test_enumeration import LENGTH, PROMPT, REWARD, SEQUENCES, Tree, chances, collate, token_log_probs
from test_loop import short

BETA = 0.5
R = torch.tensor([REWARD[s] for s in SEQUENCES], dtype=torch.float64)
TREE = Tree(3)
REFERENCE = list(token_log_probs(TREE.reference).view(-1, LENGTH))
Z = float((chances(TREE.reference) * (R / BETA).exp()).sum())
Q0 = BETA * math.log(Z)
OPTIMUM = chances(TREE.reference) * (R / BETA).exp() / Z


def rollouts(author: Author | None = None, *, known: bool = True, kind: Any = "continuation") -> list[Rollout]:
    """Every sequence once."""
    spans = [Span(author or Author("run", 3), s, [-1.0] * LENGTH if known else None, kind) for s in SEQUENCES]
    return [Rollout(PROMPT, (one,), REWARD[s]) for one, s in zip(spans, SEQUENCES, strict=True)]


def total(algorithm: SPO, logits: Tensor, base: float, some: Sequence[Rollout] | None = None) -> Tensor:
    """The loss of an update on all sequences, as `Policy.update` computes it."""
    some = rollouts() if some is None else some
    batch = collate(some, [(r.reward or 0.0) - base for r in some], reference_log_probs=REFERENCE)
    terms = algorithm.loss(token_log_probs(logits), batch)
    return ops.reduce(terms.loss, batch.trained, denominator(algorithm.normalise, batch, totals(some, 9)))


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    logits = start.clone().requires_grad_()

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer = torch.optim.LBFGS(
        [logits], max_iter=3000, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    optimizer.step(closure)  # type: ignore[arg-type]
    return logits.detach()


# --- the loss -------------------------------------------------------------------------------------------------------


def test_q_is_q0_at_every_token_where_the_policy_is_the_reference() -> None:
    for log_probs in REFERENCE:
        assert torch.equal(path(log_probs, log_probs, Q0, BETA), torch.full((LENGTH,), Q0, dtype=torch.float64))
    batch = collate(rollouts(), [r - Q0 for r in R.tolist()], reference_log_probs=REFERENCE)
    figures = SPO(beta=BETA).loss(token_log_probs(TREE.reference), batch).figures
    for name in ("spo/q0", "spo/q_half", "spo/q_end"):
        torch.testing.assert_close(figures[name], torch.full_like(figures[name], Q0), rtol=0, atol=1e-6)


def test_q_runs_from_q0_to_the_end_that_the_loss_sees() -> None:
    batch = collate(rollouts(), [r - Q0 for r in R.tolist()], reference_log_probs=REFERENCE)
    own = token_log_probs(TREE.policy)
    figures = SPO(beta=BETA).loss(own, batch).figures
    for i, log_probs in enumerate(own.view(-1, LENGTH)):
        course = path(log_probs, REFERENCE[i], Q0, BETA)
        assert float(figures["spo/q_end"][i]) == pytest.approx(float(course[-1]), abs=1e-6)
        assert float(figures["spo/q_half"][i]) == pytest.approx(float(course[1]), abs=1e-6), "two of three tokens"


@pytest.mark.parametrize("form", ["squared", "cross-entropy"])
def test_the_minimiser_is_the_reference_times_exp_of_the_reward(form: Any) -> None:
    """Whatever the data: here each sequence once, so by nobody's policy. Shifted below the clip."""
    algorithm = SPO(form=form, beta=BETA, reward_shift=-1.1)
    found = chances(minimise(lambda logits: total(algorithm, logits, Q0), TREE.reference))
    torch.testing.assert_close(found, OPTIMUM, rtol=0, atol=1e-6)
    assert float((chances(TREE.reference) - OPTIMUM).abs().max()) > 0.02


def test_with_a_wrong_q0_the_two_forms_spread_the_error_each_in_its_own_way() -> None:
    """docs/spo.md: at the minimum, squared's residual and the cross-entropy's slope are proportional to pi / mu."""
    for form in ("squared", "cross-entropy", "advantage"):
        algorithm = SPO(form=form, beta=BETA, reward_shift=-2.0)  # type: ignore[arg-type]
        base = Q0 - 0.15
        logits = minimise(lambda x, a=algorithm, b=base: total(a, x, b), TREE.reference)  # type: ignore[misc]
        gain = chances(logits).log() - chances(TREE.reference).log()
        if form == "cross-entropy":
            p, y = ((base - 2) / BETA + gain).exp(), ((R - 2) / BETA).exp()
            assert float(p.max()) < 0.9, "the clip has no part in it"
            slope = (p - y) / (1 - p)
        else:
            slope = base + BETA * gain - R
        shares = slope / chances(logits)
        torch.testing.assert_close(shares, shares.mean().expand_as(shares), rtol=1e-3, atol=0)
        assert abs(float(shares.mean())) > 1e-2


def test_with_rewards_that_are_chance_the_cross_entropy_finds_the_soft_value_and_squared_the_mean() -> None:
    """Every sequence is judged twice, once as 0 and once by its reward: docs/spo.md."""
    twice = [replace(r, reward=reward) for r in rollouts() for reward in (0.0, r.reward)]
    reference = [log_probs for log_probs in REFERENCE for _ in range(2)]

    def loss(logits: Tensor, algorithm: SPO, base: float) -> Tensor:
        batch = collate(twice, [(r.reward or 0.0) - base for r in twice], reference_log_probs=reference)
        log_probs = token_log_probs(logits).view(-1, LENGTH).repeat_interleave(2, 0).flatten()
        return ops.reduce(algorithm.loss(log_probs, batch).loss, batch.trained, LENGTH * len(twice))

    means = {"squared": (R / 2 / BETA).exp(), "cross-entropy": (1 + (R / BETA).exp()) / 2}
    for form, worth in means.items():
        algorithm = SPO(form=form, beta=BETA, margin=1e-9)  # type: ignore[arg-type]
        weights = chances(TREE.reference) * worth
        base = BETA * math.log(float(weights.sum()))
        found = chances(minimise(lambda x, a=algorithm, b=base: loss(x, a, b), TREE.policy))  # type: ignore[misc]
        torch.testing.assert_close(found, weights / weights.sum(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", ["squared", "cross-entropy", "advantage"])
def test_who_wrote_a_sample_does_not_change_the_loss(form: Any) -> None:
    algorithm = SPO(form=form, beta=BETA)
    expected = TREE.gradient(lambda x: total(algorithm, x, Q0))
    assert expected.norm() > 1e-3
    for others in (
        rollouts(Author("run", 10)),
        rollouts(Author("another run", 2), kind="prefix"),
        rollouts(Author("a textbook"), known=False, kind="demonstration"),
    ):
        assert torch.equal(TREE.gradient(lambda x, o=others: total(algorithm, x, Q0, o)), expected)  # type: ignore[misc]


def one(gain: float, reward: float, base: float, algorithm: SPO) -> float:
    """The loss of one rollout of four tokens, each log-ratio a quarter of `gain`."""
    rollout = Rollout(PROMPT, (Span(Author("run", 3), [1, 2, 0, 1], [-1.0] * 4),), reward)
    reference = torch.full((4,), -2.0, dtype=torch.float64)
    batch = collate([rollout], [reward - base], reference_log_probs=[reference])
    loss = algorithm.loss(reference + gain / 4, batch).loss
    return float(ops.reduce(loss, batch.trained, denominator(algorithm.normalise, batch, totals([rollout], 9))))


def test_the_losses_by_hand() -> None:
    """beta 0.5, a log-ratio of 1 over the response, Q0 0.2, reward 1: Q_T = 0.7."""
    assert one(1.0, 1.0, 0.2, SPO(beta=0.5)) == pytest.approx((0.7 - 1.0) ** 2, abs=1e-6)
    assert one(1.0, 1.0, 0.2, SPO(beta=0.5, length="mean")) == pytest.approx((0.2 + 0.125 - 1.0) ** 2, abs=1e-6)
    assert one(1.0, 1.0, 0.4, SPO("advantage", beta=0.5)) == pytest.approx((0.5 - 0.6) ** 2, abs=1e-6)
    # shifted by -1: Q_T = -0.3, so p = exp(-0.6); a reward of 1 is y = 1, one of 0 is y = exp(-2)
    assert one(1.0, 1.0, 0.2, SPO("cross-entropy", beta=0.5)) == pytest.approx(0.6, abs=1e-6)
    p, y = math.exp(-0.6), math.exp(-2)
    expected = -(y * math.log(p) + (1 - y) * math.log(1 - p))
    assert one(1.0, 0.0, 0.2, SPO("cross-entropy", beta=0.5)) == pytest.approx(expected, abs=1e-6)


def test_above_the_cut_the_clip_is_flat_and_the_line_goes_on() -> None:
    for reward, beyond, slope in ((0.0, "clip", 0.0), (1.0, "clip", 0.0), (1.0, "line", 0.0)):
        losses = [one(gain, reward, 0.2, SPO("cross-entropy", beta=0.5, beyond=beyond)) for gain in (3.0, 4.0)]  # type: ignore[arg-type]
        assert losses[1] - losses[0] == pytest.approx(slope)
    low, high = (one(gain, 0.0, 0.2, SPO("cross-entropy", beta=0.5, beyond="line")) for gain in (3.0, 4.0))
    y, p = math.exp(-2), math.exp(-0.01)
    assert high - low == pytest.approx((p - y) / (1 - p))


def test_a_shift_of_the_rewards_is_all_that_it_is() -> None:
    """Rewards in 0..1 shifted by -1 are rewards in -1..0, and only the cross-entropy looks at it."""
    zero_one, minus = SPO("cross-entropy", beta=BETA), SPO("cross-entropy", beta=BETA, reward_shift=0.0)
    below = [replace(r, reward=(r.reward or 0.0) - 1) for r in rollouts()]
    expected = TREE.gradient(lambda x: total(zero_one, x, Q0))
    torch.testing.assert_close(TREE.gradient(lambda x: total(minus, x, Q0 - 1, below)), expected, rtol=1e-5, atol=1e-8)
    for form in ("squared", "advantage"):
        plain = TREE.gradient(lambda x, f=form: total(SPO(f, beta=BETA), x, Q0))  # type: ignore[misc]
        shifted = TREE.gradient(lambda x, f=form: total(SPO(f, beta=BETA, reward_shift=5.0), x, Q0))  # type: ignore[misc]
        assert torch.equal(plain, shifted)
    with pytest.raises(StockpotError, match="reward_shift"):
        minus.advantages(Group(PROMPT, tuple(rollouts())), Q0)
    assert zero_one.advantages(Group(PROMPT, tuple(rollouts())), Q0) == [r.reward - Q0 for r in rollouts()]  # type: ignore[operator]


def test_at_the_reference_a_step_is_reinforces_over_whole_responses() -> None:
    """-2 beta (r - Q0) grad log pi(y): REINFORCE with a soft baseline, averaged over rollouts."""
    found = Tree.gradient(TREE, lambda x: total(SPO(beta=BETA), x, Q0))
    logits = TREE.reference.clone().requires_grad_()
    (at_reference,) = torch.autograd.grad(total(SPO(beta=BETA), logits, Q0), logits)
    by_hand = -2 * BETA * ((R - Q0) * token_log_probs(logits).view(-1, LENGTH).sum(-1)).mean()
    torch.testing.assert_close(at_reference, torch.autograd.grad(by_hand, logits)[0], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(found, at_reference)


# --- Q0 -------------------------------------------------------------------------------------------------------------


def test_soft_values_are_the_formulas() -> None:
    for p0 in (0.0, 0.25, 1.0):
        zero_one = [1.0] * int(8 * p0) + [0.0] * (8 - int(8 * p0))
        for beta in (0.1, 1.0):
            assert soft_value(zero_one, beta=beta) == pytest.approx(
                beta * math.log(1 - p0 + p0 * math.exp(1 / beta)), abs=1e-12
            )
            minus = [r - 1 for r in zero_one]
            assert soft_value(minus, beta=beta) == pytest.approx(
                beta * math.log(p0 + (1 - p0) * math.exp(-1 / beta)), abs=1e-12
            )
    assert soft_value([0.0, 1.0], beta=1e-4) == pytest.approx(1.0, abs=1e-3), "no overflow"


def test_the_interval_holds_the_truth_nineteen_times_in_twenty() -> None:
    generator = torch.Generator().manual_seed(1)
    truth, hits = math.log(0.7 + 0.3 * math.e), 0
    for _ in range(400):
        rewards = (torch.rand(64, generator=generator) < 0.3).double().tolist()
        low, high = interval(rewards, beta=1.0)
        hits += low <= truth <= high
    assert 365 <= hits <= 395
    assert interval([0.0] * 4, beta=1.0) == (0.0, 0.0)


def test_shrinking_is_a_mean_with_more_samples() -> None:
    one, other = log_mean([0.0, 1.0], beta=0.5), log_mean([1.0, 1.0, 1.0, 1.0], beta=0.5)
    assert blend(one, 2, other, 4) == pytest.approx(log_mean([0.0] + [1.0] * 5, beta=0.5))
    assert blend(one, 2, other, 0) == one


def test_rollouts_of_any_author_are_weighed_back_to_the_reference() -> None:
    """Summed over all that an author may write, exp(r / beta) ref / author is Z; by the optimum each one is."""
    for author, single in ((TREE.old, False), (OPTIMUM, True)):
        if single:
            chance = OPTIMUM
            own = [[float(p.log()) / LENGTH] * LENGTH for p in OPTIMUM]  # only the sum counts
        else:
            chance = chances(author)
            own = token_log_probs(author).view(-1, LENGTH).tolist()
        spans = [Span(Author("run", 1), s, p) for s, p in zip(SEQUENCES, own, strict=True)]
        pairs = [
            weighed(Rollout(PROMPT, (s,), REWARD[t]), q) for s, t, q in zip(spans, SEQUENCES, REFERENCE, strict=True)
        ]
        each = torch.tensor([log_mean([p[0]], [p[1]], beta=BETA) for p in pairs if p], dtype=torch.float64).exp()
        assert float((chance * each).sum()) == pytest.approx(Z, rel=1e-5)
        if single:
            torch.testing.assert_close(each, torch.full_like(each, Z), rtol=1e-5, atol=0)
    assert weighed(rollouts(Author("a textbook"), known=False)[0], REFERENCE[0]) is None


class Answers:
    """An engine that scores by a table of logits."""

    def score(self, some: Sequence[Rollout], of: str) -> list[Tensor]:
        assert of == "policy"
        return list(token_log_probs(TREE.policy, [tuple(r.tokens) for r in some]).view(-1, LENGTH))


def test_squared_with_the_groups_q0_has_the_gradient_of_trajectory_balance(tmp_path: Path) -> None:
    """VarGrad: the variance of log pi - log ref - r / beta over the group, times beta squared."""
    algorithm = SPO(beta=BETA, q0="group")
    soft = Soft(Config(algorithm=algorithm), Answers(), tmp_path, [])  # type: ignore[arg-type]
    some = rollouts()
    (base,) = soft.bases(algorithm, [Group(PROMPT, tuple(some))], REFERENCE, 0, None)  # type: ignore[arg-type]
    found = TREE.gradient(lambda x: total(algorithm, x, base))

    def variance(logits: Tensor) -> Tensor:
        log_ratios = chances(logits).log() - chances(TREE.reference).log()
        return BETA**2 * (log_ratios - R / BETA).var(unbiased=False)

    expected = TREE.gradient(variance)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert expected.norm() > 1e-2


# --- the history ----------------------------------------------------------------------------------------------------


def scored(reference: str = "start") -> list[Score]:
    return [Score(fingerprint(r), reference, torch.arange(3.0).tolist()) for r in rollouts()[:2]]  # type: ignore[arg-type]


def test_scores_are_kept_by_response_and_reference_and_cut_with_their_step(tmp_path: Path) -> None:
    some = rollouts()[:3]
    with History.open(tmp_path / "h.sqlite") as history:
        history.append(0, some[:1], scored()[:1])
        history.append(1, some[1:], scored()[1:] + scored("lagged-1"))
        found = history.scores(some, "start")
        assert list(found[fingerprint(some[0])]) == [0.0, 1.0, 2.0]
        assert set(found) == {fingerprint(r) for r in some[:2]}
        history.truncate(1)
        assert set(history.scores(some, "start")) == {fingerprint(some[0])}
        assert history.scores(some, "lagged-1") == {}
    another = replace(some[0], spans=(replace(some[0].spans[0], author=Author("x"), log_probs=None),))
    assert fingerprint(another) == fingerprint(some[0]) != fingerprint(some[1])


def test_a_history_of_the_first_format_is_read_as_it_is_and_brought_up_to_date(tmp_path: Path) -> None:
    file = tmp_path / "old.sqlite"
    with History.open(file) as history:
        history.append(0, rollouts()[:2])
    with sqlite3.connect(file) as database:
        database.execute("DROP TABLE scores")
        database.execute("PRAGMA user_version = 1")
    with History.open(file, read_only=True) as history:
        assert history.scores(rollouts(), "start") == {} and len(list(history.find())) == 2
    with History.open(file) as history:
        history.append(1, [], scored())
        assert len(history.scores(rollouts(), "start")) == 2
    with History.open(file, read_only=True) as history:
        assert len(history.scores(rollouts(), "start")) == 2


# --- whole runs -----------------------------------------------------------------------------------------------------


def soft(started: str, **changes: Any) -> Config:
    return short(started, **{"steps": 6, "algorithm": SPO(samples=4), "refresh_every": 3, "decode_rows": 8} | changes)


@pytest.fixture(scope="module")
def online(started: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spo") / "run"
    train(soft(started), folder)
    return folder


def authors(run: Path) -> dict[int, set[int | None]]:
    """Versions that wrote each step's rollouts."""
    with History.open(run / "history.sqlite", read_only=True) as history:
        return {now: {s.author.version for r in history.find(versions=(now, now)) for s in r.spans} for now in range(6)}


def test_rollouts_are_by_the_version_of_the_last_refresh_and_say_so(online: Path) -> None:
    assert authors(online) == {now: {now - now % 3} for now in range(6)}
    rows = metrics(online)
    assert [row["all/age_mean"] for row in rows[1:]] == [0, 1, 2, 0, 1, 2]
    assert rows[1]["all/ratio_max"] == pytest.approx(1.0, abs=1e-4) and rows[3]["all/ratio_max"] > 1.001


def test_the_first_step_starts_at_q0_and_the_next_move(online: Path) -> None:
    rows = metrics(online)
    assert rows[1]["spo/q0"] == pytest.approx(rows[1]["spo/q_end"], abs=1e-4)
    assert rows[1]["kl_to_reference"] < 1e-6 < rows[4]["kl_to_reference"]
    assert abs(rows[4]["spo/q_end"] - rows[4]["spo/q0"]) > 1e-3


def test_q0_is_what_the_references_samples_say(online: Path) -> None:
    table = json.loads((online / "q0.json").read_text())["prompts"]
    assert len(table) == 8
    for entry in table.values():
        assert entry["samples"] == len(entry["rewards"]) == 4
        assert entry["q0"] == soft_value(entry["rewards"], beta=SPO().beta)
        assert entry["low"] <= entry["q0"] <= entry["high"]
    assert len({entry["q0"] for entry in table.values()}) > 1


def test_the_reference_never_moves_with_the_policy(online: Path, started: str) -> None:
    begun = load_file(Path(started) / "model.safetensors")
    for step in (4, 6):
        folder = online / "checkpoints" / f"step-{step}"
        kept, moved = load_file(folder / "reference.safetensors"), load_file(folder / "model.safetensors")
        assert all(torch.equal(kept[name], begun[name]) for name in kept)
        assert not torch.equal(moved["model.embed_tokens.weight"], begun["model.embed_tokens.weight"])


def test_a_lagged_reference_is_the_policy_of_its_last_move(started: str, tmp_path: Path) -> None:
    config = soft(
        started, algorithm=SPO(q0="online", samples=4), kl=KL(reference="lagged", every=2), checkpoint_every=1
    )
    train(replace(config, steps=3, keep_checkpoints=9, refresh_every=1), tmp_path / "run")
    at = [tmp_path / "run" / "checkpoints" / f"step-{step}" for step in range(4)]
    for step in (2, 3):
        kept, policy = load_file(at[step] / "reference.safetensors"), load_file(at[2] / "model.safetensors")
        assert all(torch.equal(kept[name], policy[name]) for name in kept)
    assert metrics(tmp_path / "run")[3]["kl_to_reference"] < 1e-6


def resumed(run: Path, folder: Path, config: Config, gone: Sequence[str]) -> Path:
    """A copy of a run without some of its files, resumed."""
    again = folder / run.name
    shutil.copytree(run, again)
    for name in gone:
        path = again / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(config, again, resume=True)
    return again


@pytest.mark.parametrize("gone", [["checkpoints/step-6"], ["checkpoints", "q0.json"]])
def test_a_resume_ends_in_the_same_bits(online: Path, started: str, tmp_path: Path, gone: list[str]) -> None:
    """From step 4, between two refreshes; and from nothing."""
    again = resumed(online, tmp_path, soft(started), gone)
    assert_same_bits(online, again)
    assert (again / "q0.json").read_bytes() == (online / "q0.json").read_bytes()


def test_q0_goes_on_where_it_stopped(online: Path, started: str, tmp_path: Path) -> None:
    again = tmp_path / "half" / online.name
    shutil.copytree(online, again)
    shutil.rmtree(again / "checkpoints")
    table = json.loads((again / "q0.json").read_text())
    table["prompts"] = dict(list(table["prompts"].items())[:3])
    (again / "q0.json").write_text(json.dumps(table))
    train(soft(started), again, resume=True)
    assert_same_bits(online, again)
    assert (again / "q0.json").read_bytes() == (online / "q0.json").read_bytes()


def test_without_its_q0_a_run_that_has_left_the_reference_is_refused(
    online: Path, started: str, tmp_path: Path
) -> None:
    with pytest.raises(StockpotError, match="has left the reference"):
        resumed(online, tmp_path, soft(started), ["q0.json"])


@pytest.mark.parametrize(
    "algorithm",
    [
        SPO("cross-entropy", q0="online", samples=4, shrink=2.0),
        SPO("advantage", samples=4),
        SPO(q0="group"),
        SPO("advantage", q0="online", samples=4),
    ],
    ids=["cross-entropy, online", "advantage", "group", "advantage, online"],
)
def test_replayed_rollouts_are_scored_once_and_every_q0_runs_and_resumes(
    algorithm: SPO, started: str, tmp_path: Path
) -> None:
    config = soft(started, algorithm=algorithm, prefixes=Replay(share=0.5))
    train(config, tmp_path / "run")
    rows = metrics(tmp_path / "run")
    for row in rows[1:]:
        assert row["reference/found"] == round(row["prefix/share"] * 16)
    assert sum(row["reference/found"] for row in rows[1:]) > 8
    assert_same_bits(tmp_path / "run", resumed(tmp_path / "run", tmp_path / "again", config, ["checkpoints/step-6"]))


def test_show_draws_q_along_each_response(online: Path) -> None:
    """From what is stored: the last number is Q0 plus beta times the author's distance from the reference."""
    told = stockpot("show", online, "--step", 4, "--count", 16)
    assert told.code == 0
    drawn = re.findall(r"^Q (-?[\d.]+) [▁-█]+ (-?[\d.]+)$", told.out, re.M)
    table = json.loads((online / "q0.json").read_text())["prompts"]
    with History.open(online / "history.sqlite", read_only=True) as history:
        stored = list(history.find(versions=(4, 4)))
        given = history.scores(stored, "start")
    ends = []
    for r in stored:
        gain = sum(r.spans[0].log_probs or ()) - sum(given[fingerprint(r)])
        ends.append((f"{table[r.prompt.key]['q0']:.2f}", table[r.prompt.key]["q0"] + SPO().beta * gain))
    assert [start for start, _ in drawn] == [start for start, _ in ends]
    assert [float(end) for _, end in drawn] == pytest.approx([end for _, end in ends], abs=0.006)


def test_every_metric_of_spo_is_explained_and_drawn(online: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    rows = metrics(online)
    own = {key for row in rows for key in row if key.startswith(("spo/", "reference/"))}
    assert len(own) == 8 and all(f"`{key}`" in page for key in own)
    pytest.importorskip("matplotlib")
    panel = picture(rows, "a run").axes[-1]
    assert panel.get_title() == SOFT.title and len(panel.lines) == 4


# --- from files -----------------------------------------------------------------------------------------------------


def lines(started: str, run: Path) -> list[dict[str, Any]]:
    """The run's rollouts as another writer's solutions."""
    from stockpot.models import load_tokenizer

    tokenizer = load_tokenizer(started)
    with History.open(run / "history.sqlite", read_only=True) as history:
        stored = [r for r in history.find() if r.finish == "stop" and len(r) > 1]
    return [
        {
            "prompt": r.prompt.text,
            "completion": tokenizer.decode(list(r.tokens), skip_special_tokens=True),
            "reward": r.reward,
        }
        for r in stored
    ]


def write(file: Path, rows: Sequence[Any]) -> str:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


def test_fully_offline_nothing_is_generated(online: Path, started: str, tmp_path: Path) -> None:
    """From the history of an earlier run, with its log-probs, and from lines without."""
    for name, file in {
        "history": str(online / "history.sqlite"),
        "lines": write(tmp_path / "solutions.jsonl", lines(started, online)),
    }.items():
        train(soft(started, prefixes=Offline(file, share=1.0)), tmp_path / name)
        rows = metrics(tmp_path / name)[1:]
        assert all(row["rollout/decoded"] == 0 and row["offline/rollouts"] == 16 for row in rows)
        assert all(row["demonstration/tokens"] == row["all/tokens"] for row in rows)
        assert all((row["all/unknown_tokens"] == 0) == (name == "history") for row in rows)
        assert rows[-1]["kl_to_reference"] > 1e-6
        with History.open(tmp_path / name / "history.sqlite", read_only=True) as history:
            assert history.summary()["rollouts"] == 0


def test_half_online_takes_its_share_and_resumes(online: Path, started: str, tmp_path: Path) -> None:
    config = soft(started, prefixes=Offline(str(online / "history.sqlite"), share=0.5))
    train(config, tmp_path / "run")
    for row in metrics(tmp_path / "run")[1:]:
        assert row["offline/rollouts"] == 8 and row["prefix/missing"] == 0
        assert row["demonstration/tokens"] + row["continuation/tokens"] == row["all/tokens"]
    assert_same_bits(tmp_path / "run", resumed(tmp_path / "run", tmp_path / "again", config, ["checkpoints/step-6"]))


def test_what_a_file_has_of_no_use_is_counted_and_told(
    online: Path, started: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = lines(started, online)[:3]
    silent = {key: value for key, value in good[0].items() if key != "reward"}
    bad = ["{torn", 7, {"completion": "1"}, {"prompt": "never asked", "completion": "1"}, {"prompt": good[0]["prompt"]}]
    bad += [
        silent | {"completion": "1 " * 99},
        good[0] | {"reward": "much"},
        good[0] | {"tokens": [3, 4], "log_probs": [0.5]},
    ]
    given = {"prompt": good[0]["prompt"], "tokens": [4, 5, 1], "log_probs": [-0.5, -1.0, -0.1], "reward": 0.25}
    file = write(tmp_path / "some.jsonl", [*good, silent, given, *bad])
    train(soft(started, steps=1, prefixes=Offline(file)), tmp_path / "run")
    told = capsys.readouterr().err
    assert "5 of 13 lines are of use" in told
    for reason in ("1 not JSON", "2 without a prompt", "1 of no prompt", "1 without a completion", "1 longer than"):
        assert reason in told, reason
    for rows, why in ((bad, "none of its 8 lines"), ([], "it is empty")):
        with pytest.raises(StockpotError, match=why):
            train(soft(started, prefixes=Offline(write(tmp_path / "none.jsonl", rows))), tmp_path / "refused")
    with pytest.raises(StockpotError, match=r"cannot read prefixes\.path"):
        train(soft(started, prefixes=Offline(str(tmp_path / "missing"))), tmp_path / "refused")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kl": KL(reference="lagged")}, "a frozen reference"),
        ({"kl": KL(0.1, estimator="k1")}, "by itself"),
        ({"algorithm": SPO(q0="group"), "group_size": 1}, "at least 2"),
        ({"algorithm": LUFFY(), "refresh_every": 2}, "age 0"),
        ({"refresh_every": 0}, "refresh_every must be at least 1"),
        ({"prefixes": Offline()}, "names no file"),
    ],
)
def test_what_has_no_meaning_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(StockpotError, match=why):
        Config(**{"algorithm": SPO(), "prefixes": NoPrefixes(), **changes})


def test_a_batch_without_the_reference_is_refused() -> None:
    batch = collate([Rollout(Prompt("p", [1]), (Span(Author("run", 1), [1], [-1.0]),), 1.0)], [0.5])
    with pytest.raises(StockpotError, match="reference's log-probs"):
        SPO().loss(torch.zeros(1, dtype=torch.float64), batch)
