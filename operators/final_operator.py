"""The running part of ``FinalRows``. Importing this module loads numba."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
from millstream.operators.windowed import MAX_ROWS

if TYPE_CHECKING:
    from millstream.operators.final import FinalRows


class FinalOperator(AggregateOperator):
    """A group is a key. Its slot is dead when no row is left: neither weight nor fingerprint."""

    def __init__(self, spec: FinalRows, schema: pa.Schema) -> None:
        super().__init__(spec.state_tables([schema]), [], schema)
        self._output = spec.output_schemas([schema])[MAIN]
        self._keys = spec.keys
        self._others = [name for name in self._output.names if name not in spec.keys]
        self._cells = [cells_for(self._output.field(name).type) for name in self._others]
        self._weights: Ints = np.empty(0, np.int64)
        self._prints: Ints = np.empty(0, np.int64)
        self._seen: Bools = np.empty(0, np.bool_)  # by slot, for list_first_rows

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Take rows in and out."""
        del out
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
        """Put everything out at the end."""
        if time < END_OF_TIME:
            return
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

    def _check(self, rows: pa.RecordBatch, slots: Ints) -> None:
        """Raise DataError unless the rows are just what is left."""
        weights = self._weights[slots]
        wrong = weights < 1
        if self._others:
            wrong |= (weights > 1) | (self._prints[slots] != self._fingerprints(rows))
        if not bool(wrong.any()):
            return
        at = int(np.flatnonzero(wrong)[0])
        key = ", ".join(f"{name}={rows.column(name)[at].as_py()!r}" for name in self._keys) or "no key"
        if int(weights[at]) < 1:
            raise DataError(f"final(): the changelog takes more rows back than it has brought, of {key}")
        raise DataError(
            f"final(): more than one row had {key} at a time, so these columns do not tell rows apart; name others, as "
            "in final('shop', 'day')"
        )

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
