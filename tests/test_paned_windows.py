"""Windows that share panes: sliding and cumulating."""

from __future__ import annotations

import datetime as dt
from typing import Any

import duckdb
import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.errors import DataError, JobError
from millstream.engine.expression import col
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.paned_windows import CumulatingWindow, SlidingWindow, cumulating, sliding
from millstream.operators.window_aggregate import WindowAggregate
from millstream.operators.windows import PanedWindow
from millstream.testing import BARRIER, Watermark, check_operator
from operator_kit import Advance, Harness, Restart, Step, bag, rows_of
from window_kit import SCHEMA, VALUES, streams

EPOCH = dt.datetime(1970, 1, 1)


def add(left: dict[str, pa.Array], right: dict[str, pa.Array]) -> dict[str, Any]:
    return {"total": np.asarray(left["total"]) + np.asarray(right["total"])}


def count_up(state: dict[str, pa.Array], groups: np.ndarray, values: pa.Array) -> dict[str, Any]:
    return {"total": np.asarray(state["total"]) + np.bincount(groups, values, len(state["total"]))}


TOTAL = ms.aggregate(
    "seq",
    state={"total": float},
    init={"total": 0.0},
    update=count_up,
    merge=add,
    result=lambda state: state["total"],
    type=float,
)
AGGREGATES: dict[str, tuple[AggregateSpec, str]] = {
    "rows": (ms.count(), "count(*)"),
    **{f"count_{v}": (ms.count(v), f"count({v})") for v in VALUES},
    **{f"sum_{v}": (ms.sum(v), f"sum({v})") for v in "iufbn"},
    **{f"mean_{v}": (ms.mean(v), "avg(b::int)" if v == "b" else f"avg({v})") for v in "iufbn"},
    **{f"min_{v}": (ms.min(v), f"min({v})") for v in VALUES},
    **{f"max_{v}": (ms.max(v), f"max({v})") for v in VALUES},
    **{f"first_{v}": (ms.first(v), f"first({v} order by t, seq)") for v in VALUES},
    **{f"last_{v}": (ms.last(v), f"last({v} order by t, seq)") for v in VALUES},
    "arg_min": (ms.arg_min("s", "seq"), "arg_min(s, seq)"),
    "arg_max": (ms.arg_max("n", "seq"), "arg_max(n, seq)"),
    **{f"distinct_{v}": (ms.count_distinct(v), f"count(distinct {v})") for v in "isd"},
    "about": (ms.approx_count_distinct("seq"), "count(*)"),
    "median": (ms.median("seq"), "median(seq)"),
    "all": (ms.collect("seq"), "list(seq order by t // pane, seq)"),
    "some": (ms.collect("seq", limit=2, where=col("b")), "list(seq order by t // pane, seq) filter (b)[:2]"),
    "total": (TOTAL, "sum(seq)::double"),
}


def with_watermarks(steps: list[Step]) -> pa.Table:
    """All rows that have a time, and in ``w`` the watermark at which they came."""
    rows, watermark = [], -(2**40)
    for step in steps:
        if isinstance(step, Advance):
            watermark = max(watermark, step.time)
        if isinstance(step, pa.RecordBatch):
            rows += [{**row, "w": watermark} for row in step.to_pylist() if row["t"] is not None]
    return pa.Table.from_pylist(rows, SCHEMA.append(pa.field("w", pa.int64())))


def windows_sql(window: SlidingWindow | CumulatingWindow) -> str:
    """All windows near 1970, as a query."""
    every = window.slide if isinstance(window, SlidingWindow) else window.size
    starts = f"(select unnest(generate_series({window.offset - 99 * every}, 99, {every})) as start)"
    if isinstance(window, SlidingWindow):
        return f"select start, start + {window.size} as stop from {starts}"
    ends = f"(select distinct least(unnest(generate_series(1, 20)) * {window.step}, {window.size}) as length)"
    return f"select start, start + length as stop from {starts}, {ends}"


def by_sql(
    window: SlidingWindow | CumulatingWindow, pane: int, steps: list[Step], keys: tuple[str, ...], lateness: int
) -> list[Any]:
    rows = with_watermarks(steps)
    group = ", ".join([*keys, "start", "stop"])
    shown = [f"{key} + 0.0" if key == "h" else key for key in keys]
    made = [sql.replace("pane", str(pane)).replace("t //", "tt //") for _, sql in AGGREGATES.values()]
    outputs = ", ".join([*shown, "make_timestamp(start)", "make_timestamp(stop)", *made])
    with duckdb.connect() as connection:
        connection.register("input", rows)
        joined = (
            f"(select *, epoch_us(t) - start as tt from input join ({windows_sql(window)}) "
            f"on epoch_us(t) >= start and epoch_us(t) < stop and stop + {lateness} > w)"
        )
        return rows_of(connection.sql(f"select {outputs} from {joined} group by {group}").to_arrow_table())


def run_of(window: PanedWindow, steps: list[Step], keys: tuple[str, ...], lateness: int, parallelism: int) -> Harness:
    aggregates = tuple((name, aggregate) for name, (aggregate, _) in AGGREGATES.items())
    return Harness(WindowAggregate(keys, window, aggregates, col("t"), lateness), SCHEMA, parallelism).run(steps)


@settings(max_examples=20, deadline=None)
@given(
    streams(),
    st.sampled_from([(10, 10, 0), (10, 5, 3), (10, 1, 0), (12, 8, 0), (7, 3, 2)]),
    st.sampled_from([(), ("g", "k"), ("h",)]),
    st.sampled_from([0, 15]),
    st.integers(1, 2),
)
def test_sliding_windows_give_what_sql_gives(
    steps: list[Step], shape: tuple[int, int, int], keys: tuple[str, ...], lateness: int, parallelism: int
) -> None:
    window = SlidingWindow(*shape)
    run = run_of(window, steps, keys, lateness, parallelism).finish()
    assert bag(rows_of(run.results())) == bag(by_sql(window, window.pane, steps, keys, lateness))


@settings(max_examples=15, deadline=None)
@given(
    streams(),
    st.sampled_from([(10, 10, 0), (10, 5, 3), (12, 1, 0), (10, 4, 7)]),
    st.sampled_from([(), ("g", "k")]),
    st.sampled_from([0, 15]),
    st.integers(1, 2),
)
def test_cumulating_windows_give_what_sql_gives(
    steps: list[Step], shape: tuple[int, int, int], keys: tuple[str, ...], lateness: int, parallelism: int
) -> None:
    window = CumulatingWindow(*shape)
    run = run_of(window, steps, keys, lateness, parallelism).finish()
    assert bag(rows_of(run.results())) == bag(by_sql(window, window.step, steps, keys, lateness))


PLAIN = pa.schema({"k": pa.string(), "v": pa.int64(), "t": pa.timestamp("us")})


def plain(window: PanedWindow, **changes: Any) -> WindowAggregate:
    made = {"keys": ("k",), "window": window, "aggregates": (("n", ms.count()),), "time": col("t")}
    return WindowAggregate(**{**made, **changes})


def rows(*made: tuple[str, int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [{"k": key, "v": time, "t": EPOCH + dt.timedelta(microseconds=time)} for key, time in made], PLAIN
    )


def fired(run: Harness) -> list[tuple[str, int, int, int]]:
    table = run.results()
    for name in ("window_start", "window_end"):
        table = table.set_column(table.schema.get_field_index(name), name, table.column(name).cast(pa.int64()))
    return rows_of(table)


def test_a_row_counts_in_the_windows_that_are_still_open_and_is_late_when_none_is() -> None:
    run = Harness(plain(SlidingWindow(10, 5)), PLAIN).run([rows(("a", 7)), Advance(10)])
    assert fired(run) == [("a", 0, 10, 1)]
    run.run([rows(("a", 6), ("b", 9)), Advance(15)])
    assert fired(run)[1:] == [("a", 5, 15, 2), ("b", 5, 15, 1)]
    assert run.results("late").num_rows == 0
    run.run([rows(("a", 9))])
    assert run.results("late").num_rows == 1


def test_windows_that_have_fired_do_not_fire_again_after_a_restart() -> None:
    spec = plain(SlidingWindow(10, 2))
    steps: list[Step] = [rows(("a", 1), ("a", 5), ("b", 3)), Advance(6), rows(("c", 3)), Restart(2), Advance(8)]
    run = Harness(spec, PLAIN, 3).run([*steps, Restart(3), Restart(1)]).finish()
    once = Harness(spec, PLAIN).run([step for step in steps if not isinstance(step, Restart)]).finish()
    assert bag(fired(run)) == bag(fired(once))
    assert [row for row in fired(once) if row[0] == "c"] == [("c", start, start + 10, 1) for start in (-2, 0, 2)]


def test_windows_that_one_subtask_had_not_seen_end_fire_after_the_restart() -> None:
    run = Harness(plain(SlidingWindow(10, 5)), PLAIN, 2).run([rows(*[(key, 7) for key in "abcdefgh"])])
    assert all(len(subtask._index) for subtask in run.subtasks)
    # The inputs of the other subtask were never idle: it has had no watermark.
    run.subtasks[0].on_watermark(10, run.out)
    early = run.results().num_rows
    run.checkpoint()
    run._start(1)
    run.store.restore(run.subtasks)
    run.finish()
    assert 0 < early < 8
    assert bag(fired(run)) == bag([(key, start, start + 10, 1) for key in "abcdefgh" for start in (0, 5)])


def test_a_pane_is_kept_until_its_last_window_has_fired_and_no_longer() -> None:
    run = Harness(plain(SlidingWindow(10, 5)), PLAIN).run([rows(("a", 7))])
    assert run.subtasks[0].snapshot(1)["windows"].rows.num_rows == 1
    run.advance(10)
    (row,) = run.subtasks[0].snapshot(2)["windows"].rows.to_pylist()
    assert (row["pane_start"], row["fired"], row["deleted"]) == (
        EPOCH + dt.timedelta(microseconds=5),
        EPOCH + dt.timedelta(microseconds=10),
        False,
    )
    run.advance(14)
    assert run.subtasks[0].snapshot(3) == {}
    run.advance(15)
    assert run.subtasks[0].snapshot(4)["windows"].rows.column("deleted").to_pylist() == [True]
    assert run.subtasks[0].snapshot(5) == {}


def test_a_row_is_kept_once_however_many_windows_it_is_in() -> None:
    run = Harness(plain(SlidingWindow(1_000, 1)), PLAIN).run([rows(("a", 7), ("b", 7))])
    assert run.subtasks[0].snapshot(1)["windows"].rows.num_rows == 2
    assert run.finish().results().num_rows == 2_000


def test_a_window_that_fires_rewrites_one_pane_of_each_key() -> None:
    keys, panes = 300, 100
    schema = pa.schema({"k": pa.int64(), "t": pa.int64()})
    run = Harness(plain(SlidingWindow(panes, 1)), schema)
    run.feed(pa.record_batch([np.arange(keys * panes) // panes, np.arange(keys * panes) % panes], schema=schema))
    run.checkpoint()
    run.advance(50)
    written = run.subtasks[0].snapshot(2)["windows"].rows.num_rows
    assert written < keys * (panes / 20 + 50 + 1)
    run.checkpoint()
    run.advance(51)
    assert run.subtasks[0].snapshot(4)["windows"].rows.num_rows < keys * (panes / 20 + 2)


def test_slots_of_panes_are_used_again() -> None:
    schema = pa.schema({"k": pa.int64(), "t": pa.int64()})
    run = Harness(plain(SlidingWindow(2, 1), aggregates=(("s", ms.count_distinct("k")),)), schema)
    for time in range(40):
        run.feed(pa.record_batch([np.arange(1_000), np.full(1_000, time)], schema=schema))
        run.advance(time)
        assert len(run.subtasks[0]._index) < 6_000
    assert run.finish().results().num_rows == 41 * 1_000


@pytest.mark.parametrize("window", [SlidingWindow(10, 4), CumulatingWindow(10, 4)], ids=["sliding", "cumulating"])
def test_the_kit_finds_nothing(window: PanedWindow) -> None:
    aggregates = (("n", ms.count()), ("all", ms.collect("v")), ("m", ms.median("v")))
    steps = [rows(("a", 1), ("b", -3)), BARRIER, Watermark(3), rows(("a", 4), ("c", 9)), Watermark(12), BARRIER]
    check_operator(plain(window, aggregates=aggregates), [*steps, rows(("b", 22))])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sliding("0s", "1s"), "needs a size"),
        (lambda: sliding("1s", "0s"), "slide must be at least"),
        (lambda: sliding("1s", "2s"), "rows between two windows"),
        (lambda: sliding("1h", "1s"), r"3,600 panes of 1s.*at most 1,000.*such as 36s"),
        (lambda: sliding("1h", "7m1s"), r"3,600 panes of 1s"),
        (lambda: sliding("1h", "5m", offset="5m"), "offset must be smaller than the slide"),
        (lambda: cumulating("1d", "1s"), r"86,400 panes.*a longer step, such as 14m24s"),
        (lambda: cumulating("1d", "2d"), "step must be"),
        (lambda: cumulating("1d", "1h", offset="1d"), "offset must be smaller than the size"),
    ],
)
def test_windows_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(JobError, match=message):
        make()


def test_an_aggregate_that_cannot_be_merged_is_refused_when_the_job_is_built() -> None:
    lonely = ms.aggregate(
        "v", state={"total": float}, init={"total": 0.0}, update=count_up, result=lambda s: s["total"], type=float
    )
    with pytest.raises(JobError, match=r"x=aggregate.*needs merge=.*over 1h every 5m in panes of 5m"):
        plain(sliding("1h", "5m"), aggregates=(("x", lonely),))


@pytest.mark.parametrize("window", [SlidingWindow(10, 5), CumulatingWindow(10, 5)])
@pytest.mark.parametrize("time", [2**63 - 1, -(2**63)])
def test_a_nonsensical_time_is_named_not_wrapped(window: PanedWindow, time: int) -> None:
    schema = pa.schema({"k": pa.string(), "t": pa.int64()})
    with pytest.raises(DataError, match=str(time)):
        Harness(plain(window), schema).feed(pa.record_batch([pa.array(["a"]), pa.array([time])], schema=schema))
