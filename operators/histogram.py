"""Quantiles from histograms with buckets of equal relative width. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.codes import NO_MASK, Ints, fixed_codes, order_array, order_codes, validity
from millstream.operators import sketch_kernels as kernels
from millstream.operators.accumulators import Floats
from millstream.operators.cells import resized
from millstream.operators.items import ItemAccumulator, ItemIndex

_WIDTH: Final = np.int64(52 - 7)
"""A bucket holds the floats that are equal but for so many bits: 128 of them for each power of 2."""


class Histogram(ItemAccumulator):
    """Counts values in buckets, and keeps the least and greatest of each bucket.

    The sketch of Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error
    guarantees" (2019), with buckets cut as by Tene's HdrHistogram: by the leading bits of the number itself, which
    order as numbers do, zero, negative and infinite ones and NaN included. Two are merged bucket by bucket.

    Items: bucket, count, low, high.

    Args:
        shares: which quantiles to give.
        type: of the result: float64 or a duration, or a list of these.
    """

    def __init__(self, shares: Sequence[float], type: pa.DataType) -> None:
        self._shares = np.array(shares)
        self._type = type
        self._index = ItemIndex(pa.int64())
        # By item. The extremes are codes that order as the values do.
        self._counts: Ints = np.empty(0, np.int64)
        self._lows: Ints = np.empty(0, np.int64)
        self._highs: Ints = np.empty(0, np.int64)

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        super().resize(slots)
        self._index.resize(slots)

    def update(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints) -> None:
        """As ``Accumulator.update``."""
        del times
        (values,) = arguments
        valid = validity(values)
        if len(valid):
            slots, values = slots[valid], values.drop_null()
        codes = order_codes(pa.array(float_values(values)))
        ids = self._buckets(slots, pa.array(codes >> _WIDTH))
        kernels.fill_buckets(ids, codes, self._counts, self._lows, self._highs)

    def _buckets(self, slots: Ints, names: pa.Array) -> Ints:
        """Return the items that are about to change; those that are new begin."""
        ids, new = self._index.find(slots, [names])
        self.items.add(new)
        self.items.touch(ids)
        self._make_room()
        return ids

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``, of what ``columns`` returned."""
        buckets, counts, lows, highs = columns
        ids = self._buckets(slots, buckets)
        more = fixed_codes(counts), order_codes(lows), order_codes(highs)
        kernels.merge_buckets(ids, *more, self._counts, self._lows, self._highs)

    def _make_room(self) -> None:
        if self.items.count > len(self._counts):
            capacity = max(2 * len(self._counts), self.items.count)
            self._counts = resized(self._counts, capacity)
            self._lows = resized(self._lows, capacity)
            self._highs = resized(self._highs, capacity)

    def take_back(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``ItemAccumulator.take_back``."""
        buckets, counts, lows, highs = columns
        ids, new = self._index.find(slots, [buckets])
        self.items.add_stored(new)
        self._make_room()
        self._counts[ids] = fixed_codes(counts)
        self._lows[ids] = order_codes(lows)
        self._highs[ids] = order_codes(highs)

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``; null for no value."""
        ids, groups = self.items.of(slots)
        order = np.lexsort([self._lows[ids], groups])
        ids = ids[order]
        starts = np.searchsorted(groups[order], np.arange(len(slots) + 1))
        _, counts, lows, highs = self._columns(ids)
        return quantiles(starts, counts, lows, highs, self._shares, self._type)

    def _columns(self, ids: Ints) -> tuple[pa.Array, Ints, Floats, Floats]:
        lows = order_array(self._lows[ids], NO_MASK, pa.float64())
        highs = order_array(self._highs[ids], NO_MASK, pa.float64())
        return self._index.names(ids)[0], self._counts[ids], lows.to_numpy(), highs.to_numpy()

    def columns(self, ids: Ints) -> list[pa.Array]:
        """As ``ItemAccumulator.columns``."""
        buckets, *numbers = self._columns(ids)
        return [buckets, *map(pa.array, numbers)]

    def names(self, ids: Ints) -> list[pa.Array]:
        """As ``ItemAccumulator.names``."""
        return self._index.names(ids)

    def keep(self, ids: Ints) -> None:
        """As ``ItemAccumulator.keep``."""
        self._index.keep(ids)
        self._counts, self._lows, self._highs = self._counts[ids], self._lows[ids], self._highs[ids]

    def clear(self, slots: Ints) -> None:
        """As ``Accumulator.clear``."""
        self._index.leave(slots)

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        super().compact(kept)
        self._index.move(kept)


def quantiles(starts: Ints, counts: Ints, lows: Floats, highs: Floats, shares: Floats, type: pa.DataType) -> pa.Array:
    """Return the quantiles of groups of buckets, null for groups without any: see ``sketch_kernels.find_quantiles``.

    Args:
        type: of the result: float64 or a duration, or a list of these, one for each of the ``shares``.
    """
    groups = len(starts) - 1
    found = np.zeros((groups, len(shares)), np.float64)
    kernels.find_quantiles(starts, counts, lows, highs, shares, found)
    single = type.value_type if pa.types.is_list(type) else type
    values = pa.array(found.reshape(-1))
    if pa.types.is_duration(single):
        values = pa.array(np.rint(found.reshape(-1)).astype(np.int64)).view(single)
    none = pa.array(np.diff(starts) == 0)
    if single is type:
        return pc.if_else(none, pa.scalar(None, type), values)
    ends = np.arange(groups + 1, dtype=np.int32) * len(shares)
    return pa.ListArray.from_arrays(pa.array(ends), values, mask=none)


def float_values(values: pa.Array) -> Floats:
    """Return numbers or durations that are not null as float64."""
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    codes = fixed_codes(values)
    if pa.types.is_floating(values.type):
        return codes.view(np.float64)
    return (codes.view(np.uint64) if pa.types.is_uint64(values.type) else codes).astype(np.float64)
