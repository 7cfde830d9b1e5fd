"""Rows in order are never late: whatever the parallelism, the interleaving, the crashes and the order of splits."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from millstream.engine.errors import DataError, JobError
from millstream.testing import simulate
from sample_jobs import START, in_batches

ROWS = [{"n": n, "at": START + dt.timedelta(seconds=n)} for n in range(480)]


def in_sequence(name: str) -> ms.Job | Any:
    """More splits than ten, so that their names sort otherwise than they come."""
    return ms.memory_source(in_batches(ROWS), splits=12, name=name)


def one_source(job: ms.Job, folder: Path) -> ms.Stream:
    return job.read(in_sequence("one"), event_time="at")


def union_of_two(job: ms.Job, folder: Path) -> ms.Stream:
    return job.read(in_sequence("one"), event_time="at").union(job.read(in_sequence("two"), event_time="at"))


def files_by_event_time(count: int) -> Callable[[ms.Job, Path], ms.Stream]:
    """Files that each hold a part of the rows of all times."""

    def read(job: ms.Job, folder: Path) -> ms.Stream:
        if not folder.exists():
            folder.mkdir()
            for part in range(count):
                table = pa.Table.from_pylist(ROWS[part::count])
                pq.write_table(table, folder / f"{part}.parquet", row_group_size=5)
        return job.read(ms.files(folder / "*.parquet", order="event_time"), event_time="at", max_delay="2s")

    return read


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("read", "copies"),
    [(one_source, 1), (union_of_two, 2), (files_by_event_time(2), 1), (files_by_event_time(4), 1)],
    ids=["one", "union", "2 files", "4 files"],
)
def test_rows_in_order_are_not_late(read: Any, copies: int, seed: int, tmp_path: Path) -> None:
    out, late = ms.memory_sink(name="out"), ms.memory_sink(name="late")

    def make() -> ms.Job:
        job = ms.Job("j")
        counted = read(job, tmp_path / "in").window(ms.tumbling("10s")).agg(rows=ms.count())
        counted.write(out)
        counted.late.write(late)
        return job

    simulate(make, tmp_path / "j.duckdb", seed, steps_between=120)
    assert late.rows() == []
    assert [row["rows"] for row in out.rows()] == [10 * copies] * 48


def test_windows_fire_though_there_are_fewer_splits_than_subtasks(tmp_path: Path) -> None:
    schema = pa.schema({"at": pa.timestamp("us")})

    def rows(start: int, stop: int) -> pa.RecordBatch:
        return pa.record_batch({"at": [START + dt.timedelta(seconds=n) for n in range(start, stop)]}, schema=schema)

    out, control = ms.memory_sink(), ms.Control()
    job = ms.Job("j")
    stream = job.read(ms.generator(rows, schema=schema, rows=None, batch_rows=10), event_time="at")
    stream.window(ms.tumbling("10s")).agg(rows=ms.count()).write(out)

    def stop_when_fired(status: object) -> None:
        if out.rows():
            control.stop()

    job.run(tmp_path / "j.duckdb", every="10ms", parallelism=3, control=control, on_status=stop_when_fired)
    assert {row["rows"] for row in out.rows()} == {10}


def test_a_followed_source_that_has_read_all_there_is_still_holds_time_back(tmp_path: Path) -> None:
    """It has not said that it is idle: its next file may be of the same hour as the other's last one."""
    schema = pa.schema({"n": pa.int64(), "at": pa.timestamp("us")})

    def arrive(folder: str, name: str, minutes: range) -> None:
        rows = [{"n": n, "at": START + dt.timedelta(minutes=n)} for n in minutes]
        table = pa.Table.from_pylist(rows, schema)
        pq.write_table(table, tmp_path / folder / f".{name}")
        (tmp_path / folder / f".{name}").rename(tmp_path / folder / name)

    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    arrive("a", "1.parquet", range(60))
    arrive("a", "2.parquet", range(60, 121))
    arrive("b", "1.parquet", range(60))
    out, late, control = ms.memory_sink(name="out"), ms.memory_sink(name="late"), ms.Control()
    job = ms.Job("j")
    streams = [
        job.read(ms.files(tmp_path / folder / "*.parquet", schema=schema, follow=True), event_time="at")
        for folder in ("a", "b")
    ]
    counted = streams[0].union(streams[1]).window(ms.tumbling("1h")).agg(rows=ms.count())
    counted.write(out)
    counted.late.write(late)
    arrived: list[str] = []

    def then(status: Any) -> None:
        if not arrived and status.rows_read and sum(status.rows_read.values()) == 181:
            arrive("b", "2.parquet", range(60, 121))
            arrived.append("b")
        if len(out.rows()) == 2:
            control.stop()

    job.run(tmp_path / "j.duckdb", every="20ms", control=control, on_status=then)
    assert late.rows() == []
    assert [row["rows"] for row in out.rows()] == [120, 120]


def test_many_files_without_rows_are_passed_over(tmp_path: Path) -> None:
    for number in range(1_200):
        (tmp_path / f"{number}.jsonl").write_text("")
    (tmp_path / "last.jsonl").write_text('{"n": 1}\n')
    out = ms.memory_sink()
    job = ms.Job("j")
    job.read(ms.files(tmp_path / "*.jsonl", schema=pa.schema({"n": pa.int64()}))).write(out)
    job.run()
    assert out.rows() == [{"n": 1}]


@pytest.mark.parametrize("name", ["1.csv", "1.parquet"])
def test_a_file_that_was_read_and_has_grown_since_is_refused(tmp_path: Path, name: str) -> None:
    def write(count: int) -> None:
        if name.endswith("csv"):
            (tmp_path / name).write_text("n\n" + "1\n" * count)
        else:
            pq.write_table(pa.table({"n": range(count)}), tmp_path / name)

    def run(count: int) -> None:
        write(count)
        (tmp_path / f"{count}.{name.partition('.')[2]}").write_bytes((tmp_path / name).read_bytes())
        job = ms.Job("j")
        job.read(ms.files(tmp_path / f"*.{name.partition('.')[2]}", follow=True)).write(ms.blackhole())
        control = ms.Control()

        def stop(status: Any) -> None:
            if sum(status.rows_read.values()) >= count:
                control.stop()

        job.run(tmp_path / "j.duckdb", every="20ms", control=control, on_status=stop)

    run(10)
    with pytest.raises(DataError, match=r"was \{.*\} when it was found and is \{.*\} now.*put the old one back"):
        run(20)


def test_an_older_store_is_refused_also_when_its_last_epoch_had_no_files(tmp_path: Path) -> None:
    """Rows are held back, so that most epochs have none: the folder is asked all the same."""
    names = [f"job.duckdb{suffix}" for suffix in ("", ".wal", ".witness")]

    def run(rows: int | None, rate: float | None = None) -> None:
        job = ms.Job("j")
        source = ms.generator(numbers, schema=pa.schema({"n": pa.int64()}), rows=rows, rate=rate, batch_rows=10)
        job.read(source).write(ms.parquet(tmp_path / "out", hold_bytes=10_000_000))
        control = ms.Control()

        def stop(status: Any) -> None:
            if rows is None and status.checkpoints.committed >= 2:
                control.stop()

        job.run(tmp_path / "job.duckdb", every="1ms", control=control, on_status=stop)

    run(rows=None, rate=100)
    assert list((tmp_path / "out").rglob("*.parquet")) == [], "all rows are held back"
    saved = {name: (tmp_path / name).read_bytes() for name in names if (tmp_path / name).exists()}
    run(rows=100_000)
    for name in names:
        (tmp_path / name).unlink(missing_ok=True)
    for name, data in saved.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(JobError, match=r"of this job is in place already.*older copy of the store"):
        run(rows=100_000)


def numbers(start: int, stop: int) -> pa.RecordBatch:
    return pa.record_batch({"n": list(range(start, stop))})


def test_a_named_window_that_has_become_another_is_refused(tmp_path: Path) -> None:
    def run(size: str, aggregate: Any) -> None:
        control = ms.Control()
        job = ms.Job("j")
        schema = pa.schema({"n": pa.int64(), "at": pa.timestamp("us")})

        def rows(start: int, stop: int) -> pa.RecordBatch:
            at = [START + dt.timedelta(seconds=n) for n in range(start, stop)]
            return pa.record_batch({"n": list(range(start, stop)), "at": at}, schema=schema)

        source = ms.generator(rows, schema=schema, rows=None, rate=1000)
        windows = job.read(source, event_time="at").window(ms.tumbling(size))
        windows.agg(total=aggregate, name="totals").write(ms.blackhole())

        def stop(status: Any) -> None:
            if status.checkpoints.committed:
                control.stop()

        job.run(tmp_path / "j.duckdb", every="10ms", control=control, on_status=stop)

    run("2h", ms.sum("n"))
    run("2h", ms.sum("n"))
    for size, aggregate in (("10m", ms.sum("n")), ("2h", ms.sum(ms.col("n") * 2))):
        with pytest.raises(ms.StateMismatch, match=r"'totals' .*: .*7200000000.* in the checkpoint, .* in the job"):
            run(size, aggregate)
