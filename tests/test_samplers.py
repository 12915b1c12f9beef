"""The samplers against plain forward passes, exact probabilities and each other: real tiny models, one thread."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3NextConfig,
)

import stockpot.samplers.torch as module
from stockpot.ops import process_logits
from stockpot.samplers import draw
from stockpot.samplers.scripted import ScriptedSampler
from stockpot.samplers.torch import TorchSampler
from stockpot.types import Author, Prompt, Request, Rollout, Sampling, Span, StockpotError

VOCAB, LIMIT, STOPS = 23, 64, (3, 7)
NOW, PAST = Author("run", 9), Author("run", 2)
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": LIMIT,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "llama": LlamaConfig(**SIZES, num_key_value_heads=4),
    "gpt2": GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=LIMIT, bos_token_id=None, eos_token_id=None
    ),
    "mistral, sliding": MistralConfig(**SIZES, num_key_value_heads=1, head_dim=8, sliding_window=5),
    "qwen3, one layer sliding": Qwen3Config(
        **SIZES, num_key_value_heads=2, head_dim=8, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
}
SAMPLINGS = (
    Sampling(), Sampling(temperature=0.7), Sampling(temperature=1.3, top_k=5), Sampling(top_p=0.8), Sampling(min_p=0.2),
    Sampling(temperature=0.6, top_k=12, top_p=0.9, min_p=0.05), Sampling(temperature=0.0),
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(name: str = "qwen3", dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> PreTrainedModel:
    """A model whose weights are large enough for its choices to depend on every token it has read."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention, dtype=dtype)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(6.0)
    return model


def sampler(model: PreTrainedModel, **changes: Any) -> TorchSampler:
    return TorchSampler(model, **{"author": NOW, "stop_tokens": STOPS, **changes})


def ragged(
    count: int, samplings: Sequence[Sampling] = SAMPLINGS, max_tokens: int = 20, repeats: int = 1
) -> list[Request]:
    """Prompts of 1..12 tokens, every third with a prefix of 1..8 by two authors, the setups in turn."""
    draw, requests = random.Random(1), []
    for i in range(count):
        prompt = Prompt(f"p{i}", [draw.randrange(VOCAB) for _ in range(draw.randint(1, 12))])
        old = [draw.randrange(8, VOCAB) for _ in range(draw.randint(1, 8) if i % 3 == 0 else 0)]
        first = Span(PAST, old[:2], [-0.1] * len(old[:2]), kind="prefix", source=i)
        second = Span(Author("someone"), old[2:], kind="prefix", trained=False)
        prefix = tuple(span for span in (first, second) if len(span))
        for _ in range(repeats):
            requests.append(
                Request(prompt, len(requests), prefix, samplings[i % len(samplings)], draw.randint(12, max_tokens))
            )
    return requests


def scores(model: PreTrainedModel, rollout: Rollout) -> Tensor:
    """Processed log-probs of the continuation by one plain forward pass over this rollout alone."""
    *_, span = rollout.spans
    ids = torch.tensor([[*rollout.prompt.tokens, *rollout.tokens]])
    with torch.no_grad():
        logits = model.eval()(ids).logits[0, -len(span) - 1 : -1].float()
    log_probs = process_logits(logits, span.sampling).log_softmax(-1)
    taken = log_probs.gather(1, torch.tensor(span.tokens.tolist())[:, None])[:, 0]
    if span.sampling.temperature == 0:
        assert span.tokens.tolist() == logits.argmax(-1).tolist()
        return torch.zeros_like(taken)
    return taken


def words(rollouts: list[Rollout]) -> list[list[int]]:
    return [rollout.tokens.tolist() for rollout in rollouts]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-5), (torch.float64, 2e-6)])
def test_log_probs_are_those_of_a_plain_forward_pass(name: str, dtype: torch.dtype, bound: float) -> None:
    model = make(name, dtype)
    for rollout in sampler(model, max_rows=16).continue_(ragged(40), seed=5):
        found = torch.tensor(rollout.spans[-1].log_probs)
        torch.testing.assert_close(found, scores(model, rollout), atol=bound, rtol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_half_precision_and_eager_attention_stay_close(attention: str) -> None:
    model = make(dtype=torch.bfloat16, attention=attention)
    exact = make(dtype=torch.float64)
    exact.load_state_dict(model.state_dict())
    errors = [
        (torch.tensor(rollout.spans[-1].log_probs) - scores(exact, rollout)).abs()
        for rollout in sampler(model).continue_(ragged(40, [Sampling()]), seed=5)
    ]
    assert torch.cat(errors).mean() < 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_a_request_gets_the_same_tokens_in_any_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, requests = make(name), ragged(40)
    together = words(sampler(model).continue_(requests, seed=1))
    order = random.Random(0).sample(range(40), 40)
    shuffled = words(sampler(model).continue_([requests[i] for i in order], seed=1))
    assert [shuffled[order.index(i)] for i in range(40)] == together
    assert [words(sampler(model).continue_([request], seed=1))[0] for request in requests] == together
    assert words(sampler(model, max_rows=6).continue_(requests, seed=1)) == together
    for share in (0.0, 1.0):  # every finished row leaves at once; none does before all have finished
        monkeypatch.setattr(module, "DEAD_SHARE", share)
        assert words(sampler(model).continue_(requests, seed=1)) == together
    assert words(sampler(model).continue_(requests, seed=2)) != together


def test_a_response_continued_from_its_own_prefix_is_the_same_response() -> None:
    """The random numbers go by the place of a token in the response, wherever a prefix was cut."""
    model, requests = make(), ragged(20, [Sampling(), Sampling(temperature=0.8, top_p=0.9)])
    whole = sampler(model).continue_(requests, seed=8)
    cut = [
        replace(
            request,
            prefix=(*rollout.spans[:-1], replace(rollout.spans[-1][: len(rollout.spans[-1]) // 2], kind="prefix")),
        )
        for request, rollout in zip(requests, whole, strict=True)
    ]
    again = sampler(model).continue_(cut, seed=8)
    assert words(again) == words(whole)
    assert [rollout.finish for rollout in again] == [rollout.finish for rollout in whole]


def test_uninitialised_memory_never_reaches_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deterministic mode fills new memory with NaN; small prefills put short contexts beside long ones."""
    monkeypatch.setattr(module, "PREFILL_TOKENS", 8)
    model, requests = make("mistral, sliding"), ragged(40)
    expected = words(sampler(model, max_rows=4).continue_(requests, seed=1))
    torch.use_deterministic_algorithms(True)
    try:
        assert words(sampler(model, max_rows=4).continue_(requests, seed=1)) == expected
    finally:
        torch.use_deterministic_algorithms(False)


def test_more_requests_than_rows_keep_the_batch_full() -> None:
    model, requests = make(), ragged(150, [Sampling()])
    counts: list[int] = []
    model.register_forward_pre_hook(lambda _, __, kwargs: counts.append(len(kwargs["input_ids"])), with_kwargs=True)
    few = sampler(model, max_rows=8).continue_(requests, seed=3)
    assert max(counts) <= 8
    assert sum(counts) / len(counts) > 5.5
    assert words(few) == words(sampler(model).continue_(requests, seed=3))


def test_equal_contexts_are_read_once() -> None:
    model, requests = make(), ragged(5, [Sampling()], repeats=8)
    read: list[int] = []

    def count(_: Any, __: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].shape[1] > 1:
            read.append(len(kwargs["input_ids"]))

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    together = words(sampler(model).continue_(requests, seed=4))
    assert sum(read) == 5
    handle.remove()
    assert together == [words(sampler(model).continue_([request], seed=4))[0] for request in requests]
    assert len({tuple(tokens) for tokens in together}) > 30


def test_tokens_follow_the_exact_distribution() -> None:
    """Chi-square of 20,000 one-token responses, in a batch with two setups, against the probabilities."""
    model, count = make(), 20_000
    for sampling in (Sampling(), Sampling(temperature=1.5, top_k=9, top_p=0.95)):
        requests = [Request(Prompt("p", [4, 9, 1]), i, (), sampling, 1) for i in range(count)]
        requests += [Request(Prompt("q", [4]), i, (), Sampling(temperature=0.5), 1) for i in range(100)]
        drawn = Counter(rollout.tokens[0] for rollout in sampler(model, max_rows=4096).continue_(requests, 0)[:count])
        with torch.no_grad():
            logits = model.eval()(torch.tensor([[4, 9, 1]])).logits[:, -1]
        exact = (process_logits(logits, sampling).softmax(-1)[0] * count).tolist()
        assert all(exact[token] > 0 for token in drawn)
        common = [token for token in range(VOCAB) if exact[token] >= 5]
        square = sum((drawn[token] - exact[token]) ** 2 / exact[token] for token in common)
        assert len(common) >= 5
        assert square < len(common) + 4 * (2 * len(common)) ** 0.5


def test_draws_of_one_response_are_independent_of_each_other() -> None:
    """Successive uniforms, those of neighbouring keys and those of neighbouring seeds are uniform and uncorrelated."""
    keys, index = torch.arange(20_000), torch.zeros(20_000, dtype=torch.long)
    bases = [draw.mix(keys ^ draw.mix(torch.tensor(seed))) for seed in (0, 1)]
    a, b, c = (draw.uniform(bases[s], index + i) for s, i in ((0, 0), (0, 1), (1, 0)))
    for first, second in ((a, b), (a, c), (a[1:], a[:-1])):
        cells = torch.histogramdd(torch.stack([first, second], 1), bins=8, range=[0.0, 1.0] * 2).hist
        square = ((cells - len(first) / 64) ** 2 / (len(first) / 64)).sum()
        assert square < 64 + 4 * 128**0.5


def test_the_hash_is_splitmix64() -> None:
    """The published generator from seed 0 gives these; in Python's integers and in wrapping int64."""
    steps = torch.arange(1, 4) * -0x61C8864680B583EB
    assert [value % 2**64 for value in draw.mix(steps).tolist()] == [
        0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F,
    ]  # fmt: skip


def test_no_token_of_probability_zero_is_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, 5)
    uniform = torch.tensor([0.0, 0.5, 0.5 - 2**-52, 1 - 2**-52], dtype=torch.float64)
    tokens, log_probs = draw.choose(logits, Sampling(), uniform)
    assert tokens.tolist() == [1, 3, 1, 3]
    torch.testing.assert_close(log_probs, torch.full((4,), 0.5).log())
    rounded = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))  # sums that fall short of 1
    rounded[:, 500:] = -torch.inf
    assert draw.choose(rounded, Sampling(), uniform[3:].expand(50))[0].max() < 500


def test_responses_end_with_a_stop_token_or_at_max_tokens() -> None:
    requests = ragged(60, [Sampling()])
    rollouts = sampler(make()).continue_(requests, seed=6)
    assert {rollout.finish for rollout in rollouts} == {"stop", "length"}
    assert {rollout.tokens[-1] for rollout in rollouts if rollout.finish == "stop"} == set(STOPS)
    for request, rollout in zip(requests, rollouts, strict=True):
        assert not set(rollout.spans[-1].tokens[:-1]) & set(STOPS)
        assert len(rollout) == request.max_tokens if rollout.finish == "length" else len(rollout) <= request.max_tokens


def test_prefixes_come_back_as_they_were_and_the_rest_is_signed() -> None:
    requests = ragged(30)
    live = sampler(make())
    live.author = Author("run", 10)
    for request, rollout in zip(requests, live.continue_(requests, seed=7), strict=True):
        assert rollout.prompt is request.prompt
        assert rollout.spans[:-1] == request.prefix
        assert all(a is b for a, b in zip(rollout.spans, request.prefix, strict=False))
        span = rollout.spans[-1]
        assert (span.author, span.kind, span.sampling) == (Author("run", 10), "continuation", request.sampling)
        assert request.sampling.temperature or set(span.log_probs or ()) == {0.0}


@pytest.mark.parametrize("name", CONFIGS)
def test_contexts_of_one_token_and_the_last_position(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One-token prompts need no prefill; a finished row may linger while others go on to the model's last position."""
    model = make(name)
    prompts = [Prompt("a", [5]), Prompt("b", [8]), Prompt("c", [1] * 60)]
    requests = [Request(prompts[i], i, max_tokens=room) for i, room in ((0, 3), (1, 63), (2, 4))]
    monkeypatch.setattr(module, "DEAD_SHARE", 1.0)
    for few in (requests, requests[:2]):
        for rollout in sampler(model, stop_tokens=[]).continue_(few, seed=0):
            found = torch.tensor(rollout.spans[-1].log_probs)
            torch.testing.assert_close(found, scores(model, rollout), atol=3e-5, rtol=0)


def test_the_model_is_left_as_it_was() -> None:
    model = make().train()
    model.model.layers[0].eval()
    modes: list[bool] = []
    hook = model.register_forward_pre_hook(lambda model, _: modes.append(model.training or torch.is_grad_enabled()))
    sampler(model).continue_(ragged(3), seed=0)
    hook.remove()
    assert modes and not any(modes)
    assert model.training and model.model.layers[1].mlp.training and not model.model.layers[0].mlp.training
    assert model.config._attn_implementation == "sdpa"
    model(torch.tensor([[1, 2]])).logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_nothing_asked_nothing_answered() -> None:
    assert sampler(make()).continue_([], seed=0) == []


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request(Prompt("p", []), 0), "is empty"),
        (Request(Prompt("p", [1] * 10), 0, max_tokens=55), "make 65, but the model reads 64"),
        (Request(Prompt("p", [1]), 0, (Span(PAST, [5, 3]),), max_tokens=9), "already ends with a stop token"),
        (Request(Prompt("p", [1]), 0, (Span(PAST, [5, 5]),), max_tokens=2), "max_tokens=2 leaves no room after 2"),
        (Request(Prompt("p", [1]), 0, max_tokens=0), "max_tokens=0 leaves no room after 0"),
        (Request(Prompt("p", [1, VOCAB]), 0, max_tokens=9), "outside the model's vocabulary"),
    ],
)
def test_mistakes_are_told_in_one_line(request_: Request, says: str) -> None:
    with pytest.raises(StockpotError, match=says) as caught:
        sampler(make()).continue_([request_], seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.0), Sampling(top_p=0.5)])
def test_broken_weights_are_an_error(sampling: Sampling) -> None:
    model = make()
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(StockpotError, match="not finite"):
        sampler(model).continue_(ragged(3, [sampling]), seed=0)


def test_models_that_it_cannot_decode_are_refused() -> None:
    config = Qwen3NextConfig(**SIZES, num_key_value_heads=2, head_dim=8, num_experts=2, moe_intermediate_size=16)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(StockpotError, match="Qwen3NextForCausalLM has linear_attention layers"):
        sampler(model)
    for wrong in ({"max_rows": 0}, {"stop_tokens": [VOCAB]}):
        with pytest.raises(StockpotError):
            sampler(make(), **wrong)


def test_the_scripted_sampler_honours_prefix_room_and_key() -> None:
    scripted = ScriptedSampler({"p": [5, 6, 7], "2 + 2": [[4, 9], [5, 9]]}, author=NOW, log_prob=-0.5)
    prompt = Prompt("p", [1])
    whole, short, late = scripted.continue_(
        [
            Request(prompt, 0),
            Request(prompt, 1, max_tokens=2),
            Request(prompt, 2, (Span(PAST, [5, 8], kind="prefix"),)),
        ],
        seed=0,
    )
    assert [whole.tokens.tolist(), short.tokens.tolist(), late.tokens.tolist()] == [[5, 6, 7], [5, 6], [5, 8, 7]]
    assert [whole.finish, short.finish, late.finish] == ["stop", "length", "stop"]
    assert late.spans[0].author == PAST and late.spans[1] == Span(NOW, [7], [-0.5])
    chosen = scripted.continue_([Request(Prompt("q", [1], text="2 + 2"), key) for key in range(4)], seed=1)
    assert words(chosen) == [[5, 9], [4, 9], [5, 9], [4, 9]]
    for wrong in (Request(Prompt("q", [1]), 0), Request(prompt, 0, (Span(PAST, [5, 6, 7]),))):
        with pytest.raises(StockpotError):
            scripted.continue_([wrong], seed=0)


def test_a_stop_token_within_a_prefix_ends_nothing() -> None:
    """A prefix may hold one before its end, from another turn: read along or read at once, writing goes on after it."""
    model, (request,) = make(), ragged(1)
    old = Span(PAST, [9, STOPS[0], 10], [-0.1] * 3, kind="prefix")
    requests = [replace(request, key=key, prefix=(old,)) for key in range(4)]
    along, waiting = (sampler(model, max_rows=rows).continue_(requests, seed=3) for rows in (4, 1))
    assert words(along) == words(waiting) and all(len(rollout) > 3 for rollout in along)
