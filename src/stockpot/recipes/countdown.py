"""The default: SOUP prefixes from history over GRPO, on embedded countdown. Nothing differs from the defaults."""

from stockpot.config import Config

recipe = Config()
