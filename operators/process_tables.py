"""What of the state of a ``Process`` goes into the next delta: changed rows, and a slice of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Ints
from millstream.engine.key_index import KeyIndex
from millstream.engine.state import DELETED, SLICES, WHOLE_STATE_ROWS, RollingBase, StateDelta, StateTable
from millstream.operators.cells import resized


class Holder(Protocol):
    """What has rows of a state table: a state, or the timers of a clock."""

    @property
    def count(self) -> int:
        """How many rows there were at the last barrier."""
        ...

    def changes(self, into: list[Any]) -> set[int]:
        """Add a row (slot, gone, values...) for each that changed; return slots all of whose rows have been added."""
        ...

    def carry(self, slots: Sequence[int], without: set[int], into: list[Any]) -> None:
        """Add all rows of these slots, but not of those ``without``."""
        ...


class KeyedTable:
    """Makes the deltas of one KEYED state table whose rows belong to key slots.

    Args:
        table: its first columns are the key's.
        width: how many these are.
    """

    def __init__(self, table: StateTable, width: int) -> None:
        self._schema = table.schema.append(pa.field(DELETED, pa.bool_()))
        self._width = width
        self._base = RollingBase()
        self._slots = 0
        self._next = 0
        self._sequence: Ints = np.empty(0, np.int64)  # by slot: a number that stays with a key

    def grow(self, slots: int) -> None:
        """Slots up to ``slots - 1`` are keys now."""
        if slots > len(self._sequence):
            self._sequence = resized(self._sequence, max(2 * len(self._sequence), slots, 1_024))
        more = slots - self._slots
        self._sequence[self._slots : slots] = np.arange(self._next, self._next + more)
        self._next += more
        self._slots = slots

    def restored(self, full_from: int) -> None:
        """The table was restored; its rows are in deltas from ``full_from`` on."""
        self._base = RollingBase(full_from)

    def compact(self, kept: list[int], moved: Ints) -> None:
        """Keep the slots ``kept`` (ascending), which become 0..n-1."""
        del moved
        self._sequence = self._sequence[np.array(kept, np.int64)]
        self._slots = len(kept)

    def delta(self, epoch: int, holders: Sequence[Holder], index: KeyIndex) -> StateDelta | None:
        """Return the delta of an epoch; None if nothing changed."""
        rows: list[Any] = []
        written = [holder.changes(rows) for holder in holders]
        if not rows:
            return None
        if sum(holder.count for holder in holders) <= WHOLE_STATE_ROWS:
            # Rows that are gone are written all the same: another subtask's full_from may lie further back, and then
            # what this one wrote earlier is read as well.
            rows = [row for row in rows if row[1]]
            full_from = self._base.whole(epoch)
            slots = list(range(self._slots))
            written = [set() for _ in holders]
        else:
            piece, full_from = self._base.next_slice(epoch)
            slots = np.flatnonzero(self._sequence[: self._slots] % SLICES == piece).tolist()
        for holder, without in zip(holders, written, strict=True):
            holder.carry(slots, without, rows)
        return StateDelta(self._table(rows, index), full_from)

    def _table(self, rows: list[Any], index: KeyIndex) -> pa.Table:
        if not rows:
            return self._schema.empty_table()
        slots, gone, *columns = zip(*rows, strict=True)
        types = self._schema.types[self._width : -1]
        values = [
            pa.array(column, pa.int64()).cast(type) if pa.types.is_timestamp(type) else pa.array(column, type)
            for column, type in zip(columns, types, strict=True)
        ]
        arrays = [*index.keys(np.array(slots, np.int64)), *values, pa.array(gone, pa.bool_())]
        return pa.Table.from_arrays(arrays, schema=self._schema)
