"""Committers are closed when nothing of theirs is under way any more, and whenever a generation ends."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import millstream as ms
import pytest
from millstream.connectors.memory import MemorySink
from millstream.engine import failpoints
from millstream.engine.sink import Committable, Committer


class SlowSink(MemorySink):
    """Takes its time to commit, and notes what is done to its committers."""

    def __init__(self) -> None:
        super().__init__()
        self.committing = threading.Event()
        self.open: list[Committer] = []
        self.mistakes: list[str] = []

    def committer(self, *about: Any) -> Committer:
        made = _SlowCommitter(self)
        self.open.append(made)
        return made


class _SlowCommitter(Committer):
    def __init__(self, sink: SlowSink) -> None:
        self._sink = sink
        self._closed = threading.Event()

    def commit(self, epoch: int, committables: list[Committable]) -> None:
        self._sink.committing.set()
        if self._closed.wait(0.2):
            self._sink.mistakes.append(f"closed while it committed epoch {epoch}")

    def close(self) -> None:
        self._closed.set()
        self._sink.open.remove(self)


def test_a_failure_elsewhere_waits_for_the_commit_that_is_under_way(tmp_path: Path) -> None:
    sink = SlowSink()
    failed: list[int] = []

    def numbers(cursor: int) -> Any:
        if cursor == 1 and not failed:
            assert sink.committing.wait(20)
            failed.append(cursor)
            raise ms.UserCodeError("while the first epoch is committed")
        return ([{"n": cursor}], cursor + 1, True) if cursor < 3 else None

    job = ms.Job("numbers")
    job.read(ms.poll(numbers, schema={"n": int}, start=0, bounded=True)).write(sink)
    assert job.run(tmp_path / "s.duckdb", every="10ms").restarts == 1
    assert (sink.mistakes, sink.open) == ([], [])


def test_they_are_closed_where_nothing_is_left_to_run(tmp_path: Path) -> None:
    sink = SlowSink()
    job = ms.Job("numbers")
    job.read(ms.memory_source([{"n": 1}])).write(sink)
    job.run(tmp_path / "s.duckdb")
    assert job.run(tmp_path / "s.duckdb").outcome == "already finished"
    failpoints.arm("recovery.commit_again=raise")
    with pytest.raises(ms.JobFailed):
        job.run(tmp_path / "s.duckdb", restarts=0)
    failpoints.disarm()
    assert sink.open == []
