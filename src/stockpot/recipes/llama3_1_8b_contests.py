"""Llama-3.1-8B-Instruct learns from CodeContests and is measured on TACO: the setting of SPO (arXiv 2503.05453).

From the paper: model, data, the sampler refreshed every 10 steps, and pass@k from 20 samples at temperature 0.4 and
top-p 0.95. Every other number is **ours**, and none has been run. `stockpot plan llama3-1-8b-contests` says what it
needs: in float32 with AdamW on one device more than there is.
"""

from stockpot.algorithms import SPO
from stockpot.config import Config, Evaluation
from stockpot.policy import Learner
from stockpot.prefixes import NoPrefixes
from stockpot.tasks import Contests
from stockpot.types import Sampling

recipe = Config(
    task=Contests(train="deepmind/code_contests", test="BAAI/TACO"),
    model="meta-llama/Llama-3.1-8B-Instruct",
    algorithm=SPO(),
    prefixes=NoPrefixes(),
    learner=Learner(learning_rate=5e-7, warmup=5, tokens_per_pass=8192, logits_mb=2048, gradient_checkpointing=True),
    evaluation=Evaluation(samples=20, ks=(10,), prompts=200, every=50, sampling=Sampling(temperature=0.4, top_p=0.95)),
    steps=1000,
    prompts_per_step=32,
    group_size=8,
    refresh_every=10,
    max_tokens=1024,
    decode_rows=32,
    checkpoint_every=50,
)
