"""The figures of an update and of a step's rollouts: small cases by hand, and what must add up."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import LIVE, NOW, OLD, RUN, authors_own, collate, members, mixed, rollout, somewhere_else, span, variants
from stockpot import diagnostics
from stockpot.algorithms import GRPO, LUFFY, RLOO, TOPR, Algorithm, AsymRE, ExGRPO, Reinforce, Supervised, gspo
from stockpot.diagnostics import AGES, PARTS, POINTS, describe, quantiles, summarise
from stockpot.types import KINDS, Author, Batch, Prompt, Rollout, Span

PROMPT = Prompt("p", [1])
TEXTBOOK = Author("a textbook")


@pytest.fixture
def rng() -> random.Random:
    return random.Random(5)


def written(author: Author, log_probs: Sequence[float] | None, length: int = 0, **details: Any) -> Span:
    return Span(author, [2] * (length or len(log_probs or ())), log_probs, **details)


def head(log_probs: Sequence[float], **details: Any) -> Span:
    return written(OLD, log_probs, kind="prefix", **details)


def batch_of(*rollouts: Sequence[Span], advantages: Sequence[Any]) -> Batch:
    return collate([Rollout(PROMPT, tuple(spans), 0.0) for spans in rollouts], advantages)


def view(batch: Batch, policy: Any, algorithm: Algorithm = GRPO(), entropy: Sequence[float] | None = None) -> Any:
    """What an update would keep of a batch, with these log-probs and entropies."""
    log_probs = torch.as_tensor(policy, dtype=torch.float64).detach().requires_grad_()
    entropies = torch.as_tensor(entropy if entropy is not None else [0.0] * len(log_probs), dtype=torch.float64)
    return diagnostics.view(log_probs, entropies, algorithm.loss(log_probs, batch), batch)


def seen(batch: Batch, policy: Any, algorithm: Algorithm = GRPO(), **more: Any) -> dict[str, float]:
    return summarise([view(batch, policy, algorithm, **more)])


def logs(*ratios: float) -> list[float]:
    """Log-probs of a policy that has these ratios to an author who gave each token -2."""
    return [-2.0 + math.log(w) for w in ratios]


# --- by age ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bucket", "ages"),
    [("0", [0]), ("1-3", [1, 3]), ("4-7", [4, 7]), ("8-15", [8, 15]), ("16-31", [16, 31]), ("32-63", [32, 63]),
     ("64+", [64, 119])],
)  # fmt: skip
def test_both_edges_of_an_age_bucket_lie_in_it(bucket: str, ages: list[int]) -> None:
    spans = [written(Author(RUN, NOW - age), [-2.0]) for age in ages]
    found = seen(batch_of(spans, advantages=[1.0]), [-2.0] * len(ages))
    assert {name.removesuffix("/tokens") for name in found if name.startswith("age/") and name.endswith("/tokens")} == {
        f"age/{bucket}"
    }
    assert found[f"age/{bucket}/tokens"] == len(ages)


def test_outsiders_and_other_runs_have_no_age() -> None:
    spans = [written(TEXTBOOK, None, 1), written(Author("another run", NOW), [-2.0]), written(LIVE, [-2.0])]
    found = seen(batch_of(spans, advantages=[1.0]), [-2.0] * 3)
    assert found["age/unknown/tokens"] == 2 and found["age/unknown/unknown_tokens"] == 1
    assert found["age/0/tokens"] == 1 and found["age/0/unknown_tokens"] == 0


def test_the_figures_of_a_bucket_by_hand() -> None:
    """Two tokens of age 33, ratios 1.5 and 0.5, A = 2: the first is clipped. Beside them a fresh one."""
    batch = batch_of([head([-2.0, -2.0]), written(LIVE, [-2.0])], advantages=[2.0])
    found = seen(batch, logs(1.5, 0.5, 1.0), entropy=[0.25, 0.5, 4.0])
    expected = {
        "tokens": 2.0,
        "unknown_tokens": 0.0,
        "entropy": 0.375,
        "clip_share": 0.5,
        "clip_loss": 0.75,
        "advantage_mean": 2.0,
        "ratio_mean": 1.0,
        "ess": 2.0**2 / ((1.5**2 + 0.5**2) * 2),
        "kl_to_author": ((1.5 - 1 - math.log(1.5)) + (0.5 - 1 - math.log(0.5))) / 2,
    }
    for part in ("age/32-63", "prefix"):
        for name, value in expected.items():
            assert found[f"{part}/{name}"] == pytest.approx(value), (part, name)
    assert {name.split("/")[2] for name in found if name.startswith("age/32-63/")} == expected.keys()
    assert found["age/0/entropy"] == found["continuation/entropy"] == 4.0


def test_kinds_and_ages_each_add_up_to_the_whole(rng: random.Random) -> None:
    """Sums, token-weighted means, and means over the tokens with a ratio; for every figure that is one."""
    batch = collate(mixed(rng))
    found = seen(batch, somewhere_else(batch), entropy=[rng.random() for _ in batch.tokens])
    for parts in (KINDS, [f"age/{age}" for age in AGES]):
        parts = [part for part in parts if f"{part}/tokens" in found]
        assert len(parts) == 3
        for name in ("tokens", "unknown_tokens"):
            assert found[f"all/{name}"] == sum(found[f"{part}/{name}"] for part in parts)
        for name in ("entropy", "clip_share", "advantage_mean", "advantage_abs", "ratio_mean", "kl_to_author"):
            without = "unknown_tokens" if name in ("ratio_mean", "kl_to_author") else ""
            pairs = [
                (found[f"{part}/{name}"], found[f"{part}/tokens"] - found.get(f"{part}/{without}", 0.0))
                for part in parts
                if f"{part}/{name}" in found
            ]
            if name == "advantage_abs" and parts != list(KINDS):
                assert not pairs
                continue
            whole = found["all/tokens"] - (found["all/unknown_tokens"] if without else 0.0)
            assert sum(n for _, n in pairs) == whole
            assert found[f"all/{name}"] == pytest.approx(sum(x * n for x, n in pairs) / whole), name


def test_untrained_tokens_are_in_no_figure_whatever_they_are() -> None:
    plain = batch_of([written(LIVE, [-2.0, -2.0])], advantages=[1.0])
    tool = written(OLD, [-1.0], trained=False)
    more = batch_of([tool, written(LIVE, [-2.0, -2.0])], advantages=[1.0])
    expected = seen(plain, logs(1.1, 0.9), entropy=[1.0, 2.0])
    found = seen(more, [math.nan, *logs(1.1, 0.9)], entropy=[math.nan, 1.0, 2.0])
    del expected["continuation/entropy_at_start"]  # the response begins with the tool's token
    assert found == expected
    assert summarise([view(batch_of([tool], advantages=[1.0]), [-1.0])]) == {}


# --- ratios and weights ---------------------------------------------------------------------------------------------


def test_quantiles_lie_between_neighbours() -> None:
    """Five ratios in any order: places 0.04, 0.4, 2, 3.6 and 3.96 between the first and the fifth."""
    batch = batch_of([head([-2.0] * 5)], advantages=[1.0])
    found = seen(batch, logs(5.0, 1.0, 4.0, 2.0, 3.0))
    names = ("ratio_p01", "ratio_p10", "ratio_p50", "ratio_p90", "ratio_p99", "ratio_max")
    for part in ("all", "prefix"):
        assert [found[f"{part}/{n}"] for n in names] == pytest.approx([1.04, 1.4, 3.0, 4.6, 4.96, 5.0])


def test_quantiles_of_groups_are_those_of_each_group_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(101, generator=generator, dtype=torch.float64)
    values[::7] = values[0]  # ties
    member = torch.rand(6, 101, generator=generator) < 0.3
    member[3], member[4] = False, False
    member[4, 17] = True
    wanted = torch.tensor([0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0], dtype=torch.float64)
    found = quantiles(values, member, wanted.tolist())
    for row, group in zip(found, member, strict=True):
        if group.any():
            torch.testing.assert_close(row, values[group].quantile(wanted))


def test_on_policy_every_ratio_is_one(rng: random.Random) -> None:
    batch = collate(mixed(rng))
    found = seen(batch, authors_own(batch))
    for part in PARTS:
        if found.get(f"{part}/tokens", 0) > found.get(f"{part}/unknown_tokens", 0):
            assert found[f"{part}/ratio_mean"] == found[f"{part}/ess"] == 1.0
            assert found[f"{part}/kl_to_author"] == found[f"{part}/clip_share"] == found[f"{part}/clip_loss"] == 0.0
            if not part.startswith("age"):
                assert [found[f"{part}/{name}"] for name in POINTS] == [1.0] * len(POINTS)
                assert found[f"{part}/weight_mean"] == found[f"{part}/weight_p99"] == 1.0
    assert found["demonstration/weight_mean"] == 1.0


def test_unknown_authors_are_left_out_of_every_ratio_and_counted() -> None:
    """Beside two known tokens of ratios 1.5 and 0.5 stand two whose author's log-prob nobody knows."""
    spans = [written(LIVE, [-2.0, -2.0]), written(Author("a tool"), None, 2)]
    found = seen(batch_of(spans, advantages=[1.0]), [*logs(1.5, 0.5), -9.0, -0.5])
    alone = seen(batch_of(spans[:1], advantages=[1.0]), logs(1.5, 0.5))
    assert (found["continuation/tokens"], found["continuation/unknown_tokens"]) == (4, 2)
    for name in ("ratio_mean", "ess", "kl_to_author", *POINTS):
        assert found[f"continuation/{name}"] == pytest.approx(alone[f"continuation/{name}"]), name
    assert found["continuation/clip_loss"] == pytest.approx(1.5 / 4), "the loss does take them for ratio 1"
    assert found["age/unknown/tokens"] == found["age/unknown/unknown_tokens"] == 2
    assert not {"age/unknown/ratio_mean", "age/unknown/ess", "age/unknown/kl_to_author"} & found.keys()
    only = seen(batch_of([written(TEXTBOOK, None, 3, kind="demonstration")], advantages=[1.0]), [-1.0] * 3)
    assert not [name for name in only if "/ratio" in name or name.endswith(("/ess", "author"))]


OLD_WEIGHTS: list[tuple[Algorithm, list[float]]] = [
    (GRPO(), [0.0, 0.5, 1.1]),
    (GRPO(clip_high=9.0), [1.5, 0.5, 1.1]),
    (RLOO(), [0.0, 0.5, 1.1]),
    (RLOO(clip_high=9.0, level="rollout"), [1.5 * 0.5 * 1.1] * 3),
    (GRPO(level="rollout"), [(1.5 * 0.5 * 1.1) ** (1 / 3)] * 3),
    (gspo(), [(1.5 * 0.5 * 1.1) ** (1 / 3)] * 3),
    (Reinforce(cap=1.2), [1.2, 0.5, 1.1]),
    (Reinforce(correction="none"), [1.0] * 3),
    (TOPR(), [1.0] * 3),
    (AsymRE(), [1.0] * 3),
    (ExGRPO(beta=0.1), [0.1 * w / (w + 0.1) ** 2 for w in (1.5, 0.5, 1.1)]),
    (LUFFY(gamma=0.1), [0.1 * p / (p + 0.1) ** 2 for p in (math.exp(-2) * w for w in (1.5, 0.5, 1.1))]),
]


@pytest.mark.parametrize(("algorithm", "weights"), OLD_WEIGHTS, ids=[repr(a).split("(")[0] for a, _ in OLD_WEIGHTS])
def test_the_weight_is_what_multiplied_the_gradient(algorithm: Algorithm, weights: list[float]) -> None:
    """Three old tokens of ratios 1.5, 0.5 and 1.1 with A = 2."""
    batch = batch_of([head([-2.0] * 3)], advantages=[2.0])
    found = view(batch, logs(1.5, 0.5, 1.1), algorithm)
    assert found.weight.tolist() == pytest.approx(weights)
    metrics = summarise([found])
    assert metrics["prefix/weight_mean"] == pytest.approx(sum(weights) / 3)
    low, high = sorted(weights)[1:]
    assert metrics["prefix/weight_p99"] == pytest.approx(low + (high - low) * 0.98)


def test_topr_tapers_what_went_badly_and_imitation_weighs_one() -> None:
    batch = batch_of([head([-2.0] * 2)], advantages=[-1.0])
    assert view(batch, logs(0.5, 0.5), TOPR()).weight.tolist() == pytest.approx([0.25, 0.25])
    taught = batch_of([written(TEXTBOOK, None, 2)], advantages=[1.0])
    assert view(taught, [-1.0, -3.0], Supervised()).weight.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", variants())
def test_a_clipped_token_weighs_nothing_and_training_is_left_alone(name: str, rng: random.Random) -> None:
    algorithm = variants()[name]
    rollouts = mixed(rng)
    batch = collate(rollouts)
    log_probs = somewhere_else(batch, spread=0.8)
    terms = algorithm.loss(log_probs, batch)
    kept = diagnostics.view(log_probs, torch.zeros(len(batch.tokens)), terms, batch)
    assert log_probs.grad is None
    assert (kept.weight[kept.clipped & kept.trained] == 0).all()
    assert kept.weight[kept.trained].isfinite().all() and not kept.weight.requires_grad
    terms.loss[batch.trained].sum().backward()  # the graph is still there
    gradient = log_probs.grad
    assert gradient is not None
    torch.testing.assert_close(gradient, -(kept.weight * batch.advantages))


def test_tokens_without_advantage_have_no_weight() -> None:
    batch = batch_of([head([-2.0])], [head([-2.0])], advantages=[0.0, 1.0])
    found = seen(batch, logs(3.0, 1.1))
    assert found["prefix/weight_mean"] == found["prefix/weight_p99"] == pytest.approx(1.1)
    none = seen(batch_of([head([-2.0])], advantages=[0.0]), logs(3.0))
    assert "prefix/weight_mean" not in none and "prefix/weight_p99" not in none
    assert none["prefix/advantage_abs"] == 0.0


def test_a_loss_without_gradient_weighs_nothing() -> None:
    class Still(GRPO):
        """A term that nothing can be learned from."""

        def loss(self, log_probs: Tensor, batch: Batch) -> Any:
            return super().loss(log_probs.detach(), batch)

    assert seen(batch_of([head([-2.0])], advantages=[1.0]), logs(1.1), Still())["all/weight_mean"] == 0.0


# --- advantages, the cut, the prefix --------------------------------------------------------------------------------


def test_advantages_by_hand() -> None:
    """Two prefixed rollouts of 3 and 1 + 1 tokens, two fresh ones of 1 and 4, the last with one number per token."""
    live = [written(LIVE, [-2.0] * n) for n in (2, 1, 1, 4)]
    parts = [[head([-2.0]), live[0]], [head([-2.0]), live[1]], [live[2]], [live[3]]]
    advantages: list[Any] = [3.0, -1.0, -2.0, [1.0, 2.0, 3.0, 6.0]]
    whole = batch_of(*parts, advantages=advantages)
    found = seen(whole, [-2.0] * 10)
    assert found["advantage/with_prefix"] == pytest.approx((3 - 1) / 2)
    assert found["advantage/without_prefix"] == pytest.approx((-2 + 3) / 2)
    assert found["prefix/advantage_mean"] == pytest.approx((3 - 1) / 2)
    assert found["prefix/advantage_abs"] == pytest.approx((3 + 1) / 2)
    assert found["continuation/advantage_mean"] == pytest.approx((3 * 2 - 1 - 2 + 12) / 8)
    assert found["continuation/advantage_abs"] == pytest.approx((3 * 2 + 1 + 2 + 12) / 8)
    halves = [view(batch_of(*parts[i : i + 2], advantages=advantages[i : i + 2]), [-2.0] * 5) for i in (0, 2)]
    assert summarise(halves) == pytest.approx(found), "rollouts of two micro-batches are not one"
    only = seen(batch_of([live[0]], advantages=[1.0]), [-2.0] * 2)
    assert "advantage/with_prefix" not in only and only["advantage/without_prefix"] == 1.0


def test_entropy_at_the_cut_and_at_the_start() -> None:
    """Entropy 0, 1, 2 ... along the stream: a head of 2 (untrained) and 1, fresh ones, a whole replay, a textbook."""
    parts = [
        [head([-2.0] * 2, trained=False), written(LIVE, [-2.0] * 2)],  # 0 1 | 2 3
        [written(LIVE, [-2.0] * 3)],  # 4 5 6
        [head([-2.0]), head([-2.0]), written(LIVE, [-2.0])],  # 7 8 | 9
        [head([-2.0] * 2)],  # 10 11
        [written(LIVE, [-2.0])],  # 12
        [written(TEXTBOOK, None, 1, kind="demonstration"), written(LIVE, [-2.0])],  # 13 14
    ]
    found = seen(batch_of(*parts, advantages=[1.0] * 6), [-2.0] * 15, entropy=range(15))
    assert found["continuation/entropy_at_cut"] == pytest.approx((2 + 9) / 2)
    assert found["continuation/entropy_at_start"] == pytest.approx((4 + 12) / 2)
    fresh = seen(batch_of(parts[1], advantages=[1.0]), [-2.0] * 3)
    assert "continuation/entropy_at_cut" not in fresh
    split = [
        view(batch_of(part, advantages=[1.0]), [-2.0] * n, entropy=range(first, first + n))
        for part, first, n in ((parts[3], 10, 2), (parts[1], 4, 3), (parts[0], 0, 4))
    ]
    found = summarise(split)
    assert found["continuation/entropy_at_cut"] == 2.0, "the end of a replay is not followed by the next rollout"
    assert found["continuation/entropy_at_start"] == 4.0


def test_prefix_lengths_by_hand(rng: random.Random) -> None:
    """Heads of 1, 2, 3, 4 and 10 tokens, the last a replay; and one fresh rollout."""
    made = [
        rollout(rng, span(rng, OLD, n, kind="prefix"), span(rng, LIVE, m), reward=1.0)
        for n, m in ((1, 1), (2, 6), (3, 1), (4, 1))
    ]
    made += [rollout(rng, span(rng, OLD, 10, kind="prefix"), reward=0.0), rollout(rng, span(rng, LIVE, 7), reward=0.5)]
    found = describe(made, 3)
    assert found["prefix/length"] == 4.0
    assert found["prefix/length_p10"] == pytest.approx(1.4) and found["prefix/length_p90"] == pytest.approx(7.6)
    assert found["prefix/length_share"] == pytest.approx((1 / 2 + 2 / 8 + 3 / 4 + 4 / 5 + 1) / 5)
    assert found["rollout/prefixed"] == 20 and found["rollout/decoded"] == 9 + 7
    assert found["reward/with_prefix"] == 0.8 and found["reward/without_prefix"] == 0.5
    none, only = describe(made[5:], 1), describe(made[:5], 5)
    assert not [name for name in none if name.startswith(("prefix/length", "reward/with_"))]
    assert "reward/without_prefix" not in only, "no rollout, no mean"


@pytest.mark.parametrize("name", members())
def test_any_split_into_micro_batches_has_the_same_figures(name: str, rng: random.Random) -> None:
    algorithm, rollouts = members()[name], mixed(rng)

    def kept(some: Sequence[Rollout]) -> Any:
        batch = collate(some)
        drawn = batch.author_log_probs + 0.3 * torch.sin(batch.tokens.double() * 7 + batch.index)
        return view(batch, drawn, algorithm, entropy=batch.tokens.tolist())

    whole = summarise([kept(rollouts)])
    assert len(whole) > 60
    assert summarise([kept([r]) for r in reversed(rollouts)]) == pytest.approx(whole, rel=1e-12, abs=1e-12)
