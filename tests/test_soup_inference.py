"""SOUP inference: who wrote what, what it cost, and whether the comparison is fair. On a real run's checkpoints."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from runs import snapshot, stockpot
from stockpot import checkpoints
from stockpot.models import load_model
from stockpot.passk import pass_at_k
from stockpot.soup_inference import Arm, Comparison, compare
from stockpot.soup_inference.decode import opening
from stockpot.soup_inference.result import equal_samples, equal_tokens
from stockpot.types import Author, Prompt, Rollout, Sampling, Span

SAMPLES, PROMPTS, ROOM = 8, 5, 32


@pytest.fixture(scope="module")
def kept(finished: Path) -> list[int]:
    steps = [checkpoint.step for checkpoint in checkpoints.listed(finished / "checkpoints")]
    assert len(steps) == 3 and steps[0] == 0 and steps[-1] == 6
    return steps


@pytest.fixture(scope="module")
def found(finished: Path, kept: list[int]) -> Comparison:
    """The start and one in between begin, step 6 ends."""
    return compare(finished, f"{kept[1]},0", samples=SAMPLES, prompts=PROMPTS, seed=3)


@pytest.fixture(scope="module")
def twins(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, with the last checkpoint's weights standing as step 5 too."""
    run = tmp_path_factory.mktemp("twins") / "run"
    shutil.copytree(finished, run)
    last = run / "checkpoints" / "step-6"
    names = shutil.ignore_patterns(checkpoints.MANIFEST)
    checkpoints.write(
        run / "checkpoints", 5, None, lambda to: shutil.copytree(last, to, ignore=names, dirs_exist_ok=True) and None
    )
    return run


def rescored(run: Path, rollout: Rollout, version: int) -> list[float]:
    """Log-probs of a whole response by one checkpoint, straight from its logits."""
    model = load_model(str(run / "checkpoints" / f"step-{version}"), torch.device("cpu")).eval()
    ids = torch.tensor([[*rollout.prompt.tokens, *rollout.tokens]])
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
    first = len(rollout.prompt.tokens)
    return [log_probs[first + i - 1, token].item() for i, token in enumerate(rollout.tokens)]


# --- who wrote what -------------------------------------------------------------------------------------------------


def test_every_token_has_its_author_kind_and_log_prob(finished: Path, kept: list[int], found: Comparison) -> None:
    dealt = Counter[int]()
    for place, rollout in enumerate(found.soup.rollouts):
        *heads, tail = rollout.spans
        assert (tail.kind, tail.author) == ("continuation", Author("run", 6))
        assert len(rollout) <= ROOM and len(tail) >= 1
        for span in heads:
            assert (span.kind, span.author) == ("prefix", Author("run", kept[place % 2]))
            dealt[kept[place % 2]] += len(span)
        assert rollout.prompt.key == found.prompts[place // SAMPLES]
    assert [(one.step, one.tokens) for one in found.heads] == sorted(dealt.items())
    assert {len(rollout.spans) for rollout in found.soup.rollouts} == {2}
    for rollout in found.soup.rollouts[:6]:
        versions = [span.author.version for span in rollout.spans for _ in span.tokens]
        stored = [p for span in rollout.spans for p in span.log_probs or ()]
        for version in set(versions):
            again = rescored(finished, rollout, version or 0)
            wrong = [abs(a - b) for a, b, v in zip(again, stored, versions, strict=True) if v == version]
            assert max(wrong) < 1e-4
    assert all(r.spans[0].author.version == 6 and len(r.spans) == 1 for r in found.single.rollouts)


def test_the_old_log_probs_are_not_the_last_models(finished: Path, found: Comparison) -> None:
    """A guard: the checkpoints differ enough for the test above to see a mix-up."""
    rollout = max(found.soup.rollouts[::2], key=lambda r: r.prefix_length)
    stored = rollout.spans[0].log_probs or ()
    assert max(abs(a - b) for a, b in zip(rescored(finished, rollout, 6), stored, strict=False)) > 0.05


def test_a_twin_of_the_last_checkpoint_changes_nothing(twins: Path) -> None:
    """The same weights and random numbers: the same tokens and log-probs, and a difference of nothing at all."""
    same = compare(twins, "5", samples=SAMPLES, prompts=PROMPTS)
    for one, other in zip(same.single.rollouts, same.soup.rollouts, strict=True):
        assert one.tokens == other.tokens and one.reward == other.reward and one.finish == other.finish
        joined = [p for span in other.spans for p in span.log_probs or ()]
        assert joined == pytest.approx(list(one.spans[0].log_probs or ()), abs=1e-4)
        assert rescored(twins, other, 5) == pytest.approx(joined, abs=1e-4)
    assert [one.tokens > 0 for one in same.heads] == [True]
    assert all(
        (row.difference.mean, row.difference.low, row.difference.high) == (0, 0, 0) for row in same.equal_samples
    )
    assert sum(same.soup.decoded) - sum(same.single.decoded) == same.heads[0].stopped


def test_all_deals_the_samples_of_each_prompt_evenly(twins: Path, kept: list[int]) -> None:
    steps = [0, kept[1], 5]
    found = compare(twins, "all", samples=7, prompts=4)
    assert [one.step for one in found.heads] == steps
    assert sorted(one.samples for one in found.heads) == [9, 9, 10]
    for first in range(0, 28, 7):
        heads = Counter(r.spans[0].author.version for r in found.soup.rollouts[first : first + 7] if r.prefix_length)
        assert max(heads.values()) <= 3
    assert sum(one.correct for one in found.heads) == sum(found.soup.correct)


def test_a_head_is_all_that_was_written_but_a_stop_token() -> None:
    prompt, old = Prompt("p", [1]), Author("run", 2)
    span = Span(old, [5, 6, 7], [-1.0, -2.0, -3.0])
    (whole,) = opening(Rollout(prompt, (span,), finish="length"))
    assert (list(whole.tokens), list(whole.log_probs or ()), whole.kind, whole.author) == (
        [5, 6, 7], [-1.0, -2.0, -3.0], "prefix", old,
    )  # fmt: skip
    (less,) = opening(Rollout(prompt, (span,), finish="stop"))
    assert (list(less.tokens), list(less.log_probs or ()), less.kind) == ([5, 6], [-1.0, -2.0], "prefix")
    assert opening(Rollout(prompt, (span[:1],), finish="stop")) == ()


def test_the_cut_lies_where_it_is_asked_for(finished: Path, found: Comparison) -> None:
    """Low = high: every head has that share of the single model's mean length, unless its author finished earlier."""
    mean = found.single.length  # of this seed; the share below tells it from the room for a response
    share = next(s / 100 for s in range(30, 96) if round(s / 100 * mean) != round(s / 100 * ROOM))
    found = compare(finished, "0", samples=SAMPLES, prompts=PROMPTS, seed=3, low=share, high=share)
    expected = round(share * mean)
    lengths = Counter(rollout.prefix_length for rollout in found.soup.rollouts)
    assert lengths[expected] >= SAMPLES * PROMPTS - found.heads[0].stopped > 0
    assert max(lengths) == expected
    spread = compare(finished, "0", samples=SAMPLES, prompts=PROMPTS, low=0.1, high=0.9).soup.rollouts
    assert max(r.prefix_length for r in spread) > 0.6 * found.single.length
    ones = compare(finished, "0", samples=2, prompts=2, low=0, high=0)
    assert {rollout.prefix_length for rollout in ones.soup.rollouts} <= {0, 1}


# --- what it cost ---------------------------------------------------------------------------------------------------


def test_tokens_are_those_of_all_spans_and_the_stop_tokens_taken_off(found: Comparison) -> None:
    assert sum(one.stopped for one in found.heads) > 0, "a guard: some heads end before their cut"
    for arm, dropped in ((found.single, 0), (found.soup, sum(one.stopped for one in found.heads))):
        spans = sum(len(span) for rollout in arm.rollouts for span in rollout.spans)
        assert sum(arm.decoded) == spans + dropped
        assert arm.length == pytest.approx(sum(arm.decoded) / (SAMPLES * PROMPTS))
    for i, cost in enumerate(found.single.decoded):
        assert cost == sum(len(r) for r in found.single.rollouts[i * SAMPLES : (i + 1) * SAMPLES])


def arm(samples: int, correct: tuple[int, ...], decoded: tuple[int, ...]) -> Arm:
    return Arm(samples, correct, decoded, unjudged=0, truncated=0.0, rollouts=())


def test_equal_tokens_by_hand() -> None:
    """Single: 10 tokens a sample. SOUP: 16, so 10 tokens buy 0.625 samples, 20 buy 1.25 and 40 buy 2.5."""
    single, soup = arm(4, (1, 3), (30, 50)), arm(4, (2, 4), (64, 64))
    rows = equal_tokens(single, soup)
    assert [(row.tokens, row.single_samples, row.soup_samples) for row in rows] == [
        (10, 1, 0.625), (20, 2, 1.25), (40, 4, 2.5),
    ]  # fmt: skip
    at_one = (0.625 * 0.5, 0.625 * 1.0)
    at_two = (0.5 + 0.25 * (5 / 6 - 0.5), 1.0)
    at_four = (5 / 6 + 0.5 * (1 - 5 / 6), 1.0)
    alone = ((0.25, 0.75), (0.5, 1.0), (1.0, 1.0))
    for row, one, other in zip(rows, alone, (at_one, at_two, at_four), strict=True):
        assert (row.single.mean, row.soup.mean) == pytest.approx((sum(one) / 2, sum(other) / 2))
        each = [b - a for a, b in zip(one, other, strict=True)]
        assert row.difference.mean == pytest.approx(sum(each) / 2)
        assert (row.difference.low, row.difference.high) == pytest.approx((min(each), max(each)))


def test_equal_samples_by_hand() -> None:
    rows = equal_samples(arm(4, (1, 3), (30, 50)), arm(4, (2, 4), (64, 64)))
    assert [(row.single_samples, row.soup_samples, row.tokens) for row in rows] == [
        (1, 1, None), (2, 2, None), (4, 4, None),
    ]  # fmt: skip
    assert [row.difference.mean for row in rows] == pytest.approx([0.25, (5 / 6 - 0.5) / 2, 0.0])
    assert (rows[1].difference.low, rows[1].difference.high) == pytest.approx((0.0, 5 / 6 - 0.5))


def test_where_soup_is_shorter_the_last_row_is_what_both_can_pay() -> None:
    """SOUP: 4 tokens a sample, 16 for all it has; the single model gets 1.6 samples for them, and that is the end."""
    rows = equal_tokens(arm(4, (1, 3), (40, 40)), arm(4, (2, 4), (16, 16)))
    assert [(row.tokens, row.single_samples, row.soup_samples) for row in rows] == [(10, 1, 2.5), (16, 1.6, 4)]


# --- the comparison -------------------------------------------------------------------------------------------------


def test_the_single_arm_is_what_eval_measures(finished: Path, tmp_path: Path) -> None:
    words = ("--samples", SAMPLES, "--prompts", PROMPTS, "--seed", 3, "--top-p", 0.9)
    assert stockpot("eval", finished, *words, "--json", tmp_path / "plain").code == 0
    assert stockpot("eval", finished, *words, "--json", tmp_path / "both", "--prefix-from", 0).code == 0
    one, both = (json.loads((tmp_path / name).read_text()) for name in ("plain", "both"))
    assert both["sampling"]["top_p"] == 0.9
    assert both["single"]["length"] == pytest.approx(one["test/length"])
    for row in both["equal_samples"]:
        assert row["single"]["mean"] == pytest.approx(one[f"test/pass@{row['single_samples']}"])


def test_the_seed_decides_everything(finished: Path, kept: list[int], found: Comparison) -> None:
    again = compare(finished, f"0,{kept[1]}", samples=SAMPLES, prompts=PROMPTS, seed=3)
    assert again == found
    other = compare(finished, f"0,{kept[1]}", samples=SAMPLES, prompts=PROMPTS, seed=4, sampling=Sampling())
    assert [r.tokens for r in other.soup.rollouts] != [r.tokens for r in found.soup.rollouts]


def test_the_command_prints_and_writes_what_was_found(finished: Path, kept: list[int], tmp_path: Path) -> None:
    """The tables hold the numbers of the file, and the file is enough to count again. The run is left alone."""
    before = snapshot(finished)
    words = ("--prefix-from", "all", "--step", kept[1], "--samples", 4, "--json", tmp_path / "a.json")
    told = stockpot("eval", finished, *words)
    assert told.code == 0 and snapshot(finished) == before
    assert [line for line in told.err.splitlines() if not re.match(r"sampling \d+/96 ", line)] == []
    measured = json.loads((tmp_path / "a.json").read_text())
    assert (measured["step"], [one["step"] for one in measured["heads"]]) == (kept[1], [0])
    rows = measured["prompts"]
    assert len(rows) == 8 and len({row["prompt"] for row in rows}) == 8
    for row in measured["equal_samples"]:
        k = row["single_samples"]
        passes = {name: [pass_at_k(4, r[f"{name}_correct"], k) for r in rows] for name in ("single", "soup")}
        for name, values in passes.items():
            assert row[name]["mean"] == pytest.approx(sum(values) / 8)
        difference = row["difference"]
        shown = f"{difference['mean']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
        assert re.search(rf"pass@{k}\b.*{re.escape(shown)}", told.out), told.out
    for name in ("single", "soup"):
        decoded = sum(row[f"{name}_decoded"] for row in rows) / 32
        assert measured[name]["length"] == pytest.approx(decoded) and f"{decoded:.1f}" in told.out
    for row in measured["equal_tokens"]:
        assert row["single_samples"] * measured["single"]["length"] == pytest.approx(row["tokens"], rel=1e-6)
        assert row["soup_samples"] * measured["soup"]["length"] == pytest.approx(row["tokens"], rel=1e-6)
    assert stockpot("eval", finished, "--prefix-from", 0, "--prompts", 1).out.count("x 64 samples") == 1


# --- refusals -------------------------------------------------------------------------------------------------------


def refused(*words: object) -> str:
    told = stockpot("eval", *words)
    assert told.code == 2 and told.out == "" and told.err.count("\n") == 1, told.err
    return told.err


def test_what_cannot_begin_is_refused_in_one_line(finished: Path, started: str, kept: list[int]) -> None:
    names = f"older ones kept are 0, {kept[1]}"
    absent = next(step for step in range(1, 6) if step not in kept)
    line = refused(finished, "--prefix-from", absent)
    assert f"no checkpoint of step {absent}: {names} " in line and "--keep-checkpoints" in line
    for step in (6, 7):
        assert f"{step} is not older than step 6, which" in refused(finished, "--prefix-from", f"0,{step}")
    line = refused(finished, "--prefix-from", kept[1], "--step", kept[1])
    assert f"not older than step {kept[1]}" in line and "kept are 0." in line
    assert "no checkpoint older than step 0" in refused(finished, "--prefix-from", "all", "--step", 0)
    assert "no checkpoint of step 77" in refused(finished, "--prefix-from", "0", "--step", 77)
    for spec in ("old", "0,", "-1", "0.5"):
        assert f"or all, not {spec}" in refused(finished, f"--prefix-from={spec}")
    assert f"needs a run, and {started} is none" in refused(started, "--prefix-from", 0)
    for words in (("--prefix-low", 0.7), ("--prefix-high", 1.5), ("--prefix-low=-0.1",)):
        assert "0 <= low <= high <= 1" in refused(finished, "--prefix-from", 0, *words)
    for size in ("--samples", "--prompts"):
        assert "at least 1" in refused(finished, "--prefix-from", 0, size, 0)


def test_a_response_without_room_for_two_tokens_is_refused(twins: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(twins, run)
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"max_tokens": 32', '"max_tokens": 1'))
    assert "no room for a head and an end" in refused(run, "--prefix-from", 0)


def test_damaged_checkpoints_and_those_of_another_vocabulary_are_refused(twins: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(twins, run)
    root = run / "checkpoints"

    def save(folder: Path) -> None:
        shutil.copytree(root / "step-0", folder, dirs_exist_ok=True)
        (folder / checkpoints.MANIFEST).unlink()
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        words = tokenizer["model"]["vocab"]
        one, other = [word for word in words if word.isdigit()][:2]
        words[one], words[other] = words[other], words[one]
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    checkpoints.write(root, 1, None, save)
    assert "step-1 has another vocabulary than step 6" in refused(run, "--prefix-from", 1)
    assert "step-1 has another vocabulary than step 6" in refused(run, "--prefix-from", "all")
    (root / "step-0" / "model.safetensors").write_bytes(b"")
    assert "step-0 is not whole (model.safetensors is damaged)" in refused(run, "--prefix-from", "0,5")
