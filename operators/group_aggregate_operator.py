"""The running part of ``GroupAggregate``. Importing this module loads numba."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints
from millstream.engine.operator import MAIN, Output
from millstream.operators import aggregate_kernels as kernels
from millstream.operators.aggregate_operator import AggregateOperator
from millstream.operators.cells import resized
from millstream.operators.event_time import event_times
from millstream.operators.row_numbers import same_values

if TYPE_CHECKING:
    from millstream.operators.group_aggregate import GroupAggregate


class GroupAggregateOperator(AggregateOperator):
    """A group is a key. What its result was before a batch is computed anew, so that nothing is kept twice."""

    def __init__(self, spec: GroupAggregate, schema: pa.Schema) -> None:
        super().__init__(spec.state_tables([schema]), spec.fed(), schema)
        self._keys = spec.keys
        self._time = spec.time if spec.reads_time else None
        self._output = spec.output_schemas([schema])[MAIN]
        self._seen: Bools = np.empty(0, np.bool_)  # by slot, for list_touched

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Fold the rows into their groups, and emit what that has changed."""
        known = len(self._index)
        keys = [batch.column(key) for key in self._keys] or [pa.repeat(pa.scalar(True), batch.num_rows)]
        slots = self._index.slots(keys)
        self._make_room()
        touched = np.empty(len(slots), np.int64)
        touched = touched[: kernels.list_touched(slots, self._seen, touched)]
        was = touched < known
        old = self._results(touched[was])
        self._changes.changed[touched] = True
        self._changes.begin(known, len(self._index) - known)
        self._feed.update(batch, slots, self._times(batch))
        self._emit_changes(touched, was, old, out)

    def _times(self, batch: pa.RecordBatch) -> Ints:
        if self._time is None:
            return np.zeros(batch.num_rows, np.int64)
        return event_times(self._time.evaluate(batch))[0]

    def _emit_changes(self, touched: Ints, was: Bools, old: list[pa.Array], out: Output) -> None:
        """Take old results back and emit new ones, where they differ.

        Args:
            touched: the groups in question.
            was: which of them had a result, shape (len(touched),).
            old: the results of these.
        """
        new = self._results(touched)
        before = np.flatnonzero(was)
        same = np.ones(len(before), np.bool_)
        for left, right in zip(old, new, strict=True):
            same &= same_values(left, right.take(pa.array(before)))
        differ = np.flatnonzero(~same)
        added = np.ones(len(touched), np.bool_)
        added[before[same]] = False
        arrived = np.flatnonzero(added)
        gone, come = pa.array(differ), pa.array(arrived)
        slots = np.concatenate([touched[before[differ]], touched[arrived]])
        columns = self._index.keys(slots) if self._keys else []
        columns += [pa.concat_arrays([a.take(gone), b.take(come)]) for a, b in zip(old, new, strict=True)]
        weights = np.ones(len(slots), np.int64)
        weights[: len(differ)] = -1
        out.emit(pa.record_batch([*columns, pa.array(weights)], schema=self._output))

    def _results(self, slots: Ints) -> list[pa.Array]:
        if not len(slots):  # users' functions need not cope with that
            return [pa.nulls(0, type) for type in self._output.types[len(self._keys) : -1]]
        return super()._results(slots)

    def _alive(self) -> Bools:
        return np.ones(len(self._index), np.bool_)

    def _resize(self, capacity: int) -> None:
        super()._resize(capacity)
        self._seen = resized(self._seen, capacity, fill=False)

    def _compact(self, alive: Bools) -> Ints:
        self._seen = self._seen[np.flatnonzero(alive)]
        return super()._compact(alive)
