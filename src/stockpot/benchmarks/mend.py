"""Damage that benchmark files are known to carry, and what undoes it."""

from __future__ import annotations

import re

TAILS = {
    "\f": ("f", "rac lat loor orall rown"),
    "\t": ("t", "riangle imes heta an ext extbf extit frac au ilde o op anh"),
    "\b": ("b", "inom eta oxed ar egin mod ullet ig igl igr igg ot ecause"),
    "\v": ("v", "ec ee arphi dots ert"),
    "\a": ("a", "lpha ngle pprox rcsin rccos rctan st"),
    "\r": ("r", "ight ho angle floor ceil"),
}
"""A control character, the letter that a backslash before it lost to it, and how LaTeX commands go on after that."""
LOST = re.compile("|".join(f"{mark}(?=(?:{'|'.join(tails.split())})(?![a-z]))" for mark, (_, tails) in TAILS.items()))
SCIENTIFIC = re.compile(r"^([+-]?(?:\d+\.?\d*|\.\d+))[eE]([+-]?\d+)$")
PYTHON = re.compile(r"\b(?:np|numpy|math|sp|sympy)\.(?=[a-z])")
FUNCTIONS = re.compile(r"(?<![\\a-z])(arcsin|arccos|arctan|sin|cos|tan|exp|log|ln|pi)(?![a-z])")
ROOT = re.compile(r"(?<![\\a-z])sqrt\(([^()]*)\)")


def backslashes(text: str) -> str:
    r"""LaTeX whose backslash was read as an escape: a form feed and `rac` were `\frac`. Real tabs stay.

    >>> backslashes("\x0crac{1}{2} of \triangle ABC,\tand so on")
    '\\frac{1}{2} of \\triangle ABC,\tand so on'
    """
    return LOST.sub(lambda lost: "\\" + TAILS[lost[0]][0], text)


def written(answer: object) -> str:
    """A gold answer as text, whichever type its file gave it: 27.0 and 27 are the same.

    >>> written(27.0), written(70), written(" 1/2 "), written(0.5)
    ('27', '70', '1/2', '0.5')
    """
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    return str(answer).strip()


def undollared(answer: str) -> str:
    r"""Without the dollars around LaTeX, nor a full stop behind it.

    >>> undollared("$69$,$84$"), undollared("$(-\\infty, 0) \\cup\\{1\\}$.")
    ('69,84', '(-\\infty, 0) \\cup\\{1\\}')
    """
    bare = answer.strip()
    if "$" in bare:
        bare = bare.removesuffix(".").replace("\\$", "\0").replace("$", "").replace("\0", "\\$")
    return bare.strip()


def scientific(answer: str) -> str:
    r"""Python's way of writing numbers as LaTeX's, which graders read: 4.5e33 is otherwise 4.5 times e times 33.

    >>> scientific("4.5e33"), scientific("-1./3"), scientific("np.arcsin(10/13)"), scientific("2e")
    ('4.5 \\times 10^{33}', '-1/3', '\\arcsin(10/13)', '2e')
    """
    if number := SCIENTIFIC.match(answer.strip()):
        return rf"{number[1].rstrip('.')} \times 10^{{{int(number[2])}}}"
    if PYTHON.search(answer):
        answer = ROOT.sub(r"\\sqrt{\1}", PYTHON.sub("", answer).replace("**", "^"))
        answer = FUNCTIONS.sub(r"\\\1", answer)
    return re.sub(r"(?<=\d)\.(?=\s*[/*+)-]|$)", "", answer)


def whole(latex: str) -> bool:
    r"""Whether every brace that opens also closes, and no dollar is left alone: some golds are cut in the middle.

    >>> whole("\\frac{11}{2^{20}"), whole("\\{1, 2\\}")
    (False, True)
    """
    bare = latex.replace("\\\\", "").replace("\\{", "").replace("\\}", "").replace("\\$", "")
    depth = 0
    for letter in bare:
        depth += (letter == "{") - (letter == "}")
        if depth < 0:
            return False
    return depth == 0 and bare.count("$") % 2 == 0 and not latex.endswith("\\")
