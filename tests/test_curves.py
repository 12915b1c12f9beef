"""The picture of a run: every panel shows what a run records, or says why it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from runs import metrics
from stockpot.report.curves import PANELS, draw, named, picture, points

TITLES = [panel.title for panel in PANELS]


def axes(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {axis.get_title(): axis for axis in picture(rows, "a run").axes}


def said(axis: Any) -> str:
    return " ".join(text.get_text() for text in axis.texts)


def test_every_metric_of_every_panel_is_one_that_a_run_writes(finished: Path) -> None:
    rows = metrics(finished)
    for panel in PANELS:
        for pattern, label in panel.lines.items():
            if not pattern.startswith("demonstration"):
                assert named({pattern: label}, rows), pattern
        for key in (panel.band or ())[:2]:
            assert points(rows, key)[0], key


def test_a_run_with_prefixes_fills_every_panel(finished: Path) -> None:
    drawn = axes(metrics(finished))
    assert list(drawn) == TITLES
    for title, axis in drawn.items():
        assert axis.lines and axis.get_legend() and not said(axis), title
    ages = [text.get_text() for text in drawn["effective sample size, by age of tokens"].get_legend().get_texts()]
    assert ages == ["age 0", "age 1-3", "age 4-7"], "a head may have an older head"
    assert len(drawn["ratio of prefix tokens, before the clip"].collections) == 1
    assert len(drawn["prefix length (tokens)"].collections) == 1


def test_ages_stand_in_their_order() -> None:
    rows = [{"step": 1, **{f"age/{age}/ess": 1.0 for age in ("64+", "8-15", "unknown", "0", "16-31")}}]
    labels = list(named({"age/*/ess": "age {}"}, rows).values())
    assert labels == [f"age {age}" for age in ("unknown", "0", "8-15", "16-31", "64+")]
    assert list(
        named({"test/pass@*": "pass@{}"}, [{"test/pass@16": 1.0, "test/pass@4": 1.0, "test/pass@4/low": 0.9}])
    ) == ["test/pass@4", "test/pass@16"]


def test_empty_panels_say_why() -> None:
    """Nothing done yet; no prefixes; a record of before a figure was kept; figures that are not finite."""
    assert all(not axis.lines and said(axis) for axis in axes([]).values())
    assert {said(axis) for axis in axes([{"step": 0, "test/pass@1": 0.5}]).values() if not axis.lines} == {
        "no step was recorded yet"
    }
    plain = axes([{"step": n, "reward/mean": 0.5, "prefix/share": 0.0, "all/entropy": None} for n in (1, 2)])
    assert plain["reward"].lines and not said(plain["reward"])
    for title in ("ratio of prefix tokens, before the clip", "prefix length (tokens)"):
        assert said(plain[title]) == "no rollout began with a prefix"
    assert said(plain["entropy (nats a token)"]) == "no figure was finite"
    before = axes([{"step": 1, "prefix/share": 0.5}])
    assert said(before["ratio of prefix tokens, before the clip"]) == "no token of a prefix was trained"
    assert "not recorded" in said(before["prefix length (tokens)"])
    assert "prefix/length" in said(before["prefix length (tokens)"])


def test_a_figure_that_was_not_finite_is_a_gap_and_a_missing_one_is_passed_over() -> None:
    rows: list[dict[str, Any]] = [{"step": 1, "x": 1.0}, {"step": 2}, {"step": 3, "x": None}, {"step": 4, "x": 2.0}]
    steps, values = points(rows, "x")
    assert steps == [1, 3, 4] and values[0] == 1.0 and values[1] != values[1] and values[2] == 2.0


def test_it_is_drawn_without_a_word(tmp_path: Path) -> None:
    """Warnings are errors here: an empty run, one of one step, and one whose figures are all null."""
    for number, rows in enumerate(([], [{"step": 1, "reward/mean": 1.0}], [{"step": 1, "reward/mean": None}])):
        path = tmp_path / f"{number}.png"
        assert draw(rows, path, "a run")
        assert path.read_bytes().startswith(b"\x89PNG")
