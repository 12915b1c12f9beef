"""The laws that every algorithm keeps, whatever file it comes from and however its options are set.

`helpers.variants` walks `stockpot.algorithms`: each public algorithm, and each of its choices (Literal or bool) made
otherwise. A new file is held to the laws by existing. Where a law cannot hold by the method's own definition, the
method is named in one of the tables below, with the reason.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import (
    LIVE,
    OLD,
    authors_own,
    collate,
    defined_in_folder,
    members,
    mixed,
    rollout,
    somewhere_else,
    span,
    totals,
    variants,
)
from stockpot import ops
from stockpot.algorithms import GRPO, RLOO, Algorithm, Reinforce, Terms, dapo, dr_grpo
from stockpot.algorithms.base import denominator
from stockpot.prefixes import head
from stockpot.types import Author, Batch, Group, Prompt, Rollout, Totals

ALL = variants()

NO_BASELINE = {
    "Supervised": "imitation: every token is right, whatever the reward",
    "Reinforce(baseline=False)": "the original REINFORCE, without one",
    "PPO": "its baseline is the critic's: without one it has none (tests/test_ppo.py)",
    "AsymRE": "its baseline is too low on purpose: every advantage is larger by delta (tests/test_offpolicy.py)",
}
DETACHED_WEIGHT = {
    "Reinforce": "its weight is a number, so its gradient is not the derivative of its value",
    "TOPR": "the same (tests/test_offpolicy.py has its gradient)",
}
REGRESSION = {
    "SPO": "a regression on the reward, of whole responses: its step on fresh samples is in tests/test_spo.py",
}
SHAPED = {
    "LUFFY": "what others wrote has a shaped weight even where the policy agrees; on live tokens the law holds",
    "ExGRPO": "the same: at ratio 1 its weight has 0.083 of the gradient (tests/test_offpolicy.py holds both to it)",
}


def every(*, without: Sequence[str] = ()) -> Any:
    """Parametrise over all variants but those whose name begins with one of `without`."""
    chosen = {name: a for name, a in ALL.items() if not name.startswith(tuple(without) or ("\0",))}
    return pytest.mark.parametrize("algorithm", chosen.values(), ids=chosen)


def total(algorithm: Algorithm, log_probs: Tensor, batch: Batch, sizes: Totals) -> Tensor:
    """The scalar that `Policy.update` differentiates."""
    terms = algorithm.loss(log_probs, batch)
    return ops.reduce(terms.loss, batch.trained, denominator(algorithm.normalise, batch, sizes))


def value_and_gradient(
    algorithm: Algorithm, log_probs: Tensor, batch: Batch, rollouts: Sequence[Rollout]
) -> tuple[Tensor, Tensor]:
    loss = total(algorithm, log_probs, batch, totals(rollouts))
    return loss.detach(), torch.autograd.grad(loss, log_probs)[0]


@pytest.fixture
def rng() -> random.Random:
    return random.Random(7)


def group_of(rewards: Sequence[float]) -> Group:
    prompt = Prompt("p", [1])
    return Group(prompt, tuple(Rollout(prompt, (), reward) for reward in rewards))


# --- nothing escapes the laws --------------------------------------------------------------------------------------


def test_every_algorithm_in_the_folder_is_public_and_so_held_to_the_laws() -> None:
    assert defined_in_folder() <= {type(algorithm) for algorithm in members().values()}


def test_every_exemption_names_an_algorithm_that_exists() -> None:
    for name in (*NO_BASELINE, *DETACHED_WEIGHT, *SHAPED, *REGRESSION):
        assert name in ALL


# --- 1: on fresh samples every method is REINFORCE ------------------------------------------------------------------


@every(without=[*SHAPED, *REGRESSION])
def test_on_policy_the_ratio_is_one_and_the_gradient_is_reinforces(algorithm: Algorithm, rng: random.Random) -> None:
    rollouts = mixed(rng)
    batch = collate(rollouts)
    log_probs = authors_own(batch)
    terms = algorithm.loss(log_probs, batch)
    assert torch.equal(terms.ratio, torch.ones_like(terms.ratio))
    assert not terms.clipped.any()
    reinforce = -batch.advantages * log_probs
    wanted = ops.reduce(reinforce, batch.trained, denominator(algorithm.normalise, batch, totals(rollouts)))
    (expected,) = torch.autograd.grad(wanted, log_probs)
    _, found = value_and_gradient(algorithm, log_probs, collate(rollouts), rollouts)
    if type(algorithm).__name__ == "Supervised":  # its advantage is 1 by definition, not the batch's
        expected = expected / batch.advantages
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert found.abs().max() > 0


def test_each_token_is_weighed_against_whoever_wrote_it(rng: random.Random) -> None:
    old, live = span(rng, OLD, 3, kind="prefix"), span(rng, LIVE, 2)
    batch = collate([rollout(rng, old, live)])
    log_probs = somewhere_else(batch)
    authors = torch.tensor([*old.log_probs, *live.log_probs], dtype=torch.float64)  # type: ignore[misc]
    torch.testing.assert_close(GRPO().loss(log_probs, batch).ratio, (log_probs - authors).exp().detach())


def test_a_token_of_unknown_probability_weighs_one_wherever_the_policy_has_gone(rng: random.Random) -> None:
    demonstration = rollout(rng, span(rng, Author("a textbook"), 4, known=False, kind="demonstration"))
    batch = collate([demonstration], [2.0])
    log_probs = somewhere_else(batch, spread=5.0)
    for algorithm in (GRPO(), Reinforce()):
        terms = algorithm.loss(log_probs, batch)
        (gradient,) = torch.autograd.grad(terms.loss.sum(), log_probs)
        assert torch.equal(terms.ratio, torch.ones(4, dtype=torch.float64))
        assert torch.equal(gradient, torch.full((4,), -2.0, dtype=torch.float64))


# --- 2: SOUP lies between GRPO and replay ---------------------------------------------------------------------------


@every()
def test_soup_with_empty_prefixes_is_the_plain_method(algorithm: Algorithm, rng: random.Random) -> None:
    plain = [rollout(rng, span(rng, LIVE, n)) for n in (3, 6, 1)]
    stored = [rollout(rng, span(rng, OLD, 5)) for _ in plain]
    soup = [
        replace(r, spans=(span(rng, OLD, 0, kind="prefix"), *head(s, 0), *r.spans))
        for r, s in zip(plain, stored, strict=True)
    ]
    assert_same(algorithm, plain, soup)


@every()
def test_soup_with_whole_prefixes_is_replay(algorithm: Algorithm, rng: random.Random) -> None:
    replay = [rollout(rng, span(rng, OLD, n)) for n in (3, 6, 1)]
    soup = [replace(r, spans=(replace(r.spans[0], kind="prefix", source=4711),)) for r in replay]
    assert_same(algorithm, replay, soup)


@every()
def test_where_a_span_is_cut_in_two_changes_nothing(algorithm: Algorithm, rng: random.Random) -> None:
    whole = [rollout(rng, span(rng, OLD, 6)), rollout(rng, span(rng, LIVE, 4))]
    for cut in range(5):
        pieces = [replace(r, spans=(r.spans[0][:cut], r.spans[0][cut:])) for r in whole]
        assert_same(algorithm, whole, pieces)


def assert_same(algorithm: Algorithm, one: Sequence[Rollout], other: Sequence[Rollout]) -> None:
    """The same loss and the same gradient, to the bit, a little off-policy and far off."""
    first, second = collate(one), collate(other)
    for spread in (0.3, 1e-4):
        a = value_and_gradient(algorithm, somewhere_else(first, spread=spread), first, one)
        b = value_and_gradient(algorithm, somewhere_else(second, spread=spread), second, other)
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    assert a[1].abs().max() > 0, "everything was clipped: nothing was compared"


# --- 4: untrained tokens --------------------------------------------------------------------------------------------


@every()
def test_untrained_tokens_get_exactly_no_gradient_and_are_not_even_seen(
    algorithm: Algorithm, rng: random.Random
) -> None:
    """What the policy thinks of an untrained token must not reach the trained ones either, not by a rollout's ratio."""
    rollouts = mixed(rng)
    batch = collate(rollouts)
    log_probs = somewhere_else(batch)
    loss, gradient = value_and_gradient(algorithm, log_probs, batch, rollouts)
    assert (~batch.trained).sum() > 3
    assert torch.equal(gradient[~batch.trained], torch.zeros_like(gradient[~batch.trained]))
    for opinion in (-7.5, -1e6):
        elsewhere = torch.where(batch.trained, log_probs.detach(), opinion).requires_grad_()
        again, gradient_again = value_and_gradient(algorithm, elsewhere, batch, rollouts)
        assert torch.equal(loss, again)
        assert torch.equal(gradient, gradient_again)


# --- 5: advantages --------------------------------------------------------------------------------------------------


@every(without=list(NO_BASELINE))
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -3.7])
def test_equal_rewards_give_no_advantage(algorithm: Algorithm, reward: float) -> None:
    for size in (2, 3, 7):
        assert algorithm.advantages(group_of([reward] * size)) == pytest.approx([0.0] * size, abs=1e-10)


@every(without=[*NO_BASELINE, *REGRESSION])
def test_the_advantages_of_a_group_sum_to_zero_and_keep_the_order_of_rewards(algorithm: Algorithm) -> None:
    rewards = [0.0, 1.0, 0.25, 1.0, -2.0]
    advantages = algorithm.advantages(group_of(rewards))
    assert sum(advantages) == pytest.approx(0.0, abs=1e-12)
    assert sorted(range(5), key=lambda i: advantages[i]) == sorted(range(5), key=lambda i: rewards[i])
    moved = algorithm.advantages(group_of([reward + 10.0 for reward in rewards]))
    assert moved == pytest.approx(advantages)


def test_scaled_advantages_have_the_groups_sample_deviation() -> None:
    """Divided by n - 1, as in TRL and verl: with a group of 2 the other convention is off by 40 %."""
    for rewards in ([0.0, 1.0], [0.0, 1.0, 0.25, 1.0, -2.0]):
        advantages = GRPO().advantages(group_of(rewards))
        deviation = statistics.stdev(rewards)
        assert statistics.stdev(advantages) == pytest.approx(deviation / (deviation + 1e-4))
        assert statistics.stdev(dr_grpo().advantages(group_of(rewards))) == pytest.approx(deviation)


# --- 6: asymmetric options at symmetric values ----------------------------------------------------------------------


def plain_clip(log_probs: Tensor, batch: Batch, clip: float) -> list[float]:
    """PPO's symmetric clip, once more and without tensors."""
    terms = []
    for new, old, advantage in zip(
        log_probs.tolist(), batch.author_log_probs.tolist(), batch.advantages.tolist(), strict=True
    ):
        ratio = float(torch.tensor(new - old, dtype=torch.float64).exp())
        terms.append(-min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage))
    return terms


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, a in ALL.items()
        if {"clip_low", "clip_high"} <= {f.name for f in fields(a)} and getattr(a, "level", "token") == "token"  # type: ignore[arg-type]
    ],
)
def test_two_clips_of_one_size_are_the_plain_clip(name: str, rng: random.Random) -> None:
    batch = collate([rollout(rng, span(rng, LIVE, 6), reward=r) for r in (0.0, 1.0, 0.3)])
    log_probs = somewhere_else(batch)
    symmetric = replace(ALL[name], clip_low=0.1, clip_high=0.1)  # type: ignore[type-var,call-arg]
    terms = symmetric.loss(log_probs, batch)
    assert terms.loss.tolist() == pytest.approx(plain_clip(log_probs, batch, 0.1), abs=1e-14)
    assert terms.clipped.any() and not terms.clipped.all()


def test_each_side_is_clipped_at_its_own_bound_and_only_where_that_would_help(rng: random.Random) -> None:
    """Ratios around both bounds, with either sign of the advantage; floor 0.9, ceiling 1.4."""
    ratios = [0.85, 0.95, 1.3, 1.5] * 2
    batch = collate([rollout(rng, span(rng, OLD, 8))], [[1.0] * 4 + [-1.0] * 4])
    log_probs = batch.author_log_probs + torch.tensor(ratios, dtype=torch.float64).log()
    for kind in (GRPO, RLOO):
        terms = kind(clip_low=0.1, clip_high=0.4).loss(log_probs, batch)
        assert terms.clipped.tolist() == [False, False, False, True, True, False, False, False]
        assert terms.loss.tolist() == pytest.approx([-0.85, -0.95, -1.3, -1.4, 0.9, 0.95, 1.3, 1.5])


def test_dapo_with_an_equal_floor_and_ceiling_is_grpo() -> None:
    assert replace(dapo(), clip_high=0.2) == GRPO()


@every()
def test_on_rollouts_of_one_token_a_rollouts_ratio_is_its_tokens(algorithm: Algorithm, rng: random.Random) -> None:
    other = {"level": ("token", "rollout"), "correction": ("token", "rollout")}
    option = next((name for name in other if hasattr(algorithm, name)), None)
    if option is None:
        return
    rollouts = [rollout(rng, span(rng, OLD, 1)) for _ in range(6)]
    batch = collate(rollouts)
    log_probs = somewhere_else(batch)
    results = [
        value_and_gradient(replace(algorithm, **{option: choice}), log_probs, batch, rollouts)  # type: ignore[type-var]
        for choice in other[option]
    ]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


# --- 7: nothing to train, and far too much --------------------------------------------------------------------------


@every()
def test_an_all_untrained_batch_gives_a_zero_that_back_propagates(algorithm: Algorithm, rng: random.Random) -> None:
    rollouts = [rollout(rng, span(rng, OLD, n, trained=False)) for n in (3, 1)]
    batch = collate(rollouts)
    loss, gradient = value_and_gradient(algorithm, somewhere_else(batch), batch, rollouts)
    assert loss == 0.0
    assert torch.equal(gradient, torch.zeros(4, dtype=torch.float64))


@every()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_ratios_stay_finite(algorithm: Algorithm, dtype: torch.dtype, rng: random.Random) -> None:
    unknown = rollout(rng, span(rng, Author("a textbook"), 50, known=False))
    rollouts = [*(rollout(rng, span(rng, OLD, 50)) for _ in range(4)), unknown]
    batch = collate(rollouts, [1.0, -1.0, 1.0, -1.0, -1.0], dtype=dtype)
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0], dtype=dtype)[batch.rollout]
    log_probs = (batch.author_log_probs + 1e4 * sign).requires_grad_()
    loss, gradient = value_and_gradient(algorithm, log_probs, batch, rollouts)
    assert loss.isfinite()
    assert gradient.isfinite().all()


# --- gradients ------------------------------------------------------------------------------------------------------


@every(without=list(DETACHED_WEIGHT))
def test_the_gradient_is_the_derivative_of_the_loss(algorithm: Algorithm, rng: random.Random) -> None:
    rollouts = [rollout(rng, span(rng, OLD, n)) for n in (4, 2)]
    batch = collate(rollouts)
    log_probs = somewhere_else(batch, seed=3)
    kinks = torch.tensor([1 - getattr(algorithm, "clip_low", 0.2), 1 + getattr(algorithm, "clip_high", 0.2)])
    assert (algorithm.loss(log_probs, batch).ratio.unsqueeze(-1) - kinks).abs().min() > 1e-4, "pick another seed"
    assert torch.autograd.gradcheck(lambda x: total(algorithm, x, batch, totals(rollouts)), (log_probs,))


@pytest.mark.parametrize("name", [name for name, a in ALL.items() if isinstance(a, Reinforce)])
def test_a_detached_weight_multiplies_the_gradient_of_log_pi(name: str, rng: random.Random) -> None:
    algorithm = ALL[name]
    assert isinstance(algorithm, Reinforce)
    rollouts = [rollout(rng, span(rng, OLD, 4)), rollout(rng, span(rng, OLD, 2))]
    batch = collate(rollouts)
    log_probs = somewhere_else(batch, spread=1.0)
    logs = (log_probs - batch.author_log_probs).detach()
    if algorithm.correction == "rollout":
        logs = torch.cat([piece.sum().expand(len(piece)) for piece in logs.split([4, 2])])
    weight = (
        torch.ones(6, dtype=torch.float64) if algorithm.correction == "none" else logs.exp().clamp(max=algorithm.cap)
    )
    (gradient,) = torch.autograd.grad(algorithm.loss(log_probs, batch).loss.sum(), log_probs)
    torch.testing.assert_close(gradient, -weight * batch.advantages)


@every()
def test_clipped_tokens_are_those_without_gradient(algorithm: Algorithm, rng: random.Random) -> None:
    batch = collate([rollout(rng, span(rng, OLD, 8), reward=r) for r in (0.0, 1.0)])
    log_probs = somewhere_else(batch)
    terms: Terms = algorithm.loss(log_probs, batch)
    (gradient,) = torch.autograd.grad(terms.loss.sum(), log_probs)
    assert torch.equal(gradient == 0, terms.clipped)
