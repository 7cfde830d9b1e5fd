"""The running part of ``CountWindowAggregate``. Importing this module loads numba."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints, fixed_codes
from millstream.engine.jit import kernel
from millstream.engine.key_index import KeyIndex
from millstream.engine.operator import MAIN, Output
from millstream.engine.time import END_OF_TIME
from millstream.operators.aggregate_operator import AggregateOperator
from millstream.operators.cells import resized
from millstream.operators.windowed import MAX_ROWS

if TYPE_CHECKING:
    from millstream.operators.count_window import CountWindowAggregate


@kernel
def count_up(groups: Any, counts: Any, out: Any) -> None:
    """Number the rows of each group, from what it has counted so far."""
    for row in range(groups.shape[0]):
        group = groups[row]
        out[row] = counts[group]
        counts[group] += 1


class CountWindowOperator(AggregateOperator):
    """A slot is a key and the number of a window of it; it is dead once that is full.

    The rows of a key are counted from the beginning of its first window that is remembered.
    """

    def __init__(self, spec: CountWindowAggregate, schema: pa.Schema) -> None:
        super().__init__(spec.state_tables([schema]), [aggregate for _, aggregate in spec.aggregates], schema)
        self._keys = spec.keys
        self._size = spec.rows
        self._output = spec.output_schemas([schema])[MAIN]
        self._groups = KeyIndex(self._index.types[:-1])
        self._counts: Ints = np.empty(0, np.int64)  # by group: the rows counted
        # By slot: the group, and whether the window is open.
        self._group_of: Ints = np.empty(0, np.int64)
        self._open: Bools = np.empty(0, np.bool_)
        self._open_count = 0

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Fold the rows into their windows, and fire those that are full."""
        known = len(self._index)
        keys = [batch.column(key) for key in self._keys]
        groups = self._number_groups(keys, batch.num_rows)
        places = np.empty(batch.num_rows, np.int64)
        count_up(groups, self._counts, places)
        slots = self._index.slots([*keys, pa.array(places // self._size)])
        self._make_room()
        self._begin(known)
        self._group_of[slots] = groups
        self._changes.changed[slots] = True
        self._feed.update(batch, slots, np.zeros(batch.num_rows, np.int64))
        self._fire(slots[places % self._size == self._size - 1], out)

    def on_watermark(self, time: int, out: Output) -> None:
        """At the end the windows fire that are not full."""
        if time == END_OF_TIME:
            self._fire(np.flatnonzero(self._alive()), out)

    def _number_groups(self, keys: list[pa.Array], rows: int) -> Ints:
        groups: Ints = self._groups.slots(keys, rows)
        if len(self._groups) > len(self._counts):
            self._counts = resized(self._counts, max(2 * len(self._counts), len(self._groups)))
        return groups

    def _begin(self, known: int) -> None:
        """Slots from ``known`` on are new."""
        new = len(self._index) - known
        self._changes.begin(known, new)
        self._open[known : known + new] = True
        self._open_count += new

    def _fire(self, full: Ints, out: Output) -> None:
        for first in range(0, len(full), MAX_ROWS):
            slots = full[first : first + MAX_ROWS]
            columns = [*self._index.keys(slots)[:-1], *self._results(slots)]
            out.emit(pa.record_batch(columns, schema=self._output))
        if not len(full):
            return
        self._open[full] = False
        self._open_count -= len(full)
        self._bury(full)
        if self._is_sparse(self._open_count):
            self._compact(self._alive())

    def _alive(self) -> Bools:
        return self._open[: len(self._index)]

    def _more_state(self, slots: Ints) -> list[pa.Array]:
        return [pa.array(self._counts[self._group_of[slots]] % self._size)]

    def _load(self, batch: pa.RecordBatch, slots: Ints) -> None:
        super()._load(batch, slots)
        width = len(self._keys)
        groups = self._number_groups(batch.columns[:width], batch.num_rows)
        number, rows = fixed_codes(batch.column(width)), fixed_codes(batch.column(len(self._table.schema) - 1))
        self._group_of[slots] = groups
        self._counts[groups] = number * self._size + rows

    def _restored(self) -> None:
        self._open[: len(self._index)] = True
        self._open_count = len(self._index)

    def _resize(self, capacity: int) -> None:
        super()._resize(capacity)
        self._group_of = resized(self._group_of, capacity)
        self._open = resized(self._open, capacity, fill=False)

    def _compact(self, alive: Bools) -> Ints:
        kept = np.flatnonzero(alive)
        counts = self._counts[self._group_of[kept]]
        moved = super()._compact(alive)
        self._open = np.ones(len(kept), np.bool_)
        # A key without an open window is forgotten: it begins with number 0 again.
        self._groups = KeyIndex(self._index.types[:-1])
        self._counts = np.empty(0, np.int64)
        self._group_of = self._number_groups(self._index.keys()[:-1], len(kept))
        self._counts[self._group_of] = counts
        return moved
