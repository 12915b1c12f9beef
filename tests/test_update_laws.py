"""The laws once more where they matter: through `Policy.update` of a real (tiny) Qwen3, in float64.

Gradients are read just before the optimiser's step, by the hook that torch offers for it.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import LIVE, OLD, collate, mixed, rollout, span, tiny_model, totals, variants
from stockpot import batching, ops
from stockpot.algorithms import GRPO, SPO, Algorithm, Reinforce
from stockpot.policy import Learner, Policy, Update
from stockpot.regularizers import KL, EntropyBonus
from stockpot.types import Batch, Rollout, Sampling, StockpotError

ALL = variants()
every = pytest.mark.parametrize("algorithm", ALL.values(), ids=ALL)
WARM = Sampling(temperature=0.7)


@cache
def model(seed: int = 0) -> Any:
    return tiny_model(seed)


def policy(seed: int = 0) -> Policy:
    return Policy(copy.deepcopy(model(seed)), Learner(learning_rate=1e-3, max_grad_norm=1e9, tokens_per_pass=64))


def step(
    batches: Sequence[Batch], rollouts: Sequence[Rollout], algorithm: Algorithm, **more: Any
) -> tuple[Update, Tensor]:
    """One update of a fresh policy, and the gradient that it stepped along, all parameters joined."""
    learner, seen = policy(), []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]))

    learner.optimizer.register_step_pre_hook(look)
    update = learner.update(batches, algorithm, totals(rollouts), **more)
    assert len(seen) == 1, "one update takes one step"
    return update, seen[0]


@dataclass(frozen=True)
class Step:
    """Everything one update needs, so that it can be laid out in many ways."""

    rollouts: list[Rollout]
    advantages: list[Any]
    reference: list[Tensor]

    def batch(self, chosen: Sequence[int], **options: Any) -> Batch:
        """A micro-batch of some of its rollouts."""
        return collate(
            [self.rollouts[i] for i in chosen],
            [self.advantages[i] for i in chosen],
            reference_log_probs=[self.reference[i] for i in chosen],
            **options,
        )


@cache
def experience() -> Step:
    """Rollouts of every kind, drawn at several temperatures, near enough to the policy that not all is clipped."""
    rng = random.Random(11)
    rollouts = [*mixed(rng), *mixed(rng, WARM), *mixed(rng, Sampling(0.9, top_k=9, top_p=0.8, min_p=0.01))]
    learner = policy()
    rollouts = [rewritten(r, learner, 0.2) for r in rollouts]
    advantages: list[Any] = [rng.uniform(-1, 1) for _ in rollouts]
    advantages[3] = [rng.uniform(-1, 1) for _ in range(len(rollouts[3]))]
    return Step(rollouts, advantages, policy(1).score(rollouts, "policy"))


def rewritten(written: Rollout, author: Policy, noise: float) -> Rollout:
    """The same tokens with (nearly) the log-probs that `author` gives them."""
    rng = random.Random(len(written))
    scores = iter(author.score([written], "policy")[0].tolist())
    spans = []
    for piece in written.spans:
        own = [next(scores) + rng.gauss(0, noise) for _ in piece.tokens]
        spans.append(piece if piece.log_probs is None else replace(piece, log_probs=own))
    return replace(written, spans=tuple(spans))


# --- 1 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [a for a in ALL.values() if not isinstance(a, SPO)])
@pytest.mark.parametrize(
    "sampling", [Sampling(), WARM, Sampling(0.9, top_k=9, top_p=0.9)], ids=["plain", "warm", "cut"]
)
def test_a_fresh_sample_has_ratio_one_on_every_token_and_gives_reinforces_step(
    algorithm: Algorithm, sampling: Sampling
) -> None:
    """Stored log-probs are float32, hence the tolerances."""
    rng, learner = random.Random(5), policy()
    rollouts = [rewritten(rollout(rng, span(rng, LIVE, n, sampling=sampling)), learner, 0.0) for n in (2, 5, 3, 1)]
    batch = collate(rollouts, [0.5, -1.0, 0.25, 0.25])
    terms = algorithm.loss(learner.log_probs(batch)[0], batch)
    torch.testing.assert_close(terms.ratio, torch.ones_like(terms.ratio), rtol=0, atol=5e-6)
    assert not terms.clipped.any()
    _, found = step([batch], rollouts, algorithm)
    if type(algorithm).__name__ == "Supervised":
        batch = replace(batch, advantages=torch.ones_like(batch.advantages))
    _, expected = step([batch], rollouts, Reinforce(correction="none", normalise=algorithm.normalise))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert expected.norm() > 1e-3


# --- 3 --------------------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, Callable[[Step, list[int]], list[Batch]]] = {
    "another padding token": lambda s, all_: [s.batch(all_, pad=7)],
    "in reverse": lambda s, all_: [s.batch(all_[::-1])],
    "shuffled": lambda s, all_: [s.batch(random.Random(1).sample(all_, len(all_)))],
    "packed": lambda s, all_: [s.batch(all_, pack_to=40)],
    "packed, shuffled, another padding token": lambda s, all_: [
        s.batch(random.Random(2).sample(all_, len(all_)), pack_to=25, pad=3)
    ],
    "one at a time": lambda s, all_: [s.batch([i]) for i in all_],
    "uneven halves": lambda s, all_: [s.batch(all_[:4]), s.batch(all_[4:])],
    "split by budget, packed": lambda s, all_: [
        s.batch(chosen, pack_to=30)
        for chosen in batching.split([len(r.prompt.tokens) + len(r) for r in s.rollouts], 45)
    ],
}


@every
def test_padding_packing_order_and_micro_batches_change_nothing(algorithm: Algorithm) -> None:
    taught = experience()
    everything = list(range(len(taught.rollouts)))
    more = {"entropy_bonus": EntropyBonus(0.03), "kl": KL(0.1)}
    update, expected = step([taught.batch(everything)], taught.rollouts, algorithm, **more)
    assert expected.norm() > 1e-3
    for name, layout in LAYOUTS.items():
        other, found = step(layout(taught, everything), taught.rollouts, algorithm, **more)
        torch.testing.assert_close(
            found, expected, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert other.metrics == pytest.approx(update.metrics, rel=1e-9, abs=1e-12), name


def test_packed_neighbours_do_not_see_each_other() -> None:
    """Changing a rollout that shares a row changes nothing for the others: log-probs and entropies."""
    rng, learner = random.Random(3), policy()
    rollouts = [rollout(rng, span(rng, OLD, n)) for n in (4, 6, 3)]
    other = [rollouts[0], rollout(rng, span(rng, OLD, 6)), rollouts[2]]
    whole, changed = (collate(these, pack_to=99) for these in (rollouts, other))
    assert whole.ids.shape[0] == 1
    for one, two in zip(learner.log_probs(whole), learner.log_probs(changed), strict=True):
        keep = whole.rollout != 1
        torch.testing.assert_close(one[keep], two[keep], rtol=1e-12, atol=1e-13)
        assert not torch.allclose(one[~keep], two[~keep])


# --- 4, 7 -----------------------------------------------------------------------------------------------------------


@every
def test_a_step_with_nothing_to_train_moves_no_weight_by_its_gradient(algorithm: Algorithm) -> None:
    rng = random.Random(4)
    rollouts = [rollout(rng, span(rng, OLD, n, trained=False)) for n in (3, 1)]
    update, gradient = step([collate(rollouts)], rollouts, algorithm, entropy_bonus=EntropyBonus(0.1))
    assert not update.skipped and update.metrics["loss"] == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_loss_that_is_not_finite_skips_the_step_and_leaves_the_weights() -> None:
    rng, learner = random.Random(4), policy()
    before = [p.detach().clone() for p in learner.model.parameters()]
    rollouts = [rollout(rng, span(rng, LIVE, 3))]
    update = learner.update([collate(rollouts, [math.nan])], GRPO(), totals(rollouts))
    assert update.skipped and update.metrics["skipped_steps"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, learner.model.parameters(), strict=True))


# --- regularisers ---------------------------------------------------------------------------------------------------


@every
def test_regularisers_are_exactly_nothing_at_zero_and_the_same_addition_to_every_algorithm(
    algorithm: Algorithm,
) -> None:
    taught = experience()
    batches = [taught.batch(range(len(taught.rollouts)))]

    def gradient(**more: Any) -> Tensor:
        return step(batches, taught.rollouts, algorithm, **more)[1]

    plain = gradient()
    assert torch.equal(gradient(entropy_bonus=EntropyBonus(0.0), kl=KL(0.0)), plain)
    for coefficient in (0.3, 0.6):
        for added, alone in (
            (gradient(entropy_bonus=EntropyBonus(coefficient)) - plain, coefficient * entropy_alone()),
            (gradient(kl=KL(coefficient)) - plain, coefficient * kl_alone()),
        ):  # transformers' RMSNorm computes in float32 even here, hence the tolerance
            assert alone.abs().max() > 1e-4
            torch.testing.assert_close(added, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))


def differentiated(term: Callable[[Policy, Batch], Tensor]) -> Tensor:
    """The gradient of a mean over trained tokens, written down once without `update`."""
    taught, learner = experience(), policy()
    batch = taught.batch(range(len(taught.rollouts)))
    term(learner, batch)[batch.trained].mean().backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.flatten() for p in learner.model.parameters()])


@cache
def entropy_alone() -> Tensor:
    return differentiated(lambda learner, batch: -learner.log_probs(batch, entropy_grad=True)[1])


@cache
def kl_alone() -> Tensor:
    def k3(learner: Policy, batch: Batch) -> Tensor:
        d = batch.reference_log_probs - learner.log_probs(batch)[0]  # type: ignore[operator]
        return d.exp() - 1 - d

    return differentiated(k3)


def test_centred_kl_credits_sum_to_zero_and_blame_whoever_strayed_most() -> None:
    taught = experience()
    log_probs = policy().score(taught.rollouts[:4], "policy")
    kl = KL(0.5, estimator="k1", centred=True)
    credits = kl.credit(log_probs, taught.reference[:4])
    assert sum(credits) == pytest.approx(0.0, abs=1e-9)
    distances = [float(ops.kl(p, r, "k1").sum()) for p, r in zip(log_probs, taught.reference, strict=False)]
    assert credits[distances.index(max(distances))] == min(credits) < 0
    assert replace(kl, coefficient=0.0).credit(log_probs, taught.reference[:4]) == [0.0] * 4
    assert kl.credit(log_probs, log_probs) == [0.0] * 4
    plain = replace(kl, centred=False).credit(log_probs, taught.reference[:4])
    assert plain == pytest.approx([-0.5 * d for d in distances])


def test_a_credit_in_the_advantage_never_reaches_the_loss_twice() -> None:
    taught = experience()
    batches = [taught.batch(range(len(taught.rollouts)))]
    _, plain = step(batches, taught.rollouts, GRPO())
    for kl in (KL(0.5, estimator="k1"), KL(0.5, estimator="k1", centred=True)):
        assert kl.in_advantage
        assert torch.equal(step(batches, taught.rollouts, GRPO(), kl=kl)[1], plain)


def test_the_policys_own_numbers_agree_with_a_plain_forward_pass() -> None:
    """The yardstick of this file: transformers' logits, processed span by span with the token kept."""
    taught, learner = experience(), policy()
    batch = taught.batch(range(len(taught.rollouts)))
    log_probs, entropy = learner.log_probs(batch)
    expected: list[tuple[Tensor, Tensor]] = []
    for written in taught.rollouts:
        ids = torch.tensor([[*written.prompt.tokens, *written.tokens]])
        logits = learner.model(ids).logits[0, len(written.prompt.tokens) - 1 : -1]
        samplings = [s.sampling for s in written.spans for _ in s.tokens]
        for row, token, sampling in zip(logits, written.tokens, samplings, strict=True):
            (processed,) = ops.process_logits(row.unsqueeze(0), sampling, torch.tensor([token]))
            probabilities = processed.softmax(-1)
            expected.append((probabilities[token].log(), torch.special.entr(probabilities).sum()))
    torch.testing.assert_close(log_probs, torch.stack([p for p, _ in expected]), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(entropy, torch.stack([e for _, e in expected]), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_a_kl_in_the_advantage_is_refused_unless_it_is_k1(estimator: Any) -> None:
    """As numbers the other two are flat around the reference, so as advantages they hold nothing: docs/biases.md."""
    with pytest.raises(StockpotError, match="k1"):
        KL(0.5, estimator=estimator, centred=True)
