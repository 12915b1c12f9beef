"""SPO on embedded countdown, online: whole responses, no groups compared, a policy that writes for ten steps."""

from stockpot.algorithms import SPO
from stockpot.config import Config
from stockpot.prefixes import NoPrefixes

recipe = Config(algorithm=SPO(), prefixes=NoPrefixes(), refresh_every=10)
