"""Runs programs that nobody trusts: `Sandbox`, and the three kinds of jobs. What holds is told in docs/sandbox.md."""

from stockpot.sandbox.guest.plain import Opaque
from stockpot.sandbox.jobs import Calls, Job, Limits, Outcome, Program, Tests, Value, same
from stockpot.sandbox.levels import Level
from stockpot.sandbox.pool import Sandbox, heard, in_force, shared

__all__ = [
    "Calls",
    "Job",
    "Level",
    "Limits",
    "Opaque",
    "Outcome",
    "Program",
    "Sandbox",
    "Tests",
    "Value",
    "heard",
    "in_force",
    "same",
    "shared",
]
