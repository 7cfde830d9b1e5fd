"""The running part of ``Lookup``. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints, plain, validity
from millstream.engine.errors import MillstreamError, UserCodeError
from millstream.engine.key_index import KeyIndex
from millstream.engine.operator import Fault, Operator, Output
from millstream.engine.time import START_OF_TIME
from millstream.operators.cells import resized
from millstream.operators.code_version import code_version
from millstream.operators.join_output import JoinOutput, Met
from millstream.operators.lookup import FunctionTable
from millstream.operators.python_operator import by_halves, fault_of, times_of
from millstream.operators.row_buffer import RowBuffer

if TYPE_CHECKING:
    from millstream.operators.lookup import Lookup


class LookupOperator(Operator):
    """Asks for the keys of a batch that are not known, then joins the batch with what is."""

    uses_clock = True

    def __init__(self, spec: Lookup, left: pa.Schema) -> None:
        self._spec = spec
        self._kept = spec.kept(0, left)
        self._code = code_version(spec.table.fn) if spec.keeps and isinstance(spec.table, FunctionTable) else ""
        self._output = JoinOutput(spec, [left, spec.table.schema])
        self._answers = _Answers(spec)
        self._now = 0
        self._null_keys = self._asked = 0

    def on_clock(self, now: int, out: Output) -> None:
        """Answers grow old."""
        del out
        self._now = now

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Look the rows up."""
        names = self._kept.names
        rows = pa.RecordBatch.from_arrays([plain(batch.column(name)) for name in names], schema=self._kept)
        slots = self._slots(rows)
        faults = self._ask(np.unique(slots[slots >= 0]))
        if faults:
            lost = self._put_aside(batch, slots, faults, out)
            rows, slots = rows.filter(pa.array(~lost)), slots[~lost]
        matched = np.zeros(len(slots), np.bool_)
        for own, ids in self._answers.buffer.matches(slots):
            met = Met(0, rows, own, self._answers.buffer, ids)
            met = met.only(self._output.passing(met))
            matched[met.rows] = True
            out.emit(self._output.pairs(met))
        if self._spec.how == "left" and not matched.all():
            out.emit(self._output.alone(0, rows.filter(pa.array(~matched))))
        self._answers.forget(slots[slots >= 0])

    def _slots(self, rows: pa.RecordBatch) -> Ints:
        """Return the slot of each row's key; -1 if a part of it is null."""
        keys = [rows.column(name) for name in self._spec.left_keys]
        known = np.ones(rows.num_rows, np.bool_)
        for key in keys:
            mask = validity(key)
            if len(mask):
                known &= mask
        self._null_keys += len(known) - int(known.sum())
        slots = np.full(len(known), -1)
        chosen = pa.array(known)
        slots[known] = self._answers.slots(keys if known.all() else [key.filter(chosen) for key in keys])
        return slots

    def _ask(self, slots: Ints) -> dict[int, Fault]:
        """Ask for what is not known of these keys; return why that failed, by slot, if such rows are put aside."""
        faults: dict[int, Fault] = {}
        due = self._answers.unknown(slots, self._now - self._spec.remember)
        self._asked += len(due)
        for first in range(0, len(due), self._spec.most_keys):
            some = due[first : first + self._spec.most_keys]
            if self._spec.keeps:
                self._ask_by_halves(some, faults)
            else:
                self._ask_all(some)
        return faults

    def _ask_all(self, slots: Ints) -> None:
        try:
            self._answers.fetch(slots, self._now)
        except MillstreamError:
            raise
        except Exception as error:
            raise UserCodeError(
                f"{self._spec.table.name} raised {type(error).__name__}: {error}; asked for {len(slots)} keys"
            ) from error

    def _ask_by_halves(self, slots: Ints, faults: dict[int, Fault]) -> None:
        """One bad key must not take the others with it."""

        def refuse(index: int, error: Exception) -> None:
            faults[int(slots[index])] = fault_of(error)

        def attempt(part: pa.RecordBatch) -> None:
            self._answers.fetch(part.column(0).to_numpy(), self._now)

        for _ in by_halves(pa.record_batch({"slot": slots}), attempt, refuse):
            pass

    def _put_aside(self, batch: pa.RecordBatch, slots: Ints, faults: Mapping[int, Fault], out: Output) -> Bools:
        lost: Bools = np.isin(slots, list(faults))
        rows = batch.filter(pa.array(lost))
        reasons = [faults[slot] for slot in slots[lost].tolist()]
        out.dead_letter(rows, reasons, times=times_of(self._spec.time, rows), code=self._code)
        return lost

    def counters(self) -> Mapping[str, int]:
        """As ``Operator.counters``."""
        return {"null_key_rows": self._null_keys, "keys_asked_for": self._asked}


class _Answers:
    """What is known of keys: the rows of each, when it was asked for, and in which batch it was last used."""

    def __init__(self, spec: Lookup) -> None:
        self._spec = spec
        schema = spec.table.schema
        self._schema = spec.kept(1, schema)
        self.buffer = RowBuffer(self._schema, spans=False)
        self._index = KeyIndex([schema.field(name).type for name in spec.right_keys])
        self._asked: Ints = np.empty(0, np.int64)
        self._used: Ints = np.empty(0, np.int64)
        self._batch = 0

    def slots(self, keys: list[pa.Array]) -> Ints:
        """Return the slot of each key."""
        slots = self._index.slots(keys)
        count = len(self._index)
        self.buffer.resize_slots(count)
        if count > len(self._asked):
            self._asked = resized(self._asked, 2 * count, fill=START_OF_TIME)
            self._used = resized(self._used, 2 * count)
        return slots

    def unknown(self, slots: Ints, since: int) -> Ints:
        """Return those that were not asked for after ``since``."""
        return slots[self._asked[slots] <= since]

    def fetch(self, slots: Ints, now: int) -> None:
        """Ask the table for keys, and replace what was known of them.

        Raises:
            UserCodeError: it lacks a column, has one of another type, or a key that it was not asked for.
        """
        names = list(self._spec.right_keys)
        rows = self._checked(
            self._spec.table.fetch(pa.record_batch(self._index.keys(slots), names=names), self._schema.names)
        )
        held = len(self._index)
        found = self._index.slots([rows.column(name) for name in names])
        strange = np.flatnonzero(~np.isin(found, slots))
        if len(strange):
            key = ", ".join(str(rows.column(name)[int(strange[0])]) for name in names)
            self._index.compact(np.arange(len(self._index)) < held)
            raise UserCodeError(f"{self._spec.table.name} returned a row of the key {key}, which it was not asked for")
        old = [ids for _, ids in self.buffer.matches(slots)]
        self.buffer.drop(np.concatenate(old) if old else np.empty(0, np.int64))
        if rows.num_rows:
            self.buffer.append(rows, found)
        self._asked[slots] = now

    def _checked(self, table: pa.Table) -> pa.RecordBatch:
        columns = []
        for field in self._schema:
            if table.schema.names.count(field.name) != 1:
                raise UserCodeError(
                    f"{self._spec.table.name} must return a column {field.name!r}, got {', '.join(table.schema.names)}"
                )
            column = table.column(field.name).combine_chunks()
            column = plain(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
            if column.type != field.type:
                raise UserCodeError(
                    f"{self._spec.table.name}: column {field.name!r} must be {field.type}, got {column.type}"
                )
            columns.append(column)
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def forget(self, used: Ints) -> None:
        """Note which were used; forget what is no longer wanted: all, or those used longest ago."""
        self._batch += 1
        self._used[used] = self._batch
        most = self._spec.cache_keys if self._spec.remember else 0
        count = len(self._index)
        if count > most:
            keep = np.zeros(count, np.bool_)
            # A quarter more than must be, so that this is not done with every batch.
            keep[np.argsort(-self._used[:count], kind="stable")[: most * 3 // 4]] = True
            self._drop(np.flatnonzero(~keep))
            moved = self._index.compact(keep)
            self.buffer.move_slots(moved)
            asked, used_at = self._asked[:count][keep], self._used[:count][keep]
            self._asked = resized(asked, max(len(asked), 1), fill=START_OF_TIME)
            self._used = resized(used_at, max(len(used_at), 1))
        self.buffer.tidy()

    def _drop(self, slots: Ints) -> None:
        found = [ids for _, ids in self.buffer.matches(slots)]
        if found:
            self.buffer.drop(np.concatenate(found))
