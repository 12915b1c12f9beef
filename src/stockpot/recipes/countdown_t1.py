"""T1's recipe (arXiv 2501.11651) on embedded countdown: RLOO over large groups, drawn hot, on a leash that moves.

From the paper: RLOO, K = 64, temperature 1.2, a bonus on each token's entropy, a KL of 2e-4 centred per prompt against
a moving average of the policy, and -1 for repetition, overlong and garbled responses. **Ours**, since it states none:
the weight of the bonus, the average's rate and frequency, every threshold, and all sizes, which are cut to a laptop: 8
prompts a step in place of 32. Of eight words in a row half may repeat: an honest trace repeats its own attempts often.

`--sampling.min-p 0.05` was tried in the paper too. To train on hard prompts alone:

    stockpot sft countdown-t1 --out start
    stockpot select start countdown-t1 --out hard.jsonl
    stockpot train countdown-t1 --model start --only hard.jsonl
"""

from stockpot.algorithms import RLOO
from stockpot.config import Config
from stockpot.prefixes import NoPrefixes
from stockpot.regularizers import KL, EntropyBonus
from stockpot.rewards.penalties import Penalties
from stockpot.types import Sampling

recipe = Config(
    algorithm=RLOO(),
    prefixes=NoPrefixes(),
    sampling=Sampling(temperature=1.2),
    entropy=EntropyBonus(0.001),
    kl=KL(2e-4, estimator="k1", centred=True, reference="ema", rate=0.05, every=5),
    penalties=Penalties(value=-1.0, how="set", repetition=0.5, size=8, overlong=True, garbled=0.1),
    prompts_per_step=8,
    group_size=64,
    decode_rows=512,
)
