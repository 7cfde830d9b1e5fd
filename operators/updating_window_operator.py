"""The running part of ``WindowAggregate`` where results may still change. Importing this module loads numba."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from millstream.engine.changelog import unweighted
from millstream.engine.codes import Bools, Ints
from millstream.engine.operator import Output
from millstream.engine.time import START_OF_TIME
from millstream.operators import aggregate_kernels as kernels
from millstream.operators.cells import cells_for, resized
from millstream.operators.event_time import time_array
from millstream.operators.result_changes import change_weights, result_changes
from millstream.operators.window_aggregate_operator import OneWindowOperator
from millstream.operators.windowed import MAX_ROWS

if TYPE_CHECKING:
    from millstream.operators.window_aggregate import WindowAggregate
    from millstream.operators.window_updates import Updates
    from millstream.operators.windows import OneWindow


class UpdatingWindowOperator(OneWindowOperator):
    """Keeps the result that was shown last with each group, for rows may change it long before it is shown again.

    Args:
        updates: the spec's.
    """

    def __init__(self, spec: WindowAggregate, window: OneWindow, updates: Updates, schema: pa.Schema) -> None:
        super().__init__(spec, window, schema)
        self._early = updates.early
        self._correct = updates.correct
        self.uses_clock = self._by_clock or bool(self._early)
        self._now = START_OF_TIME
        self._due: int | None = None  # when early results are due
        self._last_ended = START_OF_TIME  # windows that start here or earlier have shown what they were at their end
        self._made = list(unweighted(self._output))[len(self._keys) + 2 :]
        self._cells = [cells_for(field.type) for field in self._made]
        # By slot: whether a result was shown, whether there may be another one now, and a mark for list_first_rows.
        self._shown: Bools = np.empty(0, np.bool_)
        self._stale: Bools = np.empty(0, np.bool_)
        self._seen: Bools = np.empty(0, np.bool_)

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Fold the rows that are on time into their groups, and show what cannot wait."""
        slots = self._fold(batch, out)
        rows = np.empty(len(slots), np.int64)
        touched = slots[rows[: kernels.list_first_rows(slots, self._seen, rows)]]
        self._stale[touched] = True
        if self._early == 0:
            self._show(touched, out)
            return
        ended = self._starts[touched] <= self._last_ended
        self._show(touched[ended], out)
        if self._early and self._due is None and not bool(ended.all()):
            self._due = (self._now // self._early + 1) * self._early

    def next_due(self) -> int | None:
        """As ``Operator.next_due``."""
        due = [time for time in (super().next_due(), self._due) if time is not None]
        return min(due, default=None)

    def on_clock(self, now: int, out: Output) -> None:
        """Fire every window that is due, and show early results."""
        self._now = now
        if self._by_clock:
            self._advance(now, out)
        if self._due is not None and self._due <= now:
            self._due = None
            self._show(np.flatnonzero(self._stale), out)

    def _advance(self, time: int, out: Output) -> None:
        self._gate.advance(time)
        if self._correct and self._gate.last_ended > self._last_ended:
            for start in self._open.starts():
                if self._last_ended < start <= self._gate.last_ended:
                    self._show(self._open.of(start), out)
            self._last_ended = self._gate.last_ended
        due = self._open.close(self._gate.last_closed)
        self._show(due, out)
        self._bury(due)

    def _show(self, slots: Ints, out: Output) -> None:
        """Take back what was shown of some slots, all different, and show what they hold now, where that differs."""
        slots = slots[self._stale[slots]]
        self._stale[slots] = False
        for first in range(0, len(slots), MAX_ROWS):
            self._show_some(slots[first : first + MAX_ROWS], out)

    def _show_some(self, slots: Ints, out: Output) -> None:
        was, there = self._shown[slots], self._there(slots)
        old = [cells.get(slots[was]) for cells in self._cells]
        new = self._results(slots[there])
        gone, come, columns = result_changes(was, there, old, new)
        if not bool((gone | come).any()):
            return
        emitted = np.concatenate([slots[gone], slots[come]])
        starts = self._starts[emitted]
        times = [time_array(starts), time_array(self._window.ends(starts))]
        weights = pa.array(change_weights(gone, come))
        out.emit(pa.record_batch([*self._index.keys(emitted)[:-1], *times, *columns, weights], schema=self._output))
        for cells, values in zip(self._cells, new, strict=True):
            cells.put(slots[come], values.filter(pa.array(come[there])))
        self._shown[slots] = there
        self._changes.changed[slots[gone | come]] = True

    def _results(self, slots: Ints) -> list[pa.Array]:
        if not len(slots):  # users' functions need not cope with that
            return [pa.nulls(0, field.type) for field in self._made]
        return super()._results(slots)

    def _more_state(self, slots: Ints) -> list[pa.Array]:
        return [*super()._more_state(slots), pa.array(self._shown[slots]), *(cells.get(slots) for cells in self._cells)]

    def _load(self, batch: pa.RecordBatch, slots: Ints) -> None:
        super()._load(batch, slots)
        shown, *values = batch.columns[len(self._table.schema) - len(self._cells) - 1 : len(self._table.schema)]
        self._shown[slots] = shown.to_numpy(zero_copy_only=False)
        known = slots[self._shown[slots]]
        for cells, column in zip(self._cells, values, strict=True):
            cells.put(known, column.filter(shown))
        # Whether there is more than was shown is not kept: it is seen as soon as it is due.
        self._stale[slots] = True
        self._due = START_OF_TIME if self._early and len(slots) else self._due

    def _resize(self, capacity: int) -> None:
        super()._resize(capacity)
        self._shown = resized(self._shown, capacity, fill=False)
        self._stale = resized(self._stale, capacity, fill=False)
        self._seen = resized(self._seen, capacity, fill=False)
        for cells in self._cells:
            cells.resize(capacity)

    def _compact(self, alive: Bools) -> Ints:
        kept = np.flatnonzero(alive)
        self._shown, self._stale, self._seen = self._shown[kept], self._stale[kept], self._seen[kept]
        for cells in self._cells:
            cells.compact(kept)
        return super()._compact(alive)
