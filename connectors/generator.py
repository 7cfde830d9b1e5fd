"""Rows made by a function of their numbers: endless test data that can be read again from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from millstream.engine.errors import JobError, UserCodeError
from millstream.engine.expression_types import Schema, schema_of
from millstream.engine.source import Position, ReadContext, Source, Split, SplitEnd, SplitOrder, SplitReader
from millstream.engine.time import Clock, SystemClock

Make = Callable[[int, int], pa.RecordBatch]
"""Makes the rows numbered ``start`` to ``stop - 1``, and always the same ones for the same numbers."""


def generator(  # noqa: PLR0913
    fn: Make,
    *,
    schema: Schema,
    rows: int | None = None,
    rate: float | None = None,
    batch_rows: int = 8192,
    splits: int = 1,
    clock: Clock | None = None,
    name: str = "generator",
) -> GeneratorSource:
    """Make rows from their numbers.

    Args:
        fn: ``fn(start, stop)`` returns the rows numbered ``start`` to ``stop - 1`` as a record batch of
            ``schema``. It must be a pure function of the numbers: after a restart it is asked for some again.
        rows: how many there are; None: no end.
        rate: rows a second, all splits together; None: as fast as they are taken.
        batch_rows: rows in a batch at most; fewer if ``rate`` is low, so that there are ten batches a second.
        splits: how many subtasks can share the work; split i makes every ``splits``-th batch.
        clock: what ``rate`` is measured by; None: the machine's.
        name: positions are kept under it, so two generators of a job need two names.

    Raises:
        JobError: an argument makes no sense.

    >>> def squares(start: int, stop: int) -> pa.RecordBatch:
    ...     return pa.RecordBatch.from_pydict({"square": [n * n for n in range(start, stop)]})
    >>> generator(squares, schema=pa.schema([("square", pa.int64())]), rows=1000).bounded
    True
    """
    for argument, value, least in (("rows", rows, 0), ("batch_rows", batch_rows, 1), ("splits", splits, 1)):
        if value is not None and value < least:
            raise JobError(f"generator {name!r}: {argument} must be at least {least}, got {value}")
    if rate is not None and not 0 < rate < float("inf"):
        raise JobError(f"generator {name!r}: rate must be above 0 rows a second, got {rate}")
    if rate is not None:
        batch_rows = max(1, min(batch_rows, int(rate / 10)))
    return GeneratorSource(fn, schema_of(schema), rows, rate, batch_rows, splits, clock or SystemClock(), name)


@dataclass(frozen=True, slots=True, eq=False)
class GeneratorSource(Source):
    """Rows made by a function; made by ``generator``."""

    fn: Make
    given_schema: pa.Schema
    rows: int | None
    rate: float | None
    batch_rows: int
    splits: int
    clock: Clock = field(repr=False)
    given_name: str

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.given_name

    def identity(self) -> str:
        """The name, the columns and how the numbers are dealt out to splits; a position means nothing without."""
        columns = ", ".join(f"{f.name} {f.type}" for f in self.given_schema)
        dealt = f" by {self.batch_rows} in {self.splits}" if self.splits > 1 else ""
        return f"generator {self.given_name!r} ({columns}){dealt}"

    @property
    def schema(self) -> pa.Schema:
        """The columns it yields."""
        return self.given_schema

    @property
    def bounded(self) -> bool:
        """Whether it ends by itself."""
        return self.rows is not None

    @property
    def order(self) -> SplitOrder:
        """All at once: none may ever end."""
        return SplitOrder.CONCURRENT

    def discover(self) -> Sequence[Split]:
        """Return the splits."""
        return [Split(str(index)) for index in range(self.splits)]

    def open(self, split: Split, position: Position, context: ReadContext) -> SplitReader:
        """Open a split at the number of a row."""
        del context
        first = int(split.id) * self.batch_rows
        return _GeneratorReader(self, first if position is None else position)


class _GeneratorReader(SplitReader):
    def __init__(self, source: GeneratorSource, position: int) -> None:
        self._source = source
        self._position = position
        self._opened_at = source.clock.monotonic()
        self._opened_position = position

    def read(self) -> pa.RecordBatch | SplitEnd:
        source, start = self._source, self._position
        if source.rows is not None and start >= source.rows:
            return SplitEnd.FINISHED
        stop = start + source.batch_rows
        if source.rows is not None:
            stop = min(stop, source.rows)
        if not self._is_due(stop):
            return SplitEnd.PENDING
        batch = _make(source, start, stop)
        self._position = start + source.batch_rows * source.splits
        return batch

    def position(self) -> Position:
        return self._position

    def _is_due(self, stop: int) -> bool:
        """Whether the row before ``stop`` would have come by now."""
        if self._source.rate is None:
            return True
        waited = self._source.clock.monotonic() - self._opened_at
        return (stop - self._opened_position) <= waited * self._source.rate


def _make(source: GeneratorSource, start: int, stop: int) -> pa.RecordBatch:
    asked = f"generator {source.name!r}: the function, asked for rows {start} to {stop - 1},"
    try:
        batch = source.fn(start, stop)
    except Exception as error:
        raise UserCodeError(f"{asked} raised {type(error).__name__}: {error}") from error
    if not isinstance(batch, pa.RecordBatch):
        raise UserCodeError(f"{asked} returned a {type(batch).__name__}; it must return a pyarrow.RecordBatch")
    if batch.num_rows != stop - start:
        raise UserCodeError(f"{asked} returned {batch.num_rows} rows instead of {stop - start}")
    if not batch.schema.equals(source.schema):
        raise UserCodeError(
            f"{asked} returned columns that are not those of schema=: expected {_columns(source.schema)}; "
            f"got {_columns(batch.schema)}"
        )
    return batch


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name} {f.type}{'' if f.nullable else ' not null'}" for f in schema)
