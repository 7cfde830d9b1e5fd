"""What must go into the next delta of a keyed state: changed rows, a slice of all, and rows for keys now gone.

Importing this module loads numba.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints
from millstream.engine.key_index import KeyIndex
from millstream.engine.state import DELETED, SLICES, WHOLE_STATE_ROWS, RollingBase, StateDelta, StateTable
from millstream.operators.cells import resized
from millstream.operators.rows import Rows


class Changes:
    """Follows the rows of one KEYED state table. A row is named by its id, an index into plain arrays.

    Attributes:
        changed: by id: the row differs from what the last delta said. Kernels may set it directly.
        sequence: by id: a number that stays with a row while it lives, given in the order of ``begin``.
    """

    def __init__(self, table: StateTable) -> None:
        self._schema = table.schema.append(pa.field(DELETED, pa.bool_()))
        self._keys = table.keys
        self._base = RollingBase()
        self._next = 0
        self._stored: Bools = np.empty(0, np.bool_)
        self._buried: list[pa.RecordBatch] = []
        self.changed: Bools = np.empty(0, np.bool_)
        self.sequence: Ints = np.empty(0, np.int64)

    def resize(self, ids: int) -> None:
        """Have room for ids 0..ids-1."""
        self.changed = resized(self.changed, ids, fill=False)
        self._stored = resized(self._stored, ids, fill=False)
        self.sequence = resized(self.sequence, ids)

    def upcoming(self, count: int) -> Ints:
        """Return the numbers that the next ``count`` new rows would get."""
        return np.arange(self._next, self._next + count)

    def begin(self, first: int, count: int) -> None:
        """Rows ``first``..``first + count - 1`` are new."""
        self.sequence[first : first + count] = np.arange(self._next, self._next + count)
        self.changed[first : first + count] = True
        self._next += count

    def begin_restored(self, first: int, sequence: Ints) -> None:
        """Rows from ``first`` on are in the store already, under these numbers."""
        rows = slice(first, first + len(sequence))
        self.sequence[rows] = sequence
        self._stored[rows] = True
        self.changed[rows] = False
        self._next = max(self._next, int(sequence.max(initial=-1)) + 1)

    def restored(self, full_from: int) -> None:
        """The table was restored; its rows are in deltas from ``full_from`` on."""
        self._base = RollingBase(full_from)

    def leaving(self, ids: Ints) -> Ints:
        """Rows are about to go: return those which the store knows, for ``bury``; then it knows them no more."""
        known = ids[self._stored[ids]]
        self.changed[ids] = self._stored[ids] = False
        return known

    def known(self, ids: Ints) -> Bools:
        """Return which rows the store knows, shape (n,)."""
        return self._stored[ids]

    def bury(self, keys: list[pa.Array]) -> None:
        """Remember the keys (one array per key column) of rows that are gone and which the store must forget."""
        if len(keys[0]):
            self._buried.append(self._rows(dict(zip(self._keys, keys, strict=True)), gone=True))

    def compact(self, kept: Ints) -> None:
        """Keep the ids ``kept`` (ascending), which become 0..n-1."""
        self.changed, self._stored = self.changed[kept], self._stored[kept]
        self.sequence = self.sequence[kept]

    def choose(self, epoch: int, live: Ints) -> tuple[Ints, int] | None:
        """Decide on the delta of an epoch.

        Args:
            live: the ids of all rows.

        Returns:
            (the ids to write, full_from); None if nothing has changed.
        """
        changed = self.changed[live]
        if not self._buried and not bool(changed.any()):
            return None
        if len(live) <= WHOLE_STATE_ROWS:
            ids, full_from = live, self._base.whole(epoch)
        else:
            piece, full_from = self._base.next_slice(epoch)
            ids = live[changed | (self.sequence[live] % SLICES == piece)]
        self.changed[ids] = False
        self._stored[ids] = True
        return ids, full_from

    def delta(self, columns: dict[str, pa.Array], full_from: int) -> StateDelta:
        """Make the delta from the columns of the rows chosen; buried rows come first and are forgotten here.

        They are written with a whole state too: another subtask's ``full_from`` may lie further back, and then
        what this subtask wrote earlier is read as well.
        """
        batches = [*self._buried, self._rows(columns, gone=False)]
        self._buried = []
        return StateDelta(pa.Table.from_batches(batches, self._schema), full_from)

    def _rows(self, columns: dict[str, pa.Array], *, gone: bool) -> pa.RecordBatch:
        count = len(next(iter(columns.values())))
        columns = {**columns, DELETED: pa.repeat(pa.scalar(gone), count)}
        arrays = [columns[f.name] if f.name in columns else pa.nulls(count, f.type) for f in self._schema]
        return pa.record_batch(arrays, schema=self._schema)


def latest(batches: Iterable[pa.RecordBatch], table: StateTable) -> pa.RecordBatch:
    """Return the rows of a restored table that are there: the last one of each key, unless it says ``deleted``.

    They come in the order in which their keys first came, without the column ``deleted``.
    """
    rows, there = latest_rows(batches, table)
    return rows.take(there)


def latest_rows(batches: Iterable[pa.RecordBatch], table: StateTable) -> tuple[Rows, Ints]:
    """As ``latest``, for tables of any size: return all rows, and which of them are there."""
    index = KeyIndex([table.schema.field(key).type for key in table.keys])
    rows = Rows(table.schema)
    last: Ints = np.empty(0, np.int64)
    gone = [np.empty(0, np.bool_)]
    for batch in batches:
        slots = index.slots([batch.column(key) for key in table.keys])
        if len(index) > len(last):
            last = resized(last, max(2 * len(last), len(index)))
        last[slots] = np.arange(len(rows), len(rows) + len(slots))
        gone.append(np.asarray(batch.column(DELETED).to_numpy(zero_copy_only=False), np.bool_))
        rows.append(batch.select(table.schema.names))
    last = last[: len(index)]
    return rows, last[~np.concatenate(gone)[last]]
