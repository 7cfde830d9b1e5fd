"""Joins in a whole job with a real store: crashed anywhere, killed, resumed at other parallelism, the result is one."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream import col
from millstream.testing import simulate
from nursery import Nursery, Start
from operator_kit import canonical

START = dt.datetime(1969, 12, 31, 23, 59, 30)
ORDERS = pa.schema({"id": pa.int64(), "shop": pa.string(), "tags": pa.list_(pa.string()), "at": pa.timestamp("us")})
PAYMENTS = pa.schema({"order": pa.int64(), "amount": pa.float64(), "at": pa.timestamp("us")})
Sinks = dict[str, Any]


def batches(schema: pa.Schema, seed: int) -> list[pa.RecordBatch]:
    draw = random.Random(seed)
    rows = []
    for n in range(120):
        id_ = None if n % 17 == 5 else n // 2 % 40
        at = START + dt.timedelta(milliseconds=500 * n + draw.randrange(3_000))
        rows.append({"id": id_, "order": id_, "shop": f"s{n % 3}", "tags": ["é"] * (n % 3), "amount": n / 4, "at": at})
    return [pa.RecordBatch.from_pylist(rows[n : n + 6], schema=schema) for n in range(0, len(rows), 6)]


def sinks() -> Sinks:
    return {name: ms.memory_sink(name=name) for name in ("interval", "first", "window", "ever", "changes", "late")}


def make(out: Sinks) -> ms.Job:
    job = ms.Job("joins")
    orders, payments = (
        job.read(ms.memory_source(batches(schema, seed), splits=2, name=name), event_time="at", max_delay="4s")
        for name, schema, seed in (("orders", ORDERS, 1), ("payments", PAYMENTS, 2))
    )
    near = orders.join(payments, on={"id": "order"}, how="full", between=("-2s", "5s"))
    near.write(out["interval"])
    near.late.union(near.late).write(out["late"])
    orders.join(payments, on={"id": "order"}, how="semi", between=("0s", "9s")).write(out["first"])
    orders.join(payments, on={"id": "order"}, how="left", window=ms.sliding("10s", "5s")).write(out["window"])
    pairs = orders.join(payments, on={"id": "order"}, where=col("amount") > 3)
    pairs.write(out["ever"])
    paid = orders.join(payments, on={"id": "order"}, how="left", where=col("amount") > 10)
    rest = paid.join(payments, on={"id": "order"}, how="anti", where=col("amount_again") == 29.0, suffix="_again")
    rest.changes().write(out["changes"])
    return job


def result(out: Sinks) -> dict[str, Counter[str]]:
    """Each sink's rows; of a changelog what they come to."""
    found: dict[str, Counter[str]] = {}
    for name, sink in out.items():
        rows: Counter[str] = Counter()
        for row in sink.rows():
            rows[repr([canonical(v) for n, v in row.items() if n != "weight"])] += row.get("weight", 1)
        found[name] = Counter({row: count for row, count in rows.items() if count})
    return found


@pytest.fixture(scope="module")
def expected() -> dict[str, Counter[str]]:
    out = sinks()
    make(out).run()
    found = result(out)
    assert not found["late"]
    assert all(found[name] for name in found if name != "late")
    return found


@pytest.mark.parametrize("seed", range(2))
def test_crashes_do_not_show(seed: int, tmp_path: Path, expected: dict[str, Counter[str]]) -> None:
    out = sinks()
    done = simulate(lambda: make(out), tmp_path / "s.duckdb", seed)
    assert result(out) == expected, f"seed {seed} reproduces it"
    assert done.crashes > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_sixty_seeds(tmp_path: Path, expected: dict[str, Counter[str]]) -> None:
    for seed in range(100, 160):
        out = sinks()
        simulate(lambda out=out: make(out), tmp_path / f"{seed}.duckdb", seed)  # type: ignore[misc]
        assert result(out) == expected, f"seed {seed} reproduces it"


JOB = """
import millstream as ms
import numpy as np
import pyarrow as pa

ROWS = pa.schema({"id": pa.string(), "n": pa.int64(), "at": pa.timestamp("us")})

def rows(step):
    def make(start, stop):
        n = np.arange(start, stop) * step
        ids, at = pa.array(np.char.add("id-", (n % 50).astype(str))), pa.array(n * 1_000).cast(ROWS.field("at").type)
        return pa.RecordBatch.from_arrays([ids, pa.array(n), at], schema=ROWS)
    return make

job = ms.Job("joined")
def stream(name, step):
    pace = {"rows": 6_000 // step, "batch_rows": 50, "splits": 2}
    source = ms.generator(rows(step), schema=ROWS, name=name, **pace)
    return job.read(source, event_time="at", max_delay="1m")

left, right = stream("left", 1), stream("right", 2)
near = left.join(right, on="id", how="full", between=("0s", "120ms"))
near.select("n", "n_right").write(ms.jsonl("near", hold_bytes=0))
left.join(right, on=["id", "n"]).select("n").write(ms.jsonl("ever", hold_bytes=0))
"""


def read(folder: Path) -> list[dict[str, Any]]:
    """What a reader of the folder sees."""
    return [json.loads(line) for file in folder.rglob("*.jsonl") for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    "points",
    [
        "store.before_commit=kill@4",
        pytest.param("store.after_commit=kill@3", marks=pytest.mark.slow),
        pytest.param("subtask.snapshot=kill@19", marks=pytest.mark.slow),
    ],
)
def test_a_process_killed_again_and_again(points: str, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    with Nursery() as nursery:
        for parallelism in (2, 1, 3):
            assert nursery.run(Start(str(tmp_path), parallelism=parallelism, failpoint=points)).killed
        end = nursery.run(Start(str(tmp_path)))
    assert end.outcome == "finished", end.log
    assert end.restored_from > 0
    assert sorted(row["n"] for row in read(tmp_path / "ever")) == list(range(0, 6_000, 2))
    pairs = [(n, m) for n in range(6_000) for m in range(n, n + 121, 50) if m % 2 == 0 and m < 6_000]
    alone = [
        (n, None) for n in range(6_000) if not any((n + more) % 2 == 0 and n + more < 6_000 for more in (0, 50, 100))
    ]
    assert Counter((row["n"], row["n_right"]) for row in read(tmp_path / "near")) == Counter(pairs + alone)
