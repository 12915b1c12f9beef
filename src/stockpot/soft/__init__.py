"""What SPO needs beside its loss: the reference's log-probs, read once per response, and Q0 of each prompt."""

from stockpot.soft.baseline import Soft
from stockpot.soft.referee import Referee

__all__ = ["Referee", "Soft"]
