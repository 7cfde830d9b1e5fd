"""Sketches: how far off they are, and that nothing but the values decides what they give."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
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
from millstream.operators.sketches import approx_count_distinct, median, quantile
from millstream.operators.window_aggregate import WindowAggregate
from millstream.operators.windows import TumblingWindow
from millstream.testing import BARRIER, Watermark, check_operator
from operator_kit import Harness, Restart, Step, bag, canonical, rows_of
from window_kit import KEYS, SCHEMA, SIZE, VALUES, by_sql, split_by_lateness, streams


def spec_of(*aggregates: AggregateSpec, keys: tuple[str, ...] = ("k",)) -> WindowAggregate:
    named = tuple((f"x{number}", aggregate) for number, aggregate in enumerate(aggregates))
    return WindowAggregate(keys, TumblingWindow(SIZE), named, col("t"))


# -- approx_count_distinct -------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(streams(), st.sampled_from([(), ("g",)]), st.integers(1, 2))
def test_few_values_are_counted_as_by_sql(steps: list[Step], keys: tuple[str, ...], parallelism: int) -> None:
    columns = [*VALUES, *KEYS]
    spec = spec_of(*map(approx_count_distinct, columns), approx_count_distinct("s", where="b"), keys=keys)
    run = Harness(spec, SCHEMA, parallelism).run(steps).finish()
    rows, _, _ = split_by_lateness(steps, 0)
    made = [*(f"count(distinct {c})" for c in columns), "count(distinct s) filter (where b)"]
    expected = bag(by_sql(rows, keys, made))
    # Two of 72 values may share a register.
    for ours, theirs in zip(bag(rows_of(run.results())), expected, strict=True):
        for got, exact in zip(ours, theirs, strict=True):
            assert got == exact or (isinstance(exact, int) and exact > 2 and abs(got - exact) <= 1)


def numbered(count: int, groups: int, seed: int = 1) -> pa.Table:
    """For each group g = 0, 1, ...: its number of different values is ``count * (g + 1) // groups``."""
    keys = np.repeat(np.arange(groups), count)
    values = np.tile(np.arange(count), groups) % (count * (keys + 1) // groups) + seed * 10**9 + keys * 10**7
    order = np.random.default_rng(seed).permutation(len(keys))
    return pa.table({"k": keys[order], "v": values[order], "t": np.ones(len(keys), np.int64)})


@pytest.mark.parametrize(("count", "groups"), [(100, 50), (3_000, 60), (20_000, 40)])
def test_the_error_is_what_is_promised(count: int, groups: int) -> None:
    table = numbered(count, groups)
    run = Harness(spec_of(approx_count_distinct("v")), table.schema)
    for batch in table.to_batches(max_chunksize=50_000):
        run.feed(batch)
    found = {row["k"]: row["x0"] for row in run.finish().results().to_pylist()}
    exact = {key: count * (key + 1) // groups for key in range(groups)}
    errors = np.array([found[key] / exact[key] - 1 for key in exact])
    if count <= 100:
        assert max(abs(found[key] - exact[key]) for key in exact) <= 2
    assert np.sqrt((errors**2).mean()) < 1.04 / math.sqrt(4096) * 1.2
    assert abs(errors).max() < 0.05
    assert abs(errors.mean()) < 0.005


def test_of_a_million_values_too() -> None:
    run = Harness(spec_of(approx_count_distinct("v"), keys=()), pa.schema({"v": pa.int64(), "t": pa.int64()}))
    for part in np.split(np.arange(1_000_000), 20):
        run.feed(pa.record_batch({"v": pa.array(part), "t": pa.array(np.ones(len(part), np.int64))}))
    (found,) = run.finish().results().column("x0").to_pylist()
    assert found == pytest.approx(1_000_000, rel=0.03)


def test_neither_order_nor_batches_nor_restarts_change_the_estimate() -> None:
    table = numbered(400, 8)
    expected = None
    for seed, rows in ((1, 3_200), (2, 700), (3, 37)):
        shuffled = table.take(pa.array(np.random.default_rng(seed).permutation(table.num_rows)))
        steps: list[Step] = []
        for number, batch in enumerate(shuffled.combine_chunks().to_batches(max_chunksize=rows)):
            steps += [batch] if number % 3 else [batch, Restart(1 + number % 2)]
        run = Harness(spec_of(approx_count_distinct("v")), table.schema).run(steps).finish()
        found = bag(rows_of(run.results()))
        assert expected in {None, repr(found)}
        expected = repr(found)


def test_what_a_checkpoint_holds_is_small() -> None:
    table = numbered(3_000, 4)
    run = Harness(spec_of(approx_count_distinct("v"), approx_count_distinct("k")), table.schema)
    for batch in table.to_batches():
        run.feed(batch)
    rows = run.subtasks[0].snapshot(1)["windows"].rows
    assert {len(value) for value in rows.column("x0_registers").to_pylist()} == {4096}
    assert {len(value) for value in rows.column("x1_registers").to_pylist()} == {4}


def test_pages_of_fired_windows_are_given_back() -> None:
    schema = pa.schema({"k": pa.int64(), "v": pa.int64(), "t": pa.int64()})
    run = Harness(spec_of(approx_count_distinct("v")), schema)
    for window in range(30):
        keys, values = np.repeat(np.arange(200), 40), np.arange(8_000)
        run.feed(pa.record_batch([keys, values, np.full(8_000, window * SIZE)], schema=schema))
        run.advance(window * SIZE)
        assert len(run.subtasks[0]._accumulators[0]._pages) <= 4_096
    assert set(run.finish().results().column("x0").to_pylist()) <= {38, 39, 40, 41}


# -- quantile --------------------------------------------------------------------------------------------------

SHARES = [0.0, 0.1, 0.5, 0.95, 1.0]


@settings(max_examples=40, deadline=None)
@given(streams(), st.sampled_from([(), ("k",)]), st.integers(1, 2))
def test_quantiles_of_small_whole_numbers_are_those_of_sql(
    steps: list[Step], keys: tuple[str, ...], parallelism: int
) -> None:
    number = col("seq") * 37 % 256 - 128
    aggregates = [(quantile(number, q), f"quantile_cont((seq * 37) % 256 - 128, {q})") for q in SHARES]
    aggregates.append((median(number, where="b"), "median((seq * 37) % 256 - 128) filter (where b)"))
    aggregates.append((quantile("b", SHARES), f"quantile_cont(b::int, {SHARES})"))
    run = Harness(spec_of(*(aggregate for aggregate, _ in aggregates), keys=keys), SCHEMA, parallelism)
    rows, _, _ = split_by_lateness(steps, 0)
    expected = by_sql(rows, keys, [sql for _, sql in aggregates])
    assert bag(rows_of(run.run(steps).finish().results())) == bag(expected)


def around(values: Sequence[float], share: float) -> tuple[float, float]:
    """The two values that a quantile is interpolated between; NaN is the greatest."""
    ordered = sorted(values, key=lambda v: (math.isnan(v), v))
    place = share * (len(ordered) - 1)
    return ordered[math.floor(place)], ordered[math.ceil(place)]


FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.floats(0.001, 1000) | st.integers(-300, 300).map(float)


@settings(max_examples=150, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=60), st.floats(0, 1) | st.sampled_from(SHARES), st.booleans())
def test_a_quantile_is_off_by_less_than_one_in_128(values: list[float], share: float, restart: bool) -> None:
    got = result_of(values, pa.float64(), quantile("v", share), restart)
    low, high = around(values, share)
    if math.isinf(high - low):
        return
    exact = low + (high - low) * (share * (len(values) - 1) % 1)
    # Denormal numbers share a bucket with 0: they are off by less than the least normal number.
    assert abs(got - exact) <= max(abs(low), abs(high)) / 128 + 2.3e-308
    assert min(values) <= got <= max(values)


def result_of(values: Sequence[Any], type: pa.DataType, aggregate: AggregateSpec, restart: bool = False) -> Any:
    """The result over one group; the values come in two batches."""
    middle = len(values) // 2
    steps: list[Step] = [
        pa.record_batch({"v": pa.array(part, type), "t": pa.array([1] * len(part))})
        for part in (values[:middle], values[middle:])
        if len(part)
    ]
    if restart:
        steps.insert(1, Restart(1))
    run = Harness(spec_of(aggregate, keys=()), pa.schema({"v": type, "t": pa.int64()})).run(steps).finish()
    return canonical(run.results().column("x0").to_pylist()[0])


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([1.0, math.inf, math.nan, 2.0], 0.5, math.inf),
        ([1.0, math.nan], 1.0, "NaN"),
        ([math.nan, 1.0, 2.0], 0.5, 2.0),
        ([-math.inf, math.inf], 0.0, -math.inf),
        ([math.inf, math.inf, math.inf], 0.5, math.inf),
        ([-math.inf, -math.inf, 1.0, 1.0], 0.25, -math.inf),
        ([None, 3.5, None], 0.5, 3.5),
        ([None], 0.5, None),
        ([-0.0, 0.0], 0.5, 0.0),
        ([5e-324, 5e-324], 0.5, 5e-324),
        ([1.7e308, -1.7e308], 1.0, 1.7e308),
    ],
)
def test_what_is_not_finite_and_what_is_not_there(values: list[float | None], share: float, expected: Any) -> None:
    assert result_of(values, pa.float64(), quantile("v", share)) == expected
    assert result_of(values, pa.float64(), quantile("v", [share]), restart=True) == (
        None if expected is None else [expected]
    )


def test_numbers_of_any_kind_and_durations() -> None:
    assert result_of([2**63 - 1] * 3, pa.int64(), median("v")) == 2.0**63
    assert result_of([2**64 - 1, 0], pa.uint64(), quantile("v", 1)) == 2.0**64
    assert result_of(["1.25", "2.75"], pa.string(), median(col("v").cast("decimal(5, 2)"))) == 2.0
    minutes = [dt.timedelta(minutes=n) for n in (1, 2, 4)]
    assert result_of(minutes, pa.duration("ms"), median("v")) == minutes[1]
    assert result_of(minutes, pa.duration("us"), quantile("v", [0.0, 0.75])) == [minutes[0], dt.timedelta(minutes=3)]


def test_a_large_sample_keeps_few_buckets() -> None:
    values = np.random.default_rng(9).lognormal(3, 2, 200_000)
    schema = pa.schema({"v": pa.float64(), "t": pa.int64()})
    run = Harness(spec_of(quantile("v", [0.01, 0.5, 0.99, 0.999]), keys=()), schema)
    for part in np.split(values, 10):
        run.feed(pa.record_batch([pa.array(part), pa.array(np.ones(len(part), np.int64))], schema=schema))
    assert run.subtasks[0].snapshot(1)["x_"].rows.num_rows < 4_000
    (found,) = run.finish().results().column("x0").to_pylist()
    assert found == pytest.approx(np.quantile(values, [0.01, 0.5, 0.99, 0.999]).tolist(), rel=1 / 128)


def test_they_keep_the_contract_of_operators() -> None:
    schema = pa.schema({"k": pa.string(), "v": pa.int64(), "t": pa.int64()})
    batch = pa.RecordBatch.from_pylist(
        [{"k": "ab"[n % 2], "v": None if n == 3 else n * n * n, "t": n % 3 * 5} for n in range(30)], schema=schema
    )
    script = [batch, BARRIER, batch.slice(3), BARRIER, Watermark(SIZE), BARRIER, batch.slice(5), BARRIER]
    aggregates = [approx_count_distinct("v"), quantile("v", SHARES), median("v", where=col("v") < 100)]
    assert len(check_operator(spec_of(*aggregates), script)["main"]) == 4


def test_what_they_cannot_take_is_refused() -> None:
    schema = pa.schema({"t": pa.timestamp("us"), "l": pa.list_(pa.int64())})
    with pytest.raises(SchemaError, match=r"quantile\(t, 0.5\): the argument has type timestamp.*take a difference"):
        ms.median("t").type_in(schema)
    with pytest.raises(SchemaError, match=r"approx_count_distinct\(l\) has type list"):
        ms.approx_count_distinct("l").type_in(schema)
    for q in (1.5, -0.1, math.nan, "0.5", True, [], [0.5, 2]):
        with pytest.raises(JobError, match="q is a number between 0 and 1"):
            ms.quantile("t", q)  # type: ignore[arg-type]
    assert ms.quantile("v", 0.5).identity() != ms.quantile("v", [0.5]).identity() != ms.quantile("v", 0.6).identity()
