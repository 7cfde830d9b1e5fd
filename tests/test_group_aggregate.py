"""Aggregates without windows: after every batch the changelog comes to what SQL gives over all rows so far."""

from __future__ import annotations

from typing import Any

import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from changelog_kit import aggregated, net
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.changelog import WEIGHT
from millstream.engine.expression import call, col
from millstream.engine.state import WHOLE_STATE_ROWS
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.group_aggregate import GroupAggregate
from millstream.testing import BARRIER, check_operator
from operator_kit import Harness, Restart, Step
from window_kit import KEYS, SCHEMA, VALUES, streams

NUMBERS, ORDERED = "iufbn", "iufbsnd"
PAIR = call("make_struct", col("i"), col("s"), field_names=["i", "s"])
KNOWN = "filter (t is not null)"
AGGREGATES: list[tuple[AggregateSpec, str]] = [
    (ms.count(), "count(*)"),
    *((ms.count(v), f"count({v})") for v in VALUES),
    *((ms.sum(v), f"sum({v})") for v in NUMBERS),
    *((ms.mean(v), "avg(b::int)" if v == "b" else f"avg({v})") for v in NUMBERS),
    *((ms.min(v), f"min({v})") for v in ORDERED),
    *((ms.max(v), f"max({v})") for v in ORDERED),
    *((ms.first(v), f"first({v} order by t, seq) {KNOWN}") for v in ORDERED),
    *((ms.last(v), f"last({v} order by t, seq) {KNOWN}") for v in ORDERED),
    *((ms.count_distinct(v), f"count(distinct {v})") for v in [*VALUES, *KEYS]),
    *((ms.collect(v), f"list({v} order by seq)") for v in VALUES),
    (ms.collect(PAIR, limit=2), "list({'i': i, 's': s} order by seq)[:2]"),
    (ms.arg_max(PAIR, "u"), "first({'i': i, 's': s} order by u desc, seq) filter (u is not null)"),
    (ms.arg_min("d", "s", where="b"), "first(d order by s, seq) filter (b and d is not null and s is not null)"),
    (ms.sum("i", where=col("u") > 1), "sum(i) filter (u > 1)"),
    (ms.count(where=col("s") == ""), "count(*) filter (s = '')"),
    (ms.last("s", where="b"), "last(s order by t, seq) filter (b and t is not null)"),
]


def spec_of(*aggregates: AggregateSpec, keys: tuple[str, ...] = ("k",), time: str | None = "t") -> GroupAggregate:
    named = tuple((f"x{number}", aggregate) for number, aggregate in enumerate(aggregates))
    return GroupAggregate(keys, named, None if time is None else col(time))


@settings(max_examples=25, deadline=None)
@given(streams(), st.sampled_from([(), ("k",), ("g", "k"), ("h",)]), st.integers(1, 2), st.integers(0, 3))
def test_every_prefix_gives_what_sql_gives(
    steps: list[Step], keys: tuple[str, ...], parallelism: int, quarter: int
) -> None:
    made = AGGREGATES[quarter::4]
    run = Harness(spec_of(*(aggregate for aggregate, _ in made), keys=keys), SCHEMA, parallelism)
    batches: list[pa.RecordBatch] = []
    for step in steps:
        run.run([step])
        if isinstance(step, pa.RecordBatch):
            batches.append(step)
            rows = pa.Table.from_batches(batches)
            assert net(run.out.batches["main"]) == aggregated(rows, keys, [sql for _, sql in made])


SMALL = pa.schema({"k": pa.string(), "v": pa.int64()})


def rows(*values: tuple[str | None, int | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict(zip(SMALL.names, row, strict=True)) for row in values], schema=SMALL)


SCRIPT = [
    rows(("a", 1), ("b", 1), ("a", 2), (None, 1), ("b", None)),
    BARRIER,
    rows(("a", 1), ("a", 2), ("a", 3)),
    BARRIER,
    BARRIER,
    rows(("b", 4), ("c", -4), ("b", 4), ("a", 9)),
    BARRIER,
    rows((None, None), ("c", 0)),
]
EVERY = [
    ms.count(),
    ms.sum("v"),
    ms.mean("v"),
    ms.max("v"),
    ms.first("v"),
    ms.variance("v"),
    ms.count_distinct("v"),
    ms.approx_count_distinct("v"),
    ms.collect("v"),
    ms.quantile("v", [0.1, 0.5]),
    ms.arg_max("k", "v"),
]


@pytest.mark.parametrize("keys", [("k",), ()])
def test_they_keep_the_contract_of_operators(keys: tuple[str, ...]) -> None:
    found = check_operator(spec_of(*EVERY, keys=keys, time=None), SCRIPT)["main"]
    assert {row.get("k"): (row["x0"], row[WEIGHT]) for row in found} == (
        {"a": (6, 1), "b": (4, 1), None: (2, 1), "c": (2, 1)} if keys else {None: (14, 1)}
    )


def changes(run: Harness) -> list[list[tuple[Any, ...]]]:
    return [[tuple(row.values()) for row in batch.to_pylist()] for batch in run.out.batches["main"] if batch.num_rows]


def test_only_groups_whose_result_has_changed_are_emitted() -> None:
    run = Harness(spec_of(ms.max("v"), time=None), SMALL)
    run.run([rows(("a", 5), ("b", 1), ("a", 7)), rows(("a", 6), ("b", 2)), rows(("a", 7), ("b", None))])
    assert changes(run) == [[("a", 7, 1), ("b", 1, 1)], [("b", 1, -1), ("b", 2, 1)]]


def test_a_restart_emits_nothing_and_takes_back_what_was_emitted_before() -> None:
    run = Harness(spec_of(ms.mean("v"), ms.collect("v"), time=None), SMALL)
    run.run([rows(("a", 1), ("a", 2), ("b", 3)), Restart(3), rows(("a", 4)), Restart(1)])
    assert changes(run)[1:] == [[("a", 1.5, [1, 2], -1), ("a", 7 / 3, [1, 2, 4], 1)]]


def test_nan_and_null_that_stay_are_no_change() -> None:
    schema = pa.schema({"k": pa.string(), "v": pa.float64()})
    batches = [pa.record_batch([["a", "b"], pa.array([float("nan"), None], pa.float64())], schema=schema)] * 2
    run = Harness(spec_of(ms.sum("v"), ms.collect("v", limit=1), time=None), schema).run(batches)
    assert len(changes(run)) == 1


def test_without_event_time_first_and_last_go_by_arrival() -> None:
    run = Harness(spec_of(ms.first("v"), ms.last("v"), keys=(), time=None), SMALL)
    run.run([rows(("a", 5), ("b", None)), rows(("a", 6), ("b", 2))])
    assert changes(run) == [[(5, None, 1)], [(5, None, -1), (5, 2, 1)]]


def test_a_functions_of_the_users_never_sees_no_groups() -> None:
    def largest(state: dict[str, pa.Array]) -> pa.Array:
        return [max(values) for values in [state["most"].to_pylist()]] * len(state["most"])

    def add(state: dict[str, pa.Array], groups: np.ndarray, values: pa.Array) -> dict[str, Any]:
        most = np.array(state["most"])
        np.maximum.at(most, groups, np.asarray(values))
        return {"most": most}

    most = ms.aggregate("v", state={"most": int}, init={"most": 0}, update=add, result=largest, type=int)
    run = Harness(spec_of(most, keys=(), time=None), SMALL).run([rows(("a", 1)), rows(("a", 0)), rows(("b", 2))])
    assert changes(run) == [[(1, 1)], [(1, -1), (2, 1)]]


def test_a_delta_holds_the_groups_that_have_changed_and_a_slice() -> None:
    count = 3 * WHOLE_STATE_ROWS
    schema = pa.schema({"k": pa.int64(), "v": pa.int64()})
    run = Harness(spec_of(ms.count(), ms.count_distinct("v"), time=None), schema)
    run.feed(pa.record_batch([np.arange(count), np.arange(count)], schema=schema))
    run.checkpoint()
    for epoch in range(2, 30):
        run.feed(pa.record_batch([[epoch, count + epoch], [1, 2]], schema=schema))
        run.checkpoint()
        for name in ("groups", "x_"):
            assert len(run.store.rows[name][-1][1]) < count / 20 + 100
    before = net(run.out.batches["main"])
    run.restart(2)
    run.feed(pa.record_batch([np.arange(count), np.arange(count)], schema=schema))
    run.checkpoint()
    assert net(run.out.batches["main"])[5, 3, 2] == 1
    assert len(net(run.out.batches["main"])) == len(before)
