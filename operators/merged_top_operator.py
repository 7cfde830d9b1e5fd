"""The running part of ``WindowTop`` where windows are put together from parts. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.operator import MAIN, Operator, Output
from millstream.engine.state import StateDelta
from millstream.operators.window_aggregate import WINDOW_END, WINDOW_START
from millstream.operators.windowed import MAX_ROWS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from millstream.engine.operator import Fault
    from millstream.operators.window_top import WindowTop


class MergedTopOperator(Operator):
    """An aggregate of the top rows, of which each then goes out by itself."""

    def __init__(self, spec: WindowTop, schema: pa.Schema) -> None:
        self._inner = spec.aggregate(schema).build([schema])
        self._output = spec.output_schemas([schema])[MAIN]
        self._keys = frozenset(spec.keys)

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Keep the rows that are on top now."""
        self._inner.process(batch, _OneByOne(out, self._output, self._keys))

    def on_watermark(self, time: int, out: Output) -> None:
        """Fire every window that is due, in order."""
        self._inner.on_watermark(time, _OneByOne(out, self._output, self._keys))

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """As ``Operator.snapshot``."""
        return self._inner.snapshot(epoch)

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """As ``Operator.restore``."""
        self._inner.restore(table, batches, full_from)

    def counters(self) -> Mapping[str, int]:
        """As ``Operator.counters``."""
        return self._inner.counters()

    def memory(self) -> Mapping[str, int]:
        """As ``Operator.memory``."""
        return self._inner.memory()


class _OneByOne(Output):
    """Makes rows of the lists of rows that come; late rows pass."""

    def __init__(self, out: Output, schema: pa.Schema, keys: frozenset[str]) -> None:
        self._out = out
        self._schema = schema
        self._keys = keys

    def emit(self, batch: pa.RecordBatch, port: str = MAIN) -> None:
        if port != MAIN:
            self._out.emit(batch, port)
            return
        *_, lists = batch.columns
        windows, rows = pc.list_parent_indices(lists), lists.flatten()
        for first in range(0, len(rows), MAX_ROWS):
            some, of = rows.slice(first, MAX_ROWS), windows.slice(first, MAX_ROWS)
            columns = [
                batch.column(name).take(of)
                if name in self._keys or name in {WINDOW_START, WINDOW_END}
                else some.field(name)
                for name in self._schema.names
            ]
            self._out.emit(pa.record_batch(columns, schema=self._schema))

    def dead_letter(
        self,
        rows: pa.RecordBatch,
        faults: Sequence[Fault],
        *,
        times: pa.Array | None = None,
        code: str = "",
        attempt: int | None = None,
    ) -> None:
        self._out.dead_letter(rows, faults, times=times, code=code, attempt=attempt)
