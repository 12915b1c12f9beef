"""Qwen2.5-32B on MATH, by T1's recipe: as the 14B, in smaller passes.

What is the paper's and what is ours is told in `qwen2_5_14b`. Weights, gradients, AdamW and the moving average in
float32 take 655 GB: no single device has that (`stockpot plan qwen2-5-32b`). Nothing of it has been run.
"""

from dataclasses import replace

from stockpot.recipes.qwen2_5_14b import recipe as smaller

recipe = replace(
    smaller,
    model="Qwen/Qwen2.5-32B",
    learner=replace(smaller.learner, tokens_per_pass=10240),
    decode_rows=8,
)
