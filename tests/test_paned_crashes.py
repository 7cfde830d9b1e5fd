"""Windows that share panes in a whole job with a real store, crashed anywhere and resumed at other parallelism."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream.testing import simulate

START = dt.datetime(1969, 12, 31, 23, 59, 30)
ROWS = [
    {
        "shop": None if n % 7 == 3 else f"s{n % 5}",
        "amount": None if n % 11 == 5 else (n * 37 % 101) / 4,
        "at": START + dt.timedelta(milliseconds=200 * (n ^ 3)),
    }
    for n in range(300)
]
SCHEMA = pa.schema({"shop": pa.string(), "amount": pa.float64(), "at": pa.timestamp("us")})
BATCHES = [pa.RecordBatch.from_pylist(ROWS[n : n + 10], schema=SCHEMA) for n in range(0, len(ROWS), 10)]
AGGREGATES = {
    "rows": ms.count(),
    "amount": ms.sum("amount"),
    "last": ms.last("amount"),
    "distinct": ms.count_distinct("amount"),
    "about": ms.approx_count_distinct("at"),
    "all": ms.collect("amount"),
    "median": ms.median("amount"),
}
Sinks = tuple[Any, ...]


def sinks() -> Sinks:
    return tuple(ms.memory_sink(name=name) for name in ("by shop", "all", "growing"))


def make(out: Sinks) -> ms.Job:
    job = ms.Job("panes")
    orders = job.read(ms.memory_source(BATCHES), event_time="at", max_delay="2s")
    orders.group_by("shop").window(ms.sliding("10s", "4s")).agg(**AGGREGATES).write(out[0])
    orders.window(ms.sliding("15s", "1s"), lateness="1s").agg(**AGGREGATES).write(out[1])
    orders.group_by("shop").window(ms.cumulating("20s", "6s", offset="3s")).agg(**AGGREGATES).write(out[2])
    return job


def result(out: Sinks) -> list[str]:
    return sorted(repr(sorted(row.items())) for sink in out for row in sink.rows())


@pytest.fixture(scope="module")
def expected() -> list[str]:
    out = sinks()
    make(out).run()
    assert [sum(row["rows"] for row in sink.rows()) for sink in out][1] == 15 * len(ROWS)
    return result(out)


@pytest.mark.parametrize("seed", range(4))
def test_crashes_do_not_show(seed: int, tmp_path: Path, expected: list[str]) -> None:
    out = sinks()
    done = simulate(lambda: make(out), tmp_path / "s.duckdb", seed)
    assert result(out) == expected, f"seed {seed} reproduces it"
    assert done.crashes > 0
