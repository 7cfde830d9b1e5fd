"""The running part of ``TableJoin``. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints, plain, validity
from millstream.engine.key_index import KeyIndex
from millstream.engine.operator import Operator, OperatorContext, Output
from millstream.engine.state import StateDelta, StateTable
from millstream.operators.join_output import JoinOutput, Met
from millstream.operators.row_buffer import RowBuffer
from millstream.operators.row_buffer_state import BufferRows
from millstream.operators.table_join import EARLY, TABLE

if TYPE_CHECKING:
    from millstream.operators.table_join import TableJoin

_MIN_GARBAGE: Final = 65_536


class TableJoinOperator(Operator):
    """Keeps the table, and left rows until it has ended; then joins each left row at once."""

    def __init__(self, spec: TableJoin, inputs: Sequence[pa.Schema]) -> None:
        self._spec = spec
        self._kept = [spec.kept(side, schema) for side, schema in enumerate(inputs)]
        self._output = JoinOutput(spec, inputs)
        early, table = spec.state_tables(inputs)
        self._buffer = RowBuffer(self._kept[1], spans=False)
        self._rows = BufferRows(table, self._buffer)
        self._early = _Early(early)
        self._index = KeyIndex([inputs[1].field(key).type for key in spec.right_keys])
        self._table_keys = 0
        self._ended = False
        self._writes = True
        self._null_keys = [0, 0]

    def open(self, context: OperatorContext) -> None:
        """As ``Operator.open``."""
        self._writes = context.subtask == 0

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Take a batch of the left side."""
        self.process_input(0, batch, out)

    def process_input(self, index: int, batch: pa.RecordBatch, out: Output) -> None:
        """Keep a row of the table; join a left row, or keep it if it is too early for that."""
        schema = self._kept[index]
        rows = pa.RecordBatch.from_arrays([plain(batch.column(name)) for name in schema.names], schema=schema)
        if index == 1:
            self._add(rows)
        elif self._ended:
            self._join(rows, out)
        else:
            self._early.add(rows)

    def _add(self, rows: pa.RecordBatch) -> None:
        known = self._known(1, rows)
        if not known.all():
            rows = rows.filter(pa.array(known))
        slots = self._index.slots([rows.column(name) for name in self._spec.right_keys])
        self._table_keys = len(self._index)
        self._buffer.resize_slots(self._table_keys)
        self._buffer.append(rows, slots)

    def _known(self, side: int, rows: pa.RecordBatch) -> Bools:
        """Which rows have no null in their key."""
        known = np.ones(rows.num_rows, np.bool_)
        for name in self._spec.keys_of(side):
            mask = validity(rows.column(name))
            if len(mask):
                known &= mask
        self._null_keys[side] += len(known) - int(known.sum())
        return known

    def on_input_end(self, index: int, out: Output) -> None:
        """The table is complete: join what has waited for it."""
        if index == 1 and not self._ended:
            self._ended = True
            for rows in self._early.release():
                self._join(rows, out)

    def _join(self, rows: pa.RecordBatch, out: Output) -> None:
        spec = self._spec
        matched = np.zeros(rows.num_rows, np.bool_)
        once = spec.left_only and spec.where is None
        for own, ids in self._buffer.matches(self._slots(rows), once=once):
            met = Met(0, rows, own, self._buffer, ids)
            met = met.only(self._output.passing(met))
            matched[met.rows] = True
            if len(met.rows) and not spec.left_only:
                out.emit(self._output.pairs(met))
        if spec.left_only or spec.how == "left":
            shown = matched if spec.how == "semi" else ~matched
            if shown.any():
                out.emit(self._output.alone(0, rows if shown.all() else rows.filter(pa.array(shown))))

    def _slots(self, rows: pa.RecordBatch) -> Ints:
        """Return the slot of each row's key; -1 if the table has none such."""
        slots = self._index.slots([rows.column(name) for name in self._spec.left_keys])
        slots[(slots >= self._table_keys) | ~self._known(0, rows)] = -1
        # Keys that are not in the table get slots too, behind those that are: they must not pile up.
        if len(self._index) > 2 * self._table_keys + _MIN_GARBAGE:
            self._index.compact(np.arange(len(self._index)) < self._table_keys)
        return slots

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """As ``Operator.snapshot``. All subtasks have read as much of the table, so one speaks for all."""
        deltas = {EARLY: self._early.delta(epoch), TABLE: self._rows.delta(epoch) if self._writes else None}
        return {name: delta for name, delta in deltas.items() if delta is not None}

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """As ``Operator.restore``."""
        if table == EARLY:
            self._early.restore(batches)
            return
        for rows, _ in self._rows.restored(batches, full_from):
            self._add(rows)

    def counters(self) -> Mapping[str, int]:
        """As ``Operator.counters``."""
        return {"null_key_rows_left": self._null_keys[0], "null_key_rows_right": self._null_keys[1]}


class _Early:
    """Left rows that wait for the end of the table, as a ROWS state table: a bucket for each epoch with such rows.

    Where the table has ended no bucket is written again: an epoch happens once.
    """

    def __init__(self, table: StateTable) -> None:
        self._schema = table.schema
        self._batches: list[pa.RecordBatch] = []
        self._written = 0
        self._buckets: list[int] = []
        self._dropped: tuple[int, ...] = ()

    def add(self, rows: pa.RecordBatch) -> None:
        """Let rows wait."""
        self._batches.append(rows)

    def release(self) -> list[pa.RecordBatch]:
        """Return all rows; they wait no longer."""
        batches, self._batches, self._written = self._batches, [], 0
        self._dropped, self._buckets = tuple(self._buckets), []
        return batches

    def delta(self, epoch: int) -> StateDelta | None:
        """Return what has changed since the last delta; None if nothing has."""
        new, dropped = self._batches[self._written :], self._dropped
        if not new and not dropped:
            return None
        if new:
            self._buckets.append(epoch)
        self._written, self._dropped = len(self._batches), ()
        batches = [self._in_bucket(rows, epoch) for rows in new]
        return StateDelta(pa.Table.from_batches(batches, self._schema), dropped=dropped)

    def _in_bucket(self, rows: pa.RecordBatch, epoch: int) -> pa.RecordBatch:
        bucket = pa.repeat(pa.scalar(epoch, pa.int64()), rows.num_rows)
        return pa.RecordBatch.from_arrays([*rows.columns, bucket], schema=self._schema)

    def restore(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Let rows wait that did before."""
        names = self._schema.names[:-1]
        buckets: set[int] = set()
        for batch in batches:
            buckets.update(batch.column(len(names)).unique().to_pylist())
            self._batches.append(batch.select(names))
        self._written, self._buckets = len(self._batches), sorted(buckets)
