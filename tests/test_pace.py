"""``max_ahead``: a source that is ahead of another in event time waits for it, and for nobody who will never come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream.engine.errors import JobError
from millstream.engine.runtime.coordinator import CheckpointSettings
from millstream.engine.runtime.run import Control, RunSettings, run_job
from millstream.engine.runtime.scheduler import SimulatedScheduler
from millstream.engine.source import ReadContext, Source, Split, SplitEnd, SplitOrder, SplitReader
from millstream.testing import ManualClock, simulate
from test_explain_stuck import Asking, held

SCHEMA = pa.schema({"n": pa.int64(), "at": pa.timestamp("us")})
BATCH = 5
"""Rows of one batch, a second apart."""


def seconds(start: int, stop: int) -> pa.RecordBatch:
    numbers = list(range(start, stop))
    return pa.record_batch([numbers, pa.array([n * 1_000_000 for n in numbers]).cast("timestamp[us]")], schema=SCHEMA)


def batches(count: int) -> list[pa.RecordBatch]:
    return [seconds(start, start + BATCH) for start in range(0, count, BATCH)]


class Log:
    """Who has read how far, at every read."""

    def __init__(self) -> None:
        self.at: dict[str, int] = {}
        self.reads: list[tuple[str, int, dict[str, int]]] = []

    def of(self, name: str) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
        def note(batch: pa.RecordBatch) -> pa.RecordBatch:
            if batch.num_rows:
                self.reads.append((name, batch["n"][0].as_py(), dict(self.at)))
                self.at[name] = max(self.at.get(name, 0), batch["n"][-1].as_py())
            return batch

        return note


class Splits(Source):
    """Splits that are all open: each of a name, its batches and what it says after them."""

    order = SplitOrder.CONCURRENT
    schema = SCHEMA

    def __init__(self, name: str, **splits: tuple[list[pa.RecordBatch], SplitEnd]) -> None:
        self._name, self._splits = name, splits

    @property
    def name(self) -> str:
        return self._name

    @property
    def bounded(self) -> bool:
        return all(end is SplitEnd.FINISHED for _, end in self._splits.values())

    def identity(self) -> str:
        return self._name

    def discover(self) -> list[Split]:
        return [Split(name) for name in self._splits]

    def open(self, split: Split, position: Any, context: ReadContext) -> SplitReader:
        return _Reader(*self._splits[split.id], position or 0)


class _Reader(SplitReader):
    def __init__(self, batches: list[pa.RecordBatch], end: SplitEnd, position: int) -> None:
        self._batches, self._end, self._position = batches, end, position

    def read(self) -> pa.RecordBatch | SplitEnd:
        if self._position == len(self._batches):
            return self._end
        self._position += 1
        return self._batches[self._position - 1]

    def position(self) -> int:
        return self._position


def joined(log: Log, slow: Source, fast: Source, **options: Any) -> ms.Job:
    job = ms.Job("two")
    parts = [
        job.read(slow, event_time="at", **options).map_batches(log.of("slow")),
        job.read(fast, event_time="at", max_ahead="20s").map_batches(log.of("fast")),
    ]
    parts[0].union(parts[1]).window(ms.tumbling("10s")).agg(n=ms.count()).write(ms.memory_sink())
    return job


def run(job: ms.Job, seed: int, *, until: Callable[[Any], bool] | None = None, parallelism: int = 1) -> str:
    control, clock = Control(), ManualClock()

    def look(status: Any) -> None:
        if until is not None and until(status):
            control.stop()

    scheduler = SimulatedScheduler(seed, clock, tick=0.01)
    settings = RunSettings(None, CheckpointSettings(every=1.0, timeout=60.0), on_status=look, status_every=0.0)
    plan = job.plan(parallelism)
    return run_job(plan, settings, control=control, clock=clock, scheduler=lambda _: scheduler).outcome


@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("seed", range(2))
def test_a_fast_source_is_never_further_ahead_than_it_may_be_and_a_batch(seed: int, parallelism: int) -> None:
    log = Log()
    # The slow one has to be read twenty times for what the other brings at once.
    slow = [seconds(n // 4, n // 4 + 1) for n in range(600)]
    job = joined(log, ms.memory_source(slow, name="slow"), ms.memory_source(batches(150), name="fast"))
    assert run(job, seed, parallelism=parallelism) == "finished"
    assert log.at == {"slow": 149, "fast": 149}
    worst = 0
    for name, first, at in log.reads:
        if name == "fast" and first:
            # What it had read before this batch may be ahead of the slow one by 20 seconds.
            assert at["fast"] - at.get("slow", 0) <= 20
            worst = max(worst, at["fast"] - at.get("slow", 0))
    assert worst > 10, "it need not wait earlier than that"


@pytest.mark.parametrize("seed", range(1))
def test_without_it_the_fast_source_runs_away(seed: int) -> None:
    log = Log()
    slow = [seconds(n // 4, n // 4 + 1) for n in range(600)]
    job = ms.Job("two")
    one = job.read(ms.memory_source(slow, name="slow"), event_time="at").map_batches(log.of("slow"))
    other = job.read(ms.memory_source(batches(150), name="fast"), event_time="at").map_batches(log.of("fast"))
    one.union(other).window(ms.tumbling("10s")).agg(n=ms.count()).write(ms.memory_sink())
    assert run(job, seed) == "finished"
    assert max(at.get("fast", 0) - at.get("slow", 0) for _, _, at in log.reads) > 60


def test_one_that_has_ended_is_not_waited_for() -> None:
    log = Log()
    job = joined(log, ms.memory_source(batches(10), name="slow"), ms.memory_source(batches(300), name="fast"))
    assert run(job, 1) == "finished"
    assert log.at == {"slow": 9, "fast": 299}


def test_one_without_any_row_is_not_waited_for() -> None:
    log = Log()
    empty = ms.memory_source([], schema=SCHEMA, name="slow")
    assert run(joined(log, empty, ms.memory_source(batches(300), name="fast")), 1) == "finished"
    assert log.at == {"fast": 299}


@pytest.mark.parametrize("before", [[], batches(10)], ids=["not started", "quiet"])
def test_one_that_is_idle_is_not_waited_for(before: list[pa.RecordBatch]) -> None:
    log = Log()
    job = joined(log, Splits("slow", a=(before, SplitEnd.PENDING)), Splits("fast", a=(batches(300), SplitEnd.FINISHED)))
    done = run(job, 1, until=lambda status: status.checkpoints.committed == 20)
    assert done == "stopped"
    assert log.at["fast"] == (34 if before else 4), "it waits for what may come yet"
    log = Log()
    job = joined(
        log,
        Splits("slow", a=(before, SplitEnd.PENDING)),
        Splits("fast", a=(batches(300), SplitEnd.FINISHED)),
        idle_timeout="2s",
    )
    assert run(job, 1, until=lambda status: status.rows_read["fast"] == 300) == "stopped"


def test_splits_of_one_source_wait_for_each_other() -> None:
    log = Log()
    source = Splits(
        "both",
        slow=([seconds(n // 4, n // 4 + 1) for n in range(400)], SplitEnd.FINISHED),
        fast=([seconds(n, n + BATCH) for n in range(0, 100, BATCH)], SplitEnd.FINISHED),
    )
    job = ms.Job("one")

    def note(batch: pa.RecordBatch) -> pa.RecordBatch:
        return log.of("slow" if batch.num_rows == 1 else "fast")(batch)

    job.read(source, event_time="at", max_ahead="10s").map_batches(note).write(ms.memory_sink())
    assert run(job, 1) == "finished"
    assert log.at == {"slow": 99, "fast": 99}
    assert max(at["fast"] - at.get("slow", 0) for who, first, at in log.reads if who == "fast" and first) <= 10


@pytest.mark.parametrize("seed", range(4))
def test_all_of_three_that_wait_for_each_other_come_to_their_end(seed: int, tmp_path: Path) -> None:
    out = ms.memory_sink()

    def make() -> ms.Job:
        job = ms.Job("three")
        parts = [
            job.read(ms.memory_source(batches(count), splits=2, name=name), event_time="at", max_ahead="3s")
            for name, count in (("a", 30), ("b", 60), ("c", 90))
        ]
        parts[0].union(*parts[1:]).write(out)
        return job

    assert simulate(make, tmp_path / "store", seed).crashes == 3
    assert len(out.rows()) == 180


def test_only_those_whose_rows_meet_wait_for_each_other() -> None:
    log = Log()
    job = ms.Job("apart")
    job.read(Splits("slow", a=(batches(5), SplitEnd.PENDING)), event_time="at").write(ms.memory_sink("a"))
    fast = job.read(ms.memory_source(batches(300), name="fast"), event_time="at", max_ahead="20s")
    fast.map_batches(log.of("fast")).write(ms.memory_sink("b"))
    assert run(job, 1, until=lambda status: status.rows_read["fast"] == 300) == "stopped"


def test_a_table_is_not_waited_for_and_does_not_wait() -> None:
    def make(table_options: dict[str, Any], stream_options: dict[str, Any]) -> ms.Job:
        job = ms.Job("table")
        stream = job.read(ms.memory_source(batches(100), name="stream"), event_time="at", **stream_options)
        names = job.read(ms.memory_source(batches(50), name="names"), event_time="at", **table_options)
        joined = stream.join_table(names.select("n", name=ms.col("n") * 2), on="n")
        joined.select("n").union(names.select("n")).write(ms.memory_sink())
        return job

    assert run(make({}, {"max_ahead": "5s"}), 1) == "finished"
    with pytest.raises(
        JobError, match=r"source 'stream' is read on only when 'names', a table, has ended.*leave max_ah"
    ):
        make({"max_ahead": "5s"}, {}).plan()


def test_mistakes() -> None:
    with pytest.raises(JobError, match="max_ahead= is about event time: name its column"):
        ms.Job("j").read(ms.memory_source(batches(5)), max_ahead="1m")
    with pytest.raises(JobError, match="not a duration"):
        ms.Job("j").read(ms.memory_source(batches(5)), event_time="at", max_ahead="soon")


def test_who_waits_is_told_with_for_whom_and_what_to_do(tmp_path: Path) -> None:
    job = joined(
        Log(), Splits("slow", a=(batches(10), SplitEnd.PENDING)), Splits("fast", b=(batches(300), SplitEnd.FINISHED))
    )
    store = tmp_path / "job.duckdb"

    def good(found: list[dict[str, Any]]) -> bool:
        return any(row["seconds"] > 0.05 and "no rows" in row["reason"] for row in held(found, "reading"))

    with Asking(store, good) as asking:
        job.run(store, every="20ms", control=asking.control)
    (hold,) = held(asking.found, "reading")
    assert hold["holder"] == "split 'a' of source 'slow'"
    assert hold["watermark"] == 9_000_000
    assert hold["reason"] == (
        "split 'b' of source 'fast' is 25s ahead of it, further than its max_ahead; it has had no rows for so long; "
        "with idle_timeout= it would stop holding the others back"
    )
