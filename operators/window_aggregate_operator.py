"""The running part of ``WindowAggregate``. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints, fixed_codes
from millstream.engine.key_index import KeyIndex
from millstream.engine.operator import MAIN, Operator, Output
from millstream.engine.state import DELETED, StateDelta
from millstream.operators import aggregate_kernels as kernels
from millstream.operators.aggregate_feed import AggregateFeed
from millstream.operators.cells import resized
from millstream.operators.changes import Changes, latest
from millstream.operators.event_time import time_array
from millstream.operators.items import ItemAccumulator
from millstream.operators.windowed import MAX_ROWS, Gate, OpenWindows

if TYPE_CHECKING:
    from millstream.operators.window_aggregate import WindowAggregate
    from millstream.operators.windows import OneWindow

_FIRST_CAPACITY: Final = 1_024


class WindowAggregateOperator(Operator):
    """Gives every (key, window or pane) a slot; aggregates keep arrays by slot. A slot is dead once that is closed."""

    def __init__(self, spec: WindowAggregate, schema: pa.Schema) -> None:
        self._keys = spec.keys
        self._output = spec.output_schemas([schema])[MAIN]
        self._table, *item_tables = spec.state_tables([schema])
        self._gate = Gate(spec.window, spec.time, spec.lateness)
        self._index = KeyIndex([self._table.schema.field(key).type for key in self._table.keys])
        self._open = OpenWindows()
        self._changes = Changes(self._table)
        aggregates = [aggregate for _, aggregate in spec.aggregates]
        self._accumulators = [aggregate.accumulator(schema) for aggregate in aggregates]
        self._widths = [len(aggregate.state_fields(schema)) for aggregate in aggregates]
        holders = [one for one in self._accumulators if isinstance(one, ItemAccumulator)]
        self._holders = {table.name: holder for table, holder in zip(item_tables, holders, strict=True)}
        self._item_tables = {table.name: table for table in item_tables}
        for name, holder in self._holders.items():
            holder.bind(self._item_tables[name])
        self._feed = AggregateFeed(aggregates, self._accumulators)
        self._starts: Ints = np.empty(0, np.int64)

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Fold the rows that are on time into their groups."""
        admitted = self._gate.admit(batch, out)
        if admitted is None:
            return
        batch = admitted.batch
        known = len(self._index)
        keys = [batch.column(key) for key in self._keys]
        slots = self._index.slots([*keys, pa.array(admitted.starts)])
        self._make_room()
        kernels.touch(slots, admitted.starts, self._starts, self._changes.changed)
        self._changes.begin(known, len(self._index) - known)
        self._open.add(known, self._starts[known : len(self._index)])
        self._feed.update(batch, slots, admitted.times)

    def _emit(self, keys: list[pa.Array], starts: Ints, ends: Ints, values: list[pa.Array], out: Output) -> None:
        columns = [*keys, time_array(starts), time_array(ends), *values]
        out.emit(pa.record_batch(columns, schema=self._output))

    def _bury(self, due: Ints) -> None:
        """Forget slots that are not open any more."""
        if len(due):
            self._changes.bury(self._index.keys(self._changes.leaving(due)))
            for holder in self._holders.values():
                holder.drop(due, self._index.keys)
            self._drop_dead()

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """As ``Operator.snapshot``."""
        deltas: dict[str, StateDelta] = {}
        chosen = self._changes.choose(epoch, np.flatnonzero(self._open.alive(len(self._index))))
        if chosen is not None:
            slots, full_from = chosen
            columns = self._index.keys(slots)
            for accumulator in self._accumulators:
                columns += accumulator.state(slots)
            columns += self._more_state(slots)
            named = dict(zip(self._table.schema.names, columns, strict=True))
            deltas[self._table.name] = self._changes.delta(named, full_from)
        for name, holder in self._holders.items():
            delta = holder.delta(epoch, self._index.keys)
            if delta is not None:
                deltas[name] = delta
        return deltas

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """As ``Operator.restore``; the table of groups comes before those of items."""
        if table in self._holders:
            self._restore_items(table, batches, full_from)
            return
        alive = np.empty(0, np.bool_)
        for batch in batches:
            slots = self._index.slots([batch.column(i) for i in range(len(self._table.keys))])
            self._make_room()
            self._starts[slots] = fixed_codes(batch.column(len(self._keys)))
            last_row = np.full(len(self._index), -1)
            last_row[slots] = np.arange(len(slots))
            rows = last_row[last_row >= 0]
            gone = np.asarray(batch.column(DELETED).take(pa.array(rows)).to_numpy(zero_copy_only=False), np.bool_)
            alive = resized(alive, len(self._index), fill=False)
            alive[slots[rows]] = ~gone
            self._load(batch.take(pa.array(rows[~gone])), slots[rows[~gone]])
        self._compact(alive)
        self._changes.begin_restored(0, np.arange(len(self._index)))
        self._changes.restored(full_from)
        self._open.add(0, self._starts[: len(self._index)])

    def _restore_items(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        rows = latest(batches, self._item_tables[table])
        groups = len(self._index)
        width = len(self._table.keys)
        slots = self._index.slots(rows.columns[:width])
        assert len(self._index) == groups, f"state {table!r} has items of groups that are not in {self._table.name!r}"
        holder = self._holders[table]
        holder.take_back(slots, rows.columns[width:])
        holder.items.restored(full_from)

    def _more_state(self, slots: Ints) -> list[pa.Array]:
        """Return the columns of state that come after those of the aggregates."""
        del slots
        return []

    def _load(self, batch: pa.RecordBatch, slots: Ints) -> None:
        column = len(self._table.keys)
        for accumulator, width in zip(self._accumulators, self._widths, strict=True):
            accumulator.load(slots, [batch.column(column + i) for i in range(width)])
            column += width

    def counters(self) -> Mapping[str, int]:
        """As ``Operator.counters``."""
        return self._gate.counters()

    def _make_room(self) -> None:
        capacity = len(self._starts)
        if len(self._index) > capacity:
            self._resize(max(_FIRST_CAPACITY, 2 * capacity, len(self._index)))

    def _resize(self, capacity: int) -> None:
        self._starts = resized(self._starts, capacity)
        self._changes.resize(capacity)
        for accumulator in self._accumulators:
            accumulator.resize(capacity)

    def _drop_dead(self) -> None:
        """Give dead slots back once they are more than the live ones."""
        if len(self._index) < _FIRST_CAPACITY or 2 * self._open.count > len(self._index):
            return
        self._open.move(self._compact(self._open.alive(len(self._index))))

    def _compact(self, alive: Bools) -> Ints:
        moved = self._index.compact(alive)
        kept = np.flatnonzero(alive)
        self._starts = self._starts[kept]
        self._changes.compact(kept)
        for accumulator in self._accumulators:
            accumulator.compact(kept)
        return moved


class OneWindowOperator(WindowAggregateOperator):
    """For windows that do not overlap: what a slot holds is a result.

    Args:
        window: the spec's.
    """

    def __init__(self, spec: WindowAggregate, window: OneWindow, schema: pa.Schema) -> None:
        super().__init__(spec, schema)
        self._window = window

    def on_watermark(self, time: int, out: Output) -> None:
        """Fire every window that is due, in order."""
        self._gate.advance(time)
        due = self._open.close(self._gate.last_closed)
        for first in range(0, len(due), MAX_ROWS):
            slots = due[first : first + MAX_ROWS]
            starts = self._starts[slots]
            values = [accumulator.result(slots) for accumulator in self._accumulators]
            self._emit(self._index.keys(slots)[:-1], starts, self._window.ends(starts), values, out)
        self._bury(due)
