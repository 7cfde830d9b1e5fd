"""Aggregates without windows in a whole job with a real store, crashed anywhere and resumed at other parallelism."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from changelog_kit import hashable
from millstream import col
from millstream.testing import simulate
from nursery import Nursery, Start

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
    "amount": ms.sum("amount", where=col("amount") > 1),
    "last": ms.last("amount"),
    "distinct": ms.count_distinct("amount"),
    "about": ms.approx_count_distinct("at"),
    "most": ms.max("amount"),
    "median": ms.median("amount"),
}
OF_RESULTS = {
    "shops": ms.count(),
    "amount": ms.sum("amount"),
    "least": ms.min("amount"),
    "best": ms.arg_max("shop", by="amount"),
    "lasts": ms.count_distinct("last"),
    "all": ms.collect("most"),
    "median": ms.median("about"),
    "spread": ms.variance("distinct"),
}
Sinks = tuple[Any, ...]


def sinks() -> Sinks:
    return tuple(ms.memory_sink(name=name) for name in ("by shop", "all", "by results"))


def make(out: Sinks) -> ms.Job:
    job = ms.Job("groups")
    orders = job.read(ms.memory_source(BATCHES), event_time="at", max_delay="2s")
    by_shop = orders.group_by("shop").agg(**AGGREGATES)
    by_shop.changes().write(out[0])
    orders.agg(**AGGREGATES).changes().write(out[1])
    by_shop.with_columns(even=col("rows") % 2 == 0).group_by("even").agg(**OF_RESULTS).changes().write(out[2])
    return job


def result(out: Sinks) -> list[Counter[Any]]:
    found: list[Counter[Any]] = []
    for sink in out:
        net: Counter[Any] = Counter()
        for row in sink.rows():
            net[hashable(list(row.values())[:-1])] += row["weight"]
        found.append(+net)
        assert all(weight >= 0 for weight in net.values()), "a row was taken back that was never there"
    return found


@pytest.fixture(scope="module")
def expected() -> list[Counter[Any]]:
    out = sinks()
    make(out).run()
    assert [len(net) for net in result(out)] == [6, 1, 2]
    return result(out)


@pytest.mark.parametrize("seed", range(4))
def test_crashes_do_not_show(seed: int, tmp_path: Path, expected: list[Counter[Any]]) -> None:
    out = sinks()
    done = simulate(lambda: make(out), tmp_path / "s.duckdb", seed)
    assert result(out) == expected, f"seed {seed} reproduces it"
    assert done.crashes > 0


JOB = """
import millstream as ms
import numpy as np
import pyarrow as pa

CLICKS = pa.schema({"user": pa.string(), "n": pa.int64()})

def clicks(start, stop):
    n = np.arange(start, stop)
    users = np.char.add("u", (n * n % 97).astype(str))
    return pa.RecordBatch.from_arrays([pa.array(users), pa.array(n)], schema=CLICKS)

job = ms.Job("clicks")
source = ms.generator(clicks, schema=CLICKS, rows=6_000, batch_rows=50, splits=2, name="clicks")
users = job.read(source).group_by("user").agg(clicks=ms.count(), most=ms.max("n"))
users.consolidate().changes().write(ms.jsonl("changes", hold_bytes=0))
sizes = users.group_by("clicks").agg(users=ms.count(), most=ms.max("most"), some=ms.collect("user"))
sizes.final().write(ms.jsonl("sizes", hold_bytes=0))
"""


def lines(folder: Path) -> list[dict[str, Any]]:
    """What a reader of the folder sees."""
    return [json.loads(line) for file in folder.rglob("*.jsonl") for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    "points", ["store.before_commit=kill@3", pytest.param("store.after_commit=kill@2", marks=pytest.mark.slow)]
)
def test_a_process_killed_again_and_again(points: str, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    with Nursery() as nursery:
        for parallelism in (2, 1, 3):
            assert nursery.run(Start(str(tmp_path), parallelism=parallelism, failpoint=points)).killed
        end = nursery.run(Start(str(tmp_path)))
    assert end.outcome == "finished", end.log
    assert end.restored_from > 0

    users: dict[str, list[int]] = {}
    for n in range(6_000):
        users.setdefault(f"u{n * n % 97}", []).append(n)
    changes: Counter[Any] = Counter()
    for row in lines(tmp_path / "changes"):
        changes[row["user"], row["clicks"], row["most"]] += row["weight"]
    assert +changes == Counter({(user, len(seen), max(seen)): 1 for user, seen in users.items()})
    sizes: dict[int, list[str]] = {}
    for user, seen in users.items():
        sizes.setdefault(len(seen), []).append(user)
    expected = {size: (len(own), max(max(users[user]) for user in own), sorted(own)) for size, own in sizes.items()}
    found = lines(tmp_path / "sizes")
    assert len(found) == len(expected)
    assert {row["clicks"]: (row["users"], row["most"], row["some"]) for row in found} == expected
