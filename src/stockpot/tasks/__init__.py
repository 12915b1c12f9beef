"""Tasks: one file each; what is public here is what `--task` accepts."""

from stockpot.tasks.base import EmbeddedTask, Task
from stockpot.tasks.contests import Contests
from stockpot.tasks.countdown import Countdown
from stockpot.tasks.dataset import Dataset
from stockpot.tasks.induction import Induction

__all__ = ["Contests", "Countdown", "Dataset", "EmbeddedTask", "Induction", "Task"]
