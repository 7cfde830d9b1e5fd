"""The running part of ``UnboundedJoin``. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from millstream.engine.changelog import WEIGHT, is_changelog, weights_of
from millstream.engine.codes import Bools, Ints, plain, validity
from millstream.engine.key_index import KeyIndex
from millstream.engine.operator import Operator, Output
from millstream.engine.state import StateDelta
from millstream.operators.join import SIDES
from millstream.operators.join_output import JoinOutput, Met
from millstream.operators.row_buffer import RowBuffer
from millstream.operators.row_buffer_state import STATE_LANES, BufferRows, BufferState
from millstream.operators.row_contents import RowContents
from millstream.operators.windowed import MAX_ROWS

if TYPE_CHECKING:
    from millstream.operators.unbounded_join import UnboundedJoin

_MIN_GARBAGE: Final = 4_096


class UnboundedJoinOperator(Operator):
    """Asks the rows of the other side, tells them what they are in, and then keeps the row.

    Attributes of rows are lanes of their buffers: ``weight``, and ``matches``, the weights of the rows on the other
    side that a row is in pairs with, summed up; where those are never taken back, 1 stands for any.
    """

    def __init__(self, spec: UnboundedJoin, inputs: Sequence[pa.Schema]) -> None:
        self._spec = spec
        self._sides = (_Side(spec, 0, inputs), _Side(spec, 1, inputs))
        self._output = JoinOutput(spec, inputs)
        self._weighted = spec.makes_changelog(inputs)
        self._settles = spec.settles(inputs)
        self._index = KeyIndex([inputs[0].field(key).type for key in spec.left_keys])

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Take a batch of the left side."""
        self.process_input(0, batch, out)

    def process_input(self, index: int, batch: pa.RecordBatch, out: Output) -> None:
        """Put out what follows from these rows, and keep them."""
        side = self._sides[index]
        rows, weights = side.kept(batch), weights_of(batch)
        keyless = self._keyless(index, rows)
        if keyless is not None:
            side.null_key_rows += int(keyless.sum())
            if self._spec.puts_out_alone(index):
                self._put_out_alone(index, rows, weights, np.flatnonzero(keyless), out)
            having = np.flatnonzero(~keyless)
            rows, weights = rows.take(pa.array(having)), weights[having]
        rows, weights, numbers = side.summed(rows, weights)
        if not rows.num_rows:
            return
        slots = self._slots(index, rows)
        matches = self._match(index, rows, weights, slots, out)
        if self._spec.counts_pairs(index):
            shown = matches != 0 if self._spec.how == "semi" else matches == 0
            self._put_out_alone(index, rows, weights, np.flatnonzero(shown), out)
        self._keep(index, rows, weights, numbers, slots, matches)
        self._tidy()

    def _keyless(self, index: int, rows: pa.RecordBatch) -> Bools | None:
        """Which rows have a null in their key; None if none has."""
        masks = [mask for mask in (validity(rows.column(name)) for name in self._spec.keys_of(index)) if len(mask)]
        return ~np.logical_and.reduce(masks) if masks else None

    def _slots(self, index: int, rows: pa.RecordBatch) -> Ints:
        slots = self._index.slots([rows.column(name) for name in self._spec.keys_of(index)])
        for side in self._sides:
            side.buffer.resize_slots(len(self._index))
        return slots

    def _match(self, index: int, rows: pa.RecordBatch, weights: Ints, slots: Ints, out: Output) -> Ints:
        """Put the pairs out; return the weights of the rows that each row is in pairs with, summed up."""
        spec, other = self._spec, self._sides[1 - index]
        matches = np.zeros(len(slots), np.int64)
        once = spec.left_only and index == 0 and spec.where is None and not other.changes
        for own, ids in other.buffer.matches(slots, once=once):
            met = Met(index, rows, own, other.buffer, ids)
            met = met.only(self._output.passing(met))
            if not len(met.rows):
                continue
            theirs = other.weights(met.ids)
            if not spec.left_only:
                self._emit(self._output.pairs(met), weights[met.rows] * theirs, out)
            if other.changes:
                np.add.at(matches, met.rows, theirs)
            else:
                matches[met.rows] = 1
            if spec.counts_pairs(1 - index):
                self._met(1 - index, met, weights, out)
        return matches

    def _met(self, index: int, met: Met, weights: Ints, out: Output) -> None:
        """Rows that waited are in pairs, or no more: put them out or take them back."""
        side = self._sides[index]
        ids, before, after = side.count(met.ids, weights[met.rows], self._sides[1 - index].changes)
        if not len(ids):
            return
        sign = np.where(after != 0, 1, -1) if self._spec.how == "semi" else np.where(after != 0, -1, 1)
        turned = np.flatnonzero((before != 0) != (after != 0))
        for first in range(0, len(turned), MAX_ROWS):
            some = turned[first : first + MAX_ROWS]
            alone = self._output.alone(index, side.buffer.take(ids[some]))
            self._emit(alone, sign[some] * side.weights(ids[some]), out)
        if self._settles:
            side.state.drop(ids[turned])

    def _put_out_alone(self, index: int, rows: pa.RecordBatch, weights: Ints, chosen: Ints, out: Output) -> None:
        if len(chosen):
            self._emit(self._output.alone(index, rows.take(pa.array(chosen))), weights[chosen], out)

    def _emit(self, rows: pa.RecordBatch, weights: Ints, out: Output) -> None:
        out.emit(rows.append_column(WEIGHT, pa.array(weights)) if self._weighted else rows)

    def _keep(self, index: int, rows: pa.RecordBatch, weights: Ints, numbers: Ints, slots: Ints, matches: Ints) -> None:
        side = self._sides[index]
        if side.changes:
            side.change(rows, weights, numbers, slots, matches)
            return
        if self._settles and index == 0:
            chosen = np.flatnonzero(matches == 0)
        elif self._spec.left_only and index == 1 and self._spec.where is None:
            # One row of a key says as much as many.
            chosen = np.unique(slots, return_index=True)[1]
            chosen = chosen[~side.buffer.holds(slots[chosen])]
        else:
            chosen = np.arange(len(slots))
        if len(chosen):
            some = rows if len(chosen) == len(slots) else rows.take(pa.array(chosen))
            side.add(some, slots[chosen], matches=matches[chosen])

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
        for rows, lanes in self._sides[index].state.restored(batches, full_from):
            self._sides[index].restore(rows, self._slots(index, rows), lanes)

    def counters(self) -> Mapping[str, int]:
        """As ``Operator.counters``."""
        return {f"null_key_rows_{name}": side.null_key_rows for name, side in zip(SIDES, self._sides, strict=True)}


class _Side:
    """The rows of one input.

    Attributes:
        changes: whether it is a changelog.
    """

    def __init__(self, spec: UnboundedJoin, index: int, inputs: Sequence[pa.Schema]) -> None:
        schema = spec.kept(index, inputs[index])
        lanes = spec.state_lanes(index, inputs[index])
        (table,) = (t for t in spec.state_tables(inputs) if t.name == SIDES[index])
        self._schema = schema
        self.changes = is_changelog(inputs[index])
        types: dict[str, type[Any]] = dict.fromkeys([*lanes, *(["content"] if self.changes else [])], np.int64)
        self.buffer = RowBuffer(schema, spans=False, lanes={**types, **(STATE_LANES if lanes else {})})
        self.state = BufferState(table, self.buffer, lanes) if lanes else BufferRows(table, self.buffer)
        self._contents = RowContents(schema) if self.changes else None
        self.null_key_rows = 0

    def kept(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the columns that are kept."""
        columns = [plain(batch.column(name)) for name in self._schema.names]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def summed(self, rows: pa.RecordBatch, weights: Ints) -> tuple[pa.RecordBatch, Ints, Ints]:
        """Return the rows of a changelog once each, with their weights summed up, and what names their contents."""
        if self._contents is None:
            return rows, weights, weights
        numbers, first, at = np.unique(self._contents.numbers(rows), return_index=True, return_inverse=True)
        sums = np.zeros(len(numbers), np.int64)
        np.add.at(sums, at, weights)
        chosen = np.flatnonzero(sums)
        return rows.take(pa.array(first[chosen])), sums[chosen], numbers[chosen]

    def weights(self, ids: Ints) -> Ints:
        """Return the weights of rows."""
        return self.buffer.lane("weight")[self.buffer.at(ids)] if self.changes else np.ones(len(ids), np.int64)

    def count(self, ids: Ints, weights: Ints, exactly: bool) -> tuple[Ints, Ints, Ints]:
        """Rows, which may be named repeatedly, are in pairs with rows of these weights.

        Args:
            exactly: the other side is a changelog; if it is not, 1 stands for any number of pairs.

        Returns:
            The rows whose matches have changed, each once, and their matches before and after.
        """
        matches, unique = self.buffer.lane("matches"), np.unique(ids)
        at = self.buffer.at(unique)
        before = matches[at]
        if exactly:
            np.add.at(matches, self.buffer.at(ids), weights)
        else:
            matches[at] = 1
        changed = np.flatnonzero(matches[at] != before)
        self.state.touch(unique[changed])
        return unique[changed], before[changed], matches[at[changed]]

    def add(self, rows: pa.RecordBatch, slots: Ints, **lanes: npt.NDArray[Any]) -> Ints:
        """Keep rows; return their ids."""
        ids = self.buffer.append(rows, slots, **lanes)
        self.state.begin(ids)
        return ids

    def change(self, rows: pa.RecordBatch, weights: Ints, numbers: Ints, slots: Ints, matches: Ints) -> None:
        """Change the weights of rows of a changelog; those that come to 0 are dropped."""
        assert self._contents is not None
        ids = self._contents.row_of[numbers]
        new = np.flatnonzero(ids < 0)
        if len(new):
            lanes = {"weight": weights[new], "matches": matches[new], "content": numbers[new]}
            self._contents.row_of[numbers[new]] = self.add(rows.take(pa.array(new)), slots[new], **lanes)
        old = np.flatnonzero(ids >= 0)
        held = self.buffer.lane("weight")
        at = self.buffer.at(ids[old])
        held[at] += weights[old]
        self.state.touch(ids[old])
        gone = old[held[at] == 0]
        if len(gone):
            self._contents.row_of[numbers[gone]] = -1
            self.state.drop(ids[gone])

    def restore(self, rows: pa.RecordBatch, slots: Ints, lanes: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep rows that were kept before."""
        if self._contents is None:
            self.buffer.append(rows, slots, **lanes)
            return
        numbers = self._contents.numbers(rows)
        self._contents.row_of[numbers] = self.buffer.append(rows, slots, content=numbers, **lanes)

    def tidy(self) -> None:
        """Give up the memory of dropped rows."""
        renewed = self.buffer.tidy()
        if self._contents is None:
            return
        contents = self.buffer.lane("content")
        if len(renewed):
            self._contents.row_of[contents[self.buffer.at(renewed)]] = renewed
        moved = self._contents.compact(self.buffer.count)
        if moved is not None:
            at = self.buffer.at(self.buffer.ids())
            contents[at] = moved[contents[at]]
