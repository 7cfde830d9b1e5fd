"""The file sink: what is written, when, and what it says when it cannot."""

from __future__ import annotations

import datetime as dt
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from millstream.connectors.byte_size import byte_size
from millstream.connectors.files_sink import FileSink, csv, jsonl, parquet
from millstream.connectors.held_rows import HELD
from millstream.connectors.roll_agreement import RollAgreement
from millstream.engine import failpoints
from millstream.engine.errors import ExternalError, JobError, SchemaError
from millstream.engine.sink import Committable, SinkContext, SinkWriter
from millstream.engine.state import StateDelta
from millstream.engine.time import ManualClock

SCHEMA = pa.schema([("id", pa.int64()), ("shop", pa.string())])


def context(generation: int = 1, subtask: int = 0, parallelism: int = 1, job_id: str = "job1") -> SinkContext:
    return SinkContext("job", job_id, "sink1", generation, subtask, parallelism)


def rows(*ids: int, shop: str = "a") -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"id": list(ids), "shop": [shop] * len(ids)}, schema=SCHEMA)


def held(writer: SinkWriter) -> StateDelta | None:
    return writer.snapshot(0).get(HELD)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def ids(folder: Path) -> list[int]:
    return sorted(i for p in folder.rglob("*.parquet") for i in pq.ParquetFile(p).read().column("id").to_pylist())


def publish(sink: FileSink, *batches: pa.RecordBatch, epoch: int = 1, where: SinkContext | None = None) -> None:
    """Write batches and commit them as a whole epoch."""
    where = where or context()
    writer = sink.writer(batches[0].schema, where)
    for batch in batches:
        writer.write(batch)
    sink.committer(batches[0].schema, where).commit(epoch, writer.prepare(epoch, final=True))


def prepared(sink: FileSink, first_id: int, subtasks: int = 1, generation: int = 1) -> list[Committable]:
    """Stage a file per subtask."""
    committables: list[Committable] = []
    for subtask in range(subtasks):
        writer = sink.writer(SCHEMA, context(generation, subtask, subtasks))
        writer.write(rows(first_id + subtask))
        committables += writer.prepare(1, final=True)
    return committables


@contextmanager
def armed(failpoint: str) -> Iterator[None]:
    """Fail at a fail point, and go on behind the block."""
    failpoints.arm(failpoint)
    with pytest.raises(failpoints.FailpointError):
        yield
    failpoints.disarm()


# -- formats ----------------------------------------------------------------------------------------------------

MANY_TYPES: dict[str, Any] = {
    "n": pa.array([1, None], pa.int32()),
    "x": [0.5, -1e300],
    "flag": [True, None],
    "text": ['say "hi",\nthen go', ""],
    "word": pa.array(["b", None]).dictionary_encode(),
    "day": [dt.date(2026, 1, 31), None],
    "at": [dt.datetime(2026, 1, 31, 12, 30, 0, 5), None],
    "utc": pa.array([0, 1_700_000_000_123_456], pa.timestamp("us", "UTC")),
    "price": [Decimal("12.50"), Decimal("-0.01")],
}


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("make", [parquet, csv, jsonl])
def test_duckdb_reads_every_value_back(tmp_path: Path, make: Any, compression: str) -> None:
    batch = pa.RecordBatch.from_pydict(MANY_TYPES)
    sink = make(tmp_path / "out", compression=compression)
    sink.check(batch.schema)
    publish(sink, batch)

    expected = duckdb.from_arrow(pa.Table.from_batches([batch]))
    types = dict(zip(expected.columns, map(str, expected.types), strict=True)) | {"word": "VARCHAR"}
    (path,) = (tmp_path / "out").iterdir()
    found = {
        parquet: lambda: duckdb.read_parquet(str(path)),
        csv: lambda: duckdb.read_csv(str(path), dtype=types, allow_quoted_nulls=False),
        jsonl: lambda: duckdb.sql(f"FROM read_json('{path}', columns = {types}, format = 'newline_delimited')"),
    }[make]()
    assert found.columns == expected.columns
    # As a number: DuckDB needs one more package to hand over times that have a zone.
    found, expected = (relation.project("* REPLACE (epoch_us(utc) AS utc)") for relation in (found, expected))
    assert found.fetchall() == expected.fetchall()


def test_json_lines_of_nested_values(tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_pydict({"tags": [["a"], []], "at": [{"t": dt.datetime(2026, 1, 1)}, None]})
    publish(jsonl(tmp_path / "out"), batch)
    (path,) = (tmp_path / "out").iterdir()
    assert path.read_text() == '{"tags":["a"],"at":{"t":"2026-01-01T00:00:00"}}\n{"tags":[],"at":null}\n'


def test_json_lines_keep_nanoseconds(tmp_path: Path) -> None:
    publish(jsonl(tmp_path / "out"), pa.RecordBatch.from_pydict({"t": pa.array([1], pa.timestamp("ns", "UTC"))}))
    (path,) = (tmp_path / "out").iterdir()
    assert path.read_text() == '{"t":"1970-01-01T00:00:00.000000001Z"}\n'


@pytest.mark.parametrize("atomic_epochs", [True, False])
def test_partition_columns_are_in_the_folder_names_only(tmp_path: Path, atomic_epochs: bool) -> None:
    sink = parquet(tmp_path / "out", partition_by=["shop"], atomic_epochs=atomic_epochs)
    publish(sink, rows(1, 2, shop="a/b"), rows(3, shop=".."), rows(4, shop="a/b"))
    (one, other) = sorted(p.parent.name for p in (tmp_path / "out").rglob("*.parquet"))
    assert (one, other) == ("shop=%2E%2E", "shop=a%2Fb")
    assert len(files(tmp_path / "out")[0].split("/")) == (3 if atomic_epochs else 2)
    found = duckdb.sql(f"SELECT id, shop FROM '{tmp_path}/out/**/*.parquet' ORDER BY id").fetchall()
    assert found == [(1, "a/b"), (2, "a/b"), (3, ".."), (4, "a/b")]


# -- when rows become files -------------------------------------------------------------------------------------


def test_few_rows_wait_in_the_state_and_are_handed_over_once(tmp_path: Path) -> None:
    writer = parquet(tmp_path / "out").writer(SCHEMA, context())
    writer.write(rows(1, 2))
    assert writer.prepare(1, final=False) == []
    assert held(writer).rows.column("id").to_pylist() == [1, 2]
    writer.write(rows(3))
    assert writer.prepare(2, final=False) == []
    assert held(writer).rows.column("id").to_pylist() == [3]
    assert writer.prepare(3, final=False) == []
    assert held(writer) is None


def test_rows_that_became_a_file_between_two_barriers_never_enter_the_state(tmp_path: Path) -> None:
    writer = parquet(tmp_path / "out", roll_rows=3).writer(SCHEMA, context())
    writer.write(rows(1, 2, 3))
    (staged,) = (tmp_path / ".millstream").rglob("*.staged")
    assert pq.ParquetFile(staged).read().column("id").to_pylist() == [1, 2, 3]
    assert len(writer.prepare(1, final=False)) == 1
    assert held(writer) is None


def test_rows_in_the_state_are_dropped_when_they_become_a_file(tmp_path: Path) -> None:
    writer = parquet(tmp_path / "out").writer(SCHEMA, context())
    writer.write(rows(1))
    writer.prepare(1, final=False)
    bucket = held(writer).rows.column("file").to_pylist()
    assert len(writer.prepare(2, final=True)) == 1
    assert list(held(writer).dropped) == bucket


@pytest.mark.parametrize("atomic_epochs", [True, False])
def test_rows_grow_old_across_a_restart(tmp_path: Path, atomic_epochs: bool) -> None:
    clock = ManualClock()
    sink = parquet(tmp_path / "out", roll_age="60s", atomic_epochs=atomic_epochs, clock=clock)
    clock.advance(1000)
    before = sink.writer(SCHEMA, context())
    before.write(rows(1))
    assert before.prepare(1, final=False) == []
    state = held(before).rows
    clock.advance(40)

    after = sink.writer(SCHEMA, context(generation=2))
    after.restore(HELD, state.to_batches(), 0)
    after.write(rows(2))
    assert after.prepare(2, final=False) == []
    clock.advance(20)
    (committable,) = after.prepare(3, final=False)
    assert committable.payload["rows"] == 2


def test_a_clock_that_is_set_back_holds_nothing_back(tmp_path: Path) -> None:
    late, early = ManualClock(), ManualClock()
    late.advance(10_000)
    writer = parquet(tmp_path / "out", clock=late).writer(SCHEMA, context())
    writer.write(rows(1))
    writer.prepare(1, final=False)
    after = parquet(tmp_path / "out", clock=early).writer(SCHEMA, context(generation=2))
    after.restore(HELD, held(writer).rows.to_batches(), 0)
    assert len(after.prepare(2, final=False)) == 1


def test_many_open_partitions_are_bounded_in_memory(tmp_path: Path) -> None:
    sink = parquet(tmp_path / "out", partition_by=["shop"], roll_bytes=2000, hold_bytes=2000)
    writer = sink.writer(SCHEMA, context())
    for shop in range(300):
        writer.write(rows(1, 2, 3, shop=f"shop {shop}"))
    staged = len(list((tmp_path / ".millstream").rglob("*.staged")))
    assert staged > 200
    assert len(writer.prepare(1, final=True)) == 300


def test_a_slice_does_not_keep_its_batch_in_memory(tmp_path: Path) -> None:
    writer = parquet(tmp_path / "out").writer(SCHEMA, context())
    writer.write(rows(*range(100_000)).slice(7, 2))
    writer.prepare(1, final=False)
    (batch,) = held(writer).rows.select(["id", "shop"]).to_batches()
    assert batch.get_total_buffer_size() < 1000
    assert batch.column("id").to_pylist() == [7, 8]


def test_columns_may_be_called_as_the_state_calls_its_own(tmp_path: Path) -> None:
    schema = pa.schema([("File", pa.int64()), ("since", pa.string())])
    sink = parquet(tmp_path / "out")
    writer = sink.writer(schema, context())
    writer.write(pa.RecordBatch.from_pydict({"File": [1], "since": ["x"]}, schema=schema))
    writer.prepare(1, final=False)
    (table,) = sink.state_tables(schema)
    delta = held(writer)
    assert delta.rows.schema == table.schema
    after = sink.writer(schema, context(generation=2))
    after.restore(HELD, delta.rows.to_batches(), 0)
    sink.committer(schema, context(generation=2)).commit(2, after.prepare(2, final=True))
    assert duckdb.sql(f"FROM '{tmp_path}/out/*.parquet'").fetchall() == [(1, "x")]


def test_subtasks_hand_over_together_or_not_at_all() -> None:
    agreement = RollAgreement(parallelism=2)
    assert not agreement.decide(1, force=False, now=0, longest=10)
    # The other one is late for epoch 1, which is held back: what it wants can only come in epoch 2.
    assert not agreement.want(after=0)
    assert not agreement.decide(1, force=False, now=99, longest=10)
    assert agreement.decide(2, force=False, now=99, longest=10)
    assert agreement.want(after=1)
    assert agreement.decide(2, force=False, now=99, longest=10)
    assert not agreement.decide(3, force=False, now=99, longest=10)


def test_an_epoch_of_which_only_one_subtask_handed_over_is_completed_by_the_next() -> None:
    agreement = RollAgreement(parallelism=2)
    agreement.want(after=0)
    assert agreement.decide(1, force=False, now=0, longest=10)
    assert agreement.decide(2, force=False, now=0, longest=10)


# -- making it visible ------------------------------------------------------------------------------------------


def test_nothing_is_visible_before_the_commit_and_all_after_it(tmp_path: Path) -> None:
    sink = parquet(tmp_path / "out", hold_bytes=0)
    committables = []
    for subtask in range(2):
        writer = sink.writer(SCHEMA, context(subtask=subtask, parallelism=2))
        writer.write(rows(subtask))
        committables += writer.prepare(1, final=False)
    assert files(tmp_path / "out") == []
    sink.committer(SCHEMA, context(parallelism=2)).commit(1, committables)
    assert ids(tmp_path / "out") == [0, 1]
    (folder,) = (tmp_path / "out").iterdir()
    assert folder.name.startswith("epoch-000000000001-")


def test_committing_again_changes_nothing_even_if_a_reader_took_the_files_away(tmp_path: Path) -> None:
    sink = parquet(tmp_path / "out")
    writer = sink.writer(SCHEMA, context())
    writer.write(rows(1))
    committables = writer.prepare(1, final=True)
    sink.committer(SCHEMA, context()).commit(1, committables)
    before = files(tmp_path / "out")
    sink.committer(SCHEMA, context(generation=2)).commit(1, committables)
    assert files(tmp_path / "out") == before
    (tmp_path / "out" / before[0]).unlink()
    sink.committer(SCHEMA, context(generation=3)).commit(1, committables)
    assert files(tmp_path / "out") == []


def test_a_staged_file_that_was_taken_away_is_reported(tmp_path: Path) -> None:
    sink = parquet(tmp_path / "out")
    writer = sink.writer(SCHEMA, context())
    writer.write(rows(1, 2))
    committables = writer.prepare(1, final=True)
    (staged,) = (tmp_path / ".millstream").rglob("*.staged")
    staged.unlink()
    with pytest.raises(ExternalError, match=r"the 2 rows of part-.* are lost.*some other program has removed it"):
        sink.committer(SCHEMA, context()).commit(1, committables)


@pytest.mark.parametrize("files_of_it", [1, 2])
def test_what_was_visible_may_be_taken_away_before_that_is_written_down(tmp_path: Path, files_of_it: int) -> None:
    sink = parquet(tmp_path / "out", hold_bytes=0)
    committables = prepared(sink, 1, subtasks=files_of_it)
    with armed("files.visible=raise"):
        sink.committer(SCHEMA, context()).commit(1, committables)
    for seen in (tmp_path / "out").iterdir():
        shutil.move(seen, tmp_path)
    for _ in range(2):
        sink.committer(SCHEMA, context(generation=2)).commit(1, committables)
        assert files(tmp_path / "out") == []


def test_the_word_for_one_epoch_is_no_excuse_for_another(tmp_path: Path) -> None:
    sink = parquet(tmp_path / "out", hold_bytes=0)
    sink.committer(SCHEMA, context()).commit(1, prepared(sink, 1))
    committables = prepared(sink, 2, generation=2)
    (staged,) = (tmp_path / ".millstream").rglob("*.staged")
    staged.unlink()
    with pytest.raises(ExternalError, match="are lost"):
        sink.committer(SCHEMA, context(generation=2)).commit(2, committables)


def test_what_is_missing_from_a_folder_that_nobody_has_seen_is_lost(tmp_path: Path) -> None:
    sink = parquet(tmp_path / "out", hold_bytes=0)
    committables = prepared(sink, 1, subtasks=2)
    with armed("files.rename=raise"):
        sink.committer(SCHEMA, context()).commit(1, committables)
    (staged,) = (tmp_path / ".millstream").rglob("*.staged")
    staged.unlink()
    with pytest.raises(ExternalError, match=r"are lost.*was not visible yet"):
        sink.committer(SCHEMA, context()).commit(1, committables)
    assert files(tmp_path / "out") == []


def test_an_epoch_that_was_begun_by_a_newer_store_is_refused(tmp_path: Path) -> None:
    sink = parquet(tmp_path / "out", hold_bytes=0)
    with armed("files.publishing=raise"):
        sink.committer(SCHEMA, context()).commit(2, prepared(sink, 1))
    with pytest.raises(JobError, match=r"epoch 2 of this job is in place already.*older copy of the store"):
        sink.committer(SCHEMA, context(generation=2)).commit(2, prepared(sink, 2, generation=2))


def test_an_epoch_without_files_touches_nothing(tmp_path: Path) -> None:
    sink = parquet(tmp_path / "out", hold_bytes=0)
    committer = sink.committer(SCHEMA, context())
    committer.commit(1, prepared(sink, 1))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    committer.commit(2, [])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_staged_file_that_was_changed_is_reported(tmp_path: Path) -> None:
    sink = parquet(tmp_path / "out")
    writer = sink.writer(SCHEMA, context())
    writer.write(rows(1, 2))
    committables = writer.prepare(1, final=True)
    (staged,) = (tmp_path / ".millstream").rglob("*.staged")
    staged.write_bytes(b"short")
    with pytest.raises(ExternalError, match=r"has 5 bytes, but .* were written"):
        sink.committer(SCHEMA, context()).commit(1, committables)
    assert files(tmp_path / "out") == []


def test_an_older_copy_of_the_store_is_refused(tmp_path: Path) -> None:
    sink = parquet(tmp_path / "out")
    publish(sink, rows(1), epoch=1)
    publish(sink, rows(2), epoch=2, where=context(generation=2))
    writer = sink.writer(SCHEMA, context(generation=3))
    writer.write(rows(2))
    committables = writer.prepare(2, final=True)
    with pytest.raises(JobError, match=r"epoch 2 of this job is in place already.*older copy of the store"):
        sink.committer(SCHEMA, context(generation=3)).commit(2, committables)
    with pytest.raises(JobError, match="older copy of the store"):
        sink.committer(SCHEMA, context(generation=3)).commit(1, [])
    assert ids(tmp_path / "out") == [1, 2]


def test_discarding_removes_only_what_dead_generations_of_this_job_staged(tmp_path: Path) -> None:
    sink = parquet(tmp_path / "out", roll_rows=1)
    kept_file = tmp_path / "out" / "mine.txt"
    for where in (context(), context(job_id="job2"), context(generation=2)):
        sink.writer(SCHEMA, where).write(rows(1))
    kept_file.write_text("kept")
    sink.committer(SCHEMA, context(generation=2)).discard_uncommitted()
    left = sorted("/".join(p.parts[-3:-1]) for p in (tmp_path / ".millstream").rglob("*.staged"))
    assert left == ["job1/g2", "job2/g1"]
    assert kept_file.read_text() == "kept"


# -- saying no --------------------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("make", [parquet, csv, jsonl])
def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, make: Any) -> None:
    writer = make(tmp_path / "out").writer(SCHEMA, context())
    writer.write(rows(*range(10_000)))
    with files_of_at_most(1000), pytest.raises(ExternalError, match=r"out: writing 10000 rows failed.*disk has room"):
        writer.prepare(1, final=True)
    assert list((tmp_path / ".millstream").rglob("*.staged")) == []


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExternalError, match="making its folders failed"):
        parquet(tmp_path / "file" / "out").writer(SCHEMA, context())


def test_a_link_in_place_of_a_partition_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "out" / "shop=a").symlink_to(tmp_path / "outside")
    with pytest.raises(ExternalError, match="symbolic link"):
        publish(parquet(tmp_path / "out", partition_by=["shop"], atomic_epochs=False), rows(1))
    assert files(tmp_path / "outside") == []


def test_staging_inside_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="readers would find unfinished files"):
        parquet(tmp_path / "out", staging=tmp_path / "out" / ".staging").writer(SCHEMA, context())


@pytest.mark.parametrize(
    ("make", "options", "schema", "message"),
    [
        (parquet, {"partition_by": ["day"]}, SCHEMA, "there is no column 'day' to partition by, but: id, shop"),
        (parquet, {"partition_by": ["id", "shop"]}, SCHEMA, "every column is in partition_by"),
        (parquet, {"partition_by": ["id", "id"]}, SCHEMA, "names a column twice"),
        (parquet, {"partition_by": ["x"]}, pa.schema([("x", pa.float64()), ("y", pa.int8())]), "cannot name folders"),
        (parquet, {}, pa.schema([("m", pa.map_(pa.string(), pa.int8()))]), "'m' of type map.*parquet files"),
        (csv, {}, pa.schema([("l", pa.list_(pa.int8()))]), "'l' of type list.*cannot be written to CSV"),
        (csv, {}, pa.schema([("b", pa.binary())]), "'b' of type binary.*cannot be written to CSV"),
        (jsonl, {}, pa.schema([("l", pa.list_(pa.timestamp("ns")))]), "cast it to microseconds"),
    ],
)
def test_rows_that_cannot_be_written_are_refused_when_the_job_is_built(make, options, schema, message) -> None:
    with pytest.raises(SchemaError, match=message):
        make("out", **options).check(schema)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roll_bytes": "128"}, "'128' is not a size"),
        ({"roll_rows": 0}, "must be at least 1"),
        ({"hold_bytes": "1GB"}, "hold_bytes='1GB' is more than roll_bytes='128MB'"),
        ({"compression": "rar"}, "compression 'rar' is not known for Parquet; take one of zstd"),
        ({"roll_age": "soon"}, "is not a duration"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        parquet("out", **options)


def test_identity_tells_destinations_apart_and_not_settings() -> None:
    one = parquet("out").identity()
    assert parquet("out", roll_age="1h", hold_bytes=0, compression="none", name="x").identity() == one
    others = [parquet("other"), csv("out"), parquet("out", partition_by=["a"]), parquet("out", atomic_epochs=False)]
    assert len({one, *(sink.identity() for sink in others)}) == 5


def test_sizes() -> None:
    assert [byte_size(s) for s in ("10B", "2KB", "2KiB", "1GB", 7)] == [10, 2000, 2048, 10**9, 7]
