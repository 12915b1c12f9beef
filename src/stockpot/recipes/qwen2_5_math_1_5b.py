"""Qwen2.5-Math-1.5B on MATH: SOUP prefixes from history over GRPO.

The SOUP paper (arXiv 2601.21476) states neither models, data, sizes nor learning rate: every number here is **ours**,
and none has been run yet. `stockpot plan qwen2-5-math-1-5b --gpu h100` says what it needs.

- Prompts: 4,000 of MATH's 12,000 (the split that holds out 500 problems), spread evenly. A prompt's history is its own
  past, so prefixes can only begin when it is met again: with 128 prompts a step 4,000 make an epoch of 31 steps, and
  200 steps make six. All 12,000 would see their first prefix at step 93. Old checkpoints as a source of prefixes could
  serve from the first steps, at the price of decoding every prefix anew.
- Ages: what is met again is about 31, 63, ... steps old, so `min_age` never binds and `max_age` keeps all of it.
- Room: the model reads 4,096 tokens; 2,048 for a response leave 2,048 for the longest prompt.
- Judge: the last \\boxed{...} against the answer, by `docs/grading.md`; it needs `pip install 'stockpot[maths]'`.
"""

from stockpot.config import Config, Evaluation
from stockpot.policy import Learner
from stockpot.prefixes import FromHistory
from stockpot.tasks import Dataset

recipe = Config(
    task=Dataset(
        train="nlile/hendrycks-MATH-benchmark",
        test="nlile/hendrycks-MATH-benchmark",
        judge="stockpot.rewards.maths:reward",
        template="{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.\n",
        only=4000,
    ),
    model="Qwen/Qwen2.5-Math-1.5B",
    prefixes=FromHistory(share=0.25, cut_low=0.1, cut_high=0.6),
    learner=Learner(learning_rate=1e-6, warmup=5, tokens_per_pass=16384, logits_mb=4096, gradient_checkpointing=True),
    evaluation=Evaluation(samples=4, prompts=500, every=25),
    steps=200,
    prompts_per_step=128,
    group_size=8,
    max_tokens=2048,
    decode_rows=64,
    checkpoint_every=25,
)
