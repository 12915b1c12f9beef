"""The dry run: what a configuration would take on a device, with nothing loaded."""

from stockpot.plan.account import Plan
from stockpot.plan.base import DEVICES, Assumed
from stockpot.plan.cures import cures

__all__ = ["DEVICES", "Assumed", "Plan", "cures"]
