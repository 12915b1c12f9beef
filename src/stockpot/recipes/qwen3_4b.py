"""Qwen3-4B-Base on DeepScaleR's problems: SOUP prefixes from history over GRPO.

The *base* model, not Qwen3-4B: that one is already trained to think at a length that 4,096 tokens would cut off, and
less would be left for this run to teach. Every number is **ours** (the SOUP paper states none), and none has been run.
One H200 holds it, 80 GB do not (`stockpot plan qwen3-4b --gpu h200`).

- Prompts: 8,000 of 40,315, spread evenly: an epoch of 63 steps, so that prefixes begin at step 62 of 250 and 3 of 4
  steps have them. All of them would be met again only at step 314. Which of them resemble MATH-500 was not checked.
- Room: 4,096 tokens a response, of a context of 32,768.
- Judge: the last \\boxed{...} against the answer, by `docs/grading.md`; it needs `pip install 'stockpot[maths]'`.
"""

from stockpot.config import Config, Evaluation
from stockpot.policy import Learner
from stockpot.prefixes import FromHistory
from stockpot.tasks import Dataset

recipe = Config(
    task=Dataset(
        train="agentica-org/DeepScaleR-Preview-Dataset",
        test="HuggingFaceH4/MATH-500",
        judge="stockpot.rewards.maths:reward",
        template="{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.\n",
        only=8000,
    ),
    model="Qwen/Qwen3-4B-Base",
    prefixes=FromHistory(share=0.25, cut_low=0.1, cut_high=0.6),
    learner=Learner(learning_rate=1e-6, warmup=5, tokens_per_pass=8192, logits_mb=2048, gradient_checkpointing=True),
    evaluation=Evaluation(samples=4, prompts=500, every=25),
    steps=250,
    prompts_per_step=128,
    group_size=8,
    max_tokens=4096,
    decode_rows=16,
    checkpoint_every=25,
)
