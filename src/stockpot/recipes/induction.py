"""Plain GRPO on embedded induction: small programs from their inputs and outputs, judged on inputs not shown."""

from stockpot.config import Config, Start
from stockpot.prefixes import NoPrefixes
from stockpot.tasks import Induction

recipe = Config(task=Induction(), start=Start(steps=1000), prefixes=NoPrefixes(), max_tokens=40)
