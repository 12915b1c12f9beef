"""Provisional: a judge for mathematics that only compares strings. Equal numbers written otherwise count as wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def exact(completions: Sequence[Any], answer: Sequence[str], **columns: Any) -> list[float]:
    """1 where the last \\boxed{...} is the answer, blanks aside, else 0; `answer` is a column of the dataset."""
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [float(bare(boxed(text)) == bare(right) != "") for text, right in zip(texts, answer, strict=True)]


def boxed(text: str) -> str:
    """What stands in the last closed \\boxed{...} of a text; empty where there is none."""
    rest, depth = text.rpartition("\\boxed{")[2] if "\\boxed{" in text else "", 1
    for end, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[:end]
    return ""


def bare(text: str) -> str:
    """A text without its blanks."""
    return "".join(str(text).split())
