"""The top rows of windows that are put together from parts: sliding, cumulating, sessions."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import duckdb
import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.errors import SchemaError
from millstream.engine.expression import col
from millstream.operators.paned_windows import CumulatingWindow, SlidingWindow
from millstream.operators.session_window import SessionWindow
from millstream.operators.window_top import WindowTop
from millstream.operators.windows import PanedWindow, Window
from millstream.testing import BARRIER, Watermark, check_operator, simulate
from operator_kit import Advance, Harness, Restart, Step, bag, rows_of
from test_paned_windows import windows_sql
from test_session_window import by_hand
from test_window_top import RANKS, combine, streams
from test_window_top import SCHEMA as ROWS

GAP = 10
SHAPES = st.sampled_from([SlidingWindow(10, 5, 3), SlidingWindow(12, 8), CumulatingWindow(10, 4, 7)])
KEYS = st.sampled_from([(), ("k",), ("k", "f")])


def spec_of(
    window: Window, by: list[tuple[str, bool]], n: int, ties: bool, keys: tuple[str, ...], lateness: int
) -> WindowTop:
    return WindowTop(keys, window, tuple((col(name), down) for name, down in by), n, ties, col("t"), lateness)


def best(rows: str, spec: WindowTop, by: list[tuple[str, bool]], window: str, **tables: pa.Table) -> list[Any]:
    """SQL's best rows of each key and window, of a query with columns ``start`` and ``stop``."""
    order = ", ".join(f"{name} {'desc' if down else 'asc'} nulls last" for name, down in by)
    group = ", ".join([*spec.keys, window])
    rank = f"rank() over (partition by {group} order by {order})"
    if not spec.ties:
        rank = f"row_number() over (partition by {group} order by {order}, seq)"
    columns = ", ".join([*ROWS.names, "make_timestamp(start)", "make_timestamp(stop)"])
    with duckdb.connect() as connection:
        for name, table in tables.items():
            connection.register(name, table)
        query = f"select {columns} from ({rows}) qualify {rank} <= {spec.n}"
        return rows_of(connection.sql(query).to_arrow_table())


@settings(max_examples=24, deadline=None)
@given(streams(), SHAPES, RANKS, st.sampled_from([1, 1, 3]), st.booleans(), KEYS, st.sampled_from([0, 15]))
def test_windows_that_overlap_give_what_sql_gives(
    steps: list[Step],
    window: PanedWindow,
    by: list[tuple[str, bool]],
    n: int,
    ties: bool,
    keys: tuple[str, ...],
    lateness: int,
) -> None:
    spec = spec_of(window, by, n, ties, keys, lateness)
    run = Harness(spec, ROWS, 2).run(steps).finish()
    joined = (
        f"select * from input join ({windows_sql(window)}) "
        f"on epoch_us(t) >= start and epoch_us(t) < stop and stop + {lateness} > w"
    )
    expected = bag(best(joined, spec, by, "start, stop", input=told(steps)))
    assert bag(rows_of(run.results())) == expected
    combined = Harness(spec, ROWS).run(combine(spec, steps)).finish()
    assert bag(rows_of(combined.results())) == expected


def told(steps: list[Step]) -> pa.Table:
    """All rows that have a time, and in ``w`` the watermark at which they came."""
    rows, watermark = [], -(2**40)
    for step in steps:
        if isinstance(step, Advance):
            watermark = max(watermark, step.time)
        if isinstance(step, pa.RecordBatch):
            rows += [{**row, "w": watermark} for row in step.to_pylist() if row["t"] is not None]
    return pa.Table.from_pylist(rows, ROWS.append(pa.field("w", pa.int64())))


@settings(max_examples=20, deadline=None)
@given(streams(), RANKS, st.sampled_from([1, 1, 3]), st.booleans(), KEYS, st.sampled_from([0, 15]), st.integers(1, 2))
def test_sessions_give_what_sql_gives(
    steps: list[Step],
    by: list[tuple[str, bool]],
    n: int,
    ties: bool,
    keys: tuple[str, ...],
    lateness: int,
    parallelism: int,
) -> None:
    spec = spec_of(SessionWindow(GAP), by, n, ties, keys, lateness)
    run = Harness(spec, ROWS, parallelism).run(steps).finish()
    sessions, late = by_hand(steps, keys, lateness)
    schema = ROWS.append(pa.field("session", pa.int64()))
    rows = pa.Table.from_pylist([{**row, "session": s} for s, held in enumerate(sessions) for row in held], schema)
    first, last = (f"{edge}(epoch_us(t)) over (partition by session)" for edge in ("min", "max"))
    query = f"select *, {first} as start, {last} + {GAP} as stop from input"
    assert bag(rows_of(run.results())) == bag(best(query, spec, by, "session", input=rows))
    assert run.results("late").num_rows == late
    assert spec.combiner({"main": frozenset({"i"})}) is None


PLAIN = pa.schema({"k": pa.string(), "v": pa.int64(), "t": pa.int64()})


def rows(*made: tuple[str, int, int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict(zip(PLAIN.names, row, strict=True)) for row in made], PLAIN)


def plain(window: Window, n: int = 2, **changes: Any) -> WindowTop:
    made = {"keys": ("k",), "window": window, "by": ((col("v"), True),), "n": n, "ties": False, "time": col("t")}
    return WindowTop(**{**made, **changes})


@pytest.mark.parametrize("window", [SlidingWindow(10, 4), CumulatingWindow(10, 4), SessionWindow(5)], ids=repr)
def test_the_kit_finds_nothing(window: Window) -> None:
    script = [
        rows(("a", 1, 1), ("b", 2, -3), ("a", 1, 3)),
        BARRIER,
        Watermark(3),
        rows(("a", 4, 4), ("c", 3, 9), ("a", 9, 5), ("a", 1, 5)),
        Watermark(8),
        BARRIER,
        rows(("a", 9, 9), ("b", 5, 22), ("c", 3, 12)),
    ]
    check_operator(plain(window), script)


def test_of_equal_rows_the_first_to_arrive_stays_where_sessions_grow_together() -> None:
    steps: list[Step] = [rows(("a", 1, 20)), Restart(2), rows(("a", 1, 4), ("a", 1, 5)), Restart(1), rows(("a", 1, 12))]
    run = Harness(plain(SessionWindow(10)), PLAIN).run(steps).finish()
    assert [row[2] for row in rows_of(run.results())] == [20, 4]


def test_rows_pushed_off_the_top_leave_the_store() -> None:
    run = Harness(plain(SlidingWindow(10, 5), 1, keys=()), PLAIN)
    for value in range(1, 6):
        run.feed(rows(("a", value, 1)))
        run.checkpoint()
    written = [made.select(["v", "deleted"]).to_pylist() for _, made in run.store.rows["top"]]
    assert written[-1] == [{"v": None, "deleted": True}, {"v": 5, "deleted": False}]
    assert run.finish().results().column("v").to_pylist() == [5, 5]


def test_space_is_used_again() -> None:
    schema = pa.schema({"k": pa.int64(), "v": pa.int64(), "t": pa.int64()})
    run = Harness(plain(SlidingWindow(2, 1), 1), schema)
    for step in range(40):
        run.feed(pa.record_batch([np.arange(1_000), np.arange(1_000) + step, np.full(1_000, step)], schema=schema))
        run.advance(step)
        (accumulator,) = run.subtasks[0]._inner._accumulators
        assert len(accumulator._rows) < 10_000
    assert run.finish().results().num_rows == 41_000


def test_only_what_is_wanted_is_kept() -> None:
    wide = pa.schema([*PLAIN, pa.field("x", pa.list_(pa.int64())), pa.field("y", pa.int64())])
    spec = plain(SlidingWindow(10, 5)).pruned({"main": frozenset({"window_end", "x", "k"}), "late": frozenset()})
    assert spec.output_schemas([wide])["main"].names == ["k", "x", "window_end"]
    assert spec.state_tables([wide])[1].schema.names == ["k", "pane_start", "arrival", "v", "x"]
    batch = pa.RecordBatch.from_pylist([{"k": "a", "v": 1, "t": 3, "x": [1, 2], "y": 0}], wide)
    run = Harness(spec, wide).run([batch, Restart(2)]).finish()
    assert [row["x"] for row in run.results().to_pylist()] == [[1, 2], [1, 2]]


def test_columns_named_like_those_of_a_window_are_refused() -> None:
    schema = PLAIN.append(pa.field("window_end", pa.int64()))
    with pytest.raises(SchemaError, match=r"adds the columns window_start and window_end.*has window_end already"):
        plain(SessionWindow(5)).output_schemas([schema])


START = dt.datetime(2026, 1, 1)
BATCHES = [
    pa.RecordBatch.from_pylist(
        [
            {
                "shop": f"s{n % 4}",
                "n": n,
                "paid": n * 37 % 101,
                "at": START + dt.timedelta(seconds=3 * (n ^ 3) + n // 40),
            }
            for n in range(first, first + 10)
        ]
    )
    for first in range(0, 300, 10)
]


def make(out: tuple[Any, Any]) -> ms.Job:
    job = ms.Job("best")
    orders = job.read(ms.memory_source(BATCHES), event_time="at", max_delay="20s").group_by("shop")
    orders.window(ms.sliding("1m", "15s")).top(2, by="paid").write(out[0])
    best = orders.window(ms.session("13s")).top(1, by=["paid", "at"], descending=[False, True])
    best.window(ms.tumbling("1h")).agg(sessions=ms.count(), paid=ms.sum("paid")).write(out[1])
    return job


@pytest.mark.parametrize("seed", range(2))
def test_crashes_do_not_show(seed: int, tmp_path: Path) -> None:
    expected, out = ((ms.memory_sink("sliding"), ms.memory_sink("sessions")) for _ in range(2))
    make(expected).run()
    done = simulate(lambda: make(out), tmp_path / "s.duckdb", seed)
    for made, wanted in zip(out, expected, strict=True):
        assert sorted(map(repr, made.rows())) == sorted(map(repr, wanted.rows())), f"seed {seed} reproduces it"
    assert done.crashes > 0
    assert len(expected[0].rows()) > 300
    assert sum(row["sessions"] for row in expected[1].rows()) > 4
