"""The running parts of ``WindowTop``. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from millstream.engine.changelog import is_changelog
from millstream.engine.codes import Bools, Ints, fixed_codes, plain
from millstream.engine.key_index import KeyIndex
from millstream.engine.operator import MAIN, Operator, Output
from millstream.engine.state import StateDelta
from millstream.operators import top_kernels as kernels
from millstream.operators.cells import resized
from millstream.operators.changes import Changes, latest
from millstream.operators.event_time import TIME_TYPE, event_times, time_array
from millstream.operators.ranking import WORST, Ranking
from millstream.operators.rows import Rows
from millstream.operators.windowed import MAX_ROWS, Gate, OpenWindows

if TYPE_CHECKING:
    from millstream.operators.window_top import WindowTop

_FIRST_CAPACITY: Final = 1_024
_MIN_GARBAGE: Final = 4_096


class WindowTopOperator(Operator):
    """Gives every (key, window) a slot with a list of the rows on top, and the score a new row must reach."""

    def __init__(self, spec: WindowTop, schema: pa.Schema) -> None:
        self._keys = spec.keys
        self._output = spec.output_schemas([schema])[MAIN]
        self._kept = spec.kept(schema)
        (self._table,) = spec.state_tables([schema])
        self._gate = Gate(spec.window, spec.time, spec.lateness)
        self._ranking = Ranking(spec.by, spec.n, spec.ties)
        self._ranked_by = sorted(frozenset().union(*(expr.columns() for expr, _ in spec.by))) or None
        self._rises = spec.n == 1
        self._index = KeyIndex([*(self._kept.field(key).type for key in self._keys), TIME_TYPE])
        self._open = OpenWindows()
        self._changes = Changes(self._table)
        self._rows = Rows(self._kept)
        self._live_rows = 0
        # By slot: the start of its window, the score to reach, the first row of its list.
        self._starts: Ints = np.empty(0, np.int64)
        self._thresholds: Ints = np.empty(0, np.int64)
        self._head: Ints = np.empty(0, np.int64)
        # By row: its slot, the next row of the slot's list.
        self._slot_of: Ints = np.empty(0, np.int64)
        self._following: Ints = np.empty(0, np.int64)

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Keep the rows that are on top now."""
        admitted = self._gate.admit(batch, out)
        if admitted is None:
            return
        batch = admitted.batch
        slots = self._slots([batch.column(key) for key in self._keys], admitted.starts)
        ranked = self._ranking.columns(batch)
        scores = self._ranking.scores(ranked[0])
        rows = np.empty(len(slots), np.int64)
        count = kernels.prune(slots, scores, self._thresholds, self._rises, rows)
        if count:
            rows = rows[:count]
            chosen = pa.array(rows)
            found = batch.select(self._kept.names).take(chosen)
            kept = pa.record_batch([plain(column) for column in found.columns], schema=self._kept)
            self._merge(kept, [column.take(chosen) for column in ranked], slots[rows], None)

    def _slots(self, keys: Sequence[pa.Array], starts: Ints) -> Ints:
        known = len(self._index)
        slots = _slots_of(self._index, keys, starts)
        count, capacity = len(self._index), len(self._starts)
        if count > capacity:
            capacity = max(_FIRST_CAPACITY, 2 * capacity, count)
            self._starts = resized(self._starts, capacity)
            self._thresholds = resized(self._thresholds, capacity, fill=WORST)
            self._head = resized(self._head, capacity, fill=-1)
        if count > known:
            new = np.arange(known, count)
            self._starts[known:count] = fixed_codes(self._index.keys(new)[-1])
            self._open.add(known, self._starts[known:count])
        return slots

    def _merge(self, batch: pa.RecordBatch, ranked: list[pa.Array], slots: Ints, arrivals: Ints | None) -> None:
        """Add rows and drop those that are on top no more.

        Args:
            ranked: what the rows are ranked by.
            arrivals: the rows' numbers in the store, if they come from there; None: they are new.
        """
        touched = np.unique(slots)
        held, groups = self._collect(touched)
        columns = ranked
        if len(held):
            before = self._ranked(held)
            columns = [pa.concat_arrays(both) for both in zip(before, ranked, strict=True)]
        numbers = self._changes.upcoming(len(slots)) if arrivals is None else arrivals
        kept, full, nth = self._ranking.top(
            np.concatenate([touched[groups], slots]),
            columns,
            np.concatenate([self._changes.sequence[held], numbers]),
        )
        if arrivals is not None or not self._rises:
            self._thresholds[full] = self._ranking.scores(columns[0])[nth]
        stays = np.zeros(len(held), np.bool_)
        stays[kept[kept < len(held)]] = True
        new = np.sort(kept[kept >= len(held)] - len(held))
        self._drop(held[~stays])
        self._head[touched] = -1
        kernels.link(touched[groups[stays]], held[stays], self._head, self._following)
        self._append(batch if len(new) == len(slots) else batch.take(pa.array(new)), slots[new])
        if arrivals is None:
            self._changes.begin(len(self._rows) - len(new), len(new))
        else:
            self._changes.begin_restored(len(self._rows) - len(new), arrivals[new])
        self._compact_if_sparse()

    def _ranked(self, rows: Ints) -> list[pa.Array]:
        return self._ranking.columns(self._rows.take(rows, self._ranked_by))

    def _append(self, batch: pa.RecordBatch, slots: Ints) -> None:
        first, count = len(self._rows), len(self._rows) + len(slots)
        if count > len(self._slot_of):
            capacity = max(_FIRST_CAPACITY, 2 * len(self._slot_of), count)
            self._slot_of = resized(self._slot_of, capacity)
            self._following = resized(self._following, capacity)
            self._changes.resize(capacity)
        self._rows.append(batch)
        self._slot_of[first:count] = slots
        kernels.link(slots, np.arange(first, count), self._head, self._following)
        self._live_rows += len(slots)

    def _collect(self, slots: Ints) -> tuple[Ints, Ints]:
        """Return the rows held by some slots, and where each row's slot stands among them."""
        rows, groups = np.empty(self._live_rows, np.int64), np.empty(self._live_rows, np.int64)
        count = kernels.collect(slots, self._head, self._following, rows, groups)
        return rows[:count], groups[:count]

    def _drop(self, rows: Ints) -> None:
        leaving = self._changes.leaving(rows)
        if len(leaving):
            self._changes.bury(self._key_columns(leaving, self._rows.take(leaving)))
        self._live_rows -= len(rows)

    def _key_columns(self, rows: Ints, batch: pa.RecordBatch) -> list[pa.Array]:
        return [*(batch.column(key) for key in self._keys), *self._placed(rows)]

    def _placed(self, rows: Ints) -> list[pa.Array]:
        return [time_array(self._starts[self._slot_of[rows]]), pa.array(self._changes.sequence[rows])]

    def on_watermark(self, time: int, out: Output) -> None:
        """Fire every window that is due, in order."""
        self._gate.advance(time)
        due = self._open.close(self._gate.last_closed)
        if not len(due):
            return
        rows, groups = self._collect(due)
        order, _, _ = self._ranking.top(groups, self._ranked(rows), self._changes.sequence[rows])
        for first in range(0, len(order), MAX_ROWS):
            batch = self._rows.take(rows[order[first : first + MAX_ROWS]])
            out.emit(pa.record_batch([batch.column(n) for n in self._output.names], schema=self._output))
        self._drop(rows)
        self._head[due] = -1
        self._compact_if_sparse()

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """As ``Operator.snapshot``."""
        live, _ = self._collect(self._open_slots())
        chosen = self._changes.choose(epoch, np.sort(live))
        if chosen is None:
            return {}
        rows, full_from = chosen
        columns = [*self._rows.take(rows).columns, *self._placed(rows)]
        named = dict(zip(self._table.schema.names, columns, strict=True))
        return {self._table.name: self._changes.delta(named, full_from)}

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """As ``Operator.restore``."""
        del table
        rows = latest(batches, self._table)
        if rows.num_rows:
            rows = rows.take(pa.array(np.argsort(fixed_codes(rows.column(-1)), kind="stable")))
            *columns, starts, arrivals = rows.columns
            batch = pa.record_batch(columns, schema=self._kept)
            slots = self._slots([batch.column(key) for key in self._keys], fixed_codes(starts))
            self._merge(batch, self._ranking.columns(batch), slots, fixed_codes(arrivals))
        self._changes.restored(full_from)

    def counters(self) -> Mapping[str, int]:
        """As ``Operator.counters``."""
        return self._gate.counters()

    def _open_slots(self) -> Ints:
        return np.flatnonzero(self._open.alive(len(self._index)))

    def _compact_if_sparse(self) -> None:
        """Forget dead slots and rows once they are more than the live ones."""
        sparse_slots = len(self._index) > max(_MIN_GARBAGE, 2 * self._open.count)
        sparse_rows = len(self._rows) > max(_MIN_GARBAGE, 2 * self._live_rows)
        if not (sparse_slots or sparse_rows):
            return
        open_slots = self._open_slots()
        rows = np.sort(self._collect(open_slots)[0])
        alive = self._open.alive(len(self._index))
        moved = self._index.compact(alive)
        self._open.move(moved)
        self._starts, self._thresholds = self._starts[open_slots], self._thresholds[open_slots]
        self._rows.compact(rows)
        self._changes.compact(rows)
        self._slot_of = moved[self._slot_of[rows]]
        self._following = np.empty(len(rows), np.int64)
        self._head = np.full(len(open_slots), -1)
        kernels.link(self._slot_of, np.arange(len(rows)), self._head, self._following)


class CombinerOperator(Operator):
    """Leaves out the rows of each batch that are not on top in it."""

    def __init__(self, spec: WindowTop, schema: pa.Schema) -> None:
        self._spec = spec
        self._ranking = Ranking(spec.by, spec.n, spec.ties)
        self._types = [*(schema.field(key).type for key in spec.keys), TIME_TYPE]

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Pass on what may be on top; rows without event time go on as they are, to be counted behind."""
        if is_changelog(batch.schema):
            out.emit(batch)
            return
        spec = self._spec
        times, valid = event_times(spec.time.evaluate(batch))
        # Rows without event time are a group of their own: they must not push out others.
        unknown = ~valid if len(valid) else None
        index = KeyIndex(self._types)
        slots = _slots_of(index, [batch.column(key) for key in spec.keys], spec.window.assign(times), unknown)
        ranked = self._ranking.columns(batch)
        rows = np.empty(len(slots), np.int64)
        thresholds = np.full(len(index), WORST)
        count = kernels.prune(slots, self._ranking.scores(ranked[0]), thresholds, spec.n == 1, rows)
        rows = rows[:count]
        chosen = pa.array(rows)
        top, _, _ = self._ranking.top(slots[rows], [column.take(chosen) for column in ranked], rows)
        passed = np.sort(rows[top])
        if unknown is not None:
            passed = np.union1d(passed, np.flatnonzero(unknown))
        out.emit(batch if len(passed) == len(slots) else batch.take(pa.array(passed)))


def _slots_of(index: KeyIndex, keys: Sequence[pa.Array], starts: Ints, unknown: Bools | None = None) -> Ints:
    """Return the slot of each row's (key, window); ``unknown``: which rows are of no window."""
    if not keys and unknown is None:
        # Mostly there are one or two windows in a batch: then they are looked up, and not each row.
        first, last = starts.min(), starts.max()
        in_first = starts == first
        if bool((in_first | (starts == last)).all()):
            of_first, of_last = index.slots([pa.array([first, last])])
            slots: Ints = np.where(in_first, of_first, of_last)
            return slots
    return index.slots([*keys, pa.array(starts, mask=unknown)])
