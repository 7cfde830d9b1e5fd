"""``where=``: an aggregate sees only the rows for which a condition is true."""

from __future__ import annotations

import datetime as dt

import millstream as ms
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.errors import DataError, JobError, SchemaError
from millstream.engine.expression import Expr, col
from millstream.operators import aggregates as agg
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.window_aggregate import WindowAggregate
from millstream.operators.windows import TumblingWindow
from millstream.testing import BARRIER, check_operator
from operator_kit import Harness, Step, bag, rows_of
from window_kit import SCHEMA, SIZE, by_sql, split_by_lateness, streams

CONDITIONS: dict[str, Expr | str] = {"b": "b", "i > 0": col("i") > 0, "false": col("i") != col("i")}
FUNCTIONS = {
    "count": (agg.count, "count({})"),
    "sum": (agg.sum, "sum({})"),
    "min": (agg.min, "min({})"),
    "max": (agg.max, "max({})"),
    "mean": (agg.mean, "avg({})"),
    "first": (agg.first, "first({} order by t, seq)"),
    "last": (agg.last, "last({} order by t, seq)"),
}
AGGREGATES: dict[str, tuple[AggregateSpec, str]] = {
    f"{name} {value} {sql}": (make(value, where=where), f"{function.format(value)} filter (where {sql})")
    for sql, where in CONDITIONS.items()
    for name, (make, function) in FUNCTIONS.items()
    for value in (["f", "n"] if name in {"sum", "mean"} else ["f", "n", "s", "d"])
}


def spec_of(**aggregates: AggregateSpec) -> WindowAggregate:
    return WindowAggregate(("k",), TumblingWindow(SIZE), tuple(aggregates.items()), col("t"))


@settings(max_examples=40, deadline=None)
@given(streams(), st.integers(1, 2))
def test_a_condition_is_the_filter_clause_of_sql(steps: list[Step], parallelism: int) -> None:
    spec = spec_of(**{name: aggregate for name, (aggregate, _) in AGGREGATES.items()}, rows=agg.count())
    run = Harness(spec, SCHEMA, parallelism).run(steps).finish()
    rows, _, _ = split_by_lateness(steps, 0)
    made = [*(sql for _, sql in AGGREGATES.values()), "count(*)"]
    assert bag(rows_of(run.results())) == bag(by_sql(rows, ("k",), made))


SMALL = pa.schema({"k": pa.string(), "v": pa.string(), "t": pa.int64()})
BATCH = pa.RecordBatch.from_pylist(
    [{"k": "a", "v": v, "t": t} for t, v in enumerate(["1", "x", None, "20"])], schema=SMALL
)


def test_a_group_of_which_no_row_is_chosen_is_there_all_the_same() -> None:
    spec = spec_of(n=agg.count(where=col("v") == "none"), s=agg.last("v", where=col("v") == "none"))
    assert check_operator(spec, [BATCH, BARRIER, BATCH])["main"] == [
        {"k": "a", "window_start": ANY_START, "window_end": ANY_END, "n": 0, "s": None}
    ]


ANY_START, ANY_END = pa.array([0, SIZE], pa.timestamp("us")).to_pylist()


def test_arguments_are_computed_only_for_the_rows_chosen() -> None:
    number = col("v").cast("int64")
    spec = spec_of(total=agg.sum(number, where=col("v") != "x"))
    assert check_operator(spec, [BATCH])["main"][0]["total"] == 21
    with pytest.raises(DataError, match="x"):
        check_operator(spec_of(total=agg.sum(number, where=col("t") >= 0)), [BATCH])


def test_a_condition_alone_needs_no_other_column() -> None:
    spec = WindowAggregate((), TumblingWindow(SIZE), (("n", agg.count(where=col("v") == "x")),), col("t"))
    assert spec.columns_needed({"main": frozenset({"n"})}, [SMALL]) == [frozenset({"v", "t"})]
    assert check_operator(spec, [BATCH])["main"][0]["n"] == 1


def test_what_is_no_condition_is_refused_when_the_job_is_written() -> None:
    rows = [{"price": 1, "at": dt.datetime(2026, 1, 1)}]
    orders = ms.Job("j").read(ms.memory_source(rows), event_time="at")
    minutes = orders.group_by("price").window(ms.tumbling("1m"))
    with pytest.raises(SchemaError, match=r"count\(where=price\): where= needs a condition.*int64.*col\('price'\)"):
        minutes.agg(n=ms.count(where="price"))
    with pytest.raises(SchemaError, match="no column 'prise'"):
        minutes.agg(n=ms.count(where=col("prise") > 1))
    with pytest.raises(JobError, match=r"sum\(where=...\) takes a condition, such as .*, got True"):
        ms.sum("price", where=True)  # type: ignore[arg-type]
    with pytest.raises(JobError, match=r"max\(\) takes a column's name or an expression, such as .*, got 3"):
        ms.max(3)  # type: ignore[arg-type]


def test_aggregates_over_other_rows_are_other_aggregates() -> None:
    assert agg.sum("price").identity() == "sum(price)"
    assert agg.sum("price", where="paid").identity() == "sum(price, where=paid)"
    assert agg.count(where="paid").identity() != agg.count("paid").identity()
