"""Variance and standard deviation, against exact arithmetic and DuckDB."""

from __future__ import annotations

import math
import statistics
from decimal import Decimal
from fractions import Fraction
from typing import Any

import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import col
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.spread import stddev, variance
from millstream.operators.window_aggregate import WindowAggregate
from millstream.operators.windows import TumblingWindow
from millstream.testing import BARRIER, check_operator
from operator_kit import Harness, Restart, Step, bag, rows_of
from window_kit import SCHEMA, SIZE, by_sql, split_by_lateness, streams

AGGREGATES: dict[str, tuple[AggregateSpec, str]] = {
    f"{name} {value} {ddof}": (make(value, ddof, where="b"), f"{sql}({value}) filter (where b)")
    for name, make, ddof, sql in [
        ("variance", variance, 1, "var_samp"),
        ("variance", variance, 0, "var_pop"),
        ("stddev", stddev, 1, "stddev_samp"),
        ("stddev", stddev, 0, "stddev_pop"),
    ]
    for value in ["i", "u", "f", "n"]
}


def spec_of(*keys: str, **aggregates: AggregateSpec) -> WindowAggregate:
    return WindowAggregate(keys, TumblingWindow(SIZE), tuple(aggregates.items()), col("t"))


def near(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-3)
    return bool(left == right)


@settings(max_examples=40, deadline=None)
@given(streams(), st.integers(1, 2))
def test_variances_are_those_of_sql(steps: list[Step], parallelism: int) -> None:
    # DuckDB refuses values that are not finite.
    finite = [
        step.filter((col("f") - col("f") == 0).evaluate(step)) if isinstance(step, pa.RecordBatch) else step
        for step in steps
    ]
    finite = [step for step in finite if not isinstance(step, pa.RecordBatch) or step.num_rows]
    spec = spec_of("g", **{name: aggregate for name, (aggregate, _) in AGGREGATES.items()})
    run = Harness(spec, SCHEMA, parallelism).run(finite).finish()
    rows, _, _ = split_by_lateness(finite, 0)
    expected = bag(by_sql(rows, ("g",), [sql for _, sql in AGGREGATES.values()]))
    got = bag(rows_of(run.results()))
    for ours, theirs in zip(got, expected, strict=True):
        assert [(a, b) for a, b in zip(ours, theirs, strict=True) if not near(a, b)] == []


def exactly(values: list[Any], ddof: int) -> float | None:
    """The variance in exact arithmetic, rounded once."""
    if len(values) <= ddof:
        return None
    numbers = [Fraction(value) for value in values]
    mean = sum(numbers) / len(numbers)
    return float(sum((number - mean) ** 2 for number in numbers) / (len(numbers) - ddof))


def result_of(values: list[Any], type: pa.DataType, aggregate: AggregateSpec, restart: bool = False) -> Any:
    """The result over one group; the values come in two batches."""
    middle = len(values) // 2
    steps: list[Step] = [
        pa.record_batch({"v": pa.array(part, type), "t": pa.array([1] * len(part))})
        for part in (values[:middle], values[middle:])
        if part
    ]
    schema = pa.schema({"v": type, "t": pa.int64()})
    if restart:
        steps.insert(1, Restart(1))
    (result,) = Harness(spec_of(x=aggregate), schema).run(steps).finish().results().column("x").to_pylist()
    return result


OFFSETS = st.sampled_from([0, 10**6, 10**9, 2**53, -(2**60), 2**62])
INTEGERS = st.builds(
    lambda offset, rest: [offset + r for r in rest],
    OFFSETS,
    st.lists(st.integers(-100, 100) | st.integers(-(2**61), 2**61), min_size=1, max_size=20),
)


@settings(max_examples=80, deadline=None)
@given(INTEGERS, st.sampled_from([0, 1]), st.booleans())
def test_of_integers_every_digit_is_right_whatever_their_offset(values: list[int], ddof: int, restart: bool) -> None:
    got, expected = result_of(values, pa.int64(), variance("v", ddof), restart), exactly(values, ddof)
    assert got is expected if expected is None else got == pytest.approx(expected, rel=1e-15, abs=0.0)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([0.0, 1e9, 1e15, -1e300]),
    st.lists(st.floats(-1e3, 1e3) | st.floats(-1e150, 1e150), min_size=1, max_size=20),
    st.booleans(),
)
def test_of_floats_too(offset: float, rest: list[float], restart: bool) -> None:
    values = [offset + r for r in rest] if abs(offset) < 1e200 else rest
    expected = exactly(values, 0)
    assert expected is not None
    got = result_of(values, pa.float64(), variance("v", ddof=0), restart)
    assert got == pytest.approx(expected, rel=1e-14, abs=1e-300)
    assert result_of(values, pa.float64(), stddev("v", ddof=0)) == math.sqrt(got)


@settings(deadline=None)
@given(st.permutations([1e9 + n / 7 for n in range(12)]))
def test_the_order_of_rows_does_not_show(values: list[float]) -> None:
    ordered = result_of(sorted(values), pa.float64(), variance("v"))
    assert (
        result_of(values, pa.float64(), variance("v"))
        == ordered
        == pytest.approx(exactly(values, 1), rel=3e-16, abs=0.0)
    )


def test_a_million_values_far_from_zero() -> None:
    values = 1e12 + np.random.default_rng(5).normal(size=1_000_000)
    schema = pa.schema({"v": pa.float64(), "t": pa.int64()})
    run = Harness(spec_of(x=variance("v")), schema)
    for part in np.split(values, 20):
        run.feed(pa.record_batch([pa.array(part), pa.array(np.ones(len(part), np.int64))], schema=schema))
    (got,) = run.finish().results().column("x").to_pylist()
    assert got == pytest.approx(statistics.variance([int(v * 2**20) for v in values.tolist()]) / 2**40, rel=1e-14)


def test_decimals_and_unsigned_integers_are_taken_as_they_are() -> None:
    large = [Decimal("9999999999999999999999.01"), Decimal("9999999999999999999999.03")]
    assert result_of(large, pa.decimal128(38, 2), variance("v")) == pytest.approx(0.0002, rel=1e-14, abs=0.0)
    negative = [-d for d in large]
    assert result_of(negative, pa.decimal128(38, 2), stddev("v", 0)) == pytest.approx(0.01, rel=1e-14, abs=0.0)
    assert result_of([2**64 - 1, 2**64 - 3], pa.uint64(), variance("v")) == 2.0
    assert result_of([-(2**63), 2**63 - 1], pa.int64(), stddev("v", 0)) == (2.0**64 - 1) / 2
    assert result_of([True, False], pa.bool_(), variance("v", 0)) == 0.25


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, math.inf], math.nan),
        ([math.inf, 1.0], math.nan),
        ([math.nan, 1.0, 2.0], math.nan),
        ([1e200, -1e200], math.inf),
        ([1.7e308, -1.7e308], math.inf),
        ([1e200, -1e200, math.nan], math.nan),
        ([1e200, 1e200], 0.0),
        ([5e-324, 5e-324], 0.0),
        ([7.0, None], None),
        ([None, None], None),
    ],
)
def test_what_is_not_finite_and_what_is_not_there(values: list[float | None], expected: float | None) -> None:
    assert repr(result_of(values, pa.float64(), variance("v"))) == repr(expected)


def test_it_keeps_the_contract_of_operators() -> None:
    schema = pa.schema({"k": pa.string(), "v": pa.int64(), "t": pa.int64()})
    batch = pa.RecordBatch.from_pylist([{"k": "ab"[n % 2], "v": n * n, "t": 1} for n in range(9)], schema=schema)
    rows = check_operator(spec_of("k", x=variance("v"), y=stddev("v", 0)), [batch, BARRIER, batch, BARRIER, batch])
    assert [row["x"] for row in rows["main"]] == [exactly([n * n for n in range(k, 9, 2)] * 3, 1) for k in (0, 1)]


def test_what_it_cannot_take_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"variance\(v, ddof=1\): the argument has type string; expected a number"):
        variance("v").type_in(pa.schema({"v": pa.string()}))
    with pytest.raises(JobError, match=r"stddev\(..., ddof=2\): ddof is 1 for a sample or 0"):
        ms.stddev("v", ddof=2)
    assert ms.variance("v").identity() != ms.variance("v", ddof=0).identity() != ms.stddev("v", ddof=0).identity()
