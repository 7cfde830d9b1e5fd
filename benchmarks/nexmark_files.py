"""Nexmark events as three Parquet files, written row group by row group in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from millstream.benchmarks.nexmark_events import MAKERS, SCHEMAS, USUAL, Timing, event_of_row, rows_of

ROW_GROUP: Final = 131_072

STREAMS: Final = ("person", "auction", "bid")


def events_file(folder: Path, stream: str) -> Path:
    """Return where a stream's events are."""
    return folder / f"{stream}.parquet"


def row_groups(stream: str, events: int, seed: int, timing: Timing) -> Iterator[pa.RecordBatch]:
    """Yield a stream's rows among the first ``events`` events, ``ROW_GROUP`` at a time, in arrival order.

    >>> [group.num_rows for group in row_groups("bid", 150_000, 1, USUAL)]
    [131072, 6928]
    """
    rows = rows_of(stream, events)
    for first in range(0, rows, ROW_GROUP):
        last = min(first + ROW_GROUP, rows)
        yield MAKERS[stream](seed, event_of_row(stream, first), event_of_row(stream, last - 1) + 1, timing)


# Text that no other row has: for it a dictionary costs time and saves nothing.
_UNIQUE: Final = frozenset({"description", "extra"})


def _layout(schema: pa.Schema) -> dict[str, Any]:
    """Return how Parquet holds the columns.

    Numbers and times as differences: half the bytes of a compressed dictionary, and read in half the time by DuckDB
    (in a third by pyarrow). LZ4, where Snappy takes pyarrow longer to undo and is no smaller.
    """
    text = {field.name for field in schema if pa.types.is_string(field.type)}
    return {
        "compression": {name: "lz4" if name in text else "none" for name in schema.names},
        "use_dictionary": sorted(text - _UNIQUE),
        "column_encoding": {name: "DELTA_BINARY_PACKED" for name in schema.names if name not in text},
    }


def write_events(folder: Path, events: int, seed: int, timing: Timing = USUAL) -> dict[str, int]:
    """Write ``person.parquet``, ``auction.parquet`` and ``bid.parquet`` into ``folder``; return their rows.

    A file appears under its name only when it is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stream in STREAMS:
        whole = events_file(folder, stream)
        partial = whole.with_suffix(".parquet.partial")
        with pq.ParquetWriter(partial, SCHEMAS[stream], **_layout(SCHEMAS[stream])) as writer:
            for group in row_groups(stream, events, seed, timing):
                writer.write_batch(group, row_group_size=ROW_GROUP)
        partial.replace(whole)
    return {stream: rows_of(stream, events) for stream in STREAMS}
