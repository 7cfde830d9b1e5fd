"""Rows in PostgreSQL: what is there after each epoch, whatever happens, and what is refused."""

from __future__ import annotations

import datetime as dt
import itertools
from decimal import Decimal
from typing import Any

import millstream as ms
import psycopg
import pyarrow as pa
import pytest
from millstream.engine.changelog import WEIGHT
from millstream.engine.errors import DataError, JobError, SchemaError
from millstream.engine.sink import Sink, SinkContext
from millstream.testing import check_sink
from servers.postgres import dsn

__all__ = ["dsn"]

ROWS = pa.RecordBatch.from_pylist([{"id": n, "name": f"n {n}"} for n in range(12)])


def run(dsn: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else []


@pytest.mark.parametrize("key", [pytest.param(None, marks=pytest.mark.slow), "id"])
def test_a_crash_at_any_step_changes_nothing(key: str | None, dsn: str) -> None:
    numbers = itertools.count()

    def seen(table: str) -> list[dict[str, Any]]:
        if run(dsn, f"select to_regclass('{table}')") == [(None,)]:
            return []
        return [{"id": id, "name": name} for id, name in run(dsn, f"select id, name from {table}")]

    def make(table: str) -> Sink:
        # Every place has a progress table of its own, since all have one job's id.
        return ms.postgres_sink(dsn, table, key=key, create=True, progress=f"{table}_progress")

    rows = check_sink(lambda: f"t{next(numbers)}", make, seen, [ROWS])
    assert sorted(row["id"] for row in rows) == list(range(12))


def write(
    dsn: str,
    batches: list[pa.RecordBatch],
    restored: int = 0,
    schema: pa.Schema | None = None,
    job_id: str = "j1",
    job: str = "shop",
    **options: Any,
) -> None:
    """One start of a job, which writes a batch per epoch."""
    sink = ms.postgres_sink(dsn, options.pop("table", "t"), **options)
    schema = schema or batches[0].schema
    sink.check(schema)
    context = SinkContext(job, job_id, "s1", restored + 1, 0, 1, restored)
    committer = sink.committer(schema, context)
    writer = sink.writer(schema, context)
    try:
        for epoch, batch in enumerate(batches, restored + 1):
            writer.write(batch)
            committer.commit(epoch, writer.prepare(epoch, False))
    finally:
        committer.close()


TIME = dt.datetime(1969, 12, 31, 23, 59, 59, 999_999)
VALUES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "i8": (pa.int8(), [-128, 127]),
    "i64": (pa.int64(), [-(2**63), 2**63 - 1]),
    "u32": (pa.uint32(), [0, 2**32 - 1]),
    "u64": (pa.uint64(), [0, 2**64 - 1]),
    "f32": (pa.float32(), [1.5, float("-inf")]),
    "f64": (pa.float64(), [0.1, 1e308]),
    "truth": (pa.bool_(), [True, False]),
    "dec": (pa.decimal128(20, 4), [Decimal("-1234567890123456.7891"), Decimal("0.0001")]),
    "text": (pa.string(), ["tab\t, \"quotes\", 'more', \\N \\. \\x00", "line\nline\r\n; ü 漢 🙂 \u2028"]),
    "void": (pa.large_string(), ["", "in a line\n\\.\nof its own"]),
    "bytes": (pa.binary(), [b"", bytes(range(256))]),
    "fixed": (pa.binary(3), [b"\x00\x01\x02", b"abc"]),
    "day": (pa.date32(), [dt.date(1, 1, 1), dt.date(9999, 12, 31)]),
    "time": (pa.time64("us"), [dt.time(0), dt.time(23, 59, 59, 999_999)]),
    "ts": (pa.timestamp("us"), [TIME, dt.datetime(1, 1, 1)]),
    "tz": (pa.timestamp("ms", "Europe/Zurich"), [TIME.replace(microsecond=0, tzinfo=dt.UTC)] * 2),
    "span": (pa.duration("us"), [dt.timedelta(days=-3, microseconds=1), dt.timedelta(0)]),
    "ints": (pa.list_(pa.int64()), [[1, None, -3], []]),
    "texts": (pa.list_(pa.string()), [['a"b', "c\\d", "{,}", "", "NULL"], [None]]),
    "coded": (pa.dictionary(pa.int32(), pa.string()), ["x", "y"]),
}


@pytest.mark.parametrize("key", [None, "id"])
def test_every_type_arrives_unchanged_and_so_do_nulls(key: str | None, dsn: str) -> None:
    columns = {name: pa.array([*values, None], type_) for name, (type_, values) in VALUES.items()}
    batch = pa.record_batch({"id": pa.array([1, 2, 3]), **columns})
    # A slice starts in the midst of its buffers.
    write(dsn, [batch.slice(0, 1), batch.slice(1)], key=key, create=True)
    with psycopg.connect(dsn) as connection:
        connection.execute("set timezone = 'UTC'")
        found = connection.execute("select * from t order by id").fetchall()
    expected = [tuple(row.values()) for row in batch.to_pylist()]
    assert found == expected


@pytest.mark.parametrize(
    ("value", "type_", "declared", "why"),
    [
        ("a\0b", pa.string(), "text", "NUL"),
        (["a", "b\0"], pa.list_(pa.string()), "text[]", "NUL"),
        ("abcd", pa.string(), "varchar(3)", "too long"),
        ("no", pa.string(), "uuid", "no UUID"),
        ('{"a":', pa.string(), "jsonb", "no JSON"),
        ("NaN", pa.string(), "json", "no JSON"),
        ('"\\u0000"', pa.string(), "jsonb", "no JSON"),
        (1, pa.timestamp("ns"), "timestamp", "no nanoseconds"),
        (-(2**62), pa.timestamp("us"), "timestamp", "years 1 to 9999"),
        (4_000_000, pa.date32(), "date", "years 1 to 9999"),
        (None, pa.string(), "text not null", "no nulls"),
        ("blue", pa.string(), "colour", "no label"),
    ],
)
def test_a_value_the_server_would_refuse_is_found_before_it_waits_in_a_checkpoint(
    value: Any, type_: pa.DataType, declared: str, why: str, dsn: str
) -> None:
    run(dsn, "create type colour as enum ('red', 'green')")
    run(dsn, f"create table t (id bigint, v {declared})")
    array = (
        pa.array([value], type_)
        if not isinstance(value, int)
        else pa.array([value], pa.int64()).cast(type_ if pa.types.is_timestamp(type_) else pa.int32()).view(type_)
    )
    with pytest.raises(DataError, match=rf"column 'v'.*{why}"):
        write(dsn, [pa.record_batch({"id": pa.array([1]), "v": array})])


def test_texts_that_are_fine_are_written(dsn: str) -> None:
    run(dsn, "create type colour as enum ('red', 'green')")
    run(dsn, "create table t (id uuid primary key, c colour, j jsonb, n numeric(12, 2), v varchar(3))")
    capitals = "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"
    rows = [{"id": i, "c": "red", "j": '{"a": [1, "\\\\u0000"]}', "v": "äöü"} for i in (capitals, capitals.lower())]
    batch = pa.RecordBatch.from_pylist(rows).append_column("n", pa.array([1, 2], pa.int32()))
    write(dsn, [batch], key="id")
    assert run(dsn, "select c::text, j->'a'->>0, n, v from t") == [("red", "1", Decimal("2.00"), "äöü")]


def changes(*rows: tuple[int, str, int]) -> pa.RecordBatch:
    columns = [pa.array(values) for values in zip(*rows, strict=True)]
    return pa.record_batch(columns, names=["id", "v", WEIGHT])


def test_a_changelog_is_what_remains_of_it(dsn: str) -> None:
    first = changes((1, "a", 1), (2, "b", 1), (3, "c", 1), (4, "d", 1), (4, "d", -1))
    # What comes stands before what goes, and behind it: only whole rows tell.
    second = changes((1, "A", 1), (1, "a", -1), (2, "b", -1), (3, "c", -1), (3, "C", 1), (5, "e", -1), (5, "e", 1))
    write(dsn, [first, second], key="id", create=True)
    assert run(dsn, "select * from t order by id") == [(1, "A"), (3, "C")]


def test_writers_see_only_parts_of_a_changelog(dsn: str) -> None:
    sink = ms.postgres_sink(dsn, "t", key="id", create=True)
    schema = changes((1, "a", 1)).schema
    contexts = [SinkContext("shop", "j1", "s1", 1, index, 2) for index in range(2)]
    committer, writers = sink.committer(schema, contexts[0]), [sink.writer(schema, c) for c in contexts]
    for epoch, parts in enumerate([((1, "a", 1), (2, "x", 1)), ((1, "b", 1), (1, "a", -1)), ((2, "x", -1), None)], 1):
        for writer, part in zip(writers, parts, strict=True):
            if part is not None:
                writer.write(changes(part))
        committer.commit(epoch, [c for writer in writers for c in writer.prepare(epoch, False)])
    committer.close()
    assert run(dsn, "select * from t") == [(1, "b")]


def test_the_last_row_of_a_key_wins_within_and_across_epochs(dsn: str) -> None:
    rows = [[(1, "a"), (2, "b"), (1, "c")], [(2, "d"), (2, "e")]]
    batches = [pa.RecordBatch.from_pylist([{"k": k, "j": k, "v": v} for k, v in epoch]) for epoch in rows]
    write(dsn, batches, key=["k", "j"], create=True)
    assert run(dsn, "select k, v from t order by k") == [(1, "c"), (2, "e")]


# -- the table, looked at before the first row -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "options", "error"),
    [
        ("", {}, "there is no table 't'.*CREATE TABLE"),
        ("create table t (id bigint)", {}, "has no column 'name', but: id bigint"),
        ("create table t (id integer, name text)", {}, "'id' is int64.*integer.*make the column bigint"),
        ("create table t (id numeric(10), name text)", {}, "'id' is int64"),
        ("create table t (id bigint, name text)", {"key": "id"}, "CREATE UNIQUE INDEX"),
        ("create table t (id bigint, name text, unique (id, name))", {"key": "id"}, "CREATE UNIQUE INDEX"),
        ("create table t (id bigint, name text); create unique index on t (id) where id > 0", {"key": "id"}, "UNIQUE"),
        ("create table t (id bigint unique deferrable, name text)", {"key": "id"}, "UNIQUE"),
        ("create table t (id bigint, name text, shop int not null)", {}, "cannot do without shop integer"),
        ("create table t (id bigint generated always as identity, name text)", {}, "itself computes 'id'"),
        ("create table t (id bigint, name char(9) primary key)", {"key": "name"}, "texts that differ may be equal"),
        ("create sequence t", {}, "neither a table nor a view"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_at_the_start(
    made: str, options: dict[str, Any], error: str, dsn: str
) -> None:
    for statement in filter(None, made.split("; ")):
        run(dsn, statement)
    with pytest.raises(JobError, match=error):
        write(dsn, [ROWS], **options)


@pytest.mark.parametrize(
    ("schema", "options", "error"),
    [
        ({"a": pa.int64()}, {"key": "b"}, "no column 'b'"),
        ({"a": pa.float64()}, {"key": "a"}, "not told apart reliably"),
        ({"a": pa.list_(pa.int64())}, {"key": "a"}, "not told apart reliably"),
        ({"a": pa.struct([("b", pa.int64())])}, {}, "PostgreSQL has no type"),
        ({"a": pa.int64(), "b": pa.list_(pa.int64()), WEIGHT: pa.int64()}, {"key": "a"}, "whole rows"),
    ],
)
def test_rows_that_go_nowhere_are_refused_when_the_job_is_built(
    schema: dict[str, pa.DataType], options: dict[str, Any], error: str
) -> None:
    with pytest.raises(SchemaError, match=error):
        ms.postgres_sink("postgresql://nowhere/x", "t", **options).check(pa.schema(schema))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"mode": "upsert"}, "needs a key"),
        ({"mode": "append", "key": "a"}, "append.*has none"),
        ({"mode": "replace"}, "got mode='replace'"),
        ({"table": ""}, "empty"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], error: str) -> None:
    with pytest.raises(JobError, match=error):
        ms.postgres_sink("postgresql://nowhere/x", **{"table": "t", **options})


def test_a_key_must_have_a_value(dsn: str) -> None:
    with pytest.raises(DataError, match=r"no value in its key 'id'"):
        write(dsn, [pa.record_batch({"id": pa.array([None], pa.int64())})], key="id", create=True)


def test_names_are_only_names(dsn: str) -> None:
    run(dsn, 'create schema "we ird"')
    table, column = 'we ird.t"; drop table x; --', 'se"lect %s'
    write(dsn, [pa.record_batch({column: [1]})], key=column, create=True, table=table)
    assert run(dsn, 'select * from "we ird"."t""; drop table x; --"') == [(1,)]


# -- markers ---------------------------------------------------------------------------------------------------


def test_a_table_ahead_of_the_store_is_refused(dsn: str) -> None:
    write(dsn, [ROWS, ROWS], create=True)
    with pytest.raises(JobError, match=r"has epoch 2 of this job already.*goes on from epoch 1"):
        write(dsn, [ROWS], restored=1)
    assert run(dsn, "select count(*) from t") == [(24,)]


@pytest.mark.parametrize("key", [None, "id"])
def test_a_job_that_starts_anew_beside_its_rows_is_refused(key: str | None, dsn: str) -> None:
    write(dsn, [ROWS], key=key, create=True)
    with pytest.raises(JobError, match=r"from another store.*DELETE FROM millstream_progress WHERE job_id = 'j1'"):
        write(dsn, [ROWS], key=key, job_id="j2")
    write(dsn, [ROWS], key=key, job_id="j3", again=True)
    write(dsn, [ROWS], key=key, job_id="j4", job="other")
    assert run(dsn, "select count(*) from t") == [(12 if key else 36,)]


def prepared(sink: Sink, context: SinkContext, epoch: int) -> Any:
    writer = sink.writer(ROWS.schema, context)
    writer.write(ROWS)
    return writer.prepare(epoch, False)


def test_a_progress_table_that_was_emptied_is_refused(dsn: str) -> None:
    """Whether the epoch that is committed again was there before nobody knows any more."""
    sink = ms.postgres_sink(dsn, "t", create=True)
    first, second = (SinkContext("shop", "j1", "s1", n, 0, 1, n - 1) for n in (1, 2))
    committer, rows = sink.committer(ROWS.schema, first), prepared(sink, first, 1)
    committer.commit(1, rows)
    committer.close()
    run(dsn, "truncate millstream_progress")
    for _ in range(2):
        committer = sink.committer(ROWS.schema, second)
        with pytest.raises(JobError, match=r"knows nothing of this job"):
            committer.commit(1, rows)
        committer.close()
    assert run(dsn, "select count(*) from t") == [(12,)]


def test_another_copy_of_the_database_is_refused_before_anything_is_written(dsn: str) -> None:
    sink = ms.postgres_sink(dsn, "t", create=True)
    context = SinkContext("shop", "j1", "s1", 1, 0, 1)
    committer, writer = sink.committer(ROWS.schema, context), sink.writer(ROWS.schema, context)
    for epoch in (1, 4, 6):  # the others had no rows
        writer.write(ROWS)
        rows = writer.prepare(epoch, False)
        if epoch == 6:
            run(dsn, "update millstream_progress set epoch = 1")
            with pytest.raises(JobError, match=r"knows only epoch 1, but epoch 4 may have been published"):
                committer.commit(epoch, rows)
            run(dsn, "update millstream_progress set epoch = 5")
            with pytest.raises(JobError, match=r"has rows of epoch 5, of which the checkpoint store knows nothing"):
                committer.commit(epoch, rows)
            run(dsn, "update millstream_progress set epoch = 4")
        committer.commit(epoch, rows)
    committer.close()
    assert run(dsn, "select epoch from millstream_progress") == [(6,)]


def test_a_later_start_ends_what_an_earlier_one_is_about_to_do(dsn: str) -> None:
    sink = ms.postgres_sink(dsn, "t", create=True)
    old, new = (SinkContext("shop", "j1", "s1", n, 0, 1) for n in (1, 2))
    zombie = sink.committer(ROWS.schema, old)
    rows = prepared(sink, old, 1)
    live = sink.committer(ROWS.schema, new)
    with pytest.raises(JobError, match=r"another process that runs this job has taken over"):
        zombie.commit(1, rows)
    with pytest.raises(JobError, match=r"this is start 1"):
        sink.committer(ROWS.schema, old)
    live.commit(1, rows)
    live.close()
    assert run(dsn, "select count(*), max(epoch) from t, millstream_progress") == [(12, 1)]


def test_a_start_that_has_written_nothing_gives_way_to_one_with_another_store(dsn: str) -> None:
    sink = ms.postgres_sink(dsn, "t", create=True)
    first, second = (SinkContext("shop", f"j{n}", "s1", 1, 0, 1) for n in (1, 2))
    waiting = sink.committer(ROWS.schema, first)
    rows = prepared(sink, first, 1)
    later = sink.committer(ROWS.schema, second)
    later.commit(1, prepared(sink, second, 1))
    later.close()
    # It would begin anew beside those rows; its own row was taken away, and so it finds out.
    with pytest.raises(JobError, match=r"started anew with another store meanwhile"):
        waiting.commit(1, rows)
    waiting.close()
    assert run(dsn, "select count(*) from t") == [(12,)]
