"""``Job``: where streams begin, and what runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, overload

import pyarrow as pa
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr, col
from millstream.engine.graph import Edge, Graph, Markers, Read, check_columns
from millstream.engine.plan import Plan, make_plan
from millstream.engine.source import MessageSource, Source
from millstream.engine.time import Duration, micros
from millstream.stream import Stream

if TYPE_CHECKING:
    from millstream.deduplicating import DeduplicatedStream
    from millstream.engine.runtime.coordinator import CheckpointSettings
    from millstream.engine.runtime.monitor import JobStatus
    from millstream.engine.runtime.run import Control, JobResult


IMPORTING: ContextVar[str | None] = ContextVar("IMPORTING", default=None)
"""The file in which the command line is looking for a job."""


class Job:
    """A graph of streams with a name.

    Args:
        name: how logs and errors call the job.

    >>> import millstream as ms
    >>> job = ms.Job("double")
    >>> out = ms.memory_sink()
    >>> numbers = job.read(ms.memory_source([{"n": 1}, {"n": 2}]))
    >>> numbers.select(twice=ms.col("n") * 2).write(out)
    >>> job.run().outcome
    'finished'
    >>> out.rows()
    [{'twice': 2}, {'twice': 4}]
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise JobError(f"a job needs a name, as in Job('orders'), got {name!r}")
        self.name = name
        self._graph = Graph()

    @overload
    def read(
        self,
        source: MessageSource,
        *,
        event_time: str | None = None,
        max_delay: Duration = 0,
        idle_timeout: Duration = 0,
        max_ahead: Duration | None = None,
        watermark: Expr | None = None,
        keep_markers: bool = False,
        name: str | None = None,
    ) -> DeduplicatedStream: ...

    @overload
    def read(
        self,
        source: Source,
        *,
        event_time: str | None = None,
        max_delay: Duration = 0,
        idle_timeout: Duration = 0,
        max_ahead: Duration | None = None,
        watermark: Expr | None = None,
        keep_markers: bool = False,
        name: str | None = None,
    ) -> Stream: ...

    def read(  # noqa: PLR0913 - all by name
        self,
        source: Source,
        *,
        event_time: str | None = None,
        max_delay: Duration = 0,
        idle_timeout: Duration = 0,
        max_ahead: Duration | None = None,
        watermark: Expr | None = None,
        keep_markers: bool = False,
        name: str | None = None,
    ) -> Stream:
        """Read a source.

        Of a source whose senders repeat messages, such as ``ms.http_source(..., id="order")``, only the first of each
        id is read; the others are in ``.duplicates`` of the result, and those too late to tell in ``.late``.

        Args:
            source: for example ``ms.files("orders/*.jsonl")``.
            event_time: the timestamp column that says when a row happened; needed for windows.
            max_delay: how much later than a newer row an older one may come. Rows later still are late.
            idle_timeout: after so long without rows, a split no longer holds event time back; 0: it always does.
            max_ahead: how much newer its rows may be than those of the slowest of the sources that they meet in a join
                or union, and of its own other splits; before a split is read further it waits for these. What waits
                in joins and windows is bounded by it. A source that has ended or is idle is not waited for.
            watermark: which rows are markers, as in ``col("kind") == "heartbeat"``. Event time is then told by these
                alone: one says that of its split no row before its own time (less ``max_delay``) is still to come.
            keep_markers: whether markers go on among the other rows.
            name: another name for the source; positions are kept under it, so that the source itself may change.

        Raises:
            JobError: ``source`` is not a source, or an option makes no sense without another.
            SchemaError: ``event_time`` is not a timestamp column of it, or ``watermark`` no condition over its columns.
        """
        if not isinstance(source, Source):
            raise JobError(f"job.read() takes a source such as ms.files('orders/*.jsonl'), got {source!r}")
        options = {"max_ahead": max_ahead, "watermark": watermark}
        needed_by = next((name for name, value in options.items() if value is not None), None)
        _check_time(source, event_time, needed_by)
        markers = _markers_of(source, watermark, keep_markers)
        ahead = None if max_ahead is None else micros(max_ahead)
        read = Read(source, event_time, micros(max_delay), micros(idle_timeout), ahead, markers)
        edge = Edge(self._graph.read(read, name).id)
        time = col(event_time) if event_time else None
        if isinstance(source, MessageSource):
            from millstream.deduplicating import first_of

            within = None if source.within is None else timedelta(microseconds=source.within)
            return first_of(self._graph, edge, time, (source.message_id,), within, None)
        return Stream(self._graph, edge, time)

    @property
    def graph(self) -> Graph:
        """The job as written."""
        return self._graph

    def with_graph(self, graph: Graph) -> Job:
        """Return a job of this name that runs another graph, such as this one's with other sinks."""
        job = Job(self.name)
        job._graph = graph
        return job

    def plan(self, parallelism: int = 1) -> Plan:
        """Plan the job without running it. Raises JobError if it lacks a source or a sink."""
        return make_plan(self.name, self._graph, parallelism)

    def run(  # noqa: PLR0913 - all by name
        self,
        store: str | Path | None = None,
        *,
        every: Duration = "10s",
        checkpoint_timeout: Duration = "10m",
        parallelism: int = 1,
        restarts: int = 3,
        memory: str | int | None = None,
        exactly_once: bool = False,
        drop_state: Sequence[str] = (),
        start_from: str | Path | None = None,
        max_dead_letters: int = 10_000,
        control: Control | None = None,
        on_status: Callable[[JobStatus], None] | None = None,
        moved_from: str | Path | None = None,
    ) -> JobResult:
        """Run the job until its sources end, or until ``control.stop()``.

        Args:
            store: the checkpoint file. Without one the job starts anew each time.
            every: how often to take a checkpoint.
            checkpoint_timeout: a checkpoint that is not complete after so long fails, and the job restarts.
            parallelism: subtasks per stage, and worker threads.
            restarts: how often in a row to restart after a failure that may pass.
            memory: bytes that state may hold, as in ``"2GB"``; beyond it the job ends at a checkpoint, to be resumed.
            exactly_once: refuse to run unless every path from source to sink is exactly-once.
            drop_state: names or ids of operators, sources and sinks whose state may be lost where it does not fit.
            start_from: what a store begins with that is not there yet: ``"STORE@NAME"`` for a savepoint of another,
                ``"STORE@12"`` for one of its epochs, or the file of either.
            max_dead_letters: how many dead letters the store may hold; with more the job fails.
            control: to stop it from elsewhere.
            on_status: called now and then with the job's numbers.
            moved_from: the folder that held store, input and output before they were moved, all together. Without
                it, files in other folders than at the last start are refused.

        Raises:
            JobError: the job cannot work as written.
            StateMismatch: the store holds state of another form of this job, which would be lost.
            StoreLocked: the job is already running.
            TooManyDeadLetters: it put more aside than ``max_dead_letters``; what came before is committed.
            JobFailed: it failed more often than ``restarts`` in a row.
            MemoryExceeded: its state has outgrown ``memory``.
        """
        from millstream.engine.runtime.run import RunSettings, run_job

        _refuse_while_imported()
        plan = self.plan(parallelism)
        if exactly_once:
            _demand_exactly_once(plan)
        settings = RunSettings(
            store=Path(store) if store is not None else None,
            checkpoints=_checkpoint_settings(every, checkpoint_timeout, memory, max_dead_letters),
            restarts=restarts,
            drop_state=tuple(drop_state),
            start_from=_beginning(start_from, store),
            on_status=on_status,
            moved_from=Path(moved_from).resolve() if moved_from is not None else None,
        )
        return run_job(plan, settings, control=control)


def _check_time(source: Source, event_time: str | None, needed_by: str | None) -> None:
    if event_time is None:
        if needed_by is not None:
            raise JobError(
                f"source {source.name!r}: {needed_by}= is about event time: name its column, as in "
                "job.read(..., event_time='paid_at')"
            )
        return
    check_columns(source.schema, [event_time], f"event_time of source {source.name!r}")
    type_ = source.schema.field(event_time).type
    if not (pa.types.is_timestamp(type_) or pa.types.is_date(type_)):
        raise SchemaError(
            f"event_time of source {source.name!r}: column {event_time!r} is {type_}, expected a timestamp. "
            f"Read it as one: give the source schema={{..., {event_time!r}: 'timestamp[us]'}}"
        )


def _markers_of(source: Source, watermark: Expr | None, kept: bool) -> Markers | None:
    if watermark is None:
        if kept:
            raise JobError("keep_markers= keeps the rows that watermark= names: say which, or leave it out")
        return None
    if not isinstance(watermark, Expr):
        raise JobError(
            f"source {source.name!r}: watermark= says which rows are markers, as in col('kind') == 'heartbeat', got "
            f"{watermark!r}"
        )
    type_ = watermark.type_in(source.schema)
    if not pa.types.is_boolean(type_):
        raise SchemaError(
            f"source {source.name!r}: watermark= needs a condition that is true or false; {watermark} is {type_}"
        )
    return Markers(watermark, kept)


def _refuse_while_imported() -> None:
    if (file := IMPORTING.get()) is not None:
        raise JobError(
            f"{file} runs its job itself when it is imported: leave that to the command line, or put job.run() "
            f"under if __name__ == '__main__':"
        )


def _beginning(start_from: str | Path | None, store: str | Path | None) -> str | None:
    if start_from is not None and store is None:
        raise JobError("start_from= begins a new store: say where it is to be, as in job.run('new.duckdb', ...)")
    return None if start_from is None else str(start_from)


def _checkpoint_settings(
    every: Duration, checkpoint_timeout: Duration, memory: str | int | None, max_dead_letters: int
) -> CheckpointSettings:
    from millstream.engine.memory import parse_bytes
    from millstream.engine.runtime.coordinator import CheckpointSettings

    interval, timeout = micros(every) / 1_000_000, micros(checkpoint_timeout) / 1_000_000
    if interval <= 0:
        raise JobError(f"every={every!r}: the time between checkpoints must be positive, as in every='1s'")
    if timeout <= 0:
        raise JobError(f"checkpoint_timeout={checkpoint_timeout!r} must be positive, as in '10m'")
    if max_dead_letters < 0:
        raise JobError(f"max_dead_letters={max_dead_letters}: at least 0, which allows none")
    limit = None if memory is None else parse_bytes(memory)
    return CheckpointSettings(interval, timeout, memory=limit, max_dead_letters=max_dead_letters)


def _demand_exactly_once(plan: Plan) -> None:
    weak = [g for g in plan.guarantees if not g.exactly_once]
    if weak:
        paths = "\n".join(f"  - {g.source} → {g.sink}: {g.reason}" for g in weak)
        raise JobError(f"job {plan.job!r} asks for exactly-once, but these paths are not:\n{paths}")
