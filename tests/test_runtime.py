"""Whole jobs on the real runtime, threads and all."""

from __future__ import annotations

import datetime as dt
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream import col
from millstream.cli.errors import HANGS, exit_code
from millstream.engine import failpoints
from millstream.engine.errors import JobHangs, MillstreamError
from millstream.engine.runtime import scheduler
from millstream.engine.runtime.coordinator import Coordinator
from millstream.engine.source import ReadContext, Source, Split, SplitEnd, SplitReader
from millstream.engine.store.server import ask
from sample_jobs import START, expected, orders, result, revenue_job


@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_a_windowed_job_gives_the_same_at_any_parallelism(parallelism: int) -> None:
    out = ms.memory_sink()
    assert revenue_job(out).run(parallelism=parallelism).outcome == "finished"
    assert result(out) == expected()


def test_the_end_of_the_input_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Coordinator, "seconds_to_wait", 3_600.0)  # nothing may happen only because it is looked for
    out = ms.memory_sink()
    assert revenue_job(out).run(parallelism=2).outcome == "finished"
    assert result(out) == expected()


def test_a_finished_job_says_so_and_does_nothing(tmp_path: Path) -> None:
    out = ms.memory_sink()
    store = tmp_path / "job.duckdb"
    assert revenue_job(out).run(store).outcome == "finished"
    before = result(out)
    assert revenue_job(out).run(store).outcome == "already finished"
    assert result(out) == before


def test_an_operator_failure_restarts_the_job_from_its_last_checkpoint(tmp_path: Path) -> None:
    out = ms.memory_sink()
    failpoints.arm("sink.prepare=raise@1")
    try:
        done = revenue_job(out).run(tmp_path / "job.duckdb", every="20ms", restarts=2)
    finally:
        failpoints.disarm()
    assert (done.outcome, done.restarts) == ("finished", 1)
    assert result(out) == expected()


def test_a_job_that_keeps_failing_gives_up_and_says_why(tmp_path: Path) -> None:
    job = ms.Job("broken")

    def explode(row: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("no such shop")

    job.read(ms.memory_source(orders(5))).map(explode, schema={"id": "int64"}).write(ms.memory_sink())
    with pytest.raises(ms.JobFailed, match="no such shop"):
        job.run(tmp_path / "job.duckdb", restarts=0)


def test_stop_takes_a_last_checkpoint_and_the_next_run_goes_on(tmp_path: Path) -> None:
    out = ms.memory_sink()
    control = ms.Control()
    store = tmp_path / "job.duckdb"
    job = ms.Job("numbers")

    def numbers(start: int, stop: int) -> Any:
        return pa.RecordBatch.from_pydict({"n": list(range(start, stop))})

    schema = pa.schema([("n", pa.int64())])
    job.read(ms.generator(numbers, schema=schema, rows=None, batch_rows=100)).write(out)
    stopped = job.run(store, every="20ms", control=control, on_status=lambda status: control.stop())
    assert stopped.outcome == "stopped"
    first = [row["n"] for row in out.rows()]
    assert sorted(first) == list(range(len(first)))

    control = ms.Control()
    again = job.run(store, every="20ms", control=control, on_status=lambda status: control.stop())
    assert again.restored_from == stopped.epoch
    both = [row["n"] for row in out.rows()]
    assert sorted(both) == list(range(len(both)))
    assert len(both) >= len(first)


def test_union_and_split_keep_every_row() -> None:
    out = ms.memory_sink()
    job = ms.Job("parts")
    small, large, rest = job.read(ms.memory_source(orders(100))).split(col("amount") < 4, col("amount") > 8)
    tagged = [part.with_columns(part=name) for part, name in ((small, "small"), (large, "large"), (rest, "rest"))]
    tagged[0].union(*tagged[1:]).write(out)
    job.run(parallelism=2)
    assert Counter(row["part"] for row in out.rows()) == Counter(
        "small" if r["amount"] < 4 else "large" if r["amount"] > 8 else "rest" for r in orders(100)
    )


def test_late_rows_come_out_of_the_late_stream() -> None:
    rows = [{"at": START + dt.timedelta(seconds=s), "n": n} for n, s in enumerate([0, 61, 5, 125, 62])]
    out, late = ms.memory_sink("out"), ms.memory_sink("late")
    job = ms.Job("late")
    counted = (
        job.read(ms.memory_source([ms_batch([row]) for row in rows]), event_time="at")
        .window(ms.tumbling("1m"))
        .agg(rows=ms.count())
    )
    counted.write(out)
    counted.late.write(late)
    job.run()
    assert sorted(row["n"] for row in late.rows()) == [2, 4]
    assert sum(row["rows"] for row in out.rows()) == 3


def ms_batch(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    return pa.RecordBatch.from_pylist(rows)


class CountedReader(SplitReader):
    """One row a read; counts how many of its kind are open."""

    open = 0

    def __init__(self, position: int) -> None:
        self._next = position
        CountedReader.open += 1

    def read(self) -> pa.RecordBatch | SplitEnd:
        if self._next == 100:
            return SplitEnd.FINISHED
        self._next += 1
        return pa.RecordBatch.from_pydict({"n": [self._next - 1]})

    def position(self) -> int:
        return self._next

    def close(self) -> None:
        CountedReader.open -= 1


class CountedSource(Source):
    name = "numbers"
    schema = pa.schema({"n": pa.int64()})

    def identity(self) -> str:
        return "numbers"

    def discover(self) -> list[Split]:
        return [Split("all")]

    def open(self, split: Split, position: Any, context: ReadContext) -> SplitReader:
        return CountedReader(position or 0)


def test_a_failed_generation_lets_go_of_its_readers(tmp_path: Path) -> None:
    open_when_called = []

    def fail_once(row: dict[str, Any]) -> dict[str, Any]:
        open_when_called.append(CountedReader.open)
        if row["n"] == 50 and len(open_when_called) < 60:
            raise RuntimeError("not now")
        return row

    out = ms.memory_sink()
    job = ms.Job("numbers")
    job.read(CountedSource()).map(fail_once, schema=CountedSource.schema).write(out)
    assert job.run(tmp_path / "job.duckdb", restarts=3).restarts == 1
    assert sorted(row["n"] for row in out.rows()) == list(range(100))
    assert set(open_when_called) == {1}
    assert CountedReader.open == 0


def test_a_long_query_does_not_keep_a_job_from_ending(tmp_path: Path) -> None:
    store = tmp_path / "job.duckdb"
    job = ms.Job("numbers")
    schema = pa.schema({"n": pa.int64()})

    def numbers(start: int, stop: int) -> pa.RecordBatch:
        return pa.record_batch({"n": list(range(start, stop))})

    job.read(ms.generator(numbers, schema=schema, rows=None, rate=100)).write(ms.blackhole())
    control, refused = ms.Control(), []

    def query() -> None:
        try:
            ask(store, "query", sql="SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b")
        except MillstreamError as error:
            refused.append(str(error))

    asker = threading.Thread(target=query)

    def ask_then_stop(status: Any) -> None:
        if not asker.ident:
            asker.start()
        elif asker.is_alive():
            control.stop()

    assert job.run(store, every="20ms", control=control, on_status=ask_then_stop).outcome == "stopped"
    asker.join()
    assert "nterrupt" in refused[0]


def test_a_function_that_hangs_ends_the_job_and_not_only_its_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "HANGS_AFTER", 0.1)
    go_on = threading.Event()

    def hang(row: dict[str, Any]) -> dict[str, Any]:
        go_on.wait()
        return row

    job = ms.Job("numbers")
    job.read(ms.memory_source([{"n": 1}])).map(hang, schema={"n": "int64"}).write(ms.blackhole())
    with pytest.raises(
        JobHangs, match=r"worker-0 did not stop within .*checkpoint 1 is not complete.*--supervise"
    ) as end:
        job.run(tmp_path / "job.duckdb", every="10ms", checkpoint_timeout="50ms")
    go_on.set()
    assert exit_code(end.value) == HANGS
    assert exit_code(ms.DataError("bad")) == 1
