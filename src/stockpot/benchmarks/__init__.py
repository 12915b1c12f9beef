"""Benchmarks: problems from files or the hub, asked in the form that is customary, judged, and counted with intervals.

    data -> problems -> prompts -> samples (stored) -> grades (stored) -> figures

Every arrow reads what the one before left in a folder, so that a killed evaluation goes on, and one that is done can
be graded again without a model.
"""

from stockpot.benchmarks.figures import Figures, figures
from stockpot.benchmarks.load import load
from stockpot.benchmarks.problem import Problem
from stockpot.benchmarks.sets import BENCHMARKS, Benchmark
from stockpot.benchmarks.templates import TEMPLATES

__all__ = ["BENCHMARKS", "TEMPLATES", "Benchmark", "Figures", "Problem", "figures", "load"]
