"""The history: `store` remembers, `file` is the SQLite file, `rows` and `parquet` are its forms."""

from stockpot.history.rows import Score, fingerprint
from stockpot.history.store import History

__all__ = ["History", "Score", "fingerprint"]
