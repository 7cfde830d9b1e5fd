"""The rows of a buffer as a KEYED state table. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from millstream.engine.codes import Ints, fixed_codes
from millstream.engine.state import DELETED, SLICES, WHOLE_STATE_ROWS, RollingBase, StateDelta, StateTable
from millstream.operators.changes import latest
from millstream.operators.row_buffer import RowBuffer

STATE_LANES: Final[Mapping[str, type[Any]]] = {"number": np.int64, "stored": np.bool_, "changed": np.bool_}
"""What the buffer must keep of each row for its state: its number in the store, and what the store knows of it."""

_ROWS: Final = 131_072


class BufferState:
    """Follows the rows of a buffer whose lanes include ``STATE_LANES``. Rows are named by their key and a number.

    Args:
        table: the buffer's columns, the number, and then the lanes; the keys are key columns and the number.
        lanes: the names of the buffer's lanes that are part of the state.
    """

    def __init__(self, table: StateTable, buffer: RowBuffer, lanes: tuple[str, ...]) -> None:
        self._table = table
        self._buffer = buffer
        self._lanes = lanes
        self._schema = table.schema.append(pa.field(DELETED, pa.bool_()))
        self._keys = [buffer.schema.names[table.schema.get_field_index(name)] for name in table.keys[:-1]]
        self._base = RollingBase()
        self._buried: list[pa.RecordBatch] = []
        self._next = 0

    def begin(self, ids: Ints) -> None:
        """Rows are new."""
        at = self._buffer.at(ids)
        self._buffer.lane("number")[at] = np.arange(self._next, self._next + len(ids))
        self._buffer.lane("changed")[at] = True
        self._next += len(ids)

    def touch(self, ids: Ints) -> None:
        """The lanes of rows have changed."""
        self._buffer.lane("changed")[self._buffer.at(ids)] = True

    def drop(self, ids: Ints) -> None:
        """Drop rows of the buffer, each named once and there still."""
        buffer = self._buffer
        leaving = ids[buffer.lane("stored")[buffer.at(ids)]]
        if len(leaving):
            keys = [*buffer.take(leaving).select(self._keys).columns, self._numbers(leaving)]
            self._buried.append(self._rows(dict(zip(self._table.keys, keys, strict=True)), gone=True))
        buffer.drop(ids)

    def _numbers(self, ids: Ints) -> pa.Array:
        return pa.array(self._buffer.lane("number")[self._buffer.at(ids)])

    def delta(self, epoch: int) -> StateDelta | None:
        """Return what has changed since the last delta; None if nothing has."""
        ids = self._buffer.ids()
        at = self._buffer.at(ids)
        changed, stored = self._buffer.lane("changed"), self._buffer.lane("stored")
        due = changed[at]
        if not self._buried and not bool(due.any()):
            return None
        if len(ids) <= WHOLE_STATE_ROWS:
            full_from = self._base.whole(epoch)
        else:
            piece, full_from = self._base.next_slice(epoch)
            due |= self._buffer.lane("number")[at] % SLICES == piece
            ids, at = ids[due], at[due]
        changed[at], stored[at] = False, True
        # They are written with a whole state too: another subtask's full_from may lie further back, and then what
        # this one wrote earlier is read as well.
        batches = [*self._buried, *self._batches(ids)]
        self._buried = []
        return StateDelta(pa.Table.from_batches(batches, self._schema), full_from)

    def _batches(self, ids: Ints) -> Iterator[pa.RecordBatch]:
        for first in range(0, len(ids), _ROWS):
            some = ids[first : first + _ROWS]
            lanes = (pa.array(self._buffer.lane(name)[self._buffer.at(some)]) for name in self._lanes)
            columns = [*self._buffer.take(some).columns, self._numbers(some), *lanes]
            yield self._rows(dict(zip(self._table.schema.names, columns, strict=True)), gone=False)

    def _rows(self, columns: dict[str, pa.Array], *, gone: bool) -> pa.RecordBatch:
        count = len(next(iter(columns.values())))
        columns = {**columns, DELETED: pa.repeat(pa.scalar(gone), count)}
        arrays = [columns[f.name] if f.name in columns else pa.nulls(count, f.type) for f in self._schema]
        return pa.record_batch(arrays, schema=self._schema)

    def restored(
        self, batches: Iterable[pa.RecordBatch], full_from: int
    ) -> Iterator[tuple[pa.RecordBatch, dict[str, npt.NDArray[Any]]]]:
        """Yield the rows of the restored table, and their lanes by name, to be appended."""
        rows = latest(batches, self._table)
        self._base = RollingBase(full_from)
        width = len(self._buffer.schema)
        batch = pa.RecordBatch.from_arrays(rows.columns[:width], schema=self._buffer.schema)
        lanes = dict(zip(("number", *self._lanes), map(fixed_codes, rows.columns[width:]), strict=True))
        self._next = max(self._next, int(lanes["number"].max(initial=-1)) + 1)
        yield batch, {**lanes, "stored": np.ones(rows.num_rows, np.bool_)}


class BufferRows:
    """The rows of a buffer that are never dropped nor changed, as a ROWS state table: each is written once.

    Args:
        table: the buffer's columns, and the bucket, of which there is but one.
    """

    def __init__(self, table: StateTable, buffer: RowBuffer) -> None:
        self._table = table
        self._buffer = buffer
        self._written = 0

    def begin(self, ids: Ints) -> None:
        """Rows are new: ids say so by themselves."""

    def touch(self, ids: Ints) -> None:
        """Never called with a row."""
        assert not len(ids), f"rows that never change have changed: {ids}"

    def drop(self, ids: Ints) -> None:
        """Never called with a row."""
        assert not len(ids), f"rows that are never dropped are dropped: {ids}"

    def delta(self, epoch: int) -> StateDelta | None:
        """Return the rows that are new since the last delta; None if there are none."""
        del epoch
        end = self._buffer.end
        if end == self._written:
            return None
        batches = []
        for first in range(self._written, end, _ROWS):
            rows = self._buffer.take(np.arange(first, min(first + _ROWS, end)))
            bucket = pa.repeat(pa.scalar(0, pa.int64()), rows.num_rows)
            batches.append(pa.RecordBatch.from_arrays([*rows.columns, bucket], schema=self._table.schema))
        self._written = end
        return StateDelta(pa.Table.from_batches(batches, self._table.schema))

    def restored(
        self, batches: Iterable[pa.RecordBatch], full_from: int
    ) -> Iterator[tuple[pa.RecordBatch, dict[str, npt.NDArray[Any]]]]:
        """Yield the rows of the restored table, to be appended."""
        del full_from
        for batch in batches:
            self._written += batch.num_rows
            yield pa.RecordBatch.from_arrays(batch.columns[:-1], schema=self._buffer.schema), {}
