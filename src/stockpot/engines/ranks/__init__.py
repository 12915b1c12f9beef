"""Learners of more than one process: FSDP2 or DDP, plain PyTorch."""

from stockpot.engines.ranks.rank import Rank as Rank
