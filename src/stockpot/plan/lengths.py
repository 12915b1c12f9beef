"""What follows from a configuration alone: how long its prefixes are, how often all that was sampled is read again."""

from __future__ import annotations

from stockpot.algorithms import SPO, Algorithm
from stockpot.config import Config
from stockpot.prefixes import FromCheckpoints, FromHistory, OutsideRule, PrefixRule, Replay


def longest_prefix(config: Config) -> int:
    """Most tokens that a prefix can have; as many as a response, where the rule is not known here."""
    rule = config.prefixes
    if rule.wanted(config.group_size, config.steps) == 0 or taken_whole(rule):
        return 0
    if isinstance(rule, FromCheckpoints):
        return rule.longest
    if not isinstance(rule, FromHistory):
        return config.max_tokens
    if rule.where == "tokens":
        return min(rule.cut_tokens, config.max_tokens)
    return round(max(rule.cut_high, rule.cut_high_end if rule.schedule != "constant" else 0) * config.max_tokens)


def mean_prefix(config: Config, response: float) -> float:
    """Tokens of a prefix in the mean, cut from responses of the mean length."""
    rule = config.prefixes
    if isinstance(rule, FromCheckpoints):
        return min((rule.shortest + rule.longest) / 2, response)
    if not isinstance(rule, FromHistory):
        return response / 2
    return min(rule.cut_tokens, response) if rule.where == "tokens" else (rule.cut_low + rule.cut_high) / 2 * response


def taken_whole(rule: PrefixRule) -> bool:
    """Whether nothing is left to write behind what the rule brings: replay, demonstrations, files."""
    return isinstance(rule, Replay | OutsideRule)


def whole_passes(algorithm: Algorithm) -> int:
    """Passes over all that was sampled: SPO's reference reads whole groups, and for a group's Q0 the policy too."""
    if not isinstance(algorithm, SPO):
        return 0
    return 1 + (algorithm.q0 == "group" and algorithm.form != "advantage")


def selected(config: Config) -> float:
    """Share of the rollouts that the update sees. What `select.refill` adds to sampling is not foreseen."""
    return config.select.of(config.group_size) / config.group_size
