"""What a run would take, reckoned from its configuration and the model's shape: memory, tokens, operations.

A device samples and learns in turn, as `engines.local` does; `plan.layout` makes several of it, `plan.fleet` adds the
seconds. Nothing is loaded. What is not known before a run is an `Assumed`; what the formulas take for granted is a
constant in `plan.base`. All of it is told beside the figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from stockpot import lora, scoring
from stockpot.algorithms.base import ActorCritic
from stockpot.config import Config
from stockpot.plan import work
from stockpot.plan.base import (
    DEVICES,
    DRAWN,
    GB,
    HALF,
    KINDS,
    LOOK,
    MASTER,
    MOMENTS,
    WORKING_LAYERS,
    Assumed,
    Operations,
    Part,
    Phase,
    State,
    Tokens,
)  # fmt: skip
from stockpot.plan.lengths import longest_prefix
from stockpot.prefixes import LiveRule
from stockpot.samplers.torch import PREFILL_TOKENS
from stockpot.shapes import Shape, memory_here
from stockpot.types import StockpotError


@dataclass(frozen=True)
class Plan:
    """A configuration on a device."""

    config: Config
    shape: Shape
    device: str
    assumed: Assumed = Assumed()
    among: int = 1
    """Devices that share the rollouts of a step."""
    copies: bool = False
    """Whether a sampler has weights of its own, in the type that matrices are multiplied in."""

    def __post_init__(self) -> None:
        if self.device not in (*DEVICES, "cpu"):
            raise StockpotError(f"--gpu knows no {self.device}; it knows {', '.join((*DEVICES, 'cpu'))}.")
        room = self.shape.positions - self.config.max_tokens
        if self.shape.positions and room < 1:
            raise StockpotError(
                f"max_tokens is {self.config.max_tokens}, but {self.shape.name} reads {self.shape.positions} tokens in "
                "all: lower --max-tokens, so that a prompt fits before the response."
            )

    # --- sizes ------------------------------------------------------------------------------------------------------

    @property
    def mixed(self) -> bool:
        """Whether matrices are multiplied in bfloat16 while learning."""
        wish = self.config.learner.dtype
        return wish == "bfloat16" or (wish == "auto" and self.device != "cpu")

    @property
    def adapter(self) -> int:
        """Parameters of the LoRA adapter; 0 where the model itself is trained."""
        options = self.config.learner.lora
        sizes = dict(self.shape.linears)
        return options.rank * sum(sizes[name] for name in lora.chosen(sizes, options.targets)) if options.rank else 0

    @property
    def trained(self) -> int:
        """Parameters that have gradients and moments."""
        return self.adapter or self.shape.parameters

    @property
    def stored(self) -> int:
        """Bytes of a weight of the model as it lies in memory."""
        return HALF if self.config.learner.lora.keeps_half(self.mixed) else MASTER

    @property
    def decoding(self) -> int:
        """Bytes of a weight that decodes, and of a key or a value in the cache."""
        return HALF if self.copies and self.mixed else self.stored

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt: as assumed, or what the context leaves."""
        room = self.shape.positions - self.config.max_tokens if self.shape.positions else self.assumed.longest_prompt
        return min(self.assumed.longest_prompt, room)

    @property
    def pass_tokens(self) -> int:
        """Tokens of the largest pass: the budget, or the longest rollout where that is more, or the whole update."""
        longest = self.longest_prompt + self.config.max_tokens
        rollouts = self.config.prompts_per_step * self.config.group_size // self.config.updates_per_step
        update = math.ceil(rollouts / self.among) * longest
        return min(max(self.config.learner.tokens_per_pass, longest), update)

    @property
    def rows(self) -> int:
        """Rollouts decoded at one time, in training or in evaluation, whichever has more."""
        return min(self.config.decode_rows, self._asked)

    @property
    def _asked(self) -> int:
        """Rollouts that one device is asked for at most."""
        training = self.config.prompts_per_step * self.config.group_size
        testing = self.config.evaluation.prompts * self.config.evaluation.samples
        return math.ceil(max(training, testing) / self.among)

    @property
    def columns(self) -> int:
        """Columns of the cache: the longest context, and the response's room twice where rows are filled again."""
        again = 2 if self._asked > self.rows else 1
        context = self.longest_prompt + longest_prefix(self.config)
        return context + self.config.max_tokens * again + (1 if self.device == "cpu" else LOOK)

    @property
    def logits_row(self) -> int:
        """Bytes that the logits of one token take while they are alive, backward included."""
        copies = scoring.COPIES_TRUNCATED if self.config.sampling.truncated else scoring.COPIES
        return self.shape.vocabulary * MASTER * copies

    def saved_per_token(self) -> float:
        """Bytes that one layer keeps of a token for its backward pass, without gradient checkpointing."""
        shape, plain = self.shape, self.device == "cpu"  # there norms and rotary positions are stockpot's own
        wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        b, low = HALF if self.mixed else MASTER, self.config.learner.lora
        own = self.mixed and (not plain or self.adapter > 0)  # whether each product rounds its input for itself
        thin = b * low.rank * len(lora.chosen(dict(shape.linears), low.targets)) if self.adapter else 0
        stream = 2 * MASTER * shape.hidden
        # before its weight, in transformers' own norm; then for each product: one copy in bfloat16, or one for all
        normed = (0 if plain else 2 * MASTER * shape.hidden) + (5 if own else 2) * b * shape.hidden
        heads = (1 if plain else 2) * MASTER * (wide + narrow) if shape.normed_heads else 0
        attention = (MASTER if plain else b) * (2 * wide + 2 * narrow) + b * wide  # q, k, v, their result; o's input
        return stream + normed + heads + attention + 4 * b * shape.intermediate + thin

    @property
    def critic(self) -> str:
        """The kind of critic; empty where the algorithm has none. A head's own weights are too few to count."""
        algorithm = self.config.algorithm
        return algorithm.critic.kind if isinstance(algorithm, ActorCritic) else ""

    @property
    def critic_size(self) -> int:
        """Parameters of a separate critic: the policy's, but for the head where that is not the embedding."""
        return self.shape.parameters - (0 if self.shape.tied else self.shape.embedding)

    # --- memory -----------------------------------------------------------------------------------------------------

    def parts(self) -> Iterator[Part]:
        """The account, line by line."""
        p, t, stored = self.shape.parameters, self.trained, self.stored
        if self.adapter:
            yield State(f"weights, frozen, {KINDS[stored]}", "always", stored * p, f"{p:,} x {stored}")
        yield State(
            "adapter, float32" if self.adapter else "weights, float32", "always", MASTER * t, f"{t:,} x {MASTER}"
        )
        yield State("AdamW's moments", "always", MOMENTS * MASTER * t, f"{t:,} x {MOMENTS} x {MASTER}")
        if self.adapter:
            yield from self._other_adapters()
        else:
            yield from self._other_models()
        if self.critic == "separate":
            c = self.critic_size
            yield State(
                "critic", "always", (1 + MOMENTS) * MASTER * c, f"{c:,} x {(1 + MOMENTS) * MASTER}, moments too"
            )
            rounded = HALF if self.mixed else 0
            yield State("critic's gradients", "learning", (MASTER + rounded) * c, f"{c:,} x {MASTER + rounded}")
        yield from self._sampling()
        yield from self._learning()

    def _other_models(self) -> Iterator[Part]:
        p, config = self.shape.parameters, self.config
        yield State("reference model", "always", MASTER * p if config.needs_reference else 0, "only with a KL, or SPO")
        rule = config.prefixes
        live = isinstance(rule, LiveRule)
        where = (
            f"one at a time; {rule.keep} lie in {rule.where}" if isinstance(rule, LiveRule) else "only where it writes"
        )
        yield Part("past policy", "always", MASTER * p if live else 0, where)
        if config.refresh_every > 1:
            yield Part("policy that writes", "always", MASTER * p, f"refreshed every {config.refresh_every} steps")

    def _other_adapters(self) -> Iterator[Part]:
        a, config = self.adapter, self.config
        moves = config.needs_reference and config.kl.reference != "frozen"
        yield State(
            "reference's adapter", "always", MASTER * a if moves else 0, "a frozen one is the model without any"
        )
        swapped = isinstance(config.prefixes, LiveRule) or config.refresh_every > 1
        yield Part(
            "adapter put aside", "always", MASTER * a if swapped or moves else 0, "while an older one is in its place"
        )

    def _sampling(self) -> Iterator[Part]:
        shape, rows, columns = self.shape, self.rows, self.columns
        layer = 2 * shape.kv_heads * shape.head_dim * self.decoding
        yield Part(
            "keys and values", "sampling", rows * columns * layer * shape.layers,
            f"{rows} rows x {columns} columns x {shape.layers} layers x {layer}",
        )  # fmt: skip
        yield Part("one layer's again", "sampling", rows * columns * layer, "moved, or laid out for the product")
        context = self.longest_prompt + longest_prefix(self.config)
        tokens = min(max(PREFILL_TOKENS, context), rows * context)
        wide = self.decoding * (4 * shape.hidden + 3 * shape.intermediate + 3 * shape.heads * shape.head_dim)
        prefill, drawing = tokens * wide, rows * shape.vocabulary * DRAWN
        yield Part(
            "prefill, or drawing tokens", "sampling", max(prefill, drawing),
            f"in turn: {prefill / GB:.2f} for {tokens} tokens of a layer, {drawing / GB:.2f} for {rows} rows of logits",
        )  # fmt: skip

    def _learning(self) -> Iterator[Part]:
        shape, learner, tokens = self.shape, self.config.learner, self.pass_tokens
        t = self.trained
        yield State("gradients, float32", "learning", MASTER * t, f"{t:,} x {MASTER}")
        products = shape.parameters - (0 if shape.tied else shape.embedding)
        products = self.adapter + (products if self.stored == MASTER else 0)
        yield State(
            "weights, bfloat16", "learning", HALF * products if self.mixed else 0,
            f"{products:,} x {HALF}, by autocast" if self.mixed else "none: products in float32",
        )  # fmt: skip
        layer = self.saved_per_token()
        if learner.gradient_checkpointing:
            kept, how, again = float(shape.layers * self.stored * shape.hidden), "each layer's input", layer
        else:
            kept, how, again = shape.layers * layer, f"{shape.layers} layers x {layer:,.0f}", 0.0
        yield Part("activations", "learning", tokens * kept, f"{tokens} tokens x {how}")
        logits = min(learner.logits_mb * 2**20, tokens * self.logits_row)
        working = tokens * (again + WORKING_LAYERS * layer)
        yield Part(
            "logits, or a layer's work", "learning", max(logits, working),
            f"in turn: {logits / GB:.2f} within logits_mb {learner.logits_mb}, {working / GB:.2f} for a layer",
        )  # fmt: skip
        largest = 0 if self.adapter else shape.embedding * (MASTER + (HALF if self.mixed else 0))
        yield Part("the head's gradient again", "learning", largest, "before it is added to the others")

    def peak(self, phase: Phase) -> float:
        """Most bytes in a phase, with what is always there."""
        return sum(part.bytes for part in self.parts() if part.phase in ("always", phase))

    @property
    def needed(self) -> float:
        return max(self.peak("sampling"), self.peak("learning"))

    @property
    def usable(self) -> float:
        """Bytes of the device that may be taken."""
        memory = memory_here() if self.device == "cpu" else DEVICES[self.device]
        return memory * (1 - self.assumed.reserve)

    @property
    def fits(self) -> bool:
        return self.needed <= self.usable

    # --- tokens and operations --------------------------------------------------------------------------------------

    @property
    def mean_prompt(self) -> int:
        return min(self.assumed.mean_prompt, self.longest_prompt)

    def tokens(self) -> Tokens:
        """Of a step that has the prefixes it asks for."""
        return work.tokens(self)

    def operations(self) -> Operations:
        """Of the same step."""
        return work.operations(self)
