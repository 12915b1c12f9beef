"""Prefixes: one short file for each source; a new rule is a new subclass of `PrefixRule`."""

from stockpot.prefixes.base import NoPrefixes, PrefixRule, head
from stockpot.prefixes.history import FromHistory, prefixrl
from stockpot.prefixes.replay import Replay

__all__ = ["FromHistory", "NoPrefixes", "PrefixRule", "Replay", "head", "prefixrl"]
