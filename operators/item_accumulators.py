"""Aggregates that keep many values per group. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from millstream.engine.codes import NO_MASK, Ints, validity
from millstream.operators import aggregate_kernels as kernels
from millstream.operators.cells import resized
from millstream.operators.items import ItemAccumulator, ItemIndex


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

    def take_back(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``ItemAccumulator.take_back``."""
        self.items.add_stored(self._new(slots, columns[0]))

    def _new(self, slots: Ints, values: pa.Array) -> Ints:
        _, new = self._index.find(slots, values)
        kernels.add_count(new, NO_MASK, self._counts)
        return new

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``; int64."""
        return pa.array(self._counts[slots])

    def columns(self, ids: Ints) -> list[pa.Array]:
        """As ``ItemAccumulator.columns``."""
        return [self._index.names(ids)]

    def keep(self, ids: Ints) -> None:
        """As ``ItemAccumulator.keep``."""
        self._index.keep(ids)

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        super().compact(kept)
        self._index.move(kept)
        self._counts = self._counts[kept]
