"""Every aggregate in a whole job with a real store, crashed anywhere and resumed at other parallelism."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from millstream import call, col
from millstream.testing import simulate

START = dt.datetime(2026, 1, 1)
ROWS = [
    {
        "shop": None if n % 7 == 3 else f"s{n % 5}",
        "amount": None if n % 11 == 5 else (n * 37 % 101) / 4,
        "price": Decimal(n % 13) / 4,
        "item": None if n % 6 == 1 else f"item {n % 9}",
        "at": START + dt.timedelta(milliseconds=200 * (n ^ 3)),
    }
    for n in range(300)
]
SCHEMA = pa.schema(
    {
        "shop": pa.string(),
        "amount": pa.float64(),
        "price": pa.decimal128(8, 2),
        "item": pa.string(),
        "at": pa.timestamp("us"),
    }
)
BATCHES = [pa.RecordBatch.from_pylist(ROWS[n : n + 10], schema=SCHEMA) for n in range(0, len(ROWS), 10)]


def last_three(state: dict[str, pa.Array], groups: np.ndarray, items: pa.Array) -> dict[str, Any]:
    kept = state["items"].to_pylist()
    for group, item in zip(groups.tolist(), items.to_pylist(), strict=True):
        kept[group] = [*kept[group], item][-3:]
    return {"items": kept}


AGGREGATES = {
    "variance": ms.variance("amount"),
    "stddev": ms.stddev("price", ddof=0, where=col("amount") > 3),
    "cheapest": ms.arg_min(call("make_struct", col("item"), col("price"), field_names=["item", "price"]), by="price"),
    "dearest": ms.arg_max("at", by="item"),
    "items": ms.count_distinct("item"),
    "prices": ms.count_distinct("price", where=col("amount") > 3),
    "about": ms.approx_count_distinct("amount"),
    "many": ms.approx_count_distinct("at"),
    "all_items": ms.collect("item"),
    "some": ms.collect(call("make_struct", col("item"), col("price"), field_names=["i", "p"]), limit=4),
    "median": ms.median("amount"),
    "quantiles": ms.quantile("price", [0.1, 0.9]),
    "last_three": ms.aggregate(
        "item",
        state={"items": pa.list_(pa.string())},
        init={"items": []},
        update=last_three,
        result=lambda state: state["items"],
        type=pa.list_(pa.string()),
    ),
}


Sinks = tuple[Any, Any]


def sinks() -> Sinks:
    return ms.memory_sink(name="by shop"), ms.memory_sink(name="all")


def make(out: Sinks) -> ms.Job:
    job = ms.Job("aggregates")
    orders = job.read(ms.memory_source(BATCHES), event_time="at", max_delay="2s")
    orders.group_by("shop").window(ms.tumbling("10s")).agg(**AGGREGATES).write(out[0])
    orders.window(ms.tumbling("15s"), lateness="1s").agg(**AGGREGATES).write(out[1])
    return job


def result(out: Sinks) -> list[str]:
    return sorted(repr(sorted(row.items())) for sink in out for row in sink.rows())


@pytest.fixture(scope="module")
def expected() -> list[str]:
    out = sinks()
    make(out).run()
    assert [len(sink.rows()) for sink in out] == [6 * 6, 4]
    return result(out)


@pytest.mark.parametrize("seed", range(6))
def test_crashes_do_not_show(seed: int, tmp_path: Path, expected: list[str]) -> None:
    out = sinks()
    done = simulate(lambda: make(out), tmp_path / "s.duckdb", seed)
    assert result(out) == expected, f"seed {seed} reproduces it"
    assert done.crashes > 0
