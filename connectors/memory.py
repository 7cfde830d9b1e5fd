"""Rows from memory and rows into memory: for tests, notebooks and small programs."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa
from millstream.engine.errors import JobError
from millstream.engine.expression_types import Schema, schema_of
from millstream.engine.sink import Committable, Committer, Sink, SinkContext, SinkKind, SinkWriter
from millstream.engine.source import Position, ReadContext, Source, Split, SplitEnd, SplitOrder, SplitReader

Rows: TypeAlias = pa.Table | Sequence[pa.RecordBatch] | Sequence[Mapping[str, Any]]
"""What ``memory_source`` takes: a table, batches, or dicts."""


def memory_source(
    rows: Rows,
    *,
    schema: Schema | None = None,
    name: str = "memory",
    splits: int = 1,
    bounded: bool = True,
) -> MemorySource:
    """Read rows that are in memory; after a restart they are read on from where the checkpoint says.

    Args:
        rows: a table, batches (their boundaries are kept) or dicts.
        schema: needed for dicts whose types cannot be guessed, and when there are no rows.
        name: positions are kept under it, so two sources of a job need two names.
        splits: into how many pieces of consecutive rows they are cut.
        bounded: False: the source never ends by itself, it has nothing more to say.

    Raises:
        JobError: there is nothing to guess the schema from, or the rows do not fit it.

    >>> memory_source([{"a": 1}, {"a": 2}]).schema.names
    ['a']
    """
    if splits < 1:
        raise JobError(f"memory source {name!r}: splits must be at least 1, got {splits}")
    table = _as_table(rows, None if schema is None else schema_of(schema), name)
    return MemorySource(_without_views(table), name, splits, bounded)


def _as_table(rows: Rows, schema: pa.Schema | None, name: str) -> pa.Table:
    try:
        if isinstance(rows, pa.Table):
            return rows if schema is None else rows.cast(schema)
        if not rows and schema is None:
            raise JobError(f"memory source {name!r} has no rows: pass schema= to say which columns it would have")
        if rows and isinstance(rows[0], pa.RecordBatch):
            return pa.Table.from_batches(rows, schema=schema)
        return pa.Table.from_pylist(list(rows), schema=schema)
    except pa.ArrowException as error:
        raise JobError(f"memory source {name!r}: the rows do not fit one schema: {error}") from error


def _without_views(table: pa.Table) -> pa.Table:
    """Turn string views, as other libraries hand them over, into strings: Arrow cannot pick out rows of views."""
    for index, field in enumerate(table.schema):
        if pa.types.is_string_view(field.type) or pa.types.is_binary_view(field.type):
            plain = pa.string() if pa.types.is_string_view(field.type) else pa.binary()
            table = table.set_column(index, field.with_type(plain), table.column(index).cast(plain))
    return table


@dataclass(frozen=True, slots=True, eq=False)
class MemorySource(Source):
    """Rows in memory; made by ``memory_source``."""

    table: pa.Table
    given_name: str
    splits: int
    is_bounded: bool

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.given_name

    def identity(self) -> str:
        """The name, the columns and the way it is cut; not the rows, so that more of them may follow."""
        columns = ", ".join(f"{f.name} {f.type}" for f in self.schema)
        return f"memory {self.given_name!r} ({columns}) in {self.splits}"

    @property
    def schema(self) -> pa.Schema:
        """The columns it yields."""
        return self.table.schema

    @property
    def bounded(self) -> bool:
        """Whether it ends by itself."""
        return self.is_bounded

    @property
    def order(self) -> SplitOrder:
        """All at once if none ever ends."""
        return SplitOrder.SEQUENTIAL if self.is_bounded else SplitOrder.CONCURRENT

    def discover(self) -> Sequence[Split]:
        """Return the pieces."""
        return [Split(str(index)) for index in range(self.splits)]

    def open(self, split: Split, position: Position, context: ReadContext) -> SplitReader:
        """Open a piece; the position counts its rows."""
        index = int(split.id)
        start, end = (self.table.num_rows * i // self.splits for i in (index, index + 1))
        return _MemoryReader(self.table.slice(start, end - start), position or 0, context.batch_rows, self.is_bounded)


class _MemoryReader(SplitReader):
    def __init__(self, rows: pa.Table, position: int, batch_rows: int, bounded: bool) -> None:
        self._batches = iter(rows.slice(position).to_batches(max_chunksize=batch_rows))
        self._position = position
        self._end = SplitEnd.FINISHED if bounded else SplitEnd.PENDING

    def read(self) -> pa.RecordBatch | SplitEnd:
        for batch in self._batches:
            if batch.num_rows:
                self._position += batch.num_rows
                return batch
        return self._end

    def position(self) -> Position:
        return self._position


def memory_sink(name: str = "memory") -> MemorySink:
    """Keep rows in memory, each exactly once: they are there when their checkpoint is committed, not before.

    >>> sink = memory_sink()
    >>> sink.rows()
    []
    """
    return MemorySink(name)


class MemorySink(Sink):
    """Committed rows; made by ``memory_sink``.

    The object plays the outside world: it outlives the job's restarts within the process, and a job that was
    killed and comes back with a new object finds only what is committed from its last checkpoint on.
    """

    def __init__(self, name: str = "memory") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._epochs: dict[tuple[str, str, int], pa.Table] = {}
        self._schema = pa.schema([])

    def __repr__(self) -> str:
        return f"MemorySink({self._name!r})"

    def rows(self) -> list[dict[str, Any]]:
        """The committed rows as dicts, in the order of their epochs."""
        return list(self.table().to_pylist())

    def table(self) -> pa.Table:
        """The committed rows, in the order of their epochs."""
        with self._lock:
            return pa.concat_tables([self._schema.empty_table(), *self._epochs.values()])

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self._name

    def identity(self) -> str:
        """The name: the object is not the same after a restart of the process."""
        return f"memory {self._name!r}"

    @property
    def kind(self) -> SinkKind:
        """How it has its effect once."""
        return SinkKind.TWO_PHASE

    def writer(self, schema: pa.Schema, context: SinkContext) -> SinkWriter:
        """Make one running copy."""
        del context
        return _MemoryWriter(schema)

    def committer(self, schema: pa.Schema, context: SinkContext) -> Committer:
        """Make the committer."""
        with self._lock:
            self._schema = schema
        return _MemoryCommitter(self, context)

    def guarantee(self) -> str:
        """One sentence for the plan."""
        return "exactly once while the process lives; rows travel in the checkpoint until they are committed"

    def keep(self, job_id: str, sink_id: str, epoch: int, rows: pa.Table) -> None:
        """Take an epoch's rows, unless they are here already. For the committer."""
        with self._lock:
            self._epochs.setdefault((job_id, sink_id, epoch), rows)


class _MemoryWriter(SinkWriter):
    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []

    def write(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)

    def prepare(self, epoch: int, final: bool) -> Sequence[Committable]:
        del epoch, final
        batches, self._batches = self._batches, []
        if not batches:
            return []
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_stream(buffer, self._schema) as stream:
            for batch in batches:
                stream.write_batch(batch)
        return [Committable({"arrow": buffer.getvalue().to_pybytes()})]


class _MemoryCommitter(Committer):
    def __init__(self, sink: MemorySink, context: SinkContext) -> None:
        self._sink = sink
        self._context = context

    def commit(self, epoch: int, committables: Sequence[Committable]) -> None:
        tables = [pa.ipc.open_stream(c.payload["arrow"]).read_all() for c in committables]
        if tables:
            self._sink.keep(self._context.job_id, self._context.sink_id, epoch, pa.concat_tables(tables))
