"""Merged traces, written anew by a model in a step of its own so that each reads as one train of thought."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from stockpot.rewards.score import score_texts
from stockpot.tasks.base import Task
from stockpot.traces.asking import Rewriter
from stockpot.traces.build import Counts, Trace

BACK = "the merged trace kept"


def rewritten(
    task: Task, traces: Sequence[Trace], rewriter: Rewriter, least: float, counts: Counts, told: Callable[[int], None]
) -> list[Trace]:
    """As many traces as there were: each rewritten, or as it was merged where its rewrite is of no use.

    The reward judges every rewrite. One that is wrong, is shorter than `least` of its trace (so that attempts were left
    out of it), was never written, or is another trace's text is dropped, and counted.
    """
    named = {f"{trace.prompt.key}/{number}": trace for number, trace in enumerate(traces)}
    asked = {name: (trace.prompt, trace.completion) for name, trace in named.items()}
    written = rewriter.rewrite(asked, task.closing, told)
    names = [name for name in named if name in written]
    rewards, unjudged = score_texts([named[n].prompt for n in names], [written[n].text for n in names], task.reward)
    reward = dict(zip(names, rewards, strict=True))
    counts.add("rewrites asked", len(named))
    counts.add("rewrites not judged, counted as wrong", unjudged)
    taken = {(trace.prompt.key, _plain(trace.completion)) for trace in traces}
    kept = []
    for name, trace in named.items():
        new = written.get(name)
        key = trace.prompt.key, _plain(new.text if new else "")
        if new is None:
            counts.add(f"rewrites never written, {BACK}")
        elif reward[name] <= 0.5:
            counts.add(f"rewrites judged wrong, {BACK}")
        elif len(key[1]) < least * len(_plain(trace.completion)):
            counts.add(f"rewrites too short, {BACK}")
        elif key in taken:
            same = key[1] == _plain(trace.completion)
            counts.add("rewrites that changed nothing" if same else f"rewrites made twice, {BACK}")
        else:
            taken.add(key)
            counts.add("traces rewritten")
            counts.add("letters before rewriting", len(trace.completion))
            counts.add("letters after rewriting", len(new.text))
            trace = replace(trace, completion=new.text, rewriter=new.by, reward=reward[name])
        kept.append(trace)
    return kept


def _plain(text: str) -> str:
    """The text without differences in space."""
    return " ".join(text.split())
