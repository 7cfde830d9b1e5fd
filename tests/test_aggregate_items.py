"""Aggregates that keep many values per group, in state tables of their own."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import call, col
from millstream.engine.state import WHOLE_STATE_ROWS
from millstream.operators import aggregates as agg
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.collecting import collect, count_distinct
from millstream.operators.window_aggregate import WindowAggregate
from millstream.operators.windows import TumblingWindow
from millstream.testing import BARRIER, Watermark, check_operator
from operator_kit import Harness, Step, bag, rows_of
from window_kit import KEYS, SCHEMA, SIZE, VALUES, by_sql, split_by_lateness, streams

AGGREGATES: list[tuple[AggregateSpec, str]] = [
    *((count_distinct(value), f"count(distinct {value})") for value in [*VALUES, *KEYS, "seq"]),
    (count_distinct("s", where="b"), "count(distinct s) filter (where b)"),
    *((collect(value), f"list({value} order by seq)") for value in VALUES),
    (collect(col("i") + 1, 2, where="b"), "(list(i + 1 order by seq) filter (where b))[:2]"),
    (agg.max("i"), "max(i)"),
]


def spec_of(*aggregates: AggregateSpec, keys: tuple[str, ...] = ("k",), lateness: int = 0) -> WindowAggregate:
    named = tuple((f"x{number}", aggregate) for number, aggregate in enumerate(aggregates))
    return WindowAggregate(keys, TumblingWindow(SIZE), named, col("t"), lateness)


@settings(max_examples=50, deadline=None)
@given(streams(), st.sampled_from([(), ("k",), ("g", "h")]), st.sampled_from([0, 15]), st.integers(1, 2))
def test_they_give_what_sql_gives(steps: list[Step], keys: tuple[str, ...], lateness: int, parallelism: int) -> None:
    spec = spec_of(*(aggregate for aggregate, _ in AGGREGATES), keys=keys, lateness=lateness)
    run = Harness(spec, SCHEMA, parallelism).run(steps).finish()
    rows, _, _ = split_by_lateness(steps, lateness)
    assert bag(rows_of(run.results())) == bag(by_sql(rows, keys, [sql for _, sql in AGGREGATES]))


SMALL = pa.schema({"k": pa.string(), "v": pa.int64(), "t": pa.int64()})


def rows(*values: tuple[str, int | None, int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict(zip(SMALL.names, row, strict=True)) for row in values], schema=SMALL)


SCRIPT = [
    rows(("a", 1, 1), ("b", 1, 1), ("a", 2, 1), ("a", 1, 2), ("b", None, 3)),
    BARRIER,
    rows(("a", 1, 12), ("a", 2, 3), ("a", 3, 3)),
    BARRIER,
    Watermark(10),
    BARRIER,
    rows(("a", 1, 13), ("b", 4, 14), ("b", 4, 14), ("a", 9, 1)),
    BARRIER,
]


def test_they_keep_the_contract_of_operators() -> None:
    found = check_operator(spec_of(count_distinct("v")), SCRIPT)["main"]
    assert [row["x0"] for row in found] == [3, 1, 1, 1]


@pytest.mark.parametrize(("limit", "expected"), [(None, [1, 2, 1, 2, 3]), (4, [1, 2, 1, 2]), (1, [1])])
def test_collected_values_keep_their_order_through_restarts(limit: int | None, expected: list[int]) -> None:
    found = check_operator(spec_of(collect("v", limit)), SCRIPT)["main"]
    assert [row["x0"] for row in found[:2]] == [expected, [1, None][:limit]]


def test_lists_of_structs_can_be_collected() -> None:
    pair = call("make_struct", col("k"), col("v"), field_names=["k", "v"])
    found = check_operator(spec_of(collect(pair), collect("v", where=col("v") == 2)), SCRIPT)["main"]
    assert found[1]["x0"] == [{"k": "b", "v": 1}, {"k": "b", "v": None}]
    assert found[1]["x1"] is None


def test_a_hot_group_costs_a_checkpoint_only_what_is_new() -> None:
    run = Harness(spec_of(collect("v"), keys=()), SMALL)
    columns = [pa.array(["a"] * 30_000), pa.array(np.arange(30_000)), pa.array([1] * 30_000)]
    run.feed(pa.record_batch(columns, schema=SMALL))
    run.checkpoint()
    run.feed(rows(("a", -1, 1)))
    assert run.subtasks[0].snapshot(2)["x_"].rows.num_rows == 30_000 / 20 + 1


def test_only_values_not_seen_before_are_handed_over() -> None:
    run = Harness(spec_of(count_distinct("v")), SMALL)
    (subtask,) = run.subtasks
    count = WHOLE_STATE_ROWS + 1
    columns = [pa.array(["a"] * count), pa.array(np.arange(count)), pa.array([1] * count)]
    run.feed(pa.record_batch(columns, schema=SMALL))
    assert subtask.snapshot(1)["x_"].rows.num_rows == count
    run.feed(rows(("a", 5, 1), ("a", -7, 1), ("a", -7, 1)))
    second = subtask.snapshot(2)["x_"]
    assert second.rows.num_rows <= count / 20 + 2
    assert -7 in second.rows.column("value").to_pylist()
    run.feed(rows(("a", 5, 1)))
    assert "x_" not in subtask.snapshot(3)
    run.advance(SIZE)
    gone = subtask.snapshot(4)["x_"].rows
    assert gone.column("deleted").to_pylist() == [True] * (count + 1)
    assert subtask.snapshot(5) == {}


@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_large_state_is_written_in_slices_and_comes_back_whole(parallelism: int) -> None:
    values, keys = 3_000, 30
    run = Harness(spec_of(count_distinct("v"), agg.count()), SMALL, parallelism)
    rng = np.random.default_rng(3)
    seen = set()
    for number in range(60):
        drawn = rng.integers(0, values, 3_000), rng.integers(0, keys, 3_000)
        times = np.where(drawn[1] % 3 == 0, 1, 11)
        names = pa.array([f"k{key}" for key in drawn[1].tolist()])
        run.feed(pa.record_batch([names, pa.array(drawn[0]), pa.array(times)], schema=SMALL))
        if number != 41:
            seen |= {(key, value) for value, key in zip(drawn[0].tolist(), drawn[1].tolist(), strict=True)}
        if number == 40:
            run.advance(10)  # a third of the keys leaves, as tombstones
            fired = {row["k"]: row["x0"] for row in run.results().to_pylist()}
            assert fired == {f"k{k}": sum(key == k for key, _ in seen) for k in range(0, keys, 3)}
            run.advance(10)
        if number == 41:
            seen |= {(k, v) for v, k in zip(drawn[0].tolist(), drawn[1].tolist(), strict=True) if k % 3}
        run.checkpoint()
    oldest = min(run.store.full_from["x_"].values())
    assert oldest > 1
    run.store.rows["x_"] = [(epoch, held) for epoch, held in run.store.rows["x_"] if epoch >= oldest]
    run.restart(3)
    run.finish()
    found = {row["k"]: row["x0"] for row in run.results().to_pylist() if row["window_start"].microsecond == SIZE}
    assert found == {f"k{k}": sum(key == k for key, _ in seen) for k in range(keys) if k % 3}


def test_items_of_fired_windows_are_given_back() -> None:
    run = Harness(spec_of(count_distinct("v"), collect("v"), lateness=2 * SIZE), SMALL)
    for window in range(60):
        columns = [pa.array(["a", "b"] * 500), pa.array(np.arange(1_000) // 2), pa.array([window * SIZE] * 1_000)]
        run.feed(pa.record_batch(columns, schema=SMALL))
        run.advance(window * SIZE)
        if window == 30:
            run.restart(1)
        distinct, collected = run.subtasks[0]._accumulators
        assert distinct.items.count < 10_000
        assert len(distinct._index._index) == distinct.items.count
        assert len(collected._rows) == collected.items.count < 20_000
    run.finish()
    assert run.results().column("x0").to_pylist() == [500] * 120
    assert run.results().column("x1").to_pylist() == [list(range(500))] * 120


def test_state_tables_are_named_after_their_columns() -> None:
    aggregates = {
        "Users": count_distinct("v"),
        "users": count_distinct("k"),
        "windows": count_distinct("t"),
        "é": count_distinct("v"),
        "n": agg.count(),
    }
    spec = WindowAggregate(("k",), TumblingWindow(SIZE), tuple(aggregates.items()), col("t"))
    main, *items = spec.state_tables([SMALL])
    assert main.schema.names == ["k", "window_start", "n_count"]
    assert [table.name for table in items] == ["users", "users_", "windows_", "_"]
    assert {table.keys for table in items} == {("k", "window_start", "value")}
    assert check_operator(spec, SCRIPT)["main"][0]["users"] == 1


def test_types_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(SchemaError, match=r"the argument of count_distinct\(v\) has type list.*expected a number"):
        count_distinct("v").type_in(pa.schema({"v": pa.list_(pa.int64())}))
    with pytest.raises(SchemaError, match=r"collect\(v\): state cannot hold values of type decimal256"):
        collect("v").type_in(pa.schema({"v": pa.decimal256(50)}))


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_a_limit_is_a_whole_number(limit: int) -> None:
    with pytest.raises(JobError, match=rf"collect\(..., limit={limit}\): limit is how many values to keep"):
        collect("v", limit)
