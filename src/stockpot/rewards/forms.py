"""The shapes of an answer: lists, brackets, names on the left, intervals, matrices, units; cleaned LaTeX in."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stockpot.rewards.latex import partner

UNITS = (
    r"(?:«(?:(?!\b(?:or|and|not|is|if|when|where|but|no|maybe|wrong)\b)[A-Za-z./²³ -]){1,40}»|square|cubic|degrees?"
    r"|units?|dollars?|cents?|(?:centi|milli|kilo)?met(?:er|re)s?|inch(?:es)?|feet|foot|miles?|seconds?|minutes?|hours?"
    r"|days?|weeks?|months?|years?|yuan|pounds?|(?:kilo)?grams?|people|students?|cm|mm|km|kg|mph|per)"
)
"""Units that are written plainly; between marks of text any few words are one, unless they hedge."""
TRAILING_UNIT = re.compile(rf"(?<=[^«»\s])\s*(?P<unit>(?:(?<![A-Za-z\\]){UNITS}(?:\^[23])?[\s.]*)+)$")
LETTER = re.compile(r"«?\s*\(?\s*([A-Za-z])\s*[).]?\s*»?[).]?")
LABELLED = re.compile(r"(?:«\s*\(?([A-J])[).:]*\s*»|\(([A-J])\))[.:]?\s*(?=\S)(.+)", re.S)
ONE_NAME = (
    r"(?:\|?(?:\\Delta\s*)?(?:\\[A-Za-z]+|[A-Za-z]+|«[\w\s]+»)"
    r"(?:_(?:\{[^{}]*\}|\w)|\^(?:\{\\prime\}|\*)|')*(?:\s*\([\w\s,]*\))?\|?)"
)
NAME = re.compile(rf"\s*(?:{ONE_NAME}(?:\s*:\s*{ONE_NAME})*|\(\s*{ONE_NAME}(?:\s*,\s*{ONE_NAME})*\s*\))\s*")
NOT_NAMES = re.compile(r"\\(?:frac|sqrt|binom|sin|cos|tan|log|ln|exp|pi|sum|prod|int|infty|lim)(?![A-Za-z])")
FREE_LETTER = re.compile(r"(?<![\\A-Za-z])[A-Za-z]")
CONNECTOR = re.compile(r"«\s*[,;]?\s*(?:and|or)\s*»|\s(?:and|or)\s|\)\s*or\s*\(|\\(?:land|lor|wedge|vee)(?![A-Za-z])")
RELATION = re.compile(r"\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|<|>")
MATRIX = re.compile(
    r"[\[(]?\s*\\begin\{(?P<kind>[pbv]?matrix|array)\}(?:\s*\{[clr|\s]*\})?(?P<body>.*?)\\end\{(?P=kind)\}\s*[\])]?",
    re.S,
)
UNION = "\\cup"
FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}


@dataclass(frozen=True)
class Group:
    """Elements between brackets: `open` and `close` are "(", "[", "\\{" or "" for a bare list."""

    open: str
    close: str
    elements: tuple[str, ...]

    @property
    def unordered(self) -> bool:
        return self.open in ("", "\\{")


def split(text: str, *separators: str) -> list[str]:
    """A text cut at separators that stand outside of all brackets."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        letter = text[at]
        found = next((s for s in separators if depth == 0 and text.startswith(s, at)), None)
        if found and not (found[-1].isalpha() and text[at + len(found) : at + len(found) + 1].isalpha()):
            parts.append(text[start:at].strip())
            at = start = at + len(found)
            continue
        if letter == "\\":
            word = re.compile(r"\\(?:[A-Za-z]+|.)", re.S).match(text, at)
            depth += {"\\{": 1, "\\}": -1, "\\begin": 1, "\\end": -1}.get(word[0], 0) if word else 0
            at = word.end() if word else at + 1
            continue
        depth += (letter in "([{«") - (letter in ")]}»")
        at += 1
    return [*parts, text[start:].strip()]


def closing(text: str) -> int:
    """Where the bracket that a text begins with closes, of whatever kind it is; -1 where it does not."""
    depth, at = 0, 0
    while at < len(text):
        size = 2 if text[at] == "\\" and at + 1 < len(text) else 1
        piece = text[at : at + size]
        depth += (piece in ("(", "[", "{", "\\{")) - (piece in (")", "]", "}", "\\}"))
        if depth == 0:
            return at + size
        at += size
    return -1


def group(text: str) -> Group:
    """The elements of a text and the brackets around them; plain braces are no brackets."""
    text = text.strip()
    while text.startswith("{") and partner(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    for opening in ("\\{", "(", "["):
        if text.startswith(opening) and closing(text) == len(text):
            close = "\\}" if text.endswith("\\}") else text[-1]
            inner = split(text[len(opening) : -len(close)], ",", ";")
            if len(inner) > 1 or opening == "\\{":
                return Group(opening, close, doubled(tuple(inner)))
    text = CONNECTOR.sub(lambda found: "),(" if found[0][0] == ")" else ",", text)
    groups = split(text, ";")
    if len(groups) > 1 and any(len(split(part, ",")) > 1 for part in groups):
        return Group("", "", tuple(f"({part})" for part in groups if part))
    return Group("", "", doubled(tuple(part for whole in groups for part in split(whole, ",") if part)))


def doubled(elements: tuple[str, ...]) -> tuple[str, ...]:
    r"""Elements with \pm written out: each becomes two."""
    return tuple(
        half.strip().removeprefix("+").strip()
        for element in elements
        for half in (
            (element.replace("\\pm", "+").replace("\\mp", "-"), element.replace("\\pm", "-").replace("\\mp", "+"))
            if "\\pm" in element or "\\mp" in element
            else (element,)
        )
    )


def measured(text: str) -> tuple[str, str]:
    """An answer without the unit behind it, and that unit in one spelling."""
    found = TRAILING_UNIT.search(text)
    body = text[: found.start()] if found else ""
    if not found or CONNECTOR.search(found["unit"]) or "«" in body or not re.search(r"\d", body):
        return text, ""
    unit = re.sub(r"[^a-z0-9]+", " ", found["unit"].lower()).strip()
    return body, " ".join(word.rstrip("s") for word in unit.split())


def named(text: str) -> tuple[str, str]:
    """`x = 5` -> x, 5; the last value of a chain; what is only approximate is dropped. No name: an empty one."""
    exact = split(text, "\\approx")
    if len(exact) > 1:
        text = " = ".join(exact[:2]) if NAME.fullmatch(exact[0]) and "=" not in exact[0] else exact[0]
    parts = split(text, "=")
    if len(parts) == 1:
        parts = split(text, "\\in")
    if len(parts) == 1 or not all(parts):
        return "", text
    head = parts[0]
    if NAME.fullmatch(head) and not NOT_NAMES.search(head) and not all(re.fullmatch(r"[A-Za-z]", p) for p in parts):
        return head, parts[-1]
    return "", text


def equation(text: str) -> bool:
    """Whether a text has an equals sign outside of all brackets."""
    return "=" in text and len(split(text, "=")) > 1


def result(text: str) -> str:
    r"""`\binom{5}{2} = 10` -> 10, where the left side is numbers alone; other equations stay."""
    parts = split(text, "=")
    left = "".join(parts[:-1])
    return parts[-1] if len(parts) > 1 and all(parts) and not FREE_LETTER.search(left) else text


def interval(text: str) -> str | None:
    """`-2 <= x < 7` as the interval [-2,7); None where it is none."""
    signs = [found[0] for found in RELATION.finditer(text)]
    parts = [part.strip() for part in RELATION.split(text)]
    if len(signs) == 1 and NAME.fullmatch(parts[1]):
        parts, signs = parts[::-1], [FLIPPED.get(signs[0], "")]
    if len(signs) == 1 and NAME.fullmatch(parts[0]) and signs[0] in FLIPPED:
        above, closed = signs[0] in (">", "\\ge"), signs[0] in ("\\le", "\\ge")
        bracket = ("[" if closed else "(") if above else ("]" if closed else ")")
        return f"{bracket}{parts[1]},\\infty)" if above else f"(-\\infty,{parts[1]}{bracket}"
    if len(signs) == 2 and NAME.fullmatch(parts[1]):
        if all(sign in (">", "\\ge") for sign in signs):
            parts, signs = parts[::-1], [FLIPPED[sign] for sign in signs[::-1]]
        if all(sign in ("<", "\\le") for sign in signs):
            opening, close = ("[" if signs[0] == "\\le" else "("), ("]" if signs[1] == "\\le" else ")")
            return f"{opening}{parts[0]},{parts[2]}{close}"
    return None


def matrix(text: str) -> list[list[str]] | None:
    """The cells of a text that is one matrix and nothing else; a determinant's bars make it another thing."""
    found = MATRIX.fullmatch(text.strip())
    if not found or found["kind"] == "vmatrix" or text.count("\\begin") != 1:
        return None
    rows = [row for row in re.split(r"\\\\", found["body"]) if row.strip()]
    return [[cell.strip() for cell in row.replace("\\hline", "").split("&")] for row in rows]


def choice(text: str, alone: bool) -> str:
    """`(A) 12` is A where a letter is asked for (`alone`), else 12; other texts stay."""
    labelled = LABELLED.fullmatch(text)
    if labelled:
        return (labelled[1] or labelled[2]) if alone else labelled[3]
    return text


def letter(text: str) -> str | None:
    """The letter of a text that is one letter, brackets and marks of text aside."""
    found = LETTER.fullmatch(text)
    return found[1] if found else None
