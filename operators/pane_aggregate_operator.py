"""The running part of ``WindowAggregate`` over windows that share panes. Importing this module loads numba."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints, fixed_array
from millstream.engine.key_index import KeyIndex
from millstream.engine.operator import Output
from millstream.engine.time import END_OF_TIME, START_OF_TIME
from millstream.operators.cells import resized
from millstream.operators.event_time import TIME_TYPE, event_times
from millstream.operators.window_aggregate_operator import WindowAggregateOperator
from millstream.operators.windowed import MAX_ROWS

if TYPE_CHECKING:
    from millstream.operators.window_aggregate import WindowAggregate
    from millstream.operators.windows import PanedWindow


class PaneAggregateOperator(WindowAggregateOperator):
    """A slot holds a pane of a key; a window that fires merges its panes, the earliest first, into a result.

    After a restart the panes of a key must tell which of its windows have fired. The newest pane of each window
    says so, since it outlives the others; and a pane says when it begins what has fired without it.

    Args:
        window: the spec's.
    """

    def __init__(self, spec: WindowAggregate, window: PanedWindow, schema: pa.Schema) -> None:
        super().__init__(spec, schema)
        self._window = window
        self._last_end = START_OF_TIME  # windows that end here or earlier have fired
        self._fired: Ints = np.empty(0, np.int64)  # by slot: the key's windows up to this end have fired

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """As ``Operator.process``."""
        known = len(self._index)
        super().process(batch, out)
        self._fired[known : len(self._index)] = self._gate.passed

    def _advance(self, time: int, out: Output) -> None:
        """Panes that are in no other window go."""
        self._gate.advance(time)
        last = self._window.last_end(self._gate.passed)
        if last <= self._last_end:
            return
        panes = self._open.starts()
        due = {end for pane in panes for end in self._window.windows_of(pane, self._last_end, last)}
        for end in sorted(due):
            start = self._window.start_of(end)
            self._fire(start, end, panes[bisect_left(panes, start) : bisect_left(panes, end)], out)
        self._last_end = last
        self._bury(self._open.close(self._gate.last_closed))

    def _next_end(self) -> int | None:
        pane = self._open.earliest()
        if pane is None:
            return None
        return next(iter(self._window.windows_of(pane, self._last_end, END_OF_TIME)), None)

    def _newest(self, slots: Ints) -> int:
        return max(super()._newest(slots), int(self._fired[slots].max()))

    def _fire(self, start: int, end: int, panes: list[int], out: Output) -> None:
        slots = np.concatenate([self._open.of(pane) for pane in panes])
        keys, groups = self._groups(slots)
        fired = np.full(len(keys), START_OF_TIME)
        np.maximum.at(fired, groups, self._fired[slots])
        if bool((fired >= end).any()):
            slots = slots[fired[groups] < end]
            keys, groups = self._groups(slots)
        if not len(slots):
            return
        made = [self._merged(number, slots, groups, len(keys)) for number in range(len(self._accumulators))]
        there = self._with_rows(slots, groups, len(keys))
        for first in range(0, len(there), MAX_ROWS):
            rows = there[first : first + MAX_ROWS]
            values = [accumulator.result(rows) for accumulator in made]
            self._emit(keys.keys(rows), np.full(len(rows), start), np.full(len(rows), end), values, out)
        newest = np.empty(len(keys), np.int64)
        newest[groups] = slots
        self._fired[newest] = end
        self._changes.changed[newest] = True

    def _with_rows(self, slots: Ints, groups: Ints, count: int) -> Ints:
        """Return which of groups 0..count-1 have any row: of a changelog all may have been taken back."""
        if not self._weighted:
            return np.arange(count)
        rows = np.zeros(count, np.int64)
        np.add.at(rows, groups, self._rows[slots])
        return np.flatnonzero(rows > 0)

    def _groups(self, slots: Ints) -> tuple[KeyIndex, Ints]:
        """Number the keys of slots, in order; return them, and the number of each slot."""
        keys = KeyIndex(self._index.types[:-1])
        return keys, keys.slots(self._index.keys(slots)[:-1], len(slots))

    def _more_state(self, slots: Ints) -> list[pa.Array]:
        fired = self._fired[slots]
        return [*super()._more_state(slots), fixed_array(fired, fired > START_OF_TIME, TIME_TYPE)]

    def _load(self, batch: pa.RecordBatch, slots: Ints) -> None:
        fired, valid = event_times(batch.column(len(self._table.schema) - 1))
        self._fired[slots] = np.where(valid, fired, START_OF_TIME) if len(valid) else fired
        super()._load(batch, slots)

    def _resize(self, capacity: int) -> None:
        super()._resize(capacity)
        self._fired = resized(self._fired, capacity, fill=START_OF_TIME)

    def _compact(self, alive: Bools) -> Ints:
        self._fired = self._fired[np.flatnonzero(alive)]
        return super()._compact(alive)
