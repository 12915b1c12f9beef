"""A recipe file for the tests: every stage of a run in about a second, with rewards that really differ.

A model taught for 20 steps never solves countdown, so its rewards would all be 0, its gradients too, and a test of
the whole loop would see nothing move. Here it is judged by something that it does half of the time. What the default
recipe is tuned by is written out, so that tuning it does not move the golden trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stockpot.config import Config, Evaluation, Start
from stockpot.policy import Learner
from stockpot.prefixes import FromHistory
from stockpot.regularizers import KL, EntropyBonus
from stockpot.rewards.penalties import Penalties
from stockpot.tasks import Countdown


@dataclass(frozen=True)
class Chatter(Countdown):
    """Countdown's prompts and demonstrations, but what earns a reward is an even number of words."""

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        return [float(len(completion.split()) % 2 == 0) for completion in completions]

    def model_config(self) -> Any:
        from transformers import Qwen3Config

        return Qwen3Config(
            vocab_size=128,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            tie_word_embeddings=True,
            max_position_embeddings=256,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            initializer_range=0.08,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )


recipe = Config(
    task=Chatter(largest=9, train_prompts=8, test_prompts=8, give_up=0.4, luck=0.4, max_attempts=6),
    start=Start(steps=20, batch=8, learning_rate=4e-3),
    prefixes=FromHistory(share=0.5, min_age=1, max_age=3),
    entropy=EntropyBonus(0.01),
    kl=KL(0.02, reference="ema", rate=0.3),
    penalties=Penalties(repetition=1.0),  # counted, and deserved by nobody
    learner=Learner(learning_rate=1e-3),
    evaluation=Evaluation(samples=4, prompts=8, every=2),
    steps=6,
    prompts_per_step=4,
    group_size=4,
    max_tokens=32,
    checkpoint_every=2,
    threads=1,
    device="cpu",
)
