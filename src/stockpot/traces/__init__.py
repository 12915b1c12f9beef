"""Data for a supervised start, as T1 makes it (arXiv 2501.11651): traces of trial and error.

Several attempts at each prompt, by several models or from files, are judged by the task's reward. A *critic* explains
each: why it is wrong, or that it is right. A *writer* merges them into one response: attempt, critique, another
attempt, ..., the answer, a last check. Only what the reward judges right is kept, each trace once, with the source of
every part.

Critic and writer are one of: the task's own (`Task.critique`, `Task.merge`); `plain`, a template; a local model; or a
model behind an OpenAI-compatible endpoint, which may fail in any way: it is asked again, and what it never answers is
counted and left out. Everything written lies on shelves, so a call that was killed goes on where it was.

The paper merges with one model and then has the result rewritten, so that it reads as one train of thought: here the
rewriter is a model too, asked for by name. What it writes is judged again; where it is of no use, the merged trace
stays. How many wrong attempts a trace begins with, and how models are asked, is not in the paper.
"""

from stockpot.traces.build import Counts, Plan, Trace, build
from stockpot.traces.endpoint import Endpoint, Limits
from stockpot.traces.rewriting import rewritten

__all__ = ["Counts", "Endpoint", "Limits", "Plan", "Trace", "build", "rewritten"]
