"""The dry run: what a configuration would take on one device or several, with nothing loaded."""

from stockpot.plan.account import Plan
from stockpot.plan.base import DEVICES, Assumed
from stockpot.plan.cures import cures
from stockpot.plan.fleet import Fleet, Mode, Seconds

__all__ = ["DEVICES", "Assumed", "Fleet", "Mode", "Plan", "Seconds", "cures"]
