"""``check_sink``: a sink, crashed before, between and after the steps of a checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgpack
import pyarrow as pa
from millstream.engine.sink import Committable, Committer, Sink, SinkContext, SinkKind, SinkWriter
from millstream.testing.rows import bag, demand, difference
from millstream.testing.states import StateModel

Place = TypeVar("Place")
Seen = list[dict[str, Any]]

_STAGED: Final = frozenset({SinkKind.TWO_PHASE, SinkKind.OUTBOX})
"""The kinds that show nothing before the commit point."""


@dataclass(frozen=True)
class _Destination(Generic[Place]):
    """What the three functions a user passes in say about one place."""

    place: Place
    make: Callable[[Place], Sink]
    read: Callable[[Place], Sequence[Mapping[str, Any]]]
    schema: pa.Schema

    def sink(self) -> Sink:
        sink = self.make(self.place)
        sink.check(self.schema)
        return sink

    def seen(self) -> Seen:
        return [dict(row) for row in self.read(self.place)]


def check_sink(
    fresh: Callable[[], Place],
    make: Callable[[Place], Sink],
    read: Callable[[Place], Sequence[Mapping[str, Any]]],
    batches: Sequence[pa.RecordBatch],
) -> list[dict[str, Any]]:
    """Write the same epochs with and without crashes and demand that others see the same rows.

    The batches are dealt out to three epochs and several subtasks. Each scenario has a place of its own and ends with
    everything committed: no crash; a commit repeated at once; a crash before the barrier, after ``prepare``, after the
    checkpoint but before ``commit``, after ``commit``; two crashes in a row; a checkpoint that could not be written,
    so that its committables come with the next; restarts on more and fewer subtasks. After each step it is looked at
    what others see: a two-phase or outbox sink shows an epoch after its commit, whole, once, and nothing before.

    Args:
        fresh: returns a new, empty place, such as a folder or a table's name.
        make: returns the sink for a place, anew at every start of the job.
        read: returns the rows that others see in the place now; each row once however often it is asked.
        batches: what to write; at least three rows, all different. Keys must differ for sinks that upsert by key.

    Returns:
        The rows seen at the end of the run without a crash.

    Raises:
        AssertionError: a row was seen early, twice or never, or a promise was broken.

    >>> import pyarrow as pa
    >>> from millstream import memory_sink
    >>> batch = pa.RecordBatch.from_pylist([{"n": n} for n in range(4)])
    >>> seen = check_sink(memory_sink, lambda place: place, lambda place: place.rows(), [batch])
    >>> sorted(row["n"] for row in seen)
    [0, 1, 2, 3]
    """
    table = pa.Table.from_batches(batches)
    assert table.num_rows >= 3, "check_sink needs at least three rows: one for each epoch"

    def destination() -> _Destination[Place]:
        return _Destination(fresh(), make, read, table.schema)

    epochs = _dealt_out(table)
    plain = _Plain(destination(), epochs)
    for scenario in (
        _commit_twice,
        _crash_before_the_barrier,
        _crash_after_prepare,
        _crash_before_commit,
        _crash_after_commit,
        _crash_twice,
        _checkpoint_not_written,
        _restart_on_other_subtasks,
    ):
        scenario(_Trial(destination(), epochs, plain, scenario.__name__.strip("_").replace("_", " ")))
    return plain.after[-1]


def _dealt_out(table: pa.Table) -> list[pa.RecordBatch]:
    """Cut the rows into three epochs."""
    edges = [table.num_rows * i // 3 for i in range(4)]
    parts = [table.slice(start, end - start).combine_chunks() for start, end in itertools.pairwise(edges)]
    return [part.to_batches()[0] for part in parts]


class _Job(Generic[Place]):
    """The sink's side of a job: its writers, its committer, and a store that remembers the last committed epoch."""

    def __init__(self, destination: _Destination[Place]) -> None:
        self._to = destination
        self._generation = 0
        self._stored: tuple[int, list[Committable]] = (0, [])
        self._carried: list[Committable] = []
        sink = destination.sink()
        self.kind = sink.kind
        self.name = sink.name
        tables = sink.state_tables(destination.schema)
        self.holds_back = bool(tables)
        self._state = StateModel(tables, f"sink {sink.name!r}")
        self._writers: list[SinkWriter] = []
        self._committer: Committer

    @property
    def epoch(self) -> int:
        """The last epoch in the store."""
        return self._stored[0]

    def start(self, subtasks: int = 2, *, crash: bool = False) -> None:
        """Begin a generation: commit the last epoch again, discard what came after, restore the writers.

        With ``crash`` it ends before anything is discarded.
        """
        self._generation += 1
        self._carried = []
        sink = self._to.sink()
        epoch, committables = self._stored
        contexts = [
            SinkContext("check", "job-1", "sink-1", self._generation, index, subtasks, restored=epoch)
            for index in range(subtasks)
        ]
        self._committer = sink.committer(self._to.schema, contexts[0])
        if committables:
            self._committer.commit(epoch, _through_the_store(committables))
        if crash:
            return
        self._committer.discard_uncommitted()
        self._writers = [sink.writer(self._to.schema, context) for context in contexts]
        self._state.begin(subtasks)
        self._state.restore(self._writers)

    def write(self, rows: pa.RecordBatch) -> None:
        """Write each half of the rows through another writer, in small batches."""
        for index in range(rows.num_rows):
            self._writers[index % len(self._writers)].write(rows.slice(index, 1))

    def prepare(self, epoch: int, *, final: bool = False) -> list[Committable]:
        """Take the barrier."""
        prepared = [c for writer in self._writers for c in writer.prepare(epoch, final)]
        self._state.commit(epoch, [writer.snapshot(epoch) for writer in self._writers])
        return self._carried + prepared

    def prepare_without_state(self, epoch: int) -> None:
        """Take a barrier of which nothing will be stored: the crash comes first."""
        for writer in self._writers:
            writer.prepare(epoch, False)
            writer.snapshot(epoch)

    def carry(self, prepared: list[Committable]) -> None:
        """The checkpoint could not be written: its committables come with the next."""
        self._carried = prepared

    def store(self, epoch: int, prepared: list[Committable]) -> None:
        """The commit point."""
        self._stored, self._carried = (epoch, _through_the_store(prepared)), []

    def commit(self) -> None:
        """Make the last stored epoch visible."""
        epoch, committables = self._stored
        if committables:
            self._committer.commit(epoch, _through_the_store(committables))

    def checkpoint(self, epoch: int, rows: pa.RecordBatch, *, final: bool = False) -> None:
        """Write rows and go through all steps."""
        self.write(rows)
        self.store(epoch, self.prepare(epoch, final=final))
        self.commit()

    def close(self) -> None:
        """End as a job does that has finished."""
        for writer in self._writers:
            writer.close()
        self._committer.close()
        self._state.check_untouched()


def _through_the_store(committables: Sequence[Committable]) -> list[Committable]:
    packed = msgpack.packb([dict(c.payload) for c in committables])
    return [Committable(payload) for payload in msgpack.unpackb(packed, strict_map_key=False)]


class _Plain(Generic[Place]):
    """The run without a crash: ``after[n]`` is what others see after epoch n."""

    def __init__(self, destination: _Destination[Place], epochs: Sequence[pa.RecordBatch]) -> None:
        job = _Job(destination)
        where = f"sink {job.name!r}, without a crash"
        assert destination.make(destination.place).identity() == destination.make(destination.place).identity(), (
            f"{where}: identity() differs between equal sinks"
        )
        job.start()
        self.after: list[Seen] = [destination.seen()]
        assert not self.after[0], f"{where}: the place is not empty before anything is written"
        written = 0
        for number, rows in enumerate(epochs, 1):
            job.checkpoint(number, rows, final=number == len(epochs))
            written += rows.num_rows
            self.after.append(destination.seen())
            held_back = job.holds_back and number < len(epochs)
            seen = len(self.after[-1])
            assert seen == written or (held_back and seen < written) or job.kind not in _STAGED, (
                f"{where}: after the commit of epoch {number} {seen} rows are seen, of {written} written"
            )
        job.close()
        demand(destination.seen(), self.after[-1], f"{where}: closing it changed what is seen")


class _Trial(Generic[Place]):
    """One scenario: a job that crashes, and what must be seen meanwhile."""

    def __init__(
        self, destination: _Destination[Place], epochs: Sequence[pa.RecordBatch], plain: _Plain[Any], name: str
    ) -> None:
        self.job = _Job(destination)
        self.epochs = epochs
        self._plain = plain
        self._to = destination
        self._where = f"sink {self.job.name!r}, {name}"
        self.job.start()

    def look(self, committed: int, when: str) -> None:
        """Demand that exactly the first ``committed`` epochs are seen, as far as the sink's kind promises it."""
        if self.job.kind not in _STAGED:
            return
        found, wanted = bag(self._to.seen()), bag(self._plain.after[committed])
        if self.job.holds_back:
            # How much is held back may differ; nothing may be seen twice, or before its epoch.
            everything = bag(self._plain.after[-1])
            assert not found - everything, f"{self._where}, {when}: {difference(found, everything)}"
            return
        assert found == wanted, f"{self._where}, {when}: {difference(found, wanted)}"

    def finish(self, after: int) -> None:
        """Write what is left after so many epochs, and demand that all is seen once."""
        for number in range(after + 1, len(self.epochs) + 1):
            self.job.checkpoint(number, self.epochs[number - 1], final=number == len(self.epochs))
            self.look(number, f"after epoch {number}")
        self.end()

    def end(self) -> None:
        """Demand that all is seen once, also after the job was started again and found nothing to do."""
        self.job.close()
        self.job.start()
        self.job.close()
        found, wanted = bag(self._to.seen()), bag(self._plain.after[-1])
        if self.job.kind is SinkKind.AT_LEAST_ONCE:
            assert found >= wanted, f"{self._where}: {difference(found & wanted, wanted)}"
        else:
            assert found == wanted, f"{self._where}, at the end: {difference(found, wanted)}"


# -- the scenarios; epoch 1 is always committed first -----------------------------------------------------------


def _commit_twice(trial: _Trial[Any]) -> None:
    job = trial.job
    for number, rows in enumerate(trial.epochs, 1):
        job.write(rows)
        trial.look(number - 1, f"while epoch {number} is written")
        prepared = job.prepare(number, final=number == len(trial.epochs))
        trial.look(number - 1, f"after prepare({number})")
        job.store(number, prepared)
        job.commit()
        trial.look(number, f"after commit({number})")
        job.commit()
        trial.look(number, f"after a second commit({number})")
    trial.end()


def _crash_before_the_barrier(trial: _Trial[Any]) -> None:
    trial.job.checkpoint(1, trial.epochs[0])
    trial.job.write(trial.epochs[1])
    trial.job.start()
    trial.look(1, "after the restart")
    trial.finish(1)


def _crash_after_prepare(trial: _Trial[Any]) -> None:
    trial.job.checkpoint(1, trial.epochs[0])
    _prepare_and_forget(trial, 2)
    trial.job.start()
    trial.look(1, "after the restart: the checkpoint was never written")
    trial.finish(1)


def _prepare_and_forget(trial: _Trial[Any], epoch: int) -> None:
    """Prepare an epoch whose checkpoint is not written before the crash: neither is its state."""
    trial.job.write(trial.epochs[epoch - 1])
    trial.job.prepare_without_state(epoch)
    trial.look(epoch - 1, f"after prepare({epoch})")


def _crash_before_commit(trial: _Trial[Any]) -> None:
    job = trial.job
    job.checkpoint(1, trial.epochs[0])
    job.write(trial.epochs[1])
    job.store(2, job.prepare(2))
    job.write(trial.epochs[2])
    trial.look(1, "after the checkpoint of epoch 2, before its commit")
    job.start()
    trial.look(2, "after the restart, which commits epoch 2")
    trial.finish(2)


def _crash_after_commit(trial: _Trial[Any]) -> None:
    trial.job.checkpoint(1, trial.epochs[0])
    trial.job.checkpoint(2, trial.epochs[1])
    trial.job.write(trial.epochs[2])
    trial.job.start()
    trial.look(2, "after the restart, which commits epoch 2 again")
    trial.finish(2)


def _crash_twice(trial: _Trial[Any]) -> None:
    job = trial.job
    job.write(trial.epochs[0])
    job.prepare_without_state(1)
    job.start()
    job.checkpoint(1, trial.epochs[0])
    job.write(trial.epochs[1])
    job.store(2, job.prepare(2))
    job.start(crash=True)
    trial.look(2, "after a restart that crashed again, once epoch 2 was committed")
    job.start()
    _prepare_and_forget(trial, 3)
    job.start()
    trial.finish(2)


def _checkpoint_not_written(trial: _Trial[Any]) -> None:
    job = trial.job
    job.checkpoint(1, trial.epochs[0])
    job.write(trial.epochs[1])
    job.carry(job.prepare(2))
    trial.look(1, "after prepare(2), whose checkpoint could not be written")
    job.write(trial.epochs[2])
    job.store(3, job.prepare(3, final=True))
    trial.look(1, "before commit(3)")
    job.commit()
    trial.look(3, "after commit(3), which brings epoch 2 along")
    trial.end()


def _restart_on_other_subtasks(trial: _Trial[Any]) -> None:
    job = trial.job
    for number, subtasks in ((1, 3), (2, 1), (3, 2)):
        job.start(subtasks)
        job.write(trial.epochs[number - 1])
        job.prepare_without_state(number)
        job.start(subtasks)
        job.checkpoint(number, trial.epochs[number - 1], final=number == len(trial.epochs))
        trial.look(number, f"after epoch {number} on {subtasks} subtasks")
    trial.end()
