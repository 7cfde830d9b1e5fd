"""The running part of ``WindowAggregate`` over sessions of a changelog. Importing this module loads numba."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints, fixed_array
from millstream.engine.key_index import KeyIndex
from millstream.engine.operator import Output
from millstream.engine.time import END_OF_TIME, START_OF_TIME
from millstream.operators import top_kernels
from millstream.operators.cells import resized
from millstream.operators.event_time import TIME_TYPE, event_times
from millstream.operators.session_operator import OpenSlots, chain
from millstream.operators.window_aggregate_operator import WindowAggregateOperator
from millstream.operators.windowed import MAX_ROWS

if TYPE_CHECKING:
    from millstream.operators.session_window import SessionWindow
    from millstream.operators.window_aggregate import WindowAggregate

_NONE = np.empty(0, np.int64)


class ChangingSessionOperator(WindowAggregateOperator):
    """A slot is a moment of a key: rows that join what is apart may be taken back, so nothing is joined early.

    Sessions are made of the moments that have rows when they may be due. Time must have gone on for that since the
    last change of their key: what a row that is taken back leaves behind may have ended already, but the row that
    replaces it has yet to come. After a restart the newest moment of a key says how far time had got.

    Args:
        window: the spec's.
    """

    def __init__(self, spec: WindowAggregate, window: SessionWindow, schema: pa.Schema) -> None:
        super().__init__(spec, schema)
        self._gap = window.gap
        self._open: OpenSlots = OpenSlots()
        self._groups = KeyIndex(self._index.types[:-1])
        # By group: its newest moment; no session of it is due before moments up to here are closed.
        self._head: Ints = np.empty(0, np.int64)
        self._look: Ints = np.empty(0, np.int64)
        self._earliest = END_OF_TIME  # the least of ``_look``
        # By slot: the moment before it in the list of the group, the group, and what was closed when it changed.
        self._previous: Ints = np.empty(0, np.int64)
        self._group_of: Ints = np.empty(0, np.int64)
        self._closed: Ints = np.empty(0, np.int64)

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Fold the rows that are on time into their moments."""
        known = len(self._index)
        slots = self._fold(batch, out)
        if not len(slots):
            return
        self._link(np.arange(known, len(self._index)))
        closed = self._gate.last_closed
        self._closed[slots] = closed
        look = np.where(self._rows[slots] > 0, self._starts[slots], closed + 1)
        np.minimum.at(self._look, self._group_of[slots], look)
        self._earliest = min(self._earliest, int(look.min()))

    def _link(self, slots: Ints) -> None:
        """Put new moments on the lists of their groups."""
        groups = self._groups.slots(self._index.keys(slots)[:-1], len(slots))
        if len(self._groups) > len(self._head):
            capacity = max(2 * len(self._head), len(self._groups))
            self._head = resized(self._head, capacity, fill=-1)
            self._look = resized(self._look, capacity, fill=END_OF_TIME)
        self._group_of[slots] = groups
        top_kernels.link(groups, slots, self._head, self._previous)

    def _advance(self, time: int, out: Output) -> None:
        """Sessions fire in the order of their ends."""
        self._gate.advance(time)
        closed = self._gate.last_closed
        if self._earliest > closed:
            return
        groups = np.flatnonzero(self._look <= closed)
        slots = self._moments(groups)
        there = self._rows[slots] > 0
        held, empty = slots[there], slots[~there]
        numbers = np.empty(len(held), np.int64)
        times = self._starts[held]
        count = chain(self._group_of[held], times, times, self._gap, numbers)
        ends = np.searchsorted(numbers, np.arange(count), side="right") - 1
        due = times[ends] <= closed
        fired = due[numbers]
        self._fire(held[fired], numbers[fired], out)
        self._look[groups] = END_OF_TIME
        waiting = np.concatenate([held[ends[~due]], empty[self._starts[empty] > closed]])
        np.minimum.at(self._look, self._group_of[waiting], self._starts[waiting])
        self._earliest = int(self._look.min(initial=END_OF_TIME))
        gone = np.concatenate([held[fired], empty[self._starts[empty] <= closed]])
        self._open.remove(gone)
        self._bury(gone)

    def _moments(self, groups: Ints) -> Ints:
        """Return the moments of some groups, in order, group by group."""
        count = top_kernels.collect(groups, self._head, self._previous, _NONE, _NONE)
        slots, places = np.empty(count, np.int64), np.empty(count, np.int64)
        top_kernels.collect(groups, self._head, self._previous, slots, places)
        slots = slots[self._open.alive(len(self._index))[slots]]
        return slots[np.lexsort((self._starts[slots], self._group_of[slots]))]

    def _fire(self, slots: Ints, numbers: Ints, out: Output) -> None:
        """Emit the sessions that moments make, given in order with the ascending number of each one's session."""
        if not len(slots):
            return
        begins = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
        count = len(begins)
        firsts, lasts = self._starts[slots[begins]], self._starts[slots[np.append(begins[1:], len(slots)) - 1]]
        sessions = np.repeat(np.arange(count), np.diff(np.append(begins, len(slots))))
        made = [self._merged(number, slots, sessions, count) for number in range(len(self._accumulators))]
        order = np.argsort(lasts, kind="stable")
        for first in range(0, count, MAX_ROWS):
            rows = order[first : first + MAX_ROWS]
            keys = self._index.keys(slots[begins[rows]])[:-1]
            values = [accumulator.result(rows) for accumulator in made]
            self._emit(keys, firsts[rows], lasts[rows] + self._gap, values, out)

    def _next_end(self) -> int | None:
        return None if self._earliest == END_OF_TIME else self._earliest + self._gap

    def _more_state(self, slots: Ints) -> list[pa.Array]:
        closed = self._closed[slots]
        return [*super()._more_state(slots), fixed_array(closed, closed > START_OF_TIME, TIME_TYPE)]

    def _load(self, batch: pa.RecordBatch, slots: Ints) -> None:
        super()._load(batch, slots)
        closed, valid = event_times(batch.column(len(self._table.schema) - 1))
        self._closed[slots] = np.where(valid, closed, START_OF_TIME) if len(valid) else closed

    def _restored(self) -> None:
        super()._restored()
        closed = np.full(len(self._groups), START_OF_TIME)
        np.maximum.at(closed, self._group_of[: len(self._index)], self._closed[: len(self._index)])
        self._look[: len(closed)] = closed + 1
        self._earliest = int(self._look.min(initial=END_OF_TIME))

    def _resize(self, capacity: int) -> None:
        super()._resize(capacity)
        self._previous, self._group_of = resized(self._previous, capacity), resized(self._group_of, capacity)
        self._closed = resized(self._closed, capacity, fill=START_OF_TIME)

    def _compact(self, alive: Bools) -> Ints:
        kept = np.flatnonzero(alive)
        look = self._look[self._group_of[kept]] if len(self._look) else _NONE
        self._closed = self._closed[kept]
        moved = super()._compact(alive)
        self._groups, self._head, self._look = KeyIndex(self._index.types[:-1]), _NONE, _NONE
        self._previous, self._group_of = np.empty(len(kept), np.int64), np.empty(len(kept), np.int64)
        self._link(np.arange(len(kept)))
        self._look[self._group_of[: len(look)]] = look
        return moved
