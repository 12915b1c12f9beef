"""An adapter taught from a file: only it learns, packed as if alone, the same bits after a kill, of use afterwards."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from runs import TINY, metrics, snapshot, stockpot
from stockpot import batching, lora
from stockpot.algorithms import Supervised
from stockpot.config import load_recipe
from stockpot.lora import LoRA
from stockpot.models import load_model, load_tokenizer
from stockpot.pens import fingerprint
from stockpot.policy import Learner, Policy
from stockpot.sft import Course, learn, load_examples, passes
from stockpot.tasks import Countdown
from stockpot.types import Rollout
from test_lora import stir
from test_resume import live
from test_sft import TOKENIZER, data

pytest.importorskip("peft")
CPU = torch.device("cpu")


def config(model: str, **changes: Any) -> Any:
    """The tiny recipe, teaching an adapter of a model."""
    recipe = load_recipe(str(TINY))
    learner = replace(recipe.learner, lora=LoRA(rank=4), **changes)
    return replace(recipe, model=model, learner=learner, start=replace(recipe.start, batch=8, learning_rate=2e-2))


def tensors(folder: str | Path) -> dict[str, Tensor]:
    """A model's parameters by name, an adapter's frozen ones under the names that they had without it."""
    own = load_model(str(folder), CPU).named_parameters()
    return {name.replace(".base_layer", ""): p.detach() for name, p in own}


# --- learning -------------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_the_base_stays_as_it_was(started: str, tmp_path: Path) -> None:
    before = snapshot(Path(started))
    told = learn(config(started), Course(data(tmp_path / "a"), epochs=8, pack=128), tmp_path / "out")
    assert told["losses"][-1] < told["losses"][0] - 0.3, told["losses"]
    assert snapshot(Path(started)) == before, "nothing is written to the base's folder"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {lora.CONFIG, lora.WEIGHTS, lora.BASE, "tokenizer.json", "training.json"} <= names
    assert "model.safetensors" not in names
    base, taught = tensors(started), tensors(tmp_path / "out")
    added = {name for name in taught if ".lora_" in name}
    assert taught.keys() - added == base.keys() and len(added) == 2 * 2 * 7
    assert all(torch.equal(taught[name], weight) for name, weight in base.items())
    assert all(taught[name].abs().max() > 0 for name in added), "every matrix of the adapter has learnt"
    assert json.loads((tmp_path / "out" / "training.json").read_text())["config"]["learner"]["lora"]["rank"] == 4


def test_the_first_loss_is_the_bases_own_and_the_seed_alone_decides(started: str, tmp_path: Path) -> None:
    """B is 0 at first, so the first loss is that of full training, to the bit; the draw of A hangs on the seed."""
    course, losses = Course(data(tmp_path / "a", 8), epochs=3, pack=128), []
    whole = replace(config(started), learner=replace(config(started).learner, lora=LoRA()))
    for number, one in enumerate((config(started), config(started), replace(config(started), seed=1), whole)):
        losses.append(learn(one, course, tmp_path / f"out-{number}")["losses"])
    assert losses[0] == losses[1] and abs(losses[0][1] - losses[2][1]) > 1e-4
    assert len({round(some[0], 6) for some in losses}) == 1 and losses[3][1:] != losses[0][1:]


def gradient(policy: Policy, some: list[Rollout], pack: int, budget: int) -> dict[str, Tensor]:
    """What a step on these examples would go along, by parameter."""
    found: dict[str, Tensor] = {}

    def keep() -> float:
        found.update({n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None})
        return 1.0

    policy._step = keep  # type: ignore[method-assign]
    batches = list(passes(some, pack, budget, policy))
    assert pack < 100 or any(batch.packed for batch in batches), "a guard: rows are really shared"
    policy.update(batches, Supervised(), batching.totals(some, max(map(len, some))), watch=False)
    return found


def test_packing_changes_no_gradient_of_the_adapter(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Countdown().model_config()).double()
    policy = Policy(model, Learner(lora=LoRA(rank=3)), pad=0)
    stir(model, 2)
    some, _ = load_examples(data(tmp_path / "a"), TOKENIZER, 256)
    alone = gradient(policy, some, 0, 256)
    assert set(alone) == {name for name, _ in lora.moving(model)}
    assert min(float(g.abs().max()) for g in alone.values()) > 1e-6
    for pack, budget in ((128, 2048), (100, 100), (40, 500)):
        packed = gradient(policy, some, pack, budget)
        assert packed.keys() == alone.keys()
        for name, expected in alone.items():
            assert torch.allclose(packed[name], expected, rtol=1e-8, atol=1e-11), (pack, name)


def test_frozen_weights_in_half_the_bytes(started: str, tmp_path: Path) -> None:
    """As on a GPU: matrices in bfloat16, the base kept in it, the adapter in float32."""
    course = Course(data(tmp_path / "a"), epochs=6, pack=128)
    told = learn(config(started, dtype="bfloat16"), course, tmp_path / "out")
    assert told["losses"][-1] < told["losses"][0] - 0.2
    from safetensors.torch import load_file

    assert {weight.dtype for weight in load_file(tmp_path / "out" / lora.WEIGHTS).values()} == {torch.float32}


# --- killed ---------------------------------------------------------------------------------------------------------


def test_killed_and_begun_again_it_ends_in_the_same_bits(started: str, tmp_path: Path) -> None:
    """The base stands beside what is written, and is named by a path that others find."""
    file, base = data(tmp_path / "a", 40), shutil.copytree(started, tmp_path / "base")

    def words(name: str) -> list[str]:
        given = ["--data", str(file), "--epochs", "2", "--start.batch", "8", "--checkpoint", "3", "--pack", "100"]
        given += ["--model", "base", "--learner.lora.rank", "3", "--start.learning-rate", "0.02"]
        return ["sft", str(TINY), "--out", name, *given]

    moments = ["", "stockpot.sft:_step:5", "stockpot.lora:save_file:1", "stockpot.lora:save_file:2", ""]
    lives: Any = [(m, 0, words("killed" if n else "straight")) for n, m in enumerate(moments)]
    codes, said = live(lives, tmp_path)
    assert codes == [0, *[-signal.SIGKILL] * 3, 0], said.err
    one, other = snapshot(tmp_path / "straight"), snapshot(tmp_path / "killed")
    assert one == other and len(json.loads(one["training.json"])["losses"]) == 10
    assert json.loads(one[lora.CONFIG])["base_model_name_or_path"] == str(base)
    assert not list(tmp_path.glob(".killed*"))


# --- and then -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(started: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter's folder, by the command. Look, do not touch."""
    folder = tmp_path_factory.mktemp("taught")
    words = ("--model", started, "--learner.lora.rank", 3, "--start.learning-rate", 0.02, "--start.batch", 8)
    told = stockpot("sft", TINY, "--data", data(folder / "a"), "--epochs", 3, "--out", folder / "out", *words)
    assert told.code == 0, told.err
    return folder / "out"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_reads_it(taught: Path, started: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(started), str(taught)).eval()
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        said, own, base = (m(ids).logits for m in (theirs, load_model(str(taught), CPU), load_model(started, CPU)))
    assert torch.allclose(said, own, atol=1e-5) and not torch.allclose(said, base, atol=0.05)


def test_training_goes_on_from_it_directly_and_from_its_export(taught: Path, started: str, tmp_path: Path) -> None:
    """Directly it is merged, its own frozen reference too, so that the KL begins at exactly 0. A new adapter wants
    the export; and both ways begin at the same policy."""
    told = stockpot("export", taught, "--out", tmp_path / "whole")
    assert told.code == 0 and f"{taught} is in {tmp_path / 'whole'}, in float32" in told.err
    assert not lora.base_of(tmp_path / "whole") and load_tokenizer(str(tmp_path / "whole"))
    short = ("--steps", 2, "--kl.reference", "frozen", "--prefixes", "none", "--evaluation.every", 1)
    begun = {}
    for name, model in (("direct", taught), ("exported", tmp_path / "whole")):
        told = stockpot("train", TINY, "--model", model, "--out", tmp_path / name, *short)
        assert told.code == 0, told.err
        begun[name] = metrics(tmp_path / name)
        assert next(row["kl_to_reference"] for row in begun[name] if "kl_to_reference" in row) == 0
    assert begun["direct"] == begun["exported"]
    told = stockpot("train", TINY, "--model", taught, "--learner.lora.rank", 2, "--out", tmp_path / "no")
    assert told.code == 2 and "is an adapter itself: `stockpot export` it" in told.err
    words = ("--model", tmp_path / "whole", "--learner.lora.rank", 2, "--out", tmp_path / "yes")
    told = stockpot("train", TINY, *words, *short)
    assert told.code == 0, told.err
    again = stockpot("export", taught, "--out", tmp_path / "b", "--step", 3)
    assert again.code == 2 and "is one adapter: --step is for a run" in again.err


def test_what_an_adapter_wrote_is_not_taken_for_anothers(taught: Path, started: str, tmp_path: Path) -> None:
    """Shelves know a model by its weights: an adapter's are its own and its base's, wherever they lie."""
    other, base = Path(shutil.copytree(taught, tmp_path / "other")), Path(shutil.copytree(started, tmp_path / "base"))
    own = fingerprint(str(taught))
    assert own == fingerprint(str(other)) != fingerprint(started) == fingerprint(str(base))
    told = json.loads((other / lora.CONFIG).read_text())
    (other / lora.CONFIG).write_text(json.dumps(told | {"base_model_name_or_path": str(base)}))
    model = load_model(str(other), CPU)
    stir(model, 5)
    lora.save(model, Path(shutil.copytree(other, tmp_path / "stirred")))
    assert fingerprint(str(tmp_path / "stirred")) != own
    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes() + b" ")
    fingerprint.cache_clear()
    assert fingerprint(str(other)) != own


def test_full_teaching_of_an_adapter_teaches_the_whole(taught: Path, tmp_path: Path) -> None:
    """Rank 0 on a folder that holds an adapter: merged, and then all of it learns."""
    one = replace(config(str(taught)), learner=Learner())
    learn(one, Course(data(tmp_path / "a", 8), epochs=1), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists() and not lora.base_of(tmp_path / "out")
    assert not lora.adapted(load_model(str(tmp_path / "out"), CPU))


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_begin_is_refused_in_one_line(
    taught: Path, started: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = data(tmp_path / "a", 8)

    def refused(*words: object) -> str:
        told = stockpot("sft", TINY, "--out", tmp_path / "out", *words)
        assert told.code == 2 and told.out == "" and told.err.count("\n") == 1, told.err
        assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".out*"))
        return told.err

    low = ("--learner.lora.rank", 2)
    assert "name it with --model" in refused("--data", file, *low)
    assert "name examples with --data" in refused(*low) and "name examples with --data" in refused("--model", started)
    assert "is an adapter itself: `stockpot export` it" in refused("--data", file, "--model", taught, *low)
    assert "no linear layer c_attn" in refused(
        "--data", file, "--model", started, *low, "--learner.lora.targets", "c_attn"
    )
    monkeypatch.setitem(sys.modules, "peft", None)
    assert 'pip install "stockpot[lora]"' in refused("--data", file, "--model", started, *low)
