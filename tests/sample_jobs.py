"""Jobs that several tests run, with what they must yield."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import Any

import millstream as ms
import pyarrow as pa
from millstream import col

START = dt.datetime(2026, 1, 1)


def orders(count: int) -> list[dict[str, Any]]:
    return [
        {"id": n, "shop": f"s{n % 7}", "amount": n % 11, "at": START + dt.timedelta(seconds=n // 3)}
        for n in range(count)
    ]


def in_batches(rows: list[dict[str, Any]], size: int = 5) -> list[pa.RecordBatch]:
    """Small batches make many steps, and so many places to crash."""
    return [pa.RecordBatch.from_pylist(rows[at : at + size]) for at in range(0, len(rows), size)]


def revenue_job(out: Any, count: int = 2_000, splits: int = 4) -> ms.Job:
    job = ms.Job("revenue")
    (
        job.read(
            ms.memory_source(in_batches(orders(count)), splits=splits, name="orders"), event_time="at", max_delay="20m"
        )
        .filter(col("amount") > 0)
        .group_by("shop")
        .window(ms.tumbling("1m"))
        .agg(revenue=ms.sum("amount"), orders=ms.count())
        .write(out)
    )
    return job


def expected(count: int = 2_000) -> Counter[tuple[Any, ...]]:
    sums: dict[tuple[str, dt.datetime], list[int]] = {}
    for row in orders(count):
        if row["amount"] > 0:
            cell = sums.setdefault((row["shop"], row["at"].replace(second=0)), [0, 0])
            cell[0] += row["amount"]
            cell[1] += 1
    return Counter((shop, start, revenue, n) for (shop, start), (revenue, n) in sums.items())


def result(out: Any) -> Counter[tuple[Any, ...]]:
    return Counter((r["shop"], r["window_start"], r["revenue"], r["orders"]) for r in out.rows())
