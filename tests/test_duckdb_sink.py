"""Rows in a DuckDB file: what is there after each epoch, whatever happens, and what is refused."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import millstream as ms
import pyarrow as pa
import pytest
from millstream.engine.errors import DataError, ExternalError, JobError, SchemaError
from millstream.engine.sink import Sink, SinkContext
from millstream.testing import check_sink
from nursery import Nursery, Start
from test_postgres_sink import VALUES, changes

ROWS = pa.RecordBatch.from_pylist([{"id": n, "name": f"n {n}"} for n in range(12)])


def run(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(path) as connection:
        return connection.execute(sql).fetchall()


@pytest.mark.parametrize("key", [None, pytest.param("id", marks=pytest.mark.slow)])
def test_a_crash_at_any_step_changes_nothing(key: str | None, tmp_path: Path) -> None:
    def fresh() -> Path:
        return tmp_path / f"{len(list(tmp_path.iterdir()))}.duckdb"

    def seen(path: Path) -> list[dict[str, Any]]:
        if not path.exists():
            return []
        return [{"id": id, "name": name} for id, name in run(path, "select id, name from t")]

    def make(path: Path) -> Sink:
        return ms.duckdb_sink(path, "t", key=key)

    rows = check_sink(fresh, make, seen, [ROWS])
    assert sorted(row["id"] for row in rows) == list(range(12))


def write(path: Path, batches: list[pa.RecordBatch], restored: int = 0, job_id: str = "j1", **options: Any) -> None:
    """One start of a job, which writes a batch per epoch."""
    sink = ms.duckdb_sink(path, options.pop("table", "t"), **options)
    sink.check(batches[0].schema)
    context = SinkContext("shop", job_id, "s1", restored + 1, 0, 1, restored)
    committer, writer = sink.committer(batches[0].schema, context), sink.writer(batches[0].schema, context)
    if restored:
        writer.restore("outbox", [pa.record_batch({"one": [0], "epoch": [restored]})], restored)
    for epoch, batch in enumerate(batches, restored + 1):
        writer.write(batch)
        committer.commit(epoch, writer.prepare(epoch, False))


@pytest.mark.parametrize("key", [None, "id"])
def test_every_type_arrives_unchanged_and_so_do_nulls(key: str | None, tmp_path: Path) -> None:
    columns = {name: pa.array([*values, None], type_) for name, (type_, values) in VALUES.items()}
    columns |= {"odd": pa.array(["a\0b", "\ufffd", None]), "pair": pa.array([{"a": 1}, {"a": None}, None])}
    batch = pa.record_batch({"id": pa.array([1, 2, 3]), **columns})
    write(tmp_path / "d", [batch.slice(0, 1), batch.slice(1)], key=key)
    # DuckDB makes Python values of times with a zone only by means of another package.
    found = run(tmp_path / "d", "select * replace (tz at time zone 'UTC' as tz) from t order by id")
    expected = [
        {**row, "tz": row["tz"] and row["tz"].astimezone(dt.UTC).replace(tzinfo=None)} for row in batch.to_pylist()
    ]
    assert found == [tuple(row.values()) for row in expected]


def test_a_changelog_is_what_remains_of_it(tmp_path: Path) -> None:
    first = changes((1, "a", 1), (2, "b", 1), (3, "c", 1), (4, "d", 1), (4, "d", -1))
    second = changes((1, "A", 1), (1, "a", -1), (2, "b", -1), (3, "c", -1), (3, "C", 1), (5, "e", -1), (5, "e", 1))
    write(tmp_path / "d", [first, second], key="id")
    assert run(tmp_path / "d", "select * from t order by id") == [(1, "A"), (3, "C")]


def test_an_epoch_whose_changes_take_each_other_back_is_as_empty_as_one_without(tmp_path: Path) -> None:
    """It publishes nothing, so the next one must not come after it."""
    write(tmp_path / "d", [changes((1, "a", 1)), changes((2, "b", 1), (2, "b", -1)), changes((3, "c", 1))], key="id")
    assert run(tmp_path / "d", "select * from t order by id") == [(1, "a"), (3, "c")]


def test_a_table_with_a_primary_key_and_other_columns_is_written_to(tmp_path: Path) -> None:
    run(tmp_path / "d", "create table t (id hugeint primary key, note varchar default 'new', name varchar not null)")
    write(tmp_path / "d", [ROWS.slice(0, 2), ROWS.slice(1, 2)], key="id")
    assert run(tmp_path / "d", "select * from t order by id") == [(n, "new", f"n {n}") for n in range(3)]


def test_a_copy_of_the_store_with_an_empty_epoch_may_not_go_on_where_another_has_rows(tmp_path: Path) -> None:
    """Found by the simulation of Kafka, seed 1289: what the other copy has published would be published again."""
    write(tmp_path / "d", [ROWS, ROWS])
    sink, copied = ms.duckdb_sink(tmp_path / "d", "t"), SinkContext("shop", "j1", "s1", 2, 0, 1, 2)
    committer, writer = sink.committer(ROWS.schema, copied), sink.writer(ROWS.schema, copied)
    writer.restore("outbox", [pa.record_batch({"one": [0], "epoch": [1]})], 2)
    writer.write(ROWS)
    with pytest.raises(JobError, match=r"has rows of epoch 2, of which the checkpoint store knows nothing"):
        committer.commit(3, writer.prepare(3, False))
    assert run(tmp_path / "d", "select count(*) from t") == [(24,)]


@pytest.mark.parametrize(
    ("made", "error"),
    [
        ("create table t (id bigint)", "no column 'name', but: id"),
        ("create table t (id integer, name varchar)", "'id' is BIGINT, which does not go into INTEGER"),
        ("create table t (id bigint, name varchar, shop integer not null)", "cannot do without shop"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_at_the_start(made: str, error: str, tmp_path: Path) -> None:
    run(tmp_path / "d", made)
    with pytest.raises(SchemaError, match=error):
        write(tmp_path / "d", [ROWS])


@pytest.mark.parametrize(
    ("columns", "error"),
    [({"a": [1], "A": [1]}, "upper and lower case"), ({"a": pa.array([1], pa.decimal256(50))}, "DuckDB has no type")],
)
def test_rows_that_go_nowhere_are_refused_when_the_job_is_built(columns: dict[str, Any], error: str) -> None:
    with pytest.raises(SchemaError, match=error):
        ms.duckdb_sink("nowhere", "t").check(pa.record_batch(columns).schema)


@pytest.mark.parametrize("options", [{"mode": "upsert"}, {"mode": "append", "key": "a"}, {"mode": "replace"}])
def test_arguments_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="mode"):
        ms.duckdb_sink("nowhere", "t", **options)


def test_a_key_must_have_a_value(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no value in its key 'id'"):
        write(tmp_path / "d", [pa.record_batch({"id": pa.array([None], pa.int64())})], key="id")


def test_a_file_ahead_of_the_store_and_a_job_that_starts_anew_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "d", [ROWS, ROWS])
    with pytest.raises(JobError, match=r"has epoch 2 of this job already.*goes on from epoch 1"):
        write(tmp_path / "d", [ROWS], restored=1)
    with pytest.raises(JobError, match=r"from another store.*again=True"):
        write(tmp_path / "d", [ROWS], job_id="j2")
    write(tmp_path / "d", [ROWS], job_id="j3", again=True)
    assert run(tmp_path / "d", "select count(*) from t") == [(36,)]


@pytest.mark.parametrize("how", ["same", "link", "symlink"])
def test_the_checkpoint_store_is_not_a_destination(how: str, tmp_path: Path) -> None:
    store = path = tmp_path / "job.duckdb"
    ms.Job("other")  # nothing of it runs: only the file matters
    run(store, "select 1")
    if how != "same":
        path = tmp_path / "link"
        os.link(store, path) if how == "link" else path.symlink_to(store)
    sink = ms.duckdb_sink(path, "t")
    context = SinkContext("shop", "j1", "s1", 1, 0, 1, store=store)
    with pytest.raises(JobError, match="is the checkpoint store of the job itself"):
        sink.committer(ROWS.schema, context)


def test_another_process_that_has_the_file_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "d"
    write(path, [ROWS])
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import duckdb; c = duckdb.connect({str(path)!r}); print(1, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(ExternalError, match="cannot be opened"):
        write(path, [ROWS], restored=1, patience="10ms")
    holder.communicate(b"\n")
    write(path, [ROWS], restored=1)
    assert run(path, "select count(*) from t") == [(24,)]


# -- killed ------------------------------------------------------------------------------------------------------

COUNT = 48
JOB = """
import millstream as ms

job = ms.Job("shop")
rows = job.read(ms.files("input/*.jsonl", name="rows"))
rows.with_columns(v=ms.col("n") * 10).write(ms.duckdb_sink("out.duckdb", "appended"))
rows.group_by("k").agg(n=ms.sum("n")).write(ms.duckdb_sink("out.duckdb", "totals", key="k"))
"""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as running:
        yield running


@pytest.mark.parametrize(
    "point",
    [
        *(pytest.param(point, marks=pytest.mark.slow) for point in ("store.after_commit@2", "duckdb.written@1")),
        "duckdb.written@4",
        "duckdb.visible@3",
    ],
)
def test_a_job_killed_anywhere_has_written_each_row_once(point: str, tmp_path: Path, nursery: Nursery) -> None:
    (tmp_path / "input").mkdir()
    for part in range(4):
        lines = "".join(json.dumps({"n": n, "k": n % 5}) + "\n" for n in range(part, COUNT, 4))
        (tmp_path / "input" / f"{part}.jsonl").write_text(lines)
    (tmp_path / "job.py").write_text(JOB)
    name, _, hits = point.partition("@")
    assert nursery.run(Start(str(tmp_path), failpoint=f"{name}=kill@{hits}")).killed
    # Once more, in what the next start repeats.
    nursery.run(Start(str(tmp_path), failpoint=f"{name}=kill"))
    assert nursery.run(Start(str(tmp_path))).outcome in ("finished", "already finished")
    out = tmp_path / "out.duckdb"
    assert run(out, "select n, v from appended order by n") == [(n, 10 * n) for n in range(COUNT)]
    assert run(out, "select k, n from totals order by k") == [(k, sum(range(k, COUNT, 5))) for k in range(5)]
