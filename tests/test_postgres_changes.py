"""Changes of a PostgreSQL table: they add up to the table, from every position, whatever is killed."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import millstream as ms
import pytest
from millstream.engine.changelog import WEIGHT
from millstream.engine.errors import DataError, JobError
from millstream.engine.source import Chunk, ReadContext, SplitEnd, SplitReader
from nursery import Nursery, Start
from servers.postgres import PostgresServer, dsn, running_server
from test_postgres_sink import run

__all__ = ["dsn"]


@pytest.fixture
def table(dsn: str) -> Iterator[str]:
    """A database with a table t of five rows, whose slots are removed afterwards."""
    run(dsn, "create table t (id int primary key, name text, tags text[], at timestamptz, p inet, n numeric, b bytea)")
    run(dsn, "alter table t replica identity full")
    run(dsn, "insert into t select n, 'n ' || n, '{a,b}', now(), '::1', 1.5, '\\x00ff' from generate_series(1, 5) n")
    yield dsn
    run(dsn, "select pg_terminate_backend(active_pid) from pg_replication_slots where active_pid is not null")
    until = time.monotonic() + 10
    while run(dsn, "select 1 from pg_replication_slots where active_pid is not null") and time.monotonic() < until:
        time.sleep(0.01)
    run(dsn, "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = current_database()")


def reader_of(source: Any, position: Any = None, batch_rows: int = 1000) -> SplitReader:
    reader = source.open(source.discover()[0], position, ReadContext(lambda _: None, batch_rows))
    assert isinstance(reader, SplitReader)
    return reader


def read(reader: SplitReader, rows: int) -> list[dict[str, Any]]:
    """At least so many rows."""
    found: list[dict[str, Any]] = []
    until = time.monotonic() + 15
    while len(found) < rows:
        got = reader.read()
        if isinstance(got, Chunk):
            got = got.batch
        if not isinstance(got, SplitEnd):
            found += got.to_pylist()
        elif time.monotonic() > until:
            raise AssertionError(f"only {len(found)} of {rows} rows came: {found}")
    return found


def bag(rows: list[dict[str, Any]]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for row in rows:
        sums[repr({name: value for name, value in row.items() if name != WEIGHT})] += row[WEIGHT]
    assert min(sums.values(), default=0) >= 0, sums
    return +sums


CHANGES = [
    "insert into t (id, name) values (6, null), (7, 'quote \" '' \\ , \t\n')",
    "update t set name = 'new' where id in (1, 6)",
    "delete from t where id = 2; update t set id = 20 where id = 3; delete from t where id = 20",
    "update t set tags = '{\"x y\",null}', at = '1969-12-31 23:59:59.5+00', b = '\\x', n = null where id = 4",
]


def test_rows_there_are_and_changes_add_up_to_the_table(table: str) -> None:
    reader = reader_of(ms.postgres_changes(table, "t", slot="s1"))
    seen = read(reader, 5)
    for sql in CHANGES:
        run(table, sql)
    seen += read(reader, 2 + 4 + 4 + 2)
    fresh = reader_of(ms.postgres_changes(table, "t", slot="s2"))
    assert bag(seen) == bag(read(fresh, 5)), "what a reader sees that starts now"
    reader.close()
    fresh.close()


@pytest.mark.parametrize("batch_rows", [1, 3])
def test_every_position_is_exact(batch_rows: int, table: str) -> None:
    source = ms.postgres_changes(table, "t", slot="s1")
    reader = reader_of(source, batch_rows=batch_rows)
    steps = []
    while sum(len(rows) for rows, _ in steps) < 5:
        steps.append((read(reader, 1), reader.position()))
    for sql in CHANGES:
        run(table, sql)
    while sum(len(rows) for rows, _ in steps) < 5 + 12:
        steps.append((read(reader, 1), reader.position()))
    reader.close()
    whole = [row for rows, _ in steps for row in rows]
    before = 0
    for rows, position in steps:
        before += len(rows)
        if before < len(whole):
            again = reader_of(source, position)
            assert read(again, len(whole) - before) == whole[before:], position
            again.close()


def test_the_server_may_forget_what_a_checkpoint_holds_and_not_more(table: str) -> None:
    reader = reader_of(ms.postgres_changes(table, "t", slot="s1"))
    read(reader, 5)
    begin = reader.position()["lsn"]
    reader.committed(reader.position())
    run(table, "insert into t (id) values (6)")
    read(reader, 1)
    slot = "select confirmed_flush_lsn - '0/0' from pg_replication_slots where slot_name = 's1'"
    copies = "select count(*) from pg_class where relname = 's1_copy'"
    assert run(table, slot) == [(begin,)]
    assert run(table, copies) == [(1,)]
    until = time.monotonic() + 20
    while run(table, slot) == [(begin,)] and time.monotonic() < until:
        # The end of the transaction may come later than its rows.
        reader.committed(reader.position())
        reader.read()
    assert int(run(table, slot)[0][0]) > begin
    assert run(table, copies) == [(0,)]
    reader.close()


def test_another_store_does_not_take_the_slot_away(table: str) -> None:
    source = ms.postgres_changes(table, "t", slot="s1")
    first = reader_of(source)
    read(first, 5)
    first.close()
    # Nothing of it was part of a checkpoint: it starts over.
    second = reader_of(source)
    read(second, 5)
    second.committed(second.position())
    second.read()
    kept = second.position()
    second.close()
    with pytest.raises(JobError, match="replication slot 's1' exists: another job reads it"):
        reader_of(source).read()
    run(table, "select pg_drop_replication_slot('s1')")
    with pytest.raises(JobError, match="replication slot 's1' is gone"):
        reader_of(source, kept).read()


@pytest.mark.parametrize("sql", ["update t set name = 'x' where id = 1", "delete from t where id = 1"])
def test_a_change_without_the_old_row_is_refused(sql: str, table: str) -> None:
    reader = reader_of(ms.postgres_changes(table, "t", slot="s1", snapshot=False))
    assert reader.read() is SplitEnd.PENDING
    run(table, "alter table t replica identity default")
    run(table, sql)
    with pytest.raises(DataError, match="REPLICA IDENTITY FULL was undone"):
        read(reader, 1)
    reader.close()


def test_a_large_value_that_stays_comes_with_the_row_that_changes(table: str) -> None:
    run(table, "alter table t alter column name set storage external")
    reader = reader_of(ms.postgres_changes(table, "t", slot="s1", snapshot=False))
    reader.read()
    run(table, f"insert into t (id, name) values (9, repeat('large ', {20_000}))")
    run(table, "update t set n = 2 where id = 9")
    rows = read(reader, 3)
    assert [row[WEIGHT] for row in rows] == [1, -1, 1]
    assert {row["name"] for row in rows} == {"large " * 20_000}
    reader.close()


def test_what_a_changelog_cannot_say_is_refused(table: str) -> None:
    reader = reader_of(ms.postgres_changes(table, "t", slot="s1", snapshot=False))
    assert reader.read() is SplitEnd.PENDING
    run(table, "truncate t")
    with pytest.raises(DataError, match=r"public.t was truncated"):
        read(reader, 1)
    reader.close()


@pytest.mark.parametrize(
    ("made", "options", "error"),
    [
        ("create table t (id int)", {}, "ALTER TABLE public.t REPLICA IDENTITY FULL"),
        ("create view t as select 1 as id", {}, "no plain table"),
        ("select 1", {}, "no such table"),
        ("select 1", {"slot": "No"}, "small letters"),
    ],
)
def test_what_cannot_be_read_is_refused(made: str, options: dict[str, Any], error: str, dsn: str) -> None:
    run(dsn, made)
    with pytest.raises(JobError, match=error):
        ms.postgres_changes(dsn, "t", **{"slot": "s1", **options})


def test_a_publication_must_have_everything(table: str) -> None:
    run(table, "create publication p for table t with (publish = 'insert')")
    with pytest.raises(JobError, match="does not publish every kind of change"):
        reader_of(ms.postgres_changes(table, "t", slot="s1", publication="p")).read()


def test_other_tables_of_a_publication_are_passed_over(table: str) -> None:
    run(table, "create table other (id int primary key, name text, tags text[], at timestamptz, p inet, n numeric)")
    run(table, "alter table other replica identity full")
    run(table, "create publication p for all tables")
    reader = reader_of(ms.postgres_changes(table, "t", slot="s1", publication="p", snapshot=False))
    assert reader.read() is SplitEnd.PENDING
    both = "insert into other (id) values (1); insert into t (id) values (6); delete from other; truncate other"
    run(table, both)
    run(table, "alter table t rename to renamed")
    run(table, "insert into renamed (id) values (7)")
    assert [row["id"] for row in read(reader, 2)] == [6, 7]
    reader.close()


# -- whole jobs ------------------------------------------------------------------------------------------------------

JOB = """
import millstream as ms

job = ms.Job("mirror")
changes = job.read(ms.postgres_changes({dsn!r}, "t", slot="mirror"))
changes.write(ms.postgres_sink({dsn!r}, "mirror", key="id", create=True))
"""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as running:
        yield running


SLOW = ["postgres.copying@1", "store.before_commit@1", "source.committed@1", "store.after_commit@3"]
POINTS = [
    "postgres.copied@1", "store.after_commit@1", "postgres.written@2", "source.committed@3",
    *(pytest.param(point, marks=pytest.mark.slow) for point in SLOW),
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_a_mirror_killed_anywhere_becomes_the_table(point: str, table: str, tmp_path: Path, nursery: Nursery) -> None:
    run(table, "alter table t drop column p, drop column tags, drop column n")
    (tmp_path / "job.py").write_text(JOB.format(dsn=table))
    name, _, hits = point.partition("@")
    over = threading.Event()

    def change() -> None:
        number = 100
        while not over.is_set():
            run(table, f"insert into t (id) values ({number}); update t set name = 'u' where id = {number - 1}")
            number += 1
            time.sleep(0.01)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        end = nursery.run(Start(str(tmp_path), failpoint=f"{name}=kill@{hits}", batches=50, every=0.05, stop_after=8))
        assert end.killed, end
    finally:
        over.set()
        changing.join()
    for sql in CHANGES[:3]:
        run(table, sql)
    mirrored = False
    for _ in range(5):
        assert nursery.run(Start(str(tmp_path), batches=50, every=0.05, stop_after=4)).outcome == "stopped"
        mirrored = run(table, "(table t except table mirror) union all (table mirror except table t)") == []
        if mirrored:
            break
    assert mirrored


def test_a_server_that_is_killed_is_read_on_from(tmp_path: Path) -> None:
    running_server()
    server = PostgresServer()
    server.start()
    try:
        run(server.dsn(), "create table t (id int primary key, v int)")
        run(server.dsn(), "alter table t replica identity full")
        reader = reader_of(ms.postgres_changes(server.dsn(), "t", slot="s1", snapshot=False), batch_rows=3)
        reader.read()
        seen: list[dict[str, Any]] = []
        chance = random.Random(1)
        for number in range(4):
            run(server.dsn(), f"insert into t select n, 0 from generate_series({number * 10}, {number * 10 + 9}) n")
            seen += read(reader, chance.randrange(1, 8))
            server.kill()
            server.start()
        seen += read(reader, 40 - len(seen))
        assert [row["id"] for row in seen] == list(range(40))
        reader.close()
    finally:
        server.stop()
