"""The running part of ``FinalRows``. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pyarrow as pa
from millstream.engine.changelog import weights_of
from millstream.engine.codes import NO_MASK, Bools, Ints, fixed_codes, has_form, plain
from millstream.engine.errors import DataError
from millstream.engine.hashing import exchange_hash
from millstream.engine.operator import MAIN, Output
from millstream.engine.time import END_OF_TIME
from millstream.operators import aggregate_kernels as kernels
from millstream.operators.aggregate_operator import AggregateOperator
from millstream.operators.cells import cells_for, resized
from millstream.operators.consolidate import net_rows
from millstream.operators.row_numbers import is_comparable, row_numbers
from millstream.operators.windowed import LATE, MAX_ROWS

if TYPE_CHECKING:
    from millstream.operators.final import FinalRows


class FinalOperator(AggregateOperator):
    """A group is a key. Its slot is dead when no row is left: neither weight nor fingerprint."""

    def __init__(self, spec: FinalRows, schema: pa.Schema) -> None:
        super().__init__(spec.state_tables([schema]), [], schema)
        schemas = spec.output_schemas([schema])
        self._output, self._late = schemas[MAIN], schemas[LATE]
        self._keys = spec.keys
        self._others = [name for name in self._output.names if name not in spec.keys]
        self._cells = [cells_for(self._output.field(name).type) for name in self._others]
        self._weights: Ints = np.empty(0, np.int64)
        self._prints: Ints = np.empty(0, np.int64)
        self._seen: Bools = np.empty(0, np.bool_)  # by slot, for list_first_rows
        self._given = False  # the end has come, and what there was has been put out
        self._after: list[pa.RecordBatch] = []  # what has come since, until the next barrier
        self._late_rows = 0

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Take rows in and out."""
        del out
        if self._given:
            self._after.append(batch)
            return
        known = len(self._index)
        slots = self._index.slots([batch.column(key) for key in self._keys] or [self._constant(batch.num_rows)])
        self._make_room()
        weights = weights_of(batch)
        kernels.add_count(slots, NO_MASK, weights, self._weights)
        if self._others:
            kernels.add_count(slots, NO_MASK, weights * self._fingerprints(batch), self._prints)
        self._put(batch, slots, weights)
        self._changes.changed[slots] = True
        self._changes.begin(known, len(self._index) - known)
        dead = slots[(self._weights[slots] == 0) & (self._prints[slots] == 0)]
        if len(dead):
            self._bury(np.unique(dead))

    def _constant(self, rows: int) -> pa.Array:
        return pa.repeat(pa.scalar(True), rows)

    def _fingerprints(self, rows: pa.RecordBatch) -> Ints:
        """Hash rows by the columns that are no keys, as far as these can be hashed."""
        hashed = [rows.column(name) for name in self._others if has_form(rows.schema.field(name).type)]
        # Odd, so that no weight makes it 0.
        return exchange_hash(hashed, rows.num_rows).view(np.int64) | 1

    def _put(self, batch: pa.RecordBatch, slots: Ints, weights: Ints) -> None:
        """Keep the last row of each slot that comes."""
        coming = np.flatnonzero(weights > 0)[::-1]
        rows = np.empty(len(coming), np.int64)
        rows = coming[rows[: kernels.list_first_rows(slots[coming], self._seen, rows)]]
        for name, cells in zip(self._others, self._cells, strict=True):
            cells.put(slots[rows], plain(batch.column(name).take(pa.array(rows))))

    def on_watermark(self, time: int, out: Output) -> None:
        """Put everything out at the end, which comes again after what is replayed; until then time stands before it."""
        if time < END_OF_TIME - 1:
            return
        if time == END_OF_TIME and not self._given:
            self._give(out)
        self._given = True
        if time == END_OF_TIME:
            self._settle(out)

    def on_barrier(self, out: Output) -> None:
        """Put out what has come since the end."""
        self._settle(out)

    def _give(self, out: Output) -> None:
        alive = np.flatnonzero(self._alive())
        for first in range(0, len(alive), MAX_ROWS):
            slots = alive[first : first + MAX_ROWS]
            columns = dict(zip(self._keys, self._index.keys(slots), strict=False))
            columns |= {name: cells.get(slots) for name, cells in zip(self._others, self._cells, strict=True)}
            rows = pa.record_batch([columns[name] for name in self._output.names], schema=self._output)
            self._check(rows, slots)
            copies = self._weights[slots]
            out.emit(
                rows if bool((copies == 1).all()) else rows.take(pa.array(np.repeat(np.arange(len(rows)), copies)))
            )
        self._weights[alive] = self._prints[alive] = 0
        if len(alive):
            self._bury(alive)

    def _settle(self, out: Output) -> None:
        """Put out rows of new keys, and aside the changes of those of which a row was given."""
        if not self._after:
            return
        (batch,) = pa.Table.from_batches(self._after).combine_chunks().to_batches()
        self._after = []
        columns, weights = [plain(batch.column(name)) for name in self._output.names], weights_of(batch)
        if all(is_comparable(column.type) for column in columns):
            kept, weights = net_rows(columns, weights)
            columns = [column.take(pa.array(kept)) for column in columns]
        rows = pa.record_batch(columns, schema=self._output)
        keys = row_numbers([rows.column(key) for key in self._keys] or [self._constant(len(rows))], len(rows))
        late = np.isin(keys, keys[weights < 0])
        self._late_rows += int(late.sum())
        changes = rows.filter(pa.array(late))
        out.emit(pa.record_batch([*changes.columns, pa.array(weights[late])], schema=self._late), LATE)
        rows, weights, keys = rows.filter(pa.array(~late)), weights[~late], keys[~late]
        if self._others and (len(np.unique(keys)) < len(keys) or bool((weights > 1).any())):
            self._refuse(rows, int(np.flatnonzero((np.bincount(keys)[keys] > 1) | (weights > 1))[0]))
        out.emit(rows.take(pa.array(np.repeat(np.arange(len(rows)), weights))))

    def counters(self) -> Mapping[str, int]:
        """As ``Operator.counters``."""
        return {"late_rows": self._late_rows}

    def _check(self, rows: pa.RecordBatch, slots: Ints) -> None:
        """Raise DataError unless the rows are just what is left."""
        weights = self._weights[slots]
        wrong = weights < 1
        if self._others:
            wrong |= (weights > 1) | (self._prints[slots] != self._fingerprints(rows))
        if not bool(wrong.any()):
            return
        at = int(np.flatnonzero(wrong)[0])
        if int(weights[at]) < 1:
            raise DataError(
                f"final(): the changelog takes more rows back than it has brought, of {self._shown_key(rows, at)}"
            )
        self._refuse(rows, at)

    def _refuse(self, rows: pa.RecordBatch, at: int) -> NoReturn:
        raise DataError(
            f"final(): more than one row had {self._shown_key(rows, at)} at a time, so these columns do not tell rows "
            "apart; name others, as in final('shop', 'day')"
        )

    def _shown_key(self, rows: pa.RecordBatch, at: int) -> str:
        return ", ".join(f"{name}={rows.column(name)[at].as_py()!r}" for name in self._keys) or "no key"

    def _alive(self) -> Bools:
        count = len(self._index)
        return np.not_equal(self._weights[:count], 0) | np.not_equal(self._prints[:count], 0)

    def _bury(self, slots: Ints) -> None:
        super()._bury(slots)
        alive = self._alive()
        if self._is_sparse(int(alive.sum())):
            self._compact(alive)

    def _more_state(self, slots: Ints) -> list[pa.Array]:
        return [
            *(cells.get(slots) for cells in self._cells),
            *map(pa.array, (self._weights[slots], self._prints[slots])),
        ]

    def _load(self, batch: pa.RecordBatch, slots: Ints) -> None:
        *values, weights, prints = batch.columns[len(self._table.keys) : -1]
        for cells, column in zip(self._cells, values, strict=True):
            cells.put(slots, column)
        self._weights[slots], self._prints[slots] = fixed_codes(weights), fixed_codes(prints)

    def _resize(self, capacity: int) -> None:
        super()._resize(capacity)
        for cells in self._cells:
            cells.resize(capacity)
        self._weights, self._prints = resized(self._weights, capacity), resized(self._prints, capacity)
        self._seen = resized(self._seen, capacity, fill=False)

    def _compact(self, alive: Bools) -> Ints:
        kept = np.flatnonzero(alive)
        for cells in self._cells:
            cells.compact(kept)
        self._weights, self._prints, self._seen = self._weights[kept], self._prints[kept], self._seen[kept]
        return super()._compact(alive)
