"""Plain GRPO on embedded countdown: what SOUP is compared with."""

from stockpot.config import Config
from stockpot.prefixes import NoPrefixes

recipe = Config(prefixes=NoPrefixes())
