"""From hidden states to log-probs, in bounded memory: the one place where tensors of [tokens x vocabulary] live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from stockpot import ops
from stockpot.types import Sampling, StockpotError

Head = Callable[[Tensor], Tensor]

COPIES, COPIES_TRUNCATED = 4, 10
"""How many tensors of a chunk's logits are alive at once, backward included; sorting for top-p needs many more."""
DECODER = "stockpot_decoder"
"""Attribute of a model that must be entered another way than by its decoder: one that lies in pieces."""
NEVER = -1e4
"""Stands for a dropped token's log-prob of minus infinity where it meets its probability of 0."""


def log_probs_and_entropy(
    head: Head,
    hidden: Tensor,
    tokens: Tensor,
    which: Tensor,
    samplings: tuple[Sampling, ...],
    *,
    vocabulary: int,
    limit: int,
    entropy_grad: bool,
) -> tuple[Tensor, Tensor]:
    """hidden [N, H], tokens [N] -> log p(token) [N] and entropy [N], token n under `samplings[which[n]]`.

    Everything of size [tokens x vocabulary] that is alive at one time, gradients included, stays within `limit`
    bytes: what is too long goes in chunks, and only log-probs and entropies outlive a chunk; backward makes its
    logits again. What fits at once is not computed twice.
    """
    order = None
    if len(samplings) > 1:
        order = which.argsort(stable=True)
        hidden, tokens = hidden[order], tokens[order]
    counts = which.bincount(minlength=len(samplings)).tolist() if order is not None else [len(tokens)]
    row = vocabulary * max(4, hidden.element_size())
    sizes: list[int] = []
    drawn: list[Sampling] = []
    for sampling, count in zip(samplings, counts, strict=True):
        chunk = max(1, limit // (row * (COPIES_TRUNCATED if sampling.truncated else COPIES)))
        for start in range(0, max(count, 1), chunk):
            sizes.append(min(chunk, count - start))
            drawn.append(sampling)
    again = torch.is_grad_enabled() and len(sizes) > 1
    pieces = [
        checkpoint(_score, head, h, t, s, entropy_grad, use_reentrant=False)
        if again
        else _score(head, h, t, s, entropy_grad)
        for h, t, s in zip(torch.split(hidden, sizes), torch.split(tokens, sizes), drawn, strict=True)
    ]
    log_probs, entropy = (torch.cat(column) for column in zip(*pieces, strict=True))
    if order is not None:
        log_probs = torch.empty_like(log_probs).index_copy(0, order, log_probs)
        entropy = torch.empty_like(entropy).index_copy(0, order, entropy)
    return log_probs, entropy


def _score(head: Head, hidden: Tensor, tokens: Tensor, sampling: Sampling, entropy_grad: bool) -> tuple[Tensor, Tensor]:
    logits = head(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logits = ops.process_logits(logits, sampling, keep=tokens)  # one name, so that the raw ones are let go
    result: tuple[Tensor, Tensor] = LogProbAndEntropy.apply(logits, tokens, entropy_grad)  # type: ignore[no-untyped-call]
    return result


class LogProbAndEntropy(torch.autograd.Function):
    """`ops.log_prob_and_entropy` with a gradient written by hand: less memory, fewer passes over it.

    d log p(y) / d l_v = [v = y] - p_v and d H / d l_v = -p_v (log p_v + H): the logits are all that need be kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, entropy_grad: bool) -> tuple[Tensor, Tensor]:
        top = logits.amax(dim=-1, keepdim=True)
        below = logits - top
        weight = below.exp()
        total = weight.sum(dim=-1, keepdim=True)
        mean = weight.mul_(below.clamp_(min=NEVER)).sum(dim=-1, keepdim=True) / total
        normaliser, entropy = total.log() + top, total.log() - mean
        ctx.save_for_backward(logits, tokens, normaliser, entropy)
        ctx.entropy_grad = entropy_grad
        log_probs, entropy = (logits.gather(-1, tokens.unsqueeze(-1)) - normaliser).squeeze(-1), entropy.squeeze(-1)
        if not entropy_grad:
            ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_log_prob: Tensor, of_entropy: Tensor) -> tuple[Tensor, None, None]:
        logits, tokens, normaliser, entropy = ctx.saved_tensors
        logs, slope = logits - normaliser, of_log_prob.unsqueeze(-1)
        if ctx.entropy_grad:
            grad = logs.exp()
            grad.mul_(logs.clamp_(min=NEVER).add_(entropy).mul_(of_entropy.unsqueeze(-1)).add_(slope))
        else:
            grad = logs.exp_().mul_(slope)
        return grad.neg_().scatter_add_(-1, tokens.unsqueeze(-1), slope), None, None


def split_model(model: Any) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """(backbone, head): the head turns hidden states into logits, with the cap or scale some families apply."""
    embedding = model.get_output_embeddings()
    config = model.config.get_text_config(decoder=True)
    cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = embedding(hidden)
        logits = logits if scale == 1.0 else logits * scale
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return getattr(model, DECODER, None) or model.get_decoder(), head


@torch.no_grad()
def check_head(model: Any) -> None:
    """Log-probs never come from the whole model, so what is called instead must give what the model gives."""
    backbone, head = split_model(model)
    device = next(model.parameters()).device
    ids = torch.arange(4, device=device).unsqueeze(0) % model.config.get_text_config().vocab_size
    ours = head(backbone(input_ids=ids, use_cache=False).last_hidden_state)
    theirs = model(input_ids=ids, use_cache=False).logits
    slack = 0.02 if ours.dtype == torch.bfloat16 else 1e-4
    if not torch.allclose(ours, theirs, rtol=slack, atol=slack * float(theirs.abs().max()), equal_nan=True):
        raise StockpotError(
            f"{type(model).__name__} does something to its logits after the head that stockpot does not know; "
            "it cannot be trained here."
        )
