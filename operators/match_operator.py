"""The running part of ``Match``. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints, fixed_codes, plain
from millstream.engine.key_index import KeyIndex
from millstream.engine.operator import Operator, Output
from millstream.engine.state import StateDelta
from millstream.engine.time import START_OF_TIME
from millstream.operators import match_kernels as kernels
from millstream.operators.changes import Changes, latest
from millstream.operators.event_time import event_times, time_array
from millstream.operators.match import Match, Moment
from millstream.operators.match_conditions import Conditions, Terms
from millstream.operators.match_results import Matches, Results
from millstream.operators.pattern_automaton import Automaton
from millstream.operators.rows import Rows
from millstream.operators.waiting import Waiting
from millstream.operators.windowed import Gate

_FIRST_CAPACITY: Final = 1_024
_MIN_GARBAGE: Final = 4_096
_MOST_ENTRIES: Final = 1 << 22
"""The automaton forgets what is not in use when its table has grown beyond this."""


class MatchOperator(Operator):
    """Keeps rows until the watermark has passed them, then leads them through the automaton of the pattern.

    State is rows alone: where the automaton stands follows from the rows of a key that may still be in a match.
    """

    def __init__(self, spec: Match, schema: pa.Schema) -> None:
        self._keys = spec.keys
        self._kept = spec.kept(schema)
        (self._table,) = spec.state_tables([schema])
        self._gate = Gate(Moment(spec.within), spec.time, 0)
        self._index = KeyIndex([self._kept.field(key).type for key in self._keys])
        self._changes = Changes(self._table)
        self._held = Rows(self._kept)
        self._live = 0
        labels = {name: number for number, name in enumerate(spec.names)}
        self._automaton = Automaton(spec.pattern, spec.bits, labels, relaxed=spec.relaxed)
        self._conditions = Conditions(spec, self._kept)
        self._terms = Terms(spec, self._kept)
        self._results = Results(spec, schema)
        self._rules = np.array([spec.within, spec.past_last, self._conditions.look_back], np.int64)
        # See ``match_kernels``.
        self._rows: Ints = np.empty((0, kernels.ROW_WIDTH), np.int64)
        self._slots: Ints = np.empty((0, kernels.SLOT_WIDTH), np.int64)
        self._groups: Ints = np.empty((0, kernels.GROUP_WIDTH), np.int64)
        self._queue: Ints = np.empty(0, np.int64)
        self._told: Ints = np.zeros(kernels.TOLD, np.int64)
        self._made: Ints = np.empty((kernels.MADE_LINES, 0), np.int64)
        self._waiting = Waiting()

    # -- rows in -----------------------------------------------------------------------------------------------

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Keep the rows that are on time."""
        admitted = self._gate.admit(batch, out)
        if admitted is None:
            return
        rows = pa.record_batch([plain(admitted.batch.column(name)) for name in self._kept.names], schema=self._kept)
        first = self._append(rows, admitted.times, np.full(rows.num_rows, kernels.WAITING))
        self._changes.begin(first, rows.num_rows)
        self._waiting.add(np.arange(first, first + rows.num_rows), admitted.times)

    def _append(self, batch: pa.RecordBatch, times: Ints, masks: Ints) -> int:
        """Add rows; return the id of the first."""
        slots = self._index.slots([batch.column(key) for key in self._keys], batch.num_rows)
        first, count = len(self._held), len(self._held) + batch.num_rows
        self._held.append(batch)
        if count > len(self._rows):
            capacity = max(_FIRST_CAPACITY, 2 * len(self._rows), count)
            self._rows = _lengthened(self._rows, capacity)
            self._changes.resize(capacity)
        if len(self._index) > len(self._slots):
            self._slots = _lengthened(self._slots, max(_FIRST_CAPACITY, 2 * len(self._index)))
        self._rows[first:count] = -1
        for column, values in ((kernels.SLOT, slots), (kernels.TIME, times), (kernels.MASK, masks)):
            self._rows[first:count, column] = values
        self._terms.append(batch)
        self._live += batch.num_rows
        return first

    # -- time passes -------------------------------------------------------------------------------------------

    def on_watermark(self, time: int, out: Output) -> None:
        """Process the rows that the watermark has passed, in order, and put out the matches that are certain."""
        self._gate.advance(time)
        due = self._waiting.take(self._gate.passed)
        if not len(due) and not self._something_expires(self._gate.passed):
            return
        if len(due):
            before = np.empty(len(due), np.int64)
            if self._conditions.look_back:
                kernels.previous(due, self._rows, self._slots, before)
            masks = self._conditions.masks(self._held, self._rows[:, kernels.TIME], due, before)
            self._rows[due, kernels.MASK] = masks
            self._changes.changed[due] = True
        matches, dropped, looked = self._run(due, self._gate.passed)
        self._changes.changed[looked] = True
        self._put_out(matches, out)
        self._drop(dropped)
        self._compact_if_sparse()

    def _something_expires(self, limit: int) -> bool:
        oldest, newest = self._told[kernels.OLDEST], self._told[kernels.NEWEST]
        if oldest == newest:
            return False
        return bool(self._rows[self._queue[oldest], kernels.TIME] + self._rules[kernels.WITHIN] < limit)

    def _run(self, due: Ints, limit: int) -> tuple[Ints, Ints, Ints]:
        """Lead rows through the automaton; return the matches, shape (3, n), and rows dropped and looked back at."""
        self._make_room(len(due))
        told = self._told
        told[[kernels.POSITION, kernels.MATCHES, kernels.DROPPED, kernels.LOOKED]] = 0
        while True:
            state, mask = kernels.run(
                due,
                limit,
                self._rules,
                self._rows,
                self._slots,
                self._groups,
                self._queue,
                told,
                self._automaton.table,
                self._automaton.transitions,
                self._terms.terms,
                self._terms.codes,
                self._made,
            )
            if state < 0:
                break
            self._automaton.add(state, mask)
        made = self._made
        return (
            made[: kernels.MATCH_KNOWN + 1, : told[kernels.MATCHES]].copy(),
            made[kernels.DROPPED_ROW, : told[kernels.DROPPED]].copy(),
            made[kernels.LOOKED_ROW, : told[kernels.LOOKED]].copy(),
        )

    def _make_room(self, count: int) -> None:
        groups = int(self._told[kernels.GROUPS_USED]) + count
        if groups > len(self._groups):
            self._groups = _lengthened(self._groups, max(_FIRST_CAPACITY, 2 * groups))
        oldest, newest = int(self._told[kernels.OLDEST]), int(self._told[kernels.NEWEST])
        if newest + count > len(self._queue):
            queue = np.empty(max(_FIRST_CAPACITY, 2 * (newest - oldest + count)), np.int64)
            queue[: newest - oldest] = self._queue[oldest:newest]
            self._queue = queue
            self._told[[kernels.OLDEST, kernels.NEWEST]] = 0, newest - oldest
        if len(self._rows) > self._made.shape[1]:
            # A row is the first of one match at most, is dropped once, and looked back at once.
            self._made = np.empty((kernels.MADE_LINES, len(self._rows)), np.int64)

    def _put_out(self, matches: Ints, out: Output) -> None:
        walk = (self._rows, self._automaton, self._terms)
        for batch in self._results.batches(Matches(matches, *walk), self._held):
            out.emit(batch)

    def _drop(self, ids: Ints) -> None:
        leaving = self._changes.leaving(ids)
        if len(leaving):
            gone = self._held.take(leaving)
            self._changes.bury([*(gone.column(key) for key in self._keys), pa.array(self._changes.sequence[leaving])])
        self._live -= len(ids)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """As ``Operator.snapshot``."""
        count = len(self._held)
        chosen = self._changes.choose(epoch, np.flatnonzero(self._rows[:count, kernels.SLOT] >= 0))
        if chosen is None:
            return {}
        ids, full_from = chosen
        columns = [
            *self._held.take(ids).columns,
            time_array(self._rows[ids, kernels.TIME]),
            pa.array(self._changes.sequence[ids]),
            pa.array(self._masks(ids)),
        ]
        named = dict(zip(self._table.schema.names, columns, strict=True))
        return {self._table.name: self._changes.delta(named, full_from)}

    def _masks(self, ids: Ints) -> Ints:
        """The masks of some rows as state has them: they say which rows begin nothing any more."""
        rows = self._rows[ids]
        alone = self._slots[rows[:, kernels.SLOT], kernels.FIRST] == ids
        return np.where(alone & (rows[:, kernels.GROUP] < 0), kernels.LOOKED_AT, rows[:, kernels.MASK])

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """As ``Operator.restore``: what was processed is processed again, and comes to the same."""
        del table
        rows = latest(batches, self._table)
        if rows.num_rows:
            rows = rows.take(pa.array(np.argsort(fixed_codes(rows.column(-2)), kind="stable")))
            *columns, stored_times, arrivals, masks = rows.columns
            times, _ = event_times(stored_times)
            first = self._append(pa.record_batch(columns, schema=self._kept), times, fixed_codes(masks))
            self._changes.begin_restored(first, fixed_codes(arrivals))
            ids = np.arange(first, len(self._held))
            waits = self._rows[ids, kernels.MASK] == kernels.WAITING
            self._waiting.add(ids[waits], times[waits])
            done = ids[~waits]
            matches, dropped, _ = self._run(done[np.argsort(times[~waits], kind="stable")], START_OF_TIME)
            assert matches.shape[1] == len(dropped) == 0, f"{matches.shape[1]} matches found once more"
        self._changes.restored(full_from)

    def counters(self) -> Mapping[str, int]:
        """As ``Operator.counters``."""
        return self._gate.counters()

    # -- tidying -----------------------------------------------------------------------------------------------

    def _compact_if_sparse(self) -> None:
        """Forget rows, slots and groups once more of them are gone than there."""
        used = max(len(self._held), len(self._index), int(self._told[kernels.GROUPS_USED]))
        if used <= max(_MIN_GARBAGE, 2 * self._live) and self._automaton.size <= _MOST_ENTRIES:
            return
        rows = self._rows[: len(self._held)]
        kept = np.flatnonzero(rows[:, kernels.SLOT] >= 0)
        moved = np.full(len(rows) + 1, -1)  # the last one is for -1
        moved[kept] = np.arange(len(kept))
        self._rows = rows[kept]
        self._rows[:, kernels.NEXT] = moved[self._rows[:, kernels.NEXT]]
        self._compact_slots(moved)
        self._compact_groups(moved)
        self._waiting.move(moved)
        queue = moved[self._queue[self._told[kernels.OLDEST] : self._told[kernels.NEWEST]]]
        self._queue = queue[queue >= 0]
        self._told[[kernels.OLDEST, kernels.NEWEST]] = 0, len(self._queue)
        self._held.compact(kept)
        self._changes.compact(kept)
        self._terms.rebuild(self._held.take(np.arange(len(kept))))
        self._made = np.empty((kernels.MADE_LINES, 0), np.int64)

    def _compact_slots(self, moved: Ints) -> None:
        alive: Bools = np.zeros(len(self._index), np.bool_)
        alive[self._rows[:, kernels.SLOT]] = True
        slot_to = self._index.compact(alive)
        self._rows[:, kernels.SLOT] = slot_to[self._rows[:, kernels.SLOT]]
        self._slots = self._slots[: len(alive)][alive]
        for column in (kernels.FIRST, kernels.LAST):
            self._slots[:, column] = moved[self._slots[:, column]]

    def _compact_groups(self, moved: Ints) -> None:
        attempts = np.flatnonzero(self._rows[:, kernels.GROUP] >= 0)
        root = self._rows[attempts, kernels.GROUP]
        parent = self._groups[:, kernels.PARENT]
        while bool((parent[root] != root).any()):
            root = parent[root]
        roots, number = np.unique(root, return_inverse=True)
        self._rows[attempts, kernels.GROUP] = number
        self._groups = self._groups[roots]
        self._groups[:, kernels.PARENT] = np.arange(len(roots))
        for column in (kernels.BEST, kernels.BEGIN):
            self._groups[:, column] = moved[self._groups[:, column]]
        self._told[kernels.GROUPS_USED] = len(roots)
        slot_of = np.empty(len(roots), np.int64)
        slot_of[number] = self._rows[attempts, kernels.SLOT]
        kernels.list_groups(slot_of, self._slots, self._groups)
        if self._automaton.size > _MOST_ENTRIES:
            self._groups[:, kernels.STATE] = self._automaton.keep(self._groups[:, kernels.STATE])


def _lengthened(array: Ints, length: int) -> Ints:
    out = np.full((length, array.shape[1]), -1, np.int64)
    out[: len(array)] = array
    return out
