"""Tasks: one file each; what is public here is what `--task` accepts."""

from stockpot.tasks.base import EmbeddedTask, Task
from stockpot.tasks.countdown import Countdown
from stockpot.tasks.dataset import Dataset

__all__ = ["Countdown", "Dataset", "EmbeddedTask", "Task"]
