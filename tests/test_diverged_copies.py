"""Two copies of one store, both run on: the second to commit an epoch of the same number finds out, and is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import millstream as ms
import psycopg
import pyarrow as pa
import pytest
from millstream.engine.errors import JobError
from millstream.engine.sink import Committable, Committer, Sink, SinkContext
from nursery import End, Nursery, Start
from servers.postgres import running_server

ROWS = pa.RecordBatch.from_pylist([{"id": n, "name": f"n {n}"} for n in range(12)])


@dataclass(frozen=True)
class Place:
    """A destination: its sink, what is in it, and how to give it the marker of a version that knew no digests."""

    sink: Sink
    ids: Callable[[], list[int]]
    age: Callable[[], object]


def postgres(folder: Path, dsn: str) -> Place:
    def run(sql: str) -> list[Any]:
        with psycopg.connect(dsn) as connection:
            cursor = connection.execute(sql)
            return [row[0] for row in cursor] if cursor.description else []

    sink = ms.postgres_sink(dsn, "t", create=True)
    return Place(
        sink, lambda: run("select id from t"), lambda: run("alter table millstream_progress drop column digest")
    )


def in_duckdb(folder: Path) -> Place:
    def run(sql: str) -> list[Any]:
        with duckdb.connect(folder / "t.duckdb") as connection:
            return [row[0] for row in connection.execute(sql).fetchall()]

    return Place(
        ms.duckdb_sink(folder / "t.duckdb", "t"),
        lambda: run("select id from t"),
        lambda: run("alter table millstream_progress drop column digest"),
    )


def delta(folder: Path) -> Place:
    deltalake = pytest.importorskip("deltalake", reason="pip install 'millstream[delta]'")

    def ids() -> list[int]:
        found: list[int] = deltalake.DeltaTable(folder / "t").to_pyarrow_table()["id"].to_pylist()
        return found

    def age() -> None:
        for path in (folder / "t" / "_delta_log").glob("*.json"):
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(line for line in lines if " digest" not in line))

    return Place(ms.delta_sink(folder / "t", create=True, hold_bytes=0), ids, age)


def iceberg(folder: Path) -> Place:
    pyiceberg = pytest.importorskip("pyiceberg.catalog", reason="pip install 'millstream[iceberg]'")
    settings = {"type": "sql", "uri": f"sqlite:///{folder}/c.db", "warehouse": f"file://{folder}/warehouse"}
    key = "millstream.j1.s1"

    def table() -> Any:
        return pyiceberg.load_catalog("default", **settings).load_table("shop.t")

    def ids() -> list[int]:
        found: list[int] = table().scan().to_arrow()["id"].to_pylist()
        return found

    def age() -> None:
        marker = json.loads(table().properties[key])
        del marker["digest"]
        with table().transaction() as transaction:
            transaction.set_properties({key: json.dumps(marker)})

    return Place(ms.iceberg_sink(settings, "shop.t", create=True, hold_bytes=0), ids, age)


@pytest.fixture(params=["postgres", "duckdb", "delta", "iceberg"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "postgres":
        with running_server().database() as dsn:
            yield postgres(tmp_path, dsn)
    else:
        yield {"duckdb": in_duckdb, "delta": delta, "iceberg": iceberg}[request.param](tmp_path)


def context(start: int, restored: int) -> SinkContext:
    return SinkContext("shop", "j1", "s1", start, 0, 1, restored)


def begin(place: Place, start: int, restored: int) -> Committer:
    return place.sink.committer(ROWS.schema, context(start, restored))


def prepared(place: Place, epoch: int, rows: pa.RecordBatch) -> list[Committable]:
    """What the checkpoint of a copy holds of an epoch."""
    writer = place.sink.writer(ROWS.schema, context(epoch, 0))
    writer.write(rows)
    return list(writer.prepare(epoch, False))


def test_what_another_copy_has_published_is_not_taken_for_this_ones(place: Place) -> None:
    ours, theirs = prepared(place, 1, ROWS.slice(0, 5)), prepared(place, 1, ROWS.slice(5, 3))
    first = begin(place, 1, 0)
    first.commit(1, theirs)
    first.close()
    for start in (2, 3):  # registering does not forget it
        second = begin(place, start, 1)
        with pytest.raises(JobError, match=r"has other rows of epoch 1 than the checkpoint store: a copy of the store"):
            second.commit(1, ours)
        second.close()
    third = begin(place, 4, 1)
    third.commit(1, theirs)  # those of the copy that has published
    third.close()
    assert sorted(place.ids()) == [5, 6, 7]


def test_a_marker_without_a_digest_is_gone_on_from(place: Place) -> None:
    before = begin(place, 1, 0)
    rows = prepared(place, 1, ROWS.slice(0, 5))
    before.commit(1, rows)
    before.close()
    place.age()
    after = begin(place, 2, 1)
    after.commit(1, rows)
    after.commit(2, [Committable({**c.payload, "after": 1}) for c in prepared(place, 2, ROWS.slice(5))])
    with pytest.raises(JobError, match=r"has other rows of epoch 2"):
        after.commit(2, rows)
    after.close()
    assert sorted(place.ids()) == list(range(12))


def test_who_may_not_change_an_old_progress_table_is_told_what_to_do(tmp_path: Path) -> None:
    with running_server().database() as dsn, psycopg.connect(dsn, autocommit=True) as owner:
        place = postgres(tmp_path, dsn)
        begin(place, 1, 0).close()
        place.age()
        owner.execute("create role clerk login")
        try:
            owner.execute("grant select, insert, update, delete on t, millstream_progress to clerk")
            clerk = postgres(tmp_path, dsn.replace("millstream@", "clerk@"))
            with pytest.raises(JobError, match=r"must be owner.*ALTER TABLE millstream_progress ADD COLUMN digest"):
                begin(clerk, 2, 0)
            owner.execute("alter table millstream_progress add column digest text not null default ''")
            begin(clerk, 2, 0).close()
        finally:
            owner.execute("drop owned by clerk")
            owner.execute("drop role clerk")


JOB = """
import millstream as ms

job = ms.Job("shop")
job.read(ms.files("input/*.jsonl", schema={"n": int}, name="rows")).write(ms.duckdb_sink("t.duckdb", "t"))
"""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as running:
        yield running


def test_a_whole_job_of_which_two_copies_went_on(tmp_path: Path, nursery: Nursery) -> None:
    """One is killed between its checkpoint and the table; meanwhile the other goes on, and reads something else."""

    def run(store: str, failpoint: str = "") -> End:
        return nursery.run(Start(str(tmp_path), parallelism=1, store=store, failpoint=failpoint))

    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "1.jsonl").write_text('{"n": 1}\n')
    second = tmp_path / "input" / "2.jsonl"
    second.write_text('{"n": 2}\n')
    assert run("job.duckdb", "sink.committed=kill@1").killed
    for file in filter(Path.is_file, tmp_path.glob("job.duckdb*")):
        shutil.copy(file, tmp_path / file.name.replace("job", "copy"))
    assert run("job.duckdb", "store.after_commit=kill@1").killed
    second.write_text('{"n": 3}\n')
    first, again = run("copy.duckdb"), run("copy.duckdb", "sink.committed=kill@2")
    assert "start 2 of this job has been seen" in first.log
    assert again.killed, again
    first, again = run("job.duckdb"), run("job.duckdb")
    assert "start 3 of this job has been seen" in first.log
    assert re.search(r"has other rows of epoch 2 than the checkpoint store", again.log), again
    with duckdb.connect(tmp_path / "t.duckdb") as table:
        assert table.execute("select n from t order by n").fetchall() == [(1,), (3,)]
