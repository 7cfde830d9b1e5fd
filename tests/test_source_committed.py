"""What a source is told of checkpoints: positions that are durable and shown, never one that is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream.engine import failpoints
from millstream.engine.errors import ExternalError
from millstream.engine.source import ReadContext, Source, Split, SplitEnd, SplitOrder, SplitReader

ROWS = 1_000
SPLITS = 3
SCHEMA = pa.schema({"split": pa.string(), "n": pa.int64()})


class Told:
    """What the readers of a run were told, and what the sink showed by then."""

    def __init__(self) -> None:
        self.out = ms.memory_sink()
        self.positions: list[tuple[str, int]] = []
        self.opened: list[tuple[str, int | None]] = []
        self.too_early: list[tuple[str, int]] = []
        self.before_restart: list[tuple[str, int]] = []

    def note(self, split: str, position: int) -> None:
        self.positions.append((split, position))
        shown = {row["n"] for row in self.out.rows() if row["split"] == split}
        if not shown.issuperset(range(position)):
            self.too_early.append((split, position))


class ToldReader(SplitReader):
    def __init__(self, split: str, position: int, told: Told) -> None:
        self._split, self._next, self._told = split, position, told

    def read(self) -> pa.RecordBatch | SplitEnd:
        if self._next == ROWS:
            return SplitEnd.FINISHED
        self._next += 1
        return pa.RecordBatch.from_pydict({"split": [self._split], "n": [self._next - 1]}, schema=SCHEMA)

    def position(self) -> int:
        return self._next

    def committed(self, position: int) -> None:
        self._told.note(self._split, position)


class ToldSource(Source):
    name = "told"
    schema = SCHEMA
    order = SplitOrder.CONCURRENT

    def __init__(self, told: Told) -> None:
        self._told = told

    def identity(self) -> str:
        return "told"

    def discover(self) -> list[Split]:
        return [Split("a"), Split("b"), Split("c")]

    def open(self, split: Split, position: Any, context: ReadContext) -> SplitReader:
        if len(self._told.opened) == SPLITS:
            self._told.before_restart = list(self._told.positions)
        self._told.opened.append((split.id, position))
        return ToldReader(split.id, position or 0, self._told)


def run(told: Told, store: Path, parallelism: int = 1, restarts: int = 1) -> ms.JobResult:
    job = ms.Job("told")
    job.read(ToldSource(told)).write(told.out)
    return job.run(store, every="1ms", parallelism=parallelism, restarts=restarts)


@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_source_hears_of_positions_whose_rows_every_sink_shows(tmp_path: Path, parallelism: int) -> None:
    told = Told()
    run(told, tmp_path / "job.duckdb", parallelism)
    assert not told.too_early
    for split in "abc":
        heard = [position for of, position in told.positions if of == split]
        assert heard == sorted(heard)
        assert heard[-1] == ROWS, "the end, though the reader is closed by then"


@pytest.mark.parametrize("point", ["store.before_commit", "store.after_commit", "sink.commit", "source.committed"])
def test_after_a_failure_nothing_is_told_that_is_not_durable(tmp_path: Path, point: str) -> None:
    told = Told()
    failpoints.arm(f"{point}=raise@2")
    try:
        done = run(told, tmp_path / "job.duckdb")
    finally:
        failpoints.disarm()
    assert done.restarts == 1
    assert not told.too_early
    assert told.opened[SPLITS:], "the restart opened readers again"
    for split, position in told.opened[SPLITS:]:
        before = [heard for of, heard in told.before_restart if of == split]
        assert max(before, default=0) <= (position or 0)
    heard = dict(told.positions)
    assert all(heard[split] == ROWS for split, _ in told.opened[SPLITS:])


def test_a_source_that_cannot_take_it_fails_the_job(tmp_path: Path) -> None:
    class Refuses(Told):
        def note(self, split: str, position: int) -> None:
            raise ExternalError(f"nobody to tell of {split}")

    with pytest.raises(ms.JobFailed, match="nobody to tell of"):
        run(Refuses(), tmp_path / "job.duckdb", restarts=0)
