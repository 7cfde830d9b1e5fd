"""Watermarks that rows of their own carry: what they do to event time, and that they go no further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from millstream import col
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.graph import Markers, Node, OperatorId, Read
from millstream.engine.runtime.source_reading import SourceReading
from millstream.engine.runtime.splits import SplitQueue
from millstream.engine.time import START_OF_TIME
from millstream.testing import ManualClock, simulate

KIND = col("kind") == "mark"
SCHEMA = pa.schema({"n": pa.int64(), "kind": pa.string(), "at": pa.timestamp("us")})


def rows(*given: tuple[int | None, str | None, int | None]) -> pa.RecordBatch:
    numbers, kinds, seconds = zip(*given, strict=True)
    times = pa.array([None if s is None else s * 1_000_000 for s in seconds], pa.int64()).cast("timestamp[us]")
    return pa.record_batch([pa.array(numbers, pa.int64()), pa.array(kinds, pa.string()), times], schema=SCHEMA)


GIVEN = [
    rows((1, "a", 50), (2, None, 7)),
    rows((None, "mark", 5), (3, "a", 6)),
    rows((None, "mark", None)),
    rows((4, "a", 2), (None, "mark", 20), (None, "mark", 15)),
    rows((5, "a", 90)),
]


def test_event_time_is_what_markers_say_and_nothing_else() -> None:
    source = ms.memory_source(GIVEN)
    read = Read(source, "at", max_delay=1_000_000, markers=Markers(KIND))
    queue = SplitQueue(source, [], 1, ManualClock())
    reading = SourceReading(Node(OperatorId("o"), "memory", read, (), {}), read, queue, ManualClock(), 0)
    seen: list[tuple[list[Any], int]] = []
    while (got := reading.next()) is not None:
        seen.append((got.batch["n"].to_pylist(), reading.watermark()))
    assert [numbers for numbers, _ in seen] == [[1, 2], [3], [], [4], [5]]
    assert [time for _, time in seen] == [START_OF_TIME, 4_000_000, 4_000_000, 19_000_000, 19_000_000]


def job_of(source: Any, out: ms.Stream | Any, late: Any, **options: Any) -> ms.Job:
    job = ms.Job("marks")
    stream = job.read(source, event_time="at", watermark=KIND, **options)
    windows = stream.window(ms.tumbling("10s")).agg(ns=ms.collect("n"))
    windows.write(out)
    windows.late.select("n").write(late)
    return job


def test_windows_fire_by_them_and_they_are_in_no_window() -> None:
    out, late = ms.memory_sink("out"), ms.memory_sink("late")
    job_of(ms.memory_source(GIVEN), out, late).run()
    assert [sorted(row["ns"]) for row in out.rows()] == [[2, 3, 4], [1], [5]]
    assert late.rows() == []
    out, late = ms.memory_sink("out"), ms.memory_sink("late")
    after = rows((6, "a", 19), (7, "a", 21))
    job_of(ms.memory_source([*GIVEN, after]), out, late).run()
    assert [row["n"] for row in late.rows()] == [6]


def test_markers_that_are_kept_are_rows_like_others() -> None:
    out = ms.memory_sink()
    job = ms.Job("kept")
    job.read(ms.memory_source(GIVEN), event_time="at", watermark=KIND, keep_markers=True).write(out)
    job.run()
    assert len(out.rows()) == 9


@pytest.mark.parametrize("needs_time", [True, False])
def test_what_is_pushed_down_lets_markers_through_and_they_go_no_further(needs_time: bool, tmp_path: Path) -> None:
    table = pa.Table.from_batches([*GIVEN, rows((6, "a", 19))])
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    out = ms.memory_sink()
    job = ms.Job("pushed")
    stream = job.read(ms.files(f"{tmp_path}/rows.parquet"), event_time="at", watermark=KIND).filter(col("n") > 2)
    (stream.window(ms.tumbling("10s")).agg(n=ms.sum("n")) if needs_time else stream.select("n")).write(out)
    job.run()
    assert [row["n"] for row in out.rows()] == ([7, 5] if needs_time else [3, 4, 5, 6])


@pytest.mark.parametrize("seed", range(3))
def test_a_seed(seed: int, tmp_path: Path) -> None:
    """Crashed at any step: the same windows, no row late that was not, whatever was read again."""
    marked = [
        part
        for second in range(0, 120, 3)
        for part in (rows((second, "a", second + 40)), rows((second + 1, "b", second)), rows((None, "mark", second)))
    ]
    out, late = ms.memory_sink("out"), ms.memory_sink("late")
    assert simulate(lambda: job_of(ms.memory_source(marked), out, late), tmp_path / "s", seed, parallelism=1).crashes
    assert sorted(n for row in out.rows() for n in row["ns"]) == sorted(n for n in range(120) if n % 3 < 2)
    assert late.rows() == []


def test_mistakes() -> None:
    source = ms.memory_source(GIVEN)
    with pytest.raises(JobError, match="watermark= is about event time: name its column"):
        ms.Job("j").read(source, watermark=KIND)
    with pytest.raises(JobError, match=r"watermark= says which rows are markers.*got 'kind'"):
        ms.Job("j").read(source, event_time="at", watermark="kind")  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="watermark= needs a condition that is true or false; n is int64"):
        ms.Job("j").read(source, event_time="at", watermark=col("n"))
    with pytest.raises(SchemaError, match="kinds"):
        ms.Job("j").read(source, event_time="at", watermark=col("kinds") == "mark")
    with pytest.raises(JobError, match="keep_markers= keeps the rows that watermark= names"):
        ms.Job("j").read(source, event_time="at", keep_markers=True)
