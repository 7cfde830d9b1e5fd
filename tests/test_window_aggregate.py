from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.errors import DataError, JobError, SchemaError
from millstream.engine.expression import col
from millstream.engine.state import WHOLE_STATE_ROWS
from millstream.operators import aggregates as agg
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.window_aggregate import WindowAggregate
from millstream.operators.windows import TumblingWindow, tumbling
from operator_kit import Harness, Restart, Step, bag, rows_of
from window_kit import SCHEMA, SIZE, VALUES, by_sql, split_by_lateness, streams

NUMBERS, ORDERED = "iufbn", "iufbsnd"
AGGREGATES: dict[str, tuple[AggregateSpec, str]] = {
    "rows": (agg.count(), "count(*)"),
    **{f"count_{v}": (agg.count(v), f"count({v})") for v in VALUES},
    **{f"sum_{v}": (agg.sum(v), f"sum({v})") for v in NUMBERS},
    **{f"mean_{v}": (agg.mean(v), "avg(b::int)" if v == "b" else f"avg({v})") for v in NUMBERS},
    **{f"min_{v}": (agg.min(v), f"min({v})") for v in ORDERED},
    **{f"max_{v}": (agg.max(v), f"max({v})") for v in ORDERED},
    **{f"first_{v}": (agg.first(v), f"first({v} order by t, seq)") for v in ORDERED},
    **{f"last_{v}": (agg.last(v), f"last({v} order by t, seq)") for v in ORDERED},
}


@settings(max_examples=60, deadline=None)
@given(
    streams(),
    st.sampled_from([(), ("k",), ("g", "k"), ("h",), ("k", "g", "h")]),
    st.sampled_from([0, 15]),
    st.integers(1, 2),
)
def test_any_stream_gives_what_sql_gives_over_the_rows_on_time(
    steps: list[Step], keys: tuple[str, ...], lateness: int, parallelism: int
) -> None:
    aggregates = tuple((name, aggregate) for name, (aggregate, _) in AGGREGATES.items())
    spec = WindowAggregate(keys, TumblingWindow(SIZE), aggregates, col("t"), lateness)
    run = Harness(spec, SCHEMA, parallelism).run(steps).finish()
    on_time, late, timeless = split_by_lateness(steps, lateness)
    assert bag(rows_of(run.results())) == bag(by_sql(on_time, keys, [sql for _, sql in AGGREGATES.values()]))
    assert run.results("late").num_rows == late + timeless
    assert (run.counters["late_rows"], run.counters["null_time_rows"]) == (late, timeless)


def stream_of(rows: list[tuple[Any, ...]], schema: pa.Schema, batch_rows: int) -> list[Step]:
    table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)
    return list(table.to_batches(max_chunksize=batch_rows))


PLAIN = pa.schema({"k": pa.string(), "v": pa.int64(), "t": pa.timestamp("us")})


def plain_spec(**changes: Any) -> WindowAggregate:
    made = {"keys": ("k",), "window": TumblingWindow(SIZE), "aggregates": (("n", agg.count()),), "time": col("t")}
    return WindowAggregate(**{**made, **changes})


def test_results_come_window_by_window_and_keys_in_the_order_they_came() -> None:
    rows = [("b", 1, 15), ("a", 1, 3), ("a", 1, 15), ("b", 1, 4), ("b", 1, -1)]
    run = Harness(plain_spec(), PLAIN).run(stream_of(rows, PLAIN, 2)).finish()
    epoch = dt.datetime(1970, 1, 1)
    starts = [(key, (start - epoch) // dt.timedelta(microseconds=1)) for key, start, *_ in rows_of(run.results())]
    assert starts == [("b", -10), ("a", 0), ("b", 0), ("b", 10), ("a", 10)]


def test_a_window_fires_exactly_when_the_watermark_reaches_its_end_plus_the_lateness() -> None:
    run = Harness(plain_spec(lateness=5), PLAIN).run(stream_of([("a", 1, 9)], PLAIN, 1))
    run.advance(14)
    assert run.results().num_rows == 0
    run.run(stream_of([("a", 1, 0)], PLAIN, 1))
    run.advance(15)
    assert run.results().column("n").to_pylist() == [2]
    run.run(stream_of([("a", 1, 9), ("a", 1, 10)], PLAIN, 2))
    assert run.results("late").column("t").to_pylist() == [dt.datetime(1970, 1, 1, microsecond=9)]
    assert run.finish().results().column("n").to_pylist() == [2, 1]


def test_the_batches_that_come_out_are_not_longer_than_65536_rows() -> None:
    count = 70_000
    batch = pa.record_batch({"k": pa.array(np.arange(count)), "t": pa.array(np.zeros(count, np.int64))})
    run = Harness(plain_spec(), batch.schema)
    run.feed(batch)
    run.finish()
    assert [b.num_rows for b in run.out.batches["main"]] == [65_536, count - 65_536]


@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_large_state_is_written_in_slices_and_comes_back_whole(parallelism: int) -> None:
    keys = 90_000
    assert keys * 2 / 3 / parallelism > WHOLE_STATE_ROWS
    schema = pa.schema({"k": pa.int64(), "t": pa.int64()})
    rng = np.random.default_rng(7)
    run = Harness(plain_spec(), schema, parallelism)
    every = pa.record_batch([np.arange(keys), np.arange(keys) % 30], schema=schema)
    run.feed(every)
    for round_ in range(1, 45):
        picked = rng.integers(0, keys, 500)
        run.feed(pa.record_batch([picked, picked % 30], schema=schema))
        if round_ == 20:
            run.advance(10)  # a third of the keys leaves, as tombstones
            assert run.results().num_rows == keys / 3
        run.checkpoint()
    # Only what the newest deltas say is needed is kept, as the store prunes it.
    oldest = min(run.store.full_from["windows"].values())
    assert oldest > 1
    run.store.rows["windows"] = [(e, rows) for e, rows in run.store.rows["windows"] if e >= oldest]
    assert sum(rows.num_rows for e, rows in run.store.rows["windows"] if e == run.epoch) < keys / 4
    run.restart(3)
    run.finish()
    on_time = keys + 44 * 500 - run.results("late").num_rows
    assert pc.sum(run.results().column("n")).as_py() == on_time
    assert run.results().num_rows == keys


def test_a_quiet_epoch_writes_nothing() -> None:
    run = Harness(plain_spec(), PLAIN).run(stream_of([("a", 1, 1)], PLAIN, 1))
    assert run.subtasks[0].snapshot(1)["windows"].rows.num_rows == 1
    assert run.subtasks[0].snapshot(2) == {}
    run.advance(100)
    assert run.subtasks[0].snapshot(3)["windows"].rows.column("deleted").to_pylist() == [True]
    assert run.subtasks[0].snapshot(4) == {}


def test_a_window_that_fires_before_any_barrier_leaves_no_trace_in_the_store() -> None:
    run = Harness(plain_spec(), PLAIN).run(stream_of([("a", 1, 1)], PLAIN, 1))
    run.advance(100)
    assert run.subtasks[0].snapshot(1) == {}


def test_slots_of_fired_windows_are_used_again() -> None:
    schema = pa.schema({"k": pa.int64(), "t": pa.int64()})
    run = Harness(plain_spec(aggregates=(("s", agg.max("k")),)), schema)
    for window in range(50):
        keys = np.arange(window, window + 1_000)
        run.feed(pa.record_batch([keys, np.full(1_000, window * SIZE)], schema=schema))
        run.advance(window * SIZE)
        assert len(run.subtasks[0]._index) < 5_000
    run.finish()
    assert run.results().num_rows == 50_000
    assert run.results().column("s").to_pylist() == run.results().column("k").to_pylist()


def test_a_sum_beyond_int64_is_refused_but_may_pass_it_on_the_way() -> None:
    spec = plain_spec(aggregates=(("s", agg.sum("v")),))
    most = 2**63 - 1
    there_and_back = stream_of([("a", most, 1), ("a", most, 1), ("a", -most, 2)], PLAIN, 1)
    run = Harness(spec, PLAIN).run([*there_and_back[:2], Restart(2), there_and_back[2]]).finish()
    assert run.results().column("s").to_pylist() == [most]
    with pytest.raises(DataError, match=r"sum.*9223372036854775808.*int64"):
        Harness(spec, PLAIN).run(stream_of([("a", most, 1), ("a", 1, 1)], PLAIN, 1)).finish()


def test_unsigned_sums_count_beyond_the_sign_bit() -> None:
    schema = pa.schema({"k": pa.string(), "v": pa.uint64(), "t": pa.timestamp("us")})
    rows = [("a", 2**64 - 1, 1), ("a", None, 1), ("b", 2**62, 1), ("b", 2**62 - 1, 1)]
    spec = plain_spec(aggregates=(("m", agg.mean("v")), ("least", agg.min("v")), ("most", agg.max("v"))))
    run = Harness(spec, schema).run([*stream_of(rows, schema, 2), Restart(1)]).finish()
    assert rows_of(run.results().select(["m", "least", "most"])) == [
        (2.0**64, 2**64 - 1, 2**64 - 1),
        (2.0**62, 2**62 - 1, 2**62),
    ]
    with pytest.raises(DataError, match="18446744073709551615"):
        Harness(plain_spec(aggregates=(("s", agg.sum("v")),)), schema).run(stream_of(rows, schema, 9)).finish()


def test_decimal_sums_are_exact_even_past_38_digits_on_the_way() -> None:
    schema = pa.schema({"k": pa.string(), "v": pa.decimal128(38, 2), "t": pa.timestamp("us")})
    big, minus = Decimal("9" * 36 + ".99"), Decimal("-" + "9" * 36 + ".99")
    rows = [("a", big, 1), ("a", big, 1), ("a", minus, 1), ("b", None, 1), ("c", minus, 1), ("c", Decimal("0.01"), 1)]
    spec = plain_spec(aggregates=(("s", agg.sum("v")), ("m", agg.mean("v"))))
    batches = stream_of(rows, schema, 1)
    run = Harness(spec, schema).run([*batches[:2], Restart(2), *batches[2:]]).finish()
    sums = dict(zip(run.results().column("k").to_pylist(), run.results().column("s").to_pylist(), strict=True))
    assert sums == {"a": big, "b": None, "c": Decimal("-" + "9" * 36 + ".98")}
    with pytest.raises(DataError, match=r"1999999999999999999999999999999999999\.98.*decimal128"):
        Harness(spec, schema).run(batches[:2]).finish()


@settings(max_examples=50, deadline=None)
@given(st.permutations([0.1, 1e16, -1e16, 1e-9, 3.3, 1e8, -7.7, 2.5e15] * 2))
def test_the_order_of_floats_does_not_show_in_their_sum(values: list[float]) -> None:
    schema = pa.schema({"k": pa.string(), "v": pa.float64(), "t": pa.timestamp("us")})
    spec = plain_spec(aggregates=(("s", agg.sum("v")),))
    steps = stream_of([("a", value, 1) for value in values], schema, 3)
    run = Harness(spec, schema).run([*steps[:2], Restart(1), *steps[2:]]).finish()
    assert run.results().column("s").to_pylist() == [math.fsum(values)]


def test_floats_that_leave_the_range_stay_where_ieee_says() -> None:
    schema = pa.schema({"k": pa.string(), "v": pa.float64(), "t": pa.timestamp("us")})
    huge = 1.7976931348623157e308
    rows = [("a", huge, 1), ("a", huge, 1), ("b", math.inf, 1), ("b", -math.inf, 1), ("c", math.inf, 1), ("c", 1.0, 1)]
    spec = plain_spec(aggregates=(("s", agg.sum("v")),))
    run = Harness(spec, schema).run(stream_of(rows, schema, 2)).finish()
    assert rows_of(run.results().select(["k", "s"])) == [("a", math.inf), ("b", "NaN"), ("c", math.inf)]


def test_columns_may_be_called_like_our_own() -> None:
    schema = pa.schema({"deleted": pa.string(), "Epoch": pa.int64(), "n_count": pa.int64(), "t": pa.timestamp("us")})
    spec = plain_spec(keys=("deleted", "Epoch", "n_count"), aggregates=(("n", agg.count()), ('"; drop', agg.max("t"))))
    rows = [("a", 1, 2, 3), ("a", 1, 2, 4), (None, None, None, 3)]
    run = Harness(spec, schema).run([*stream_of(rows, schema, 1), Restart(2)]).finish()
    assert bag(rows_of(run.results().select(["deleted", "n"]))) == bag([("a", 2), (None, 1)])


def test_dictionary_columns_are_taken_for_their_values() -> None:
    words = pa.array(["x", "y", None, "x"]).dictionary_encode()
    batch = pa.record_batch({"k": words, "v": words, "t": pa.array([1, 1, 1, 1])})
    spec = plain_spec(aggregates=(("least", agg.min("v")), ("n", agg.count("v"))))
    run = Harness(spec, batch.schema).run([batch, Restart(2), batch]).finish()
    assert run.results().schema.field("k").type == pa.string()
    assert bag(rows_of(run.results().select(["k", "least", "n"]))) == bag(
        [("x", "x", 4), ("y", "y", 2), (None, None, 0)]
    )


def test_nanoseconds_are_rounded_down_so_that_no_row_moves_to_a_later_window() -> None:
    schema = pa.schema({"k": pa.string(), "t": pa.timestamp("ns")})
    batch = pa.record_batch([pa.array(["a", "a"]), pa.array([-1, 9_999], pa.timestamp("ns"))], schema=schema)
    run = Harness(plain_spec(), schema).run([batch]).finish()
    assert run.results().column("window_start").cast(pa.int64()).to_pylist() == [-10, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": ("nope",)}, "'nope' is not a column.*k, v, t"),
        ({"aggregates": (("window_start", agg.count()),)}, "window_start"),
        ({"aggregates": (("k", agg.count()),)}, "two columns called k"),
        ({"aggregates": (("s", agg.sum("k")),)}, "string.*expected a number"),
        ({"time": col("k")}, "string.*timestamp"),
    ],
)
def test_what_cannot_work_is_refused_when_the_job_is_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        plain_spec(**changes).output_schemas([PLAIN])


def test_equal_specs_have_equal_identities_and_others_have_not() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"keys": ()},
        {"window": TumblingWindow(SIZE, 1)},
        {"lateness": 1},
        {"time": col("v")},
        {"aggregates": (("n", agg.count("v")),)},
        {"aggregates": (("m", agg.count()),)},
    ]
    identities = [plain_spec(**change).identity() for change in changes]
    assert len(set(identities)) == len(changes)
    assert identities == [plain_spec(**change).identity() for change in changes]


def test_only_the_columns_used_are_asked_for() -> None:
    spec = plain_spec(aggregates=(("n", agg.count()), ("m", agg.max(col("v") + col("w")))))
    schema = pa.schema([*PLAIN, pa.field("w", pa.int64()), pa.field("x", pa.int64())])
    assert spec.columns_needed({"main": frozenset({"n"})}, [schema]) == [frozenset({"k", "t", "v", "w"})]
    assert spec.columns_needed({"late": frozenset({"x"})}, [schema]) == [frozenset({"k", "t", "v", "w", "x"})]


@pytest.mark.parametrize("time", [2**63 - 1, -(2**63)])
def test_a_nonsensical_time_is_named_not_wrapped(time: int) -> None:
    schema = pa.schema({"k": pa.string(), "t": pa.int64()})
    batch = pa.record_batch([pa.array(["a"]), pa.array([time])], schema=schema)
    with pytest.raises(DataError, match=str(time)):
        Harness(plain_spec(), schema).feed(batch)


@pytest.mark.parametrize(("size", "offset"), [("0s", "0s"), ("1s", "1s"), ("1s", "2s")])
def test_windows_that_make_no_sense_are_refused(size: str, offset: str) -> None:
    with pytest.raises(JobError):
        tumbling(size, offset)


@given(st.integers(-(10**15), 10**15), st.integers(1, 10**6), st.integers(0, 10**6))
def test_every_time_lies_in_its_window(time: int, size: int, offset: int) -> None:
    window = TumblingWindow(size, offset % size)
    (start,) = window.assign(np.array([time])).tolist()
    assert start <= time < start + size
    assert (start - window.offset) % size == 0
