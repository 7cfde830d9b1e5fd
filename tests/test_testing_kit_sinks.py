"""The conformance kit takes sinks that keep the contract, and catches whatever breaks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from millstream.engine.sink import Committable, Committer, Sink, SinkContext, SinkKind, SinkWriter
from millstream.testing import check_sink


@dataclass
class Place:
    """A table that others read, and a room behind it where nobody looks."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    staged: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    epochs: set[int] = field(default_factory=set)

    def read(self) -> list[dict[str, Any]]:
        return self.rows


class StagingSink(Sink):
    """A two-phase sink that keeps the contract; the broken ones change one thing each."""

    kind = SinkKind.TWO_PHASE
    name = "table"

    def __init__(self, place: Place) -> None:
        self.place = place

    def identity(self) -> str:
        return "table"

    def writer(self, schema: pa.Schema, context: SinkContext) -> SinkWriter:
        return StagingWriter(self, context)

    def committer(self, schema: pa.Schema, context: SinkContext) -> Committer:
        return StagingCommitter(self, context)

    def at_write(self, rows: list[dict[str, Any]]) -> None:
        pass

    def at_prepare(self, rows: list[dict[str, Any]]) -> None:
        pass

    def payload(self, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {"staged": name}

    def stage_name(self, context: SinkContext, epoch: int) -> str:
        return f"g{context.generation}-{epoch}-{context.subtask}"

    def commit(self, epoch: int, payloads: list[Mapping[str, Any]]) -> None:
        for payload in payloads:
            self.place.rows += self.place.staged.pop(payload["staged"], [])

    def discard(self, generation: int) -> None:
        for name in [name for name in self.place.staged if not name.startswith(f"g{generation}-")]:
            del self.place.staged[name]


class StagingWriter(SinkWriter):
    def __init__(self, sink: StagingSink, context: SinkContext) -> None:
        self.sink = sink
        self.context = context
        self.rows: list[dict[str, Any]] = []

    def write(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.to_pylist()
        self.sink.at_write(batch.to_pylist())

    def prepare(self, epoch: int, final: bool) -> Sequence[Committable]:
        rows, self.rows = self.rows, []
        name = self.sink.stage_name(self.context, epoch)
        self.sink.place.staged[name] = rows
        self.sink.at_prepare(rows)
        return [Committable(self.sink.payload(name, rows))] if rows else []


class StagingCommitter(Committer):
    def __init__(self, sink: StagingSink, context: SinkContext) -> None:
        self.sink = sink
        self.context = context

    def commit(self, epoch: int, committables: Sequence[Committable]) -> None:
        self.sink.commit(epoch, [c.payload for c in committables])

    def discard_uncommitted(self) -> None:
        self.sink.discard(self.context.generation)


class OutboxSink(StagingSink):
    """Rows travel in the checkpoint; a marker in the table says which epochs are in it."""

    kind = SinkKind.OUTBOX

    def payload(self, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {"rows": rows}

    def commit(self, epoch: int, payloads: list[Mapping[str, Any]]) -> None:
        if epoch not in self.place.epochs:
            self.place.rows += [row for payload in payloads for row in payload["rows"]]
            self.place.epochs.add(epoch)


class CommitsTwice(OutboxSink):
    def commit(self, epoch: int, payloads: list[Mapping[str, Any]]) -> None:
        self.place.rows += [row for payload in payloads for row in payload["rows"]]


class RemembersCommitsOnlyInTheProcess(OutboxSink):
    def __init__(self, place: Place) -> None:
        super().__init__(replace(place, epochs=set()))
        self.place.rows = place.rows


class ShowsRowsAtOnce(StagingSink):
    def at_write(self, rows: list[dict[str, Any]]) -> None:
        self.place.rows += rows

    def commit(self, epoch: int, payloads: list[Mapping[str, Any]]) -> None:
        pass


class ShowsRowsWhenPrepared(ShowsRowsAtOnce):
    def at_write(self, rows: list[dict[str, Any]]) -> None:
        pass

    def at_prepare(self, rows: list[dict[str, Any]]) -> None:
        self.place.rows += rows


class PublishesLeftovers(StagingSink):
    def discard(self, generation: int) -> None:
        self.commit(0, [{"staged": name} for name in list(self.place.staged)])


class DiscardsWhatIsStillToCommit(StagingSink):
    """Removes leftovers as soon as it starts, before the last epoch is committed again."""

    def committer(self, schema: pa.Schema, context: SinkContext) -> Committer:
        self.discard(context.generation)
        return super().committer(schema, context)


class ReusesNames(StagingSink):
    """Names staged rows by epoch alone, so that two subtasks overwrite each other."""

    def stage_name(self, context: SinkContext, epoch: int) -> str:
        return f"g{context.generation}-{epoch}"


class CommitsOnlyTheNextEpoch(OutboxSink):
    """Takes a gap in the epochs for a sign that all is done already."""

    def commit(self, epoch: int, payloads: list[Mapping[str, Any]]) -> None:
        if epoch == len(self.place.epochs) + 1:
            super().commit(epoch, payloads)


class LosesTheFirstRow(StagingSink):
    def at_prepare(self, rows: list[dict[str, Any]]) -> None:
        del rows[:1]


class UpsertSink(StagingSink):
    """Writes by key at once; doing it again changes nothing."""

    kind = SinkKind.IDEMPOTENT

    def at_write(self, rows: list[dict[str, Any]]) -> None:
        known = {row["n"]: row for row in [*self.place.rows, *rows]}
        self.place.rows[:] = known.values()

    def commit(self, epoch: int, payloads: list[Mapping[str, Any]]) -> None:
        pass


class CallsAppendingIdempotent(ShowsRowsAtOnce):
    kind = SinkKind.IDEMPOTENT


class AdmitsRepeating(ShowsRowsAtOnce):
    kind = SinkKind.AT_LEAST_ONCE


OUT = pa.RecordBatch.from_pylist([{"n": n, "s": f"x{n}"} for n in range(7)])


def check(make: Callable[[Place], Sink]) -> list[dict[str, Any]]:
    return check_sink(Place, make, Place.read, [OUT.slice(0, 4), OUT.slice(4)])


@pytest.mark.parametrize("sink", [StagingSink, OutboxSink, UpsertSink, AdmitsRepeating])
def test_sinks_that_keep_the_contract(sink: Callable[[Place], Sink]) -> None:
    assert sorted(row["n"] for row in check(sink)) == list(range(7))


@pytest.mark.parametrize(
    ("sink", "message"),
    [
        (CommitsTwice, r"commit twice, after a second commit\(1\): too many"),
        (RemembersCommitsOnlyInTheProcess, "too many"),
        (ShowsRowsAtOnce, "commit twice, while epoch 1 is written: too many"),
        (ShowsRowsWhenPrepared, r"commit twice, after prepare\(1\): too many"),
        (PublishesLeftovers, "crash after prepare, after the restart: .*too many"),
        (DiscardsWhatIsStillToCommit, "crash before commit, after the restart, which commits epoch 2: missing"),
        (ReusesNames, "without a crash: after the commit of epoch 1 1 rows are seen, of 2 written"),
        (CommitsOnlyTheNextEpoch, r"checkpoint not written, after commit\(3\), which brings epoch 2 along: missing"),
        (LosesTheFirstRow, "after the commit of epoch 1 0 rows are seen, of 2 written"),
        (CallsAppendingIdempotent, "crash before the barrier, at the end: too many"),
    ],
)
def test_sinks_that_break_it(sink: Callable[[Place], Sink], message: str) -> None:
    with pytest.raises(AssertionError, match=rf"(?s)sink 'table'.*{message}"):
        check(sink)


def test_the_memory_sink() -> None:
    seen = check_sink(ms.memory_sink, lambda sink: sink, lambda sink: sink.rows(), [OUT])
    assert sorted(row["n"] for row in seen) == list(range(7))


@pytest.mark.parametrize(
    "options",
    [{}, {"hold_bytes": 0}, {"atomic_epochs": False}, {"partition_by": ["s"], "hold_bytes": 0}],
    ids=str,
)
def test_the_parquet_sink(options: dict[str, Any], tmp_path: Path) -> None:
    places = iter(range(100))

    def read(folder: Path) -> list[dict[str, Any]]:
        return [row for path in folder.rglob("*.parquet") for row in pq.read_table(path, partitioning=None).to_pylist()]

    def make(folder: Path) -> Sink:
        return ms.parquet(folder, staging=tmp_path / f"staging-{folder.name}", **options)

    seen = check_sink(lambda: tmp_path / f"out-{next(places)}", make, read, [OUT])
    assert sorted(row["n"] for row in seen) == list(range(7))
