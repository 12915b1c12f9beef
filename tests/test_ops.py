"""The shared mathematics: processed distributions against transformers', entropy, KL, sums with denominators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stockpot import ops
from stockpot.types import Sampling, StockpotError

SAMPLINGS = [
    Sampling(temperature=0.6),
    Sampling(top_k=5),
    Sampling(top_p=0.7),
    Sampling(min_p=0.2),
    Sampling(temperature=1.3, top_k=9, top_p=0.8, min_p=0.05),
]


def logits(rows: int = 40, vocabulary: int = 17, seed: int = 0) -> Tensor:
    return 2 * torch.randn(rows, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def transformers_own(values: Tensor, sampling: Sampling) -> Tensor:
    """The same processing by Hugging Face's warpers, in `generate`'s order."""
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers = [TemperatureLogitsWarper(sampling.temperature)]
    warpers += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    warpers += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    for warper in warpers:
        values = warper(torch.empty(0), values)
    return values


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_processed_distributions_are_those_of_transformers(sampling: Sampling) -> None:
    ours, theirs = ops.process_logits(logits(), sampling), transformers_own(logits(), sampling)
    assert torch.equal(ours.isinf(), theirs.isinf())
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1))
    assert ours.isinf().any() == sampling.truncated


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_keep_adds_the_scored_token_to_the_support_and_nothing_else(sampling: Sampling) -> None:
    values = logits()
    plain = ops.process_logits(values, sampling)
    for token in range(values.shape[1]):
        keep = torch.full((len(values),), token)
        kept = ops.process_logits(values, sampling, keep)
        inside = ~plain[:, token].isinf()
        assert torch.equal(kept[inside], plain[inside])
        assert torch.equal(kept[~inside, token], (values / sampling.temperature)[~inside, token])
        others = torch.arange(values.shape[1]) != token
        assert torch.equal(kept[:, others], plain[:, others])


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_learner_gives_a_sampled_token_what_the_sampler_gave_it(sampling: Sampling) -> None:
    """`keep` must not disturb an on-policy ratio: a token that was drawn is in the support already."""
    processed = ops.process_logits(logits(), sampling)
    drawn = torch.multinomial(processed.softmax(-1), 1, generator=torch.Generator().manual_seed(1)).squeeze(-1)
    sampler, _ = ops.log_prob_and_entropy(processed, drawn)
    learner, _ = ops.log_prob_and_entropy(ops.process_logits(logits(), sampling, keep=drawn), drawn)
    assert torch.equal(sampler, learner)


def test_log_prob_and_entropy_are_those_of_the_processed_distribution() -> None:
    processed = ops.process_logits(logits(), Sampling(temperature=0.7, top_p=0.8))
    tokens = processed.argmax(-1)
    probabilities = processed.softmax(-1)
    log_probs, entropy = ops.log_prob_and_entropy(processed, tokens)
    torch.testing.assert_close(log_probs, probabilities.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).log())
    torch.testing.assert_close(entropy, torch.special.entr(probabilities).sum(-1))


@pytest.mark.parametrize("sampling", [Sampling(), *SAMPLINGS], ids=str)
def test_log_prob_and_entropy_pass_gradcheck_through_the_processing(sampling: Sampling) -> None:
    values = logits(rows=4, vocabulary=7, seed=5).requires_grad_()
    tokens = torch.tensor([0, 3, 6, 2])

    def scored(x: Tensor) -> tuple[Tensor, Tensor]:
        return ops.log_prob_and_entropy(ops.process_logits(x, sampling, keep=tokens), tokens)

    assert torch.autograd.gradcheck(scored, (values,))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_every_kl_estimator_passes_gradcheck_and_is_zero_at_the_reference(estimator: str) -> None:
    log_probs = -torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    reference = log_probs.detach() + torch.linspace(-1, 1, 9, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ops.kl(x, reference, estimator), (log_probs,))
    assert torch.equal(ops.kl(reference, reference, estimator), torch.zeros(9, dtype=torch.float64))


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("distance", [0.5, 19.0, 21.0, 1e4])
def test_a_kl_in_the_loss_never_pushes_away_from_the_reference(estimator: str, distance: float) -> None:
    """However far apart they are: finite, and the gradient's sign is that of log pi - log reference, or none."""
    log_probs = torch.tensor([-distance - 1.0, distance - 1.0], dtype=torch.float64, requires_grad=True)
    value = ops.kl(log_probs, torch.tensor([-1.0, -1.0], dtype=torch.float64), estimator)
    (gradient,) = torch.autograd.grad(value.sum(), log_probs)
    assert value.isfinite().all() and gradient.isfinite().all()
    assert (value >= 0).all()
    assert gradient[0] <= 0 <= gradient[1]


def test_the_effective_sample_size_is_all_of_equal_weights_and_one_of_a_single_weight() -> None:
    assert ops.effective_sample_size(torch.full((8,), 0.3, dtype=torch.float64)) == pytest.approx(1.0)
    assert ops.effective_sample_size(torch.tensor([1e9, 0.0, 0.0, 0.0])) == pytest.approx(0.25)
    assert ops.effective_sample_size(torch.tensor([1.0, 3.0])) == pytest.approx(16 / 20)
    assert ops.effective_sample_size(torch.empty(0)) == 1.0


def test_reduce_weighs_a_token_the_same_in_any_split_and_ignores_what_is_masked() -> None:
    values, mask = torch.tensor([1.0, 2.0, float("nan"), 4.0]), torch.tensor([True, True, False, True])
    weights = torch.tensor([2.0, 4.0, 1.0, 8.0])
    whole = ops.reduce(values, mask, weights)
    assert whole == pytest.approx(1.5)
    assert whole == sum(ops.reduce(values[i : i + 1], mask[i : i + 1], weights[i : i + 1]) for i in range(4))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 2.0},
        {"top_k": -1},
    ],
    ids=str,
)
def test_an_impossible_distribution_is_refused_in_one_line(wrong: dict[str, float]) -> None:
    with pytest.raises(StockpotError, match=next(iter(wrong))) as told:
        Sampling(**wrong)  # type: ignore[arg-type]
    assert "\n" not in str(told.value)
