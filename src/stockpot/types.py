"""The vocabulary of stockpot: prompt -> prefix -> continuation -> reward. Read this file first.

One idea carries the library: **every token remembers who wrote it**. A rollout is a prompt followed by
*spans*; each span has one *author* and the log-probs which that author gave its tokens under the distribution
that it really sampled from. All the kinds of experience are then one type::

    on-policy sample      [ v120 ........................ ]
    SOUP sample           [ v87 ....... ][ v120 ......... ]
    replayed sample       [ v87 ........................ ]
    demonstration         [ outsider, log-prob unknown .. ]

Token ids are the truth; text is only ever a view of them.

Letters used in shapes, here and everywhere: ``S`` rollouts, ``N`` response tokens of a batch laid end to end,
``B`` rows and ``T`` columns of the model's input, ``V`` vocabulary.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from torch import Tensor

Kind = Literal["continuation", "prefix", "demonstration"]
KINDS: tuple[Kind, ...] = ("continuation", "prefix", "demonstration")
"""What a span is to the sample that holds it; the index in this tuple is its code in a `Batch`."""

Finish = Literal["stop", "length"]


class StockpotError(Exception):
    """A mistake of the user's or of the machine's, told in one line that names the cause and the cure."""


def tokens(ids: Sequence[int]) -> array[int]:
    """Token ids as the library stores them: four bytes each, compared by value."""
    return ids if isinstance(ids, array) and ids.typecode == "i" else array("i", ids)


def floats(values: Sequence[float]) -> array[float]:
    """Log-probs as the library stores them: float32, so that a round trip through a file is exact."""
    return values if isinstance(values, array) and values.typecode == "f" else array("f", values)


@dataclass(frozen=True, slots=True)
class Author:
    """Who wrote a token.

    >>> Author("my-run", version=87).age(now=120)   # this run's policy after 87 updates, seen at update 120
    33
    >>> Author("a textbook").age(now=120) is None   # an outsider: no version, so no age
    True
    """

    run: str
    """The run whose policy wrote it; for an outsider, a name."""
    version: int | None = None
    """Training steps that the policy had behind it; None for an outsider."""

    def age(self, now: int) -> int | None:
        return None if self.version is None else now - self.version


@dataclass(frozen=True, slots=True)
class Sampling:
    """The distribution tokens are drawn from. Log-probs are always those of the distribution *after* all of these."""

    temperature: float = 1.0
    """Logits are divided by it; 0 means greedy (for evaluation: its log-probs are all 0)."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches p; 1 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one; 0 drops none."""

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 0, 100), ("top_p", 0, 1), ("min_p", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise StockpotError(f"{name} must lie in {low}..{high}, not {getattr(self, name)}.")
        if self.top_k < 0 or self.top_p == 0:
            raise StockpotError("top_k must be 0 (all) or more, and top_p above 0.")

    @property
    def truncated(self) -> bool:
        """Whether some tokens are cut off, so that log-probs need the whole distribution to be made again."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens by one author.

    >>> Span(Author("my-run", 87), tokens=[5, 9, 2], log_probs=[-0.5, -0.25, -1.0]).log_probs[1]
    -0.25
    >>> len(Span(Author("a textbook"), tokens=[5, 9], kind="demonstration"))    # log-probs unknown
    2
    """

    author: Author
    tokens: Sequence[int]
    log_probs: Sequence[float] | None = None
    """What the author gave each token when it sampled it, under `sampling`; None where nobody knows."""
    kind: Kind = "continuation"
    sampling: Sampling = Sampling()
    trained: bool = True
    """Whether these tokens may carry gradient."""
    source: int | None = None
    """For a prefix: the id, in the history, of the rollout that it was cut from."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tokens(self.tokens))
        if self.log_probs is not None:
            object.__setattr__(self, "log_probs", floats(self.log_probs))
            if len(self.log_probs) != len(self.tokens):
                raise StockpotError(f"a span has {len(self.tokens)} tokens but {len(self.log_probs)} log-probs.")

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> Span:
        """A piece of the span: the same author, fewer tokens."""
        return replace(
            self, tokens=self.tokens[part], log_probs=None if self.log_probs is None else self.log_probs[part]
        )


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a rollout answers.

    >>> Prompt("2+2", tokens=[4, 1, 4], text="2 + 2", columns={"answer": "4"}).columns["answer"]
    '4'
    """

    key: str
    """Stable name of the prompt: the history finds past rollouts by it."""
    tokens: Sequence[int]
    text: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The dataset's other columns; the reward function gets them by name."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tokens(self.tokens))


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prompt and the spans that answer it.

    A SOUP sample, seen at step 120: the head is three tokens of step 87's policy, the tail is live.

    >>> head = Span(Author("my-run", 87), [5, 9, 2], [-0.5, -0.25, -1.0], kind="prefix", source=4711)
    >>> tail = Span(Author("my-run", 120), [7, 1], [-0.125, -0.5])
    >>> rollout = Rollout(Prompt("2+2", [4, 1, 4]), (head, tail), reward=1.0)
    >>> list(rollout.tokens), len(rollout), rollout.prefix_length
    ([5, 9, 2, 7, 1], 5, 3)
    """

    prompt: Prompt
    spans: tuple[Span, ...]
    reward: float | None = None
    finish: Finish = "stop"
    """Why it ended: it wrote a stop token, or ran out of room."""
    id: int | None = None
    """Its id in the history; None before it is stored."""

    def __len__(self) -> int:
        return sum(len(span) for span in self.spans)

    @property
    def tokens(self) -> array[int]:
        """The response's ids: all spans joined (the prompt is not part of it)."""
        joined = array("i")
        for span in self.spans:
            joined.extend(span.tokens)
        return joined

    @property
    def prefix_length(self) -> int:
        """Tokens that were there before the live continuation began."""
        return sum(len(span) for span in self.spans if span.kind == "prefix")


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one prompt in one step: what a group baseline averages over."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> list[float]:
        return [0.0 if rollout.reward is None else rollout.reward for rollout in self.rollouts]


class Candidate(NamedTuple):
    """What the history tells of a stored rollout before its tokens are read: a tuple, since there may be 100,000."""

    id: int
    version: int
    reward: float
    length: int


@dataclass(frozen=True, slots=True)
class Request:
    """An order to a sampler: continue `prompt` + `prefix` until a stop token or `max_tokens` response tokens.

    `key` and the call's seed decide the random numbers, so a request gets the same tokens in any batch.
    """

    prompt: Prompt
    key: int
    prefix: tuple[Span, ...] = ()
    sampling: Sampling = Sampling()
    max_tokens: int = 64
    """Room for the whole response, the prefix included."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rollouts as tensors; made by `batching` alone. The model reads rows; a loss reads the flat stream of tokens.

    Two rollouts, prompt [4, 1], responses [5, 9] and [7], become::

        ids            [[4, 1, 5, 9],      rollout   [0, 0, 1]      tokens    [5, 9, 7]
                        [4, 1, 7, 0]]      row       [0, 0, 1]      column    [2, 3, 2]

    so `log_probs[n]` is the log-prob of `tokens[n]`, predicted at `ids[row[n], column[n] - 1]`.
    """

    ids: Tensor
    """[B, T] what the model reads."""
    positions: Tensor
    """[B, T] place of each token in its own sequence."""
    segments: Tensor
    """[B, T] which sequence of its row a token belongs to (several when packed); -1 is padding."""
    row: Tensor
    """[N] where each response token stands in `ids` ..."""
    column: Tensor
    """[N] ... never column 0."""
    tokens: Tensor
    """[N] the response tokens."""
    trained: Tensor
    """[N] bool: whether a token may carry gradient."""
    author_log_probs: Tensor
    """[N] what its author gave it; 0 where unknown."""
    known: Tensor
    """[N] bool: whether that is known."""
    age: Tensor
    """[N] steps since its author's version; -1 for an outsider or another run's policy."""
    kind: Tensor
    """[N] index into `KINDS`."""
    sampling: Tensor
    """[N] index into `samplings`: the distribution the author drew it from."""
    index: Tensor
    """[N] place in its response, from 0."""
    rollout: Tensor
    """[N] which rollout of the batch it belongs to."""
    advantages: Tensor
    """[N] the advantage, a token's rollout's unless an algorithm gives one per token."""
    rewards: Tensor
    """[S] the reward of each rollout."""
    lengths: Tensor
    """[S] trained tokens of each rollout."""
    group: Tensor
    """[S] which group of the step each rollout belongs to."""
    samplings: tuple[Sampling, ...]
    reference_log_probs: Tensor | None = None
    """[N] what the reference policy gives each token, where a regulariser asked for it."""
    values: Tensor | None = None
    """[N] what a critic expected before each token, before the update."""
    returns: Tensor | None = None
    """[N] what it should have expected."""

    @property
    def size(self) -> int:
        """How many rollouts it holds."""
        return self.rewards.shape[0]

    @property
    def packed(self) -> bool:
        """Whether some row holds more than one sequence, so that attention needs a mask of blocks."""
        return bool((self.segments > 0).any())


@dataclass(frozen=True, slots=True)
class Totals:
    """Sizes of one whole update, from which every denominator comes: no micro-batch ever counts for itself."""

    tokens: int
    """Trained tokens."""
    rollouts: int
    """Rollouts with at least one trained token."""
    max_tokens: int
    """Room for a response: Dr. GRPO's constant."""
