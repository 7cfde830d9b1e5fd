"""Random streams for windows, and what DuckDB makes of the same rows."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa
from hypothesis import strategies as st
from operator_kit import Advance, Restart, Step, rows_of

SIZE = 10
INTS = st.none() | st.integers(-(2**55), 2**55) | st.integers(-3, 3)
VALUES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "i": (pa.int64(), INTS),
    "u": (pa.uint64(), st.none() | st.integers(0, 2**58)),
    # Multiples of 1/64 add up exactly, so that the order in which DuckDB adds them cannot matter.
    "f": (
        pa.float64(),
        st.sampled_from([None, math.nan, math.inf, -0.0]) | st.integers(-999, 999).map(lambda n: n / 64),
    ),
    "b": (pa.bool_(), st.none() | st.booleans()),
    "s": (pa.string(), st.sampled_from([None, "", "a", "ab", "b", "é", "z" * 40])),
    "n": (pa.decimal128(12, 2), st.none() | st.decimals(-(10**9), 10**9, places=2)),
    "d": (pa.date32(), st.none() | st.dates()),
}
KEYS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "k": (pa.int32(), st.sampled_from([None, 0, 1, -(2**31)])),
    "g": (pa.string(), st.sampled_from([None, "", "x", "y"])),
    "h": (pa.float64(), st.sampled_from([None, math.nan, 0.0, -0.0])),
}
COLUMNS = {**KEYS, **VALUES, "t": (pa.timestamp("us"), st.none() | st.integers(-60, 60))}
SCHEMA = pa.schema([(name, type) for name, (type, _) in COLUMNS.items()] + [("seq", pa.int64())])


@st.composite
def streams(draw: st.DrawFn) -> list[Step]:
    """Batches of random rows, with watermarks, barriers and restarts in between."""
    steps: list[Step] = []
    seq = 0
    for _ in range(draw(st.integers(1, 6))):
        count = draw(st.integers(1, 12))
        columns = {
            name: pa.array(draw(st.lists(values, min_size=count, max_size=count)), type)
            for name, (type, values) in COLUMNS.items()
        }
        steps.append(pa.record_batch([*columns.values(), pa.array(range(seq, seq + count))], schema=SCHEMA))
        seq += count
        after = draw(st.sampled_from(["nothing", "advance", "restart", "advance, restart"]))
        if "advance" in after:
            steps.append(Advance(draw(st.integers(-70, 70))))
        if "restart" in after:
            steps.append(Restart(draw(st.integers(1, 3))))
    return steps


def start_of(time: dt.datetime, offset: int = 0) -> int:
    micros = (time - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1)
    return (micros - offset) // SIZE * SIZE + offset


def split_by_lateness(steps: list[Step], lateness: int) -> tuple[pa.Table, int, int]:
    """The rows on time with the start of their window, and how many were late or without time."""
    on_time, late, timeless, watermark = [], 0, 0, -(2**62)
    for step in steps:
        if isinstance(step, Advance):
            watermark = max(watermark, step.time)
        if isinstance(step, pa.RecordBatch):
            for row in step.to_pylist():
                if row["t"] is None:
                    timeless += 1
                elif start_of(row["t"]) + SIZE + lateness <= watermark:
                    late += 1
                else:
                    on_time.append({**row, "start": start_of(row["t"])})
    return pa.Table.from_pylist(on_time, SCHEMA.append(pa.field("start", pa.int64()))), late, timeless


def by_sql(rows: pa.Table, keys: tuple[str, ...], made: Sequence[str]) -> list[tuple[Any, ...]]:
    """The results of SQL aggregates over rows, per key and window, with keys and window in front."""
    group = ", ".join([*keys, "start"])
    # 0.0 and -0.0 are one key; DuckDB shows one of them, we show 0.0.
    shown = [f"{key} + 0.0" if key == "h" else key for key in keys]
    outputs = [*shown, "make_timestamp(start)", f"make_timestamp(start + {SIZE})", *made]
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        return rows_of(connection.sql(f"select {', '.join(outputs)} from rows group by {group}").to_arrow_table())
