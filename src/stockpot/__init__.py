"""stockpot: reinforcement learning for language models from what their own past policies wrote."""

__version__ = "0.1.0"
