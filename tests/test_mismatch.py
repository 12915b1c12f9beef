"""Sampler and learner disagree: how far, by hand; and what a bound on the ratio takes away."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import LIVE, NOW, OLD, RUN, collate, members, mixed, tiny_model, totals
from runs import metrics
from stockpot import diagnostics
from stockpot.algorithms import GRPO, M2PO, AsymRE, Reinforce, gspo
from stockpot.config import Config
from stockpot.mismatch import Correction
from stockpot.policy import Learner, Policy
from stockpot.types import Author, Prompt, Rollout, Span, StockpotError

PROMPT = Prompt("p", [1])


def batch_of(*spans: Span, advantages: list[Any]) -> Any:
    return collate([Rollout(PROMPT, spans, 0.0)], [advantages])


def own(*ratios: float, author: Author = LIVE, **details: Any) -> tuple[Span, list[float]]:
    """A span whose author gave each token -2, and the log-probs of a policy that has these ratios to it."""
    return Span(author, [2] * len(ratios), [-2.0] * len(ratios), **details), [-2.0 + math.log(w) for w in ratios]


def slopes(algorithm: Any, batch: Any, policy: list[float]) -> tuple[list[float], Any]:
    """d loss_t / d log pi(y_t), and the terms."""
    log_probs = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    terms = algorithm.loss(log_probs, batch)
    (slope,) = torch.autograd.grad(terms.loss.sum(), log_probs)
    return slope.tolist(), terms


# --- measured -------------------------------------------------------------------------------------------------------


def views(span_and_policy: list[tuple[Span, list[float]]]) -> dict[str, float]:
    spans, policies = zip(*span_and_policy, strict=True)
    policy = torch.tensor([p for part in policies for p in part], dtype=torch.float64, requires_grad=True)
    batch = batch_of(*spans, advantages=[1.0] * len(policy))
    return diagnostics.summarise(
        [diagnostics.view(policy, torch.zeros_like(policy), GRPO().loss(policy, batch), batch)]
    )


def test_the_mismatch_is_the_mean_and_the_largest_distance_of_fresh_tokens() -> None:
    found = views([own(math.exp(0.25), math.exp(-0.5), 1.0)])
    assert found["mismatch/mean"] == pytest.approx(0.25) and found["mismatch/max"] == pytest.approx(0.5)


def test_tokens_that_are_not_fresh_say_nothing_of_the_sampler() -> None:
    """A prefix, a late policy's, a demonstration: they may be far from the policy with every right."""
    stranger = Span(Author("a textbook"), [2], None, kind="demonstration"), [-5.0]
    late = own(7.0, author=Author(RUN, NOW - 1))
    found = views([own(9.0, author=OLD, kind="prefix"), own(math.exp(0.5)), late, stranger])
    assert found["mismatch/mean"] == found["mismatch/max"] == pytest.approx(0.5)
    assert "mismatch/mean" not in views([late, stranger])


def test_only_the_first_update_of_a_step_measures_it() -> None:
    """The second one's policy has moved away from the sampler's."""
    rows = [{"loss": 1.0, "mismatch/mean": 0.1, "mismatch/max": 0.2}, {"loss": 3.0, "mismatch/mean": 9.0}]
    assert diagnostics.average(rows) == {"loss": 2.0, "mismatch/mean": 0.1, "mismatch/max": 0.2}
    assert "mismatch/mean" not in diagnostics.average([{"loss": 1.0}, rows[1]])


def test_the_reference_sampler_agrees_with_the_learner_to_rounding(finished: Path) -> None:
    rows = metrics(finished)[1:]
    assert all(0 <= row["mismatch/mean"] <= row["mismatch/max"] < 1e-4 for row in rows), json.dumps(rows[-1])


# --- corrected ------------------------------------------------------------------------------------------------------

NO_CLIP = GRPO(clip_low=1.0, clip_high=1e9)


def test_truncated_by_hand() -> None:
    """Ratios 0.5, 1, 3, 8 under cap 2: weights 0.5, 1, 2, 2; d loss / d log pi = -weight x advantage."""
    span, policy = own(0.5, 1.0, 3.0, 8.0)
    batch = batch_of(span, advantages=[1.0, -1.0, 2.0, -1.0])
    slope, terms = slopes(Correction("truncate", cap=2.0).wrap(NO_CLIP), batch, policy)
    assert slope == pytest.approx([-0.5, 1.0, -4.0, 2.0])
    assert terms.figures["mismatch/corrected"].tolist() == [2.0] and not terms.clipped.any()
    assert terms.ratio.tolist() == pytest.approx([0.5, 1.0, 3.0, 8.0]), "diagnostics see the ratio as it was"


def test_masked_by_hand() -> None:
    """Ratios 0.4, 0.6, 1.9, 3 under cap 2: the first and the last leave 0.5..2."""
    span, policy = own(0.4, 0.6, 1.9, 3.0)
    batch = batch_of(span, advantages=[1.0, 1.0, -1.0, -1.0])
    slope, terms = slopes(Correction("mask", cap=2.0).wrap(NO_CLIP), batch, policy)
    assert slope == pytest.approx([0.0, -0.6, 1.9, 0.0])
    assert terms.figures["mismatch/corrected"].tolist() == [2.0]
    assert terms.clipped.tolist() == [True, False, False, True]


def test_under_a_clip_it_bounds_what_the_clip_leaves() -> None:
    """Ratio 5: the clip has taken the gradient of the positive advantage; that of the negative one goes from 5 to 2."""
    span, policy = own(5.0, 5.0)
    batch = batch_of(span, advantages=[1.0, -1.0])
    plain, _ = slopes(GRPO(), batch, policy)
    cut, terms = slopes(Correction("truncate", cap=2.0).wrap(GRPO()), batch, policy)
    assert plain == pytest.approx([0.0, 5.0]) and cut == pytest.approx([0.0, 2.0])
    assert terms.clipped.tolist() == [True, False]


def test_prefixes_and_untrained_tokens_are_left_alone() -> None:
    old, far = own(9.0, author=OLD, kind="prefix")
    live, near = own(9.0)
    tool, told = own(9.0, trained=False)
    batch = batch_of(old, live, tool, advantages=[-1.0] * 3)
    for kind, left in (("truncate", 2.0), ("mask", 0.0)):
        slope, terms = slopes(Correction(kind, cap=2.0).wrap(GRPO()), batch, [*far, *near, *told])  # type: ignore[arg-type]
        assert slope[:2] == pytest.approx([9.0, left]) and terms.figures["mismatch/corrected"].tolist() == [1.0]


@pytest.mark.parametrize("kind", ["truncate", "mask"])
def test_nothing_changes_where_nothing_is_far(kind: Any) -> None:
    span, policy = own(0.9, 1.0, 1.1)
    batch = batch_of(span, advantages=[1.0, -1.0, 1.0])
    for name, algorithm in members().items():
        if algorithm.weighs_by_ratio and getattr(algorithm, "level", "token") == "token":
            assert slopes(Correction(kind).wrap(algorithm), batch, policy)[0] == slopes(algorithm, batch, policy)[0], (
                name
            )


def test_it_is_off_by_default_and_then_the_algorithm_itself() -> None:
    algorithm = GRPO()
    assert Config().correction == Correction() and Correction().wrap(algorithm) is algorithm


@pytest.mark.parametrize("algorithm", [Reinforce(), AsymRE(), gspo()], ids=lambda a: type(a).__name__)
def test_losses_without_a_ratio_of_each_token_are_refused(algorithm: Any) -> None:
    with pytest.raises(StockpotError, match=r"correction\.mask bounds the ratio of each token, but"):
        Config(algorithm=algorithm, correction=Correction("mask"))
    Config(algorithm=algorithm)
    with pytest.raises(StockpotError, match=r"correction\.cap must be 1 or more"):
        Correction("mask", cap=0.5)


def test_weighing_by_the_ratio_is_measured_not_declared() -> None:
    """Where an algorithm says that tokens carry their ratio, the slope of fresh tokens is -ratio x advantage."""
    spread = own(0.97, 1.0, 1.03)
    batch = batch_of(spread[0], advantages=[1.0, -1.0, 1.0])
    expected = [-0.97, 1.0, -1.03]
    for name, algorithm in members().items():
        slope = slopes(algorithm, batch, spread[1])[0]
        if algorithm.weighs_by_ratio and getattr(algorithm, "level", "token") == "token":
            assert slope == pytest.approx(expected), name


def test_an_update_counts_what_was_corrected() -> None:
    """Beside the algorithm's own figures, in what the record gets."""
    rollouts = mixed(random.Random(3))
    algorithm = Correction("mask", cap=1.01).wrap(M2PO(threshold=9.0))
    update = Policy(tiny_model(), Learner()).update([collate(rollouts)], algorithm, totals(rollouts))
    own = sum(span.trained and span.kind == "continuation" for r in rollouts for span in r.spans for _ in span.tokens)
    assert 0 < update.metrics["mismatch/corrected"] * len(rollouts) <= own and not update.skipped
