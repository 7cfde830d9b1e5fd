"""The top rows per key over all time: what the changelog comes to is DuckDB's answer, after every prefix."""

from __future__ import annotations

import math
from collections import Counter
from decimal import Decimal
from typing import Any

import duckdb
import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.changelog import WEIGHT, weighted
from millstream.engine.errors import DataError, SchemaError
from millstream.engine.expression import col
from millstream.engine.operator import MAIN
from millstream.engine.state import WHOLE_STATE_ROWS
from millstream.operators.top import Top
from millstream.testing import BARRIER, check_operator
from operator_kit import Collected, Harness, rows_of

SCHEMA = pa.schema(
    {
        "k": pa.string(),
        "i": pa.int64(),
        "f": pa.float64(),
        "s": pa.string(),
        "n": pa.decimal128(20, 2),
        "t": pa.timestamp("us"),
    }
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "k": st.sampled_from([None, "", "x", "y"]),
    "i": st.none() | st.integers(-2, 2) | st.sampled_from([-(2**63), 2**63 - 1]),
    "f": st.sampled_from([None, math.nan, math.inf, -math.inf, 0.0, 1.5, -1.5]),
    "s": st.sampled_from([None, "", "a", "prefix01", "prefix01a", "prefix01\0", "é"]),
    "n": st.sampled_from([None, Decimal("0.00"), Decimal("-1.25"), Decimal(10**15), Decimal("1.25")]),
    "t": st.none() | st.integers(-25, 25),
}
ROW = st.tuples(*VALUES.values())
RANKS = st.lists(st.tuples(st.sampled_from("ifsnt"), st.booleans()), min_size=1, max_size=3, unique_by=lambda by: by[0])
KEYS = st.sampled_from([(), ("k",), ("k", "f")])
KINDS = st.sampled_from([{}, {"ties": True}, {"newest": True}, {"rank": "r"}, {"rank": "r", "ties": True}])
BATCHES = st.lists(st.lists(ROW, min_size=1, max_size=12), min_size=1, max_size=6)

Row = tuple[Any, ...]
DUCKDB = duckdb.connect(config={"threads": 1})


def batch_of(rows: list[Row], weights: list[int] | None = None) -> pa.RecordBatch:
    columns = [pa.array(values, type) for values, type in zip(zip(*rows, strict=True), SCHEMA.types, strict=True)]
    if weights is None:
        return pa.record_batch(columns, schema=SCHEMA)
    return pa.record_batch([*columns, pa.array(weights)], schema=weighted(SCHEMA))


def by_sql(rows: list[Row], spec: Top, by: list[tuple[str, bool]]) -> Counter[str]:
    """DuckDB's answer over rows in the order of their arrival."""
    table = pa.Table.from_batches([batch_of(rows)] if rows else [], SCHEMA)
    table = table.append_column("seq", pa.array(np.arange(len(rows))))
    group = f"partition by {', '.join(spec.keys)}" if spec.keys else ""
    order = ", ".join(f"{name} {'desc' if down else 'asc'} nulls last" for name, down in by)
    last = f"seq {'desc' if spec.newest else 'asc'}"
    rank = f"rank() over ({group} order by {order})"
    if not spec.ties:
        rank = f"row_number() over ({group} order by {order}, {last})"
    columns = [*SCHEMA.names, *([f"{rank} as r"] if spec.rank else [])]
    DUCKDB.register("rows", table)
    answer = DUCKDB.sql(f"select {', '.join(columns)} from rows qualify {rank} <= {spec.n}")
    return Counter(map(repr, rows_of(answer.to_arrow_table())))


class Settled:
    """What a changelog comes to, batch after batch."""

    def __init__(self, spec: Top, schema: pa.Schema) -> None:
        self.operator = spec.build([schema])
        self.rows: Counter[str] = Counter()

    def feed(self, batch: pa.RecordBatch) -> list[int]:
        """Return the weights that came out."""
        out = Collected()
        self.operator.process(batch, out)
        weights: list[int] = []
        for made in out.batches[MAIN]:
            table = pa.Table.from_batches([made])
            weights += table.column(WEIGHT).to_pylist()
            for row, weight in zip(rows_of(table.drop_columns([WEIGHT])), weights[-len(table) :], strict=True):
                self.rows[repr(row)] += weight
                assert self.rows[repr(row)] >= 0, f"{row} was taken back and never came"
        self.rows = +self.rows
        return weights


@settings(max_examples=60, deadline=None)
@given(BATCHES, RANKS, st.sampled_from([1, 1, 2, 5]), KINDS, KEYS)
def test_after_every_batch_the_rows_are_those_of_sql(
    batches: list[list[Row]], by: list[tuple[str, bool]], n: int, kind: dict[str, Any], keys: tuple[str, ...]
) -> None:
    spec = Top(keys, tuple((col(name), down) for name, down in by), n, **kind)
    top, so_far = Settled(spec, SCHEMA), []
    for rows in batches:
        before, so_far = Counter(top.rows), [*so_far, *rows]
        weights = top.feed(batch_of(rows))
        assert top.rows == by_sql(so_far, spec, by)
        changed = (top.rows - before).total() + (before - top.rows).total()
        # One of several rows of the same values that takes the place of another is a change all the same.
        if len({repr(row) for row in so_far}) == len(so_far):
            assert len(weights) == changed, "more was said than what changed"


@st.composite
def changelogs(draw: st.DrawFn) -> list[list[tuple[Row, int]]]:
    """Batches of rows with weights; only what is there is taken back."""
    there: Counter[Row] = Counter()
    batches = []
    for _ in range(draw(st.integers(1, 6))):
        batch = []
        for _ in range(draw(st.integers(1, 12))):
            held = sorted(there.elements(), key=repr)
            if held and draw(st.booleans()):
                row = draw(st.sampled_from(held))
                weight = -draw(st.integers(1, there[row]))
            else:
                row, weight = draw(ROW), draw(st.sampled_from([1, 1, 1, 2]))
            there[row] += weight
            batch.append((row, weight))
        batches.append(batch)
    return batches


def applied(rows: list[Row], batch: list[tuple[Row, int]]) -> list[Row]:
    """The rows in the order of arrival; of equal ones the last is taken back."""
    rows = list(rows)
    for row, weight in batch:
        rows += [row] * weight
        for _ in range(-weight):
            del rows[len(rows) - 1 - [repr(one) for one in rows][::-1].index(repr(row))]
    return rows


@settings(max_examples=60, deadline=None)
@given(changelogs(), RANKS, st.sampled_from([1, 1, 2, 5]), KINDS, KEYS)
def test_of_a_changelog_too(
    batches: list[list[tuple[Row, int]]],
    by: list[tuple[str, bool]],
    n: int,
    kind: dict[str, Any],
    keys: tuple[str, ...],
) -> None:
    spec = Top(keys, tuple((col(name), down) for name, down in by), n, **kind)
    top, rows = Settled(spec, weighted(SCHEMA)), []
    for batch in batches:
        rows = applied(rows, batch)
        top.feed(batch_of([row for row, _ in batch], [weight for _, weight in batch]))
        assert top.rows == by_sql(rows, spec, by)


@settings(max_examples=10, deadline=None)
@given(changelogs(), RANKS, st.sampled_from([1, 3]), KINDS, KEYS, st.booleans())
def test_conformance(
    batches: list[list[tuple[Row, int]]],
    by: list[tuple[str, bool]],
    n: int,
    kind: dict[str, Any],
    keys: tuple[str, ...],
    is_changelog: bool,
) -> None:
    script: list[Any] = []
    for batch in batches:
        rows = [row for row, weight in batch if is_changelog or weight > 0]
        if rows:
            script += [batch_of(rows, [weight for _, weight in batch] if is_changelog else None), BARRIER]
    if script:
        check_operator(Top(keys, tuple((col(name), down) for name, down in by), n, **kind), script)


PLAIN = pa.schema({"k": pa.int64(), "v": pa.int64(), "s": pa.string()})


def random_batch(rng: np.random.Generator, rows: int, keys: int) -> pa.RecordBatch:
    values = rng.integers(0, 1_000_000, rows)
    texts = pa.array(values).cast(pa.string())
    return pa.record_batch([pa.array(rng.integers(0, keys, rows)), pa.array(values), texts], schema=PLAIN)


@pytest.mark.parametrize("by", ["v", "s"])
def test_a_large_state_survives_forgetting_and_restarts(by: str) -> None:
    rng = np.random.default_rng(1)
    spec = Top(("k",), ((col(by), True), (col("v"), True)), 3)
    harness, fed = Harness(spec, PLAIN), []
    for number, width in enumerate([1, 2, 1, 3, 2]):
        for _ in range(3):
            fed.append(random_batch(rng, 12_000, 9_000))
            harness.feed(fed[-1])
            harness.checkpoint()
        harness.restart(width)
        assert number == 0 or max(sum(not d for d in r["deleted"].to_pylist()) for _, r in harness.store.rows["top"])
    table = pa.Table.from_batches(fed)
    with duckdb.connect() as connection:
        connection.register("rows", table)
        sql = f"select k, v, s from rows qualify row_number() over (partition by k order by {by} desc, v desc) <= 3"
        expected = Counter(rows_of(connection.sql(sql).to_arrow_table()))
    assert expected.total() > WHOLE_STATE_ROWS
    settled: Counter[Row] = Counter()
    for k, v, s, weight in rows_of(harness.results()):
        settled[k, v, s] += weight
    assert +settled == expected
    assert -settled == Counter()


def test_deltas_have_what_changed_and_rows_that_left_are_deleted() -> None:
    harness = Harness(Top((), ((col("v"), True),), 1), PLAIN)
    for value in range(5):
        harness.feed(pa.RecordBatch.from_pylist([{"k": 1, "v": value, "s": "x"}], PLAIN))
        harness.checkpoint()
    written = [rows.select(["v", "deleted"]).to_pylist() for _, rows in harness.store.rows["top"]]
    assert written[-1] == [{"v": None, "deleted": True}, {"v": 4, "deleted": False}]
    assert harness.subtasks[0].snapshot(9) == {}


def test_what_waits_is_forgotten_once_it_is_taken_back() -> None:
    schema = weighted(PLAIN)
    operator: Any = Top(("k",), ((col("v"), True),), 1).build([schema])
    out = Collected()
    for number in range(40):
        for weight in (1, -1):
            rows = [{"k": i % 50, "v": i, "s": str(number), WEIGHT: weight} for i in range(500)]
            operator.process(pa.RecordBatch.from_pylist(rows, schema), out)
    assert len(operator._lists) < 10_000
    assert len(operator._contents) < 10_000
    assert operator._live == 0
    assert sum(out.table(operator._output).column(WEIGHT).to_pylist()) == 0


def test_a_row_that_never_came_cannot_be_taken_back() -> None:
    operator = Top(("k",), ((col("v"), True),), 1).build([weighted(PLAIN)])
    rows = pa.RecordBatch.from_pylist([{"k": 1, "v": 2, "s": "x", WEIGHT: -1}], weighted(PLAIN))
    with pytest.raises(DataError, match=r"that never came, or is gone already: \{'k': 1, 'v': 2, 's': 'x'\}"):
        operator.process(rows, Collected())


# -- in the words of users -------------------------------------------------------------------------------------

BIDS = [{"item": item, "price": price, "n": n} for n, (item, price) in enumerate(["a1", "a3", "b2", "a3", "b1", "a2"])]
BIDS = [{**bid, "price": int(bid["price"])} for bid in BIDS]


def changes(make: Any, rows: Any = BIDS, **read: Any) -> Counter[Row]:
    job, out = ms.Job("j"), ms.memory_sink()
    make(job.read(ms.memory_source(rows), **read)).changes().write(out)
    job.run()
    settled: Counter[Row] = Counter()
    for row in out.rows():
        settled[tuple(row.values())[:-1]] += row["weight"]
    return +settled


def test_top_of_each_key_and_of_all() -> None:
    assert changes(lambda s: s.group_by("item").top(1, by="price")) == Counter({("a", 3, 1): 1, ("b", 2, 2): 1})
    assert changes(lambda s: s.top(2, by="price")) == Counter({("a", 3, 1): 1, ("a", 3, 3): 1})
    assert changes(lambda s: s.top(1, by=["item", "price"], descending=[True, False])) == Counter({("b", 1, 4): 1})
    assert changes(lambda s: s.top(2, by=-col("price"), ties=True, row_number="place").select("n", "place")) == Counter(
        {(0, 1): 1, (4, 1): 1}
    )


def test_top_of_a_top_and_what_comes_after_it() -> None:
    def best(stream: ms.Stream) -> ms.Stream:
        leaders = stream.group_by("item").top(1, by="price", descending=False)
        return leaders.filter(col("price") < 9).top(1, by=["price", "n"], descending=True).select("item")

    assert changes(best) == Counter({("b",): 1})


def test_the_last_row_of_each_key() -> None:
    assert changes(lambda s: s.deduplicate("item", keep="last").select("item", "n")) == Counter(
        {("a", 5): 1, ("b", 4): 1}
    )
    rows = [{"k": k, "at": at, "n": n} for n, (k, at) in enumerate([(1, 5), (1, 3), (2, None), (1, 5), (2, None)])]
    schema = pa.schema({"k": pa.int64(), "at": pa.timestamp("us"), "n": pa.int64()})
    assert changes(
        lambda s: s.deduplicate("k", keep="last").select("k", "n"),
        pa.Table.from_pylist(rows, schema),
        event_time="at",
    ) == Counter({(1, 3): 1, (2, 4): 1})


def test_a_changelog_has_no_event_time() -> None:
    stream = ms.Job("j").read(ms.memory_source(BIDS))
    assert stream.top(1, by="price").is_changelog
    with pytest.raises(ms.JobError, match="needs event time"):
        stream.top(1, by="price").window(ms.tumbling("1m")).agg(n=ms.count())


def test_the_mistakes_of_rows_that_cannot_be_found_again() -> None:
    stream = ms.Job("j").read(ms.memory_source([{"k": 1, "v": 2, "list": [1]}]))
    first = stream.group_by("k").top(1, by="v")
    with pytest.raises(SchemaError, match=r"top\(\): column 'list' of a changelog to rank, .* has type list"):
        first.top(1, by="v")
    with pytest.raises(SchemaError, match=r"top\(\): the rank of a row cannot be called 'v'"):
        stream.top(1, by="v", row_number="v")


# Visits that were invalid when they came are taken back by what was last heard of them.
VISITS = [("a", 1, 5, True), ("a", 2, 3, True), ("b", 3, 4, True), ("a", 4, 3, True), ("a", 2, 3, False)]


def first_valid(stream: ms.Stream) -> ms.Stream:
    last = stream.deduplicate("visit", keep="last").filter(col("valid"))
    return last.deduplicate("who").select("who", "visit")


@pytest.mark.parametrize("timed", [True, False])
def test_the_first_row_of_each_key_gives_way_to_the_next_when_it_is_taken_back(timed: bool) -> None:
    schema = pa.schema({"who": pa.string(), "visit": pa.int64(), "at": pa.timestamp("us"), "valid": pa.bool_()})
    batches = [pa.RecordBatch.from_pylist([dict(zip(schema.names, visit, strict=True))], schema) for visit in VISITS]
    read = {"event_time": "at", "max_delay": "1s"} if timed else {}
    by_time = [[("a", 1)], [("a", 2)], [("a", 2), ("b", 3)], [("a", 2), ("b", 3)], [("a", 4), ("b", 3)]]
    by_arrival = [[("a", 1)], [("a", 1)], *[[("a", 1), ("b", 3)]] * 3]
    for count, expected in enumerate(by_time if timed else by_arrival, 1):
        assert changes(first_valid, batches[:count], **read) == Counter(expected)


def test_what_the_first_row_of_a_changelog_cannot_give() -> None:
    stream = ms.Job("j").read(ms.memory_source(BIDS)).deduplicate("n", keep="last")
    first = stream.deduplicate("item")
    assert first.is_changelog
    with pytest.raises(ms.JobError, match=r"a changelog has no .duplicates"):
        first.duplicates.write(ms.memory_sink())
    with pytest.raises(ms.JobError, match=r"deduplicate\(within=...\) is for streams whose rows stay"):
        stream.deduplicate("item", within="1h")
