"""The running part of ``TimedJoin``. Importing this module loads numba."""

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
from millstream.operators.deadlines import Deadlines
from millstream.operators.event_time import time_array
from millstream.operators.join import SIDES
from millstream.operators.join_output import JoinOutput, Met
from millstream.operators.join_spans import Spans, span_rule
from millstream.operators.row_buffer import RowBuffer
from millstream.operators.row_buffer_state import STATE_LANES, BufferState
from millstream.operators.timed_join import LATE_PORTS, SameWindow
from millstream.operators.windowed import MAX_ROWS

if TYPE_CHECKING:
    from millstream.operators.timed_join import TimedJoin

_MIN_GARBAGE: Final = 4_096


class TimedJoinOperator(Operator):
    """Asks the rows of the other side that wait, then lets the row wait itself if there may be more to come."""

    def __init__(self, spec: TimedJoin, inputs: Sequence[pa.Schema]) -> None:
        self._spec = spec
        self._sides = (_Side(spec, 0, inputs), _Side(spec, 1, inputs))
        self._output = JoinOutput(spec, inputs)
        types = [inputs[0].field(key).type for key in spec.left_keys]
        self._rule = span_rule(spec)
        self._index = KeyIndex([*types, pa.int64()] if self._rule.windows else types)
        self._now = START_OF_TIME

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Take a batch of the left side."""
        self.process_input(0, batch, out)

    def process_input(self, index: int, batch: pa.RecordBatch, out: Output) -> None:
        """Put the pairs out that these rows are in, and keep the rows."""
        spans = self._admitted(index, batch, out)
        if spans is None:
            return
        side = self._sides[index]
        kept = spans.pick(side.kept(batch))
        slots = self._slots(index, kept, spans)
        matched = self._match(index, kept, slots, spans, out)
        waits = (slots >= 0) & (spans.until >= self._now)
        if self._spec.left_only and index == 0:
            waits &= ~matched
        self._put_out_alone(index, kept, np.flatnonzero(~waits & ~matched), spans, out)
        chosen = np.flatnonzero(waits)
        if len(chosen):
            rows = kept if len(chosen) == len(waits) else kept.take(pa.array(chosen))
            side.add(rows, slots[chosen], spans.of(chosen), matched[chosen])
        self._tidy()

    def _admitted(self, index: int, batch: pa.RecordBatch, out: Output) -> Spans | None:
        """Return when the rows on time may match; put late rows out."""
        side = self._sides[index]
        spans, refused = self._rule.of(index, batch, self._now)
        if refused is not None:
            side.late_rows += int(refused.mask.sum()) - refused.timeless
            side.null_time_rows += refused.timeless
            if side.late_columns:
                out.emit(batch.select(side.late_columns).filter(pa.array(refused.mask)), LATE_PORTS[index])
        return spans if len(spans.low) else None

    def _slots(self, index: int, kept: pa.RecordBatch, spans: Spans) -> Ints:
        """Return the slot of each row's key (and window); -1 if it can match nothing."""
        keys = [kept.column(name) for name in self._spec.keys_of(index)]
        if self._rule.windows:
            # No two windows have the same end; cumulating ones have the same start.
            keys.append(pa.array(spans.high))
        able = spans.low <= spans.high
        nulls = [mask for mask in map(validity, keys) if len(mask)]
        if nulls:
            known = np.logical_and.reduce(nulls)
            self._sides[index].null_key_rows += len(known) - int(known.sum())
            able &= known
        if not able.all():
            chosen = np.flatnonzero(able)
            slots = np.full(len(able), -1)
            slots[chosen] = self._index.slots([key.take(pa.array(chosen)) for key in keys])
        else:
            slots = self._index.slots(keys)
        for side in self._sides:
            side.buffer.resize_slots(len(self._index))
        return slots

    def _match(self, index: int, kept: pa.RecordBatch, slots: Ints, spans: Spans, out: Output) -> Bools:
        """Put the pairs out; return which of the rows are in one."""
        other = self._sides[1 - index]
        matched = np.zeros(len(slots), np.bool_)
        once = self._spec.left_only and index == 0 and self._spec.where is None
        asked = None if self._rule.windows else (spans.low, spans.high)
        for rows, ids in other.buffer.matches(slots, asked, once=once):
            met = Met(index, kept, rows, other.buffer, ids, self._window(spans.low[rows], spans.high[rows]))
            met = met.only(self._output.passing(met))
            if not len(met.rows):
                continue
            if self._spec.left_only:
                self._settle(met, matched, spans, out)
            else:
                out.emit(self._output.pairs(met))
                other.match(met.ids)
            matched[met.rows] = True
        return matched

    def _settle(self, met: Met, matched: Bools, spans: Spans, out: Output) -> None:
        """Of a semi or anti join left rows have been found to be in pairs: they wait no longer."""
        if met.side == 0:
            rows = np.unique(met.rows[~matched[met.rows]])
            left, window = met.batch.take(pa.array(rows)), self._window(spans.low[rows], spans.high[rows])
        else:
            side, ids = self._sides[0], np.unique(met.ids)
            left, window = side.buffer.take(ids), self._window(*side.spans(ids))
            side.state.drop(ids)
        if self._spec.how == "semi":
            out.emit(self._output.alone(0, left, window))

    def _put_out_alone(self, index: int, kept: pa.RecordBatch, rows: Ints, spans: Spans, out: Output) -> None:
        """Rows that are in no pair, and never will be."""
        if len(rows) and self._spec.puts_out_alone(index):
            window = self._window(spans.low[rows], spans.high[rows])
            out.emit(self._output.alone(index, kept.take(pa.array(rows)), window))

    def _window(self, low: Ints, high: Ints) -> Sequence[pa.Array]:
        return (time_array(low), time_array(high + 1)) if self._rule.windows else ()

    def on_watermark(self, time: int, out: Output) -> None:
        """Let go of the rows for which nothing more can come."""
        self._now = max(self._now, time)
        for index, side in enumerate(self._sides):
            due = side.due(self._now)
            if not len(due):
                continue
            if self._spec.puts_out_alone(index):
                alone = due if self._spec.left_only else due[~side.buffer.lane("matched")[side.buffer.at(due)]]
                for first in range(0, len(alone), MAX_ROWS):
                    some = alone[first : first + MAX_ROWS]
                    out.emit(self._output.alone(index, side.buffer.take(some), self._window(*side.spans(some))))
            side.state.drop(due)
        self._tidy()

    def _tidy(self) -> None:
        for side in self._sides:
            side.tidy()
        if len(self._index) > _MIN_GARBAGE + 2 * sum(side.buffer.count for side in self._sides):
            used = np.zeros(len(self._index), np.bool_)
            for side in self._sides:
                used[side.buffer.lane("slot")[side.buffer.at(side.buffer.ids())]] = True
            moved = self._index.compact(used)
            for side in self._sides:
                side.buffer.move_slots(moved)

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """As ``Operator.snapshot``."""
        deltas = {name: side.state.delta(epoch) for name, side in zip(SIDES, self._sides, strict=True)}
        return {name: delta for name, delta in deltas.items() if delta is not None}

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """As ``Operator.restore``."""
        index = SIDES.index(table)
        side = self._sides[index]
        for rows, lanes in side.state.restored(batches, full_from):
            low, high = lanes.pop("low"), lanes.pop("high")
            spans = Spans(low, high, self._rule.until(index, low, high))
            side.restore(rows, self._slots(index, rows, spans), spans, lanes)

    def counters(self) -> Mapping[str, int]:
        """As ``Operator.counters``."""
        return {
            f"{what}_{name}": getattr(side, what)
            for name, side in zip(SIDES, self._sides, strict=True)
            for what in ("late_rows", "null_time_rows", "null_key_rows")
        }


class _Side:
    """The rows of one input that wait."""

    def __init__(self, spec: TimedJoin, index: int, inputs: Sequence[pa.Schema]) -> None:
        schema = spec.kept(index, inputs[index])
        self._names = schema.names
        self._schema = schema
        self._marks = spec.keeps_unmatched(index)
        windows = isinstance(spec.nearness, SameWindow)
        lanes = {**STATE_LANES, "until": np.int64, "matched": np.bool_}
        lanes |= {"low": np.int64, "high": np.int64} if windows else {}
        self.buffer = RowBuffer(schema, spans=not windows, lanes=lanes)
        table = spec.state_tables(inputs)[index]
        self.state = BufferState(table, self.buffer, ("low", "high", *(["matched"] if self._marks else [])))
        self.late_columns = spec.output_schemas(inputs)[LATE_PORTS[index]].names
        self._deadlines = Deadlines()
        self.late_rows = 0
        self.null_time_rows = 0
        self.null_key_rows = 0

    def kept(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the columns that are kept."""
        return pa.RecordBatch.from_arrays([plain(batch.column(name)) for name in self._names], schema=self._schema)

    def add(self, batch: pa.RecordBatch, slots: Ints, spans: Spans, matched: Bools) -> None:
        """Let rows wait."""
        ids = self.buffer.append(batch, slots, low=spans.low, high=spans.high, until=spans.until, matched=matched)
        self.state.begin(ids)
        self._deadlines.add(spans.until, ids)

    def restore(self, batch: pa.RecordBatch, slots: Ints, spans: Spans, lanes: Mapping[str, npt.NDArray[Any]]) -> None:
        """Let rows wait that did before."""
        ids = self.buffer.append(batch, slots, low=spans.low, high=spans.high, until=spans.until, **lanes)
        self._deadlines.add(spans.until, ids)

    def spans(self, ids: Ints) -> tuple[Ints, Ints]:
        """Return from when to when rows may match."""
        at = self.buffer.at(ids)
        return self.buffer.lane("low")[at], self.buffer.lane("high")[at]

    def match(self, ids: Ints) -> None:
        """Rows, which may be named repeatedly, are in a pair."""
        if not self._marks:
            return
        matched, at = self.buffer.lane("matched"), self.buffer.at(ids)
        new = ids[~matched[at]]
        if len(new):
            matched[at] = True
            self.state.touch(new)

    def due(self, now: int) -> Ints:
        """Return the rows for which nothing can come any more."""
        ids = self._deadlines.due(now)
        return ids[self.buffer.alive(ids)]

    def tidy(self) -> None:
        """Give up the memory of dropped rows."""
        renewed = self.buffer.tidy()
        if self._deadlines.count + len(renewed) > 2 * self.buffer.count + _MIN_GARBAGE:
            self._deadlines.clear()
            renewed = self.buffer.ids()
        if len(renewed):
            self._deadlines.add(self.buffer.lane("until")[self.buffer.at(renewed)], renewed)
