"""Learners of more than one process: one, two and four do the same step, and read each other's checkpoints.

All cases of a world run in processes that are started once (`ranks_work.py`); one process, here, is what the others
are held against. Gradients are float32 and sums come out in another order: that is all that may differ.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ranks_work as work
from runs import stockpot
from small import save_model
from stockpot import checkpoints, moments
from stockpot.algorithms import PPO
from stockpot.algorithms.base import CriticOptions
from stockpot.engines.local import LocalEngine
from stockpot.engines.ranks import Rank
from stockpot.engines.ranks.shares import shares
from stockpot.learner import Learner
from stockpot.models import load_model
from stockpot.policy import Policy
from stockpot.types import StockpotError

CPU = torch.device("cpu")
WORLDS = (2, 4)
CLOSE = 1e-5
"""Of a gradient, the size of the difference relative to its own; two ways to add float32 differ by about 1e-6."""
HALF = {"fsdp-bf16": 0.1, "fsdp-lora-bf16": 0.02, "ddp-bf16": 0.02}
"""In bfloat16, where a number has 8 bits: FSDP rounds embedding and norms too, which one process keeps in float32."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes of all worlds have been and left what they found."""
    made = tmp_path_factory.mktemp("ranks")
    save_model(made / "model")
    save_model(made / "tied", tied=True)
    source = Path(work.__file__).resolve()
    paths = os.pathsep.join(str(p) for p in (source.parent, Path(sys.modules["stockpot"].__file__ or "").parents[1]))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (made / "told").open("w") as told:
        command = [sys.executable, str(source)]
        running = [
            subprocess.Popen([*command, str(world), str(made)], env=environment, stdout=told, stderr=told)
            for world in WORLDS
        ]
        try:
            codes = [process.wait(timeout=600) for process in running]
        finally:
            for process in running:
                process.kill()
    assert codes == [0] * len(WORLDS), (made / "told").read_text()[-4000:]
    return made


@pytest.fixture(scope="module")
def found(folder: Path) -> Any:
    """world, rank -> what its processes found."""
    return cache(lambda world, rank: torch.load(folder / f"found-{world}-{rank}.pt", weights_only=False))


@pytest.fixture(scope="module")
def alone(folder: Path) -> Any:
    """case -> what one process finds."""

    @cache
    def live(name: str) -> dict[str, Any]:
        model = start(folder, name)
        return work.live(Rank(work.CASES[name], work.RUN, model, model), work.CASES[name])

    return live


def start(folder: Path, name: str) -> str:
    """The model that a case starts from."""
    return str(folder / work.MODELS.get(name, "model"))


def worst(ones: Any, others: Any) -> float:
    """The largest difference between any two numbers."""
    return max(float((a - b).abs().max()) for a, b in zip(ones, others, strict=True))


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The norm of the difference of two gradients, as a share of the norm of the first."""
    assert one.keys() == other.keys()
    size = sum(float(one[n].square().sum()) for n in one)
    return float((sum(float((one[n] - other[n]).square().sum()) for n in one) / size) ** 0.5)


full = pytest.mark.parametrize("name", [name for name in work.CASES if name not in HALF])
every_world = pytest.mark.parametrize("world", WORLDS)


@every_world
@full
def test_any_number_of_learners_takes_the_same_step(name: str, world: int, alone: Any, found: Any) -> None:
    """Scores, gradients, weights and all figures; two steps, of which the second has a single rollout."""
    one, many = alone(name), found(world, 0)[name]
    for what in ("before", "reference", "after", "reference after", "values after"):
        assert (what in one) == (what in many)
        assert what not in one or worst(one[what], many[what]) < 3e-5, what
    assert len(one["grads"]) == len(many["grads"]) == 2
    for mine, theirs in zip(one["grads"], many["grads"], strict=True):
        assert apart(mine, theirs) < CLOSE
    assert one["weights"].keys() == many["weights"].keys()
    assert worst(one["weights"].values(), many["weights"].values()) < 3e-5
    metrics, others = one["update"].metrics, many["update"].metrics
    assert list(metrics) == list(others)
    assert others == pytest.approx(metrics, rel=1e-4, abs=1e-5)


@every_world
@pytest.mark.parametrize("name", HALF)
def test_bfloat16_computes_and_float32_remembers(name: str, world: int, alone: Any, found: Any) -> None:
    one, many = alone(name), found(world, 0)[name]
    for mine, theirs in zip(one["grads"], many["grads"], strict=True):
        assert apart(mine, theirs) < HALF[name]
        assert {grad.dtype for grad in theirs.values()} == {torch.float32}
    assert {weight.dtype for weight in many["weights"].values()} == {torch.float32}
    assert worst(many["before"], alone("fsdp")["before"]) > 1e-3, "fewer bits are seen"
    assert apart(many["grads"][0], found(6 - world, 0)[name]["grads"][0]) < 0.02, "two learners and four"


@every_world
def test_all_learners_of_a_group_say_the_same(world: int, found: Any) -> None:
    first = found(world, 0)
    for rank in range(1, world):
        other = found(world, rank)
        for name in work.CASES:
            assert other[name]["update"].metrics == first[name]["update"].metrics
            assert other[name]["weights"] == {}
            for what in ("before", "after"):
                assert worst(other[name][what], first[name][what]) == 0


@every_world
@pytest.mark.parametrize("name", work.SPOILT)
def test_what_is_not_finite_on_one_learner_skips_the_step_on_all(name: str, world: int, found: Any) -> None:
    """Only one learner has the rollout whose advantage is no number."""
    for rank in range(world):
        spoilt = found(world, rank)[name]["spoilt"]
        assert spoilt["skipped"] == "the loss is nan" and spoilt["steps"] == 1
        assert spoilt["same"]


def test_an_ordinary_engine_is_what_one_learner_is(folder: Path, alone: Any) -> None:
    name, config = "fsdp", work.CASES["fsdp"]
    engine = LocalEngine(config, work.RUN, str(folder / "model"), str(folder / "model"))
    update = engine.learn(work.lesson(engine, config), 1)
    engine.advance(1)
    assert update.metrics == alone(name)["update"].metrics
    assert all(torch.equal(p, alone(name)["weights"][n]) for n, p in engine.policy.model.named_parameters())


@every_world
@pytest.mark.parametrize("name", ("fsdp", "ddp", "fsdp-lora"))
def test_who_holds_how_much(name: str, world: int, found: Any) -> None:
    """Under FSDP weights and moments are dealt out, rounded up to whole rows; under DDP all have all."""
    held = [found(world, rank)[name]["held"] for rank in range(world)]
    for what in ("weights", "moments"):
        total = held[0][f"{what} in all"]
        share = max(one[what] for one in held) / total
        assert share == 1 if name == "ddp" else share < 1.35 / world
        assert name == "ddp" or sum(one[what] for one in held) == total


# --- checkpoints ----------------------------------------------------------------------------------------------------


def gone_on(folder: Path, name: str) -> Any:
    """The third step by one process, from the checkpoint of two."""
    model, source = start(folder, name), str(folder / f"saved-{name}")
    one = Rank(work.CASES[name], work.RUN, source, model, 2)
    assert one.policy.version == 2
    return work.go_on(one, work.CASES[name])


def assert_same_step(one: Any, other: Any) -> None:
    assert other[0] == pytest.approx(one[0], rel=1e-3, abs=1e-4)
    assert one[1].keys() == other[1].keys()
    assert worst(one[1].values(), other[1].values()) < 3e-5
    assert worst(one[2], other[2]) < 3e-4


@pytest.mark.parametrize("name", work.GONE_ON[4])
def test_four_go_on_from_what_two_have_saved(name: str, found: Any) -> None:
    """In the same way, and where one kind of group reads what the other kind has written."""
    source = name.partition(" from ")[2] or name
    assert_same_step(found(2, 0)[source]["next"], found(4, 0)[f"{name}, gone on"])


@pytest.mark.parametrize("name", work.GONE_ON[1])
def test_one_goes_on_from_what_two_have_saved(name: str, folder: Path, found: Any) -> None:
    assert_same_step(found(2, 0)[name]["next"], gone_on(folder, name))


def test_the_ordinary_engine_reads_it_too(folder: Path, found: Any, tmp_path: Path) -> None:
    config = work.CASES["fsdp-critic"]
    engine = LocalEngine(
        config, work.RUN, str(folder / "saved-fsdp-critic"), start(folder, "fsdp-critic"), 2, tmp_path / "scratch"
    )
    engine.learn(work.lesson(engine, config, 3), 3)
    theirs = found(2, 0)["fsdp-critic"]["next"][1]
    assert worst((p.detach() for p in engine.policy.model.parameters()), theirs.values()) < 3e-5


def test_learners_write_their_own_pieces_and_no_pickle(folder: Path) -> None:
    saved = folder / "saved-fsdp"
    pieces = sorted(path.name for path in moments.pieces(saved / "optimizer.safetensors").iterdir())
    assert len(pieces) == 2
    kinds = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert kinds <= {".safetensors", ".json", ".jinja"}


@pytest.mark.parametrize("name", ("fsdp", "fsdp-lora", "fsdp-critic"))
def test_a_checkpoint_exports_to_one_folder(name: str, folder: Path, found: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = folder / f"saved-{name}"  # an adapter names its base by the way to it, so the copy lies beside it

    def save(aside: Path) -> None:
        shutil.copytree(source, aside, dirs_exist_ok=True)

    saved = checkpoints.write(folder, 2, None, save)
    told = stockpot("export", saved.folder, "--out", tmp_path / "out")
    assert told.code == 0, told.err
    assert not checkpoints.problem(saved.folder)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(exported).__name__ == exported.config.architectures[0] == "Qwen3ForCausalLM"
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        models = (load_model(start(folder, name), CPU), load_model(str(saved.folder), CPU), exported)
        begun, read, out = (model(input_ids=ids).logits for model in models)
    assert torch.allclose(out, read, atol=1e-5)
    assert not torch.allclose(out, begun, atol=1e-3), "two steps were taken"
    scores = Policy(exported, Learner(dtype="float32")).score(work.rollouts(), "policy")
    assert worst(scores, found(2, 0)[name]["after"]) < 3e-5, "what the learners said themselves"


@pytest.mark.parametrize("name", ("optimizer", "reference"))
def test_a_checkpoint_with_a_piece_missing_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    """What one learner wrote is gone: the rest must not pass for the whole."""
    shutil.copytree(folder / "saved-fsdp", tmp_path / "saved")
    min(moments.pieces(tmp_path / "saved" / f"{name}.safetensors").iterdir()).unlink()
    with pytest.raises(StockpotError, match=r"another model|is missing in"):
        Rank(work.CASES["fsdp"], work.RUN, str(tmp_path / "saved"), str(folder / "model"), 2)


# --- shares ---------------------------------------------------------------------------------------------------------


def test_shares_are_even_and_complete() -> None:
    sizes = [5, 1, 4, 2, 2, 9, 1]
    for world in (1, 2, 3, 9):
        parts = shares(sizes, world)
        assert sorted(i for part in parts for i in part) == list(range(len(sizes)))
        loads = [sum(sizes[i] for i in part) for part in parts]
        assert max(loads) - min(loads) <= max(sizes)
    assert [sum(sizes[i] for i in part) for part in shares(sizes, 2)] == [12, 12]


def test_a_separate_critic_is_refused_in_one_line(folder: Path) -> None:
    config = replace(work.CASES["fsdp"], algorithm=PPO(critic=CriticOptions(kind="separate")))
    with pytest.raises(StockpotError, match="one process only"):
        Rank(config, work.RUN, str(folder / "model"), str(folder / "model"), rank=0, world=2, meeting="")
