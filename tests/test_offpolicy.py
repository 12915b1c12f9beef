"""The off-policy methods against their formulas, computed by hand with plain floats: value and gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers import LIVE, OLD, collate
from stockpot.algorithms import GRPO, LUFFY, M2PO, TOPR, Algorithm, AsymRE, ExGRPO, Reinforce
from stockpot.types import Author, Batch, Group, Prompt, Rollout, Span, StockpotError

PROMPT = Prompt("p", [1])
EXPERT = Author("a textbook")


def written(author: Author, log_probs: Sequence[float] | None, length: int = 0) -> Span:
    return Span(author, range(2, 2 + (length or len(log_probs or ()))), log_probs)


def batch_of(*rollouts: Sequence[Span], advantages: Sequence[float]) -> Batch:
    return collate([Rollout(PROMPT, tuple(spans), 0.0) for spans in rollouts], list(advantages))


def run(algorithm: Algorithm, batch: Batch, policy: Sequence[float]) -> tuple[list[float], list[float], list[bool]]:
    """Per token: the loss, its gradient by log pi, and whether it was clipped away."""
    log_probs = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    terms = algorithm.loss(log_probs, batch)
    gradient: Tensor = torch.autograd.grad(terms.loss.sum(), log_probs)[0]
    return terms.loss.tolist(), gradient.tolist(), terms.clipped.tolist()


def rewarded(*rewards: float) -> Group:
    return Group(PROMPT, tuple(Rollout(PROMPT, (), reward) for reward in rewards))


# --- AsymRE ---------------------------------------------------------------------------------------------------------


def test_asymre_lowers_the_baseline_by_delta_and_keeps_the_order() -> None:
    assert AsymRE().advantages(rewarded(1.0, 0.0, 0.0, 0.0)) == pytest.approx([0.85, -0.15, -0.15, -0.15])
    assert AsymRE().advantages(rewarded(1.0, 1.0)) == pytest.approx([0.1, 0.1]), "all right: still imitated"
    assert AsymRE().advantages(rewarded(0.0, 0.0)) == pytest.approx([0.1, 0.1]), "and so is all wrong, by definition"
    group = rewarded(0.25, -2.0, 1.0)
    assert AsymRE(delta=0.0).advantages(group) == Reinforce().advantages(group)


def test_asymre_does_not_ask_who_wrote_it() -> None:
    policy = [-0.5, -3.0, -0.25]
    for author, known in ((OLD, [-1.0, -0.5, -2.0]), (LIVE, [-0.5, -3.0, -0.25]), (EXPERT, None)):
        batch = batch_of([written(author, known, 3)], advantages=[-0.15])
        loss, gradient, clipped = run(AsymRE(), batch, policy)
        assert loss == pytest.approx([0.15 * p for p in policy])
        assert gradient == pytest.approx([0.15] * 3)
        assert clipped == [False] * 3


# --- TOPR -----------------------------------------------------------------------------------------------------------


def test_topr_imitates_positives_and_tapers_negatives_by_the_whole_rollouts_ratio() -> None:
    old = [-1.0, -2.0]
    less, more = [-1.5, -2.25], [-0.75, -1.5]  # log-ratios -0.5, -0.25 and +0.25, +0.5
    spans = [[written(OLD, old)]] * 4
    batch = batch_of(*spans, advantages=[0.5, 0.5, -0.5, -0.5])
    policy = less + more + less + more
    loss, gradient, clipped = run(TOPR(), batch, policy)
    weights = [1.0, 1.0, 1.0, 1.0, math.exp(-0.75), math.exp(-0.75), 1.0, 1.0]
    signs = [0.5] * 4 + [-0.5] * 4
    assert gradient == pytest.approx([-w * a for w, a in zip(weights, signs, strict=True)])
    assert loss == pytest.approx([-w * a * p for w, a, p in zip(weights, signs, policy, strict=True)])
    assert not any(clipped)
    by_token = run(TOPR(level="token"), batch, policy)[1]
    assert by_token == pytest.approx([-0.5] * 4 + [0.5 * math.exp(-0.5), 0.5 * math.exp(-0.25), 0.5, 0.5])


def test_topr_counts_trained_tokens_only_and_takes_unknown_ones_for_ratio_one() -> None:
    tool = replace(written(OLD, [-1.0, -1.0]), trained=False)
    head, tail = written(OLD, [-1.0]), written(EXPERT, None, 1)
    batch = batch_of([head, tool, tail], advantages=[-1.0])
    gradient = run(TOPR(), batch, [-1.5, -9.0, -9.0, -0.125])[1]
    assert gradient[0] == gradient[3] == pytest.approx(math.exp(-0.5))


# --- M2PO -----------------------------------------------------------------------------------------------------------


def test_m2po_drops_the_largest_clippable_squares_until_the_mean_is_below_the_threshold() -> None:
    """Log-ratios .1 .2 .3 .5 and -.9: with A = 1 the last is not clippable. Means: .01, .025, .0467, ..."""
    logs = [0.3, 0.1, -0.9, 0.5, 0.2]
    batch = batch_of([written(OLD, [-2.0] * 5)], advantages=[1.0])
    loss, gradient, clipped = run(M2PO(), batch, [-2.0 + x for x in logs])
    assert clipped == [True, False, False, True, False]
    kept = [0.0, math.exp(0.1), math.exp(-0.9), 0.0, math.exp(0.2)]
    assert loss == pytest.approx([-w for w in kept])
    assert gradient == pytest.approx([-w for w in kept])
    assert run(M2PO(threshold=0.0467), batch, [-2.0 + x for x in logs])[2] == [False, False, False, True, False]
    assert not any(run(M2PO(threshold=1.0), batch, [-2.0 + x for x in logs])[2])


def test_m2po_with_a_negative_advantage_looks_at_the_ratios_below_one() -> None:
    batch = batch_of([written(OLD, [-2.0] * 3)], advantages=[-1.0])
    assert run(M2PO(), batch, [-2.0 - 0.9, -2.0 + 0.9, -2.0 - 0.1])[2] == [True, False, False]


def test_m2po_spends_each_rollouts_budget_on_itself() -> None:
    """Over both rollouts at once the mean would be 0.045 and then 0.01; alone, the second may keep its 0.19."""
    first, second = [written(OLD, [-2.0] * 3)], [written(OLD, [-2.0] * 2)]
    batch = batch_of(first, second, advantages=[1.0, 1.0])
    logs = [0.1, 0.1, 0.4, 0.19, 0.19]
    together = run(M2PO(), batch, [-2.0 + x for x in logs])[2]
    assert together == [False, False, True, False, False]
    for part, chosen in ((first, slice(0, 3)), (second, slice(3, 5))):
        alone = batch_of(part, advantages=[1.0])
        assert run(M2PO(), alone, [-2.0 + x for x in logs[chosen]])[2] == together[chosen]


def test_m2po_on_tokens_near_their_author_has_no_clip_at_all() -> None:
    batch = batch_of([written(OLD, [-2.0] * 3)], advantages=[1.0])
    policy = [-2.0 + x for x in (0.19, 0.1, 0.21)]
    assert run(M2PO(), batch, policy) == run(GRPO(clip_low=1.0, clip_high=9.0), batch, policy)


def test_m2po_lends_no_budget_from_untrained_tokens() -> None:
    near, far = replace(written(OLD, [-2.0]), trained=False), written(OLD, [-2.0])
    assert run(M2PO(), batch_of([near, far], advantages=[1.0]), [-1.99, -1.75])[2] == [False, True]


# --- LUFFY and ExGRPO -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("advantage", [1.5, -0.5])
def test_luffy_shapes_the_probability_of_what_others_wrote(advantage: float) -> None:
    policy = [-0.5, -3.0, -0.25, -2.0]
    batch = batch_of([written(OLD, [-1.0, -1.0]), written(EXPERT, None, 2)], advantages=[advantage])
    loss, gradient, clipped = run(LUFFY(), batch, policy)
    odds = [math.exp(p) for p in policy]
    assert loss == pytest.approx([-advantage * p / (p + 0.1) for p in odds])
    assert gradient == pytest.approx([-advantage * 0.1 * p / (p + 0.1) ** 2 for p in odds])
    assert not any(clipped)


@pytest.mark.parametrize("advantage", [1.5, -0.5])
def test_exgrpo_shapes_the_ratio_of_what_past_selves_wrote(advantage: float) -> None:
    known, policy = [-1.0, -1.0, -4.0], [-0.5, -3.0, -1.0]
    batch = batch_of([written(OLD, known)], advantages=[advantage])
    loss, gradient, clipped = run(ExGRPO(), batch, policy)
    ratios = [math.exp(p - q) for p, q in zip(policy, known, strict=True)]
    assert loss == pytest.approx([-advantage * w / (w + 0.1) for w in ratios])
    assert gradient == pytest.approx([-advantage * 0.1 * w / (w + 0.1) ** 2 for w in ratios])
    assert not any(clipped)


@pytest.mark.parametrize("algorithm", [LUFFY(), ExGRPO()], ids=["LUFFY", "ExGRPO"])
def test_on_live_tokens_the_shaped_methods_are_grpo_beside_old_ones_too(algorithm: Algorithm) -> None:
    head, tail = written(OLD, [-1.0, -1.0]), written(LIVE, [-2.0, -2.0, -2.0])
    batch = batch_of([head, tail], advantages=[1.0])
    policy = [-1.0, -1.0, -2.0 + 0.5, -2.0 - 0.5, -2.0]
    ours, plain = run(algorithm, batch, policy), run(GRPO(), batch, policy)
    for mine, other in zip(ours, plain, strict=True):
        assert mine[2:] == other[2:]
    assert ours[2] == [False, False, True, False, False]
    assert ours[1][:2] != plain[1][:2]


@pytest.mark.parametrize(
    "wrong", ["AsymRE(delta=-0.1)", "M2PO(threshold=-1.0)", "LUFFY(gamma=0.0)", "ExGRPO(beta=0.0)"]
)
def test_numbers_that_make_no_sense_are_refused_in_one_line(wrong: str) -> None:
    with pytest.raises(StockpotError, match="must be") as told:
        eval(wrong)
    assert "\n" not in str(told.value)
