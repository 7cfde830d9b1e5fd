"""Tops and rows with their neighbours, in a job that is crashed, killed and resumed: the result is that of one run."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream.testing import simulate
from nursery import Nursery, Start

START = dt.datetime(2026, 1, 1)
Row = tuple[Any, ...]


def settled(rows: Iterable[dict[str, Any]]) -> Counter[Row]:
    """What a changelog comes to."""
    net: Counter[Row] = Counter()
    for row in rows:
        net[tuple(value for name, value in row.items() if name != "weight")] += row["weight"]
    assert -net == Counter(), "a row was taken back that never came"
    return +net


def bids(count: int) -> list[dict[str, Any]]:
    draw = random.Random(count)
    return [
        {
            "item": draw.choice(["tea", "", "cup", None]),
            "price": draw.choice([None, float("nan"), *map(float, range(40))]),
            "at": START + dt.timedelta(seconds=n + draw.random() * 4),
            "n": n,
        }
        for n in range(count)
    ]


ROWS = bids(160)
SCHEMA = pa.schema({"item": pa.string(), "price": pa.float64(), "at": pa.timestamp("us"), "n": pa.int64()})
SENT = [pa.RecordBatch.from_pylist(ROWS[at : at + 4], SCHEMA) for at in range(0, len(ROWS), 4)]


def best_of(rows: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    def rank(row: dict[str, Any]) -> tuple[Any, ...]:
        price = row["price"]
        return (price is None, price == price, -price if price == price and price is not None else 0, row["at"])

    return sorted(rows, key=rank)[:n]


def expected_of(field: str) -> Counter[Row]:
    items = {row["item"] for row in ROWS}
    groups = [[row for row in ROWS if row["item"] == item] for item in items]
    match field:
        case "top":
            return Counter((row["n"], at + 1) for rows in groups for at, row in enumerate(best_of(rows, 3)))
        case "best":
            firsts = [best_of(rows, 1)[0] for rows in groups]
            return Counter((row["n"],) for row in best_of(firsts, 2))
        case "last":
            return Counter((max(rows, key=lambda row: row["at"])["n"],) for rows in groups)
    ordered = [sorted(rows, key=lambda row: row["at"]) for rows in groups]
    return Counter(
        (row["n"], at + 1, rows[at - 1]["n"] if at else None, sum(one["n"] for one in rows[max(0, at - 4) : at + 1]))
        for rows in ordered
        for at, row in enumerate(rows)
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_seed(seed: int, tmp_path: Path) -> None:
    sinks = {name: ms.memory_sink(name=name) for name in ("top", "best", "last", "over")}
    order: dict[str, Any] = {"by": ["price", "at"], "descending": [True, False]}

    def make() -> ms.Job:
        job = ms.Job("bids")
        # One split: a changelog of a changelog breaks ties by arrival.
        read = job.read(ms.memory_source(SENT, name="bids"), event_time="at", max_delay="5s")
        read.group_by("item").top(3, **order, row_number="place").select("n", "place").changes().write(sinks["top"])
        read.group_by("item").top(1, **order).top(2, **order).select("n").changes().write(sinks["best"])
        read.deduplicate("item", keep="last").select("n").changes().write(sinks["last"])
        over = read.group_by("item").over(i=ms.row_number(), before=ms.lag("n"), total=ms.sum("n"), rows=5)
        over.select("n", "i", "before", "total").write(sinks["over"])
        return job

    done = simulate(make, tmp_path / "job.duckdb", seed)
    for name, sink in sinks.items():
        rows = [{"weight": 1, **row} for row in sink.rows()]
        assert settled(rows) == expected_of(name), f"{name}: seed {seed} reproduces it"
    assert done.crashes > 0


JOB = """
import millstream as ms
import numpy as np
import pyarrow as pa

BIDS = pa.schema({"item": pa.string(), "price": pa.int64(), "at": pa.timestamp("us")})

def bids(start, stop):
    n = np.arange(start, stop)
    items = pa.array(np.char.add("item-", (n * 7 % 300).astype(str)))
    return pa.RecordBatch.from_arrays([items, pa.array(n * 7919 % 6_007), pa.array(n).cast(pa.timestamp("us"))],
                                      schema=BIDS)

job = ms.Job("bids")
source = ms.generator(bids, schema=BIDS, rows=6_000, batch_rows=50, splits=2, name="bids")
read = job.read(source, event_time="at", max_delay="1m")
best = read.group_by("item").top(2, by="price", row_number="place")
best.select("item", "price", "place").changes().write(ms.jsonl("output", hold_bytes=0))
over = read.group_by("item").over(i=ms.row_number(), total=ms.sum("price"))
over.select("item", "i", "total").write(ms.jsonl("over", hold_bytes=0))
"""


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in folder.rglob("*.jsonl") for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    "points", ["store.before_commit=kill@2", pytest.param("store.after_commit=kill@2", marks=pytest.mark.slow)]
)
def test_a_process_killed_again_and_again(points: str, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    with Nursery() as nursery:
        for parallelism in (2, 3):
            assert nursery.run(Start(str(tmp_path), parallelism=parallelism, failpoint=points)).killed
        end = nursery.run(Start(str(tmp_path), parallelism=1))
    assert end.outcome == "finished", end.log
    assert end.restored_from > 0
    items: dict[str, list[int]] = {}
    for n in range(6_000):
        items.setdefault(f"item-{n * 7 % 300}", []).append(n * 7919 % 6_007)
    assert settled(read(tmp_path / "output")) == Counter(
        (item, price, at + 1)
        for item, prices in items.items()
        for at, price in enumerate(sorted(prices, reverse=True)[:2])
    )
    assert sorted((row["item"], row["i"], row["total"]) for row in read(tmp_path / "over")) == sorted(
        (item, at + 1, sum(prices[: at + 1])) for item, prices in items.items() for at in range(len(prices))
    )
