from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import col
from millstream.engine.state import WHOLE_STATE_ROWS
from millstream.operators.window_top import WindowTop
from millstream.operators.windows import TumblingWindow
from operator_kit import Advance, Collected, Harness, Restart, Step, bag, rows_of

SIZE = 10
SCHEMA = pa.schema(
    {
        "k": pa.string(),
        "i": pa.int64(),
        "f": pa.float64(),
        "s": pa.string(),
        "n": pa.decimal128(20, 2),
        "t": pa.timestamp("us"),
        "seq": pa.int64(),
    }
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "k": st.sampled_from([None, "", "x", "y"]),
    "i": st.none() | st.integers(-2, 2) | st.sampled_from([-(2**63), 2**63 - 1]),
    "f": st.sampled_from([None, math.nan, math.inf, -math.inf, 0.0, -0.0, 1.5, -1.5]),
    "s": st.sampled_from([None, "", "a", "prefix01", "prefix01a", "prefix01\0", "é"]),
    "n": st.sampled_from([None, Decimal("0.00"), Decimal("-1.25"), Decimal(10**15), Decimal("1.25")]),
    "t": st.none() | st.integers(-25, 25),
}
RANKS = st.lists(st.tuples(st.sampled_from("ifsn"), st.booleans()), min_size=1, max_size=3, unique_by=lambda by: by[0])


@given(
    times=st.lists(st.integers(-30, 30), min_size=1, max_size=8),
    far=st.sampled_from([0, -(2**60), 2**60]),
    size=st.integers(1, 20),
    data=st.data(),
)
def test_a_window_starts_at_the_last_multiple_of_its_size(
    times: list[int], far: int, size: int, data: st.DataObject
) -> None:
    offset = data.draw(st.integers(0, size - 1))
    starts = TumblingWindow(size, offset).assign(np.array(times) + far).tolist()
    assert starts == [(time + far - offset) // size * size + offset for time in times]


@st.composite
def streams(draw: st.DrawFn) -> list[Step]:
    """Batches of random rows, with watermarks, barriers and restarts in between."""
    steps: list[Step] = []
    seq = 0
    for _ in range(draw(st.integers(1, 6))):
        count = draw(st.integers(1, 12))
        columns = [
            pa.array(draw(st.lists(values, min_size=count, max_size=count)), SCHEMA.field(name).type)
            for name, values in VALUES.items()
        ]
        steps.append(pa.record_batch([*columns, pa.array(range(seq, seq + count))], schema=SCHEMA))
        seq += count
        after = draw(st.sampled_from(["nothing", "advance", "restart", "advance, restart"]))
        if "advance" in after:
            steps.append(Advance(draw(st.integers(-40, 40))))
        if "restart" in after:
            steps.append(Restart(draw(st.integers(1, 3))))
    return steps


def on_time(steps: list[Step], lateness: int) -> pa.Table:
    """The rows on time, with the start of their window."""
    rows, watermark = [], -(2**62)
    for step in steps:
        if isinstance(step, Advance):
            watermark = max(watermark, step.time)
        if isinstance(step, pa.RecordBatch):
            for row in step.to_pylist():
                if row["t"] is not None:
                    micros = (row["t"] - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1)
                    start = micros // SIZE * SIZE
                    if start + SIZE + lateness > watermark:
                        rows.append({**row, "start": start})
    return pa.Table.from_pylist(rows, SCHEMA.append(pa.field("start", pa.int64())))


def by_sql(rows: pa.Table, spec: WindowTop, by: list[tuple[str, bool]]) -> list[tuple[Any, ...]]:
    group = ", ".join([*spec.keys, "start"])
    order = ", ".join(f"{name} {'desc' if down else 'asc'} nulls last" for name, down in by)
    rank = f"rank() over (partition by {group} order by {order})"
    if not spec.ties:
        rank = f"row_number() over (partition by {group} order by {order}, seq)"
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        sql = f"select {', '.join(SCHEMA.names)} from rows qualify {rank} <= {spec.n}"
        return rows_of(connection.sql(sql).to_arrow_table())


@settings(max_examples=150, deadline=None)
@given(
    streams(),
    RANKS,
    st.sampled_from([1, 1, 2, 5]),
    st.booleans(),
    st.sampled_from([(), ("k",), ("k", "f")]),
    st.sampled_from([0, 15]),
    st.integers(1, 2),
)
def test_any_stream_gives_what_sql_gives_over_the_rows_on_time(
    steps: list[Step],
    by: list[tuple[str, bool]],
    n: int,
    ties: bool,
    keys: tuple[str, ...],
    lateness: int,
    parallelism: int,
) -> None:
    ranks = tuple((col(name), down) for name, down in by)
    spec = WindowTop(keys, TumblingWindow(SIZE), ranks, n, ties, col("t"), lateness)
    run = Harness(spec, SCHEMA, parallelism).run(steps).finish()
    expected = bag(by_sql(on_time(steps, lateness), spec, by))
    assert bag(rows_of(run.results())) == expected
    late = sum(step.num_rows for step in steps if isinstance(step, pa.RecordBatch)) - on_time(steps, lateness).num_rows
    assert run.results("late").num_rows == late == run.counters["late_rows"] + run.counters["null_time_rows"]

    combined = Harness(spec, SCHEMA, parallelism).run(combine(spec, steps)).finish()
    assert bag(rows_of(combined.results())) == expected
    assert combined.counters["null_time_rows"] == run.counters["null_time_rows"]


def combine(spec: WindowTop, steps: list[Step]) -> list[Step]:
    """Send every batch through the combiner first."""
    combiner = spec.combiner({"main": frozenset({"i"}), "late": frozenset()})
    assert combiner is not None
    made: list[Step] = []
    for step in steps:
        if isinstance(step, pa.RecordBatch):
            out = Collected()
            combiner.build([SCHEMA]).process(step, out)
            (reduced,) = out.batches["main"]
            assert reduced.num_rows <= step.num_rows
            made.append(reduced)
        else:
            made.append(step)
    return made


PLAIN = pa.schema({"k": pa.string(), "v": pa.int64(), "t": pa.timestamp("us")})


def plain_spec(**changes: Any) -> WindowTop:
    made = {
        "keys": ("k",),
        "window": TumblingWindow(SIZE),
        "by": ((col("v"), True),),
        "n": 2,
        "ties": False,
        "time": col("t"),
    }
    return WindowTop(**{**made, **changes})


def stream_of(rows: list[tuple[Any, ...]], batch_rows: int) -> list[Step]:
    table = pa.Table.from_pylist([dict(zip(PLAIN.names, row, strict=True)) for row in rows], PLAIN)
    return list(table.to_batches(max_chunksize=batch_rows))


def test_results_come_by_window_then_key_then_rank() -> None:
    rows = [("b", 1, 15), ("a", 5, 3), ("b", 2, 15), ("a", 7, 4), ("c", 9, 4), ("b", 0, 15)]
    run = Harness(plain_spec(), PLAIN).run(stream_of(rows, 2)).finish()
    assert [row[:2] for row in rows_of(run.results())] == [("a", 7), ("a", 5), ("c", 9), ("b", 2), ("b", 1)]


def test_of_equal_rows_the_first_to_arrive_stays_even_across_a_restart() -> None:
    rows = [("a", 1, time) for time in (3, 4, 5, 6)]
    steps = stream_of(rows, 1)
    run = Harness(plain_spec(), PLAIN).run([*steps[:1], Restart(2), *steps[1:3], Restart(1), *steps[3:]]).finish()
    assert [row[2].microsecond for row in rows_of(run.results())] == [3, 4]


@pytest.mark.parametrize("columns", [("v",), ("t", "v"), None])
def test_the_output_has_the_columns_asked_for(columns: tuple[str, ...] | None) -> None:
    spec = plain_spec(columns=columns, by=((col("v") * -1, False),))
    run = Harness(spec, PLAIN).run([*stream_of([("a", 1, 3), ("a", 2, 4), ("a", 3, 5)], 2), Restart(2)]).finish()
    assert run.results().schema.names == list(columns or PLAIN.names)
    assert run.results().column("v").to_pylist() == [3, 2]


def test_rows_pushed_off_the_top_leave_the_store() -> None:
    run = Harness(plain_spec(n=1, keys=()), PLAIN)
    for value in range(1, 6):
        run.run(stream_of([("a", value, 1)], 1))
        run.checkpoint()
    written = [rows.select(["v", "deleted"]).to_pylist() for _, rows in run.store.rows["top"]]
    assert written[-1] == [{"v": None, "deleted": True}, {"v": 5, "deleted": False}]
    assert run.finish().results().column("v").to_pylist() == [5]


def test_a_row_that_comes_and_goes_between_barriers_is_never_written() -> None:
    run = Harness(plain_spec(n=1), PLAIN).run(stream_of([("a", 1, 1), ("a", 2, 1)], 1))
    run.checkpoint()
    assert [rows.column("v").to_pylist() for _, rows in run.store.rows["top"]] == [[2]]
    assert run.subtasks[0].snapshot(2) == {}


@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_large_state_is_written_in_slices_and_comes_back_whole(parallelism: int) -> None:
    keys, schema = 50_000, pa.schema({"k": pa.int64(), "v": pa.int64(), "t": pa.int64()})
    assert 2 * keys / parallelism * 2 / 3 > WHOLE_STATE_ROWS
    rng = np.random.default_rng(5)
    run = Harness(plain_spec(), schema, parallelism)
    batches = []
    for round_ in range(30):
        picked = rng.permutation(keys) if round_ < 3 else rng.integers(0, keys, 500)
        batches.append(pa.record_batch([picked, rng.integers(0, 1_000, len(picked)), picked % 30], schema=schema))
        run.feed(batches[-1])
        run.checkpoint()
    oldest = min(run.store.full_from["top"].values())
    assert oldest > 1
    run.store.rows["top"] = [(epoch, rows) for epoch, rows in run.store.rows["top"] if epoch >= oldest]
    run.restart(3)
    run.finish()
    fed = pa.Table.from_batches(batches)
    with duckdb.connect() as connection:
        connection.register("fed", fed)
        best = connection.sql("select k, v from fed qualify row_number() over (partition by k order by v desc) <= 2")
        assert bag(rows_of(run.results().select(["k", "v"]))) == bag(rows_of(best.to_arrow_table()))


def test_space_of_fired_windows_and_of_rows_pushed_off_is_used_again() -> None:
    schema = pa.schema({"k": pa.int64(), "v": pa.int64(), "t": pa.int64()})
    run = Harness(plain_spec(n=1), schema)
    for step in range(60):
        keys = np.arange(1_000)
        run.feed(pa.record_batch([keys, keys + step, np.full(1_000, step // 2 * SIZE)], schema=schema))
        run.advance(step // 2 * SIZE)
        assert len(run.subtasks[0]._rows) < 10_000
        assert len(run.subtasks[0]._index) < 10_000
    run.finish()
    assert run.results().column("v").to_pylist() == [key + step for step in range(1, 60, 2) for key in range(1_000)]


def test_a_combiner_is_not_offered_where_late_rows_are_wanted() -> None:
    assert plain_spec().combiner({"main": frozenset({"v"}), "late": frozenset({"v"})}) is None


def test_dictionary_columns_and_columns_named_like_our_own_come_through() -> None:
    batch = pa.record_batch(
        {
            "deleted": pa.array(["x", "y", None, "x"]).dictionary_encode(),
            "window_start": pa.array([1, 2, 3, 4]),
            "arrival": pa.array([[1], [], None, [2, 3]]),
            "t": pa.array([1, 1, 1, 1]),
        }
    )
    spec = plain_spec(keys=("deleted",), by=((col("window_start"), True),), n=1)
    run = Harness(spec, batch.schema).run([batch, Restart(2)]).finish()
    assert bag(rows_of(run.results())) == bag([("x", 4, [2, 3], 1), ("y", 2, [], 1), (None, 3, None, 1)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": ("nope",)}, "'nope' is not a column"),
        ({"columns": ("v", "nope")}, "'nope' is not a column"),
        ({"columns": ("v", "v")}, "named twice"),
        ({"time": col("k")}, "string.*timestamp"),
    ],
)
def test_what_cannot_work_is_refused_when_the_job_is_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        plain_spec(**changes).output_schemas([PLAIN])


@pytest.mark.parametrize("changes", [{"n": 0}, {"by": ()}, {"lateness": -1}])
def test_a_top_of_nothing_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(JobError):
        plain_spec(**changes)


def test_only_what_is_wanted_is_asked_for_and_kept() -> None:
    spec = plain_spec(by=((col("w"), True),))
    schema = pa.schema([*PLAIN, pa.field("w", pa.int64()), pa.field("x", pa.int64())])
    assert spec.columns_needed({"main": frozenset(), "late": frozenset()}, [schema]) == [frozenset("ktw")]
    assert spec.columns_needed({"main": frozenset("v"), "late": frozenset("x")}, [schema]) == [frozenset("kvtwx")]
    pruned = spec.pruned({"main": frozenset("v"), "late": frozenset()})
    assert pruned.output_schemas([schema])["main"].names == ["v"]
    assert set(pruned.state_tables([schema])[0].schema.names) == {"k", "v", "w", "window_start", "arrival"}
    assert pruned.identity() == spec.identity(), "positions and state are found by the operator as written"
