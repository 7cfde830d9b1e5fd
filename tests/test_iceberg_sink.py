"""Rows in an Iceberg table: what is there after each epoch, whatever happens, and what is refused."""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from millstream.connectors.iceberg_table import ours_alone
from millstream.connectors.outbox import OUTBOX, pack
from millstream.engine.errors import DataError, JobError, SchemaError
from millstream.engine.sink import Committer, Sink, SinkContext, SinkWriter
from millstream.testing import check_sink
from nursery import Nursery, Start
from test_postgres_sink import VALUES, changes

pytest.importorskip("pyiceberg", reason="pip install 'millstream[iceberg]'")

ROWS = pa.RecordBatch.from_pylist([{"id": n, "name": f"n {n}"} for n in range(12)])


def settings(folder: Path) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    return {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}


def catalog_of(folder: Path) -> Any:
    from pyiceberg.catalog import load_catalog

    return load_catalog("default", **settings(folder))


def table_of(folder: Path, name: str = "shop.t") -> Any:
    return catalog_of(folder).load_table(name)


def read(folder: Path, name: str = "shop.t") -> pa.Table:
    return table_of(folder, name).scan().to_arrow()


def seen(folder: Path, order: str = "id", name: str = "shop.t") -> list[dict[str, Any]]:
    if not catalog_of(folder).table_exists(name):
        return []
    rows: list[dict[str, Any]] = read(folder, name).sort_by(order).to_pylist()
    return rows


@pytest.mark.parametrize(("key", "hold"), [("id", "70B"), pytest.param(None, 0, marks=pytest.mark.slow)])
def test_a_crash_at_any_step_changes_nothing(key: str | None, hold: int | str, tmp_path: Path) -> None:
    def fresh() -> Path:
        return tmp_path / str(len(list(tmp_path.iterdir())))

    def make(folder: Path) -> Sink:
        return ms.iceberg_sink(settings(folder), "shop.t", key=key, create=True, hold_bytes=hold)

    rows = check_sink(fresh, make, seen, [ROWS])
    assert [row["id"] for row in rows] == list(range(12))


def start(
    folder: Path, schema: pa.Schema, restored: int = 0, job_id: str = "j1", generation: int = 0, **options: Any
) -> tuple[Committer, SinkWriter]:
    sink = ms.iceberg_sink(settings(folder), "shop.t", **{"create": True, "hold_bytes": 0, **options})
    sink.check(schema)
    context = SinkContext("shop", job_id, "s1", generation or restored + 1, 0, 1, restored)
    return sink.committer(schema, context), sink.writer(schema, context)


def write(folder: Path, batches: list[pa.RecordBatch], restored: int = 0, **options: Any) -> None:
    """One start of a job, which writes a batch per epoch."""
    committer, writer = start(folder, batches[0].schema, restored, **options)
    if restored:
        writer.restore(OUTBOX, [pa.record_batch({"one": [0], "epoch": [restored]})], restored)
    for epoch, batch in enumerate(batches, restored + 1):
        writer.write(batch)
        committer.commit(epoch, writer.prepare(epoch, False))


@pytest.mark.parametrize("key", [None, "id"])
def test_every_type_arrives_unchanged_and_so_do_nulls(key: str | None, tmp_path: Path) -> None:
    kept = {name: value for name, value in VALUES.items() if name != "span"}
    columns = {name: pa.array([*values, None], type_) for name, (type_, values) in kept.items()}
    columns |= {"pair": pa.array([{"a": 1}, {"a": None}, None]), "odd": pa.array(["a\0b", "\ufffd", None])}
    columns["map"] = pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64()))
    batch = pa.record_batch({"id": pa.array([1, 2, 3]), **columns})
    # With a key the second epoch writes the file of the first anew, of which a row remains.
    second = batch.slice(1 if key else 2)
    write(tmp_path, [batch.slice(0, 2), second], key=key)
    found = seen(tmp_path)
    assert found == batch.to_pylist()
    assert found[0]["tz"].utcoffset() == dt.timedelta(0)


def test_each_epoch_is_one_snapshot_which_readers_see_whole(tmp_path: Path) -> None:
    write(tmp_path, [ROWS.slice(0, 5), ROWS.slice(5)], partition_by="name")
    table = table_of(tmp_path)
    counts = [table.scan(snapshot_id=s.snapshot_id).to_arrow().num_rows for s in table.snapshots()]
    assert counts == [0, 5, 12]  # registered, and two epochs
    assert [f.name for f in table.spec().fields] == ["name"]
    with pytest.raises(SchemaError, match="partitioned by name, not by id"):
        write(tmp_path, [ROWS], restored=2, partition_by="id")


@pytest.mark.parametrize("key", [None, "id"])
def test_other_columns_are_null_and_narrow_types_go_into_wide_ones(key: str | None, tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path)
    catalog.create_namespace("shop")
    schema = pa.schema([("note", pa.string()), ("id", pa.int64()), ("x", pa.float64()), ("d", pa.decimal128(20, 2))])
    catalog.create_table("shop.t", schema)
    batch = pa.record_batch(
        {"d": pa.array([7], pa.int16()), "x": pa.array([0.5], pa.float32()), "id": pa.array([1], pa.uint16())}
    )
    write(tmp_path, [batch] * (2 if key else 1), create=False, key=key)
    assert seen(tmp_path) == [{"note": None, "id": 1, "x": 0.5, "d": 7}]


@pytest.mark.parametrize(
    ("schema", "error"),
    [
        ([("id", pa.int64())], "no column 'name', but: id"),
        ([("id", pa.int32()), ("name", pa.string())], "'id' is stored as int64, which does not go into int32"),
        ([("id", pa.int64()), ("name", pa.string()), pa.field("s", pa.int64(), False)], "cannot do without s"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_at_the_start(schema: Any, error: str, tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path)
    catalog.create_namespace("shop")
    catalog.create_table("shop.t", pa.schema(schema))
    with pytest.raises(SchemaError, match=error):
        write(tmp_path, [ROWS])


def test_arguments_are_checked(tmp_path: Path) -> None:
    for table in ("t", ".t", "shop."):
        with pytest.raises(JobError, match="a namespace and a name"):
            ms.iceberg_sink("lake", table)
    with pytest.raises(SchemaError, match="no column 'b' to partition by"):
        ms.iceberg_sink("lake", "a.t", partition_by="b").check(pa.schema({"a": pa.int64()}))
    with pytest.raises(SchemaError, match="Iceberg has no type for duration"):
        ms.iceberg_sink("lake", "a.t").check(pa.schema({"a": pa.duration("s")}))
    with pytest.raises(JobError, match=r"there is no table 'shop.t'"):
        write(tmp_path, [ROWS], create=False)


def test_a_value_that_the_table_does_not_take_is_found_before_the_checkpoint(tmp_path: Path) -> None:
    batch = pa.record_batch({"a": pa.array([1], pa.timestamp("ns"))})
    _, writer = start(tmp_path, batch.schema)
    with pytest.raises(DataError, match="without loss"):
        writer.write(batch)


def test_secrets_are_not_part_of_what_it_is_called() -> None:
    sink = ms.iceberg_sink({"type": "sql", "uri": "postgresql://me:secret@db.example/lake", "token": "x"}, "a.t")
    assert "secret" not in sink.identity() + repr(sink)
    assert "db.example/lake" in sink.identity()


# -- upserts ------------------------------------------------------------------------------------------------------


def test_a_changelog_is_what_remains_of_it(tmp_path: Path) -> None:
    first = changes((1, "a", 1), (2, "b", 1), (3, "c", 1), (4, "d", 1), (4, "d", -1))
    second = changes((1, "A", 1), (1, "a", -1), (2, "b", -1), (3, "c", -1), (3, "C", 1), (5, "e", -1), (5, "e", 1))
    third = changes((1, "A", -1), (3, "C", -1), (9, "never there", -1))
    write(tmp_path, [first, second], key="id")
    assert seen(tmp_path) == [{"id": 1, "v": "A"}, {"id": 3, "v": "C"}]
    write(tmp_path, [third, changes((7, "only", -1))], restored=2, key="id")
    assert seen(tmp_path) == []


@given(
    epochs=st.lists(st.lists(st.tuples(st.integers(-3, 3), st.sampled_from("xyz")), max_size=6), max_size=5),
    partitioned=st.booleans(),
)
@examples(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_upserts_by_several_columns_are_those_of_a_dict(
    epochs: list[list[tuple[int, str]]], partitioned: bool, tmp_path: Path
) -> None:
    folder, number = tmp_path / str(len(list(tmp_path.iterdir()))), 0
    known: dict[tuple[int, str], int] = {}
    options = {"key": ("a", "b"), "partition_by": "b" if partitioned else ()}
    committer, writer = start(folder, pa.schema({"a": pa.int64(), "b": pa.string(), "n": pa.int64()}), **options)
    for epoch, keys in enumerate(epochs, 1):
        for a, b in keys:
            number += 1
            known[a, b] = number
            writer.write(pa.RecordBatch.from_pylist([{"a": a, "b": b, "n": number}]))
        committer.commit(epoch, writer.prepare(epoch, False))
        assert {(row["a"], row["b"]): row["n"] for row in seen(folder, "n")} == known
        assert read(folder).num_rows == len(known)


@pytest.mark.parametrize("key", ["id", "name"])
def test_an_upsert_is_one_snapshot_and_leaves_other_files_as_they_are(key: str, tmp_path: Path) -> None:
    write(tmp_path, [ROWS.slice(0, 4), ROWS.slice(4, 4), ROWS.slice(8)], key=key)
    before = {task.file.file_path for task in table_of(tmp_path).scan().plan_files()}
    write(tmp_path, [ROWS.slice(5, 1)], restored=3, key=key)
    table = table_of(tmp_path)
    counts = [table.scan(snapshot_id=s.snapshot_id).to_arrow().num_rows for s in table.snapshots()]
    assert counts == [0, 4, 8, 12, 12, 12]  # registered twice
    after = {task.file.file_path for task in table.scan().plan_files()}
    assert (len(before), len(after), len(before & after)) == (3, 4, 2)
    assert seen(tmp_path) == ROWS.to_pylist()


# -- who may write -----------------------------------------------------------------------------------------------


def test_a_table_ahead_of_the_store_and_a_job_that_starts_anew_are_refused(tmp_path: Path) -> None:
    write(tmp_path, [ROWS, ROWS])
    with pytest.raises(JobError, match=r"has epoch 2 of this job already.*goes on from epoch 1"):
        write(tmp_path, [ROWS], restored=1)
    with pytest.raises(JobError, match=r"from another store.*again=True"):
        write(tmp_path, [ROWS], job_id="j2")
    write(tmp_path, [ROWS], job_id="j3", again=True)
    assert read(tmp_path).num_rows == 36


def test_a_table_that_was_rolled_back_is_refused_though_its_properties_stay(tmp_path: Path) -> None:
    write(tmp_path, [ROWS, ROWS])
    table = table_of(tmp_path)
    table.manage_snapshots().rollback_to_snapshot(table.snapshots()[1].snapshot_id).commit()
    committer, _ = start(tmp_path, ROWS.schema, restored=2)
    with pytest.raises(JobError, match=r"knows only epoch 1, but epoch 2 may have been published"):
        committer.commit(3, pack(pa.Table.from_batches([ROWS]), 2))


def test_a_marker_outlives_the_snapshots_that_had_it(tmp_path: Path) -> None:
    write(tmp_path, [ROWS, ROWS])
    table_of(tmp_path).append(pa.table({"id": [99], "name": ["other"]}))
    table = table_of(tmp_path)
    old = [s.snapshot_id for s in table.snapshots()[:-1]]
    table.maintenance.expire_snapshots().by_ids(old).commit()
    with pytest.raises(JobError, match="has epoch 2 of this job already"):
        write(tmp_path, [ROWS], restored=1)
    write(tmp_path, [ROWS], restored=2)
    assert read(tmp_path).num_rows == 37


def test_a_suspended_start_writes_nothing_once_another_has_taken_over(tmp_path: Path) -> None:
    old, old_writer = start(tmp_path, ROWS.schema)
    old_writer.write(ROWS)
    late = old_writer.prepare(1, False)
    write(tmp_path, [ROWS], generation=2)
    with pytest.raises(JobError, match="another process that runs this job has taken over"):
        old.commit(1, late)
    assert read(tmp_path).num_rows == 12


def test_two_stores_of_one_job_that_start_at_once_do_not_both_write(tmp_path: Path) -> None:
    starts = [start(tmp_path, ROWS.schema, job_id=job_id) for job_id in ("j1", "j2")]
    (committer, writer), (other, other_writer) = starts
    for each in (writer, other_writer):
        each.write(ROWS)
    committer.commit(1, writer.prepare(1, False))
    with pytest.raises(JobError, match="from another store"):
        other.commit(1, other_writer.prepare(1, False))
    assert read(tmp_path).num_rows == 12


@pytest.mark.parametrize("first", [True, False])
def test_of_two_that_have_read_the_same_marker_one_commits(first: bool, tmp_path: Path) -> None:
    """What all of it stands on: no commit passes if there is a snapshot that was not there when the table was read."""
    from pyiceberg.exceptions import CommitFailedException

    catalog = catalog_of(tmp_path)
    catalog.create_namespace("shop")
    catalog.create_table("shop.t", ROWS.schema)
    if not first:
        table_of(tmp_path).append(pa.Table.from_batches([ROWS]))
    one, two = ours_alone(table_of(tmp_path)), ours_alone(table_of(tmp_path))
    with one.transaction() as transaction:
        transaction.set_properties({"marker": "1"})
        transaction.append(pa.Table.from_batches([ROWS]))
    transaction = two.transaction()
    transaction.set_properties({"marker": "1"})
    transaction.append(pa.Table.from_batches([ROWS]))
    with pytest.raises(CommitFailedException):
        transaction.commit_transaction()
    assert read(tmp_path).num_rows == (12 if first else 24)
    assert "commit.retry.num-retries" not in table_of(tmp_path).properties


@pytest.mark.parametrize("key", [None, "id"])
def test_others_that_write_at_the_same_time_are_in_nobodys_way(key: str | None, tmp_path: Path) -> None:
    committer, writer = start(tmp_path, ROWS.schema, key=key)
    over = threading.Event()

    def disturb() -> None:
        number = 1000
        while not over.wait(0.1):
            number += 1
            table_of(tmp_path).append(pa.table({"id": [number], "name": ["other"]}))

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        for epoch in range(1, 7):
            writer.write(ROWS.slice(2 * (epoch - 1), 2))
            committer.commit(epoch, writer.prepare(epoch, False))
    finally:
        over.set()
        disturber.join()
    ids = [row["id"] for row in seen(tmp_path)]
    assert ids[:12] == list(range(12))
    assert len(ids) == len(set(ids))


# -- killed ------------------------------------------------------------------------------------------------------

COUNT = 48
JOB = """
import millstream as ms

job = ms.Job("shop")
rows = job.read(ms.files("input/*.jsonl", name="rows"))
rows.with_columns(v=ms.col("n") * 10).write(ms.iceberg_sink({settings!r}, "shop.rows", create=True, hold_bytes=0))
"""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as running:
        yield running


@pytest.mark.parametrize(
    "point",
    [
        *(pytest.param(point, marks=pytest.mark.slow) for point in ("store.after_commit@2", "iceberg.visible@1")),
        "iceberg.written@2",
    ],
)
def test_a_job_killed_anywhere_has_written_each_row_once(point: str, tmp_path: Path, nursery: Nursery) -> None:
    (tmp_path / "input").mkdir()
    for part in range(4):
        lines = "".join(json.dumps({"n": n, "k": n % 5}) + "\n" for n in range(part, COUNT, 4))
        (tmp_path / "input" / f"{part}.jsonl").write_text(lines)
    lake = tmp_path / "lake"
    (tmp_path / "job.py").write_text(JOB.format(settings=settings(lake)))
    name, _, hits = point.partition("@")
    assert nursery.run(Start(str(tmp_path), failpoint=f"{name}=kill@{hits}")).killed
    ids = [row["n"] for row in seen(lake, "n", "shop.rows")]
    assert len(ids) == len(set(ids)), "rows are there twice"
    # Once more, in what the next start repeats.
    nursery.run(Start(str(tmp_path), failpoint=f"{name}=kill"))
    assert nursery.run(Start(str(tmp_path))).outcome in ("finished", "already finished")
    assert seen(lake, "n", "shop.rows") == [{"n": n, "k": n % 5, "v": 10 * n} for n in range(COUNT)]
