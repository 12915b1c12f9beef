"""Datasets and reward functions as TRL has them, trained on as they are: JSONL and Parquet, text and messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runs import metrics, stockpot
from small import save_model, write_rows
from stockpot.history import History

REWARDS = '''
def short(completions, **kwargs):
    """From TRL's own examples: plain strings or conversations."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [1.0 if len(text) % 2 else 0.0 for text in texts]


def by_ids(prompts, completions, completion_ids, answer, **kwargs):
    assert all(isinstance(ids, list) and ids for ids in completion_ids)
    assert len(prompts) == len(completions) == len(answer) == len(completion_ids)
    return [float(len(ids) % 2 == int(right) % 2) for ids, right in zip(completion_ids, answer)]


def named(prompts, completions, answer):
    return [float(len(text) % 2) for text in completions]


async def awaited(prompts, completions, **kwargs):
    return [float(len(str(completion)) % 2) for completion in completions]
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("chat") / "model", eos="<|im_end|>")


def rows(conversational: bool) -> list[dict[str, Any]]:
    asked = [f"What is {i}\u2028plus {i}?" for i in range(12)]
    return [
        {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
            if conversational
            else text,
            "answer": str(2 * i),
        }
        for i, text in enumerate(asked)
    ]


def written(path: Path, conversational: bool) -> Path:
    if path.suffix == ".parquet":
        parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        parquet.write_table(arrow.Table.from_pylist(rows(conversational)), path)
        return path
    return write_rows(path, rows(conversational))


@pytest.mark.parametrize(
    ("ending", "conversational", "judge"),
    [
        ("jsonl", False, "short"),
        ("jsonl", True, "short"),
        ("parquet", False, "by_ids"),
        ("parquet", True, "awaited"),
        ("json", False, "named"),
    ],
)
def test_a_dataset_of_trls_form_is_trained_on_as_it_is(
    ending: str, conversational: bool, judge: str, model: Path, tmp_path: Path
) -> None:
    data = written(tmp_path / f"rows.{ending}", conversational)
    (tmp_path / "judges.py").write_text(REWARDS)
    told = stockpot(
        "train", "--task", "dataset", "--task.train", data, "--task.judge", f"{tmp_path / 'judges.py'}:{judge}",
        "--model", model, "--out", tmp_path / "run", "--steps", 2, "--prompts-per-step", 2, "--group-size", 2,
        "--max-tokens", 8, "--evaluation.prompts", 1, "--evaluation.samples", 2, "--device", "cpu",
        "--kl.coefficient", 0, "--prefixes", "none",
    )  # fmt: skip
    assert told.code == 0, told.err
    assert len(metrics(tmp_path / "run")) == 3
    with History.open(tmp_path / "run" / "history.sqlite", read_only=True) as history:
        found = list(history.find())
    assert len(found) == 8 and {r.reward for r in found} <= {0.0, 1.0}
    (first, *_) = found
    text = first.prompt.text
    assert ("Be brief." in text) == conversational and "plus" in text
    assert set(first.prompt.columns) - {"prompt"} == {"answer"}


def test_files_that_cannot_be_read_are_told_in_one_line(tmp_path: Path, model: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "judges.py").write_text(REWARDS)
    pytest.importorskip("pyarrow")
    for name, said in (("broken.parquet", "cannot be read as Parquet"), ("none.parquet", "there is no dataset file")):
        told = stockpot(
            "train", "--task", "dataset", "--task.train", tmp_path / name, "--model", model, "--out", tmp_path / "run",
            "--task.judge", f"{tmp_path / 'judges.py'}:short",
        )  # fmt: skip
        assert told.code == 2 and said in told.err and len(told.complaints) == 1, told.err
