"""The contests of `llama3_1_8b_contests`, learnt by a LoRA adapter, so that they fit on one H100.

The paper trains the whole model; rank, alpha and the learning rate are **ours**, and it has not been run.
"""

from dataclasses import replace

from stockpot.lora import LoRA
from stockpot.recipes.llama3_1_8b_contests import recipe as whole

recipe = replace(whole, learner=replace(whole.learner, learning_rate=1e-5, lora=LoRA(rank=32)))
