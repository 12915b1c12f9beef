"""Algorithms: one short file each; what is public here is what `--algorithm` accepts."""

from stockpot.algorithms.asymre import AsymRE
from stockpot.algorithms.base import Algorithm, Terms
from stockpot.algorithms.exgrpo import ExGRPO
from stockpot.algorithms.grpo import GRPO, dapo, dr_grpo, gspo
from stockpot.algorithms.luffy import LUFFY
from stockpot.algorithms.m2po import M2PO
from stockpot.algorithms.ppo import PPO
from stockpot.algorithms.reinforce import Reinforce
from stockpot.algorithms.rloo import RLOO
from stockpot.algorithms.spo import SPO
from stockpot.algorithms.supervised import Supervised
from stockpot.algorithms.topr import TOPR

__all__ = [
    "GRPO",
    "LUFFY",
    "M2PO",
    "PPO",
    "RLOO",
    "SPO",
    "TOPR",
    "Algorithm",
    "AsymRE",
    "ExGRPO",
    "Reinforce",
    "Supervised",
    "Terms",
    "dapo",
    "dr_grpo",
    "gspo",
]
