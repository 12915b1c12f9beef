"""Prefixes: one short file for each source; a new rule is a new subclass of `StoredRule` or `LiveRule`."""

from stockpot.prefixes.base import LiveRule, NoPrefixes, OutsideRule, PrefixRule, StoredRule, head
from stockpot.prefixes.checkpoints import FromCheckpoints
from stockpot.prefixes.demonstrations import Demonstrations
from stockpot.prefixes.experience import Experience
from stockpot.prefixes.history import FromHistory, prefixrl
from stockpot.prefixes.offline import Offline
from stockpot.prefixes.replay import Replay

__all__ = [
    "Demonstrations",
    "Experience",
    "FromCheckpoints",
    "FromHistory",
    "LiveRule",
    "NoPrefixes",
    "Offline",
    "OutsideRule",
    "PrefixRule",
    "Replay",
    "StoredRule",
    "head",
    "prefixrl",
]
