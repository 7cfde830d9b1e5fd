"""What a job is waiting for, asked from outside."""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from cli_kit import call

START = dt.datetime(2026, 1, 1)
SCHEMA = pa.schema({"n": pa.int64(), "at": pa.timestamp("us")})


def rows(start: int, stop: int) -> pa.RecordBatch:
    at = [START + dt.timedelta(seconds=n) for n in range(start, stop)]
    return pa.record_batch({"n": list(range(start, stop)), "at": at}, schema=SCHEMA)


class Asking:
    """Asks a running job now and then, from another thread, until an answer is good; then stops it."""

    def __init__(self, store: Path, good: Callable[[list[dict[str, Any]]], object]) -> None:
        self.control = ms.Control()
        self.found: list[dict[str, Any]] = []
        self._store, self._good = store, good
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _ask(self) -> None:
        from millstream.engine.store.server import ask

        until = time.monotonic() + 60
        while time.monotonic() < until and not self._good(self.found):
            try:
                answer = ask(self._store, "stuck")
            except ms.JobError:
                continue
            self.found = [] if answer is None else answer.to_pylist()
        self.control.stop()


def quiet_and_fast(**options: Any) -> ms.Job:
    """One source brings a row and then nothing, the other goes on."""
    job = ms.Job("two")
    quiet = job.read(ms.memory_source([rows(5, 6)], bounded=False, name="quiet"), event_time="at", **options)
    fast = job.read(ms.generator(rows, schema=SCHEMA, rate=1_000, name="fast"), event_time="at")
    fast.union(quiet).window(ms.tumbling("1m")).agg(n=ms.count(), name="minutes").write(ms.blackhole())
    return job


def held(found: list[dict[str, Any]], waits: str) -> list[dict[str, Any]]:
    return [row for row in found if row["waits"] == waits]


@pytest.mark.parametrize("parallelism", [1, 2])
def test_the_split_that_holds_the_watermark_is_named_with_what_to_do(tmp_path: Path, parallelism: int) -> None:
    store = tmp_path / "job.duckdb"

    def good(found: list[dict[str, Any]]) -> bool:
        return any("it has had no rows" in row["reason"] and row["seconds"] > 0.05 for row in held(found, "watermark"))

    with Asking(store, good) as asking:
        quiet_and_fast().run(store, every="20ms", parallelism=parallelism, control=asking.control)
    hold = held(asking.found, "watermark")[0]
    assert hold["holder"].startswith("split '")
    assert hold["holder"].endswith("of source 'quiet'")
    assert hold["watermark"] == int((START + dt.timedelta(seconds=5)).replace(tzinfo=dt.UTC).timestamp()) * 1_000_000
    assert hold["reason"] == (
        "it has had no rows for so long; with idle_timeout= it would stop holding the others back"
    )

    # Stopped, the last checkpoint names it too, the one that is furthest behind first.
    told = [json.loads(line) for line in call("explain-stuck", store).stdout.splitlines()]
    assert [row["holder"].rpartition(" ")[2] for row in told] == ["'quiet'", "'fast'"]
    assert told[0]["watermark"] == "2026-01-01 00:00:05"
    assert told[0]["reason"].startswith("its rows were the oldest when the job ended; it was last read ")
    assert "of source 'quiet'" in call("explain-stuck", store, "--format", "table").stdout


def test_an_idle_split_does_not_hold_the_watermark(tmp_path: Path) -> None:
    store = tmp_path / "job.duckdb"

    def good(found: list[dict[str, Any]]) -> bool:
        return any("'fast'" in row["holder"] for row in held(found, "watermark"))

    with Asking(store, good) as asking:
        quiet_and_fast(idle_timeout="50ms").run(store, every="20ms", control=asking.control)
    assert all("'quiet'" not in row["holder"] for row in held(asking.found, "watermark"))


@pytest.mark.parametrize("parallelism", [1, 2])
def test_the_function_behind_which_a_barrier_waits_is_named(tmp_path: Path, parallelism: int) -> None:
    store = tmp_path / "job.duckdb"
    go_on = threading.Event()

    def slow(row: dict[str, Any]) -> dict[str, Any]:
        go_on.wait()
        return row

    job = ms.Job("slow")
    numbers = job.read(ms.generator(rows, schema=SCHEMA, rate=1_000, rows=100, name="numbers"), event_time="at")
    numbers.map(slow, schema=SCHEMA, name="slowly").deduplicate("n").write(ms.blackhole())

    def good(found: list[dict[str, Any]]) -> bool:
        if any("slowly" in row["holder"] and (row["seconds"] or 0) > 0.1 for row in held(found, "barrier")):
            go_on.set()
        return go_on.is_set()

    with Asking(store, good) as asking:
        job.run(store, every="10ms", parallelism=parallelism, control=asking.control)
    hold = held(asking.found, "barrier")[0]
    assert hold["holder"].startswith("map 'slowly', subtask ")
    assert "it has been at one piece of work since, with the barrier of epoch" in hold["reason"]


def test_a_sink_that_does_not_come_back_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from millstream.connectors.files_committer import FilesCommitter

    store = tmp_path / "job.duckdb"
    go_on = threading.Event()
    commit = FilesCommitter.commit

    def slow(self: FilesCommitter, epoch: int, committables: Any) -> None:
        go_on.wait()
        commit(self, epoch, committables)

    monkeypatch.setattr(FilesCommitter, "commit", slow)
    job = ms.Job("slow")
    source = ms.generator(rows, schema=SCHEMA, rate=1_000, rows=100, name="numbers")
    job.read(source).write(ms.jsonl(tmp_path / "out", hold_bytes=0, name="out"))

    def good(found: list[dict[str, Any]]) -> bool:
        if any(row["holder"] == "sink 'out'" for row in found):
            go_on.set()
        return go_on.is_set()

    with Asking(store, good) as asking:
        job.run(store, every="10ms", control=asking.control)
    (hold,) = asking.found
    assert (hold["waits"], "it is making it visible" in hold["reason"]) == ("barrier", True)


class Endless:
    """Rows of a table that come until it is told to end, the first of them at once."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def __call__(self, start: int, stop: int) -> pa.RecordBatch:
        if start:
            self.go_on.wait()
        return rows(start, stop)


@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("timed", [False, True])
def test_the_table_that_is_read_first_is_named(tmp_path: Path, timed: bool, parallelism: int) -> None:
    store = tmp_path / "job.duckdb"
    table = Endless()
    job = ms.Job("table")
    source = ms.generator(rows, schema=SCHEMA, rate=1_000, rows=50, name="numbers")
    numbers = job.read(source, event_time="at" if timed else None)
    names = job.read(ms.generator(table, schema=SCHEMA, rows=20, batch_rows=10, name="names")).filter(ms.col("n") >= 0)
    joined = numbers.join_table(names.select("n"), on="n", how="left", name="with names")
    (joined.window(ms.tumbling("1m")).agg(n=ms.count()) if timed else joined).write(ms.blackhole())

    def good(found: list[dict[str, Any]]) -> bool:
        if any((row["seconds"] or 0) > 0.05 for row in held(found, "table")):
            table.go_on.set()
        return table.go_on.is_set()

    with Asking(store, good) as asking:
        job.run(store, every="10ms", parallelism=parallelism, control=asking.control)
    holds = held(asking.found, "table")
    assert {row["holder"].rpartition(" of ")[2] for row in holds} == {"source 'names'"}
    assert {row["reason"] for row in holds} == {
        "join_table 'with names' reads it to its end, as a table, before the first row that is joined with it"
    }
    assert not held(asking.found, "watermark"), "a timeout would not help"


def test_a_job_without_event_time_or_a_checkpoint_under_way_waits_for_nothing(tmp_path: Path) -> None:
    store = tmp_path / "job.duckdb"
    job = ms.Job("plain")
    job.read(ms.generator(rows, schema=SCHEMA, rate=1_000, name="numbers")).write(ms.blackhole())
    answers: list[list[dict[str, Any]]] = []

    def good(found: list[dict[str, Any]]) -> bool:
        answers.append(found)
        return len(answers) > 20

    with Asking(store, good) as asking:
        job.run(store, every="1h", control=asking.control)
    assert answers[-1] == []
    assert call("explain-stuck", store, "--format", "table").stderr == "the job is stopped; no split was behind\n"
