"""A source that gives its rows at a steady rate, as if they came from somewhere that makes them."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import pyarrow as pa
from millstream.engine.source import Chunk, Position, ReadContext, Source, Split, SplitEnd, SplitOrder, SplitReader
from millstream.engine.time import Clock, SystemClock

if TYPE_CHECKING:
    from millstream.engine.expression import Expr

BATCHES_A_SECOND: Final = 20


class Pace:
    """Lets so many rows a second through, and then no more, over all readers of a source. Thread-safe."""

    def __init__(self, rate: float, clock: Clock, most: float | None = None) -> None:
        self.rate = rate
        self._most = math.inf if most is None else most
        self._clock = clock
        self._lock = threading.Lock()
        self._began: float | None = None
        self._rows = 0

    def due(self) -> bool:
        """Whether all rows noted so far would have come by now, and there may be more."""
        with self._lock:
            if self._rows >= self._most:
                return False
            now = self._clock.monotonic()
            if self._began is None:
                self._began = now
            return self._rows <= (now - self._began) * self.rate

    def note(self, rows: int) -> None:
        """Count rows that were let through."""
        with self._lock:
            self._rows += rows


def paced(source: Source, rate: float, clock: Clock | None = None, *, most: float | None = None) -> Source:
    """Make a source yield ``rate`` rows a second from the start of the job, whatever subtasks read it.

    After about ``most`` rows it yields nothing more, and does not end: the job then waits to be stopped or killed.
    It has the identity of the source itself, so a job may be resumed at another pace, or at none.

    >>> import millstream as ms
    >>> paced(ms.memory_source([{"n": 1}]), rate=1_000).schema.names
    ['n']
    """
    return _PacedSource(source, Pace(rate, clock or SystemClock(), most))


@dataclass(frozen=True, slots=True, eq=False)
class _PacedSource(Source):
    source: Source
    pace: Pace = field(repr=False)

    @property
    def name(self) -> str:
        return self.source.name

    def identity(self) -> str:
        return self.source.identity()

    @property
    def schema(self) -> pa.Schema:
        return self.source.schema

    @property
    def bounded(self) -> bool:
        return self.source.bounded

    @property
    def replayable(self) -> bool:
        return self.source.replayable

    @property
    def order(self) -> SplitOrder:
        return self.source.order

    def discover(self) -> Sequence[Split]:
        return self.source.discover()

    def open(self, split: Split, position: Position, context: ReadContext) -> SplitReader:
        rows = max(1, min(context.batch_rows, int(self.pace.rate / BATCHES_A_SECOND)))
        return _PacedReader(self.source.open(split, position, replace(context, batch_rows=rows)), self.pace)

    def pushed_down(self, columns: frozenset[str], predicate: Expr | None, event_time: str | None) -> Source:
        return replace(self, source=self.source.pushed_down(columns, predicate, event_time))

    def folders(self) -> tuple[str, ...]:
        return self.source.folders()

    @property
    def filters_by(self) -> Expr | None:
        return self.source.filters_by

    def guarantee(self) -> str:
        return self.source.guarantee()


class _PacedReader(SplitReader):
    def __init__(self, reader: SplitReader, pace: Pace) -> None:
        self._reader = reader
        self._pace = pace

    def read(self) -> pa.RecordBatch | Chunk | SplitEnd:
        if not self._pace.due():
            return SplitEnd.PENDING
        got = self._reader.read()
        if not isinstance(got, SplitEnd):
            self._pace.note(got.rows_read if isinstance(got, Chunk) else got.num_rows)
        return got

    def position(self) -> Position:
        return self._reader.position()

    def committed(self, position: Position) -> None:
        self._reader.committed(position)

    def close(self) -> None:
        self._reader.close()
