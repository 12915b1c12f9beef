"""vLLM against the policy that scores what it wrote, and against the contract of every sampler."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

pytest.importorskip("vllm", reason="the vLLM sampler needs the environment of `make vllm`")

import torch
from policies import CUT, NOW, PAST, PLAIN, STOPS, TIED, VOCAB, distances, made, moved, ragged, send, words

from stockpot.policy import Policy
from stockpot.samplers.vllm import VLLMSampler
from stockpot.types import Author, Prompt, Request, Sampling, Span, StockpotError


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, VLLMSampler]:
    return made(TIED, tmp_path_factory.mktemp("tied"))


# --- log-probs ------------------------------------------------------------------------------------------------------


def test_log_probs_are_the_policys(pair: tuple[Policy, VLLMSampler]) -> None:
    """Ragged prefixes, other temperatures: within 1e-5 in float32."""
    policy, sampler = pair
    send(policy, sampler, 9)
    found = distances(policy, sampler.continue_(ragged(40, PLAIN), seed=5))
    assert len(found) > 400 and float(found.max()) <= 1e-5


def test_log_probs_of_truncated_distributions_are_the_policys(pair: tuple[Policy, VLLMSampler]) -> None:
    """As above, but where a token lies on the very edge of the truncation: then it was kept by one of the two alone."""
    policy, sampler = pair
    send(policy, sampler, 9)
    found = distances(policy, sampler.continue_(ragged(40, CUT), seed=5))
    assert len(found) > 400 and float((found <= 1e-5).float().mean()) >= 0.995 and float(found.max()) < 0.05


def test_truncated_tokens_are_within_the_truncation(pair: tuple[Policy, VLLMSampler]) -> None:
    policy, sampler = pair
    send(policy, sampler, 9)
    for rollout in sampler.continue_(ragged(8, [Sampling(top_k=2)]), seed=1):
        ids = torch.tensor([[*rollout.prompt.tokens, *rollout.tokens]])
        with torch.no_grad():
            best = policy.model(ids).logits[0, -len(rollout.spans[-1]) - 1 : -1].topk(2).indices
        assert all(token in pair for token, pair in zip(rollout.spans[-1].tokens, best.tolist(), strict=True))


def test_greedy_takes_the_likeliest_and_is_certain_of_it(pair: tuple[Policy, VLLMSampler]) -> None:
    policy, sampler = pair
    send(policy, sampler, 9)
    for rollout in sampler.continue_(ragged(6, [Sampling(temperature=0.0)]), seed=5):
        ids = torch.tensor([[*rollout.prompt.tokens, *rollout.tokens]])
        with torch.no_grad():
            best = policy.model(ids).logits[0, -len(rollout.spans[-1]) - 1 : -1].argmax(-1)
        assert rollout.spans[-1].tokens.tolist() == best.tolist()
        assert set(rollout.spans[-1].log_probs or ()) == {0.0}


# --- the contract ---------------------------------------------------------------------------------------------------


def test_rollouts_come_in_order_with_their_prefixes(pair: tuple[Policy, VLLMSampler]) -> None:
    policy, sampler = pair
    send(policy, sampler, 9)
    requests = ragged(30, PLAIN + CUT)
    for request, rollout in zip(requests, sampler.continue_(requests, seed=5), strict=True):
        *heads, tail = rollout.spans
        assert rollout.prompt is request.prompt and tuple(heads) == request.prefix
        assert tail.author == NOW and tail.sampling == request.sampling and tail.kind == "continuation"
        ended = tail.tokens[-1] in STOPS
        assert rollout.finish == ("stop" if ended else "length") and (ended or len(rollout) == request.max_tokens)
        assert not set(tail.tokens[:-1]) & set(STOPS)


def test_a_request_gets_its_tokens_in_any_batch(pair: tuple[Policy, VLLMSampler]) -> None:
    """Alone, with others, in another order, with more requests than rows; another seed or key gives others."""
    policy, sampler = pair
    send(policy, sampler, 9)
    requests = ragged(60, PLAIN)
    together = words(sampler.continue_(requests, seed=5))
    assert words(sampler.continue_(requests[::-1], seed=5))[::-1] == together
    assert words(sampler.continue_(requests[7:8], seed=5)) == together[7:8]
    assert words(sampler.continue_(requests, seed=6)) != together
    other = replace(requests[7], key=1000)
    assert words(sampler.continue_([other], seed=5)) != together[7:8]


def test_a_call_depends_on_no_other_call(pair: tuple[Policy, VLLMSampler]) -> None:
    """To the last bit: what an earlier one left in the cache is gone."""
    policy, sampler = pair
    send(policy, sampler, 9)
    requests = ragged(20, PLAIN, repeats=2)
    first = sampler.continue_(requests, seed=5)
    known = sampler.cached_tokens
    sampler.continue_(requests, seed=6)
    again = sampler.continue_(requests, seed=5)
    assert [r.spans for r in again] == [r.spans for r in first] and sampler.cached_tokens == known


def test_equal_prompts_are_read_once(pair: tuple[Policy, VLLMSampler]) -> None:
    """In whole blocks, by those that come after the first ones have been read: here, more requests than rows."""
    policy, sampler = pair
    send(policy, sampler, 9)
    prompt = Prompt("p", [8 + i % 50 for i in range(100)])
    found = sampler.continue_([Request(prompt, key, max_tokens=8) for key in range(60)], seed=1)
    assert sampler.cached_tokens >= 96 and float(distances(policy, found).max()) <= 1e-5


# --- weights --------------------------------------------------------------------------------------------------------


def test_weights_are_replaced_in_place(pair: tuple[Policy, VLLMSampler]) -> None:
    """The tied head too, of which vLLM keeps a packed copy; and what is trained afterwards does not leak in."""
    policy, sampler = pair
    send(policy, sampler, 9)
    before = sampler.continue_(ragged(16, PLAIN), seed=5)
    moved(policy)
    stale = sampler.continue_(ragged(16, PLAIN), seed=5)
    assert [r.spans for r in stale] == [r.spans for r in before], "vLLM has weights of its own"
    assert float(distances(policy, stale).max()) > 0.05, "and the policy is elsewhere"
    send(policy, sampler, 10)
    new = sampler.continue_(ragged(16, PLAIN), seed=5)
    assert float(distances(policy, new).max()) <= 1e-5
    assert {r.spans[-1].author for r in new} == {Author("run", 10)} and sampler.version == 10


def test_new_weights_do_not_read_the_old_ones_cache(
    pair: tuple[Policy, VLLMSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the cache is kept between calls. Without the reset the log-probs are wrong, which is shown too."""
    policy, sampler = pair
    monkeypatch.setattr(sampler, "keep_cache", True)
    requests = [Request(Prompt("p", [8 + i % 50 for i in range(100)]), key, max_tokens=8) for key in range(4)]
    send(policy, sampler, 1)
    sampler.continue_(requests, seed=1)
    sampler.continue_(requests, seed=1)
    assert sampler.cached_tokens == 4 * 96
    moved(policy)
    send(policy, sampler, 2)
    assert float(distances(policy, sampler.continue_(requests, seed=1)).max()) <= 1e-5
    monkeypatch.setattr(sampler, "_forget", lambda: None)
    moved(policy)
    send(policy, sampler, 3)
    assert float(distances(policy, sampler.continue_(requests, seed=1)).max()) > 0.01


def test_weights_of_another_model_are_refused(pair: tuple[Policy, VLLMSampler]) -> None:
    policy, sampler = pair
    weights = dict(policy.model.named_parameters())
    name = next(iter(weights))
    for wrong in ({**weights, "odd": weights[name]}, {n: w for n, w in weights.items() if n != name}):
        with pytest.raises(StockpotError, match="the weights for vLLM are those of another model"):
            sampler.load(wrong, 1)
    with pytest.raises(StockpotError, match="those of another model"):
        sampler.load({**weights, name: weights[name][:-1]}, 1)


# --- manners --------------------------------------------------------------------------------------------------------


def test_the_process_is_left_as_it_was(pair: tuple[Policy, VLLMSampler]) -> None:
    """Programs started later get no libraries from vLLM, and threads can be set."""
    assert "LD_PRELOAD" not in os.environ and not [name for name in os.environ if name.startswith("VLLM_")]
    torch.set_num_threads(2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Request(Prompt("p", []), 0), "a model needs at least one token"),
        (Request(Prompt("p", [9] * 250), 0, max_tokens=7), "make 257, but the model reads 256"),
        (Request(Prompt("p", [9, VOCAB]), 0), "outside the model's vocabulary"),
        (Request(Prompt("p", [9]), 0, (Span(PAST, [9, 3]),), max_tokens=9), "already ends with a stop token"),
        (Request(Prompt("p", [9]), 0, sampling=Sampling(min_p=0.1, top_p=0.9)), "vLLM applies min_p before top_p"),
    ],
)
def test_what_cannot_be_continued_is_refused(pair: tuple[Policy, VLLMSampler], request_: Request, told: str) -> None:
    with pytest.raises(StockpotError, match=told):
        pair[1].continue_([request_], seed=0)


def test_nothing_asked_nothing_written(pair: tuple[Policy, VLLMSampler]) -> None:
    assert pair[1].continue_([], seed=0) == []


def test_weights_that_are_no_numbers_are_told(pair: tuple[Policy, VLLMSampler]) -> None:
    policy, sampler = pair
    broken = {name: w.detach().clone() for name, w in policy.model.named_parameters()}
    broken["model.norm.weight"].fill_(float("nan"))
    sampler.load(broken, 1)
    with pytest.raises(StockpotError, match="the model's logits are not finite"):
        sampler.continue_(ragged(2, PLAIN), seed=0)
    send(policy, sampler, 9)
