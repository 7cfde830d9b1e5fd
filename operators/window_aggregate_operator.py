"""The running part of ``WindowAggregate``. Importing this module loads numba."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from millstream.engine.changelog import is_changelog, weights_of
from millstream.engine.codes import NO_MASK, Bools, Ints, fixed_codes
from millstream.engine.operator import MAIN, Output
from millstream.operators import aggregate_kernels as kernels
from millstream.operators.accumulators import NO_WEIGHTS
from millstream.operators.aggregate_operator import AggregateOperator
from millstream.operators.cells import resized
from millstream.operators.event_time import time_array
from millstream.operators.windowed import MAX_ROWS, Gate, OpenWindows

if TYPE_CHECKING:
    from millstream.operators.window_aggregate import WindowAggregate
    from millstream.operators.windows import OneWindow


class WindowAggregateOperator(AggregateOperator):
    """A group is a key and a window or pane. Its slot is dead once that is closed."""

    def __init__(self, spec: WindowAggregate, schema: pa.Schema) -> None:
        super().__init__(spec.state_tables([schema]), [aggregate for _, aggregate in spec.aggregates], schema)
        self._by_clock = self.uses_clock = spec.time is None
        self._keys = spec.keys
        self._output = spec.output_schemas([schema])[MAIN]
        self._gate = Gate(spec.window, spec.time, spec.lateness)
        self._open = OpenWindows()
        self._starts: Ints = np.empty(0, np.int64)
        self._weighted = is_changelog(schema)
        self._rows: Ints = np.empty(0, np.int64)  # by slot, of a changelog: the weight of its rows

    def on_watermark(self, time: int, out: Output) -> None:
        """Fire every window that is due, in order."""
        if not self._by_clock:
            self._advance(time, out)

    def on_clock(self, now: int, out: Output) -> None:
        """Fire every window that is due, in order."""
        self._advance(now, out)

    def next_due(self) -> int | None:
        """As ``Operator.next_due``."""
        return self._next_end() if self._by_clock else None

    @abstractmethod
    def _advance(self, time: int, out: Output) -> None:
        """The time of the windows has reached ``time``: fire those that are due, in order."""

    @abstractmethod
    def _next_end(self) -> int | None:
        """Return when the next window ends, or an earlier time."""

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Fold the rows that are on time into their groups."""
        self._fold(batch, out)

    def _fold(self, batch: pa.RecordBatch, out: Output) -> Ints:
        """Fold rows into their groups; return the slots of those that are on time."""
        admitted = self._gate.admit(batch, out)
        if admitted is None:
            return np.empty(0, np.int64)
        batch = admitted.batch
        known = len(self._index)
        keys = [batch.column(key) for key in self._keys]
        slots = self._index.slots([*keys, pa.array(admitted.starts)])
        self._make_room()
        kernels.touch(slots, admitted.starts, self._starts, self._changes.changed)
        self._changes.begin(known, len(self._index) - known)
        self._open.add(known, self._starts[known : len(self._index)])
        weights = weights_of(batch) if self._weighted else NO_WEIGHTS
        if self._weighted:
            kernels.add_count(slots, NO_MASK, weights, self._rows)
        self._feed.update(batch, slots, admitted.times, weights)
        return slots

    def _there(self, slots: Ints) -> Bools:
        """Return which groups have any row: of a changelog all may have been taken back."""
        return np.greater(self._rows[slots], 0) if self._weighted else np.ones(len(slots), np.bool_)

    def _more_state(self, slots: Ints) -> list[pa.Array]:
        return [pa.array(self._rows[slots])] if self._weighted else []

    def _emit(self, keys: list[pa.Array], starts: Ints, ends: Ints, values: list[pa.Array], out: Output) -> None:
        columns = [*keys, time_array(starts), time_array(ends), *values]
        out.emit(pa.record_batch(columns, schema=self._output))

    def _alive(self) -> Bools:
        return self._open.alive(len(self._index))

    def _bury(self, slots: Ints) -> None:
        if len(slots):
            super()._bury(slots)
            if self._is_sparse(self._open.count):
                self._open.move(self._compact(self._alive()))

    def _restored(self) -> None:
        self._open.add(0, self._starts[: len(self._index)])

    def _load(self, batch: pa.RecordBatch, slots: Ints) -> None:
        super()._load(batch, slots)
        self._starts[slots] = fixed_codes(batch.column(len(self._keys)))
        if self._weighted:
            self._rows[slots] = fixed_codes(batch.column(len(self._keys) + 1 + sum(self._widths)))
        if self._by_clock and len(slots):
            self._gate.advance(self._newest(slots))

    def _newest(self, slots: Ints) -> int:
        """Return the latest time that restored slots speak of: the clock had reached it."""
        return int(self._starts[slots].max())

    def counters(self) -> Mapping[str, int]:
        """As ``Operator.counters``."""
        return self._gate.counters()

    def _resize(self, capacity: int) -> None:
        super()._resize(capacity)
        self._starts = resized(self._starts, capacity)
        self._rows = resized(self._rows, capacity if self._weighted else 0)

    def _compact(self, alive: Bools) -> Ints:
        self._starts = self._starts[np.flatnonzero(alive)]
        self._rows = self._rows[np.flatnonzero(alive)] if self._weighted else self._rows
        return super()._compact(alive)


class OneWindowOperator(WindowAggregateOperator):
    """For windows that do not overlap: what a slot holds is a result.

    Args:
        window: the spec's.
    """

    def __init__(self, spec: WindowAggregate, window: OneWindow, schema: pa.Schema) -> None:
        super().__init__(spec, schema)
        self._window = window

    def _advance(self, time: int, out: Output) -> None:
        self._gate.advance(time)
        due = self._open.close(self._gate.last_closed)
        for first in range(0, len(due), MAX_ROWS):
            slots = due[first : first + MAX_ROWS]
            slots = slots[self._there(slots)]
            if not len(slots):
                continue
            starts = self._starts[slots]
            self._emit(self._index.keys(slots)[:-1], starts, self._window.ends(starts), self._results(slots), out)
        self._bury(due)

    def _next_end(self) -> int | None:
        start = self._open.earliest()
        return None if start is None else int(self._window.ends(np.array([start]))[0])
