"""Patterns in a whole job with a real store, crashed or killed anywhere and resumed at other parallelism."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream import col
from millstream.testing import simulate
from nursery import Nursery, Start

START = dt.datetime(1969, 12, 31, 23, 59, 30)
ROWS = [
    {
        "shop": None if n % 7 == 3 else f"s{n % 3}",
        "kind": ["order", "paid", "sent", None][n * n % 11 % 4],
        "price": None if n % 11 == 5 else (n * 37 % 101) / 4,
        "at": START + dt.timedelta(milliseconds=200 * (n ^ 5)),
    }
    for n in range(300)
]
SCHEMA = pa.schema({"shop": pa.string(), "kind": pa.string(), "price": pa.float64(), "at": pa.timestamp("us")})
BATCHES = [pa.RecordBatch.from_pylist(ROWS[n : n + 10], schema=SCHEMA) for n in range(0, len(ROWS), 10)]
KINDS = {"order": col("kind") == "order", "paid": col("kind") == "paid"}
DIRECTIONS = {"down": col("price") < ms.prev("price"), "up": col("price") > ms.prev("price")}

Sinks = tuple[Any, ...]


def sinks() -> Sinks:
    return tuple(ms.memory_sink(name=name) for name in ("v", "unpaid", "dear", "all"))


def make(out: Sinks) -> ms.Job:
    job = ms.Job("patterns")
    rows = job.read(ms.memory_source(BATCHES), event_time="at", max_delay="2s")
    shops = rows.group_by("shop")
    select = {"bottom": ms.last("down.price"), "ups": ms.count("up"), "all": ms.collect("price")}
    shops.match("start down+ up+", within="10s", define=DIRECTIONS, select=select).write(out[0])
    shops.match(
        "order !paid",
        within="3s",
        define=KINDS,
        select={"price": ms.first("order.price")},
        after_match="skip_to_next_row",
    ).write(out[1])
    dearer = {"dearer": (col("price") > col("first.price") * 1.5) & (col("kind") != col("first.kind"))}
    shops.match("first dearer{2,}", within="5s", define=dearer, select={"n": ms.count()}, contiguity="relaxed").write(
        out[2]
    )
    known = shops.match("order paid", within="4s", define=KINDS, contiguity="relaxed", name="paid in time")
    known.window(ms.tumbling("10s")).agg(orders=ms.count()).write(out[3])
    return job


def result(out: Sinks) -> list[str]:
    return sorted(repr(sorted(row.items())) for sink in out for row in sink.rows())


@pytest.fixture(scope="module")
def expected() -> list[str]:
    out = sinks()
    make(out).run()
    assert min(len(sink.rows()) for sink in out) >= 6
    return result(out)


@pytest.mark.parametrize("seed", range(5))
def test_crashes_do_not_show(seed: int, tmp_path: Path, expected: list[str]) -> None:
    out = sinks()
    done = simulate(lambda: make(out), tmp_path / "s.duckdb", seed)
    assert result(out) == expected, f"seed {seed} reproduces it"
    assert done.crashes > 0


JOB = """
import millstream as ms
import numpy as np
import pyarrow as pa
from millstream import col

EVENTS = pa.schema({"order": pa.int64(), "kind": pa.string(), "at": pa.timestamp("us")})

def events(start, stop):
    # Every order is paid ten orders later, but for every third.
    n = np.arange(start, stop)
    paid = (n % 2 == 1) & (n // 2 % 3 > 0)
    order = np.where(n % 2 == 0, n // 2, np.where(paid, n // 2 - 10, -1 - n))
    kinds = np.where(n % 2 == 0, "order", np.where(paid, "paid", "visit"))
    at = pa.array(n * 10_000).cast(pa.timestamp("us"))
    return pa.RecordBatch.from_arrays([pa.array(order), pa.array(kinds), at], schema=EVENTS)

job = ms.Job("orders")
source = ms.generator(events, schema=EVENTS, rows=6_000, batch_rows=50, splits=2, name="events")
orders = job.read(source, event_time="at", max_delay="2s").group_by("order")
kinds = {"order": col("kind") == "order", "paid": col("kind") == "paid"}
unpaid = orders.match("order !paid", within="5s", define=kinds)
unpaid.select("order").write(ms.jsonl("unpaid", hold_bytes=0))
paid = orders.match("order paid", within="5s", define=kinds, contiguity="relaxed")
paid.select("order").write(ms.jsonl("paid", hold_bytes=0))
"""

PAID = {n // 2 - 10 for n in range(6_000) if n % 2 == 1 and n // 2 % 3 > 0 and n // 2 >= 10}


def orders(folder: Path) -> Counter[int]:
    """What a reader of the folder sees."""
    lines = (line for file in folder.rglob("*.jsonl") for line in file.read_text().splitlines())
    return Counter(json.loads(line)["order"] for line in lines)


def test_a_process_killed_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    with Nursery() as nursery:
        for parallelism in (2, 3):
            assert nursery.run(
                Start(str(tmp_path), parallelism=parallelism, failpoint="store.before_commit=kill@3")
            ).killed
        end = nursery.run(Start(str(tmp_path)))
    assert end.outcome == "finished", end.log
    assert end.restored_from > 0
    assert orders(tmp_path / "paid") == Counter(PAID)
    assert orders(tmp_path / "unpaid") == Counter(set(range(3_000)) - PAID)
