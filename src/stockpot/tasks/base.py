"""What a task is: prompts, and a reward for what is written after them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


class Task(ABC):
    """Rows and a reward, both in TRL's conventions: a `prompt` column (text or messages), any columns beside it."""

    step_words: ClassVar[tuple[str, ...]] = ()
    """Words that end a step of a response, for rules that cut there."""

    @property
    def closing(self) -> str:
        """The words that close the thinking of a response and begin its answer; empty where there are no such."""
        return ""

    @abstractmethod
    def rows(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """All rows of a split, the same at every call. `prompt` is asked; the other columns go to the reward."""

    def left_out(self, split: Split) -> str:
        """What is in the data of a split and not in its rows, in one line; empty: nothing."""
        return ""

    def demonstrate(self, columns: Mapping[str, Any], count: int) -> list[str]:
        """Up to `count` responses by an outsider to the prompt of these columns: its column `demonstration`, if any."""
        found = columns.get("demonstration", ())
        return [found][:count] if isinstance(found, str) else [str(text) for text in found or ()][:count]

    def critique(self, columns: Mapping[str, Any], attempt: str, right: bool) -> str | None:
        """What the task's own checker says of an attempt, for traces of trial and error; None where it cannot tell."""
        return None

    def merge(self, columns: Mapping[str, Any], attempts: Sequence[str], critiques: Sequence[str]) -> str | None:
        """One response that tries, checks, tries again and answers as the last attempt does; None where it cannot."""
        return None

    def observe(self, completions: Sequence[Any], rewards: Sequence[float]) -> dict[str, float]:
        """Further figures of these completions, means over them: what the task alone can tell of a response."""
        return {}

    @abstractmethod
    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        """One number per completion. Total: whatever a policy writes gets a number, soon."""

    def distinct(self, answers: Sequence[str]) -> int | None:
        """How many different answers these right answers to one prompt are; None: this task cannot tell them apart."""
        return None


class EmbeddedTask(Task):
    """A task that needs nothing from outside: it brings its own tokenizer, model shape and demonstrations."""

    @abstractmethod
    def tokenizer(self) -> Any:
        """A Hugging Face tokenizer made on the spot."""

    @abstractmethod
    def model_config(self) -> Any:
        """The transformers config of a model small enough for a laptop."""

    @abstractmethod
    def demonstrations(self, seed: int) -> Iterator[tuple[str, str]]:
        """Endless (prompt, response) pairs for the supervised start, all by the generator; none from the test split."""


def small_qwen3(vocabulary: int, positions: int) -> Any:
    """The transformers config of the small model that embedded tasks share: 0.4 M parameters, token 0 pads, 1 stops."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
        max_position_embeddings=positions,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.08,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
