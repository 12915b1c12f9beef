"""The supervised start from a file: packed as if alone, the loss on the response alone, the same bits after a kill."""

from __future__ import annotations

import json
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import TINY, snapshot, stockpot
from stockpot.config import load_recipe
from stockpot.models import load_model, load_tokenizer
from stockpot.policy import Learner, Policy
from stockpot.sft import Course, learn, load_examples, passes
from stockpot.tasks import Countdown
from stockpot.types import Rollout
from test_resume import live

TOKENIZER = Countdown().tokenizer()


def data(path: Path, count: int = 20) -> Path:
    pairs = islice(Countdown().demonstrations(seed=5), count)
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs))
    return path


@pytest.fixture(scope="module")
def policy() -> Policy:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return Policy(AutoModelForCausalLM.from_config(Countdown().model_config()), Learner(), pad=0)


def scored(policy: Policy, some: list[Rollout], pack: int, budget: int) -> dict[tuple[int, ...], list[float]]:
    """Log-probs of each example's response tokens, by the example."""
    found = {}
    for batch in passes(some, pack, budget, policy):
        with torch.no_grad():
            log_probs, _ = policy.log_probs(batch)
        for number in range(batch.size):
            mine = batch.rollout == number
            found[tuple(batch.tokens[mine].tolist())] = log_probs[mine].tolist()
    return found


@pytest.mark.parametrize(("pack", "budget"), [(128, 2048), (100, 100), (40, 500), (1, 300)])
def test_packed_examples_do_not_see_each_other(policy: Policy, tmp_path: Path, pack: int, budget: int) -> None:
    """The same log-probs as in rows of their own, and none is lost: each response's own stop token included."""
    some, dropped = load_examples(data(tmp_path / "a"), TOKENIZER, 256)
    assert not dropped and len({tuple(r.tokens) for r in some}) == len(some) == 20
    alone, packed = scored(policy, some, 0, 2048), scored(policy, some, pack, budget)
    assert packed.keys() == alone.keys() == {tuple(r.tokens) for r in some}
    for tokens, expected in alone.items():
        assert tokens[-1] == TOKENIZER.eos_token_id
        assert packed[tokens] == pytest.approx(expected, abs=1e-5)
    if pack == 128:
        assert any(batch.packed for batch in passes(some, pack, budget, policy)), "a guard: rows are really shared"


def test_passes_stay_within_the_budget_of_tokens(policy: Policy, tmp_path: Path) -> None:
    some, _ = load_examples(data(tmp_path / "a", 60), TOKENIZER, 256)
    assert sum(len(r.prompt.tokens) + len(r) for r in some) > 3 * 512, "a guard"
    for batch in passes(some, 128, 512, policy):
        assert int((batch.segments >= 0).sum()) <= 512
        assert batch.ids.shape[1] <= 128


def config(**changes: Any) -> Any:
    from dataclasses import replace

    recipe = load_recipe(str(TINY))
    return replace(recipe, start=replace(recipe.start, batch=8, learning_rate=4e-3), **changes)


def test_the_loss_is_the_responses_alone(tmp_path: Path) -> None:
    """The first loss is that of the model as it was made, counted by hand on response tokens; and it falls."""
    course = Course(data(tmp_path / "a", 8), epochs=6, pack=128)
    told = learn(config(), course, tmp_path / "out")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config().task.model_config()).eval()
    some, _ = load_examples(course.data, TOKENIZER, 256)
    total, count = 0.0, 0
    for rollout in some:
        first = len(rollout.prompt.tokens)
        ids = torch.tensor([[*rollout.prompt.tokens, *rollout.tokens]])
        with torch.no_grad():
            log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
        total -= sum(log_probs[first + i - 1, token].item() for i, token in enumerate(rollout.tokens))
        count += len(rollout)
    assert told["losses"][0] == pytest.approx(total / count, rel=1e-4)
    assert told["response_tokens"] == count and told["steps"] == len(told["losses"]) == 6
    assert told["losses"][-1] < told["losses"][0] - 1
    assert json.loads((tmp_path / "out" / "training.json").read_text())["losses"] == told["losses"]
    assert not list(tmp_path.glob(".out*")), "nothing is left beside it"


def test_killed_and_begun_again_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    file = data(tmp_path / "a", 40)

    def words(name: str) -> list[str]:
        given = ["--data", str(file), "--epochs", "2", "--start.batch", "8", "--checkpoint", "3", "--pack", "100"]
        return ["sft", str(TINY), "--out", str(tmp_path / name), *given]

    told = stockpot(*words("straight"))
    assert told.code == 0, told.err
    moments = ["stockpot.sft:_step:2", "stockpot.sft:_step:6", "stockpot.checkpoints:_flush:3", "pathlib:Path.rename:1"]
    codes, said = live([*[(m, 0, words("killed")) for m in moments], ("", 0, words("killed"))], tmp_path)
    assert codes == [-signal.SIGKILL] * 4 + [0], said.err
    one, other = snapshot(tmp_path / "straight"), snapshot(tmp_path / "killed")
    assert one == other and len(json.loads(one["training.json"])["losses"]) == 10
    taught = load_model(str(tmp_path / "killed"), torch.device("cpu"))
    assert load_tokenizer(str(tmp_path / "killed")).get_vocab() == TOKENIZER.get_vocab()
    assert taught.config.model_type == "qwen3"
    again = stockpot(*words("killed"))
    assert again.code == 2 and "already holds something" in again.err


def test_a_model_is_taught_further(started: str, tmp_path: Path) -> None:
    """--model: it goes on from there, in text and in messages alike."""
    file, chats = data(tmp_path / "a", 8), tmp_path / "b"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    chats.write_text(
        "".join(
            json.dumps({"prompt": row["prompt"], "completion": [{"role": "assistant", "content": row["completion"]}]})
            + "\n"
            for row in lines
        )
    )
    losses = []
    for name in (file, chats):
        told = learn(config(model=started), Course(name, epochs=1, pack=0), tmp_path / f"out-{name.name}")
        losses.append(told["losses"])
    assert losses[0] == losses[1] and losses[0][0] < 3, "it has learnt before"


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data(tmp_path / "a", 4).read_text().splitlines()]
    rows += [{"prompt": rows[0]["prompt"], "completion": ""}, {"prompt": "1", "completion": "2 " * 300}]
    (tmp_path / "a").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = stockpot("sft", TINY, "--data", tmp_path / "a", "--epochs", 1, "--out", tmp_path / "out")
    assert told.code == 0
    assert "1 of 5 examples were left out: no text in the completion" in told.err
    assert "1 of 5 examples were left out: longer than the model's context of 256 tokens" in told.err
    assert json.loads((tmp_path / "out" / "training.json").read_text())["examples"] == 4


def test_what_cannot_begin_is_refused_in_one_line(tmp_path: Path) -> None:
    def refused(*words: object) -> str:
        told = stockpot("sft", TINY, "--out", tmp_path / "out", *words)
        assert told.code == 2 and told.out == "" and told.err.count("\n") == 1, told.err
        return told.err

    (tmp_path / "bad").write_text("nonsense\n")
    (tmp_path / "empty").write_text("")
    (tmp_path / "other").write_text('{"text": "a"}\n')
    assert "no file of examples" in refused("--data", tmp_path / "none")
    assert "is not JSON lines" in refused("--data", tmp_path / "bad")
    assert "no example that can be taught" in refused("--data", tmp_path / "empty")
    assert "line 1 of" in refused("--data", tmp_path / "other")
    assert "--epochs must be above 0" in refused("--data", tmp_path / "bad", "--epochs", 0)
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".out*"))
    file = data(tmp_path / "a", 40)
    codes, _ = live(
        [("stockpot.sft:_step:2", 0, ["sft", str(TINY), "--out", str(tmp_path / "out"), "--data", str(file)])], tmp_path
    )
    assert codes == [-signal.SIGKILL]
    assert "unfinished start with other data or options" in refused("--data", file, "--epochs", 7)
