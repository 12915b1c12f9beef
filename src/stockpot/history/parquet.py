"""The history as a Parquet file, for the tools that other people analyse with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from stockpot.types import Rollout, StockpotError


def export(stored: Iterator[tuple[int, Rollout]], path: Path, notes: dict[str, str], page_size: int) -> int:
    """Write one row per rollout, its spans in a list; how many. Streamed, and written aside until it is whole."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise StockpotError('Parquet needs pyarrow, which is missing; run: pip install "stockpot[data]"') from None
    path = Path(path)
    aside, count = path.with_name(f"{path.name}.part"), 0
    schema = arrow_schema(pyarrow).with_metadata(notes)
    try:
        with parquet.ParquetWriter(aside, schema) as writer:
            while page := [arrow_row(*one) for one in islice(stored, page_size)]:
                writer.write_table(pyarrow.Table.from_pylist(page, schema))
                count += len(page)
        os.replace(aside, path)
    except OSError as error:
        raise StockpotError(f"{path}: cannot be written ({error}); check its folder and the room there.") from error
    finally:
        aside.unlink(missing_ok=True)
    return count


def arrow_schema(pa: Any) -> Any:
    """`Rollout` in Arrow's types; a prompt's columns are JSON, for no two data sets have the same."""
    tokens, text, whole, real = pa.list_(pa.int32()), pa.string(), pa.int64(), pa.float64()
    author = pa.struct({"run": text, "version": whole})
    sampling = pa.struct({"temperature": real, "top_k": whole, "top_p": real, "min_p": real})
    span = {"author": author, "tokens": tokens, "log_probs": pa.list_(pa.float32()), "kind": text, "sampling": sampling}
    spans = pa.list_(pa.struct(span | {"trained": pa.bool_(), "source": whole}))
    prompt = pa.struct({"key": text, "tokens": tokens, "text": text, "columns": text})
    row = {"id": whole, "step": whole, "prompt": prompt, "spans": spans, "reward": real, "finish": text}
    return pa.schema(list(row.items()))


def arrow_row(step: int, rollout: Rollout) -> dict[str, Any]:
    """One rollout in that schema."""
    row = asdict(rollout) | {"step": step}
    row["prompt"]["columns"] = json.dumps(row["prompt"]["columns"], ensure_ascii=False)
    return row
