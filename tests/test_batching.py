"""What `collate` and `split` promise beyond the laws: ages, distributions, budgets, and that nothing is lost."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from helpers import LIVE, NOW, OLD, RUN, collate, mixed, rollout, span, totals
from stockpot import batching
from stockpot.types import KINDS, Author, Prompt, Rollout, Sampling, Span, StockpotError


@pytest.fixture
def rng() -> random.Random:
    return random.Random(17)


def test_ages_are_counted_against_this_run_and_this_version(rng: random.Random) -> None:
    """Another run's version 87 is no past of this policy: its age is unknown, like an outsider's."""
    batch = collate(
        [
            rollout(rng, span(rng, OLD, 2, kind="prefix"), span(rng, LIVE, 1)),
            rollout(rng, span(rng, Author("another-run", 87), 2), span(rng, Author(RUN), 1)),
        ]
    )
    assert batch.age.tolist() == [NOW - 87, NOW - 87, 0, -1, -1, -1]


def test_every_token_keeps_what_its_span_said(rng: random.Random) -> None:
    """The flat stream, read back token by token, packed or not."""
    warm = Sampling(temperature=0.7)
    rollouts = mixed(rng, warm)
    for options in ({}, {"pack_to": 30}):
        batch = collate(rollouts, [float(i) for i in range(len(rollouts))], **options)
        said = [
            (token, -1.0 if s.log_probs is None else s.log_probs[i], s.kind, s.trained, s.sampling, number)
            for number, r in enumerate(rollouts)
            for s in r.spans
            for i, token in enumerate(s.tokens)
        ]
        kept = [
            (
                int(batch.tokens[n]),
                float(batch.author_log_probs[n]) if batch.known[n] else -1.0,
                KINDS[batch.kind[n]],
                bool(batch.trained[n]),
                batch.samplings[batch.sampling[n]],
                int(batch.rollout[n]),
            )
            for n in range(len(batch.tokens))
        ]
        assert kept == said
        assert batch.advantages.tolist() == batch.rollout.tolist()
        assert batch.index.tolist() == [i for r in rollouts for i in range(len(r))]
        assert torch.equal(batch.ids[batch.row, batch.column], batch.tokens)
        assert set(batch.samplings) == {Sampling(), warm}


def test_a_token_is_predicted_by_the_token_before_it_in_its_own_sequence(rng: random.Random) -> None:
    """The first response token by the prompt's last one: never by a neighbour in the row, never by padding."""
    rollouts = mixed(rng)
    batch = collate(rollouts, pack_to=25)
    before = [t for r in rollouts for t in [*r.prompt.tokens, *r.tokens][len(r.prompt.tokens) - 1 : -1]]
    assert batch.ids[batch.row, batch.column - 1].tolist() == before
    assert torch.equal(batch.segments[batch.row, batch.column - 1], batch.segments[batch.row, batch.column])


def test_denominators_count_trained_tokens_only(rng: random.Random) -> None:
    rollouts = mixed(rng)
    batch, sizes = collate(rollouts), totals(rollouts)
    assert sizes.tokens == int(batch.trained.sum()) == int(batch.lengths.sum())
    assert sizes.rollouts == len(rollouts) - 1, "one rollout has nothing to train"


@pytest.mark.parametrize("seed", range(20))
def test_a_split_holds_everything_once_within_its_budget(seed: int) -> None:
    rng = random.Random(seed)
    lengths, budget = [rng.randrange(1, 60) for _ in range(rng.randrange(1, 40))], rng.randrange(20, 200)
    parts = list(batching.split(lengths, budget))
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    for part in parts:
        padded = max(lengths[i] for i in part) * len(part)
        assert padded <= budget or len(part) == 1
    assert parts == list(batching.split(lengths, budget))


def test_a_sequence_longer_than_the_budget_goes_alone() -> None:
    assert list(batching.split([3, 500, 4], 100)) == [[1], [2, 0]]


def test_rows_are_packed_to_their_length_and_a_longer_sequence_gets_its_own(rng: random.Random) -> None:
    rollouts = [rollout(rng, span(rng, OLD, n)) for n in (5, 30, 4, 2, 6)]
    batch = collate(rollouts, pack_to=16)
    for row in range(batch.ids.shape[0]):
        inside = batch.segments[row][batch.segments[row] >= 0]
        assert len(inside) <= 16 or len(set(inside.tolist())) == 1
    assert batch.packed and batch.ids.shape[0] == 3


def test_an_empty_prompt_has_nothing_to_predict_the_first_token_from(rng: random.Random) -> None:
    """Column 0 minus 1 is the row's end: the wrong place, without an error, so it is refused."""
    with pytest.raises(StockpotError, match="prompt"):
        collate([Rollout(Prompt("empty", []), (span(rng, OLD, 2),))], [0.0])


def test_advantages_per_token_must_be_as_many_as_tokens(rng: random.Random) -> None:
    """One too many here and one too few there would shift every rollout between them."""
    rollouts = [rollout(rng, span(rng, OLD, 3)), rollout(rng, span(rng, OLD, 3))]
    assert collate(rollouts, [[1.0, 2.0, 3.0], 4.0]).advantages.tolist() == [1, 2, 3, 4, 4, 4]
    with pytest.raises(StockpotError, match="advantages"):
        collate(rollouts, [[1.0, 2.0], [3.0, 4.0, 5.0, 6.0]])


def test_a_span_with_too_few_log_probs_is_refused() -> None:
    with pytest.raises(StockpotError, match="2 tokens but 1 log-probs"):
        Span(OLD, [4, 5], [-1.0])
    whole = Span(OLD, [4, 5, 6], [-1.0, -2.0, -3.0])
    assert whole[1:] == replace(whole, tokens=[5, 6], log_probs=[-2.0, -3.0])
