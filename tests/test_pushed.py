"""vLLM's place in a run, without vLLM: which weights are sent when, what is refused, what it takes to start."""

from __future__ import annotations

import builtins
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from runs import assert_same_bits, metrics, stockpot, trained
from stockpot import lora
from stockpot.as_json import from_json, to_json
from stockpot.config import Config
from stockpot.engines import pushed
from stockpot.lora import LoRA
from stockpot.models import load_model
from stockpot.samplers import vllm
from stockpot.samplers.torch import TorchSampler
from stockpot.samplers.vllm import VLLM, seed_of
from stockpot.types import Author, Request, Rollout, Sampling, StockpotError


class Standin:
    """What `VLLMSampler` is to an engine, with a torch model of its own, that knows only what it is sent."""

    made: ClassVar[list[Standin]] = []

    def __init__(self, model: str, *, author: Author, stop_tokens: Sequence[int], lora: LoRA, **options: Any) -> None:
        self.model = load_model(model, torch.device("cpu"))
        adapt(self.model, lora)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_() if not lora.rank else None
        self.sampler = TorchSampler(self.model, author=author, stop_tokens=stop_tokens, max_rows=options["max_rows"])
        self.sent: list[int | None] = []
        Standin.made.append(self)

    def load(self, weights: Mapping[str, Tensor], version: int | None) -> None:
        self.sent.append(version)
        own = dict(lora.moving(self.model))
        assert weights.keys() == own.keys()
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(weights[name])
        self.sampler.author = Author(self.sampler.author.run, version)

    def continue_(self, requests: Sequence[Request], seed: int) -> list[Rollout]:
        return self.sampler.continue_(requests, seed)


adapt = lora.adapt


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> type[Standin]:
    monkeypatch.setattr(pushed, "VLLMSampler", Standin)
    monkeypatch.setattr(Standin, "made", [])
    return Standin


PAST = [
    "--prefixes",
    "checkpoints",
    "--prefixes.min-age",
    1,
    "--prefixes.keep",
    2,
    "--prefixes.every",
    1,
    "--prefixes.longest",
    8,
]
WAYS: dict[str, list[object]] = {
    "history": [],
    "past policies": PAST,
    "weights refreshed late": ["--refresh-every", 2],
    "an adapter": ["--learner.lora.rank", 2],
    "an adapter's past": ["--learner.lora.rank", 2, *PAST],
}


@pytest.mark.parametrize("way", WAYS)
def test_sent_weights_write_what_the_policy_would_write(
    way: str, started: str, tmp_path: Path, standin: type[Standin]
) -> None:
    """Live, late and past versions: the same run, to the bit, as with the sampler that shares the policy's weights."""
    words = ["--model", started, "--steps", 3, "--evaluation.every", 0, *WAYS[way]]
    trained(*words, "--out", tmp_path / "torch" / "run")
    assert not standin.made
    trained(*words, "--out", tmp_path / "vllm" / "run", "--sampler", "vllm")
    assert_same_bits(tmp_path / "torch" / "run", tmp_path / "vllm" / "run")
    (one,) = standin.made
    assert len(one.sent) > 1, "and they were sent"


def test_a_version_is_sent_once(started: str, tmp_path: Path, standin: type[Standin]) -> None:
    """However often it writes: evaluation, then the step. What was stopped is sent what it had."""
    trained("--model", started, "--steps", 2, "--evaluation.every", 1, "--sampler", "vllm", "--out", tmp_path / "run")
    assert standin.made[0].sent == [0, 1, 2]
    assert all(row["mismatch/max"] < 1e-4 for row in metrics(tmp_path / "run")[1:])


def test_weights_that_could_not_be_sent_are_sent_again(started: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = pushed.Pushed(Config(), started, [1])
    sampler.sampler = copy.copy(sampler)  # type: ignore[assignment]
    calls: list[int | None] = []

    def load(weights: Any, version: int | None) -> None:
        calls.append(version)
        if len(calls) == 1:
            raise StockpotError("no")

    monkeypatch.setattr(sampler.sampler, "load", load, raising=False)
    monkeypatch.setattr(sampler.sampler, "continue_", lambda requests, seed: [], raising=False)
    for expected in (StockpotError, None):
        if expected:
            with pytest.raises(expected):
                sampler.continue_([], 0, Author("r", 3), dict)
    sampler.continue_([], 0, Author("r", 3), dict)
    sampler.continue_([], 0, Author("r", 3), dict)
    assert calls == [3, 3]


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "told"),
    [
        (Sampling(min_p=0.1, top_p=0.9), "vLLM applies min_p before top_p"),
        (Sampling(temperature=0.005), "not at 0.005"),
        (Sampling(temperature=2.5), "not at 2.5"),
    ],
)
def test_what_vllm_would_sample_otherwise_is_refused_before_anything_starts(sampling: Sampling, told: str) -> None:
    for place in ("sampling", "evaluation"):
        change: Any = {"sampling": sampling} if place == "sampling" else {"evaluation": evaluation(sampling)}
        with pytest.raises(StockpotError, match=told):
            Config(sampler="vllm", **change)
        Config(**change)


def evaluation(sampling: Sampling) -> Any:
    from stockpot.config import Evaluation

    return Evaluation(sampling=sampling)


def test_what_vllm_samples_alike_is_not() -> None:
    for sampling in (Sampling(top_k=3, min_p=0.1), Sampling(top_k=3, top_p=0.5), Sampling(temperature=2.0)):
        vllm.check(sampling)
    vllm.check(Sampling(temperature=0.0))


def test_without_vllm_there_is_one_line(monkeypatch: pytest.MonkeyPatch, started: str, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "vllm":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    told = stockpot("train", "--model", started, "--sampler", "vllm", "--steps", 0, "--out", tmp_path / "run")
    assert told.code != 0 and len(told.complaints) == 1
    assert "sampler vllm needs vLLM, which is not installed here" in told.complaints[0]


def test_its_options_are_stored_and_checked() -> None:
    config = Config(sampler="vllm", vllm=VLLM(dtype="bfloat16", memory_gb=2.5, eager=False))
    assert from_json(to_json(config)) == config
    for wrong in ({"memory_gb": 0.0}, {"context": -1}):
        with pytest.raises(StockpotError, match=r"vllm\.memory_gb must be above 0"):
            VLLM(**wrong)  # type: ignore[arg-type]


def test_every_request_has_a_seed_of_its_own() -> None:
    """From the seed, the key and the tokens that are there already: one of them another, another seed."""
    many = {seed_of(seed, key, done) for seed in range(8) for key in range(8) for done in range(8)}
    assert len(many) == 512 and all(0 <= seed < 2**63 for seed in many)
    assert seed_of(2**62, -5, 3) == seed_of(2**62, -5, 3)
