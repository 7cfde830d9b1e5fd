"""The running part of ``Over``. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints, fixed_codes, plain
from millstream.engine.errors import DataError
from millstream.engine.key_index import KeyIndex
from millstream.engine.operator import MAIN, Operator, Output
from millstream.engine.state import StateDelta
from millstream.engine.time import END_OF_TIME, START_OF_TIME
from millstream.operators import over_kernels, top_kernels
from millstream.operators.cells import resized
from millstream.operators.changes import Changes, latest_rows
from millstream.operators.event_time import event_times
from millstream.operators.over_columns import Stretch, column_for
from millstream.operators.rows import Rows
from millstream.operators.waiting import Waiting
from millstream.operators.windowed import LATE, MAX_ROWS

if TYPE_CHECKING:
    from millstream.operators.over import Over

_FIRST_CAPACITY: Final = 1_024
_MIN_GARBAGE: Final = 4_096
_NONE: Final[Ints] = np.empty(0, np.int64)


class OverOperator(Operator):
    """Gives every key a slot with a list of the rows that event time has passed, as far as they are needed still.

    A row is named by its id, in the order of arrival. It waits; event time passes it, and it comes on its key's list;
    it goes on, stays as long as later ones look at it, and is gone. So what a watermark costs does not depend on how
    many rows wait for later ones.
    """

    def __init__(self, spec: Over, schema: pa.Schema) -> None:
        self._spec = spec
        schemas = spec.output_schemas([schema])
        self._output, self._late_columns = schemas[MAIN], schemas[LATE].names
        self._kept = spec.kept(schema)
        (self._table,) = spec.state_tables([schema])
        # A batch needs a column to have rows.
        self._read = [name for name in self._kept.names if name in spec.columns_read()] or self._kept.names[:1]
        self._columns = [(name, column_for(function, spec, schema)) for name, function in spec.functions]
        self._widths = [len(spec.carried(function, schema)) for _, function in spec.functions]
        self._index = KeyIndex([self._kept.field(key).type for key in spec.keys])
        self._changes = Changes(self._table)
        self._rows = Rows(self._kept)
        self._live = 0
        self._most = 0  # how many of them there were when all were looked through
        self._watermark = START_OF_TIME
        self._waiting = Waiting()  # those that event time has not passed
        self._head: Ints = _NONE  # by slot: the first row of its list
        # By id: the next row of the list, the slot, the time; whether the row is there, on a list, and has gone on.
        self._following: Ints = _NONE
        self._slot_of: Ints = _NONE
        self._times: Ints = _NONE
        self._alive: Bools = np.empty(0, np.bool_)
        self._listed: Bools = np.empty(0, np.bool_)
        self._emitted: Bools = np.empty(0, np.bool_)
        self._late_rows = 0
        self._null_time_rows = 0

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Keep the rows that are on time."""
        times, valid = event_times(self._spec.time.evaluate(batch))
        refused = times < self._watermark
        if len(valid):
            refused &= valid
            self._null_time_rows += len(valid) - int(valid.sum())
        self._late_rows += int(refused.sum())
        if len(valid):
            refused |= ~valid
        if bool(refused.any()):
            if self._late_columns:
                out.emit(batch.select(self._late_columns).filter(pa.array(refused)), LATE)
            batch, times = batch.filter(pa.array(~refused)), times[~refused]
        if batch.num_rows:
            _check_times(times, self._spec.range or 0)
            arrays = [plain(batch.column(name)) for name in self._kept.names]
            first = self._append(pa.record_batch(arrays, schema=self._kept), times)
            self._changes.begin(first, batch.num_rows)
            self._waiting.add(np.arange(first, len(self._rows)), times)

    def _append(self, batch: pa.RecordBatch, times: Ints) -> int:
        """Add rows; return the id of the first."""
        first, count = len(self._rows), len(self._rows) + batch.num_rows
        slots = self._index.slots([batch.column(key) for key in self._spec.keys], batch.num_rows)
        if len(self._index) > len(self._head):
            self._head = resized(self._head, max(_FIRST_CAPACITY, 2 * len(self._head), len(self._index)), fill=-1)
        if count > len(self._times):
            capacity = max(_FIRST_CAPACITY, 2 * first, count)
            self._following = resized(self._following, capacity)
            self._slot_of = resized(self._slot_of, capacity)
            self._times = resized(self._times, capacity)
            self._alive = resized(self._alive, capacity)
            self._listed = resized(self._listed, capacity)
            self._emitted = resized(self._emitted, capacity)
            self._changes.resize(capacity)
            for _, column in self._columns:
                column.resize(capacity)
        ids = np.arange(first, count)
        self._rows.append(batch)
        self._slot_of[ids], self._times[ids] = slots, times
        self._alive[ids], self._listed[ids], self._emitted[ids] = True, False, False
        self._live += len(ids)
        return first

    def _list(self, ids: Ints) -> None:
        """Put rows on the lists of their keys."""
        self._listed[ids] = True
        top_kernels.link(self._slot_of[ids], ids, self._head, self._following)

    def on_watermark(self, time: int, out: Output) -> None:
        """Let the rows go on that event time has passed, and whose neighbours are known."""
        self._watermark = max(self._watermark, time)
        passed = self._waiting.take(self._watermark)
        ended = self._watermark >= END_OF_TIME
        if not len(passed) and not (ended and self._spec.after):
            return
        self._list(passed)
        touched = np.flatnonzero(self._head >= 0) if ended else np.unique(self._slot_of[passed])
        rows = self._stretch(touched, ended=ended)
        if len(rows.at):
            self._go_on(rows, out)
        self._forget(rows, touched)
        self._expire()
        self._compact_if_sparse()

    def _stretch(self, slots: Ints, *, ended: bool) -> Stretch:
        """Put the listed rows of some keys in order, and say which may go on."""
        ids = self._listed_of(slots)
        ids = ids[np.lexsort((ids, self._times[ids], self._slot_of[ids]))]
        of, times = self._slot_of[ids], self._times[ids]
        place = np.arange(len(ids))
        first = np.searchsorted(of, of, side="left")
        last = np.searchsorted(of, of, side="right")
        ready = ~self._emitted[ids]
        if not ended:
            ready &= place + self._spec.after < last
        at = np.flatnonzero(ready)
        new_key = np.diff(of[at], prepend=-1) != 0
        begin = at[np.maximum.accumulate(np.where(new_key, np.arange(len(at)), 0))]
        carriers = np.flatnonzero(np.append(new_key[1:], True)) if len(at) else at
        previous = np.where(begin > first[at], begin - 1, -1)
        starts, stops = begin, at + 1
        if self._spec.rows is not None:
            starts = np.maximum(first[at], at - self._spec.rows + 1)
        elif self._spec.range is not None:
            starts = np.empty(len(at), np.int64)
            over_kernels.time_frames(at, first, times, self._spec.range, starts)
            # A row's frame ends behind all rows of its time.
            ends = np.append((of[1:] != of[:-1]) | (times[1:] != times[:-1]), True)
            stops = np.flatnonzero(ends)[np.searchsorted(np.flatnonzero(ends), at)] + 1
        return Stretch(ids, first, last, at, begin, starts, stops, previous, carriers)

    def _listed_of(self, slots: Ints) -> Ints:
        """Return the rows on the lists of some keys, in any order."""
        ids = np.empty(top_kernels.collect(slots, self._head, self._following, _NONE, _NONE), np.int64)
        top_kernels.collect(slots, self._head, self._following, ids, np.empty_like(ids))
        return ids

    def _go_on(self, rows: Stretch, out: Output) -> None:
        read = self._rows.take(rows.ids, self._read)
        added = {name: column.compute(rows, read) for name, column in self._columns}
        ids = rows.ids[rows.at]
        self._emitted[ids] = True
        self._changes.changed[ids] = True
        order = np.lexsort((ids, self._times[ids]))
        for begin in range(0, len(order), MAX_ROWS):
            chosen = order[begin : begin + MAX_ROWS]
            batch = self._rows.take(ids[chosen])
            columns = [
                added[name].take(pa.array(chosen)) if name in added else batch.column(name)
                for name in self._output.names
            ]
            if columns:
                out.emit(pa.record_batch(columns, schema=self._output))

    def _forget(self, rows: Stretch, touched: Ints) -> None:
        """Forget the rows of some keys that no later one looks at."""
        ids, spec = rows.ids, self._spec
        if not len(ids):
            return
        emitted = self._emitted[ids]
        # What has gone on comes first in each key: the last of it may be looked back at.
        counted = np.cumsum(emitted)
        behind: Ints = counted[rows.last - 1] - counted
        needed = ~emitted | (behind < spec.before)
        if spec.reach is not None:
            following = rows.first + counted[rows.last - 1] - counted[rows.first] + emitted[rows.first]
            waits = following < rows.last
            times = self._times[ids]
            earliest = np.where(waits, times[np.where(waits, following, 0)], self._watermark)
            needed |= times >= earliest - spec.reach
        self._drop(ids[~needed])
        held = self._listed_of(touched)
        held = held[self._alive[held]]
        self._head[touched] = -1
        top_kernels.link(self._slot_of[held], held, self._head, self._following)

    def _drop(self, ids: Ints) -> None:
        leaving = self._changes.leaving(ids)
        if len(leaving):
            keys = self._index.keys(self._slot_of[leaving]) if self._spec.keys else []
            self._changes.bury([*keys, pa.array(self._changes.sequence[leaving])])
        self._alive[ids] = False
        self._live -= len(ids)

    def _expire(self) -> None:
        """Forget rows of keys that have no new ones, once there may be many: event time has left them behind."""
        if self._spec.reach is None or self._live <= max(_MIN_GARBAGE, 2 * self._most):
            return
        every = np.flatnonzero(self._head >= 0)
        self._forget(self._stretch(every, ended=False), every)
        self._most = self._live

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """As ``Operator.snapshot``."""
        chosen = self._changes.choose(epoch, np.flatnonzero(self._alive[: len(self._rows)]))
        if chosen is None:
            return {}
        ids, full_from = chosen
        carried = [part for _, column in self._columns for part in column.state(ids)]
        last = [pa.array(self._emitted[ids]), pa.array(self._changes.sequence[ids])]
        columns = [*self._rows.take(ids).columns, *carried, *last]
        named = dict(zip(self._table.schema.names, columns, strict=True))
        return {self._table.name: self._changes.delta(named, full_from)}

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """As ``Operator.restore``."""
        del table
        rows, there = latest_rows(batches, self._table)
        arrivals = np.concatenate([_NONE, *(fixed_codes(part.column(-1)) for part in rows.batches())])[there]
        order = np.argsort(arrivals, kind="stable")
        there, arrivals = there[order], arrivals[order]
        for start in range(0, len(there), MAX_ROWS):
            self._restore(rows.take(there[start : start + MAX_ROWS]), arrivals[start : start + MAX_ROWS])
        self._changes.restored(full_from)

    def _restore(self, stored: pa.RecordBatch, arrivals: Ints) -> None:
        batch = pa.record_batch(stored.columns[: len(self._kept)], schema=self._kept)
        times, _ = event_times(self._spec.time.evaluate(batch))
        first = self._append(batch, times)
        ids = np.arange(first, first + batch.num_rows)
        emitted = np.asarray(stored.column(-2).to_numpy(zero_copy_only=False), np.bool_)
        self._emitted[ids] = emitted
        self._list(ids[emitted])
        self._waiting.add(ids[~emitted], times[~emitted])
        self._changes.begin_restored(first, arrivals)
        at = len(self._kept)
        for (_, column), width in zip(self._columns, self._widths, strict=True):
            column.load(ids[emitted], [part.filter(pa.array(emitted)) for part in stored.columns[at : at + width]])
            at += width

    def counters(self) -> Mapping[str, int]:
        """As ``Operator.counters``."""
        return {"late_rows": self._late_rows, "null_time_rows": self._null_time_rows}

    def _compact_if_sparse(self) -> None:
        """Forget rows that are gone, and keys without any, once they are more than the others."""
        if len(self._rows) <= max(_MIN_GARBAGE, 2 * self._live):
            return
        kept = np.flatnonzero(self._alive[: len(self._rows)])
        alive = np.zeros(len(self._index), np.bool_)
        alive[self._slot_of[kept]] = True
        moved = np.full(len(self._rows), -1)
        moved[kept] = np.arange(len(kept))
        self._waiting.move(moved)
        self._slot_of = self._index.compact(alive)[self._slot_of[kept]]
        self._times, self._emitted = self._times[kept], self._emitted[kept]
        self._listed = self._listed[kept]
        self._alive = np.ones(len(kept), np.bool_)
        self._rows.compact(kept)
        self._changes.compact(kept)
        for _, column in self._columns:
            column.compact(kept)
        self._following = np.empty(len(kept), np.int64)
        self._head = np.full(len(self._index), -1)
        self._list(np.flatnonzero(self._listed))


def _check_times(times: Ints, reach: int) -> None:
    for time in (int(times.min()), int(times.max())):
        if not START_OF_TIME + reach < time < END_OF_TIME:
            raise DataError(
                f"event time {time} (microseconds since 1970) is too far away for over(): the input holds a "
                "nonsensical time. Filter such rows out before"
            )
