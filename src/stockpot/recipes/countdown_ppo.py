"""PPO with a critic on embedded countdown: what SPO is compared with (arXiv 2503.05453). As many
rollouts of each prompt as a group algorithm takes, though the critic compares none."""

from stockpot.algorithms import PPO
from stockpot.algorithms.base import CriticOptions
from stockpot.config import Config
from stockpot.prefixes import NoPrefixes

recipe = Config(
    algorithm=PPO(critic=CriticOptions(learning_rate=1e-3, warmup=2)),
    prefixes=NoPrefixes(),
)
