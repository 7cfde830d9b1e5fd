"""Rows with what came before and after them: DuckDB's window functions over the rows that are on time."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from typing import Any

import duckdb
import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.element import Watermark
from millstream.engine.errors import DataError, JobError, SchemaError
from millstream.engine.expression import col
from millstream.engine.state import WHOLE_STATE_ROWS
from millstream.operators.over import Over
from millstream.testing import BARRIER, check_operator
from operator_kit import Advance, Harness, Restart, Step, rows_of

SCHEMA = pa.schema(
    {
        "k": pa.string(),
        "i": pa.int64(),
        "u": pa.uint64(),
        "f": pa.float64(),
        "s": pa.string(),
        "n": pa.decimal128(20, 2),
        "t": pa.timestamp("us"),
        "seq": pa.int64(),
    }
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "k": st.sampled_from([None, "", "x"]),
    "i": st.none() | st.integers(-3, 3) | st.sampled_from([-(2**62), 2**62 - 1]),
    "u": st.none() | st.integers(0, 3) | st.just(2**64 - 1),
    "f": st.sampled_from([None, math.nan, math.inf, -math.inf, 0.0, 1.5, -2.25, 1e15]),
    "s": st.sampled_from([None, "", "a", "b", "é"]),
    "n": st.sampled_from([None, Decimal("0.00"), Decimal("-1.25"), Decimal(10**15)]),
    "t": st.none() | st.integers(-12, 12),
}
FUNCTIONS = {
    "number": (ms.row_number(), "row_number() over (rows_)"),
    "lag_s": (ms.lag("s"), "lag(s) over (rows_)"),
    "lag_i": (ms.lag(col("i"), 3), "lag(i, 3) over (rows_)"),
    "lead_f": (ms.lead("f"), "lead(f) over (rows_)"),
    "lead_i": (ms.lead("i", 2), "lead(i, 2) over (rows_)"),
    "count": (ms.count(), "count(*) over (frame_)"),
    "count_s": (ms.count("s"), "count(s) over (frame_)"),
    "count_w": (ms.count(where=col("i") > 0), "count(*) filter (i > 0) over (frame_)"),
    "mean_i": (ms.mean("i"), "sum(i) over (frame_)::double / count(i) over (frame_)"),
    "mean_u": (ms.mean("u"), "sum(u) over (frame_)::double / count(u) over (frame_)"),
    "sum_i": (ms.sum("i", where=col("i").between(-3, 3)), "sum(i) filter (i between -3 and 3) over (frame_)::bigint"),
    "sum_f": (ms.sum("f", where=col("s") != "a"), "sum(f) filter (s != 'a') over (frame_)"),
    "mean_f": (ms.mean("f"), "avg(f) over (frame_)"),
    "min_i": (ms.min("i"), "min(i) over (frame_)"),
    "max_f": (ms.max("f"), "max(f) over (frame_)"),
    "min_f": (ms.min("f"), "min(f) over (frame_)"),
    "max_s": (ms.max("s", where=col("i") > -2), "max(s) filter (i > -2) over (frame_)"),
    "min_n": (ms.min("n"), "min(n) over (frame_)"),
    "max_t": (ms.max("t"), "max(t) over (frame_)"),
}
FRAMES = st.sampled_from([{}, {}, {"rows": 1}, {"rows": 3}, {"range": 0}, {"range": 4}])
CHOICES = st.lists(st.sampled_from(sorted(FUNCTIONS)), min_size=1, max_size=5, unique=True)


@st.composite
def streams(draw: st.DrawFn) -> list[Step]:
    steps: list[Step] = []
    seq = 0
    for _ in range(draw(st.integers(1, 6))):
        count = draw(st.integers(1, 10))
        columns = [
            pa.array(draw(st.lists(values, min_size=count, max_size=count)), SCHEMA.field(name).type)
            for name, values in VALUES.items()
        ]
        steps.append(pa.record_batch([*columns, pa.array(range(seq, seq + count))], schema=SCHEMA))
        seq += count
        after = draw(st.sampled_from(["nothing", "advance", "advance", "restart", "advance, restart"]))
        if "advance" in after:
            steps.append(Advance(draw(st.integers(-14, 14))))
        if "restart" in after:
            steps.append(Restart(draw(st.integers(1, 3))))
    return steps


def on_time(steps: list[Step]) -> pa.Table:
    rows, watermark = [], -(2**62)
    for step in steps:
        if isinstance(step, Advance):
            watermark = max(watermark, step.time)
        if isinstance(step, pa.RecordBatch):
            for row in step.to_pylist():
                if row["t"] is not None:
                    micros = (row["t"] - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1)
                    if micros >= watermark:
                        rows.append(row)
    return pa.Table.from_pylist(rows, SCHEMA)


def spec_of(names: list[str], keys: tuple[str, ...], frame: dict[str, int]) -> Over:
    return Over(keys, tuple((name, FUNCTIONS[name][0]) for name in names), col("t"), **frame)


def by_sql(rows: pa.Table, spec: Over) -> pa.Table:
    partition = f"partition by {', '.join(spec.keys)}" if spec.keys else ""
    frame = f"{partition} order by t, seq rows between unbounded preceding and current row"
    if spec.rows is not None:
        frame = f"{partition} order by t, seq rows between {spec.rows - 1} preceding and current row"
    if spec.range is not None:
        frame = f"{partition} order by micros range between {spec.range} preceding and current row"
    ordered = f"{partition} order by t, seq"
    made = [
        FUNCTIONS[name][1].replace("rows_", ordered).replace("frame_", frame) + f" as {name}"
        for name, _ in spec.functions
    ]
    DUCKDB.register("rows", rows)
    sql = f"select {', '.join([*SCHEMA.names, *made])} from (select *, epoch_us(t) as micros from rows) order by seq"
    return DUCKDB.sql(sql).to_arrow_table()


DUCKDB = duckdb.connect(config={"threads": 1})


def assert_same(found: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> None:
    assert len(found) == len(expected)
    for got, wanted in zip(found, expected, strict=True):
        for one, other in zip(got, wanted, strict=True):
            if isinstance(one, float) and isinstance(other, float):
                assert one == pytest.approx(other, rel=1e-12, abs=1e-12, nan_ok=True)
            else:
                assert one == other, (got, wanted)


@settings(max_examples=60, deadline=None)
@given(streams(), CHOICES, st.sampled_from([(), ("k",), ("k", "i")]), FRAMES, st.integers(1, 2))
def test_any_stream_gives_what_sql_gives_over_the_rows_on_time(
    steps: list[Step], names: list[str], keys: tuple[str, ...], frame: dict[str, int], parallelism: int
) -> None:
    spec = spec_of(names, keys, frame)
    run = Harness(spec, SCHEMA, parallelism).run(steps).finish()
    seq = SCHEMA.names.index("seq")
    found = run.results()
    rows = on_time(steps)
    assert_same(sorted(rows_of(found), key=lambda row: row[seq]), rows_of(by_sql(rows, spec)))
    late = sum(step.num_rows for step in steps if isinstance(step, pa.RecordBatch)) - rows.num_rows
    assert run.results("late").num_rows == late == run.counters["late_rows"] + run.counters["null_time_rows"]


@settings(max_examples=6, deadline=None)
@given(streams(), CHOICES, st.sampled_from([(), ("k",)]), FRAMES)
def test_conformance(steps: list[Step], names: list[str], keys: tuple[str, ...], frame: dict[str, int]) -> None:
    script: list[Any] = []
    for step in steps:
        match step:
            case Restart():
                script.append(BARRIER)
            case Advance(time):
                script.append(Watermark(max([time, *(s.time for s in script if isinstance(s, Watermark))])))
            case _:
                script.append(step)
    check_operator(spec_of(names, keys, frame), script)


PLAIN = pa.schema({"k": pa.int64(), "v": pa.float64(), "t": pa.timestamp("us")})


@pytest.mark.parametrize("frame", [{}, {"rows": 40}, {"range": 3_000}])
def test_a_large_state_survives_forgetting_and_restarts(frame: dict[str, int]) -> None:
    rng = np.random.default_rng(1)
    functions = (("number", ms.row_number()), ("total", ms.sum("v")), ("most", ms.max("v")), ("old", ms.lag("v", 9)))
    harness, fed = Harness(Over(("k",), functions, col("t"), **frame), PLAIN), []
    for number in range(10):
        keys, values = rng.integers(0, 3_000, 6_000), rng.integers(0, 1_000, 6_000).astype(float)
        # Batches overlap in time, but no two rows have the same.
        times = number * 12_000 + rng.permutation(12_000)[:6_000] * 2 + number % 2
        columns = [pa.array(keys), pa.array(values), pa.array(times, PLAIN.field("t").type)]
        fed.append(pa.record_batch(columns, schema=PLAIN))
        harness.feed(fed[-1])
        harness.advance((number + 1) * 12_000)
        harness.restart(1 + number % 3)
    assert sum(subtask._live for subtask in harness.subtasks) > WHOLE_STATE_ROWS
    harness.finish()
    ordered = "partition by k order by t"
    framed = f"{ordered} rows between unbounded preceding and current row"
    if "rows" in frame:
        framed = f"{ordered} rows between 39 preceding and current row"
    if "range" in frame:
        framed = "partition by k order by epoch_us(t) range between 3000 preceding and current row"
    DUCKDB.register("rows", pa.Table.from_batches(fed))
    answer = DUCKDB.sql(
        f"select k, t, v, row_number() over ({ordered}), sum(v) over ({framed}), max(v) over ({framed}), "
        f"lag(v, 9) over ({ordered}) from rows order by k, t"
    )
    found = harness.results().select(["k", "t", "v", "number", "total", "most", "old"])
    assert sorted(rows_of(found)) == rows_of(answer.to_arrow_table())


def test_rows_of_keys_without_new_ones_are_forgotten() -> None:
    harness = Harness(Over(("k",), (("n", ms.count()),), col("t"), range=10), PLAIN)
    for number in range(60):
        at = number * 1_000
        times = pa.array(np.arange(at, at + 1_000), PLAIN.field("t").type)
        keys = pa.array(np.arange(at, at + 1_000))
        harness.feed(pa.record_batch([keys, keys.cast(pa.float64()), times], PLAIN.names))
        harness.advance(at + 1_000)
    operator: Any = harness.subtasks[0]
    assert operator._live < 10_000
    assert len(operator._index) < 20_000


def test_rows_that_wait_for_later_are_not_looked_at() -> None:
    spec = Over(("k",), (("n", ms.count()), ("next", ms.lead("v"))), col("t"), range=10)
    harness = Harness(spec, PLAIN)
    harness.feed(plain(range(1_000, 11_000)))
    operator: Any = harness.subtasks[0]
    looked: list[int] = []
    stretch = operator._stretch
    operator._stretch = lambda slots, **how: looked.append(len((made := stretch(slots, **how)).ids)) or made
    for at in range(20):
        harness.feed(plain([at]))
        harness.advance(at + 1)
    harness.advance(1_003)
    assert len(looked) >= 21
    assert max(looked) < 20, "more than the frame and the row that waits for the next one"
    harness.restart(1)
    assert harness.finish().results().num_rows == 10_020


def plain(times: Any) -> pa.RecordBatch:
    """Rows of one key."""
    at = pa.array(times, pa.int64())
    keys = pa.array([7] * len(at), PLAIN.field("k").type)
    return pa.record_batch([keys, at.cast(pa.float64()), at.cast(PLAIN.field("t").type)], schema=PLAIN)


def test_a_huge_value_leaves_a_frame_without_a_trace() -> None:
    rows = [1e300, math.inf, 0.1, 0.2, math.nan, 0.3]
    batch = pa.record_batch([pa.array([1] * 6), pa.array(rows), pa.array(range(6), PLAIN.field("t").type)], PLAIN.names)
    run = Harness(Over(("k",), (("s", ms.sum("v")),), col("t"), rows=1), PLAIN).run([batch]).finish()
    assert repr(run.results().column("s").to_pylist()) == repr(rows)


def test_mistakes() -> None:
    schema = pa.schema({"v": pa.int64(), "t": pa.timestamp("us")})
    batch = pa.record_batch([pa.array([2**63 - 1, 1]), pa.array([1, 2], schema.field("t").type)], schema=schema)
    harness = Harness(Over((), (("s", ms.sum("v")),), col("t")), schema).run([batch])
    with pytest.raises(DataError, match=r"sum\(v\) is 9223372036854775808 for a row, which int64 cannot hold"):
        harness.finish()
    job = ms.Job("j")
    plain = job.read(ms.memory_source([{"a": 1, "at": dt.datetime(2026, 1, 1)}], name="plain"))
    timed = job.read(ms.memory_source([{"a": 1, "at": dt.datetime(2026, 1, 1)}], name="timed"), event_time="at")
    for make, error, message in [
        (lambda: plain.over(n=ms.row_number()), JobError, "needs event time"),
        (timed.over, JobError, "needs a name for each function"),
        (lambda: timed.over(n="a"), SchemaError, r"takes ms.row_number\(\)"),
        (lambda: timed.over(a=ms.row_number()), SchemaError, "there is a column 'a' already"),
        (lambda: timed.over(n=ms.median("a")), SchemaError, r"over\(\): quantile.*cannot be computed row by row"),
        (lambda: timed.over(n=ms.count(), rows=0), JobError, "a frame has 1 to"),
        (lambda: timed.over(n=ms.count(), rows="5"), JobError, "rows is how many rows"),
        (lambda: timed.over(n=ms.count(), rows=5, range="1m"), JobError, "rows= or range=, not both"),
        (lambda: timed.over(n=ms.lag("a", 0)), JobError, "at least 1"),
        (lambda: timed.over(n=ms.lag("b")), SchemaError, "no column 'b'"),
    ]:
        with pytest.raises(error, match=message):
            make()


def test_rows_go_on_in_the_order_of_event_time_and_late_ones_aside() -> None:
    noon = dt.datetime(2026, 1, 1, 12)
    rows = [
        {"k": k, "at": noon + dt.timedelta(seconds=s), "n": n}
        for n, (k, s) in enumerate([("a", 9), ("b", 6), ("a", 7), ("b", 30), ("a", 1), ("a", 31)])
    ]
    job, out, late = ms.Job("j"), ms.memory_sink("out"), ms.memory_sink("late")
    batches = [pa.RecordBatch.from_pylist(rows[at : at + 2]) for at in (0, 2, 4)]
    read = job.read(ms.memory_source(batches), event_time="at", max_delay="5s")
    numbered = read.group_by("k").over(i=ms.row_number(), before=ms.lag("n"))
    numbered.select("n", "i", "before").write(out)
    numbered.late.write(late)
    assert numbered._time is not None
    assert read.over(after=ms.lead("n"))._time is None
    job.run()
    assert [tuple(row.values()) for row in out.rows()] == [(1, 1, None), (2, 1, None), (0, 2, 2), (3, 2, 1), (5, 3, 0)]
    assert [row["n"] for row in late.rows()] == [4]
