"""vLLM in sampler processes under Ray, and decoding that is cut short: real actors, real weights."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="the vLLM sampler needs the environment of `make vllm`")

import ray
import torch
from policies import CUT, PLAIN, TIED, distances, made, moved, ragged, send, words

import faults
from moments import at_tokens
from runs import TINY, assert_same_bits, dump, metrics, stockpot, trained
from stockpot import lora
from stockpot.config import load_recipe
from stockpot.engines.ray import session, weights
from stockpot.engines.ray.actors import SamplerActor
from stockpot.history import History
from stockpot.models import load_model
from stockpot.policy import Learner, Policy
from stockpot.samplers.vllm import VLLM, VLLMSampler
from stockpot.types import Author, Prompt, Request, Rollout


@pytest.fixture(scope="module", params=[0, 3], ids=["whole", "adapter"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, VLLMSampler]:
    return made(TIED, tmp_path_factory.mktemp("tied"), rank=request.param)


def later(count: int) -> Any:
    """Says stop when it has been asked so many times."""
    asked = iter(range(1, count))
    return lambda _: next(asked, None) is None


# --- decoding that is cut short -------------------------------------------------------------------------------------


def test_what_is_cut_short_is_the_head_of_the_whole(pair: tuple[Policy, VLLMSampler]) -> None:
    """The tokens drawn so far with their log-probs, more requests than rows; and nothing is left in vLLM."""
    policy, sampler = pair
    send(policy, sampler, 9)
    requests = ragged(60, PLAIN)
    whole = sampler.continue_(requests, seed=5)
    parts = sampler.stretch(requests, 5, later(7))
    lengths = [len(part) - sum(map(len, request.prefix)) for (part, _), request in zip(parts, requests, strict=True)]
    assert max(lengths) == 7 and min(lengths) == 0, "a token is drawn at a step; some wait for a row"
    for (part, over), full, request in zip(parts, whole, requests, strict=True):
        assert over == (part.finish == "stop" or len(part) == request.max_tokens)
        assert part.tokens == full.tokens[: len(part)] and part.spans[: len(request.prefix)] == request.prefix
        if len(part.spans) > len(request.prefix):
            given = [list(rollout.spans[-1].log_probs or ()) for rollout in (part, full)]
            assert given[0] == pytest.approx(given[1][: len(given[0])], abs=1e-5)
    assert not sampler._llm.llm_engine.has_unfinished_requests()
    assert words(sampler.continue_(requests, seed=5)) == words(whole)
    assert [over for _, over in sampler.stretch(requests, 5, lambda _: False)] == [True] * 60


def test_weights_change_under_what_is_being_written(pair: tuple[Policy, VLLMSampler]) -> None:
    """Three versions one after the other: every piece is signed, and has the log-probs that its writer gives it."""
    policy, sampler = pair
    send(policy, sampler, 0)
    left, versions = ragged(24, PLAIN + CUT[:1]), 0
    for version in (0, 1, 2):
        send(policy, sampler, version)
        made = sampler.stretch(left, 5, later(6) if version < 2 else None, version > 0)
        fresh = [r for r, _ in made if r.spans and r.spans[-1].author == Author("run", version)]
        found = distances(policy, fresh)
        assert len(found) > 40 and float(found.max()) <= 1e-4, "seen: 2e-5, of weights moved far"
        versions = max(versions, *(len({s.author for s in r.spans if s.kind == "continuation"}) for r in fresh))
        left = [replace(r, prefix=part.spans) for r, (part, over) in zip(left, made, strict=True) if not over]
        moved(policy, 0.1)
        assert float(distances(policy, fresh).max()) > 0.05, "versions differ"
    assert versions == 3 and not left


def test_an_error_leaves_vllm_at_rest(pair: tuple[Policy, VLLMSampler]) -> None:
    policy, sampler = pair
    send(policy, sampler, 9)

    def fails(_: object) -> bool:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        sampler.stretch(ragged(4, PLAIN), 5, fails)
    assert not sampler._llm.llm_engine.has_unfinished_requests()
    send(policy, sampler, 10)
    assert float(distances(policy, sampler.continue_(ragged(4, PLAIN), seed=5)).max()) <= 1e-5


# --- runs -----------------------------------------------------------------------------------------------------------

WORDS = ["--sampler", "vllm", "--vllm.memory-gb", 0.2]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that was taught for long enough to draw words."""
    folder = tmp_path_factory.mktemp("started") / "run"
    trained("--start.steps", 100, "--steps", 0, "--out", folder)
    return str(folder / "checkpoints" / "step-0")


def rollouts(run: Path, step: int) -> list[Rollout]:
    with History.open(run / "history.sqlite", read_only=True) as history:
        return list(history.find(versions=(step, step)))


def spread(out: Path, *words: object) -> Path:
    told = trained(*WORDS, "--engine", "ray", "--samplers", 1, "--out", out, *words)
    assert told.complaints == []
    return out


def test_a_run_is_that_of_the_local_engine(started: str, tmp_path: Path) -> None:
    """Same requests, same seeds: the same tokens, prefixes from the history among them; here, the same bits."""
    words = ["--model", started, "--steps", 3]
    trained(*WORDS, *words, "--out", tmp_path / "local" / "run")
    run = spread(tmp_path / "ray" / "run", *words)
    assert_same_bits(tmp_path / "local" / "run", run)
    rows = metrics(run)[1:]
    assert len(rows) == 3 and all(0 < row["mismatch/max"] < 5e-5 for row in rows)
    assert sum(row["prefix/tokens"] for row in rows) > 0 and all(row["grad_norm"] > 0 for row in rows)


def test_samplers_run_ahead(started: str, tmp_path: Path) -> None:
    """Every request is answered once, no token is too old, and old tokens have the log-probs of their writers."""
    run = spread(tmp_path / "run", "--model", started, "--steps", 4, "--ahead", 1)
    ages = {
        step - (span.author.version or 0)
        for step in range(4)
        for rollout in rollouts(run, step)
        for span in rollout.spans
        if span.kind == "continuation"
    }
    assert ages <= {0, 1} and 1 in ages, "nobody ran ahead"
    assert [len(rollouts(run, step)) for step in range(4)] == [16] * 4
    told = [row["mismatch/max"] for row in metrics(run)[1:] if "mismatch/max" in row]  # where a live token was written
    assert told and all(number <= 1e-4 for number in told)


def test_two_samplers_and_two_learners_of_an_adapter(started: str, tmp_path: Path) -> None:
    """Rollouts as one of each writes them; what is learned from them within rounding."""
    words = ["--model", started, "--steps", 2, "--learner.lora.rank", 4]
    trained(*WORDS, *words, "--out", tmp_path / "local" / "run")
    run = spread(tmp_path / "run", *words, "--samplers", 2, "--learners", 2)
    for ours, theirs in zip(metrics(run), metrics(tmp_path / "local" / "run"), strict=True):
        assert set(ours) == set(theirs)
        apart = {name for name in ours if not name.startswith("mismatch/")}
        assert {n: ours[n] for n in apart} == pytest.approx({n: theirs[n] for n in apart}, rel=2e-3, abs=2e-5)
        assert ours.get("mismatch/max", 0) < 5e-5
    one, other = rollouts(run, 1), rollouts(tmp_path / "local" / "run", 1)
    assert [r.tokens for r in one] == [r.tokens for r in other] and len(one) == 16


def test_a_killed_sampler_is_replaced_and_a_resumed_run_goes_on(started: str, tmp_path: Path) -> None:
    """A new vLLM is sent the weights that the dead one had: the same bits as if it had lived, in one run or in two."""
    words = faults.seldom(["--model", started])
    calm, run = spread(tmp_path / "calm" / "run", *words, "--steps", 4), tmp_path / "run"
    killer = faults.Killer({"sampler": 2}, random.Random(3), share=1.0)
    with killer.at_work():
        told = stockpot("train", TINY, *WORDS, "--engine", "ray", "--out", run, *words, "--steps", 2)
    assert told.code == 0, told.err
    assert killer.done["sampler"] == 2, killer.done
    config = json.loads((run / "config.json").read_text())
    config["config"]["steps"] = 4
    (run / "config.json").write_text(json.dumps(config))
    assert stockpot("resume", run).code == 0
    assert dump(calm) == dump(run) and [m["loss"] for m in metrics(calm)[1:]] == [m["loss"] for m in metrics(run)[1:]]


def test_a_sampler_swaps_weights_while_it_writes(started: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The actor itself, in this process: each piece is signed by who wrote it, and no torch model is loaded."""
    policy = Policy(load_model(started, torch.device("cpu")), Learner(), run="run")
    versions = [{name: p.detach().clone() for name, p in lora.moving(policy.model)}]
    for _ in range(2):
        versions.append({name: p + 0.05 * torch.randn_like(p) for name, p in versions[-1].items()})
    monkeypatch.setattr(ray, "get", lambda number: weights.pack(versions[number]))
    monkeypatch.setattr("stockpot.engines.ray.actors.LocalEngine", None)
    config = replace(
        load_recipe(str(TINY)), model=started, engine="ray", sampler="vllm", ahead=2, vllm=VLLM(memory_gb=0.2)
    )
    actor = SamplerActor(session.Brief(session.to_json(config), "run", started, str(Path.cwd())))
    assert isinstance(actor.sampler, VLLMSampler) and actor.hello()["context"] == 256
    at_tokens(actor, {8: lambda: actor.tell((0, 1), [1]), 16: lambda: actor.tell((0, 2), [2])})
    requests = [Request(Prompt(f"p{i}", [5, 9, 11 + i]), key=i, max_tokens=24) for i in range(8)]
    found, _ = actor.write(requests, 7, (0, 0), [0], True)
    assert any([span.author for span in r.spans] == [Author("run", v) for v in (0, 1, 2)] for r in found)
    for rollout in found:
        assert rollout.prefix_length == 0 and (rollout.finish == "stop" or len(rollout) == 24)
        place = 0
        for span in rollout.spans:
            with torch.no_grad():
                for name, parameter in lora.moving(policy.model):
                    parameter.copy_(versions[span.author.version or 0][name])
            (scored,) = policy.score([rollout], "policy")
            assert scored[place : place + len(span)].tolist() == pytest.approx(list(span.log_probs or ()), abs=1e-4)
            place += len(span)
