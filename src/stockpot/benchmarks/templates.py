"""How a problem is put to a model.

The mathematical ones are, letter for letter, those of the evaluations that models are compared by (QwenLM/Qwen2.5-Math
and hkust-nlp/simpleRL-reason, zero shots); where a prompt would end in blanks these are cut off, as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stockpot.benchmarks.problem import Kind, Problem
from stockpot.types import StockpotError

BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
ENDS = ("</s>", "<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Template:
    """The text around a problem, and what ends a response besides the model's own stop tokens."""

    text: str
    """`{input}` stands for the problem."""
    stops: tuple[str, ...] = ENDS
    """The response is judged up to the first of these; those that are a token of the model's end the sampling."""

    def fill(self, question: str) -> str:
        """The prompt of a problem."""
        return self.text.replace("{input}", question).strip(" ")


TEMPLATES: dict[str, Template] = {
    "none": Template("{input}"),
    "mathstral": Template("{input}\n" + BOXED),
    "direct": Template("Question: {input}\nAnswer: "),
    "cot": Template("Question: {input}\nAnswer: ", (*ENDS, "\n\nQuestion:")),
    "abel": Template("Question:\n{input}\nAnswer:\nLet's think step by step.\n", (*ENDS, "Question:", "Answer:")),
    "deepseek-math": Template("User: {input}\n" + BOXED + "\n\nAssistant:", (*ENDS, "User:", "Assistant:")),
    "qwen-boxed": Template(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n{input}\n" + BOXED + "<|im_end|>\n<|im_start|>assistant\n"
    ),
    "qwen25-math-cot": Template(
        "<|im_start|>system\n" + BOXED + "<|im_end|>\n<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n"
    ),
}
"""By the names that those evaluations give them; `none` is the bare problem."""

PLAIN: dict[Kind, Template] = {
    "maths": TEMPLATES["mathstral"],
    "functions": Template("{input}", ("\nclass", "\ndef", "\n#", "\nif", "\nprint")),
    "programs": Template('"""\n{input}\n"""\n# A complete Python program that reads stdin and writes stdout:\n', ENDS),
}
"""For base models. HumanEval is its own prompt, with the stops of its paper."""
PLAIN_MBPP = Template('"""\n{input}\n"""\n', ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```"))
"""A docstring of the task and its tests, with the stops that go with it in common harnesses."""

ASKS: dict[Kind, str] = {
    "maths": "{input}\n" + BOXED,
    "functions": "Complete this Python; answer with the whole code in one block.\n\n```python\n{input}\n```",
    "programs": "Write a Python program that solves this problem. It reads the input from stdin and writes the answer "
    "to stdout. Answer with the whole program in one block of code.\n\n{input}",
}
"""What the user says to an instruct model, inside the model's own chat template."""
ASK_MBPP = "{input}\n\nWrite it in Python, and answer with the code in one block."


@dataclass(frozen=True)
class Asked:
    """A prompt as it is sent."""

    tokens: list[int]
    text: str


def is_instruct(tokenizer: Any, stops: Sequence[int]) -> bool:
    """Whether the chat template is one that the model was taught: a turn ends with one of its stop tokens.

    Base models often ship a template too, but stop at another token than the one that ends a turn in it.
    """
    if not getattr(tokenizer, "chat_template", None):
        return False
    talk = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    end = str(tokenizer.apply_chat_template(talk, tokenize=False)).rpartition("2")[2]
    return any(tokenizer.convert_ids_to_tokens(stop) in end for stop in stops)


def pick(wish: str, tokenizer: Any, stops: Sequence[int]) -> str:
    """The template's name: as wished, or chat for instruct models and plain for base models."""
    if wish == "auto":
        return "chat" if is_instruct(tokenizer, stops) else "plain"
    if wish not in ("chat", "plain", *TEMPLATES):
        raise StockpotError(f"--template knows no {wish}; it knows auto, chat, plain, {', '.join(TEMPLATES)}.")
    if wish == "chat" and not getattr(tokenizer, "chat_template", None):
        raise StockpotError("--template chat needs a chat template, and the model's tokenizer has none: use plain.")
    return wish


def template(name: str, kind: Kind, problem: Problem) -> Template:
    """The template of that name for a kind of problem; those for mathematics are refused to programs."""
    mbpp = "test_list" in problem.columns
    if name == "plain":
        return PLAIN_MBPP if mbpp else PLAIN[kind]
    if name == "chat":
        return Template(ASK_MBPP if mbpp else ASKS[kind], ())
    if kind != "maths" and name != "none":
        raise StockpotError(f"--template {name} asks for a box, which programs have not: use auto, chat or plain.")
    return TEMPLATES[name]


def question(problem: Problem) -> str:
    """What is asked; MBPP's tests are part of it, since nothing else names the function."""
    tests: Sequence[str] = problem.columns.get("test_list", ())
    if not tests:
        return problem.question
    return f"{problem.question}\nYour code should satisfy these tests:\n" + "\n".join(tests)


def ask(name: str, kind: Kind, problem: Problem, tokenizer: Any) -> Asked:
    """The prompt in tokens."""
    text = template(name, kind, problem).fill(question(problem))
    if name == "chat":
        talk = [{"role": "user", "content": text}]
        text = str(tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False))
        return Asked(list(tokenizer(text, add_special_tokens=False)["input_ids"]), text)
    return Asked(list(tokenizer(text)["input_ids"]), text)


def stop_ids(stops: Sequence[str], tokenizer: Any) -> set[int]:
    """Those of the stops that are one special token of this tokenizer."""
    special: Mapping[str, int] = tokenizer.get_added_vocab()
    return {special[stop] for stop in stops if stop in special}


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stops.

    >>> cut("return 1\\n\\nprint(2)", ["\\nprint", "\\ndef"])
    'return 1\\n'
    """
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]
