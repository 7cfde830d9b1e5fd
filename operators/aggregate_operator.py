"""What every operator with aggregates keeps and how it survives. Importing this module loads numba."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints
from millstream.engine.key_index import KeyIndex
from millstream.engine.operator import Operator
from millstream.engine.state import DELETED, StateDelta, StateTable
from millstream.operators.accumulators import Accumulator
from millstream.operators.aggregate_feed import AggregateFeed
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.cells import resized
from millstream.operators.changes import Changes, latest
from millstream.operators.items import ItemAccumulator
from millstream.operators.windowed import MAX_ROWS

_FIRST_CAPACITY: Final = 1_024


class AggregateOperator(Operator):
    """Gives every group (a key, or a key and a piece of time) a slot; aggregates keep arrays by slot.

    Args:
        tables: the state tables: that of the groups, then those of items, in the order of the aggregates.
        aggregates: what is kept of each group.
        schema: the input's.
    """

    def __init__(self, tables: Sequence[StateTable], aggregates: Sequence[AggregateSpec], schema: pa.Schema) -> None:
        self._table, *item_tables = tables
        self._index = KeyIndex([self._table.schema.field(key).type for key in self._table.keys])
        self._changes = Changes(self._table)
        self._aggregates = list(aggregates)
        self._schema = schema
        self._accumulators = [aggregate.accumulator(schema) for aggregate in aggregates]
        self._widths = [len(aggregate.state_fields(schema)) for aggregate in aggregates]
        holders = [one for one in self._accumulators if isinstance(one, ItemAccumulator)]
        self._holders = {table.name: holder for table, holder in zip(item_tables, holders, strict=True)}
        self._item_tables = {table.name: table for table in item_tables}
        for name, holder in self._holders.items():
            holder.bind(self._item_tables[name])
        self._feed = AggregateFeed(aggregates, self._accumulators)
        self._capacity = 0

    @abstractmethod
    def _alive(self) -> Bools:
        """Return which of the slots hold a group; the others are dead, and wait to be given back."""

    def _more_state(self, slots: Ints) -> list[pa.Array]:
        """Return the columns of state that come after those of the aggregates."""
        del slots
        return []

    def _results(self, slots: Ints) -> list[pa.Array]:
        """Return the aggregates' values for some slots."""
        return [accumulator.result(slots) for accumulator in self._accumulators]

    def _merged(self, number: int, slots: Ints, groups: Ints, count: int) -> Accumulator:
        """Merge what an aggregate keeps in some slots into groups 0..count-1."""
        merged = self._aggregates[number].accumulator(self._schema)
        if isinstance(merged, ItemAccumulator):
            merged.bind(self._table_of(self._accumulators[number]))
        merged.resize(count)
        for first in range(0, len(slots), MAX_ROWS):
            part = slice(first, first + MAX_ROWS)
            merged.absorb(self._accumulators[number], slots[part], groups[part])
        return merged

    def _table_of(self, accumulator: Accumulator) -> StateTable:
        (name,) = (name for name, holder in self._holders.items() if holder is accumulator)
        return self._item_tables[name]

    def _bury(self, slots: Ints) -> None:
        """Have the store forget slots that are dead from now on, and forget their items."""
        self._changes.bury(self._index.keys(self._changes.leaving(slots)))
        for holder in self._holders.values():
            holder.drop(slots, self._index.keys)

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """As ``Operator.snapshot``."""
        deltas: dict[str, StateDelta] = {}
        chosen = self._changes.choose(epoch, np.flatnonzero(self._alive()))
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
            slots = self._index.slots([batch.column(i) for i in range(len(self._table.keys))], batch.num_rows)
            self._make_room()
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
        self._restored()

    def _restored(self) -> None:
        """The groups are slots 0..n-1, all alive."""

    def _restore_items(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        rows = latest(batches, self._item_tables[table])
        groups = len(self._index)
        width = len(self._table.keys)
        slots = self._index.slots(rows.columns[:width], rows.num_rows)
        assert len(self._index) == groups, f"state {table!r} has items of groups that are not in {self._table.name!r}"
        holder = self._holders[table]
        holder.take_back(slots, rows.columns[width:])
        holder.items.restored(full_from)

    def _load(self, batch: pa.RecordBatch, slots: Ints) -> None:
        """Take back rows of state, of different slots."""
        column = len(self._table.keys)
        for accumulator, width in zip(self._accumulators, self._widths, strict=True):
            accumulator.load(slots, [batch.column(column + i) for i in range(width)])
            column += width

    def _make_room(self) -> None:
        if len(self._index) > self._capacity:
            self._capacity = max(_FIRST_CAPACITY, 2 * self._capacity, len(self._index))
            self._resize(self._capacity)

    def _resize(self, capacity: int) -> None:
        self._changes.resize(capacity)
        for accumulator in self._accumulators:
            accumulator.resize(capacity)

    def _is_sparse(self, alive: int) -> bool:
        """Whether so many slots that are alive are too few to keep the others."""
        return len(self._index) >= _FIRST_CAPACITY and 2 * alive < len(self._index)

    def _compact(self, alive: Bools) -> Ints:
        """Give dead slots back; return the new slot of each old one, -1 if it is gone."""
        moved = self._index.compact(alive)
        kept = np.flatnonzero(alive)
        self._capacity = len(kept)
        self._changes.compact(kept)
        for accumulator in self._accumulators:
            accumulator.compact(kept)
        return moved
