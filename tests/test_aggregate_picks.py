"""``arg_min`` and ``arg_max``, and values of any type."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.errors import SchemaError
from millstream.engine.expression import Expr, call, col
from millstream.operators import aggregates as agg
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.picks import arg_max, arg_min
from millstream.operators.window_aggregate import WindowAggregate
from millstream.operators.windows import TumblingWindow
from millstream.testing import BARRIER, check_operator
from operator_kit import Harness, Restart, Step, bag, rows_of
from window_kit import SCHEMA, SIZE, VALUES, by_sql, split_by_lateness, streams

STRUCT = call("make_struct", col("seq"), col("s"), field_names=["seq", "s"])
# Every kind of value by every kind of order, but not each with each.
PAIRS: list[tuple[str | Expr, str, str]] = [
    *(("seq", "seq", by) for by in VALUES),
    *((value, value, "i") for value in VALUES),
    (STRUCT, "{'seq': seq, 's': s}", "s"),
]


def sql_of(value: str, by: str, greatest: bool) -> str:
    order = f"{by} {'desc' if greatest else 'asc'}, seq"
    return f"first({value} order by {order}) filter ({value} is not null and {by} is not null)"


AGGREGATES: list[tuple[AggregateSpec, str]] = [
    (make(value, by), sql_of(sql, by, greatest))
    for value, sql, by in PAIRS
    for make, greatest in ((arg_min, False), (arg_max, True))
]


def spec_of(*aggregates: AggregateSpec, keys: tuple[str, ...] = ("k",)) -> WindowAggregate:
    named = tuple((f"x{number}", aggregate) for number, aggregate in enumerate(aggregates))
    return WindowAggregate(keys, TumblingWindow(SIZE), named, col("t"))


@settings(max_examples=40, deadline=None)
@given(streams(), st.sampled_from([(), ("k",)]), st.integers(1, 2))
def test_picks_are_those_of_sql(steps: list[Step], keys: tuple[str, ...], parallelism: int) -> None:
    run = Harness(spec_of(*(aggregate for aggregate, _ in AGGREGATES), keys=keys), SCHEMA, parallelism)
    rows, _, _ = split_by_lateness(steps, 0)
    expected = by_sql(rows, keys, [sql for _, sql in AGGREGATES])
    assert bag(rows_of(run.run(steps).finish().results())) == bag(expected)


@settings(max_examples=20, deadline=None)
@given(streams())
def test_duckdb_has_the_same_null_semantics(steps: list[Step]) -> None:
    """Where no two rows are equal in ``by``, its own functions are deterministic."""
    spec = spec_of(arg_min("s", "seq"), arg_max("i", "seq"))
    run = Harness(spec, SCHEMA).run(steps).finish()
    rows, _, _ = split_by_lateness(steps, 0)
    assert bag(rows_of(run.results())) == bag(by_sql(rows, ("k",), ["arg_min(s, seq)", "arg_max(i, seq)"]))


SMALL = pa.schema({"k": pa.string(), "v": pa.list_(pa.int64()), "by": pa.float64(), "t": pa.int64()})


def rows(*values: tuple[Any, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"k": "a", "v": v, "by": by, "t": 1} for v, by in values], schema=SMALL)


def test_of_equal_rows_the_first_to_arrive_is_taken_across_batches_and_restarts() -> None:
    script = [rows(([1], 0.0), ([2], -0.0)), BARRIER, rows(([3], 0.0), (None, -9.0), ([4], None))]
    script += [BARRIER, rows(([5], 7.0)), rows(([6], 7.0))]
    (row,) = check_operator(spec_of(arg_min("v", "by"), arg_max("v", "by")), script)["main"]
    assert (row["x0"], row["x1"]) == ([1], [5])


def test_first_and_last_take_lists_too() -> None:
    (row,) = check_operator(spec_of(agg.first("v"), agg.last("v")), [rows(([1], 0.0)), BARRIER, rows(([], 0.0))])[
        "main"
    ]
    assert (row["x0"], row["x1"]) == ([1], [])


def test_values_that_were_replaced_are_given_back() -> None:
    run = Harness(spec_of(arg_max("v", "by"), agg.last("v")), SMALL)
    count = 1_000
    for number in range(400):
        values = pa.array([[number]] * count, SMALL.field("v").type)
        keys = pa.array([f"k{n}" for n in range(count)])
        columns = [keys, values, pa.array([float(number)] * count), pa.array([1] * count)]
        run.feed(pa.record_batch(columns, schema=SMALL))
        if number == 200:
            run.run([Restart(1)])
    kept = run.subtasks[0]._accumulators[0]._values._rows
    assert len(kept) < 200_000
    assert run.finish().results().column("x0").to_pylist() == [[399]] * count
    assert run.results().column("x1").to_pylist() == [[399]] * count


def test_types_that_cannot_be_kept_or_ordered_are_refused() -> None:
    schema = pa.schema({"m": pa.decimal256(50), "v": pa.list_(pa.int64())})
    with pytest.raises(SchemaError, match=r"by= of arg_min\(v, v\) has type list.*expected a number"):
        arg_min("v", by="v").type_in(schema)
    with pytest.raises(SchemaError, match=r"last\(m\): state cannot hold values of type decimal256.*use numbers"):
        agg.last("m").type_in(schema)
    assert arg_min("a", "b").identity() == "arg_min(a, b)" != arg_min("b", "a").identity()
