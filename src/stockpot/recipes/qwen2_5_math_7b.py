"""Qwen2.5-Math-7B on MATH: as the 1.5B, with a smaller step for a larger model.

Every number is **ours** (the SOUP paper states none) and none has been run. On one device of 80 or 141 GB this does not
fit: weights, gradients and AdamW in float32 alone take 16 bytes a parameter, 122 GB (`stockpot plan qwen2-5-math-7b`).
It needs a larger one, or waits for an engine of several.
"""

from dataclasses import replace

from stockpot.policy import Learner
from stockpot.recipes.qwen2_5_math_1_5b import recipe as small

recipe = replace(
    small,
    model="Qwen/Qwen2.5-Math-7B",
    learner=Learner(learning_rate=5e-7, warmup=5, tokens_per_pass=8192, logits_mb=2048, gradient_checkpointing=True),
    decode_rows=16,
)
