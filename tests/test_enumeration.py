"""Every estimator on a tree small enough to sum: which are exact, and how large the others' bias is.

Three symbols, three places: 27 sequences, so an expectation is a sum and not a sample. The policy, the older policy and
the reference are tables of logits; rollouts, batches, algorithms and regularisers are the library's own. An error is
|g - true| / |true|, in norm: 0 is exact, 1 is as wrong as no gradient at all. Log-probs are stored as float32, which
leaves some 1e-8.

    python tests/test_enumeration.py        # prints the table that stands in docs/biases.md
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stockpot import batching, ops
from stockpot.algorithms import GRPO, RLOO, Algorithm, Reinforce
from stockpot.regularizers import KL, EntropyBonus
from stockpot.types import Author, Batch, Group, Prompt, Rollout, Span

SYMBOLS, LENGTH, NOW = 3, 3, 10
PROMPT = Prompt("tree", [9])
SEQUENCES = list(itertools.product(range(SYMBOLS), repeat=LENGTH))
CONTEXTS = [c for n in range(LENGTH) for c in itertools.product(range(SYMBOLS), repeat=n)]
PLACE = {context: i for i, context in enumerate(CONTEXTS)}
PAGE = Path(__file__).parent.parent / "docs" / "biases.md"

UNCLIPPED = GRPO(clip_low=1.0, clip_high=1e9, scale_by_std=False)


# --- the tree -------------------------------------------------------------------------------------------------------


def table(seed: int, like: Tensor | None = None, spread: float = 1.0) -> Tensor:
    """Logits of each context [13, 3]; near another table when one is given."""
    rng = random.Random(seed)
    values = torch.tensor([[rng.gauss(0, spread) for _ in range(SYMBOLS)] for _ in CONTEXTS], dtype=torch.float64)
    return values if like is None else like + values


POLICY = table(1)
OLD = table(2, POLICY, 0.3)
REFERENCE = table(3, POLICY, 0.3)
REWARD = {sequence: float(sum(sequence) == 3) for sequence in SEQUENCES}
"""Right when the symbols add up to 3, as in countdown."""


def token_log_probs(logits: Tensor, sequences: Sequence[tuple[int, ...]]) -> Tensor:
    """log p of every token of every sequence, laid end to end."""
    contexts = torch.tensor([PLACE[s[:t]] for s in sequences for t in range(LENGTH)])
    symbols = torch.tensor([symbol for s in sequences for symbol in s])
    return logits.log_softmax(-1)[contexts, symbols]


def chances(logits: Tensor, sequences: Sequence[tuple[int, ...]] = SEQUENCES) -> Tensor:
    """Probability of each whole sequence."""
    return token_log_probs(logits, sequences).view(-1, LENGTH).sum(-1).exp()


def written(sequence: tuple[int, ...], head: int, *, trained: bool = True) -> Rollout:
    """A SOUP rollout: `head` tokens by the old policy, the rest by the live one, each with its author's log-probs."""
    old, live = token_log_probs(OLD, [sequence]).tolist(), token_log_probs(POLICY, [sequence]).tolist()
    spans = (
        Span(Author("run", 3), sequence[:head], old[:head], kind="prefix", trained=trained),
        Span(Author("run", NOW), sequence[head:], live[head:]),
    )
    return Rollout(PROMPT, spans, REWARD[sequence])


def odds(head: int) -> Tensor:
    """How likely `written(., head)` is to come about [27]: the head by the old policy, the rest by the live one."""
    old, live = token_log_probs(OLD, SEQUENCES).view(-1, LENGTH), token_log_probs(POLICY, SEQUENCES).view(-1, LENGTH)
    return (old[:, :head].sum(-1) + live[:, head:].sum(-1)).exp()


def gradient(of: Callable[[Tensor], Tensor]) -> Tensor:
    """d of / d logits at the policy."""
    logits = POLICY.clone().requires_grad_()
    return torch.autograd.grad(of(logits), logits)[0]


def expected_gradient(algorithm: Algorithm, head: int = 0, *, trained: bool = True) -> Tensor:
    """The ascent direction that the algorithm takes on average, with the best constant baseline: the policy's value."""
    rollouts = [written(sequence, head, trained=trained) for sequence in SEQUENCES]
    base = float(value(POLICY))
    return ascent(algorithm, rollouts, [REWARD[s] - base for s in SEQUENCES], SEQUENCES, odds(head))


def ascent(
    algorithm: Algorithm, rollouts: Sequence[Rollout], advantages: Sequence[float],
    sequences: Sequence[tuple[int, ...]], weights: Tensor,
) -> Tensor:
    """-gradient of the algorithm's loss, each rollout weighted by its probability."""
    batch = collate(rollouts, advantages)

    def loss(logits: Tensor) -> Tensor:
        terms = algorithm.loss(token_log_probs(logits, sequences), batch)
        return ops.reduce(terms.loss, batch.trained, 1 / weights[batch.rollout])

    return -gradient(loss)


def collate(rollouts: Sequence[Rollout], advantages: Sequence[float], **more: object) -> Batch:
    return batching.collate(rollouts, advantages, run="run", now=NOW, dtype=torch.float64, **more)  # type: ignore[arg-type]


def error(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


# --- what is true ---------------------------------------------------------------------------------------------------


def value(logits: Tensor, head: int = 0) -> Tensor:
    """Expected reward when the old policy writes the first `head` tokens."""
    rewards = torch.tensor([REWARD[s] for s in SEQUENCES], dtype=torch.float64)
    old = token_log_probs(OLD, SEQUENCES).view(-1, LENGTH)[:, :head].sum(-1)
    live = token_log_probs(logits, SEQUENCES).view(-1, LENGTH)[:, head:].sum(-1)
    return ((old + live).exp() * rewards).sum()


def divergence(logits: Tensor) -> Tensor:
    """KL(policy || reference) of whole sequences."""
    chance = chances(logits)
    return (chance * (chance.log() - chances(REFERENCE).log())).sum()


def entropy(logits: Tensor) -> Tensor:
    """Entropy of whole sequences."""
    return torch.special.entr(chances(logits)).sum()


def met() -> Tensor:
    """How often the policy meets each context [13], held fixed: a token's loss cannot see that it depends on the policy."""
    return torch.stack([sum_starting(context) for context in CONTEXTS])


def sum_starting(context: tuple[int, ...]) -> Tensor:
    chance = chances(POLICY)
    return chance[[i for i, s in enumerate(SEQUENCES) if s[: len(context)] == context]].sum()


def at_fixed_contexts(of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Gradient of a per-token quantity of (policy, reference) log-probs [13, 3], averaged over the contexts met."""
    return gradient(lambda logits: (met() * of(logits.log_softmax(-1), REFERENCE.log_softmax(-1))).sum())


# --- regularisers on the tree ---------------------------------------------------------------------------------------


def kl_in_the_loss(estimator: str) -> Tensor:
    """Mean gradient of the KL's term, per rollout. (k1 is never put there by the library: shown for its reason.)"""
    rollouts = [written(s, 0) for s in SEQUENCES]
    reference = list(token_log_probs(REFERENCE, SEQUENCES).view(-1, LENGTH))
    batch = collate(rollouts, [0.0] * len(rollouts), reference_log_probs=reference)
    kl = KL(1.0, estimator=estimator)  # type: ignore[arg-type]

    def loss(logits: Tensor) -> Tensor:
        term = kl.term(token_log_probs(logits, SEQUENCES), batch)
        return ops.reduce(term, batch.trained, 1 / chances(POLICY)[batch.rollout])

    return gradient(loss)


def kl_in_the_advantage(estimator: str, *, centred: bool) -> Tensor:
    """Mean gradient when the KL is an advantage. Centred: over all pairs, a group being two rollouts."""
    own, reference = (list(token_log_probs(x, SEQUENCES).view(-1, LENGTH)) for x in (POLICY, REFERENCE))
    kl = KL(1.0, estimator=estimator, centred=centred)  # type: ignore[arg-type]
    size = 2 if centred else 1
    groups = list(itertools.product(range(len(SEQUENCES)), repeat=size))
    credits = [kl.credit([own[i] for i in group], [reference[i] for i in group]) for group in groups]
    return -over_groups(Reinforce(correction="none"), groups, credits)


def over_groups(algorithm: Algorithm, groups: Sequence[Sequence[int]], advantages: Sequence[Sequence[float]]) -> Tensor:
    """Mean ascent per rollout over groups of fresh sequences, given as indices."""
    members = [SEQUENCES[i] for group in groups for i in group]
    each = torch.tensor([[i for i in group] for group in groups])
    weights = chances(POLICY)[each].prod(-1, keepdim=True).expand(each.shape) / each.shape[1]
    flat = [a for group in advantages for a in group]
    return ascent(algorithm, [written(s, 0) for s in members], flat, members, weights.flatten())


def pairs(algorithm: Algorithm) -> Tensor:
    """Mean ascent of an algorithm with its own advantages, over all groups of two."""
    groups = list(itertools.product(range(len(SEQUENCES)), repeat=2))
    own = [algorithm.advantages(Group(PROMPT, tuple(written(SEQUENCES[i], 0) for i in group))) for group in groups]
    return over_groups(algorithm, groups, own)


def entropy_bonus() -> Tensor:
    """Mean gradient of the bonus: the entropy at each token met, differentiated as it stands."""
    batch = collate([written(s, 0) for s in SEQUENCES], [0.0] * len(SEQUENCES))
    contexts = torch.tensor([PLACE[s[:t]] for s in SEQUENCES for t in range(LENGTH)])

    def loss(logits: Tensor) -> Tensor:
        _, per_token = ops.log_prob_and_entropy(logits[contexts], batch.tokens)
        return ops.reduce(EntropyBonus(1.0).term(per_token), batch.trained, 1 / chances(POLICY)[batch.rollout])

    return -gradient(loss)


# --- the table ------------------------------------------------------------------------------------------------------

VALUE, UNDER, KL_TRUE = "value of the policy", "value after that head", "KL of sequences"
EXACT = (0.0, 1e-6)


@dataclass(frozen=True)
class Row:
    """One claim: this estimator, held against this truth, is wrong by a share that lies in `within`."""

    estimator: str
    truth: str
    wrong: float
    within: tuple[float, float]

    def __str__(self) -> str:
        return f"| {self.estimator} | {self.truth} | {'exact' if self.within == EXACT else f'{self.wrong:.3f}'} |"


@cache
def rows() -> tuple[Row, ...]:
    return (*policy_gradients(), *prefixes(), *baselines(), *divergences(), *entropies())


def policy_gradients() -> list[Row]:
    """No prefix, or nothing but prefix: fresh samples and replayed ones."""
    true = gradient(value)
    free = float("inf")

    def row(name: str, algorithm: Algorithm, head: int, within: tuple[float, float]) -> Row:
        return Row(name, VALUE, error(expected_gradient(algorithm, head), true), within)

    return [
        row("fresh samples, REINFORCE", Reinforce(correction="none"), 0, EXACT),
        row("fresh samples, GRPO's loss", GRPO(), 0, EXACT),
        row("replay, ratio of the whole rollout", Reinforce(correction="rollout", cap=free), LENGTH, EXACT),
        row("replay, RLOO's ratio of the whole rollout, no clip", replace(RLOO(1.0, 1e9), level="rollout"), LENGTH, EXACT),
        row("replay, ratio per token, no cap", Reinforce(correction="token", cap=free), LENGTH, (0.1, 0.9)),
        row("replay, ratio per token, cap 2", Reinforce(correction="token", cap=2.0), LENGTH, (0.1, 0.9)),
        row("replay, GRPO's clip at 0.2", GRPO(), LENGTH, (0.1, 0.9)),
        row("replay, GSPO's mean ratio, no clip", replace(UNCLIPPED, level="rollout"), LENGTH, (0.1, 0.9)),
        row("replay, no ratio", Reinforce(correction="none"), LENGTH, (0.1, 0.9)),
    ]


def prefixes() -> list[Row]:
    """The old policy writes the head, the live one the rest."""
    found = []
    for k in range(LENGTH + 1):
        wrong = expected_gradient(UNCLIPPED, k, trained=False)
        truth = gradient(lambda logits, k=k: value(logits, k))  # type: ignore[misc]
        wrong_by = float(wrong.norm()) if k == LENGTH else error(wrong, truth)
        found.append(Row(f"head of {k}, untrained", UNDER, wrong_by, EXACT))
    true = gradient(value)
    for k in (1, 2):
        truth = gradient(lambda logits, k=k: value(logits, k))  # type: ignore[misc]
        nothing = expected_gradient(Reinforce(correction="none"), k)
        found += [
            Row(f"head of {k}, trained, no ratio", UNDER, error(nothing, truth), (0.05, 1.5)),
            Row(f"head of {k}, trained, no ratio", VALUE, error(nothing, true), (0.05, 0.9)),
            Row(f"head of {k}, trained, ratio per token (SOUP), no clip", VALUE,
                error(expected_gradient(UNCLIPPED, k), true), (0.01, 0.9)),
            Row(f"head of {k}, trained, ratio per token (SOUP), clip 0.2", VALUE,
                error(expected_gradient(GRPO(), k), true), (0.01, 0.9)),
            Row(f"head of {k}, trained, ratio of the whole rollout", VALUE,
                error(expected_gradient(Reinforce(correction="rollout", cap=float("inf")), k), true), EXACT),
        ]
    return found


def baselines() -> list[Row]:
    """Groups of two, every pair summed."""
    true = gradient(value)
    scaled = pairs(GRPO())
    length = float((scaled * true).sum() / scaled.square().sum())
    return [
        Row("group of 2, RLOO's baseline", VALUE, error(pairs(RLOO()), true), EXACT),
        Row("group of 2, the group's mean as baseline", VALUE, error(pairs(Reinforce()), true), (0.499, 0.501)),
        Row("group of 2, the group's mean, times K / (K - 1)", VALUE, error(2 * pairs(Reinforce()), true), EXACT),
        Row("group of 2, divided by the standard deviation, rescaled at best", VALUE, error(length * scaled, true), (0.01, 0.9)),
    ]


def divergences() -> list[Row]:
    """Three estimators of one KL: as numbers, as losses, as advantages."""
    true, held = gradient(divergence), at_fixed_contexts(lambda p, q: (p.exp() * (p - q)).sum(-1))
    reverse = at_fixed_contexts(lambda p, q: (q.exp() * (q - p)).sum(-1))
    own, reference = (token_log_probs(x, SEQUENCES) for x in (POLICY, REFERENCE))
    number = float(divergence(POLICY))

    def estimate(estimator: str) -> float:
        per_rollout = ops.kl(own, reference, estimator).view(-1, LENGTH).sum(-1)
        return abs(float((chances(POLICY) * per_rollout).sum()) - number) / number

    numbers = [
        Row("k1, its value", KL_TRUE, estimate("k1"), EXACT),
        Row("k2, its value", KL_TRUE, estimate("k2"), (0.01, 0.5)),
        Row("k3, its value", KL_TRUE, estimate("k3"), EXACT),
    ]
    fixed = "KL at each token, contexts fixed"
    losses = [
        Row("k1 in the loss (never done)", KL_TRUE, error(kl_in_the_loss("k1"), true), (0.999, 1.001)),
        Row("k2 in the loss", fixed, error(kl_in_the_loss("k2"), held), EXACT),
        Row("k2 in the loss", KL_TRUE, error(kl_in_the_loss("k2"), true), (0.01, 0.9)),
        Row("k3 in the loss", "KL(reference, policy) at each token, contexts fixed", error(kl_in_the_loss("k3"), reverse), EXACT),
        Row("k3 in the loss", fixed, error(kl_in_the_loss("k3"), held), (0.01, 0.9)),
        Row("k3 in the loss", KL_TRUE, error(kl_in_the_loss("k3"), true), (0.01, 0.9)),
    ]
    advantages = [
        Row("k1 as advantage", KL_TRUE, error(kl_in_the_advantage("k1", centred=False), true), EXACT),
        Row("k1 as advantage, centred, group of 2, times K / (K - 1)", KL_TRUE,
            error(2 * kl_in_the_advantage("k1", centred=True), true), EXACT),
        Row("k2 as advantage, centred, group of 2, times K / (K - 1)", KL_TRUE,
            error(2 * kl_in_the_advantage("k2", centred=True), true), (0.01, 2.0)),
        Row("k3 as advantage, centred, group of 2, times K / (K - 1)", KL_TRUE,
            error(2 * kl_in_the_advantage("k3", centred=True), true), (0.01, 2.0)),
    ]
    return [*numbers, *losses, *advantages]


def entropies() -> list[Row]:
    """The bonus sees each token's own choice, and not that it leads to other contexts."""
    held = at_fixed_contexts(lambda p, _: -(p.exp() * p).sum(-1))
    return [
        Row("entropy bonus", "entropy at each token, contexts fixed", error(entropy_bonus(), held), EXACT),
        Row("entropy bonus", "entropy of sequences", error(entropy_bonus(), gradient(entropy)), (0.01, 0.9)),
    ]


# --- the tests ------------------------------------------------------------------------------------------------------


def finite_differences(of: Callable[[Tensor], Tensor], size: float = 1e-5) -> Tensor:
    found = torch.zeros_like(POLICY)
    for i, j in itertools.product(*map(range, POLICY.shape)):
        step = torch.zeros_like(POLICY)
        step[i, j] = size
        found[i, j] = (of(POLICY + step) - of(POLICY - step)) / (2 * size)
    return found


@pytest.mark.parametrize("of", [value, divergence, entropy, *(lambda x, k=k: value(x, k) for k in (1, 2, 3))])
def test_the_yardstick_is_right(of: Callable[[Tensor], Tensor]) -> None:
    """What is called true agrees with finite differences, which know nothing of gradients."""
    assert float((gradient(of) - finite_differences(of)).abs().max()) < 1e-9


def test_the_tree_is_whole() -> None:
    for logits in (POLICY, OLD, REFERENCE):
        assert float(chances(logits).sum()) == pytest.approx(1.0, abs=1e-12)
    for head in range(LENGTH + 1):
        assert float(odds(head).sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.estimator} - {row.truth}")
def test_the_bias_is_the_one_that_is_documented(row: Row) -> None:
    low, high = row.within
    assert low <= row.wrong <= high


def test_the_page_in_the_docs_shows_exactly_these_numbers() -> None:
    """Each row of the page is a row of the table, followed by what it means."""
    told = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][2:]
    assert [line.rsplit("|", 2)[0].strip() + " |" for line in told] == [str(row) for row in rows()]
    assert all(len(line.rsplit("|", 2)[1].strip()) > 20 for line in told), "every row says what it means"


if __name__ == "__main__":
    print("| estimator | held against the gradient of | wrong by |\n| --- | --- | --: |")
    print(*rows(), sep="\n")
