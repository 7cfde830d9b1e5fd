"""Columns computed and rows kept or dropped: the same whichever way rows come, whatever the planner makes of it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb
import millstream as ms
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream import col, lit, when
from millstream.engine.errors import DataError, JobError, SchemaError
from millstream.engine.expression import Expr
from millstream.engine.operator import MAIN, OperatorSpec, Output
from millstream.engine.source import Chunk, Position, ReadContext, Source, Split, SplitReader
from millstream.operators.project import Filter, Project, conjuncts
from millstream.operators.union import Union
from millstream.testing import BARRIER, On, check_operator

ROWS = [
    {"id": n, "shop": None if n % 5 == 0 else f"s{n % 3}", "price": n * 1.5 - 4, "at": dt.datetime(1969, 12, 31, 23, n)}
    for n in range(12)
]
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("shop", pa.string(), metadata={"unit": "name"}),
        pa.field("price", pa.float64()),
        pa.field("at", pa.timestamp("us")),
    ]
)
BATCH = pa.RecordBatch.from_pylist(ROWS, schema=SCHEMA)
SCRIPT = [BATCH.slice(0, 5), BARRIER, BATCH.slice(5, 1), BATCH.slice(6), BARRIER, BARRIER]


def sql(query: str) -> list[dict[str, Any]]:
    rows = pa.Table.from_batches([BATCH])
    connection = duckdb.connect()
    connection.register("rows", rows)
    return connection.sql(query).to_arrow_table().to_pylist()


@pytest.mark.parametrize(
    ("spec", "query"),
    [
        (Project((("id", col("id")), ("double", col("price") * 2))), "SELECT id, price * 2 AS double FROM rows"),
        (Project((("one", lit(1)), ("s", col("shop")))), "SELECT 1::BIGINT AS one, shop AS s FROM rows"),
        (Project((("x", lit("x")),)), "SELECT 'x' AS x FROM rows"),
        (
            Project((("k", when(col("price") > 2).then(col("shop")).otherwise("none")), ("d", col("at").dt.date()))),
            "SELECT CASE WHEN price > 2 THEN shop ELSE 'none' END AS k, CAST(rows.at AS DATE) AS d FROM rows",
        ),
        (Filter(col("price") > 2), "SELECT * FROM rows WHERE price > 2"),
        (Filter(col("shop").is_null() | (col("id") % 2 == 0)), "SELECT * FROM rows WHERE shop IS NULL OR id % 2 = 0"),
        (Filter(~(col("shop") == "s1")), "SELECT * FROM rows WHERE NOT shop = 's1'"),
        (Filter(col("price") > 2, frozenset({"shop"})), "SELECT shop FROM rows WHERE price > 2"),
        (Filter(lit(True)), "SELECT * FROM rows"),
        (Filter(lit(False)), "SELECT * FROM rows WHERE false"),
    ],
    ids=lambda value: value.identity()[:60] if isinstance(value, OperatorSpec) else "",
)
def test_projections_and_filters_are_sqls(spec: OperatorSpec, query: str) -> None:
    assert check_operator(spec, SCRIPT).get(MAIN, []) == sql(query)


def test_columns_that_pass_through_keep_their_fields() -> None:
    spec = Project((("key", col("id")), ("named", col("shop").alias("x")), ("made", col("id") + 1)))
    made = spec.output_schemas([SCHEMA])[MAIN]
    assert not made.field("key").nullable
    assert made.field("named").metadata == {b"unit": b"name"}
    assert made.field("made") == pa.field("made", pa.int64())
    assert Filter(col("id") > 1).output_schemas([SCHEMA])[MAIN].equals(SCHEMA, check_metadata=True)


def test_a_filter_asks_each_part_only_of_rows_that_got_through_the_parts_before() -> None:
    spec = Filter((col("id") > 0) & (12 // col("id") > 3) & ~col("shop").is_null())
    assert [row["id"] for row in check_operator(spec, SCRIPT)[MAIN]] == [1, 2, 3]
    out = Collect()
    with pytest.raises(DataError, match=r"\(12 // id\): division by zero .*first where id = 0"):
        Filter(12 // col("id") > 3).build([SCHEMA]).process(BATCH, out)
    with pytest.raises(DataError, match="first where id = 7"):
        Filter((col("id") > 3) & (12 // (col("id") - 7) > 3)).build([SCHEMA]).process(BATCH, out)


class Collect(Output):
    def emit(self, batch: pa.RecordBatch, port: str = MAIN) -> None:
        raise AssertionError("nothing is emitted where a row fails")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Project((("a", col("id")), ("a", col("price")))), r"two columns are called 'a'.*\.alias"),
        (Project((("a", lit(None)),)), r"column 'a' is null and nothing else.*None\.cast\('int64'\)"),
        (Project((("a", col("idd")),)), "no column 'idd' .did you mean 'id'"),
        (Filter(col("price") + 1), r"filter\(\) needs a predicate.*\(price \+ 1\) is double.*col\('price'\) > 10"),
        (Filter(lit(None)), r"filter\(\) needs a predicate.*None is null"),
        (Filter(col("nope") > 1), r"no column 'nope' \(in \(nope > 1\)\); the columns are: id, shop, price, at"),
    ],
)
def test_what_does_not_fit_is_refused(spec: OperatorSpec, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        spec.output_schemas([SCHEMA])


# -- the planner: fusing, pruning, push-down -------------------------------------------------------------------

names = st.sampled_from(["id", "shop", "price", "at"])
predicates = st.sampled_from(
    [col("id") > 3, col("price") < 6, col("shop") == "s1", col("id") % 2 == 0, col("at").dt.minute() != 4]
)


@st.composite
def chains(draw: st.DrawFn) -> list[OperatorSpec]:
    """Filters and projections that keep the four columns, some of them computed anew."""
    made: list[OperatorSpec] = []
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            made.append(Filter(draw(predicates)))
            continue
        exprs = {"id": col("id") + 1, "price": col("price") * 2, "shop": col("shop").str.lower(), "at": col("at")}
        changed = draw(st.sets(names))
        made.append(Project(tuple((name, exprs[name] if name in changed else col(name)) for name in SCHEMA.names)))
    return made


def run_chain(specs: Sequence[OperatorSpec]) -> list[dict[str, Any]]:
    found = [BATCH]
    schema = SCHEMA
    for spec in specs:
        operator, found = spec.build([schema]), _emitted(spec, schema, found)
        schema = spec.output_schemas([schema])[MAIN]
        operator.close()
    return [row for batch in found for row in batch.to_pylist()]


def _emitted(spec: OperatorSpec, schema: pa.Schema, batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    found: list[pa.RecordBatch] = []

    class Keep(Output):
        def emit(self, batch: pa.RecordBatch, port: str = MAIN) -> None:
            found.append(batch)

    operator = spec.build([schema])
    for batch in batches:
        if batch.num_rows:
            operator.process(batch, Keep())
    return found


def test_a_predicate_is_taken_apart_in_the_order_it_was_written() -> None:
    assert [str(part) for part in conjuncts((col("a") & col("b")) & (col("c") | col("d")))] == ["a", "b", "(c | d)"]


@dataclass(frozen=True)
class Watched(Source):
    """A memory source that notes what is pushed down, and leaves out rows and columns as it is told."""

    inner: Source
    asked: list[tuple[frozenset[str], str | None, str | None]] = field(default_factory=list)
    predicate: Expr | None = None
    columns: frozenset[str] | None = None

    name = "watched"
    order = property(lambda self: self.inner.order)

    def identity(self) -> str:
        return "watched"

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([f for f in self.inner.schema if self.columns is None or f.name in self.columns])

    def discover(self) -> Sequence[Split]:
        return self.inner.discover()

    def open(self, split: Split, position: Position, context: ReadContext) -> SplitReader:
        return WatchedReader(self, self.inner.open(split, position, context))

    def pushed_down(self, columns: frozenset[str], predicate: Expr | None, event_time: str | None) -> Source:
        self.asked.append((columns, None if predicate is None else str(predicate), event_time))
        return replace(self, predicate=predicate, columns=columns)


class WatchedReader(SplitReader):
    def __init__(self, source: Watched, inner: SplitReader) -> None:
        self.source = source
        self.inner = inner

    def read(self) -> Any:
        got = self.inner.read()
        if not isinstance(got, pa.RecordBatch):
            return got
        whole, predicate = got, self.source.predicate
        if predicate is not None:
            got = got.filter(predicate.evaluate(got).fill_null(False))
        return Chunk(got.select(self.source.schema.names), whole.num_rows)

    def position(self) -> Position:
        return self.inner.position()


@settings(max_examples=20, deadline=None)
@given(chains(), st.sets(names, min_size=1))
def test_pruning_and_push_down_change_no_row(specs: list[OperatorSpec], wanted: set[str]) -> None:
    source = Watched(ms.memory_source([BATCH.slice(0, 7), BATCH.slice(7)]))
    job, out = ms.Job("j"), ms.memory_sink()
    stream = job.read(source)
    for spec in specs:
        stream = stream._then(spec, None)
    stream.select(*sorted(wanted)).write(out)
    assert job.run().outcome == "finished"
    expected = [{name: row[name] for name in sorted(wanted)} for row in run_chain(specs)]
    assert out.rows() == expected
    (columns, predicate, _) = source.asked[0]
    assert columns <= set(SCHEMA.names)
    assert (predicate is None) == (not any(isinstance(spec, Filter) for spec in specs))


def test_what_is_pushed_down() -> None:
    source = Watched(ms.memory_source([BATCH]))
    job = ms.Job("j")
    stream = job.read(source, event_time="at").with_columns(twice=col("price") * 2).filter(col("twice") > 4)
    stream.filter(col("shop") == "s1").select("id").write(ms.memory_sink())
    job.run()
    assert source.asked == [(frozenset({"id", "price", "shop"}), "(((price * 2) > 4) & (shop == 's1'))", None)]
    source.asked.clear()
    job = ms.Job("j")
    stream = job.read(source, event_time="at").filter(col("id") > 3)
    stream.filter(col("price") > 1).select("id").write(ms.memory_sink("one"))
    stream.select(n=lit(1)).write(ms.memory_sink("two"))
    job.run()
    # Two streams read the first filter's rows, so only that one goes down.
    assert source.asked == [(frozenset({"id", "price"}), "(id > 3)", None)]


# -- union -----------------------------------------------------------------------------------------------------


def test_union_puts_rows_together() -> None:
    other = BATCH.set_column(0, "id", pa.array([n + 100 for n in range(12)]))
    both = check_operator(Union(2), [On(0, BATCH.slice(0, 5)), On(1, other), BARRIER, On(0, BATCH.slice(5)), BARRIER])
    assert sorted(row["id"] for row in both[MAIN]) == [*range(12), *range(100, 112)]
    three = check_operator(Union(3), [On(index, BATCH.slice(index, 2)) for index in (2, 0, 1)])
    assert [row["id"] for row in three[MAIN]] == [2, 3, 0, 1, 1, 2]
    made = Union(2).output_schemas([BATCH.schema, other.schema])[MAIN]
    assert made.field("id").nullable
    assert made.field("shop").metadata == {b"unit": b"name"}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"id": pa.int64()}, "stream 2 lacks 'shop'. Write .select('id', 'shop') on it"),
        ({"id": pa.int64(), "shop": pa.string(), "x": pa.int8()}, "stream 2 also has 'x'"),
        ({"id": pa.int32(), "shop": pa.string()}, "'id' is int64 in stream 1 and int32 in stream 2"),
        ({"shop": pa.string(), "id": pa.int64()}, "stream 2 has them in the order shop, id, stream 1 id, shop"),
    ],
)
def test_union_of_different_columns_says_what_differs(schema: dict[str, pa.DataType], message: str) -> None:
    first = pa.schema({"id": pa.int64(), "shop": pa.string()})
    with pytest.raises(SchemaError) as error:
        Union(2).output_schemas([first, pa.schema(schema)])
    assert message in str(error.value)
    with pytest.raises(JobError, match="at least two streams together, got 1"):
        Union(1)
