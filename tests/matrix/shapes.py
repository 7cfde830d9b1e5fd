"""The four shapes of a job that every sink is tried with, and what each must yield.

Their rows are alike: ``k``, a key; ``at``, which grows with every row of a key; and ``n``, a number. ``k`` and ``at``
together are there once.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import millstream as ms
import numpy as np
import pyarrow as pa
from millstream import col

ROWS, BATCH, SPLITS = 160, 10, 2
"""Rows of each of the two sources; a subtask reads a batch per epoch, so that there are eight epochs with rows."""

START = dt.datetime(1970, 1, 1)
SECOND = 1_000_000
SIZE, GAP, NEAR = 20 * SECOND, 10 * SECOND, 6 * SECOND
SCHEMA = pa.schema(
    {"n": pa.int64(), "id": pa.int64(), "key": pa.string(), "burst": pa.string(), "time": pa.timestamp("us")}
)


class Row(NamedTuple):
    """What a reader of a destination sees of a row."""

    k: str
    at: int
    n: int


def numbered(side: str) -> Callable[[int, int], pa.RecordBatch]:
    """Make rows from their numbers, out of order by up to three seconds; a ``key`` is that of one split only."""

    def make(start: int, stop: int) -> pa.RecordBatch:
        n = np.arange(start, stop)
        columns = [
            pa.array(n),
            pa.array(n if side == "left" else n ^ 5),
            pa.array([f"{side} {split} {rest}" for split, rest in zip(n // BATCH % SPLITS, n % 4, strict=True)]),
            pa.array([f"b{number}" for number in n // 7 % 5]),
            pa.array(SECOND * (n - n * 7 % 4 + 3)).cast(pa.timestamp("us")),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    return make


def _both(job: ms.Job) -> tuple[ms.Stream, ms.Stream]:
    left, right = (
        job.read(
            ms.generator(numbered(side), schema=SCHEMA, rows=ROWS, batch_rows=BATCH, splits=SPLITS, name=side),
            event_time="time",
            max_delay="3s",
        )
        for side in ("left", "right")
    )
    return left, right


def _stateless(job: ms.Job) -> ms.Stream:
    left, right = _both(job)
    return left.union(right).filter(col("n") % 5 != 0).select("n", k=col("key"), at=col("n"))


def _window(job: ms.Job) -> ms.Stream:
    left, right = _both(job)
    sums = left.union(right).group_by("burst").window(ms.tumbling("20s")).agg(n=ms.sum("n"))
    return sums.select("n", k=col("burst"), at=col("window_start").cast("int64"))


def _session(job: ms.Job) -> ms.Stream:
    left, right = _both(job)
    sums = left.union(right).group_by("burst").window(ms.session("10s")).agg(n=ms.sum("n"))
    return sums.select("n", k=col("burst"), at=col("window_start").cast("int64"))


def _join(job: ms.Job) -> ms.Stream:
    left, right = _both(job)
    pairs = left.join(right, on="id", between=("-6s", "6s"))
    return pairs.select("n", k=col("id").cast("string"), at=col("n_right"))


SHAPES: dict[str, Callable[[ms.Job], ms.Stream]] = {
    "stateless": _stateless,
    "window": _window,
    "join": _join,
    "session": _session,
}


# -- what they must yield, in plain Python ------------------------------------------------------------------------


def expected(shape: str) -> list[Row]:
    """Every row a shape yields, in any order.

    >>> len(expected("stateless"))
    256
    """
    left, right = ([_micros(row) for row in numbered(side)(0, ROWS).to_pylist()] for side in ("left", "right"))
    if shape == "stateless":
        return [Row(row["key"], row["n"], row["n"]) for row in left + right if row["n"] % 5]
    if shape == "join":
        by_id = {row["id"]: row for row in right}
        pairs = [(row, by_id[row["id"]]) for row in left if row["id"] in by_id]
        near = [pair for pair in pairs if abs(pair[0]["time"] - pair[1]["time"]) <= NEAR]
        return [Row(str(one["id"]), other["n"], one["n"]) for one, other in near]
    return list(_windows(left + right, shape))


def _micros(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"time": (row["time"] - START) // dt.timedelta(microseconds=1)}


def _windows(rows: list[dict[str, Any]], shape: str) -> Iterator[Row]:
    sums: dict[tuple[str, int], int] = {}
    last: dict[str, tuple[int, int]] = {}  # of each key: where its last session began, and its last row
    for row in sorted(rows, key=lambda row: row["time"]):
        key, time = row["burst"], row["time"]
        begun, before = last.get(key, (0, -2 * GAP))
        start = time // SIZE * SIZE if shape == "window" else begun if time - before < GAP else time
        last[key] = (start, time)
        sums[key, start] = sums.get((key, start), 0) + row["n"]
    return (Row(key, start, n) for (key, start), n in sums.items())
