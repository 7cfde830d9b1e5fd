"""The running part of ``WindowAggregate`` over sessions. Importing this module loads numba."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints
from millstream.engine.jit import kernel
from millstream.engine.key_index import KeyIndex
from millstream.engine.operator import Output
from millstream.engine.time import END_OF_TIME
from millstream.operators import top_kernels
from millstream.operators.cells import resized
from millstream.operators.event_time import event_times, time_array
from millstream.operators.window_aggregate_operator import WindowAggregateOperator
from millstream.operators.windowed import MAX_ROWS, OpenWindows

if TYPE_CHECKING:
    from millstream.operators.session_window import SessionWindow
    from millstream.operators.window_aggregate import WindowAggregate

_NONE = np.empty(0, np.int64)


@kernel
def chain(groups: Any, firsts: Any, lasts: Any, gap: int, out: Any) -> int:
    """Number the sessions that stretches of time, ordered by group and first time, make together."""
    number = -1
    last = 0
    for row in range(groups.shape[0]):
        if row == 0 or groups[row] != groups[row - 1] or firsts[row] - last >= gap:
            number += 1
            last = lasts[row]
        last = max(last, lasts[row])
        out[row] = number
    return number + 1


class OpenSlots(OpenWindows):
    """Which slots are open; they have no windows in common."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: Bools = np.empty(0, np.bool_)

    def add(self, first: int, starts: Ints) -> None:
        """As ``OpenWindows.add``."""
        end = first + len(starts)
        if end > len(self._alive):
            self._alive = resized(self._alive, max(2 * len(self._alive), end), fill=False)
        self._alive[first:end] = True
        self.count += len(starts)

    def remove(self, slots: Ints) -> None:
        """Slots, all different, are open no more."""
        self._alive[slots] = False
        self.count -= len(slots)

    def alive(self, slots: int) -> Bools:
        """As ``OpenWindows.alive``."""
        return resized(self._alive, slots, fill=False)

    def move(self, moved: Ints) -> None:
        """As ``OpenWindows.move``."""
        kept = int((moved >= 0).sum())
        self._alive = np.ones(kept, np.bool_)


class SessionOperator(WindowAggregateOperator):
    """A slot is a session of a key, by a number that stays with it; one that another one grows into is merged into it.

    Args:
        window: the spec's.
    """

    def __init__(self, spec: WindowAggregate, window: SessionWindow, schema: pa.Schema) -> None:
        super().__init__(spec, schema)
        self._gap = window.gap
        self._open: OpenSlots = OpenSlots()
        self._next = 0
        self._earliest = END_OF_TIME  # no open session had its last row before
        self._groups = KeyIndex(self._index.types[:-1])
        self._head: Ints = np.empty(0, np.int64)  # by group: its newest session
        # By slot: the session before it in the list of the group, the group, the first and last time.
        self._previous: Ints = np.empty(0, np.int64)
        self._group_of: Ints = np.empty(0, np.int64)
        self._first: Ints = np.empty(0, np.int64)
        self._last: Ints = np.empty(0, np.int64)

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Fold the rows that are on time into their sessions, which they may join."""
        admitted = self._gate.admit(batch, out)
        if admitted is None:
            return
        batch, times = admitted.batch, admitted.times
        groups = self._groups.slots([batch.column(key) for key in self._keys], batch.num_rows)
        order = np.lexsort((times, groups))
        numbers = np.empty(len(order), np.int64)
        count = chain(groups[order], times[order], times[order], self._gap, numbers)
        starts = np.searchsorted(numbers, np.arange(count + 1))
        of_group, firsts, lasts = groups[order][starts[:-1]], times[order][starts[:-1]], times[order][starts[1:] - 1]
        stretch = np.empty(len(order), np.int64)
        stretch[order] = numbers
        slots, gone = self._join(of_group, firsts, lasts)
        self._earliest = min(self._earliest, int(firsts.min()))
        self._feed.update(batch, slots[stretch], times)
        if len(gone):
            self._open.remove(gone)
            self._bury(gone)

    def _join(self, groups: Ints, firsts: Ints, lasts: Ints) -> tuple[Ints, Ints]:
        """Join stretches of time to sessions; return the slot of each, and slots that were merged into others."""
        held = self._sessions_of(np.unique(groups))
        all_groups = np.concatenate([self._group_of[held], groups])
        all_firsts = np.concatenate([self._first[held], firsts])
        all_lasts = np.concatenate([self._last[held], lasts])
        order = np.lexsort((all_firsts, all_groups))
        numbers = np.empty(len(order), np.int64)
        count = chain(all_groups[order], all_firsts[order], all_lasts[order], self._gap, numbers)
        session = np.empty(len(order), np.int64)
        session[order] = numbers
        slot_of = np.full(count, END_OF_TIME)
        np.minimum.at(slot_of, session[: len(held)], held)
        absent = np.flatnonzero(slot_of == END_OF_TIME)
        group_of = np.empty(count, np.int64)
        group_of[session] = all_groups
        slot_of[absent] = self._begin(group_of[absent])
        into = slot_of[session[: len(held)]]
        merged = into != held
        gone, into = held[merged], into[merged]
        if len(gone):
            for accumulator in self._accumulators:
                accumulator.absorb(accumulator, gone, into)
        np.minimum.at(self._first, slot_of[session], all_firsts)
        np.maximum.at(self._last, slot_of[session], all_lasts)
        slots = slot_of[session[len(held) :]]
        self._changes.changed[slots] = True
        return slots, gone

    def _sessions_of(self, groups: Ints) -> Ints:
        """Return the open sessions of some groups."""
        if len(self._groups) > len(self._head):
            self._head = resized(self._head, max(2 * len(self._head), len(self._groups)), fill=-1)
        count = top_kernels.collect(groups, self._head, self._previous, _NONE, _NONE)
        slots, places = np.empty(count, np.int64), np.empty(count, np.int64)
        top_kernels.collect(groups, self._head, self._previous, slots, places)
        return slots[self._open.alive(len(self._index))[slots]]

    def _begin(self, groups: Ints) -> Ints:
        """Begin a session for each of some groups; return their slots."""
        known = len(self._index)
        names = np.arange(self._next, self._next + len(groups))
        self._next += len(groups)
        slots = self._index.slots([*self._groups.keys(groups), pa.array(names)])
        self._make_room()
        self._starts[slots] = names
        self._first[slots], self._last[slots] = END_OF_TIME, -END_OF_TIME
        self._group_of[slots] = groups
        top_kernels.link(groups, slots, self._head, self._previous)
        self._changes.begin(known, len(groups))
        self._open.add(known, names)
        return slots

    def _advance(self, time: int, out: Output) -> None:
        """Sessions fire in the order of their ends."""
        self._gate.advance(time)
        closed = self._gate.last_closed
        if self._earliest > closed:
            return
        alive = np.flatnonzero(self._open.alive(len(self._index)))
        due = alive[self._last[alive] <= closed]
        self._earliest = int(self._last[alive][self._last[alive] > closed].min(initial=END_OF_TIME))
        due = due[np.argsort(self._last[due], kind="stable")]
        for first in range(0, len(due), MAX_ROWS):
            slots = due[first : first + MAX_ROWS]
            ends = self._last[slots] + self._gap
            self._emit(self._index.keys(slots)[:-1], self._first[slots], ends, self._results(slots), out)
        self._open.remove(due)
        self._bury(due)

    def _next_end(self) -> int | None:
        return None if self._earliest == END_OF_TIME else self._earliest + self._gap

    def _newest(self, slots: Ints) -> int:
        return int(self._last[slots].max())

    def _more_state(self, slots: Ints) -> list[pa.Array]:
        return [time_array(self._first[slots]), time_array(self._last[slots])]

    def _load(self, batch: pa.RecordBatch, slots: Ints) -> None:
        width = len(self._table.schema)
        self._first[slots], self._last[slots] = (event_times(batch.column(width - n))[0] for n in (2, 1))
        super()._load(batch, slots)
        self._next = max(self._next, int(self._starts[slots].max(initial=-1)) + 1)
        self._earliest = min(self._earliest, int(self._last[slots].min(initial=END_OF_TIME)))

    def _resize(self, capacity: int) -> None:
        super()._resize(capacity)
        self._previous = resized(self._previous, capacity)
        self._group_of = resized(self._group_of, capacity)
        self._first, self._last = resized(self._first, capacity), resized(self._last, capacity)

    def _compact(self, alive: Bools) -> Ints:
        moved = super()._compact(alive)
        kept = np.flatnonzero(alive)
        self._first, self._last = self._first[kept], self._last[kept]
        self._groups = KeyIndex(self._index.types[:-1])
        self._group_of = self._groups.slots(self._index.keys()[:-1], len(kept))
        self._head, self._previous = np.full(len(self._groups), -1), np.empty(len(kept), np.int64)
        top_kernels.link(self._group_of, np.arange(len(kept)), self._head, self._previous)
        return moved
