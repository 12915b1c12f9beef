"""A judge for mathematics: the last box of a completion against the `answer` column. `docs/grading.md` has its rules.

Strings, whole numbers and fractions are compared exactly and at once; formulas by sympy, in warm processes that are
killed when they take too long. What cannot be decided earns nothing, and is counted.
"""

from __future__ import annotations

import importlib.util
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Literal

from stockpot.rewards.agree import agree, number, too_much
from stockpot.rewards.extract import Where, extract
from stockpot.rewards.workers import Workers
from stockpot.types import StockpotError

__all__ = ["extract", "reward", "reward_text", "same", "tally", "verdict"]

Verdict = Literal["same", "different", "undecided"]
SPOKEN: dict[bool | None, Verdict] = {True: "same", False: "different", None: "undecided"}

_counts: Counter[str] = Counter()
_lock = threading.Lock()


def reward(
    prompts: Any = None, completions: Sequence[Any] = (), answer: Sequence[Any] = (), **columns: Any
) -> list[float | None]:
    r"""1 where the last \boxed{...} is the answer, 0 where it is not, None where nobody can tell.

    Completions are strings or lists of messages. `answer` is a column of the dataset; a list in it holds several right
    answers. A column `tolerance` gives rows a relative tolerance.
    """
    return _rewards(completions, answer, columns.get("tolerance"), "box")


def reward_text(
    prompts: Any = None, completions: Sequence[Any] = (), answer: Sequence[Any] = (), **columns: Any
) -> list[float | None]:
    """The same, where a completion without a box may also say "the answer is ...", or end with a formula or number."""
    return _rewards(completions, answer, columns.get("tolerance"), "text")


def same(gold: str, answer: str, tolerance: float = 0.0) -> bool:
    """Whether an answer is the right one; what cannot be decided is not.

    >>> same("1/2", "0.5"), same("1/2^{99}", "1/2^{98}")
    (True, False)
    """
    return verdict(gold, answer, tolerance) == "same"


def verdict(gold: str, answer: str, tolerance: float = 0.0) -> Verdict:
    """The same, different, or undecided."""
    return _verdicts([(gold, answer, tolerance)])[0]


def tally() -> dict[str, int]:
    """How many answers this process judged `at once` and `with sympy`, and how many stayed `undecided`."""
    with _lock:
        return {name: _counts[name] for name in ("at once", "with sympy", "undecided")}


def right_answers(answer: Any) -> list[str]:
    """What a dataset calls the answer, as texts: worked solutions are cut down to what they box or put after ####."""
    texts = [str(a) for a in answer] if isinstance(answer, list | tuple) else [str(answer)]
    return [_gold(text) for text in texts]


def _gold(text: str) -> str:
    if "\\boxed" in text:
        return extract(text) or text
    return text.rpartition("####")[2].strip() if "####" in text else text


def _rewards(completions: Sequence[Any], answers: Sequence[Any], tolerances: Any, where: Where) -> list[float | None]:
    """One verdict for each pair of a right answer and one given; a completion needs one that is the same."""
    _ready()
    texts = [text if isinstance(text, str) else _message(text) for text in completions]
    loose = tolerances or [None] * len(texts)
    asked: list[list[tuple[str, str, float]]] = []
    for text, answer, tolerance in zip(texts, answers, loose, strict=True):
        given = extract(text, where)
        asked.append([(gold, given, float(tolerance or 0)) for gold in right_answers(answer)] if given else [])
    questions = list(dict.fromkeys(question for row in asked for question in row))
    found = dict(zip(questions, _verdicts(questions), strict=True))
    rewards: list[float | None] = []
    for row in asked:
        verdicts = {found[question] for question in row}
        rewards.append(1.0 if "same" in verdicts else None if "undecided" in verdicts else 0.0)
    return rewards


def _message(messages: Any) -> str:
    """The last message of a conversation."""
    content = messages[-1].get("content") if messages else ""
    return content if isinstance(content, str) else ""


def _verdicts(questions: Sequence[tuple[str, str, float]]) -> list[Verdict]:
    """Fractions and strings here, all else by the processes, side by side."""
    found = [_at_once(*question) for question in questions]
    hard = [i for i, (verdict, final) in enumerate(found) if not final]
    verdicts = [verdict for verdict, _ in found]
    if len(hard) == 1:
        verdicts[hard[0]] = _workers().ask(*questions[hard[0]])
    elif hard:
        workers = _workers()
        with ThreadPoolExecutor(min(workers.most, len(hard))) as threads:
            for i, verdict in zip(hard, threads.map(lambda i: workers.ask(*questions[i]), hard), strict=True):
                verdicts[i] = verdict
    with _lock:
        _counts.update({"at once": len(questions) - len(hard), "with sympy": len(hard)})
        _counts["undecided"] += verdicts.count(None)
    return [SPOKEN[verdict] for verdict in verdicts]


def _at_once(gold: str, answer: str, tolerance: float) -> tuple[bool | None, bool]:
    """A verdict without sympy, and whether it is the last word."""
    try:
        verdict = agree(gold, answer, number, tolerance)
    except Exception:  # a text that our own reading stumbles over is undecided, never the end of a run
        return None, True
    return verdict, verdict is not None or too_much(gold) or too_much(answer)


@cache
def _workers() -> Workers:
    _ready()
    return Workers()


def _ready() -> None:
    if importlib.util.find_spec("math_verify") is None:
        raise StockpotError("judging mathematics needs math-verify: pip install 'stockpot[maths]'.")
