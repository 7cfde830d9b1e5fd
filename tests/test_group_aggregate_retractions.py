"""Aggregates over changelogs: after every batch they are what SQL gives over the rows that are there."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from decimal import Context, Decimal, localcontext
from typing import Any

import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from changelog_kit import aggregated, changelogs, held_by, net
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.changelog import WEIGHT, weighted
from millstream.engine.errors import DataError, JobError, SchemaError
from millstream.engine.expression import call, col
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.group_aggregate import GroupAggregate
from millstream.testing import BARRIER, check_operator
from operator_kit import Harness, Restart, Step
from window_kit import KEYS, SCHEMA, VALUES

NUMBERS, ORDERED = "iufbn", "iufbsnd"
KNOWN = "filter (t is not null)"


def add(state: dict[str, pa.Array], groups: np.ndarray, values: pa.Array) -> dict[str, Any]:
    return {"sum": np.asarray(state["sum"]) + np.bincount(groups, np.asarray(values), len(state["sum"]))}


def take(state: dict[str, pa.Array], groups: np.ndarray, values: pa.Array) -> dict[str, Any]:
    return {"sum": np.asarray(state["sum"]) - np.bincount(groups, np.asarray(values), len(state["sum"]))}


def own_sum(**options: Any) -> AggregateSpec:
    return ms.aggregate(
        "seq", state={"sum": float}, init={"sum": 0.0}, update=add, result=lambda s: s["sum"], type=float, **options
    )


AGGREGATES: list[tuple[AggregateSpec, str]] = [
    (ms.count(), "count(*)"),
    *((ms.count(v), f"count({v})") for v in VALUES),
    *((ms.sum(v), f"sum({v})") for v in NUMBERS),
    *((ms.mean(v), "avg(b::int)" if v == "b" else f"avg({v})") for v in NUMBERS),
    *((ms.min(v), f"min({v})") for v in ORDERED),
    *((ms.max(v), f"max({v})") for v in ORDERED),
    *((ms.first(v), f"first({v} order by t, {v}) {KNOWN}") for v in ORDERED),
    *((ms.last(v), f"first({v} order by t desc, {v}) {KNOWN}") for v in ORDERED),
    *((ms.count_distinct(v), f"count(distinct {v})") for v in [*VALUES, *KEYS]),
    *((ms.collect(v), f"list({v} order by {v})") for v in VALUES),
    (ms.collect("i", limit=2), "list(i order by i)[:2]"),
    *((ms.arg_max("s", v), f"first(s order by {v} desc, s) filter (s is not null and {v} is not null)") for v in "ufn"),
    (ms.arg_min("d", "s", where="b"), "first(d order by s, d) filter (b and d is not null and s is not null)"),
    (ms.sum("i", where=col("u") > 1), "sum(i) filter (u > 1)"),
    (ms.max("s", where="b"), "max(s) filter (b)"),
    (ms.median("seq"), "median(seq)"),
    (ms.quantile("seq", [0.25, 0.75], where="b"), "quantile_cont(seq, [0.25, 0.75]) filter (b)"),
    (own_sum(retract=take), "sum(seq)::double"),
    (own_sum(retract=take, merge=lambda a, b: {"sum": np.add(a["sum"], b["sum"])}), "sum(seq)::double"),
]


def spec_of(*aggregates: AggregateSpec, keys: tuple[str, ...] = ("k",), time: str | None = "t") -> GroupAggregate:
    named = tuple((f"x{number}", aggregate) for number, aggregate in enumerate(aggregates))
    return GroupAggregate(keys, named, None if time is None else col(time))


@settings(max_examples=30, deadline=None)
@given(changelogs(), st.sampled_from([(), ("k",), ("g", "k"), ("h",)]), st.integers(1, 2), st.integers(0, 3))
def test_every_prefix_gives_what_sql_gives(
    steps: list[Step], keys: tuple[str, ...], parallelism: int, quarter: int
) -> None:
    made = AGGREGATES[quarter::4]
    run = Harness(spec_of(*(aggregate for aggregate, _ in made), keys=keys), weighted(SCHEMA), parallelism)
    batches: list[pa.RecordBatch] = []
    for step in steps:
        run.run([step])
        if isinstance(step, pa.RecordBatch):
            batches.append(step)
            assert net(run.out.batches["main"]) == aggregated(held_by(batches), keys, [sql for _, sql in made])


SMALL = weighted(pa.schema({"k": pa.string(), "v": pa.int64()}))


def rows(*values: tuple[str | None, int | None, int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict(zip(SMALL.names, row, strict=True)) for row in values], schema=SMALL)


SCRIPT = [
    rows(("a", 1, 1), ("b", 1, 2), ("a", 2, 1), (None, 1, 1), ("b", None, 1)),
    BARRIER,
    rows(("a", 2, -1), ("a", 3, 1), (None, 1, -1), ("c", 7, 1), ("c", 7, -1)),
    BARRIER,
    BARRIER,
    rows(("b", 1, -1), ("b", 4, 1), ("a", 1, -1), ("a", 3, -1), (None, 5, 1)),
    BARRIER,
    rows(("a", 8, 1), ("b", None, -1), ("c", 0, 3), ("b", 4, -1), ("c", 0, -1)),
]
EVERY = [
    ms.count(),
    ms.sum("v"),
    ms.mean(col("v") / 4),
    ms.max("v"),
    ms.variance("v"),
    ms.count_distinct("v"),
    ms.collect("v"),
    ms.quantile("v", [0.1, 0.5]),
    ms.arg_max("k", "v"),
]


@pytest.mark.parametrize("keys", [("k",), ()])
def test_they_keep_the_contract_of_operators(keys: tuple[str, ...]) -> None:
    found = check_operator(spec_of(*EVERY, keys=keys, time=None), SCRIPT)["main"]
    assert {row.get("k"): (row["x0"], row["x6"], row[WEIGHT]) for row in found} == (
        {"a": (1, [8], 1), "b": (1, [1], 1), None: (1, [5], 1), "c": (2, [0, 0], 1)}
        if keys
        else {None: (5, [0, 0, 1, 5, 8], 1)}
    )


def test_a_group_without_rows_vanishes_and_begins_anew() -> None:
    run = Harness(spec_of(ms.sum("v"), ms.max("v"), time=None), SMALL)
    run.run([rows(("a", 1, 1)), rows(("a", 1, -1)), rows(("a", 2, 1), ("b", 3, 1), ("b", 3, -1))])
    assert [[tuple(row.values()) for row in batch.to_pylist()] for batch in run.out.batches["main"]] == [
        [("a", 1, 1, 1)],
        [("a", 1, 1, -1)],
        [("a", 2, 2, 1)],
    ]


WIDE = Context(prec=80)


@pytest.mark.parametrize("type", [pa.int64(), pa.uint64(), pa.decimal128(38, 2), pa.decimal128(38, 0)])
def test_sums_are_exact_whatever_the_weights(type: pa.DataType) -> None:
    rng = np.random.default_rng(3)
    least = 0 if type == pa.uint64() else -(2**63)
    values = [least, 2**63 - 1, *(int(v) for v in rng.integers(-(2**62), 2**62, 200) if v > least)]
    weights = [int(w) for w in [2**40, -(2**33), *rng.integers(-(2**31), 2**31, len(values) - 2)]]
    if pa.types.is_decimal(type):
        values = [value * 10**17 for value in values]
        if type.scale:
            values = [Decimal(value).scaleb(-2, WIDE) for value in values]
    schema = weighted(pa.schema({"v": type}))
    column = pa.array(values, type)
    # A total out of range is reported; so all is taken back but one more of the last.
    back = [-weight for weight in weights]
    back[-1] += 1
    batch = pa.record_batch([pa.concat_arrays([column, column]), [*weights, *back]], schema=schema)
    run = Harness(spec_of(ms.sum("v"), ms.count("v"), keys=(), time=None), schema).run([batch])
    assert net(run.out.batches["main"]) == Counter({(column[-1].as_py(), 1): 1})
    with localcontext(WIDE):
        total = sum(value * weight for value, weight in zip(values, weights, strict=True))
    with pytest.raises(DataError, match=re.escape(str(total))):
        Harness(spec_of(ms.sum("v"), keys=(), time=None), schema).run([batch.slice(0, len(values))])


FLOATS = weighted(pa.schema({"v": pa.float64()}))


def floats(*values: tuple[float | None, int]) -> pa.RecordBatch:
    columns = [pa.array([v for v, _ in values], pa.float64()), pa.array([w for _, w in values], pa.int64())]
    return pa.record_batch(columns, schema=FLOATS)


def last_of(run: Harness) -> Any:
    (row,) = net(run.out.batches["main"])
    return row


def test_what_is_not_finite_can_be_taken_back() -> None:
    spec = spec_of(ms.sum("v"), ms.mean("v"), ms.variance("v", ddof=0), keys=(), time=None)
    run = Harness(spec, FLOATS).run([floats((1.0, 1), (3.0, 1))])
    inf, nan = math.inf, math.nan
    steps: list[tuple[float, int, Any]] = [
        (inf, 1, (inf, inf, "NaN")),
        (-inf, 1, ("NaN", "NaN", "NaN")),
        (inf, -1, (-inf, -inf, "NaN")),
        (nan, 2, ("NaN", "NaN", "NaN")),
        (-inf, -1, ("NaN", "NaN", "NaN")),
        (nan, -2, (4.0, 2.0, 1.0)),
    ]
    for value, weight, expected in steps:
        run.run([floats((value, weight)), Restart(1)])
        assert last_of(run) == expected


def test_rounding_leaves_no_trace_once_the_values_are_gone() -> None:
    spec = spec_of(ms.count(), ms.sum("v"), ms.variance("v", ddof=0), keys=(), time=None)
    run = Harness(spec, FLOATS).run([floats((None, 1), (0.1, 3), (1e300, 1), (1e-300, 7))])
    run.run([floats((1e300, -1), (1e-300, -7), (0.1, -3)), floats((0.5, 1), (1.5, 1))])
    assert last_of(run) == (3, 2.0, 0.25)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(1, 3)), min_size=1, max_size=30), st.randoms())
def test_variances_are_those_of_the_values_that_are_left(values: list[tuple[float, int]], random: Any) -> None:
    taken = [(value, random.randint(0, weight)) for value, weight in values]
    spec = spec_of(ms.variance("v", ddof=0), ms.sum("v"), keys=(), time=None)
    run = Harness(spec, FLOATS).run([floats(*values), floats(*((value, -weight) for value, weight in taken))])
    left = [value for (value, weight), (_, gone) in zip(values, taken, strict=True) for _ in range(weight - gone)]
    if not left:
        assert net(run.out.batches["main"]) == Counter()
        return
    variance, total = last_of(run)
    assert math.isclose(variance, statistics.pvariance(left), rel_tol=1e-9, abs_tol=1e-12)
    assert math.isclose(total, math.fsum(left), rel_tol=1e-15, abs_tol=1e-18)


def test_items_that_come_and_go_are_forgotten_in_memory_and_in_the_store() -> None:
    schema = weighted(pa.schema({"k": pa.int64(), "v": pa.int64()}))
    spec = spec_of(ms.max("v"), ms.count_distinct("v"), ms.median("v"), time=None)
    run = Harness(spec, schema)
    for round_ in range(60):
        keys, values = np.arange(1_000) + 500 * round_, np.arange(1_000) + 100_000 * round_
        run.feed(pa.record_batch([keys, values, np.ones(1_000, np.int64)], schema=schema))
        if round_:
            run.feed(pa.record_batch([keys - 500, values - 100_000, -np.ones(1_000, np.int64)], schema=schema))
        run.checkpoint()
        if round_ == 40:
            run.restart(2)
    for table, written in run.store.rows.items():
        assert len(written[-1][1]) < 6_000, f"{table} holds rows that are gone"
    expected = Counter({(500 * 59 + n, 100_000 * 59 + n, 1, float(100_000 * 59 + n)): 1 for n in range(1_000)})
    assert net(run.out.batches["main"]) == expected
    run.restart(1)
    run.feed(pa.record_batch([[500 * 59], [7], [1]], schema=schema))
    assert net(run.out.batches["main"])[500 * 59, 100_000 * 59, 2, (100_000 * 59 + 7) / 2] == 1


PAIR = call("make_struct", col("k"), col("v"), field_names=["k", "v"])


@pytest.mark.parametrize(
    ("aggregate", "message"),
    [
        (ms.approx_count_distinct("v"), r"approx_count_distinct\(v\) cannot take rows .* use ms.count_distinct\(v\)"),
        (own_sum(), r"cannot take rows of a changelog back: give it a function retract="),
        (ms.last("v"), r"last\(v\) needs event time over a changelog.*ms.arg_max"),
        (ms.collect(PAIR), "over a changelog, has type struct"),
        (ms.arg_max(PAIR, "v"), "the value of arg_max.* over a changelog, has type struct"),
    ],
)
def test_what_cannot_be_taken_back_is_refused_by_name(aggregate: AggregateSpec, message: str) -> None:
    schema = weighted(pa.schema({"k": pa.string(), "v": pa.int64(), "seq": pa.int64()}))
    with pytest.raises(SchemaError, match=message):
        spec_of(aggregate, time=None).output_schemas([schema])


def test_a_retract_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(JobError, match=r"aggregate\(retract=...\)"):
        own_sum(retract=lambda state: state)


def test_windows_refuse_changelogs() -> None:
    job = ms.Job("j")
    rows = job.read(ms.memory_source([{"k": "a", "v": 1}]))
    counts = rows.group_by("k").agg(n=ms.count())
    with pytest.raises(JobError, match="needs event time"):
        counts.group_by("n").window(ms.tumbling("1m"))
