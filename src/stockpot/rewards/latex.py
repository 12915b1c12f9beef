"""One spelling for LaTeX that means the same: wrappers and spacing go, commands with two names get one."""

from __future__ import annotations

import re
import unicodedata

LETTERS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "×": "\\times ", "⋅": "\\cdot ", "·": "\\cdot ", "÷": "\\div ", "∗": "*",
        "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "π": "\\pi ", "∞": "\\infty ", "√": "\\sqrt ",
        "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ", "±": "\\pm ", "°": "^\\circ ", "′": "'",
        "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}",
        "€": "", "£": "", "¥": "", "«": "", "»": "", "…": "\\ldots ", "∖": "\\setminus ", "θ": "\\theta ",
        "α": "\\alpha ", "β": "\\beta ", "γ": "\\gamma ", "λ": "\\lambda ", "φ": "\\phi ", "⟨": "\\langle ",
        "⟩": "\\rangle ", "ℝ": "\\mathbb{R}", "’": "'", "：": ":", "\x0c": "\\f",
    }
)  # fmt: skip
"""Unicode that has a LaTeX name. « and » are kept for our own use: they hold the text of a formula."""
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), put)
    for pattern, put in [
        (r"\\\\\s*\[[^\]]*\]", r"\\\\ "),  # a line end with an amount of space
        (r"(?<!\\)\\[()\[\]]|\\?\$", ""),  # mathematics on and off; a dollar sign is a currency
        (r"\\(?:left|right|[bB]igg?)[lrm]?(?![A-Za-z])\s*\.?", ""),
        (r"\\(?:displaystyle|limits|textstyle|scriptstyle|nolimits|noindent|cr)(?![A-Za-z])", ""),
        (r"(?<=\d)(?:\{,\}|,\s*\\!)\s*(?=\d{3})", ","),
        (r"(?<=\d)(?:,\\!|\\!,)\s*(?=\d{3})", ","),
        (r"\\q?quad|\\[,;:! >]|~|\\(?:thin|med|thick|en)?space(?![A-Za-z])|\\[hv]space\*?\{[^{}]*\}", " "),
        (r"\\(?:mathbf|boldsymbol|bm|mathit|bold|mathnormal|mathcal)\s*\{([^{}]*)\}", r"\1"),
        (r"\\(?:mathrm|text|textrm|operatorname)\s*\{\s*([eid])\s*\}", r"\1"),
        (r"\\(?:text[a-z]*|mathrm|mbox|hbox|mathsf|mathtt|emph|operatorname)\*?\s*\{([^{}]*)\}", "«\\1»"),
        (r"\\text[a-z]*(?![A-Za-z{])", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\\choose(?![A-Za-z])", r"\\mod"),  # an old spelling that is not read
        (r"\\(?:leqslant|leqq|leq)(?![A-Za-z])|<=|=<", r"\\le "),
        (r"\\(?:geqslant|geqq|geq)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:neq|not\s*=)|!=", r"\\ne "),
        (r"\\varnothing(?![A-Za-z])|\\O(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\[lr]vert(?![A-Za-z])|\\vert(?![A-Za-z])", "|"),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\(?:dots[bcimo]?|cdots|ldots)(?![A-Za-z])|\.\.\.+", r"\\ldots "),
        (r"\\(?:infin|infty)(?![A-Za-z])", r"\\infty "),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degrees?(?![A-Za-z])", " «degrees»"),
        (r"\\%|(?<=[\d»\s}])\s*«?\s*percent\s*»?(?![A-Za-z])", "%"),
        (r"\^\s*\{?\s*\\prime\s*\}?", "'"),
        (r"\*\*", "^"),
        (r"(?<![\w.])np\.", ""),
        (r"(?<![\\A-Za-z«])(a?(?:rc)?(?:sin|cos|tan)|sqrt|pi|cot|sec|csc|ln|log|exp|infty)(?![A-Za-z])", r"\\\1"),
        (r"(?<![\\A-Za-z«])infinity(?![A-Za-z])", r"\\infty "),
        (r"\\bigcup", r"\\cup"),
        (r"\\setminus|\\backslash", r"\\setminus "),
        (r"\\ast(?![A-Za-z])", "*"),
        (r"\\sqrt\s*\{\s*-\s*1\s*\}", "i"),
        (r"[ \t\r\n]+", " "),
    ]
)
GROUPED = re.compile(r"(?<![\d.,\w])\d{1,3}(?:(?: |'|,)\d{3})+(?![\d])")
COMMAND = re.compile(r"\\(frac|binom|sqrt)(?![A-Za-z])")
LONE = re.compile(r"([\^_])\s*\{\s*(\w)\s*\}")
WRAPPED = re.compile(r"\\(?:boxed|fbox)\s*\{(.*)\}", re.S)
OPENING = {"{": "}", "(": ")", "[": "]"}


def clean(text: str) -> str:
    """One spelling; the words of a formula stand between « and »."""
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda run: f"^{{{run[0].translate(RAISED)}}}", text)
    text = unicodedata.normalize("NFKC", text.translate(LETTERS)).translate(LETTERS).strip()
    if (wrapped := WRAPPED.fullmatch(text)) and closes(wrapped[1]):
        text = wrapped[1]
    for pattern, put in RULES:
        text = pattern.sub(put, text)
    text = arguments(text)
    text = text.strip()
    while text and text[-1] in ".,;:" and not text.endswith("\\,"):
        text = text[:-1].rstrip()
    return text


def joined(text: str) -> str:
    """Digits in groups of three become one number: 1,000 and 1 000 and 1'000."""
    return GROUPED.sub(lambda number: re.sub(r"\D", "", number[0]) if number[0][0] != "0" else number[0], text)


def bare(text: str) -> str:
    """The same without blanks and without marks of text: two answers that agree in this are the same answer.

    A blank between two digits stays: 1 2 is not 12.
    """
    return re.sub(r"[\s«»]+", "", LONE.sub(r"\1\2", re.sub(r"(?<=[\d.])\s+(?=[\d.])", "~", text)))


def closes(text: str) -> bool:
    """Whether the braces of a text are balanced."""
    depth = 0
    for letter in re.findall(r"\\.|[{}]", text):
        depth += (letter == "{") - (letter == "}")
        if depth < 0:
            return False
    return depth == 0


def partner(text: str, start: int) -> int:
    """Where the bracket at `start` closes; -1 where it does not."""
    opening, depth = text[start], 0
    for i in range(start, len(text)):
        if text[i] in (opening, OPENING[opening]) and (i == 0 or text[i - 1] != "\\"):
            depth += 1 if text[i] == opening else -1
            if depth == 0:
                return i
    return -1


def arguments(text: str) -> str:
    r"""\frac12 and \sqrt2 with braces around what they act on; from the right, so that what is inside comes first."""
    for command in reversed(list(COMMAND.finditer(text))):
        at, parts = command.end(), []
        if command[1] == "sqrt" and text[at:].lstrip().startswith("["):
            opened = text.index("[", at)
            closed = partner(text, opened)
            if closed < 0:
                continue
            parts, at = [text[opened : closed + 1]], closed + 1
        for _ in range(1 if command[1] == "sqrt" else 2):
            piece, at = argument(text, at, command[1])
            parts.append(piece)
        if all(parts):
            text = text[: command.start()] + f"\\{command[1]}" + "".join(parts) + text[at:]
    return text


def argument(text: str, at: int, command: str) -> tuple[str, int]:
    """The next argument, in braces, and where it ends; empty where there is none."""
    while at < len(text) and text[at] == " ":
        at += 1
    if at == len(text):
        return "", at
    if text[at] == "{" or (text[at] == "(" and command == "sqrt"):
        closed = partner(text, at)
        return ("{" + text[at + 1 : closed].strip() + "}", closed + 1) if closed > 0 else ("", at)
    word = re.compile(r"\\[A-Za-z]+|\w").match(text, at)
    if word and text[at] == "\\" and COMMAND.match(text, at):
        end = word.end()
        for _ in range(1 if word[0] == "\\sqrt" else 2):
            if end >= len(text) or text[end] != "{" or (end := partner(text, end) + 1) == 0:
                return "", at
        return "{" + text[at:end] + "}", end
    return ("{" + word[0] + "}", word.end()) if word else ("", at)
