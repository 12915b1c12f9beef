"""GLM-4-9B on MATH, by T1's recipe: as Qwen2.5-14B, with the room that its context leaves.

What is the paper's and what is ours is told in `qwen2_5_14b`. The model reads 8,192 tokens; 6,144 for a response leave
2,048 for the longest prompt. Weights, gradients, AdamW and the moving average in float32 take 188 GB, 8 GB more than
the largest single device in the table (`stockpot plan glm4-9b --gpu b200`). Nothing of it has been run.
"""

from dataclasses import replace

from stockpot.recipes.qwen2_5_14b import recipe as other

recipe = replace(
    other,
    model="THUDM/glm-4-9b-hf",
    learner=replace(other.learner, tokens_per_pass=8192),
    max_tokens=6144,
)
