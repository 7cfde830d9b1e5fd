"""Aggregates that keep many values per group. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from millstream.engine.codes import NO_MASK, Ints, fixed_codes, validity
from millstream.operators import aggregate_kernels as kernels
from millstream.operators.accumulators import NO_TIMES, NO_WEIGHTS
from millstream.operators.cells import resized
from millstream.operators.items import ItemAccumulator, ItemIndex
from millstream.operators.rows import Rows

_NO_LIMIT: Final = 2**62


class DistinctAccumulator(ItemAccumulator):
    """Counts different values. Items: value."""

    def __init__(self, type: pa.DataType) -> None:
        self._index = ItemIndex(type)
        self._counts: Ints = np.empty(0, np.int64)

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        super().resize(slots)
        self._index.resize(slots)
        self._counts = resized(self._counts, slots)

    def update(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints) -> None:
        """As ``Accumulator.update``."""
        del times
        (values,) = arguments
        valid = validity(values)
        if len(valid):
            slots, values = slots[valid], values.drop_null()
        self.items.add(self._new(slots, values))

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``, of what ``columns`` returned."""
        self.update(slots, columns, NO_TIMES)

    def take_back(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``ItemAccumulator.take_back``."""
        self.items.add_stored(self._new(slots, columns[0]))

    def _new(self, slots: Ints, values: pa.Array) -> Ints:
        _, new = self._index.find(slots, [values])
        kernels.add_count(new, NO_MASK, NO_WEIGHTS, self._counts)
        return new

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``; int64."""
        return pa.array(self._counts[slots])

    def columns(self, ids: Ints) -> list[pa.Array]:
        """As ``ItemAccumulator.columns``."""
        return self._index.names(ids)

    def keep(self, ids: Ints) -> None:
        """As ``ItemAccumulator.keep``."""
        self._index.keep(ids)

    def clear(self, slots: Ints) -> None:
        """As ``Accumulator.clear``."""
        self._index.leave(slots)
        self._counts[slots] = 0

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        super().compact(kept)
        self._index.move(kept)
        self._counts = self._counts[kept]


class CollectAccumulator(ItemAccumulator):
    """Keeps values in the order of arrival. Items: position, value.

    Args:
        type: the argument's.
        limit: how many values a slot keeps; None: all.
    """

    def __init__(self, type: pa.DataType, limit: int | None) -> None:
        self._limit = _NO_LIMIT if limit is None else limit
        self._schema = pa.schema([pa.field("position", pa.int64()), pa.field("value", type)])
        self._rows = Rows(self._schema)
        self._counts: Ints = np.empty(0, np.int64)

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        super().resize(slots)
        self._counts = resized(self._counts, slots)

    def update(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints) -> None:
        """As ``Accumulator.update``."""
        del times
        (values,) = arguments
        rows, positions = np.empty(len(slots), np.int64), np.empty(len(slots), np.int64)
        count = kernels.number_rows(slots, self._limit, self._counts, rows, positions)
        if count:
            rows = rows[:count]
            self._append([pa.array(positions[:count]), values.take(pa.array(rows))])
            self.items.add(slots[rows])

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``, of what ``columns`` returned."""
        self.update(slots, columns[1:], NO_TIMES)

    def take_back(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``ItemAccumulator.take_back``."""
        order = np.argsort(fixed_codes(columns[0]), kind="stable")
        self._append([column.take(pa.array(order)) for column in columns])
        self.items.add_stored(slots[order])
        kernels.add_count(slots, NO_MASK, NO_WEIGHTS, self._counts)

    def _append(self, columns: list[pa.Array]) -> None:
        self._rows.append(pa.record_batch(columns, schema=self._schema))

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``; lists, null for no row."""
        ids, _ = self.items.of(slots)
        counts = self._counts[slots]
        ends = np.zeros(len(slots) + 1, np.int32)
        np.cumsum(counts, out=ends[1:])
        none = counts == 0
        mask = pa.array(none) if bool(none.any()) else None
        return pa.ListArray.from_arrays(pa.array(ends), self._rows.take(ids).column("value"), mask=mask)

    def columns(self, ids: Ints) -> list[pa.Array]:
        """As ``ItemAccumulator.columns``."""
        return list(self._rows.take(ids).columns)

    def keep(self, ids: Ints) -> None:
        """As ``ItemAccumulator.keep``."""
        self._rows.compact(ids)

    def clear(self, slots: Ints) -> None:
        """As ``Accumulator.clear``."""
        self._counts[slots] = 0

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        super().compact(kept)
        self._counts = self._counts[kept]
