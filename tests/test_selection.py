"""What a step trains on: parts of groups, groups asked again, and the record of both."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import pvariance
from typing import Any

import pytest

from runs import assert_same_bits, metrics, stockpot
from stockpot.algorithms import PPO, RLOO, SPO
from stockpot.algorithms.base import CriticOptions
from stockpot.config import Config
from stockpot.engines.base import Lesson
from stockpot.engines.local import LocalEngine
from stockpot.history import History, fingerprint
from stockpot.models import load_tokenizer
from stockpot.prefixes import Experience, FromHistory, Offline
from stockpot.prompts import further, load_prompts, only, pick
from stockpot.regularizers import KL
from stockpot.selection import Select, flat
from stockpot.tasks import Countdown
from stockpot.train import train
from stockpot.types import Author, Group, Prompt, Rollout, Span, StockpotError
from stockpot.written import Written
from test_loop import documented, short, stored
from test_resume import live
from tiny import Chatter

REFILL = ("rollout/asked", "rollout/dropped_groups", "rollout/filled_groups")


def group(rewards: Sequence[float]) -> Group:
    prompt = Prompt("p", [1])
    rollouts = (Rollout(prompt, (Span(Author("r", 0), [i], [-1.0]),), reward) for i, reward in enumerate(rewards))
    return Group(prompt, tuple(rollouts))


def drawn(rng: random.Random, count: int) -> list[float]:
    return [rng.choice((-1.0, 0.0, 0.0, 0.0, 0.5, 1.0)) for _ in range(count)]


# --- a part of a group ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["balanced", "max-variance", "random"])
def test_a_part_has_its_size_and_nothing_twice(how: Any) -> None:
    rng = random.Random(1)
    for _ in range(200):
        size = rng.choice((1, 2, 4, 8))
        rewards = drawn(rng, 8)
        chosen = Select(size, how).choose(rewards, random.Random(5))
        assert len(set(chosen)) == size and chosen == sorted(chosen) and set(chosen) <= set(range(8))
        assert chosen == Select(size, how).choose(rewards, random.Random(5)), "chance is in the numbers it was given"


def test_a_balanced_part_has_as_many_above_the_mean_as_not_where_there_are_so_many() -> None:
    rng = random.Random(2)
    seen = Counter[bool]()
    for _ in range(300):
        rewards = drawn(rng, 8)
        mean = sum(rewards) / 8
        high = sum(r > mean for r in rewards)
        kept = [rewards[i] for i in Select(4, "balanced").choose(rewards, rng)]
        above = sum(r > mean for r in kept)
        assert above == (2 if 2 <= high <= 6 else high if high < 2 else 4 - (8 - high))
        seen[above == 2] += 1
    assert min(seen[True], seen[False]) > 10, "both cases were met"


def test_no_part_has_rewards_that_vary_more() -> None:
    """Against all 70 parts of four."""
    rng = random.Random(3)
    for _ in range(60):
        rewards = [*drawn(rng, 5), *(rng.random() for _ in range(3))]
        chosen = Select(4, "max-variance").choose(rewards, rng)
        most = max(pvariance(part) for part in combinations(rewards, 4))
        assert pvariance([rewards[i] for i in chosen]) == pytest.approx(most)


@pytest.mark.parametrize("how", ["balanced", "max-variance", "random"])
def test_equal_rewards_are_chosen_by_chance_and_not_by_their_place(how: Any) -> None:
    """The first places of a group are those with prefixes: none may be favoured."""
    rng = random.Random(4)
    found = Counter(i for _ in range(800) for i in Select(2, how).choose([1.0, 0.0] * 4, rng))
    assert all(150 < found[i] < 250 for i in range(8)), found


def test_without_a_size_nothing_changes() -> None:
    groups = [group([1.0, 0.0, 0.5]), group([0.0, 0.0, 0.0])]
    rng = random.Random(0)
    before = rng.getstate()
    parts, advantages = Select()(groups, RLOO().advantages, rng)
    assert parts == groups == Select().batch(groups, 1)
    assert advantages == [a for g in groups for a in RLOO().advantages(g)]
    assert Select().metrics(groups, groups, groups[0].rollouts) == {} and rng.getstate() == before


def test_advantages_come_from_the_whole_group_or_from_the_part() -> None:
    whole = group([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    of_all = RLOO().advantages(whole)
    (part,), kept = Select(2, "balanced")([whole], RLOO().advantages, random.Random(0))
    assert part.rewards == [1.0, 0.0]
    assert kept == [of_all[r.tokens[0]] for r in part.rollouts] == pytest.approx([1.0, -1 / 7])
    same, own = Select(2, "balanced", "subset")([whole], RLOO().advantages, random.Random(0))
    assert same == [part] and own == [1.0, -1.0]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"select": Select(16, "random"), "group_size": 8}, "select.size is 16, but group_size is only 8"),
    ({"select": Select(3, "random"), "group_size": 8}, "group_size is 8, no multiple of select.size 3"),
    ({"select": Select(1, "random", "subset")}, "a subset of one has nothing to compare with"),
    ({"select": Select(refill=1), "prefixes": Experience()}, "Experience chooses the prompts itself"),
    ({"select": Select(refill=1), "algorithm": SPO()}, "SPO learns from them: set select.refill to 0"),
    ({"select": Select(refill=1), "algorithm": PPO()}, "PPO learns from them: set select.refill to 0"),
    ({"select": Select(2, "random", "subset"), "algorithm": SPO()}, "SPO's Q0 is the prompt's own"),
]


@pytest.mark.parametrize(("changes", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_what_cannot_be_is_refused_in_one_line(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(StockpotError) as told:
        Config(**changes)
    assert why in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "words", ["--select.size 4", "--select.how balanced", "--select.size -1", "--select.refill -1"]
)
def test_half_an_option_is_refused_at_the_command_line(words: str, tmp_path: Path) -> None:
    told = stockpot("train", *words.split(), "--out", tmp_path / "run")
    assert told.code == 2 and told.err.count("\n") == 1 and "select." in told.err
    assert not list(tmp_path.iterdir())


# --- groups that teach nothing --------------------------------------------------------------------------------------


def test_flat_groups_make_way_and_fill_up_only_where_others_are_too_few() -> None:
    steep, level = group([0.0, 1.0]), group([1.0, 1.0])
    groups = [level, steep, group([0.0, 0.0]), steep, steep]
    assert [flat(g) for g in groups] == [True, False, True, False, False]
    assert Select(refill=1).batch(groups, 3) == [steep, steep, steep]
    assert Select(refill=1).batch(groups, 4) == [level, steep, steep, steep], "in their order"
    assert Select(refill=1).batch(groups[:3], 2) == [level, steep]
    told = Select(refill=1).metrics(groups, Select(refill=1).batch(groups, 4), ())
    assert told == dict(zip(REFILL, (5.0, 1.0, 1.0), strict=True))


def test_further_prompts_are_new_to_the_step_and_follow_from_its_number() -> None:
    prompts = [Prompt(str(i), [i]) for i in range(40)]
    asked = pick(prompts, 3, 8, seed=1)
    more = further(prompts, asked, 3, 5, seed=1)
    assert len({p.key for p in [*asked, *more]}) == 13
    assert more == further(prompts, asked, 3, 5, seed=1) != further(prompts, asked, 4, 5, seed=1)
    assert further(prompts, [*asked, *more], 3, 2, seed=1) == further(prompts, asked, 3, 7, seed=1)[5:]
    assert len(further(prompts, asked, 3, 99, seed=1)) == 32 and further(prompts, asked, 3, 0, seed=1) == []


@dataclass(frozen=True)
class Stern(Chatter):
    """Every prompt with an odd target earns nothing: some groups are flat whatever is written."""

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        given = super().reward(prompts, completions, **columns)
        return [r * (target % 2 == 0) for r, target in zip(given, columns["target"], strict=True)]


@dataclass(frozen=True)
class Hopeless(Chatter):
    """Nothing is ever right."""

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        return [0.0] * len(completions)


STERN = Stern(largest=9, train_prompts=40, test_prompts=8)


@pytest.fixture(scope="module")
def refilled(started: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds more, a part of each group, prefixes, and a KL that counts in the advantage."""
    folder = tmp_path_factory.mktemp("refilled") / "run"
    select = Select(2, "max-variance", refill=2)
    kl = KL(0.02, estimator="k1", centred=True)
    train(short(started, task=STERN, steps=4, select=select, kl=kl, prefixes=FromHistory(0.5, min_age=1)), folder)
    return folder


def test_a_refilled_step_is_full_and_all_that_it_cost_is_stored_and_shown(refilled: Path) -> None:
    dropped = 0.0
    for step, row in enumerate(metrics(refilled)[1:]):
        rollouts = stored(refilled, step)
        groups = [Group(rollouts[i].prompt, tuple(rollouts[i : i + 4])) for i in range(0, len(rollouts), 4)]
        assert all({r.prompt.key for r in g.rollouts} == {g.prompt.key} for g in groups)
        assert len({g.prompt.key for g in groups}) == len(groups) == row["rollout/asked"], "none is asked twice"
        assert row["rollout/dropped_groups"] == len(groups) - 4
        assert row["rollout/filled_groups"] == max(0, 4 - sum(not flat(g) for g in groups))
        assert row["rollout/decoded"] == sum(len(r) - r.prefix_length for r in rollouts)
        assert row["reward/flat_groups"] == sum(map(flat, groups)) / len(groups)
        assert row["reward/mean"] == pytest.approx(sum(r.reward or 0.0 for r in rollouts) / len(rollouts))
        batch = Select(2, "random", refill=2).batch(groups, 4)
        assert row["select/kept"] == row["select/dropped"] == 8
        kept, lost = row["select/reward_kept"] * 8, row["select/reward_dropped"] * 8
        assert kept + lost == pytest.approx(sum(sum(g.rewards) for g in batch))
        assert row["all/tokens"] < sum(len(r) for g in batch for r in g.rollouts)
        dropped += row["rollout/dropped_groups"]
    assert dropped > 0, "or the test saw nothing"
    assert any(row["prefix/share"] > 0 for row in metrics(refilled)[1:])


def test_its_metrics_are_the_ones_explained(refilled: Path) -> None:
    seen = {name for row in metrics(refilled) for name in row if name in REFILL or name.startswith("select/")}
    assert seen == documented("selection")


def test_the_first_round_asks_what_a_run_without_it_asks(refilled: Path, started: str) -> None:
    """So two runs differ by what was done about flat groups, and by nothing else."""
    asked = load_prompts(STERN, "train", load_tokenizer(started), context=256, max_tokens=32)
    for step in range(4):
        first = [r.prompt.key for r in stored(refilled, step)[:16:4]]
        assert first == [p.key for p in pick(asked, step, 4, 0)]


def test_rounds_are_bounded_and_an_empty_handed_step_still_is_one(started: str, tmp_path: Path) -> None:
    """Three rounds of four prompts; two where there are no more than eight."""
    for name, count, asked in (("many", 40, 12), ("few", 8, 8)):
        task = Hopeless(largest=9, train_prompts=count, test_prompts=8)
        train(short(started, task=task, steps=2, select=Select(refill=2)), tmp_path / name / "run")
        for step, row in enumerate(metrics(tmp_path / name / "run")[1:]):
            assert [row[metric] for metric in REFILL] == [asked, asked - 4, 4]
            assert len(stored(tmp_path / name / "run", step)) == asked * 4
            assert row["all/advantage_abs"] == 0 == row["grad_norm"]


def test_where_no_group_is_flat_refill_changes_no_bit(started: str, tmp_path: Path) -> None:
    """A reward that is hardly ever the same twice."""
    for name, select in (("with", Select(refill=2)), ("without", Select())):
        train(short(started, task=Counted(train_prompts=8, test_prompts=8), select=select), tmp_path / name / "run")
    one, other = metrics(tmp_path / "with" / "run"), metrics(tmp_path / "without" / "run")
    assert [{k: v for k, v in row.items() if k not in REFILL} for row in one] == other
    assert [row["rollout/dropped_groups"] for row in one[1:]] == [0] * 3


@dataclass(frozen=True)
class Counted(Chatter):
    """Longer is better."""

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        return [sum(map(ord, completion)) / 1e4 for completion in completions]


KILLED = [
    "--select.size", "2", "--select.how", "balanced", "--select.refill", "2", "--kl.estimator", "k1", "--steps", "4",
]  # fmt: skip


def test_killed_in_a_further_round_it_ends_in_the_same_bits(started: str, tmp_path: Path) -> None:
    """The tiny recipe with prompts enough to ask; struck down before the second step's batch is whole."""
    recipe = tmp_path / "stern.py"
    recipe.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from dataclasses import replace\nfrom tiny import recipe\nfrom test_selection import STERN\n"
        "recipe = replace(recipe, task=STERN)\n"
    )
    words = ["train", str(recipe), "--model", started, *KILLED]
    one, other = tmp_path / "one" / "run", tmp_path / "other" / "run"
    codes, told = live(
        [
            ("", 0, [*words, "--out", str(one)]),
            ("stockpot.written:Written.__add__:4", 0, [*words, "--out", str(other)]),
            ("", 0, ["resume", str(other)]),
        ],
        tmp_path,
    )
    assert codes == [0, -9, 0], told.err
    assert_same_bits(one, other)


# --- only some prompts ----------------------------------------------------------------------------------------------


def test_only_the_prompts_named_are_trained_on(started: str, tmp_path: Path) -> None:
    task = replace(STERN, train_prompts=8)
    prompts = load_prompts(task, "train", load_tokenizer(started), context=256, max_tokens=32)
    file = tmp_path / "some.jsonl"
    file.write_text("".join(f'{{"id": "{p.key}", "pass_rate": 0.25}}\n' for p in prompts[2:5]))
    assert only(prompts, str(file)) == prompts[2:5] and only(prompts, "") == prompts
    run = tmp_path / "run"
    train(short(started, task=task, only=str(file), prompts_per_step=3), run)
    assert {r.prompt.key for r in stored(run)} == {p.key for p in prompts[2:5]}
    with History.open(run / "history.sqlite", read_only=True) as history:
        assert history.summary()["rollouts"] == 3 * 3 * 4


STRANGE = {
    "nowhere": (None, "cannot read"),
    "no json": ("{oops\n", 'lines with an "id"'),
    "no id": ('{"prompt": "x"}\n', 'lines with an "id"'),
    "no object": ("[1]\n", 'lines with an "id"'),
    "empty": ("\n", "names no prompt"),
    "another task": ('{"id": "strange"}\n', "1 of the 1 prompts in"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_file_that_names_no_prompts_is_refused_before_anything_is_taught(name: str, tmp_path: Path) -> None:
    text, why = STRANGE[name]
    if text is not None:
        (tmp_path / "file.jsonl").write_text(text)
    told = stockpot("train", "--only", tmp_path / "file.jsonl", "--out", tmp_path / "run")
    assert told.code == 2 and told.err.count("\n") == 1 and why in told.err, told.err
    assert not (tmp_path / "run").exists()


# --- trial and error ------------------------------------------------------------------------------------------------


def test_countdown_sees_who_recovers() -> None:
    no, yes = "1 + 1 = 2 , 2 + 1 = 3 vs 4 no", "2 * 2 = 4 , 4 * 1 = 4 vs 4 yes"
    texts = [f"{no} {yes} answer", f"{no} answer", f"{yes} answer", f"{no} {no} {yes} answer", ""]
    told = Countdown().observe(texts, [1.0, 0.0, 1.0, 0.0, 0.0])
    assert told == {"attempts": 7 / 5, "rejected": 3 / 5, "recovered": 1 / 5}


def test_its_figures_are_in_the_record_and_those_of_held_out_prompts_too(finished: Path) -> None:
    """Counted again from the stored rollouts; penalties do not change them."""
    tokenizer = load_tokenizer(str(finished / "start"))
    for step in range(2):
        texts = tokenizer.batch_decode([list(r.tokens) for r in stored(finished, step)], skip_special_tokens=True)
        row = metrics(finished)[step + 1]
        assert row["rollout/attempts"] == pytest.approx(sum(len(re.findall(r"\bvs\b", t)) for t in texts) / len(texts))
        assert 0 <= row["rollout/recovered"] <= row["rollout/rejected"] <= 1
    assert {"test/attempts", "test/rejected", "test/recovered"} <= metrics(finished)[0].keys()


# --- with what came beside it -----------------------------------------------------------------------------------------


def watched(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Lesson]:
    """What each update of a run was taught."""
    seen: list[Lesson] = []
    learn = LocalEngine.learn

    def spy(self: LocalEngine, lesson: Lesson, seed: int) -> Any:
        seen.append(lesson)
        return learn(self, lesson, seed)

    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "learn", spy)
        train(config, folder)
    return seen


@pytest.mark.parametrize("q0", ["reference", "online", "group"])
def test_spo_trains_on_a_part_and_its_q0_knows_the_whole_group(
    q0: Any, started: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part's log-probs are the reference's of those rollouts; in a group all advantages take the same off."""
    config = short(
        started, algorithm=SPO(q0=q0, samples=4), select=Select(2, "max-variance"), updates_per_step=2, decode_rows=16
    )
    lessons = watched(config, tmp_path / "run", monkeypatch)
    assert [len(lesson.rollouts) for lesson in lessons] == [4] * 6
    dropped = 0
    with History.open(tmp_path / "run" / "history.sqlite", read_only=True) as history:
        for step in range(3):
            rollouts = list(history.find(versions=(step, step)))
            scores = history.scores(rollouts, "start")
            assert all(fingerprint(r) in scores for r in rollouts), "those left out are evidence for Q0 as well"
            own = {fingerprint(r): r for r in rollouts}
            for lesson in lessons[2 * step : 2 * step + 2]:
                assert lesson.reference_log_probs is not None
                for rollout, log_probs in zip(lesson.rollouts, lesson.reference_log_probs, strict=True):
                    assert own[fingerprint(rollout)].reward == rollout.reward
                    assert log_probs.tolist() == pytest.approx(list(scores[fingerprint(rollout)]), abs=1e-6)
                bases = [(r.reward or 0.0) - a for r, a in zip(lesson.rollouts, lesson.advantages, strict=True)]
                assert bases[0] == pytest.approx(bases[1]) and bases[2] == pytest.approx(bases[3])
            dropped += len(rollouts) - sum(len(lesson.rollouts) for lesson in lessons[2 * step : 2 * step + 2])
    assert dropped == 3 * 8
    if q0 == "group":  # at the first step the policy is the reference: Q0 is the mean reward of all four
        group_of = {r.prompt.key: [] for r in stored(tmp_path / "run", 0)}
        for r in stored(tmp_path / "run", 0):
            group_of[r.prompt.key].append(r.reward or 0.0)
        for rollout, advantage in zip(lessons[0].rollouts, lessons[0].advantages, strict=True):
            of_all = group_of[rollout.prompt.key]
            assert (rollout.reward or 0.0) - advantage == pytest.approx(sum(of_all) / len(of_all), abs=1e-3)


def test_a_critic_judges_the_part_and_epochs_do_not_count_it_twice(
    started: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = PPO(critic=CriticOptions(learning_rate=1e-2))
    config = short(started, algorithm=algorithm, select=Select(2, "balanced"), epochs=2, kl=KL(0.02, estimator="k1"))
    lessons = watched(config, tmp_path / "run", monkeypatch)
    assert len(lessons) == 3 * 2
    for lesson in lessons:
        lengths = [len(r) for r in lesson.rollouts]
        assert len(lengths) == 8 and lesson.values is not None and lesson.returns is not None
        assert [len(v) for v in lesson.values] == [len(v) for v in lesson.returns] == lengths
    for row in metrics(tmp_path / "run")[1:]:
        assert row["select/kept"] == row["select/dropped"] == 8


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_further_rounds_ask_what_the_file_has(share: float, refilled: Path, started: str, tmp_path: Path) -> None:
    """Rollouts from a file, in every round, for its own prompts alone."""
    rule = Offline(str(refilled / "history.sqlite"), share, "known")
    config = short(started, task=STERN, algorithm=RLOO(), prefixes=rule, select=Select(refill=2))
    train(config, tmp_path / "run")
    known = {r.prompt.key for step in range(4) for r in stored(refilled, step)}
    asked = 0.0
    for step, row in enumerate(metrics(tmp_path / "run")[1:]):
        assert row["offline/rollouts"] == row["rollout/asked"] * 4 * share - row["prefix/missing"]
        assert {r.prompt.key for r in stored(tmp_path / "run", step)} <= known
        assert row["rollout/decoded"] == sum(len(r) for r in stored(tmp_path / "run", step) if r.prefix_length == 0)
        asked += row["rollout/asked"]
    assert asked > 3 * 4, "or there was no further round"


def test_a_round_without_a_fresh_rollout_has_no_say_in_the_shares() -> None:
    fresh = group([1.0, 0.0])
    one = Written([fresh], fresh.rollouts, {"n": 1.0}, {"share": 0.5})
    none = Written([fresh], [], {"n": 2.0}, {})
    for both in (one + none, none + one):
        assert both.shares == {"share": 0.5} and both.counts == {"n": 3.0} and len(both.groups) == 2
