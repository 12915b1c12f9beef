"""`stockpot history`: what a run's store of rollouts holds."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from stockpot.history import History
from stockpot.options import HistoryOptions
from stockpot.record import Run


def show(options: HistoryOptions) -> None:
    """Print the summary, and export if asked."""
    run = Run.open(options.run)
    out = Console(highlight=False)
    with History.open(run.history, read_only=True) as history:
        table = Table(show_header=False)
        for name, value in history.summary().items():
            table.add_row(
                name.replace("_", " "),
                f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value),
            )
        out.print(table)
        if options.parquet is not None:
            count = history.to_parquet(options.parquet)
            out.print(f"{count:,} rollouts written to {options.parquet}", soft_wrap=True)
