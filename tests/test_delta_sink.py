"""Rows in a Delta Lake table: what is there after each epoch, whatever happens, and what is refused."""

from __future__ import annotations

import datetime as dt
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream.connectors.delta_progress import Progress, new_owner
from millstream.connectors.held_rows import HELD
from millstream.connectors.outbox import pack
from millstream.connectors.outbox_marker import Publisher
from millstream.engine.errors import DataError, JobError, SchemaError
from millstream.engine.sink import Committer, Sink, SinkContext, SinkWriter
from millstream.engine.time import ManualClock
from millstream.testing import check_sink
from nursery import Nursery, Start
from test_postgres_sink import VALUES, changes

deltalake = pytest.importorskip("deltalake", reason="pip install 'millstream[delta]'")

ROWS = pa.RecordBatch.from_pylist([{"id": n, "name": f"n {n}"} for n in range(12)])


def table_of(path: Path) -> Any:
    return deltalake.DeltaTable(str(path))


def read(path: Path) -> pa.Table:
    return table_of(path).to_pyarrow_table()


def seen(path: Path, order: str = "id") -> list[dict[str, Any]]:
    if not deltalake.DeltaTable.is_deltatable(str(path)):
        return []
    rows: list[dict[str, Any]] = read(path).sort_by(order).to_pylist()
    return rows


@pytest.mark.parametrize("hold", [0, "70B", "1MB"])
@pytest.mark.parametrize("key", [None, "id"])
def test_a_crash_at_any_step_changes_nothing(key: str | None, hold: int | str, tmp_path: Path) -> None:
    def fresh() -> Path:
        return tmp_path / f"t {len(list(tmp_path.iterdir()))}#ü"

    def make(path: Path) -> Sink:
        return ms.delta_sink(path, key=key, create=True, hold_bytes=hold)

    rows = check_sink(fresh, make, seen, [ROWS])
    assert [row["id"] for row in rows] == list(range(12))


def start(
    path: Path,
    schema: pa.Schema,
    restored: int = 0,
    job_id: str = "j1",
    generation: int = 0,
    last: int | None = None,
    **options: Any,
) -> tuple[Committer, SinkWriter]:
    """One start of a job; ``last`` is the last epoch with rows, if that is not the one it goes on from."""
    sink = ms.delta_sink(path, **{"create": True, "hold_bytes": 0, **options})
    sink.check(schema)
    context = SinkContext("shop", job_id, "s1", generation or restored + 1, 0, 1, restored)
    committer, writer = sink.committer(schema, context), sink.writer(schema, context)
    if restored if last is None else last:
        writer.restore("outbox", [pa.record_batch({"one": [0], "epoch": [restored if last is None else last]})], 0)
    return committer, writer


def write(path: Path, batches: list[pa.RecordBatch], restored: int = 0, **options: Any) -> None:
    """One start of a job, which writes a batch per epoch."""
    committer, writer = start(path, batches[0].schema, restored, **options)
    for epoch, batch in enumerate(batches, restored + 1):
        writer.write(batch)
        committer.commit(epoch, writer.prepare(epoch, False))


@pytest.mark.parametrize("key", [None, "id"])
def test_every_type_arrives_unchanged_and_so_do_nulls(key: str | None, tmp_path: Path) -> None:
    kept = {name: value for name, value in VALUES.items() if name not in ("time", "span")}
    columns = {name: pa.array([*values, None], type_) for name, (type_, values) in kept.items()}
    columns |= {"pair": pa.array([{"a": 1}, {"a": None}, None]), "odd": pa.array(["a\0b", "\ufffd", None])}
    columns["map"] = pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64()))
    batch = pa.record_batch({"id": pa.array([1, 2, 3]), **columns})
    write(tmp_path / "t", [batch.slice(0, 1), batch.slice(1)], key=key)
    found = seen(tmp_path / "t")
    assert found == batch.to_pylist()
    assert found[0]["tz"].utcoffset() == dt.timedelta(0)


def test_a_changelog_is_what_remains_of_it(tmp_path: Path) -> None:
    first = changes((1, "a", 1), (2, "b", 1), (3, "c", 1), (4, "d", 1), (4, "d", -1))
    second = changes((1, "A", 1), (1, "a", -1), (2, "b", -1), (3, "c", -1), (3, "C", 1), (5, "e", -1), (5, "e", 1))
    write(tmp_path / "t", [first, second], key="id")
    assert seen(tmp_path / "t") == [{"id": 1, "v": "A"}, {"id": 3, "v": "C"}]


def test_an_epoch_that_changes_nothing_is_published_too(tmp_path: Path) -> None:
    # 7 was never there: a merge of that makes no commit of its own, and the next epoch must not find a gap.
    write(tmp_path / "t", [changes((1, "a", 1)), changes((7, "x", -1)), changes((2, "b", 1))], key="id")
    assert seen(tmp_path / "t") == [{"id": 1, "v": "a"}, {"id": 2, "v": "b"}]


def test_each_epoch_is_one_version_which_readers_see_whole(tmp_path: Path) -> None:
    path = tmp_path / "t"
    write(path, [ROWS.slice(0, 5), ROWS.slice(5)], partition_by="name")
    versions = [
        deltalake.DeltaTable(str(path), version=n).to_pyarrow_table().num_rows
        for n in range(table_of(path).version() + 1)
    ]
    assert versions == [0, 0, 5, 12]  # made, registered, and two epochs
    assert table_of(path).metadata().partition_columns == ["name"]


def test_other_columns_are_null_and_narrow_types_go_into_wide_ones(tmp_path: Path) -> None:
    schema = pa.schema([("note", pa.string()), ("id", pa.int64()), ("x", pa.float64()), ("d", pa.decimal128(20, 2))])
    deltalake.DeltaTable.create(str(tmp_path / "t"), schema)
    batch = pa.record_batch(
        {"d": pa.array([7], pa.int16()), "x": pa.array([0.5], pa.float32()), "id": pa.array([1], pa.uint16())}
    )
    write(tmp_path / "t", [batch], create=False)
    assert seen(tmp_path / "t") == [{"note": None, "id": 1, "x": 0.5, "d": 7}]


@pytest.mark.parametrize(
    ("schema", "options", "error"),
    [
        ([("id", pa.int64())], {}, "no column 'name', but: id"),
        ([("id", pa.int32()), ("name", pa.string())], {}, "'id' is stored as int64, which does not go into int32"),
        ([("id", pa.int64()), ("name", pa.string()), pa.field("s", pa.int64(), False)], {}, "cannot do without s"),
        ([("id", pa.int64()), ("name", pa.string())], {"partition_by": "id"}, "partitioned by nothing, not by id"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_at_the_start(
    schema: Any, options: dict[str, Any], error: str, tmp_path: Path
) -> None:
    deltalake.DeltaTable.create(str(tmp_path / "t"), pa.schema(schema))
    with pytest.raises(SchemaError, match=error):
        write(tmp_path / "t", [ROWS], **options)


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ({"a": [1], "A": [1]}, "upper and lower case"),
        ({"a b": [1]}, "because of ' '"),
        ({"a": pa.array([1], pa.duration("s"))}, r"column 'a': Delta Lake has no type for duration\[s\]"),
        ({"a": pa.array([[None]], pa.list_(pa.null()))}, "no type for null"),
    ],
)
def test_rows_that_go_nowhere_are_refused_when_the_job_is_built(columns: dict[str, Any], error: str) -> None:
    with pytest.raises(SchemaError, match=error):
        ms.delta_sink("nowhere").check(pa.record_batch(columns).schema)


@pytest.mark.parametrize("options", [{"mode": "upsert"}, {"mode": "append", "key": "a"}, {"mode": "replace"}])
def test_arguments_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="mode"):
        ms.delta_sink("nowhere", **options)
    with pytest.raises(JobError, match="escape"):
        ms.delta_sink("a%20b")
    with pytest.raises(SchemaError, match="no column 'b' to partition by"):
        ms.delta_sink("nowhere", partition_by="b").check(pa.schema({"a": pa.int64()}))


def test_a_table_is_made_only_if_asked_for(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="there is no Delta table"):
        write(tmp_path / "t", [ROWS], create=False)
    assert not (tmp_path / "t").exists()


def test_a_store_that_lets_commits_overwrite_each_other_is_refused() -> None:
    sink = ms.delta_sink("s3://bucket/t", options={"AWS_S3_ALLOW_UNSAFE_RENAME": "true"})
    with pytest.raises(JobError, match="one commit overwrite another"):
        sink.writer(ROWS.schema, SinkContext("shop", "j1", "s1", 1, 0, 1))


@pytest.mark.parametrize(
    ("batch", "nullable", "error"),
    [
        (
            pa.record_batch({"a": pa.array([1], pa.timestamp("ns"))}),
            True,
            "does not go into timestamp.us. without loss",
        ),
        (pa.record_batch({"a": pa.array([None], pa.int64())}), False, "no value in 'a', which the table demands"),
    ],
)
def test_a_value_that_the_table_does_not_take_is_found_before_the_checkpoint(
    batch: pa.RecordBatch, nullable: bool, error: str, tmp_path: Path
) -> None:
    if not nullable:
        deltalake.DeltaTable.create(str(tmp_path / "t"), pa.schema([pa.field("a", pa.int64(), nullable=False)]))
    _, writer = start(tmp_path / "t", batch.schema)
    with pytest.raises(DataError, match=error):
        writer.write(batch)


def test_what_only_the_table_can_know_fails_the_job_and_the_rows_wait(tmp_path: Path) -> None:
    path = tmp_path / "t"
    committer, writer = start(path, ROWS.schema)
    table_of(path).alter.add_constraint({"few": "id < 5"})
    writer.write(ROWS)
    rows = writer.prepare(1, False)
    with pytest.raises(ms.MillstreamError, match=r"writing epoch 1 .* failed"):
        committer.commit(1, rows)
    assert seen(path) == []
    table_of(path).alter.drop_constraint("few")
    committer.commit(1, rows)
    assert read(path).num_rows == 12


# -- who may write -----------------------------------------------------------------------------------------------


def test_a_table_ahead_of_the_store_and_a_job_that_starts_anew_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    write(path, [ROWS, ROWS])
    with pytest.raises(JobError, match=r"has epoch 2 of this job already.*goes on from epoch 1"):
        write(path, [ROWS], restored=1)
    with pytest.raises(JobError, match=r"from another store.*again=True"):
        write(path, [ROWS], job_id="j2")
    write(path, [ROWS], job_id="j3", again=True)
    assert read(path).num_rows == 36


def test_a_table_that_was_put_back_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    write(path, [ROWS, ROWS])
    (path / "_delta_log" / "00000000000000000003.json").unlink()
    with pytest.raises(JobError, match=r"knows only epoch 1, but epoch 2 may have been published"):
        start(path, ROWS.schema, restored=2)[0].commit(3, pack(pa.Table.from_batches([ROWS]), 2))


def test_a_suspended_start_writes_nothing_once_another_has_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "t"
    old, old_writer = start(path, ROWS.schema)
    old_writer.write(ROWS)
    late = old_writer.prepare(1, False)
    write(path, [ROWS], generation=2)
    with pytest.raises(JobError, match="another process that runs this job has taken over"):
        old.commit(1, late)
    assert read(path).num_rows == 12


def test_two_stores_of_one_job_that_start_at_once_do_not_both_write(tmp_path: Path) -> None:
    path = tmp_path / "t"
    starts = [start(path, ROWS.schema, job_id=job_id) for job_id in ("j1", "j2")]
    (committer, writer), (other, other_writer) = starts
    for each in (writer, other_writer):
        each.write(ROWS)
    committer.commit(1, writer.prepare(1, False))
    with pytest.raises(JobError, match="from another store"):
        other.commit(1, other_writer.prepare(1, False))
    assert read(path).num_rows == 12


@pytest.mark.parametrize("key", [None, "id"])
def test_others_that_write_at_the_same_time_are_in_nobodys_way(key: str | None, tmp_path: Path) -> None:
    path = tmp_path / "t"
    committer, writer = start(path, ROWS.schema, key=key)
    over = threading.Event()

    def disturb() -> None:
        number = 1000
        # An upsert that reads the table is overtaken by every append: it comes through in a pause.
        while not over.wait(0 if key is None else 0.2):
            number += 1
            more = pa.table({"id": [number], "name": ["other"]})
            deltalake.write_deltalake(str(path), more, mode="append")

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        for epoch in range(1, 7):
            writer.write(ROWS.slice(2 * (epoch - 1), 2))
            committer.commit(epoch, writer.prepare(epoch, False))
    finally:
        over.set()
        disturber.join()
    ids = [row["id"] for row in seen(path)]
    assert ids[:12] == list(range(12))
    assert len(ids) == len(set(ids))
    table_of(path).optimize.compact()
    table_of(path).create_checkpoint()
    write(path, [ROWS.slice(0, 1)], restored=6, key=key)
    assert read(path).num_rows == len(ids) + (key is None)


def test_of_two_that_have_read_the_same_marker_one_commits(tmp_path: Path) -> None:
    """What all of it stands on: deltalake lets no commit pass that a later one with the same name has overtaken."""
    path = tmp_path / "t"
    write(path, [ROWS])
    progress = Progress(Publisher("t", "t", SinkContext("shop", "j1", "s1", 1, 0, 1), new_owner()), False)
    one, two, three, four = (table_of(path) for _ in range(4))
    rows = pa.table({"id": [1], "name": ["x"]})
    deltalake.write_deltalake(one, rows, mode="append", commit_properties=progress.properties(2, "7"))
    with pytest.raises(deltalake.exceptions.CommitFailedError, match="Concurrent transaction"):
        deltalake.write_deltalake(two, rows, mode="append", commit_properties=progress.properties(2, "7"))
    with pytest.raises(deltalake.exceptions.CommitFailedError, match="concurrent transactions added new data"):
        three.merge(
            rows, "s.id = t.id", source_alias="s", target_alias="t", commit_properties=progress.properties(2, "7")
        ).when_matched_update_all().execute()
    with pytest.raises(deltalake.exceptions.CommitFailedError, match="Concurrent transaction"):
        progress.mark(four, 2, "7")


def test_a_file_that_a_power_cut_took_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t"
    committer, writer = start(path, ROWS.schema)
    writer.write(ROWS)
    rows = writer.prepare(1, False)
    committer.commit(1, rows)
    (file,) = path.glob("*.parquet")
    os.truncate(file, 0)
    again, _ = start(path, ROWS.schema, restored=1)
    with pytest.raises(JobError, match="a file of epoch 1 was lost"):
        again.commit(1, rows)


# -- held back ---------------------------------------------------------------------------------------------------


def test_rows_wait_until_there_are_many_or_they_are_old(tmp_path: Path) -> None:
    path, clock = tmp_path / "t", ManualClock()
    committer, writer = start(path, ROWS.schema, hold_bytes="150B", roll_age="1m", clock=clock)
    versions = []
    for epoch, (rows, seconds) in enumerate([(1, 0), (1, 59), (1, 1), (1, 0), (8, 0)], 1):
        clock.advance(seconds)
        writer.write(ROWS.slice(0, rows))
        committer.commit(epoch, writer.prepare(epoch, False))
        writer.snapshot(epoch)
        versions.append(read(path).num_rows)
    assert versions == [0, 0, 3, 3, 12]
    writer.write(ROWS.slice(0, 1))
    committer.commit(6, writer.prepare(6, True))
    assert read(path).num_rows == 13, "the end holds nothing back"


def hold(writer: SinkWriter, epoch: int, rows: pa.RecordBatch = ROWS) -> pa.RecordBatch:
    """Write rows that are held back at a barrier; return them as the state has them."""
    writer.write(rows)
    assert writer.prepare(epoch, False) == []
    (batch,) = writer.snapshot(epoch)[HELD].rows.to_batches()
    return batch


def test_others_may_change_the_table_while_rows_are_held_back(tmp_path: Path) -> None:
    path = tmp_path / "t"
    write(path, [ROWS.slice(0, 2)])
    committer, writer = start(path, ROWS.schema, restored=1, hold_bytes="1MB")
    hold(writer, 2, ROWS.slice(2))
    deltalake.write_deltalake(str(path), pa.table({"id": [90], "name": ["other"]}), mode="append")
    table = table_of(path)
    table.optimize.compact()
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    table.create_checkpoint()
    table.cleanup_metadata()
    table.alter.add_columns(deltalake.Field("note", deltalake.schema.PrimitiveType("string")))
    committer.commit(3, writer.prepare(3, True))
    found = seen(path)
    assert [row["id"] for row in found] == [*range(12), 90]
    assert {row["note"] for row in found} == {None}


def test_rows_that_the_table_no_longer_takes_wait_until_it_does(tmp_path: Path) -> None:
    path = tmp_path / "t"
    committer, writer = start(path, ROWS.schema, hold_bytes="1MB")
    held = hold(writer, 1)
    narrow = pa.table({"id": pa.array([], pa.int64())})
    deltalake.write_deltalake(str(path), narrow, mode="overwrite", schema_mode="overwrite")
    rows = writer.prepare(2, True)
    with pytest.raises(SchemaError, match=r"no column 'name'.*changed since the job started.*waits in the checkpoint"):
        committer.commit(2, rows)
    with pytest.raises(SchemaError, match="no column 'name'"):
        start(path, ROWS.schema, restored=1)
    table_of(path).alter.add_columns(deltalake.Field("name", deltalake.schema.PrimitiveType("string")))
    committer, writer = start(path, ROWS.schema, restored=1, generation=3, last=0)
    writer.restore(HELD, [held], 0)
    committer.commit(2, writer.prepare(2, True))
    assert seen(path) == ROWS.to_pylist()


def test_a_null_that_the_table_no_longer_takes_is_found_before_it_leaves_the_checkpoint(tmp_path: Path) -> None:
    path, nulls = tmp_path / "t", pa.record_batch({"id": pa.array([None], pa.int64())})
    held = hold(start(path, nulls.schema, hold_bytes="1MB")[1], 1, nulls)
    table = pa.table({"id": pa.array([], pa.int64())}, pa.schema([pa.field("id", pa.int64(), nullable=False)]))
    deltalake.write_deltalake(str(path), table, mode="overwrite", schema_mode="overwrite")
    _, writer = start(path, nulls.schema, restored=1)
    writer.restore(HELD, [held], 0)
    with pytest.raises(DataError, match="no value in 'id', which the table demands"):
        writer.prepare(2, False)


# -- killed ------------------------------------------------------------------------------------------------------

COUNT = 48
JOB = """
import millstream as ms

job = ms.Job("shop")
rows = job.read(ms.files("input/*.jsonl", name="rows"))
rows.with_columns(v=ms.col("n") * 10).write(ms.delta_sink("lake/appended", create=True, hold_bytes=0))
rows.group_by("k").agg(n=ms.sum("n")).write(ms.delta_sink("lake/totals", key="k", create=True, hold_bytes=0))
"""
_SLOW = ("store.after_commit@2", "delta.begun@3", "delta.written@1")
POINTS = ["delta.written@4", "delta.visible@3", *(pytest.param(point, marks=pytest.mark.slow) for point in _SLOW)]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as running:
        yield running


@pytest.mark.parametrize("point", POINTS)
def test_a_job_killed_anywhere_has_written_each_row_once(point: str, tmp_path: Path, nursery: Nursery) -> None:
    (tmp_path / "input").mkdir()
    for part in range(4):
        lines = "".join(json.dumps({"n": n, "k": n % 5}) + "\n" for n in range(part, COUNT, 4))
        (tmp_path / "input" / f"{part}.jsonl").write_text(lines)
    (tmp_path / "job.py").write_text(JOB)
    name, _, hits = point.partition("@")
    assert nursery.run(Start(str(tmp_path), failpoint=f"{name}=kill@{hits}")).killed
    ids = [row["n"] for row in seen(tmp_path / "lake" / "appended", "n")]
    assert len(ids) == len(set(ids)), "rows are there twice"
    # Once more, in what the next start repeats.
    nursery.run(Start(str(tmp_path), failpoint=f"{name}=kill"))
    assert nursery.run(Start(str(tmp_path))).outcome in ("finished", "already finished")
    assert seen(tmp_path / "lake" / "appended", "n") == [{"n": n, "k": n % 5, "v": 10 * n} for n in range(COUNT)]
    totals = seen(tmp_path / "lake" / "totals", "k")
    assert totals == [{"k": k, "n": sum(range(k, COUNT, 5))} for k in range(5)]
