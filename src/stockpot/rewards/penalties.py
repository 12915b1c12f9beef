"""Penalties on what nobody wants to read: repetition, responses out of room, garbled text. Off unless asked for.

Each is a pure function of a response; `Penalties` puts them together. T1 (arXiv 2501.11651) gives -1 for any of the
three and finds that training degenerates without; whether -1 replaces the reward or is added to it is told both ways,
so it is an option. All thresholds are ours.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from stockpot.types import Rollout, StockpotError


def repetition(tokens: Sequence[int], size: int) -> float:
    """Share of a response's n-grams that are repeats of an earlier one: 0 where all differ, near 1 in a loop.

    >>> repetition([1, 2, 3, 1, 2, 3], 3)
    0.25
    """
    count = len(tokens) - size + 1
    if count < 1:
        return 0.0
    return 1.0 - len({tuple(tokens[i : i + size]) for i in range(count)}) / count


def overlong(length: int, room: int, margin: int) -> float:
    """How far a response reaches into the last `margin` tokens of its room: 0 before them, 1 at the end (DAPO's slope).

    >>> overlong(90, 100, 20), overlong(100, 100, 20), overlong(99, 100, 0), overlong(100, 100, 0)
    (0.5, 1.0, 0.0, 1.0)
    """
    if length >= room:
        return 1.0
    return max(0.0, (length - (room - margin)) / margin) if margin else 0.0


def scripts(text: str) -> Counter[str]:
    """Letters by script, from the first word of their Unicode names; Greek is left out: mathematics is full of it.

    >>> sorted(scripts("abc да π").items())
    [('CYRILLIC', 2), ('LATIN', 3)]
    """
    names = (unicodedata.name(c, "").partition(" ")[0] for c in text if c.isalpha())
    return Counter(name for name in names if name and name not in ("GREEK", "MATHEMATICAL", "SCRIPT", "DOUBLE-STRUCK"))


JOINED = {"CJK": "EAST ASIAN", "HIRAGANA": "EAST ASIAN", "KATAKANA": "EAST ASIAN", "HANGUL": "EAST ASIAN"}
"""Scripts that belong together in one text."""


def garbled(text: str) -> float:
    """The larger of two shares: characters that are no text (replacement signs, control codes), and letters outside
    the script that most letters are in.

    >>> garbled("fine, 1 + 1 = 2"), garbled("half \ufffd\ufffd") > 0.2, garbled("so да x") == 2 / 5
    (0.0, True, True)
    """
    if not text:
        return 0.0
    broken = sum(c == "\ufffd" or (unicodedata.category(c) in ("Cc", "Co", "Cn") and c not in "\n\t\r") for c in text)
    groups: Counter[str] = Counter()
    for name, number in scripts(text).items():
        groups[JOINED.get(name, name)] += number
    letters = sum(groups.values())
    foreign = 1.0 - max(groups.values()) / letters if letters else 0.0
    return max(broken / len(text), foreign)


@dataclass(frozen=True)
class Penalties:
    """What is taken off the reward in training; held-out prompts are always judged without."""

    value: float = -1.0
    """What a penalised response gets, or has added to its reward."""
    how: Literal["set", "add"] = "set"
    """Whether it takes the reward's place, or is added to it (once, however many are deserved)."""
    repetition: float = 0.0
    """Penalise responses of whose n-grams more than this share are repeats; 0 never does."""
    size: int = 8
    """n of the n-grams, in tokens."""
    overlong: bool = False
    """Penalise responses that ran out of room."""
    margin: int = 0
    """With overlong: the last so many tokens of the room cost a growing part of the penalty, which is always added."""
    garbled: float = 0.0
    """Penalise responses of whose text more than this share is broken or in another script; 0 never does."""

    def __post_init__(self) -> None:
        if self.value > 0 or self.how not in ("set", "add"):
            raise StockpotError("penalties.value must be 0 or less, and penalties.how one of set, add.")
        if not (0 <= self.repetition <= 1 and 0 <= self.garbled <= 1) or self.size < 1 or self.margin < 0:
            raise StockpotError(
                "penalties.repetition and garbled are shares in 0..1, size is at least 1 and margin 0 or more."
            )

    @property
    def active(self) -> bool:
        """Whether any is asked for."""
        return bool(self.repetition or self.overlong or self.garbled)

    def found(self, rollout: Rollout, text: str, room: int) -> dict[str, float]:
        """Which penalties a response deserves, each with how much of it: 1 but on the slope before the room's end."""
        soft = overlong(len(rollout), room, self.margin) if self.overlong else 0.0
        hard = self.overlong and rollout.finish == "length"
        deserved = {
            "repetition": float(self.repetition > 0 and repetition(rollout.tokens, self.size) > self.repetition),
            "overlong": 1.0 if hard else soft * (self.margin > 0),
            "garbled": float(self.garbled > 0 and garbled(text) > self.garbled),
        }
        return {name: part for name, part in deserved.items() if part > 0}

    def __call__(
        self, rollouts: Sequence[Rollout], tokenizer: Any, room: int
    ) -> tuple[list[Rollout], dict[str, float]]:
        """Rollouts with what they deserve taken off, and the share of them that each penalty met."""
        if not self.active:
            return list(rollouts), {}
        texts = tokenizer.batch_decode([list(r.tokens) for r in rollouts], skip_special_tokens=True)
        met: Counter[str] = Counter(dict.fromkeys(("repetition", "overlong", "garbled"), 0))
        judged = []
        for rollout, text in zip(rollouts, texts, strict=True):
            deserved = self.found(rollout, text, room)
            met.update(deserved.keys())
            part = max(deserved.values(), default=0.0)
            reward = rollout.reward or 0.0
            if part == 1.0 and self.how == "set":
                reward = self.value
            elif part:
                reward += part * self.value
            judged.append(replace(rollout, reward=reward))
        return judged, {f"penalty/{name}": number / max(len(rollouts), 1) for name, number in met.items()}
