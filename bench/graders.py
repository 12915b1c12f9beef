"""Accuracy and speed of the judge for mathematics on cases with a known truth.

    python bench/graders.py --cases FILE.jsonl

A case has `gold`, `pred`, `match` (the truth), `kind` (`answer`: compared as it is; `response`: the answer is looked
for in it), `category` and perhaps `policy`, where the truth is a rule of whoever wrote it. False accepts are listed:
each is a reward for a wrong answer. The last line is the share of right verdicts in % on cases without a policy.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from stockpot.rewards.agree import agree
from stockpot.rewards.maths import extract, reward_text, tally, verdict
from stockpot.rewards.symbolic import formula

EASY = [(f"{i}", f"\\boxed{{{v}}}") for i in range(1000) for v in (f"{i}.0", f"\\frac{{{2 * i + 1}}}{{2}}")]
HARD = [
    (f"{k}\\sqrt{{2}}+\\frac{{{k}\\pi}}{{3}}", f"\\boxed{{{v}}}")
    for k in range(1, 101)
    for v in (f"\\frac{{{3 * k}\\sqrt2 + {k}\\pi}}3", f"{k}\\sqrt{{3}}", f"{k}(\\sqrt2+\\pi/3)", f"{k}x^2+{k}")
]


def judged(case: dict[str, Any]) -> str:
    given = (
        case["pred"] if case["kind"] == "answer" and "\\boxed" not in case["pred"] else extract(case["pred"], "text")
    )
    return verdict(case["gold"], given) if given else "different"


def speed(name: str, pairs: list[tuple[str, str]]) -> None:
    """Answers per second, each pair a different question; the processes are warm."""
    golds, texts = zip(*pairs, strict=True)
    before, start = tally()["with sympy"], time.perf_counter()
    reward_text(completions=texts, answer=golds)
    seconds = time.perf_counter() - start
    print(f"{name:<18}{len(pairs) / seconds:>10,.0f} answers/s  ({tally()['with sympy'] - before} with sympy)")


def work(pairs: list[tuple[str, str]]) -> None:
    """The same with sympy in this process, by the time it computes: what a busy machine cannot change."""
    formula("\\sqrt{2}", "\\sqrt{3}")
    start = time.process_time()
    for gold, text in pairs:
        agree(gold, extract(text) or "", formula)
    print(f"{'one process':<18}{len(pairs) / (time.process_time() - start):>10,.0f} answers per second of computing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--show", action="store_true", help="list false rejects too")
    options = parser.parse_args()
    cases = [json.loads(line) for line in options.cases.read_text().splitlines() if line.strip()]
    total: Counter[str] = Counter()
    right: Counter[str] = Counter()
    wrong: list[tuple[dict[str, Any], str]] = []
    slowest = 0.0
    for case in cases:
        start = time.perf_counter()
        found = judged(case)
        slowest = max(slowest, time.perf_counter() - start)
        tag = f"policy: {case['policy']}" if case.get("policy") else case["category"]
        total[tag] += 1
        if (found == "same") == case["match"]:
            right[tag] += 1
        else:
            wrong.append((case, found))
    print(f"{'tag':<34}{'cases':>6}{'right':>7}")
    for tag in sorted(total, key=lambda tag: (tag.startswith("policy"), tag)):
        print(f"{tag:<34}{total[tag]:>6}{right[tag]:>7}")
    for title, accepted in (("false accepts", True), ("false rejects", False)):
        listed = [(c, found) for c, found in wrong if (found == "same") == accepted]
        free = sum("policy" not in c for c, _ in listed)
        print(f"\n{title}: {free} without a policy, {len(listed) - free} with one")
        for case, found in listed if accepted or options.show else ():
            print(f"  {case['id']} {case.get('policy', '')} gold {case['gold']!r} answer {case['pred']!r} {found}")
    print(f"\nslowest case {slowest:.2f} s, the start of the processes included; counted: {tally()}")
    speed("without sympy", EASY)
    speed("with sympy", HARD)
    work(HARD)
    free = [tag for tag in total if not tag.startswith("policy")]
    print(f"{100 * sum(right[t] for t in free) / sum(total[t] for t in free):.2f}")


if __name__ == "__main__":
    main()
