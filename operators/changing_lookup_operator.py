"""The running part of ``Lookup`` over a changelog. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.changelog import weights_of
from millstream.engine.codes import Bools, Ints, fixed_codes, plain
from millstream.engine.errors import DataError
from millstream.engine.operator import MAIN, Output
from millstream.engine.state import StateDelta
from millstream.operators.cells import resized
from millstream.operators.changes import Changes, latest_rows
from millstream.operators.join_columns import assembled
from millstream.operators.join_output import Met
from millstream.operators.lookup_operator import LookupOperator
from millstream.operators.row_contents import RowContents
from millstream.operators.rows import Rows
from millstream.operators.windowed import MAX_ROWS

if TYPE_CHECKING:
    from millstream.operators.lookup import Lookup

_FIRST_CAPACITY: Final = 1_024
_MIN_GARBAGE: Final = 4_096
_NONE: Final[Ints] = np.empty(0, np.int64)


class ChangingLookupOperator(LookupOperator):
    """Remembers what each row that is there was answered, and takes back just that.

    A row is looked up when it comes, and not again while it is there: equal rows, however many, have one answer. A row
    is named by its id, in the order of arrival; what it was answered, a list of rows of the table, is its last column.
    """

    def __init__(self, spec: Lookup, left: pa.Schema) -> None:
        super().__init__(spec, left)
        (self._table,) = spec.state_tables([left])
        self._joined = spec.output_schemas([left])[MAIN]
        self._columns = spec.output_columns
        self._right = spec.kept(1, spec.table.schema)
        self._remembered = pa.schema(list(self._table.schema)[: len(self._kept) + 1])
        self._rows = Rows(self._remembered)
        self._contents = RowContents(self._kept)
        self._changes = Changes(self._table)
        self._live = 0
        self._content: Ints = _NONE  # by id: its number in _contents
        self._weights: Ints = _NONE  # by id: how often the row is there; 0: it is gone

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Take rows back with the answers they had; look up those that are new."""
        rows = pa.RecordBatch.from_arrays([plain(batch.column(n)) for n in self._kept.names], schema=self._kept)
        numbers = self._contents.numbers(rows)
        kinds, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
        net = np.zeros(len(kinds), np.int64)
        np.add.at(net, inverse, weights_of(batch))
        ids = self._contents.row_of[kinds]
        there = ids >= 0
        left = net + np.where(there, self._weights[np.where(there, ids, 0)], 0) if self._live else net
        self._check(rows, first, left)
        self._change(ids[there & (net < 0)], net[there & (net < 0)], out)
        self._bury(ids[there & (left == 0)])
        new = ~there & (left > 0)
        self._change(ids[there & (net > 0)], net[there & (net > 0)], out)
        if bool(new.any()):
            came = np.argsort(first[new], kind="stable")
            self._begin(rows.take(pa.array(first[new][came])), kinds[new][came], net[new][came], out)
        self._compact_if_sparse()

    def _check(self, rows: pa.RecordBatch, first: Ints, left: Ints) -> None:
        if bool((left < 0).any()):
            (row,) = rows.slice(int(first[np.flatnonzero(left < 0)[0]]), 1).to_pylist()
            raise DataError(
                f"lookup: a row of a changelog is to be taken back that never came, or is gone already: {row}. A "
                "function before it must make the same of a row each time: what it takes back it must have made"
            )

    def _change(self, ids: Ints, net: Ints, out: Output) -> None:
        """Rows that are known come or go."""
        if len(ids):
            self._weights[ids] += net
            self._changes.changed[ids] = True
            self._emit(self._rows.take(ids), net, out)

    def _begin(self, rows: pa.RecordBatch, numbers: Ints, weights: Ints, out: Output) -> None:
        """Look up rows that are new, and remember what they are answered."""
        slots = self._slots(rows)
        self._ask(np.unique(slots[slots >= 0]))
        answered = pa.RecordBatch.from_arrays([*rows.columns, self._found(rows, slots)], schema=self._remembered)
        self._answers.forget(slots[slots >= 0])
        first = self._append(answered, numbers, weights)
        self._changes.begin(first, len(numbers))
        self._emit(answered, weights, out)

    def _found(self, rows: pa.RecordBatch, slots: Ints) -> pa.Array:
        """Return for each row a list of the rows of the table that it is joined with."""
        own, found = [_NONE], [_NONE]
        for rows_of, ids in self._answers.buffer.matches(slots):
            met = Met(0, rows, rows_of, self._answers.buffer, ids)
            met = met.only(self._output.passing(met))
            own.append(met.rows)
            found.append(met.ids)
        owners, ids = np.concatenate(own), np.concatenate(found)
        order = np.argsort(owners, kind="stable")
        ends = np.searchsorted(owners[order], np.arange(rows.num_rows + 1)).astype(np.int32)
        answers = self._answers.buffer.take(ids[order])
        structs = pa.StructArray.from_arrays(answers.columns, fields=list(self._right))
        return pa.ListArray.from_arrays(pa.array(ends), structs)

    def _emit(self, answered: pa.RecordBatch, weights: Ints, out: Output) -> None:
        """Put pairs out, or rows alone that have no answer, each with the weight of its row."""
        *columns, answers = answered.columns
        rows = pa.RecordBatch.from_arrays(columns, schema=self._kept)
        owners, found = pc.list_parent_indices(answers), answers.flatten()
        for first in range(0, len(found), MAX_ROWS):
            of, some = owners.slice(first, MAX_ROWS), found.slice(first, MAX_ROWS)
            self._put(rows.take(of), pa.RecordBatch.from_struct_array(some), weights[of.to_numpy()], out)
        if self._spec.how == "left":
            alone = np.asarray(pc.equal(pc.list_value_length(answers), 0).to_numpy(zero_copy_only=False), np.bool_)
            if bool(alone.any()):
                self._put(rows.filter(pa.array(alone)), None, weights[alone], out)

    def _put(self, left: pa.RecordBatch, right: pa.RecordBatch | None, weights: Ints, out: Output) -> None:
        whole = self._joined.remove(len(self._joined) - 1)
        joined = assembled(self._columns, whole, left.num_rows, (left, right), ())
        out.emit(pa.RecordBatch.from_arrays([*joined.columns, pa.array(weights)], schema=self._joined))

    # -- what is remembered ------------------------------------------------------------------------------------

    def _append(self, answered: pa.RecordBatch, numbers: Ints, weights: Ints) -> int:
        """Remember rows; return the id of the first."""
        first, count = len(self._rows), len(self._rows) + len(numbers)
        if count > len(self._weights):
            capacity = max(_FIRST_CAPACITY, 2 * len(self._weights), count)
            self._weights, self._content = resized(self._weights, capacity), resized(self._content, capacity)
            self._changes.resize(capacity)
        self._rows.append(answered)
        self._weights[first:count], self._content[first:count] = weights, numbers
        self._contents.row_of[numbers] = np.arange(first, count)
        self._live += len(numbers)
        return first

    def _bury(self, gone: Ints) -> None:
        leaving = self._changes.leaving(gone)
        if len(leaving):
            keys = self._rows.take(leaving, list(self._spec.left_keys)).columns
            self._changes.bury([*keys, pa.array(self._changes.sequence[leaving])])
        self._contents.row_of[self._content[gone]] = -1
        self._live -= len(gone)

    def _alive(self) -> Bools:
        return np.greater(self._weights[: len(self._rows)], 0)

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """As ``Operator.snapshot``."""
        chosen = self._changes.choose(epoch, np.flatnonzero(self._alive()))
        if chosen is None:
            return {}
        ids, full_from = chosen
        columns = [*self._rows.take(ids).columns, pa.array(self._weights[ids]), pa.array(self._changes.sequence[ids])]
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
            *columns, weights, numbered = rows.take(there[start : start + MAX_ROWS]).columns
            answered = pa.RecordBatch.from_arrays(columns, schema=self._remembered)
            contents = pa.RecordBatch.from_arrays(columns[:-1], schema=self._kept)
            first = self._append(answered, self._contents.numbers(contents), fixed_codes(weights))
            self._changes.begin_restored(first, fixed_codes(numbered))
        self._changes.restored(full_from)

    def _compact_if_sparse(self) -> None:
        """Forget rows that are gone, and what tells rows apart, once they are more than the others."""
        if len(self._rows) > max(_MIN_GARBAGE, 2 * self._live):
            kept = np.flatnonzero(self._alive())
            self._rows.compact(kept)
            self._changes.compact(kept)
            self._weights, self._content = self._weights[kept], self._content[kept]
            self._contents.row_of[self._content] = np.arange(len(kept))
        moved = self._contents.compact(self._live)
        if moved is not None:
            alive = np.flatnonzero(self._alive())
            self._content[alive] = moved[self._content[alive]]
