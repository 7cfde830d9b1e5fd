"""The running part of ``AsOfJoin``. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from millstream.engine.codes import Bools, Ints, plain, validity
from millstream.engine.key_index import KeyIndex
from millstream.engine.operator import Operator, Output
from millstream.engine.state import StateDelta
from millstream.engine.time import START_OF_TIME
from millstream.operators.cells import resized
from millstream.operators.deadlines import Deadlines
from millstream.operators.event_time import event_times
from millstream.operators.join import SIDES
from millstream.operators.join_output import JoinOutput, Met
from millstream.operators.row_buffer import RowBuffer
from millstream.operators.row_buffer_state import STATE_LANES, BufferState
from millstream.operators.timed_join import LATE_PORTS
from millstream.operators.windowed import MAX_ROWS

if TYPE_CHECKING:
    from millstream.operators.asof_join import AsOfJoin

_MIN_GARBAGE: Final = 4_096


class AsOfJoinOperator(Operator):
    """Rows of both sides wait until the watermark has passed them; then they are gone through in order of time.

    ``_standing`` has, by slot, the id of the last right row that the watermark has passed; -1: there is none. So each
    row is sorted once in its life, among those that became due with it.
    """

    def __init__(self, spec: AsOfJoin, inputs: Sequence[pa.Schema]) -> None:
        self._spec = spec
        self._sides = (_Side(spec, 0, inputs), _Side(spec, 1, inputs))
        self._output = JoinOutput(spec, inputs)
        self._index = KeyIndex([inputs[0].field(key).type for key in spec.left_keys])
        self._standing: Ints = np.empty(0, np.int64)
        self._falling = Deadlines()
        self._now = START_OF_TIME

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Take a batch of the left side."""
        self.process_input(0, batch, out)

    def process_input(self, index: int, batch: pa.RecordBatch, out: Output) -> None:
        """Let rows wait; put late rows out, and left rows that have no key."""
        side = self._sides[index]
        on_time, times = side.admitted(batch, self._now, out)
        if not on_time.num_rows:
            return
        rows = side.kept(on_time)
        known = side.having_keys(rows)
        lanes = side.lanes(on_time, times)
        if not known.all():
            if index == 0 and self._spec.how == "left":
                out.emit(self._output.alone(0, rows.filter(pa.array(~known))))
            rows, lanes = rows.filter(pa.array(known)), {name: lane[known] for name, lane in lanes.items()}
        if rows.num_rows:
            side.add(rows, self._slots(index, rows), lanes)

    def _slots(self, index: int, rows: pa.RecordBatch) -> Ints:
        slots = self._index.slots([rows.column(name) for name in self._spec.keys_of(index)])
        count = len(self._index)
        for side in self._sides:
            side.buffer.resize_slots(count)
        if count > len(self._standing):
            self._standing = resized(self._standing, 2 * count, fill=-1)
        return slots

    def on_watermark(self, time: int, out: Output) -> None:
        """Join the left rows that time has passed; let go of right rows that no left row can ask for any more."""
        self._now = max(self._now, time)
        left, right = self._sides
        asking, coming = left.due(self._now), right.due(self._now)
        if len(asking) or len(coming):
            found, gone = self._found(asking, coming)
            self._put_out(asking, found, out)
            left.state.drop(asking)
            right.state.drop(gone)
        self._let_fall()
        self._tidy()

    def _found(self, asking: Ints, coming: Ints) -> tuple[Ints, Ints]:
        """Let due right rows stand, each until the next.

        Returns:
            The right row of each left row, -1 if it has none; and the right rows that nobody will ask for any more.
        """
        left, right = self._sides
        ids = np.concatenate([coming, asking])
        slots = np.concatenate([right.lane("slot", coming), left.lane("slot", asking)])
        times = np.concatenate([right.lane("time", coming), left.lane("time", asking)])
        numbers = np.concatenate([right.lane("number", coming), left.lane("number", asking)])
        asks = np.arange(len(ids)) >= len(coming)
        order = np.lexsort((numbers, asks, times, slots))
        slots, asks, ids = slots[order], asks[order], ids[order]
        begins = np.r_[True, slots[1:] != slots[:-1]]
        # Where the last right row stands in this order; before the first of a key, where the key begins.
        at = np.maximum.accumulate(np.where(begins | ~asks, np.arange(len(ids)), 0))
        stands = np.where(asks[at], self._standing[slots], ids[at])
        found = np.empty(len(asking), np.int64)
        found[order[asks] - len(coming)] = stands[asks]
        last = np.r_[begins[1:], True]
        return found, self._stand(slots[last], stands[last], coming)

    def _stand(self, slots: Ints, ids: Ints, coming: Ints) -> Ints:
        """From now on these rows (-1: none) stand in these slots; return the passed ones that do not."""
        right = self._sides[1]
        before = self._standing[slots]
        passed = np.concatenate([coming, before[before >= 0]])
        there = ids[ids >= 0]
        if self._spec.removed is not None:
            there = there[~right.lane("removed", there)]
            ids = np.where(np.isin(ids, there), ids, -1)
        self._standing[slots] = ids
        new = there[~right.lane("passed", there)]
        right.buffer.lane("passed")[right.buffer.at(new)] = True
        self._fall_later(new)
        return passed[~np.isin(passed, there)]

    def _put_out(self, asking: Ints, found: Ints, out: Output) -> None:
        """Put left rows out with the right rows that were found, if those stand still."""
        left, right = self._sides
        matches = found >= 0
        had = np.flatnonzero(matches)
        if self._spec.tolerance is not None:
            matches[had] &= _until(right.lane("time", found[had]), self._spec.tolerance) >= left.lane(
                "time", asking[had]
            )
        if self._spec.removed is not None:
            matches[had] &= ~right.lane("removed", found[had])
        for first in range(0, len(asking), MAX_ROWS):
            some = slice(first, first + MAX_ROWS)
            rows, pairs = left.buffer.take(asking[some]), np.flatnonzero(matches[some])
            if len(pairs):
                out.emit(self._output.pairs(Met(0, rows, pairs, right.buffer, found[some][pairs])))
            if self._spec.how == "left" and len(pairs) < rows.num_rows:
                out.emit(self._output.alone(0, rows.filter(pa.array(~matches[some]))))

    def _fall_later(self, ids: Ints) -> None:
        if self._spec.tolerance is not None:
            self._falling.add(_until(self._sides[1].lane("time", ids), self._spec.tolerance), ids)

    def _let_fall(self) -> None:
        """Drop rows that stood for as long as they may."""
        right = self._sides[1]
        ids = self._falling.due(self._now)
        ids = ids[right.buffer.alive(ids)]
        if len(ids):
            self._standing[right.lane("slot", ids)] = -1
            right.state.drop(ids)

    def _tidy(self) -> None:
        right = self._sides[1]
        for side in self._sides:
            renewed = side.buffer.tidy()
            passed = side.lane("passed", renewed)
            side.waiting.add(side.lane("time", renewed[~passed]), renewed[~passed])
            if passed.any():
                self._standing[side.lane("slot", renewed[passed])] = renewed[passed]
                self._fall_later(renewed[passed])
        if self._falling.count > 2 * right.buffer.count + _MIN_GARBAGE:
            self._falling.clear()
            ids = right.buffer.ids()
            self._fall_later(ids[right.lane("passed", ids)])
        if len(self._index) > _MIN_GARBAGE + 2 * sum(side.buffer.count for side in self._sides):
            used = np.zeros(len(self._index), np.bool_)
            for side in self._sides:
                used[side.lane("slot", side.buffer.ids())] = True
            moved = self._index.compact(used)
            for side in self._sides:
                side.buffer.move_slots(moved)
            self._standing = self._standing[: len(used)][used]

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """As ``Operator.snapshot``."""
        deltas = {name: side.state.delta(epoch) for name, side in zip(SIDES, self._sides, strict=True)}
        return {name: delta for name, delta in deltas.items() if delta is not None}

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """As ``Operator.restore``. The watermark, which comes next, says which right rows stand."""
        index = SIDES.index(table)
        side = self._sides[index]
        for rows, lanes in side.state.restored(batches, full_from):
            side.restore(rows, self._slots(index, rows), lanes)

    def counters(self) -> Mapping[str, int]:
        """As ``Operator.counters``."""
        return {
            f"{what}_{name}": getattr(side, what)
            for name, side in zip(SIDES, self._sides, strict=True)
            for what in ("late_rows", "null_time_rows", "null_key_rows")
        }


def _until(times: Ints, tolerance: int) -> Ints:
    """The last instant at which rows stand; sums beyond the end of time stay below it."""
    return np.where(times > np.iinfo(np.int64).max - tolerance, np.iinfo(np.int64).max, times + tolerance)


class _Side:
    """The rows of one input that wait, and those that have passed and stand.

    Attributes:
        waiting: the rows that the watermark has not passed.
    """

    def __init__(self, spec: AsOfJoin, index: int, inputs: Sequence[pa.Schema]) -> None:
        self._schema = spec.kept(index, inputs[index])
        self._keys = spec.keys_of(index)
        self._time = spec.time_of(index)
        self._removed = spec.removed if index else None
        self._port = LATE_PORTS[index]
        self._late_columns = spec.output_schemas(inputs)[self._port].names
        lanes = {**STATE_LANES, "time": np.int64, "passed": np.bool_, "removed": np.bool_}
        self.buffer = RowBuffer(self._schema, spans=False, lanes=lanes)
        self.state = BufferState(spec.state_tables(inputs)[index], self.buffer, spec.state_lanes(index))
        self.waiting = Deadlines()
        self.late_rows = 0
        self.null_time_rows = 0
        self.null_key_rows = 0

    def admitted(self, batch: pa.RecordBatch, now: int, out: Output) -> tuple[pa.RecordBatch, Ints]:
        """Return the rows on time, and their times; put late rows out."""
        times, valid = event_times(self._time.evaluate(batch))
        refused = times < now
        if len(valid):
            refused = (refused & valid) | ~valid
            self.null_time_rows += len(valid) - int(valid.sum())
        if not refused.any():
            return batch, times
        self.late_rows += int((refused & valid).sum() if len(valid) else refused.sum())
        if self._late_columns:
            out.emit(batch.select(self._late_columns).filter(pa.array(refused)), self._port)
        return batch.filter(pa.array(~refused)), times[~refused]

    def kept(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the columns that are kept."""
        columns = [plain(batch.column(name)) for name in self._schema.names]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def having_keys(self, rows: pa.RecordBatch) -> Bools:
        """Return which rows have no null in their key."""
        known = np.ones(rows.num_rows, np.bool_)
        for mask in (validity(rows.column(name)) for name in self._keys):
            if len(mask):
                known &= mask
        self.null_key_rows += len(known) - int(known.sum())
        return known

    def lanes(self, batch: pa.RecordBatch, times: Ints) -> dict[str, npt.NDArray[Any]]:
        """Return what is kept of rows besides their columns."""
        lanes: dict[str, npt.NDArray[Any]] = {"time": times}
        if self._removed is not None:
            removed = self._removed.evaluate(batch).fill_null(False)
            lanes["removed"] = np.asarray(removed.to_numpy(zero_copy_only=False), np.bool_)
        return lanes

    def add(self, rows: pa.RecordBatch, slots: Ints, lanes: Mapping[str, npt.NDArray[Any]]) -> None:
        """Let rows wait."""
        ids = self.buffer.append(rows, slots, **lanes)
        self.state.begin(ids)
        self.waiting.add(lanes["time"], ids)

    def restore(self, rows: pa.RecordBatch, slots: Ints, lanes: Mapping[str, npt.NDArray[Any]]) -> None:
        """Let rows wait that were kept before."""
        self.waiting.add(lanes["time"], self.buffer.append(rows, slots, **lanes))

    def due(self, now: int) -> Ints:
        """Take out the rows that the watermark has passed."""
        ids = self.waiting.due(now)
        return ids[self.buffer.alive(ids)]

    def lane(self, name: str, ids: Ints) -> npt.NDArray[Any]:
        """Return the values of some rows."""
        return self.buffer.lane(name)[self.buffer.at(ids)]
