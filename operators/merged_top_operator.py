"""The running part of ``WindowTop`` where an aggregate keeps the rows. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.changelog import is_changelog, unweighted, weights_of
from millstream.engine.codes import Ints
from millstream.engine.operator import MAIN, Operator, Output
from millstream.engine.state import StateDelta
from millstream.operators.consolidate import net_rows
from millstream.operators.row_numbers import is_comparable
from millstream.operators.window_aggregate import WINDOW_END, WINDOW_START
from millstream.operators.windowed import MAX_ROWS
from millstream.operators.windows import OneWindow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from millstream.engine.operator import Fault
    from millstream.operators.window_top import WindowTop


class MergedTopOperator(Operator):
    """An aggregate of the top rows, of which each then goes out by itself."""

    def __init__(self, spec: WindowTop, schema: pa.Schema) -> None:
        self._inner = spec.aggregate(schema).build([schema])
        self.uses_clock = self._inner.uses_clock
        self._output = spec.output_schemas([schema])[MAIN]
        # Rows of one window may have such columns of their own.
        window = () if isinstance(spec.window, OneWindow) else (WINDOW_START, WINDOW_END)
        self._of_group = frozenset(spec.keys).union(window)

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Keep the rows that are on top now, or all."""
        self._inner.process(batch, self._one_by_one(out))

    def on_watermark(self, time: int, out: Output) -> None:
        """Fire every window that is due, in order."""
        self._inner.on_watermark(time, self._one_by_one(out))

    def next_due(self) -> int | None:
        """As ``Operator.next_due``."""
        return self._inner.next_due()

    def on_clock(self, now: int, out: Output) -> None:
        """Show early results."""
        self._inner.on_clock(now, self._one_by_one(out))

    def _one_by_one(self, out: Output) -> _OneByOne:
        return _OneByOne(out, self._output, self._of_group)

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
    """Makes rows of the lists of rows that come; late rows pass.

    Of lists that are taken back and the ones that come for them only the difference goes on.
    """

    def __init__(self, out: Output, schema: pa.Schema, of_group: frozenset[str]) -> None:
        self._out = out
        self._schema = schema
        self._of_group = of_group

    def emit(self, batch: pa.RecordBatch, port: str = MAIN) -> None:
        if port != MAIN:
            self._out.emit(batch, port)
            return
        lists = batch.column(-2 if is_changelog(batch.schema) else -1)
        windows, rows = pc.list_parent_indices(lists), lists.flatten()
        if is_changelog(self._schema):
            self._emit_changes(self._made(batch, windows, rows), weights_of(batch)[windows.to_numpy()])
            return
        for first in range(0, len(rows), MAX_ROWS):
            some, of = rows.slice(first, MAX_ROWS), windows.slice(first, MAX_ROWS)
            self._out.emit(pa.record_batch(self._made(batch, of, some), schema=self._schema))

    def _made(self, batch: pa.RecordBatch, windows: pa.Array, rows: pa.StructArray) -> list[pa.Array]:
        names = unweighted(self._schema).names
        return [batch.column(name).take(windows) if name in self._of_group else rows.field(name) for name in names]

    def _emit_changes(self, columns: list[pa.Array], weights: Ints) -> None:
        if columns and all(is_comparable(column.type) for column in columns):
            kept, weights = net_rows(columns, weights)
            columns = [column.take(pa.array(kept)) for column in columns]
        changes = pa.record_batch([*columns, pa.array(weights)], schema=self._schema)
        for first in range(0, changes.num_rows, MAX_ROWS):
            self._out.emit(changes.slice(first, MAX_ROWS))

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
