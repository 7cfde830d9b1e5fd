"""The running part of ``GroupAggregate``. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from millstream.engine.changelog import is_changelog, weights_of
from millstream.engine.codes import NO_MASK, Bools, Ints, fixed_codes
from millstream.engine.operator import MAIN, Output
from millstream.engine.time import END_OF_TIME, START_OF_TIME
from millstream.operators import aggregate_kernels as kernels
from millstream.operators.accumulators import NO_WEIGHTS
from millstream.operators.aggregate_operator import AggregateOperator
from millstream.operators.cells import resized
from millstream.operators.event_time import event_times
from millstream.operators.group_lives import GroupLives
from millstream.operators.result_changes import change_weights, result_changes

if TYPE_CHECKING:
    from millstream.operators.group_aggregate import GroupAggregate


class GroupAggregateOperator(AggregateOperator):
    """A group is a key. What its result was before a batch is computed anew, so that nothing is kept twice."""

    def __init__(self, spec: GroupAggregate, schema: pa.Schema) -> None:
        super().__init__(spec.state_tables([schema]), spec.fed(), schema)
        self._keys = spec.keys
        self._time = spec.time if spec.reads_time else None
        self._output = spec.output_schemas([schema])[MAIN]
        self._weighted = is_changelog(schema)
        self._seen: Bools = np.empty(0, np.bool_)  # by slot, for list_first_rows
        self._rows: Ints = np.empty(0, np.int64)  # by slot: the weight of its rows; 0: the slot is dead
        self._count = 0  # of slots that are not dead
        self._lives = None if spec.lives is None else GroupLives(spec.lives.micros)
        self._by_watermark = spec.lives is not None and spec.lives.by_event_time
        self.uses_clock = spec.lives is not None and not self._by_watermark
        self._forgotten = 0
        self._reached = START_OF_TIME  # by whichever of the two groups live by

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Fold the rows into their groups, and emit what that has changed."""
        known = len(self._index)
        keys = [batch.column(key) for key in self._keys] or [pa.repeat(pa.scalar(True), batch.num_rows)]
        slots = self._index.slots(keys)
        self._make_room()
        rows = np.empty(len(slots), np.int64)
        touched = slots[rows[: kernels.list_first_rows(slots, self._seen, rows)]]
        before = self._rows[touched]
        old = self._results(touched[before > 0])
        self._changes.changed[touched] = True
        self._changes.begin(known, len(self._index) - known)
        weights = weights_of(batch) if self._weighted else NO_WEIGHTS
        kernels.add_count(slots, NO_MASK, weights, self._rows)
        times = self._times(batch)
        self._feed.update(batch, slots, times, weights)
        if self._lives is not None:
            # A row that is late, or has no time, comes at the watermark: what there was of its key is forgotten.
            self._lives.touch(slots, np.maximum(times if self._by_watermark else self._reached, self._reached))
        now = self._rows[touched]
        self._emit_changes(touched, before > 0, now > 0, old, out)
        self._count += int((now != 0).sum()) - int((before != 0).sum())
        if self._weighted:
            self._bury(touched[now == 0])

    def _times(self, batch: pa.RecordBatch) -> Ints:
        if self._time is None:
            return np.zeros(batch.num_rows, np.int64)
        times, valid = event_times(self._time.evaluate(batch))
        return np.where(valid, times, START_OF_TIME) if len(valid) else times

    def on_watermark(self, time: int, out: Output) -> None:
        """Forget the groups whose time is over."""
        if self._by_watermark:
            self._forget(time, out)

    def on_clock(self, now: int, out: Output) -> None:
        """As ``on_watermark``, where groups live by processing time."""
        if not self._by_watermark:
            self._forget(now, out)

    def next_due(self) -> int | None:
        """When the next group's time may be over."""
        return self._lives.next_due if self._lives is not None and not self._by_watermark else None

    def _forget(self, now: int, out: Output) -> None:
        # At the end of the input, also if rows are replayed before that, what there is stays.
        if self._lives is None or now >= END_OF_TIME - 1:
            return
        self._reached = max(self._reached, now)
        slots = self._lives.due(self._reached, self._alive())
        if not len(slots):
            return
        self._emit_changes(
            slots, np.ones(len(slots), np.bool_), np.zeros(len(slots), np.bool_), self._results(slots), out
        )
        self._count -= len(slots)
        self._rows[slots] = 0
        self._bury(slots)
        self._forgotten += len(slots)

    def counters(self) -> Mapping[str, int]:
        """How many groups have been forgotten."""
        return {} if self._lives is None else {"forgotten_groups": self._forgotten}

    def _emit_changes(self, touched: Ints, was: Bools, there: Bools, old: list[pa.Array], out: Output) -> None:
        """Take old results back and emit new ones, where they differ.

        Args:
            touched: the groups in question.
            was: which of them had a result, ``there`` which have one now, shape (len(touched),) each.
            old: the results of those that had one.
        """
        gone, come, columns = result_changes(was, there, old, self._results(touched[there]))
        keys = self._index.keys(np.concatenate([touched[gone], touched[come]])) if self._keys else []
        weights = pa.array(change_weights(gone, come))
        out.emit(pa.record_batch([*keys, *columns, weights], schema=self._output))

    def _results(self, slots: Ints) -> list[pa.Array]:
        if not len(slots):  # users' functions need not cope with that
            return [pa.nulls(0, type) for type in self._output.types[len(self._keys) : -1]]
        return super()._results(slots)

    def _alive(self) -> Bools:
        return np.not_equal(self._rows[: len(self._index)], 0)

    def _bury(self, slots: Ints) -> None:
        if not len(slots):
            return
        super()._bury(slots)
        for accumulator in self._accumulators:
            accumulator.clear(slots)
        if self._is_sparse(self._count):
            self._compact(self._alive())

    def _more_state(self, slots: Ints) -> list[pa.Array]:
        columns = [pa.array(self._rows[slots])] if self._weighted else []
        return columns if self._lives is None else [*columns, self._lives.state(slots)]

    def _load(self, batch: pa.RecordBatch, slots: Ints) -> None:
        super()._load(batch, slots)
        column = len(self._table.schema)
        if self._lives is not None:
            column -= 1
            self._lives.load(slots, batch.column(column))
        self._rows[slots] = fixed_codes(batch.column(column - 1)) if self._weighted else 1

    def _restored(self) -> None:
        self._count = len(self._index)

    def _resize(self, capacity: int) -> None:
        super()._resize(capacity)
        self._seen = resized(self._seen, capacity, fill=False)
        self._rows = resized(self._rows, capacity)
        if self._lives is not None:
            self._lives.resize(capacity)

    def _compact(self, alive: Bools) -> Ints:
        kept = np.flatnonzero(alive)
        self._seen, self._rows = self._seen[kept], self._rows[kept]
        if self._lives is not None:
            self._lives.compact(kept)
        return super()._compact(alive)
