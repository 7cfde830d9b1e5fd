"""Joins with the value of that moment, against DuckDB's ASOF JOIN, however rows come; and jobs with them, crashed."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from join_kit import PAIR, SCHEMAS, Streams, bag, streams_of
from millstream import col
from millstream.engine.element import Watermark
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.operator import OperatorSpec
from millstream.testing import BARRIER, On, check_operator, simulate
from nursery import Nursery, Start


def joined(**options: Any) -> OperatorSpec:
    job = ms.Job("j")
    left, right = (
        job.read(ms.memory_source(schema.empty_table(), name=name), event_time="at")
        for name, schema in zip(("l", "r"), SCHEMAS, strict=True)
    )
    node = job.graph.nodes[left.join_asof(right, on="k", **options)._edge.node]
    assert isinstance(node.body, OperatorSpec)
    return node.body


def by_sql(given: Streams, how: str, condition: str) -> list[tuple[Any, ...]]:
    """Of right rows of one key and time the last to come; as of that ASOF JOIN; then what stands still."""
    right = given.table(1)
    right = right.append_column("arrival", pa.array(range(len(right)), pa.int64()))
    return given.sql(
        f"""
        with last as (from r qualify row_number() over (partition by k, "at" order by arrival desc) = 1),
        found as (select l.n as of_left, last.* from l asof join last on l.k = last.k and l.at >= last.at)
        select {PAIR} from l {how} join found r on l.n = r.of_left and {condition}
        """,
        r=right,
    )


@pytest.mark.parametrize("how", ["inner", "left"])
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    counts=st.tuples(st.integers(0, 14), st.integers(0, 14)),
    span=st.sampled_from([4, 60]),
    tolerance=st.sampled_from([None, "0s", "7s"]),
    removed=st.booleans(),
)
def test_rows_are_those_of_sql(
    how: str, seed: int, counts: tuple[int, int], span: int, tolerance: str | None, removed: bool
) -> None:
    given = streams_of(random.Random(seed), *counts, span=span)
    spec = joined(how=how, tolerance=tolerance, removed=col("text") == "" if removed else None)
    got = check_operator(spec, given.steps, schemas=SCHEMAS)
    condition = "true" if tolerance is None else f"r.at >= l.at - interval {tolerance[:-1]} second"
    condition += " and coalesce(r.text <> '', true)" if removed else ""
    assert bag(got.get("main", [])) == by_sql(given, how, condition)
    assert not got.keys() - {"main"}, "a row on time was late"


LEFT = pa.schema({"k": pa.string(), "at": pa.timestamp("us")})
RIGHT = pa.schema({"k": pa.string(), "at": pa.timestamp("us"), "price": pa.int64()})


def simple(**options: Any) -> OperatorSpec:
    job = ms.Job("j")
    left, right = (
        job.read(ms.memory_source(schema.empty_table(), name=str(schema.names)), event_time="at")
        for schema in (LEFT, RIGHT)
    )
    node = job.graph.nodes[left.join_asof(right, on="k", **options)._edge.node]
    assert isinstance(node.body, OperatorSpec)
    return node.body


def asks(*rows: tuple[str | None, int | None]) -> On:
    return On(0, pa.RecordBatch.from_pylist([{"k": k, "at": at} for k, at in rows], LEFT))


def quotes(*rows: tuple[str | None, int | None, int]) -> On:
    return On(1, pa.RecordBatch.from_pylist([{"k": k, "at": at, "price": price} for k, at, price in rows], RIGHT))


def test_late_rows_and_rows_without_time_have_ports_and_null_keys_equal_nothing() -> None:
    script = [
        quotes(("a", 5, 1), (None, 5, 2), ("a", None, 3)),
        asks(("a", 9), (None, 9), ("a", None)),
        Watermark(10),
        BARRIER,
        quotes(("a", 9, 4), ("a", 10, 5)),
        asks(("a", 9), ("a", 10)),
    ]
    got = check_operator(simple(how="left"), script)
    assert sorted((row["k"] or "", row["price"]) for row in got["main"]) == [("", None), ("a", 1), ("a", 5)]
    assert len(got["late"]) == 2
    assert sorted(row["price"] for row in got["late_right"]) == [3, 4]


def test_past_rows_of_a_key_are_dropped_but_the_last_and_that_too_when_it_stands_no_longer() -> None:
    operator = simple(tolerance=datetime_micros(100)).build([LEFT, RIGHT])
    made: list[pa.RecordBatch] = []

    class Out:
        def emit(self, batch: pa.RecordBatch, port: str = "main") -> None:
            made.append(batch)

    keys = 3_000
    for round in range(4):
        names = [f"k{n}" for n in range(keys)]
        times = pa.array([10 * round] * keys).cast(pa.timestamp("us"))
        prices = pa.array([round] * keys)
        batch = pa.record_batch([pa.array(names), times, prices], schema=RIGHT)
        operator.process_input(1, batch, Out())
        operator.on_watermark(10 * round + 1, Out())
    rows = operator.snapshot(1)["right"].rows
    assert rows["price"].to_pylist() == [3] * keys
    assert rows["deleted"].to_pylist() == [False] * keys
    operator.on_watermark(131, Out())
    assert operator.snapshot(2)["right"].rows["deleted"].to_pylist() == [True] * keys
    assert not made


def datetime_micros(count: int) -> dt.timedelta:
    return dt.timedelta(microseconds=count)


def test_what_cannot_be_joined_is_refused() -> None:
    job = ms.Job("j")
    rows = pa.table({"k": [1], "at": pa.array([0], pa.timestamp("us")), "s": ["a"]})
    timed = job.read(ms.memory_source(rows, name="timed"), event_time="at")
    timeless = job.read(ms.memory_source(rows, name="timeless"))
    with pytest.raises(JobError, match=r"join_asof\(\): the right stream has no event time"):
        timed.join_asof(timeless, on="k")
    with pytest.raises(JobError, match=r"join_asof\(\): the left stream is a changelog.*stands: put \.changes\(\)"):
        timed.group_by("k").agg(n=ms.count()).join_asof(timed, on="k")
    with pytest.raises(JobError, match=r"join_asof\(how='full'\): how is one of 'inner', 'left'"):
        timed.join_asof(timed, on="k", how="full")
    with pytest.raises(SchemaError, match=r"removed=.* is string; a condition"):
        timed.join_asof(timed, on="k", removed="s")
    with pytest.raises(SchemaError, match="there is no column 'gone'"):
        timed.join_asof(timed, on="k", removed="gone")


START = dt.datetime(1969, 12, 31, 23, 59, 30)


def batches(seed: int, count: int) -> list[pa.RecordBatch]:
    draw = random.Random(seed)
    rows = []
    for n in range(count):
        key = None if n % 23 == 7 else f"k{draw.randrange(5)}"
        at = START + dt.timedelta(milliseconds=60_000 // count * n + draw.randrange(3_000))
        rows.append({"n": n, "k": key, "gone": draw.random() < 0.2, "at": at})
    schema = pa.schema({"n": pa.int64(), "k": pa.string(), "gone": pa.bool_(), "at": pa.timestamp("us")})
    return [pa.RecordBatch.from_pylist(rows[n : n + 6], schema) for n in range(0, count, 6)]


def make(out: Any, counts: Any) -> ms.Job:
    """Windows may follow: a row is not late for them."""
    job = ms.Job("asof")
    trades, rates = (
        job.read(ms.memory_source(batches(seed, count), splits=2, name=name), event_time="at", max_delay="4s")
        for name, seed, count in (("trades", 1, 200), ("rates", 2, 90))
    )
    priced = trades.join_asof(rates, on="k", tolerance="8s", how="left", removed="gone")
    priced.select("n", "n_right").write(out)
    priced.group_by("k").window(ms.tumbling("5s")).agg(rows=ms.count()).select("rows").write(counts)
    return job


def expected() -> Counter[tuple[int, int | None]]:
    trades, rates = ([row for b in batches(*of) for row in b.to_pylist()] for of in ((1, 200), (2, 90)))
    found: Counter[tuple[int, int | None]] = Counter()
    for trade in trades:
        past = [r for r in rates if r["k"] == trade["k"] is not None and r["at"] <= trade["at"]]
        last = max(past, key=lambda r: (r["at"], r["n"]), default=None)
        old = last is None or last["gone"] or trade["at"] - last["at"] > dt.timedelta(seconds=8)
        found[trade["n"], None if old or last is None else last["n"]] += 1
    return found


@pytest.mark.parametrize("seed", range(3))
def test_crashes_do_not_show(seed: int, tmp_path: Path) -> None:
    out, counts = ms.memory_sink(name="pairs"), ms.memory_sink(name="counts")
    done = simulate(lambda: make(out, counts), tmp_path / "s.duckdb", seed)
    assert done.crashes > 0
    assert Counter((row["n"], row["n_right"]) for row in out.rows()) == expected(), f"seed {seed} reproduces it"
    assert sum(row["rows"] for row in counts.rows()) == 200


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_sixty_seeds(tmp_path: Path) -> None:
    for seed in range(100, 160):
        test_crashes_do_not_show(seed, tmp_path / str(seed))


JOB = """
import millstream as ms
import pyarrow as pa

ROWS = pa.schema({"n": pa.int64(), "k": pa.int64(), "at": pa.timestamp("us")})

def rows(step):
    def make(start, stop):
        numbers = [n * step for n in range(start, stop)]
        at = pa.array(numbers).cast(pa.timestamp("us"))
        return pa.record_batch([pa.array(numbers), pa.array([n % 7 for n in numbers]), at], schema=ROWS)
    return make

job = ms.Job("asof")
def stream(name, step):
    source = ms.generator(rows(step), schema=ROWS, name=name, rows=600 // step, batch_rows=12 // step, splits=2)
    return job.read(source, event_time="at", max_delay="1s")

trades, rates = stream("trades", 1), stream("rates", 3)
trades.join_asof(rates, on="k", how="left").select("n", "n_right").write(ms.jsonl("output"))
"""


def test_killed_jobs_miss_nothing(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    with Nursery() as nursery:
        ends = [
            nursery.run(Start(str(tmp_path), failpoint=point, parallelism=parallelism))
            for point, parallelism in (
                ("store.after_commit=kill@5", 2),
                ("store.before_commit=kill@3", 3),
                ("subtask.snapshot=kill@9", 1),
            )
        ]
        last = nursery.run(Start(str(tmp_path), parallelism=2, batches=9))
    assert all(end.killed for end in ends), [end.log for end in ends]
    assert last.outcome == "finished", last.log
    found = [json.loads(line) for file in tmp_path.rglob("part-*") for line in file.read_text().splitlines()]
    rates = range(0, 600, 3)
    assert Counter((row["n"], row["n_right"]) for row in found) == Counter(
        (n, max((r for r in rates if r <= n and r % 7 == n % 7), default=None)) for n in range(600)
    )
