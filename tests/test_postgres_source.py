"""Tables of PostgreSQL as sources, by a cursor: every row once, from every position, in its own type."""

from __future__ import annotations

import datetime as dt
import threading
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream.engine.errors import DataError, ExternalError, JobError
from millstream.engine.source import ReadContext, SplitEnd, SplitReader
from millstream.testing import check_source
from servers.postgres import PostgresServer, dsn, running_server
from test_postgres_sink import VALUES, run, write

__all__ = ["dsn"]


def test_a_table_is_read_on_from_every_position(dsn: str) -> None:
    run(dsn, "create table t (day date not null, id integer primary key, name text)")
    run(dsn, "insert into t select date '2026-01-01' + n / 4, 100 - n, repeat('x', n) from generate_series(0, 7) n")
    rows = check_source(lambda: ms.postgres_source(dsn, "t", cursor=["day", "id"]))
    assert [row["id"] for row in rows] == [97, 98, 99, 100, 93, 94, 95, 96]
    assert check_source(lambda: ms.postgres_source(dsn, "t", cursor="id", columns=["name"]))[0] == {"name": "x" * 7}


def test_every_type_comes_as_it_was_written(dsn: str) -> None:
    leave = ("u32", "u64", "fixed", "span", "coded", "f32", "i8", "tz", "void")
    columns = {n: pa.array([*values, None], type_) for n, (type_, values) in VALUES.items() if n not in leave}
    columns["u64"] = pa.array([Decimal(0), Decimal(2**64 - 1), None], pa.decimal128(20, 0))
    columns["f32"] = pa.array([1.5, float("-inf"), None], pa.float32())
    columns["tz"] = pa.array([dt.datetime(1969, 12, 31, 23, 59, 59, 5, dt.UTC)] * 2 + [None], pa.timestamp("us", "UTC"))
    columns["floats"] = pa.array([[0.1, None], [], None], pa.list_(pa.float64()))
    columns["truths"] = pa.array([[True], [False, None], None], pa.list_(pa.bool_()))
    columns["void"] = pa.array(["", " ", None])
    batch = pa.record_batch({"id": pa.array([1, 2, 3]), **columns})
    write(dsn, [batch], key="id", create=True)
    job, out = ms.Job("j"), ms.memory_sink()
    job.read(ms.postgres_source(dsn, "t", cursor="id")).write(out)
    job.run()
    assert out.table().equals(pa.Table.from_batches([batch]))


def test_what_arrow_has_no_type_for_comes_as_text(dsn: str) -> None:
    run(dsn, "create type mood as enum ('fine')")
    run(dsn, "create table t (id int primary key, m mood, u uuid, j jsonb, n numeric, i interval, p inet, a date[])")
    id_ = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
    run(dsn, f"insert into t values (1, 'fine', '{id_}', '[1]', 1e-30, '1 day', '::1', array[date '2026-01-01'])")
    (row,) = check_source(lambda: ms.postgres_source(dsn, "t", cursor="id"))
    number = "0.000000000000000000000000000001"
    assert list(row.values()) == [1, "fine", id_, "[1]", number, "1 day", "::1", "{2026-01-01}"]


def test_a_value_beyond_arrow_is_named(dsn: str) -> None:
    run(dsn, "create table t (id int primary key, at timestamp)")
    run(dsn, "insert into t values (1, 'infinity')")
    with pytest.raises(DataError, match=r"infinity.*\['id', 'at'\]"):
        check_source(lambda: ms.postgres_source(dsn, "t", cursor="id"))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"cursor": "no"}, "no column 'no'"),
        ({"cursor": "id", "columns": ["no"]}, "no column 'no'"),
        ({"cursor": "name"}, "may be null"),
        ({"cursor": "price"}, "must be a number, a time or text"),
        ({"cursor": "at"}, r"add the columns of a unique key, as in cursor=\['updated_at', 'id'\]"),
        ({"cursor": "id", "lag": "1s"}, "begins with a timestamp"),
        ({"cursor": []}, "at least one column"),
        ({"cursor": "id", "table": "no"}, "no such table"),
    ],
)
def test_a_cursor_that_is_not_exact_is_refused(options: dict[str, Any], error: str, dsn: str) -> None:
    run(dsn, "create table t (id int primary key, at timestamp not null, name text unique, price float8 not null)")
    with pytest.raises(JobError, match=error):
        ms.postgres_source(dsn, **{"table": "t", **options})


def test_a_polled_table_is_read_until_the_job_is_stopped_and_on_from_there(dsn: str, tmp_path: Path) -> None:
    run(dsn, "create table t (id bigserial primary key, v int)")
    out = tmp_path / "out"

    def start(until: int) -> None:
        job, control = ms.Job("j"), ms.Control()
        job.read(ms.postgres_source(dsn, "t", cursor="id", poll="5ms")).write(ms.jsonl(out, hold_bytes=0))

        def watch() -> None:
            late = time.monotonic() + 20
            while (
                time.monotonic() < late
                and sum(len(file.read_text().splitlines()) for file in out.rglob("*.jsonl")) < until
            ):
                time.sleep(0.01)
            control.stop()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        run(dsn, "insert into t (v) select n from generate_series(1, 5) n")
        assert job.run(tmp_path / "s.duckdb", every="10ms", control=control).outcome == "stopped"
        watcher.join()

    for until in (5, 10, 15):
        start(until)
    lines = sorted(line for file in out.rglob("*.jsonl") for line in file.read_text().splitlines())
    assert lines == sorted(f'{{"id":{n + 1},"v":{n % 5 + 1}}}' for n in range(15))


def reader_of(source: Any) -> SplitReader:
    reader = source.open(source.discover()[0], None, ReadContext(lambda _: None))
    assert isinstance(reader, SplitReader)
    return reader


def test_young_rows_are_left_for_those_that_may_still_overtake_them(dsn: str) -> None:
    run(dsn, "create table t (at timestamptz primary key)")
    run(dsn, "insert into t select now() - n * interval '1 hour' from generate_series(0, 3) n")
    reader = reader_of(ms.postgres_source(dsn, "t", cursor="at", lag="90m", poll="1h"))
    rows = reader.read()
    assert isinstance(rows, pa.RecordBatch)
    assert rows.num_rows == 2
    assert reader.read() is SplitEnd.PENDING


def test_a_server_that_is_away_for_a_while_is_waited_for() -> None:
    running_server()
    server = PostgresServer()
    server.start()
    try:
        run(server.dsn(), "create table t (id int primary key)")
        run(server.dsn(), "insert into t values (1)")
        source = ms.postgres_source(server.dsn(), "t", cursor="id", poll="0s", patience="100ms")
        reader = reader_of(source)
        assert isinstance(reader.read(), pa.RecordBatch)
        server.kill()
        assert reader.read() is SplitEnd.PENDING
        server.start()
        run(server.dsn(), "insert into t values (2)")
        assert read_patiently(reader).to_pylist() == [{"id": 2}]
        server.kill()
        with pytest.raises(ExternalError, match="reading the table failed"):
            read_patiently(reader)
    finally:
        server.stop()


def read_patiently(reader: SplitReader) -> pa.RecordBatch:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        got = reader.read()
        if isinstance(got, pa.RecordBatch):
            return got
        time.sleep(0.005)
    raise AssertionError("nothing came")


def test_a_password_is_nowhere_to_be_seen(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "canary-$3cr%t"
    run(dsn, f"drop role if exists guarded; create role guarded login superuser password '{secret}'")
    run(dsn, "create table t (id int primary key)")
    (tmp_path / "password").write_text(secret + "\n")
    monkeypatch.setenv("PG_PASSWORD", secret)
    for way in ("${env:PG_PASSWORD}", f"${{file:{tmp_path}/password}}"):
        guarded = dsn.replace("postgresql://millstream@", "host=").replace("/test", " dbname=test")
        guarded = guarded.replace(
            f":{running_server().port}", f" port={running_server().port} user=guarded password='{way}'"
        )
        source, sink = ms.postgres_source(guarded, "t", cursor="id"), ms.postgres_sink(guarded, "u", create=True)
        job = ms.Job(f"j{len(way)}")
        job.read(source).write(sink)
        store = tmp_path / f"{len(way)}.duckdb"
        job.run(store)
        seen = [source.identity(), sink.identity(), repr(sink), repr(source), str(job.plan(1)), source.name, sink.name]
        assert not [text for text in seen if secret in text or "canary" in text]
        for file in tmp_path.glob(f"{len(way)}.duckdb*"):
            assert b"canary" not in file.read_bytes()
    with pytest.raises(JobError) as caught:
        ms.postgres_source("postgresql://me:canary@[broken", "t", cursor="id")
    assert "canary" not in str(caught.value)
    monkeypatch.setenv("PG_PASSWORD", "canary-wrong")
    with pytest.raises(ExternalError) as failed:
        ms.postgres_source(guarded.replace(way, "${env:PG_PASSWORD}"), "t", cursor="id")
    assert "canary" not in str(failed.value)
    monkeypatch.delenv("PG_PASSWORD")
    with pytest.raises(JobError, match="PG_PASSWORD is not set"):
        ms.postgres_source(guarded.replace(way, "${env:PG_PASSWORD}"), "t", cursor="id")


def test_psycopg_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(JobError, match=r"pip install 'millstream\[postgres\]'"):
        ms.postgres_sink("postgresql://x/y", "t")
