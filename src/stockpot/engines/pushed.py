"""vLLM in place of the reference sampler: started at the first request, sent the weights of whoever is to write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from stockpot import lora
from stockpot.config import Config
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
            self.sampler = VLLMSampler(
                self.folder,
                author=author,
                stop_tokens=self.stops,
                max_rows=self.config.decode_rows,
                options=self.config.vllm,
                lora=self.config.learner.lora,
            )
        if author != self.sent:
            self.sent = None  # should it fail half way
            self.sampler.load(weights(), author.version)
            self.sent = author
        return self.sampler.continue_(requests, seed)
