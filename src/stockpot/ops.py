"""The mathematics that every method shares, as pure functions on tensors.

Everything a loss sees is a flat stream: one entry per response token, rollouts laid end to end (shape ``N``),
and ``rollout`` says to which of the ``S`` rollouts an entry belongs. Padding never reaches a loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stockpot.types import Sampling

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are cut to this size before `exp`: e^20 is far outside every clip and still finite when squared."""


def process_logits(logits: Tensor, sampling: Sampling, keep: Tensor | None = None) -> Tensor:
    """Logits [N, V] -> those of the distribution that is sampled from: temperature, top-k, top-p, min-p, in this order.

    The sampler and the learner both call this, so an on-policy ratio is 1 whatever the truncation. `keep` [N] names
    tokens that stay in the support whatever happens: the learner passes the tokens it scores, because a token that
    an older policy could write must not get probability 0 (and a log-ratio of minus infinity) from today's top-p.
    """
    if sampling.temperature not in (0.0, 1.0):
        logits = logits / sampling.temperature
    if not sampling.truncated:
        return logits
    drop = torch.zeros_like(logits, dtype=torch.bool)
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        drop |= logits < kth
    if sampling.top_p < 1.0:
        ordered, order = logits.masked_fill(drop, -torch.inf).sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        drop |= torch.zeros_like(drop).scatter(-1, order, before >= sampling.top_p)
    if sampling.min_p > 0.0:
        probabilities = logits.masked_fill(drop, -torch.inf).softmax(dim=-1)
        drop |= probabilities < sampling.min_p * probabilities.amax(dim=-1, keepdim=True)
    if keep is not None:
        drop = drop.scatter(-1, keep.unsqueeze(-1), False)
    return logits.masked_fill(drop, -torch.inf)


def log_prob_and_entropy(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Processed logits [N, V], tokens [N] -> log p(token) [N] and the distribution's entropy [N], both differentiable.

    Entropy = logsumexp(l) - sum_v p_v l_v, with dropped tokens (logit minus infinity) counting nothing.
    """
    normaliser = logits.logsumexp(dim=-1)
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    probabilities = (logits - normaliser.unsqueeze(-1)).exp()
    weighted = (probabilities * logits.masked_fill(logits == -torch.inf, 0.0)).sum(dim=-1)
    return chosen - normaliser, normaliser - weighted


def log_ratio(log_probs: Tensor, author_log_probs: Tensor, known: Tensor) -> Tensor:
    """log pi(y_t) / author(y_t) [N], each token against whoever wrote it.

    Where the author's log-prob is unknown the value is 0 and the gradient that of log pi: the token has weight 1.
    """
    author = torch.where(known, author_log_probs, log_probs.detach())
    return log_probs - author


def ratio(log_ratios: Tensor) -> Tensor:
    """exp(log-ratio), finite for any input; past e^(+-20) it is constant, so its gradient there is 0."""
    return log_ratios.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def per_rollout(values: Tensor, rollout: Tensor, count: int) -> Tensor:
    """Sums of `values` [N] over the tokens of each rollout -> [S]."""
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, rollout, values)


def kl(log_probs: Tensor, reference: Tensor, estimator: str = "k3") -> Tensor:
    """Per-token estimates [N] of KL(pi || reference) from tokens that pi wrote. With d = log pi - log reference:

    k1 = d (unbiased, noisy), k2 = d^2 / 2 (its *gradient* is the KL's), k3 = e^-d - 1 + d (unbiased, never negative).
    See Schulman, "Approximating KL divergence" (2020).
    """
    d = log_probs - reference
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    return ratio(-d) - 1 + d.clamp_min(-LOG_RATIO_LIMIT)


def effective_sample_size(weights: Tensor) -> Tensor:
    """Kish's (sum w)^2 / sum w^2 as a share of the number of weights: 1 on-policy, 1/n when one weight rules."""
    if weights.numel() == 0:
        return torch.ones((), dtype=weights.dtype, device=weights.device)
    return weights.sum().square() / (weights.square().sum() * weights.numel()).clamp_min(1e-30)


def reduce(per_token: Tensor, mask: Tensor, denominator: Tensor | float) -> Tensor:
    """Sum of per_token / denominator over the tokens in `mask`: a scalar.

    The denominator is an argument, computed over the whole update and never from the tensor at hand, so a token
    weighs the same in whichever micro-batch it lands. It is a number, or one value per token [N]. An empty mask
    gives a zero that can still be back-propagated; entries outside the mask may be anything, NaN included.
    """
    return (torch.where(mask, per_token, 0.0) / denominator).sum()
