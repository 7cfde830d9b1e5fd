"""Looking rows up in PostgreSQL."""

from __future__ import annotations

import datetime as dt
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream.engine.errors import ExternalError, JobError, SchemaError
from servers.postgres import PostgresServer, dsn, running_server
from test_postgres_sink import run

__all__ = ["dsn"]


def fetch(table: Any, columns: list[str], **keys: Any) -> list[tuple[Any, ...]]:
    rows = table.fetch(pa.record_batch(keys), columns)
    return sorted(tuple(row.values()) for row in rows.to_pylist())


def test_a_stream_finds_its_rows(dsn: str) -> None:
    run(dsn, "create table customers (id bigint, name text, tags text[])")
    run(dsn, "insert into customers values (1, 'Ann', '{a,b}'), (2, null, null), (2, 'Bo', '{}')")
    job, out = ms.Job("j"), ms.memory_sink()
    orders = job.read(ms.memory_source([{"customer": n} for n in (1, 2, 3, 1)]))
    orders.lookup(ms.postgres_table(dsn, "customers"), on={"customer": "id"}, how="left").write(out)
    job.run()
    found = sorted((row["customer"], str(row["name"]), row["tags"]) for row in out.rows())
    assert found == [(1, "Ann", ["a", "b"])] * 2 + [(2, "Bo", []), (2, "None", None), (3, "None", None)]


@pytest.mark.parametrize(
    ("declared", "stored", "keys"),
    [
        ("varchar(3)", "abc", pa.array(["abc", "abcd", "a\0c", "a'\"\\,{}%s"])),
        ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", pa.array(["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "no"])),
        ("numeric(6,1)", "1.5", pa.array(["1.5", "2.0"]).cast(pa.decimal128(4, 1))),
        ("timestamptz", "1969-12-31 23:59:59.5+00", pa.array([dt.datetime(1969, 12, 31, 23, 59, 59, 500_000)])),
        ("bytea", "\\x00ff", pa.array([b"\x00\xff", b""])),
        ("date", "2026-01-31", pa.array([dt.date(2026, 1, 31)])),
    ],
)
def test_keys_of_many_types_are_compared_as_they_are(declared: str, stored: str, keys: pa.Array, dsn: str) -> None:
    run(dsn, f"create table t (k {declared}, v int)")
    run(dsn, f"insert into t values ('{stored}', 7)")
    assert fetch(ms.postgres_table(dsn, "t"), ["v"], k=keys) == [(7,)]


def test_several_keys_belong_together(dsn: str) -> None:
    run(dsn, "create table t (a int, b text, v int)")
    run(dsn, "insert into t values (1, 'x', 10), (1, 'y', 20), (2, 'x', 30)")
    table = ms.postgres_table(dsn, "t")
    assert fetch(table, ["a", "v"], b=["x", "x", "y"], a=pa.array([2, 1, 2], pa.int32())) == [(1, 10), (2, 30)]
    assert fetch(table, ["a", "v"], b=pa.array([], pa.string()), a=pa.array([], pa.int32())) == []


def test_keys_that_cannot_be_equal_are_refused(dsn: str) -> None:
    run(dsn, "create table t (k int, j jsonb)")
    with pytest.raises(SchemaError, match="it is integer, and the keys are string"):
        fetch(ms.postgres_table(dsn, "t"), ["k"], k=["1"])
    with pytest.raises(SchemaError, match="it is jsonb"):
        fetch(ms.postgres_table(dsn, "t"), ["k"], j=["1"])
    with pytest.raises(JobError, match="no such table"):
        ms.postgres_table(dsn, "no")


def test_a_server_that_was_away_is_asked_again() -> None:
    running_server()
    server = PostgresServer()
    server.start()
    try:
        run(server.dsn(), "create table t (k bigint)")
        run(server.dsn(), "insert into t values (1)")
        table = ms.postgres_table(server.dsn(), "t", patience="200ms")
        assert fetch(table, ["k"], k=[1]) == [(1,)]
        server.kill()
        with pytest.raises(ExternalError, match="looking rows up failed"):
            fetch(table, ["k"], k=[1])
        server.start()
        assert fetch(table, ["k"], k=[1]) == [(1,)]
    finally:
        server.stop()
