"""Studies: tables of many runs behind the claims in LOG.md. `stockpot bench NAME` makes one, resumable."""

from stockpot.bench.cells import Cell, Result, Study

__all__ = ["Cell", "Result", "Study"]
