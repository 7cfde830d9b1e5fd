"""Takes rows and lets them go: for benchmarks."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pyarrow as pa
from millstream.engine.sink import Committable, Sink, SinkContext, SinkKind, SinkWriter


def blackhole(name: str = "blackhole") -> BlackholeSink:
    """Count rows and forget them.

    >>> sink = blackhole()
    >>> sink.rows, sink.bytes
    (0, 0)
    """
    return BlackholeSink(name)


class BlackholeSink(Sink):
    """Counts what it was given; made by ``blackhole``.

    Attributes:
        rows: rows seen by this object, those that came again after a restart included.
        bytes: their size in Arrow memory.
    """

    def __init__(self, name: str = "blackhole") -> None:
        self._name = name
        self._lock = threading.Lock()
        self.rows = 0
        self.bytes = 0

    def __repr__(self) -> str:
        return f"BlackholeSink({self._name!r})"

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self._name

    def identity(self) -> str:
        """Text that changes exactly when it is another destination."""
        return f"blackhole {self._name!r}"

    @property
    def kind(self) -> SinkKind:
        """How it has its effect once: it has none, and none twice is none."""
        return SinkKind.IDEMPOTENT

    def writer(self, schema: pa.Schema, context: SinkContext) -> SinkWriter:
        """Make one running copy."""
        del schema, context
        return _BlackholeWriter(self)

    def guarantee(self) -> str:
        """One sentence for the plan."""
        return "nothing is written, so nothing is written twice"

    def count(self, batch: pa.RecordBatch) -> None:
        """Count a batch. For the writers."""
        with self._lock:
            self.rows += batch.num_rows
            self.bytes += batch.nbytes


class _BlackholeWriter(SinkWriter):
    def __init__(self, sink: BlackholeSink) -> None:
        self._sink = sink

    def write(self, batch: pa.RecordBatch) -> None:
        self._sink.count(batch)

    def prepare(self, epoch: int, final: bool) -> Sequence[Committable]:
        del epoch, final
        return []
