"""vLLM in place of the reference sampler: beside a policy, started at the first request and sent the weights of whoever
is to write; or in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from stockpot import lora
from stockpot.config import Config
from stockpot.models import load_tokenizer, stop_tokens, without_weights
from stockpot.samplers.vllm import VLLMSampler
from stockpot.types import Author, Request, Rollout


class Pushed:
    """One vLLM for all versions of a policy. A version's weights are sent once, before the first thing that it writes.

    `weights` is the folder or hub id that the policy was loaded from: vLLM starts from it, or from the base of the
    adapter in it, but writes nothing before it was sent the policy's own.
    """

    def __init__(self, config: Config, weights: str, stops: Sequence[int]) -> None:
        self.config, self.stops = config, stops
        self.folder = lora.base_of(Path(weights)) or weights
        self.sampler: VLLMSampler | None = None
        self.sent: Author | None = None

    def continue_(
        self, requests: Sequence[Request], seed: int, author: Author, weights: Callable[[], Mapping[str, Tensor]]
    ) -> list[Rollout]:
        """Continuations by `author`, whose weights are asked for if vLLM has others."""
        if self.sampler is None:
            self.sampler = _started(self.config, self.folder, author, self.stops)
        if author != self.sent:
            self.sent = None  # should it fail half way
            self.sampler.load(weights(), author.version)
            self.sent = author
        return self.sampler.continue_(requests, seed)


def alone(config: Config, run: str, origin: str) -> tuple[VLLMSampler, int]:
    """A vLLM without a torch model beside it, and the longest sequence that the model reads (0: no limit).

    It has the weights of `origin`, which sign as no version, until others are loaded.
    """
    sketch = without_weights(origin)
    stops = stop_tokens(sketch, load_tokenizer(origin))
    context = getattr(sketch.config, "max_position_embeddings", 0) or 0
    return _started(config, origin, Author(run), stops), context


def _started(config: Config, folder: str, author: Author, stops: Sequence[int]) -> VLLMSampler:
    rows, options, adapter = config.decode_rows, config.vllm, config.learner.lora
    return VLLMSampler(folder, author=author, stop_tokens=stops, max_rows=rows, options=options, lora=adapter)
