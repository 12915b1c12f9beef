"""Every estimator on trees small enough to sum: which are exact, and how large the others' bias is.

Three symbols, three places: 27 sequences, so an expectation is a sum and not a sample. The policy, the older policy and
the reference are tables of logits; rollouts, batches, algorithms and regularisers are the library's own. An error is
|g - true| / |true|, in norm: 0 is exact, 1 is as wrong as no gradient at all. Log-probs are stored as float32, which
leaves some 1e-8. One tree proves nothing about size, so there are several: the median is told, and the extremes.

    python tests/test_enumeration.py        # prints the table that stands in docs/biases.md
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stockpot import batching, ops
from stockpot.algorithms import GRPO, LUFFY, M2PO, PPO, RLOO, TOPR, Algorithm, AsymRE, ExGRPO, Reinforce
from stockpot.regularizers import KL, EntropyBonus
from stockpot.types import Author, Batch, Group, Prompt, Rollout, Span

SYMBOLS, LENGTH, NOW, TREES = 3, 3, 10, 9
AWAY = 0.3
"""How far the old policy and the reference are from the policy: the spread of the change of each logit."""
PROMPT = Prompt("tree", [9])
Sequence3 = tuple[int, ...]
SEQUENCES: list[Sequence3] = list(itertools.product(range(SYMBOLS), repeat=LENGTH))
CONTEXTS = [c for n in range(LENGTH) for c in itertools.product(range(SYMBOLS), repeat=n)]
PLACE = {context: i for i, context in enumerate(CONTEXTS)}
REWARD = {sequence: 1 - abs(sum(sequence) - 3) / 3 for sequence in SEQUENCES}
"""Best when the symbols add up to 3."""
PAGE = Path(__file__).parent.parent / "docs" / "biases.md"

FREE = float("inf")
UNCLIPPED = GRPO(clip_low=1.0, clip_high=1e9, scale_by_std=False)


def token_log_probs(logits: Tensor, sequences: Sequence[Sequence3] = SEQUENCES) -> Tensor:
    """log p of every token of every sequence, laid end to end, from the logits of each context [13, 3]."""
    contexts = torch.tensor([PLACE[s[:t]] for s in sequences for t in range(LENGTH)])
    symbols = torch.tensor([symbol for s in sequences for symbol in s])
    return logits.log_softmax(-1)[contexts, symbols]


def chances(logits: Tensor) -> Tensor:
    """Probability of each whole sequence [27]."""
    return token_log_probs(logits).view(-1, LENGTH).sum(-1).exp()


def collate(rollouts: Sequence[Rollout], advantages: Sequence[float], **more: Any) -> Batch:
    return batching.collate(rollouts, advantages, run="run", now=NOW, dtype=torch.float64, **more)


def error(found: Tensor, true: Tensor) -> float:
    """|found - true| / |true|; where the truth is nothing at all, |found|."""
    return float((found - true).norm() / (true.norm() if true.norm() > 0 else 1.0))


class Tree:
    """Three policies on one tree, what is true of them, and what the library's estimators make of it."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)

        def table(spread: float) -> Tensor:
            rows = [[rng.gauss(0, spread) for _ in range(SYMBOLS)] for _ in CONTEXTS]
            return torch.tensor(rows, dtype=torch.float64)

        self.policy = table(1.0)
        self.old, self.reference = self.policy + table(AWAY), self.policy + table(AWAY)

    def gradient(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        """d of / d logits at the policy."""
        logits = self.policy.clone().requires_grad_()
        return torch.autograd.grad(of(logits), logits)[0]

    # --- what is true -------------------------------------------------------------------------------------------------

    def value(self, logits: Tensor, head: int = 0) -> Tensor:
        """Expected reward when the old policy writes the first `head` tokens."""
        return (self.odds(head, logits) * torch.tensor([REWARD[s] for s in SEQUENCES], dtype=torch.float64)).sum()

    def odds(self, head: int, logits: Tensor) -> Tensor:
        """Probability of each sequence [27]: the head by the old policy, the rest by the one with these logits."""
        old, live = (token_log_probs(x).view(-1, LENGTH) for x in (self.old, logits))
        return (old[:, :head].sum(-1) + live[:, head:].sum(-1)).exp()

    def divergence(self, logits: Tensor) -> Tensor:
        """KL(policy || reference) of whole sequences."""
        return (chances(logits) * (chances(logits).log() - chances(self.reference).log())).sum()

    def entropy(self, logits: Tensor) -> Tensor:
        """Entropy of whole sequences."""
        return torch.special.entr(chances(logits)).sum()

    def at_fixed_contexts(self, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Gradient of a quantity of each context, averaged over the contexts that the policy meets.

        How often it meets them is held fixed: a token's own loss does not see that it leads to other contexts.
        """
        chance = chances(self.policy)
        met = torch.stack(
            [sum(p for s, p in zip(SEQUENCES, chance, strict=True) if s[: len(c)] == c) for c in CONTEXTS]
        )  # type: ignore[misc]
        reference = self.reference.log_softmax(-1)
        return self.gradient(lambda logits: (met * of(logits.log_softmax(-1), reference).sum(-1)).sum())

    # --- what the estimators give ---------------------------------------------------------------------------------

    @cached_property
    def _stored(self) -> tuple[dict[Sequence3, list[float]], dict[Sequence3, list[float]]]:
        """Each sequence's log-probs by the old policy and by the live one, as a sampler would hand them over."""
        return tuple(  # type: ignore[return-value]
            dict(zip(SEQUENCES, token_log_probs(x).view(-1, LENGTH).tolist(), strict=True))
            for x in (self.old, self.policy)
        )

    def written(self, sequence: Sequence3, head: int = 0, *, trained: bool = True) -> Rollout:
        """A SOUP rollout: `head` tokens by the old policy, the rest live, each with its author's log-probs."""
        old, live = (stored[sequence] for stored in self._stored)
        spans = (
            Span(Author("run", 3), sequence[:head], old[:head], kind="prefix", trained=trained),
            Span(Author("run", NOW), sequence[head:], live[head:]),
        )
        return Rollout(PROMPT, spans, REWARD[sequence])

    def ascent(
        self, algorithm: Algorithm, rollouts: Sequence[Rollout], advantages: Sequence[Any], weights: Tensor
    ) -> Tensor:
        """-gradient of the algorithm's loss, each rollout weighted by its probability."""
        batch = collate(rollouts, advantages)
        sequences = [tuple(r.tokens) for r in rollouts]

        def loss(logits: Tensor) -> Tensor:
            terms = algorithm.loss(token_log_probs(logits, sequences), batch)
            return ops.reduce(terms.loss, batch.trained, 1 / weights[batch.rollout])

        return -self.gradient(loss)

    def mean_ascent(self, algorithm: Algorithm, head: int, *, trained: bool = True) -> Tensor:
        """Where the algorithm goes on average when its baseline is the policy's value."""
        base = float(self.value(self.policy))
        rollouts = [self.written(sequence, head, trained=trained) for sequence in SEQUENCES]
        return self.ascent(algorithm, rollouts, [REWARD[s] - base for s in SEQUENCES], self.odds(head, self.policy))

    def worth(self, off: float = 0.0) -> list[Tensor]:
        """V before each token of each sequence: what is expected there, and `off` (times some number) beside it."""
        chance, rewards = chances(self.policy), torch.tensor([REWARD[s] for s in SEQUENCES], dtype=torch.float64)
        met = {c: torch.tensor([s[: len(c)] == c for s in SEQUENCES]) for c in CONTEXTS}
        true = {c: float((chance * rewards)[m].sum() / chance[m].sum()) for c, m in met.items()}
        table = [[true[s[:t]] + off * math.sin(7 * PLACE[s[:t]]) for t in range(LENGTH)] for s in SEQUENCES]
        return list(torch.tensor(table, dtype=torch.float64))

    def judged_ascent(
        self, algorithm: PPO, values: Sequence[Tensor], costs: Sequence[Tensor] | None = None, *, paid: bool = True
    ) -> Tensor:
        """Where it goes on average on fresh rollouts with these values; without their rewards where not `paid`."""
        rollouts = [self.written(sequence) for sequence in SEQUENCES]
        rollouts = rollouts if paid else [replace(r, reward=0.0) for r in rollouts]
        advantages, _ = algorithm.judge(rollouts, values, costs)
        return self.ascent(algorithm, rollouts, [a.tolist() for a in advantages], chances(self.policy))

    def group_ascent(
        self, algorithm: Algorithm, size: int, advantages: Callable[[Sequence[int]], list[float]]
    ) -> Tensor:
        """Where it goes on average over all groups of fresh rollouts, each group given as indices into SEQUENCES."""
        groups = list(itertools.product(range(len(SEQUENCES)), repeat=size))
        chance = chances(self.policy)[torch.tensor(groups)].prod(-1, keepdim=True) / size
        rollouts = [self.written(SEQUENCES[i]) for group in groups for i in group]
        given = [a for group in groups for a in advantages(group)]
        return self.ascent(algorithm, rollouts, given, chance.expand(-1, size).flatten())

    def pairs(self, algorithm: Algorithm) -> Tensor:
        """`group_ascent` with the algorithm's own advantages, over all groups of two."""
        fresh = [self.written(sequence) for sequence in SEQUENCES]
        return self.group_ascent(
            algorithm, 2, lambda group: algorithm.advantages(Group(PROMPT, tuple(fresh[i] for i in group)))
        )

    def kl_in_the_loss(self, estimator: Any) -> Tensor:
        """Mean gradient of the KL's term, per rollout."""
        reference = list(token_log_probs(self.reference).view(-1, LENGTH))
        batch = collate([self.written(s) for s in SEQUENCES], [0.0] * len(SEQUENCES), reference_log_probs=reference)
        weights = chances(self.policy)[batch.rollout]

        def loss(logits: Tensor) -> Tensor:
            term = KL(1.0, estimator=estimator).term(token_log_probs(logits), batch)
            return ops.reduce(term, batch.trained, 1 / weights)

        return self.gradient(loss)

    def kl_in_the_advantage(self, estimator: str, *, centred: bool) -> Tensor:
        """Mean gradient when the KL is an advantage; centred: over all groups of two, times K / (K - 1) = 2.

        The library does this with k1 alone; the other two are centred by hand, to show why.
        """
        own, reference = (list(token_log_probs(x).view(-1, LENGTH)) for x in (self.policy, self.reference))

        def credit(group: Sequence[int]) -> list[float]:
            if estimator == "k1":
                kl = KL(1.0, estimator="k1", centred=centred)
                return kl.credit([own[i] for i in group], [reference[i] for i in group])
            sums = [float(ops.kl(own[i], reference[i], estimator).sum()) for i in group]
            return [statistics.mean(sums) - d for d in sums]

        size = 2 if centred else 1
        return -size * self.group_ascent(Reinforce(correction="none"), size, credit)

    def entropy_bonus(self) -> Tensor:
        """Mean gradient of the bonus: the entropy at each token met, differentiated as it stands."""
        batch = collate([self.written(s) for s in SEQUENCES], [0.0] * len(SEQUENCES))
        contexts = torch.tensor([PLACE[s[:t]] for s in SEQUENCES for t in range(LENGTH)])
        weights = chances(self.policy)[batch.rollout]

        def loss(logits: Tensor) -> Tensor:
            _, per_token = ops.log_prob_and_entropy(logits[contexts], batch.tokens)
            return ops.reduce(EntropyBonus(1.0).term(per_token), batch.trained, 1 / weights)

        return -self.gradient(loss)


# --- the table ------------------------------------------------------------------------------------------------------

VALUE, AFTER = "value of the policy", "value after that head"
KL_SEQUENCE, KL_TOKEN = "KL of sequences", "KL of each token, contexts fixed"
EXACT = (0.0, 1e-6)

Claim = tuple[str, str, tuple[float, float], Callable[[Tree], float]]
"""Estimator, the truth it is held against, where its median error must lie, how to compute it on one tree."""


def policy_gradients() -> list[Claim]:
    """Everything live, or everything old: fresh samples and replay."""

    def claim(name: str, algorithm: Algorithm, head: int, within: tuple[float, float]) -> Claim:
        return name, VALUE, within, lambda t: error(t.mean_ascent(algorithm, head), t.gradient(t.value))

    return [
        claim("fresh, REINFORCE", Reinforce(correction="none"), 0, EXACT),
        claim("fresh, GRPO's loss", GRPO(), 0, EXACT),
        claim("replay, no ratio", Reinforce(correction="none"), LENGTH, (0.3, 0.7)),
        claim("replay, ratio of the whole rollout", Reinforce(correction="rollout", cap=FREE), LENGTH, EXACT),
        claim("replay, RLOO with one ratio per rollout, no clip", RLOO(1.0, 1e9, "rollout"), LENGTH, EXACT),
        claim("replay, GSPO's mean ratio, no clip", replace(UNCLIPPED, level="rollout"), LENGTH, (0.1, 0.4)),
        claim("replay, ratio per token, no clip", UNCLIPPED, LENGTH, (0.2, 0.5)),
        claim(
            "replay, ratio per token, weights capped at 2", Reinforce(correction="token", cap=2.0), LENGTH, (0.2, 0.5)
        ),
        claim("replay, ratio per token, clipped at 0.2", GRPO(), LENGTH, (0.3, 1.2)),
    ]


def critics() -> list[Claim]:
    """Advantages from a critic, token by token, on fresh samples."""

    def claim(name: str, trace: float, off: float | None, within: tuple[float, float]) -> Claim:
        def wrong(t: Tree) -> float:
            values = [torch.zeros(LENGTH)] * len(SEQUENCES) if off is None else t.worth(off)
            found = t.judged_ascent(PPO(trace=trace, whiten=False), values)
            return error(found, t.gradient(t.value))

        return f"fresh, PPO, {name}", VALUE, within, wrong

    def cost(trace: float) -> Callable[[Tree], float]:
        def wrong(t: Tree) -> float:
            own, reference = (list(token_log_probs(x).view(-1, LENGTH)) for x in (t.policy, t.reference))
            costs = KL(1.0, estimator="k1").costs(own, reference)
            found = t.judged_ascent(PPO(trace=trace, whiten=False), t.worth(0.2), costs, paid=False)
            return error(-found, t.gradient(t.divergence))

        return wrong

    return [
        claim("lambda 1, a critic off by 0.2", 1.0, 0.2, EXACT),
        claim("lambda 0.95, a critic that is right", 0.95, 0.0, EXACT),
        claim("lambda 0, a critic that is right", 0.0, 0.0, EXACT),
        claim("lambda 0.95, a critic off by 0.2", 0.95, 0.2, (0.001, 0.5)),
        claim("lambda 0.95, a critic that says 0", 0.95, None, (0.001, 0.5)),
        claim("lambda 0, a critic off by 0.2", 0.0, 0.2, (0.05, 5.0)),
        ("k1 as cost of each token, PPO, lambda 1", KL_SEQUENCE, EXACT, cost(1.0)),
    ]


def off_policy() -> list[Claim]:
    """Replay of everything by the methods made for it."""

    def replayed(t: Tree, algorithm: Algorithm) -> Tensor:
        base = float(t.value(t.policy)) - getattr(algorithm, "delta", 0.0)
        rollouts = [t.written(sequence, LENGTH) for sequence in SEQUENCES]
        return t.ascent(algorithm, rollouts, [REWARD[s] - base for s in SEQUENCES], t.odds(LENGTH, t.policy))

    def claim(name: str, algorithm: Algorithm, within: tuple[float, float], *, scaled: bool = False) -> Claim:
        def wrong(t: Tree) -> float:
            found, true = replayed(t, algorithm), t.gradient(t.value)
            return error(best_scale(found, true) if scaled else found, true)

        return name + (", at the best scale" if scaled else ""), VALUE, within, wrong

    return [
        claim("replay, AsymRE", AsymRE(), (0.3, 1.2)),
        claim("replay, AsymRE", AsymRE(), (0.3, 1.0), scaled=True),
        claim("replay, TOPR", TOPR(), (0.1, 0.5)),
        claim("replay, TOPR with each token's ratio", TOPR(level="token"), (0.1, 0.5)),
        claim("replay, M2PO", M2PO(), (0.2, 1.2)),
        claim("replay, LUFFY's shaped probability", LUFFY(), (0.2, 1.0), scaled=True),
        claim("replay, ExGRPO's shaped ratio", ExGRPO(), (0.2, 1.0), scaled=True),
    ]


def best_scale(found: Tensor, true: Tensor) -> Tensor:
    """`found` times whatever brings it nearest to the truth: what is left is an error of direction."""
    return found * (found * true).sum() / found.square().sum()


def prefixes() -> list[Claim]:
    """The old policy writes the head, the live one the rest."""

    def after(algorithm: Algorithm, k: int, trained: bool) -> Callable[[Tree], float]:
        return lambda t: error(
            t.mean_ascent(algorithm, k, trained=trained), t.gradient(lambda logits: t.value(logits, k))
        )

    def whole(algorithm: Algorithm, k: int) -> Callable[[Tree], float]:
        return lambda t: error(t.mean_ascent(algorithm, k), t.gradient(t.value))

    none = Reinforce(correction="none")
    claims: list[Claim] = [
        (f"head of {k}, untrained", AFTER, EXACT, after(UNCLIPPED, k, False)) for k in range(LENGTH + 1)
    ]
    claims += [(f"head of {k}, trained, no ratio", AFTER, (0.2, 2.5), after(none, k, True)) for k in (1, 2)]
    claims += [(f"head of {k}, trained, no ratio", VALUE, (0.05, 0.5), whole(none, k)) for k in (1, 2)]
    claims += [
        (
            f"head of {k}, trained, ratio of the whole rollout",
            VALUE,
            EXACT,
            whole(Reinforce(correction="rollout", cap=FREE), k),
        )
        for k in (1, 2)
    ]
    claims += [
        (f"head of {k}, trained, ratio per token (SOUP), no clip", VALUE, (0.03, 0.3), whole(UNCLIPPED, k))
        for k in (1, 2)
    ]
    claims += [
        (f"head of {k}, trained, ratio per token (SOUP), clipped at 0.2", VALUE, (0.05, 0.8), whole(GRPO(), k))
        for k in (1, 2)
    ]
    return claims


def baselines() -> list[Claim]:
    """Groups of two fresh rollouts, every pair summed."""

    def rescaled(tree: Tree) -> float:
        found, true = tree.pairs(GRPO()), tree.gradient(tree.value)
        return error(best_scale(found, true), true)

    return [
        (
            "group of 2, the others' mean as baseline (RLOO)",
            VALUE,
            EXACT,
            lambda t: error(t.pairs(RLOO()), t.gradient(t.value)),
        ),
        (
            "group of 2, the group's mean as baseline",
            VALUE,
            (0.5 - 1e-6, 0.5 + 1e-6),
            lambda t: error(t.pairs(Reinforce()), t.gradient(t.value)),
        ),
        (
            "group of 2, the group's mean, times K / (K - 1)",
            VALUE,
            EXACT,
            lambda t: error(2 * t.pairs(Reinforce()), t.gradient(t.value)),
        ),
        ("group of 2, divided by its deviation (GRPO), at the best scale", VALUE, (0.02, 0.5), rescaled),
    ]


def divergences() -> list[Claim]:
    """Three estimators of one KL: as numbers, in the loss, in the advantage."""

    def number(estimator: str) -> Callable[[Tree], float]:
        def wrong(t: Tree) -> float:
            per_token = ops.kl(token_log_probs(t.policy), token_log_probs(t.reference), estimator)
            true = t.divergence(t.policy)
            return float(abs((chances(t.policy) * per_token.view(-1, LENGTH).sum(-1)).sum() / true - 1))

        return wrong

    def forward(t: Tree) -> Tensor:
        return t.at_fixed_contexts(lambda p, q: p.exp() * (p - q))

    def reverse(t: Tree) -> Tensor:
        return t.at_fixed_contexts(lambda p, q: q.exp() * (q - p))

    def true(t: Tree) -> Tensor:
        return t.gradient(t.divergence)

    def loss(estimator: str, truth: Callable[[Tree], Tensor]) -> Callable[[Tree], float]:
        return lambda t: error(t.kl_in_the_loss(estimator), truth(t))

    def credit(estimator: str, centred: bool) -> Callable[[Tree], float]:
        return lambda t: error(t.kl_in_the_advantage(estimator, centred=centred), true(t))

    return [
        ("k1, its value", KL_SEQUENCE, EXACT, number("k1")),
        ("k2, its value", KL_SEQUENCE, (0.005, 0.1), number("k2")),
        ("k3, its value", KL_SEQUENCE, EXACT, number("k3")),
        ("k1 in the loss (never done)", KL_SEQUENCE, (1 - 1e-6, 1 + 1e-6), loss("k1", true)),
        ("k2 in the loss", KL_TOKEN, EXACT, loss("k2", forward)),
        ("k2 in the loss", KL_SEQUENCE, (0.01, 0.2), loss("k2", true)),
        ("k3 in the loss", "KL(reference, policy) of each token, contexts fixed", EXACT, loss("k3", reverse)),
        ("k3 in the loss", KL_TOKEN, (0.03, 0.3), loss("k3", forward)),
        ("k3 in the loss", KL_SEQUENCE, (0.03, 0.3), loss("k3", true)),
        ("k1 as advantage", KL_SEQUENCE, EXACT, credit("k1", False)),
        ("k1 as advantage, centred, group of 2, times K / (K - 1)", KL_SEQUENCE, EXACT, credit("k1", True)),
        (
            "k2 as advantage (never done), centred, group of 2, times K / (K - 1)",
            KL_SEQUENCE,
            (0.8, 1.2),
            credit("k2", True),
        ),
        (
            "k3 as advantage (never done), centred, group of 2, times K / (K - 1)",
            KL_SEQUENCE,
            (0.8, 1.2),
            credit("k3", True),
        ),
    ]


def entropies() -> list[Claim]:
    """The bonus sees each token's own choice, and not that it leads to other contexts."""

    def fixed(t: Tree) -> Tensor:
        return t.at_fixed_contexts(lambda p, _: -p.exp() * p)

    return [
        ("entropy bonus", "entropy of each token, contexts fixed", EXACT, lambda t: error(t.entropy_bonus(), fixed(t))),
        (
            "entropy bonus",
            "entropy of sequences",
            (0.1, 0.5),
            lambda t: error(t.entropy_bonus(), t.gradient(t.entropy)),
        ),
    ]


CLAIMS = [*policy_gradients(), *critics(), *off_policy(), *prefixes(), *baselines(), *divergences(), *entropies()]


@dataclass(frozen=True)
class Row:
    """A claim and its errors over all trees."""

    estimator: str
    truth: str
    within: tuple[float, float]
    wrong: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.wrong)

    def __str__(self) -> str:
        size = f"{self.median:.2f} ({min(self.wrong):.2f} to {max(self.wrong):.2f})"
        return f"| {self.estimator} | {self.truth} | {'exact' if self.within == EXACT else size} |"


@cache
def trees() -> tuple[Tree, ...]:
    return tuple(Tree(seed) for seed in range(TREES))


@cache
def rows() -> tuple[Row, ...]:
    return tuple(Row(name, truth, within, tuple(wrong(t) for t in trees())) for name, truth, within, wrong in CLAIMS)


# --- the tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["value", "value after 1", "value after 2", "divergence", "entropy"])
def test_the_yardstick_agrees_with_finite_differences(name: str) -> None:
    """What is called true must not rest on the same differentiation that is judged by it."""
    tree = trees()[0]
    of = {
        "value": tree.value,
        "value after 1": lambda x: tree.value(x, 1),
        "value after 2": lambda x: tree.value(x, 2),
        "divergence": tree.divergence,
        "entropy": tree.entropy,
    }[name]
    found = torch.zeros_like(tree.policy)
    for i, j in itertools.product(range(len(CONTEXTS)), range(SYMBOLS)):
        step = torch.zeros_like(tree.policy)
        step[i, j] = 1e-5
        found[i, j] = (of(tree.policy + step) - of(tree.policy - step)) / 2e-5
    assert float((tree.gradient(of) - found).abs().max()) < 1e-9


def test_the_probabilities_of_a_tree_sum_to_one() -> None:
    for tree in trees():
        for head in range(LENGTH + 1):
            assert float(tree.odds(head, tree.policy).sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("place", range(len(CLAIMS)), ids=[f"{claim[0]} - {claim[1]}" for claim in CLAIMS])
def test_an_estimator_is_as_wrong_as_documented(place: int) -> None:
    row = rows()[place]
    low, high = row.within
    assert low <= row.median <= high
    if row.within == EXACT:
        assert max(row.wrong) <= high


def test_old_tokens_cost_less_at_the_head_than_everywhere() -> None:
    """SOUP's point, in numbers: with one ratio per token the bias grows with the share of the rollout that is old."""
    sizes = [
        statistics.mean(error(t.mean_ascent(UNCLIPPED, k), t.gradient(t.value)) for t in trees())
        for k in range(LENGTH + 1)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < 1e-6 < sizes[1] < sizes[2] - 0.03


def test_the_page_in_the_docs_shows_exactly_these_numbers() -> None:
    """Each row of the page is a row of the table, followed by what it means."""
    told = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][2:]
    assert [line.rsplit("|", 2)[0].strip() + " |" for line in told] == [str(row) for row in rows()]
    assert all(len(line.rsplit("|", 2)[1].strip()) > 20 for line in told), "every row says what it means"


if __name__ == "__main__":
    print("| estimator | held against the gradient of | wrong by, median (range) |\n| --- | --- | --- |")
    print(*rows(), sep="\n")
