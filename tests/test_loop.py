"""The loop on its real path: what the record says is what the history holds, and every option does something."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from runs import TINY, assert_same_bits, metrics, stockpot, trained, weights
from stockpot.algorithms import Reinforce
from stockpot.as_json import from_json, to_json
from stockpot.config import Config, Evaluation
from stockpot.diagnostics import PARTS
from stockpot.history import History
from stockpot.models import load_tokenizer
from stockpot.prefixes import FromHistory, NoPrefixes
from stockpot.prompts import load_prompts, pick
from stockpot.regularizers import KL, EntropyBonus
from stockpot.tasks import Dataset
from stockpot.tasks.dataset import load_function
from stockpot.train import train
from stockpot.types import KINDS, Author, Rollout
from tiny import Chatter, recipe

METRICS = Path(__file__).parents[1] / "docs" / "metrics.md"


def stored(run: Path, step: int | None = None) -> list[Rollout]:
    with History.open(run / "history.sqlite", read_only=True) as history:
        return list(history.find(versions=None if step is None else (step, step)))


def short(started: str, **changes: Any) -> Config:
    """Three steps from the taught model, without what a test does not ask for."""
    plain: dict[str, Any] = {"steps": 3, "entropy": EntropyBonus(), "kl": KL(), "prefixes": NoPrefixes()}
    return replace(recipe, **{"model": started, "evaluation": Evaluation(2, 2, 0), **plain, **changes})


# --- the record and the history -------------------------------------------------------------------------------------

every_step = pytest.mark.parametrize("step", range(recipe.steps))


@every_step
def test_rewards_and_lengths_add_up(step: int, finished: Path) -> None:
    """Every figure of a step, computed again from the rollouts of that step and nothing else."""
    rollouts, row = stored(finished, step), metrics(finished)[step + 1]
    size = recipe.group_size
    assert row["step"] == step + 1 and len(rollouts) == recipe.prompts_per_step * size
    texts = load_tokenizer(str(finished / "start")).batch_decode([list(r.tokens) for r in rollouts], True)
    rewards = [r.reward or 0.0 for r in rollouts]
    assert rewards == recipe.task.reward([], texts)
    assert row["reward/mean"] == sum(rewards) / len(rewards)
    groups = [rewards[i : i + size] for i in range(0, len(rewards), size)]
    assert row["reward/flat_groups"] == sum(len(set(g)) == 1 for g in groups) / len(groups)
    assert row["reward/unjudged"] == 0
    for name, some in (
        ("with", [r for r in rollouts if r.prefix_length]), ("without", [r for r in rollouts if not r.prefix_length])
    ):  # fmt: skip
        if some:
            assert row[f"reward/{name}_prefix"] == pytest.approx(sum(r.reward or 0 for r in some) / len(some))
    assert row["rollout/length"] == pytest.approx(sum(map(len, rollouts)) / len(rollouts))
    assert row["rollout/truncated"] == sum(r.finish == "length" for r in rollouts) / len(rollouts)
    assert row["rollout/decoded"] == sum(len(r) - r.prefix_length for r in rollouts)
    assert max(map(len, rollouts)) <= recipe.max_tokens
    assert row["all/tokens"] == sum(map(len, rollouts)), "every token of this recipe is trained"


@every_step
def test_prefixes_add_up_and_are_what_was_stored(step: int, finished: Path) -> None:
    """wanted = given + missing; every prefix is a stored rollout's head bit for bit, by its author, at a right age."""
    rollouts, row = stored(finished, step), metrics(finished)[step + 1]
    rule, size = recipe.prefixes, recipe.group_size
    given = [r for r in rollouts if r.prefix_length]
    assert row["prefix/share"] == len(given) / len(rollouts)
    assert row["prefix/tokens"] == sum(r.prefix_length for r in rollouts)
    assert len(given) + row["prefix/missing"] == recipe.prompts_per_step * rule.wanted(size, step)
    past = {s: {r.id for r in stored(finished, s)} for s in range(step)}
    with History.open(finished / "history.sqlite", read_only=True) as history:
        for rollout in given:
            heads = [span for span in rollout.spans if span.kind == "prefix"]
            (number,) = {span.source for span in heads}
            (source,) = history.read([number])  # type: ignore[list-item]
            length = rollout.prefix_length
            assert source.prompt == rollout.prompt and length < len(source)
            assert rollout.tokens[:length] == source.tokens[:length]
            assert by_token(rollout)[:length] == by_token(source)[:length]
            (written,) = (s for s, ids in past.items() if number in ids)
            assert rule.min_age <= step - written <= rule.max_age  # type: ignore[attr-defined]
            assert rollout.spans[-1].source is None and rollout.spans[-1].kind == "continuation"
    for i in range(0, len(rollouts), size):
        group = [{s.source for s in r.spans if s.kind == "prefix"} for r in rollouts[i : i + size] if r.prefix_length]
        assert len(set().union(*group)) == len(group), "no rollout serves twice in one group"
    if step >= 2:
        assert given, "from the second round over the prompts on there is something to start from"


def test_a_prefix_without_a_place_to_cut_is_counted_as_missing(started: str, tmp_path: Path) -> None:
    """Chosen in vain: between these fractions of a response there is no token. The group starts afresh."""
    rule = FromHistory(share=0.5, min_age=1, where="surprise", cut_low=0.0, cut_high=0.001)
    train(short(started, prefixes=rule), tmp_path / "run")
    rows = metrics(tmp_path / "run")[1:]
    assert [row["prefix/missing"] for row in rows] == [recipe.prompts_per_step * 2] * 3
    assert not any(r.prefix_length for r in stored(tmp_path / "run"))


def by_token(rollout: Rollout) -> list[tuple[Author, float, Any]]:
    """Author, log-prob and distribution of every token: all that a ratio needs to know."""
    return [(s.author, p, s.sampling) for s in rollout.spans for p in s.log_probs or ()]


@every_step
def test_live_tokens_are_signed_by_the_policy_that_wrote_them(step: int, finished: Path) -> None:
    for rollout in stored(finished, step):
        *heads, live = rollout.spans
        assert live.author == Author("run", step) and live.sampling == recipe.sampling
        assert live.log_probs is not None and max(live.log_probs) <= 0
        assert all(head.author.run == "run" and head.author.version < step for head in heads)  # type: ignore[operator]


def test_each_step_asks_its_prompts_in_groups(finished: Path) -> None:
    tokenizer = load_tokenizer(str(finished / "start"))
    prompts = load_prompts(recipe.task, "train", tokenizer, context=256, max_tokens=recipe.max_tokens)
    for step in range(recipe.steps):
        asked = pick(prompts, step, recipe.prompts_per_step, recipe.seed)
        expected = [prompt for prompt in asked for _ in range(recipe.group_size)]
        assert [r.prompt.key for r in stored(finished, step)] == [p.key for p in expected]


def test_evaluation_leaves_no_trace_in_training(finished: Path, started: str, tmp_path: Path) -> None:
    """It never writes to the history, and how often it happens changes not a bit of what is learned."""
    assert len(stored(finished)) == recipe.steps * recipe.prompts_per_step * recipe.group_size
    for name, how in (("often", Evaluation(samples=2, prompts=3, every=1)), ("seldom", Evaluation(1, 1, 0))):
        train(short(started, evaluation=how), tmp_path / name / "run")
    one, other = tmp_path / "often" / "run", tmp_path / "seldom" / "run"
    assert stored(one) == stored(other) and weights(one) == weights(other)
    assert [("test/pass@1" in row) for row in metrics(one)] == [True] * 4
    assert [("test/pass@1" in row) for row in metrics(other)] == [True, False, False, True]


# --- every figure is explained --------------------------------------------------------------------------------------


def documented(table: str) -> set[str]:
    """Names in the first column of the table under this heading; `/low` and `/high` stand in the text."""
    rows = METRICS.read_text().partition(f"| {table} |")[2].split("\n\n")[0].splitlines()
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1] if "|" in row else "")}


def plain(metric: str) -> str:
    """A metric as the page writes it: one row for all kinds of tokens and for all k."""
    metric = re.sub(r"^test/pass@\d+(/low|/high)?$", "test/pass@k", metric)
    return re.sub(r"^(all|continuation|prefix|demonstration|age/[^/]+)/", "…/", metric)


def test_every_metric_is_explained_and_every_explanation_is_of_a_metric(finished: Path) -> None:
    """The tiny recipe has every option on that adds a figure."""
    known = documented("metric")
    seen = {name for row in metrics(finished) for name in row}
    assert len(known) > 25
    unknown = {name for name in seen if name not in known and plain(name) not in known}
    assert not unknown, f"explain {unknown} in docs/metrics.md"
    parts = {name for name in known if name.startswith("age/") or name.endswith("/…")}
    assert parts == {f"{part}/…" for part in (*KINDS, "all", "age")} | set(PARTS[1 + len(KINDS) :])
    others = ("spo/", "reference/", "offline/", "value/", "test/distinct", "mismatch/corrected")
    elsewhere = {name for name in known if name.startswith(others)}  # test_spo, _ppo, _induction, _mismatch see to them
    missing = known - seen - {plain(name) for name in seen} - elsewhere
    assert missing == parts, "the page explains what no run writes"


def test_every_timing_is_explained(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "timings.jsonl").read_text().splitlines()]
    assert {name for row in rows for name in row} - {"step"} == documented("timing")
    assert all(value >= 0 for row in rows for value in row.values())


# --- options --------------------------------------------------------------------------------------------------------


def test_two_updates_a_step_share_its_rollouts(started: str, tmp_path: Path) -> None:
    """The first step samples the same rollouts; each update sees half of them, and the second is off-policy."""
    for count in (1, 2):
        train(short(started, updates_per_step=count, steps=2), tmp_path / str(count) / "run")
    one, two = (metrics(tmp_path / name / "run") for name in "12")
    assert stored(tmp_path / "1" / "run", 0) == stored(tmp_path / "2" / "run", 0)
    assert stored(tmp_path / "1" / "run", 1) != stored(tmp_path / "2" / "run", 1)
    assert two[1]["all/tokens"] == one[1]["all/tokens"] / 2, "a mean over the updates"
    assert one[1]["all/ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert two[1]["all/ratio_max"] > 1.001
    assert two[1]["reward/mean"] == one[1]["reward/mean"]


OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "entropy": {"entropy": EntropyBonus(0.05)},
    "frozen": {"kl": KL(0.5)},
    "frozen k2": {"kl": KL(0.5, estimator="k2")},
    "frozen k1, which goes into the advantage": {"kl": KL(0.5, estimator="k1")},
    "centred": {"kl": KL(0.5, estimator="k1", centred=True)},
    "moving": {"kl": KL(0.5, reference="ema", rate=0.5)},
    "moving every second step": {"kl": KL(0.5, reference="ema", rate=0.5, every=2)},
    "moving at once": {"kl": KL(0.5, reference="ema", rate=1.0)},
}


@pytest.fixture(scope="module")
def optional(started: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    runs = {name: tmp_path_factory.mktemp("option") / "run" for name in OPTIONS}
    for name, folder in runs.items():
        train(short(started, **OPTIONS[name]), folder)
    return runs


def test_every_option_changes_the_weights(optional: dict[str, Path]) -> None:
    """A reference that follows at once is the policy itself at every step: the one option that must do nothing."""
    learned = {name: weights(run)["model.safetensors"] for name, run in optional.items()}
    alike = [{a, b} for a in learned for b in learned if a < b and learned[a] == learned[b]]
    assert alike in ([], [{"nothing", "moving at once"}])
    assert {name for name, run in optional.items() if "reference.safetensors" in weights(run)} == {
        name for name, changes in OPTIONS.items() if "kl" in changes
    }


def test_the_distance_to_the_reference_is_told(optional: dict[str, Path], started: str) -> None:
    """Nothing at first; then a frozen reference stays behind and a moving one less so."""
    distance = {name: [row.get("kl_to_reference") for row in metrics(run)[1:]] for name, run in optional.items()}
    assert distance["nothing"] == [None] * 3 and distance["entropy"] == [None] * 3
    assert all(row[0] == pytest.approx(0, abs=1e-6) for row in distance.values() if row[0] is not None)
    assert distance["frozen"][2] > distance["moving"][2] > 1e-6
    assert distance["moving at once"][2] == pytest.approx(0, abs=1e-6)
    assert weights(optional["frozen"])["reference.safetensors"] != weights(optional["moving"])["reference.safetensors"]


@dataclass(frozen=True)
class Burst(Chatter):
    """One prompt's rewards are too large for a float32: the loss of a step that asks it is not finite."""

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        return [1e39 if prompt == self.rows("train")[0]["prompt"] else 1.0 for prompt in prompts]


def test_a_step_that_is_not_finite_is_skipped_told_and_counted(started: str, tmp_path: Path) -> None:
    """The weights stay as they were, the count survives a resume, and the run goes on."""
    task = Burst(train_prompts=8, test_prompts=8)
    config = short(started, task=task, algorithm=Reinforce(baseline=False), checkpoint_every=1, steps=4)
    assert from_json(to_json(config)) == config
    run = tmp_path / "one" / "run"
    train(replace(config, keep_checkpoints=9), run)
    kept = [(run / "checkpoints" / f"step-{i}" / "model.safetensors").read_bytes() for i in range(5)]
    asked = [{r.prompt.text for r in stored(run, step)} for step in range(4)]
    burst = [task.rows("train")[0]["prompt"] in texts for texts in asked]
    assert sum(burst) == 2, "eight prompts, four a step: every second step asks it"
    assert [kept[i] == kept[i + 1] for i in range(4)] == burst
    assert [row["grad_norm"] is None for row in metrics(run)[1:]] == burst, "what is not finite is null"
    counts = [row["skipped_steps"] for row in metrics(run)[1:]]
    assert counts == [sum(burst[: i + 1]) for i in range(4)]
    told = stockpot("resume", interrupted(run, tmp_path / "two"))
    assert told.complaints == [f"step {i + 1}: no update was made, the loss is inf" for i in range(2, 4) if burst[i]]
    assert_same_bits(run, tmp_path / "two" / "run")


def interrupted(run: Path, parent: Path) -> Path:
    """The same run as if it had been killed before its third step was over."""
    copied = Path(shutil.copytree(run, parent / "run"))
    for step in (3, 4):
        shutil.rmtree(copied / "checkpoints" / f"step-{step}")
    return copied


# --- any dataset, any judge -----------------------------------------------------------------------------------------

JUDGES = """\
CALLS = []

def plain(completions, answer, **kwargs):
    CALLS.append((completions, answer, kwargs))
    return [float(len(text.split()) % 2) for text in completions]

async def patient(prompts, completions, **kwargs):
    CALLS.append((completions, kwargs["answer"], {"prompts": prompts}))
    return [None if i % 4 == 0 else 1.0 for i in range(len(completions))]
"""
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}:{% endif %}"


@pytest.fixture
def chatting(started: str, tmp_path: Path) -> Path:
    """The taught model with a chat template, beside judges and two datasets, one of them conversational."""
    tokenizer = load_tokenizer(started)
    tokenizer.chat_template = TEMPLATE
    shutil.copytree(started, tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "judges.py").write_text(JUDGES)
    rows = [{"prompt": f"1 2 {i} make 9", "answer": str(i)} for i in range(3, 13)]
    chats = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    for name, lines in (("plain", rows), ("chats", chats)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def on_dataset(room: Path, data: str, judge: str) -> tuple[Path, list[Any]]:
    """A run from the command line on a dataset, and how its judge was called."""
    run, judge = room / data / "run", f"{room}/judges.py:{judge}"
    told = trained(
        "--task", "dataset", "--model", room / "model", "--task.train", room / f"{data}.jsonl", "--task.judge", judge,
        "--steps", 2, "--kl.coefficient", 0, "--max-tokens", 12, "--out", run,
    )  # fmt: skip
    assert "pass@1" in told.out
    return run, load_function(judge).__globals__["CALLS"]


def test_a_dataset_with_a_reward_function_of_trls_runs_from_the_command_line(chatting: Path) -> None:
    run, calls = on_dataset(chatting, "plain", "plain")
    completions, answers, others = calls[1]  # the first call judges the evaluation
    rollouts = stored(run, 0)
    assert [r.prompt.columns["answer"] for r in rollouts] == answers
    assert others["prompts"] == [r.prompt.text for r in rollouts]
    assert completions == load_tokenizer(str(chatting / "model")).batch_decode([list(r.tokens) for r in rollouts], True)
    assert [r.reward for r in rollouts] == [float(len(text.split()) % 2) for text in completions]
    assert {r.prompt.text for r in stored(run)} <= {f"1 2 {i} make 9" for i in range(3, 12)}, "the last row is held out"


def test_a_conversation_and_an_async_judge_run_from_the_command_line(chatting: Path) -> None:
    """What the judge cannot tell counts as 0 and is counted; the prompt's tokens are the template's."""
    run, calls = on_dataset(chatting, "chats", "patient")
    completions, _, others = calls[1]
    rollouts, row = stored(run, 0), metrics(run)[1]
    assert others["prompts"] == [r.prompt.columns["prompt"] for r in rollouts]
    assert all(m[0].keys() == {"role", "content"} and m[0]["role"] == "user" for m in others["prompts"])
    assert all(m[0].keys() == {"role", "content"} and m[0]["role"] == "assistant" for m in completions)
    assert row["reward/unjudged"] == len(rollouts) / 4
    assert [r.reward for r in rollouts] == [0.0, 1.0, 1.0, 1.0] * (len(rollouts) // 4)
    tokenizer = load_tokenizer(str(chatting / "model"))
    asked = rollouts[0].prompt
    assert tokenizer.decode(list(asked.tokens)) == asked.columns["prompt"][0]["content"] + " :"


def test_a_configuration_survives_its_file() -> None:
    """Every class and number; a class of a recipe file is found again by the file's path."""
    assert from_json(json.loads(json.dumps(to_json(recipe)))) == recipe
    told = to_json(Dataset(train="a.jsonl"))
    assert told == {"class": "stockpot.tasks.dataset:Dataset", "train": "a.jsonl", "test": "", "judge": "",
                    "template": "", "closing": "", "only": 0}  # fmt: skip
    from stockpot.config import load_recipe

    loaded = load_recipe(str(TINY))
    assert to_json(loaded.task)["class"] == f"{TINY}:Chatter"
    del sys.modules[str(TINY)]  # as in the process that resumes
    assert from_json(to_json(loaded)).task.rows("train") == loaded.task.rows("train")
