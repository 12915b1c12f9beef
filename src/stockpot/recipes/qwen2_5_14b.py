"""Qwen2.5-14B on MATH, by T1's recipe (arXiv 2501.11651): RLOO, 64 samples of each of 32 prompts, drawn at 1.2.

From the paper: algorithm, K, prompts a step, learning rate, temperature, KL and its centring, -1 for repetition,
overlong and garbled text. **Ours**, since it states none: weight of the entropy bonus, rate and frequency of the moving
average, thresholds, room for a response, steps. None of it has been run.

- Start: T1 trains a model that was first taught long traces of trial and error. Name yours with `--model`; the base
  model stands here for its shape.
- Prompts: T1 keeps those of MATH and NuminaMath that 16 samples solve in at most 0.3 of cases. Here it is MATH's
  training split; `stockpot select MODEL qwen2-5-14b --out hard.jsonl`, then `--only hard.jsonl`.
- Memory: weights, gradients and AdamW in float32 take 16 bytes a parameter and the moving average four more, 295 GB.
  No single device has that (`stockpot plan qwen2-5-14b`): it waits for an engine of several.
- Judge: **provisional**, it compares the last \\boxed{...} with the answer as strings.
"""

from stockpot.algorithms import RLOO
from stockpot.config import Config, Evaluation
from stockpot.policy import Learner
from stockpot.prefixes import NoPrefixes
from stockpot.regularizers import KL, EntropyBonus
from stockpot.rewards.penalties import Penalties
from stockpot.tasks import Dataset
from stockpot.types import Sampling

recipe = Config(
    task=Dataset(
        train="nlile/hendrycks-MATH-benchmark",
        test="nlile/hendrycks-MATH-benchmark",
        judge="stockpot.rewards.maths:reward",
        template="{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.\n",
    ),
    model="Qwen/Qwen2.5-14B",
    algorithm=RLOO(),
    prefixes=NoPrefixes(),
    sampling=Sampling(temperature=1.2),
    entropy=EntropyBonus(0.001),
    kl=KL(2e-4, estimator="k1", centred=True, reference="ema", rate=0.05, every=10),
    penalties=Penalties(value=-1.0, how="set", repetition=0.2, size=16, overlong=True, garbled=0.05),
    learner=Learner(learning_rate=1.5e-6, warmup=5, tokens_per_pass=16384, logits_mb=2048, gradient_checkpointing=True),
    evaluation=Evaluation(samples=4, prompts=500, every=20),
    steps=200,
    prompts_per_step=32,
    group_size=64,
    max_tokens=8192,
    decode_rows=16,
    checkpoint_every=20,
)
