"""The running part of ``CountWindowAggregate`` where windows overlap. Importing this module loads numba."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints, fixed_codes
from millstream.engine.key_index import KeyIndex
from millstream.engine.operator import MAIN, Output
from millstream.engine.time import END_OF_TIME
from millstream.operators.aggregate_operator import AggregateOperator
from millstream.operators.cells import resized
from millstream.operators.count_window_operator import count_up
from millstream.operators.windowed import MAX_ROWS

if TYPE_CHECKING:
    from millstream.operators.count_window import CountWindowAggregate


class SlidingCountOperator(AggregateOperator):
    """A slot is a key and the number of a pane of it; it is dead once no window to come has it.

    A window that fires merges its panes, the earliest first. The panes of a key that are alive follow each other.
    """

    def __init__(self, spec: CountWindowAggregate, schema: pa.Schema) -> None:
        super().__init__(spec.state_tables([schema]), [aggregate for _, aggregate in spec.aggregates], schema)
        self._keys = spec.keys
        self._pane = math.gcd(spec.rows, spec.slide)
        self._slide = spec.slide
        self._width = spec.rows // self._pane  # panes of a window
        self._step = spec.slide // self._pane  # panes from one to the next
        self._output = spec.output_schemas([schema])[MAIN]
        self._groups = KeyIndex(self._index.types[:-1])
        self._counts: Ints = np.empty(0, np.int64)  # by group: the rows counted
        # By slot: the group, the number of the pane, and whether it is alive.
        self._group_of: Ints = np.empty(0, np.int64)
        self._number: Ints = np.empty(0, np.int64)
        self._open: Bools = np.empty(0, np.bool_)
        self._open_count = 0

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Fold the rows into their panes, and fire the windows that are full."""
        known = len(self._index)
        keys = [batch.column(key) for key in self._keys]
        groups = self._number_groups(keys, batch.num_rows)
        places = np.empty(batch.num_rows, np.int64)
        count_up(groups, self._counts, places)
        numbers = places // self._pane
        slots = self._index.slots([*keys, pa.array(numbers)])
        self._make_room()
        self._begin(known)
        self._group_of[slots], self._number[slots] = groups, numbers
        self._changes.changed[slots] = True
        self._feed.update(batch, slots, np.zeros(batch.num_rows, np.int64))
        full = np.flatnonzero((places + 1) % self._slide == 0)
        self._fire(groups[full], (places[full] + 1) // self._pane, out)

    def on_watermark(self, time: int, out: Output) -> None:
        """At the end the window of each key fires that would have been the next, if it has rows of its own."""
        if time != END_OF_TIME:
            return
        groups = np.flatnonzero(self._counts[: len(self._groups)] % self._slide)
        ends = -(-self._counts[groups] // self._slide) * self._step
        self._fire(groups, ends, out)
        self._bury(np.flatnonzero(self._alive()))
        self._open_count = 0
        self._compact(np.zeros(len(self._index), np.bool_))

    def _fire(self, groups: Ints, ends: Ints, out: Output) -> None:
        """Emit windows of groups that end before these panes; panes that no later window has are dead then."""
        dead = [np.empty(0, np.int64)]
        at_once = max(1, MAX_ROWS // self._width)
        for first in range(0, len(groups), at_once):
            dead.append(self._fire_some(groups[first : first + at_once], ends[first : first + at_once], out))
        slots = np.concatenate(dead)
        if len(slots):
            self._open[slots] = False
            self._open_count -= len(slots)
            self._bury(slots)
            if self._is_sparse(self._open_count):
                self._compact(self._alive())

    def _fire_some(self, groups: Ints, ends: Ints, out: Output) -> Ints:
        starts = np.maximum(ends - self._width, 0)
        # At the end of the input the last panes of a window may not have begun.
        begun = np.minimum(ends, -(-self._counts[groups] // self._pane))
        sizes = begun - starts
        windows = np.repeat(np.arange(len(groups)), sizes)
        panes = np.arange(len(windows)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + starts[windows]
        known = len(self._index)
        slots = self._index.slots([*self._groups.keys(groups[windows]), pa.array(panes)], len(panes))
        assert len(self._index) == known, "a window has a pane that is gone"
        values = []
        for number in range(len(self._accumulators)):
            merged = self._merged(number, slots, windows, len(groups))
            values.append(merged.result(np.arange(len(groups))))
        out.emit(pa.record_batch([*self._groups.keys(groups), *values], schema=self._output))
        dead: Ints = slots[panes < (ends + self._step - self._width)[windows]]
        return dead

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

    def _alive(self) -> Bools:
        return self._open[: len(self._index)]

    def _more_state(self, slots: Ints) -> list[pa.Array]:
        rows = self._counts[self._group_of[slots]] - self._number[slots] * self._pane
        return [pa.array(np.minimum(rows, self._pane))]

    def _load(self, batch: pa.RecordBatch, slots: Ints) -> None:
        super()._load(batch, slots)
        width = len(self._keys)
        groups = self._number_groups(batch.columns[:width], batch.num_rows)
        number, rows = fixed_codes(batch.column(width)), fixed_codes(batch.column(len(self._table.schema) - 1))
        self._group_of[slots], self._number[slots] = groups, number
        np.maximum.at(self._counts, groups, number * self._pane + rows)

    def _restored(self) -> None:
        self._open[: len(self._index)] = True
        self._open_count = len(self._index)

    def _resize(self, capacity: int) -> None:
        super()._resize(capacity)
        self._group_of = resized(self._group_of, capacity)
        self._number = resized(self._number, capacity)
        self._open = resized(self._open, capacity, fill=False)

    def _compact(self, alive: Bools) -> Ints:
        kept = np.flatnonzero(alive)
        counts = self._counts[self._group_of[kept]]
        self._number = self._number[kept]
        moved = super()._compact(alive)
        self._open = np.ones(len(kept), np.bool_)
        self._groups = KeyIndex(self._index.types[:-1])
        self._counts = np.empty(0, np.int64)
        self._group_of = self._number_groups(self._index.keys()[:-1], len(kept))
        self._counts[self._group_of] = counts
        return moved
