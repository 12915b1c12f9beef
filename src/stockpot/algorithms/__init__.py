"""Algorithms: one short file each; what is public here is what `--algorithm` accepts."""

from stockpot.algorithms.base import Algorithm, Terms
from stockpot.algorithms.grpo import GRPO, dapo, dr_grpo, gspo
from stockpot.algorithms.reinforce import Reinforce
from stockpot.algorithms.rloo import RLOO
from stockpot.algorithms.supervised import Supervised

__all__ = ["GRPO", "RLOO", "Algorithm", "Reinforce", "Supervised", "Terms", "dapo", "dr_grpo", "gspo"]
