"""Aggregates that can take any value back, since they keep the values with their weights. Importing loads numba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.codes import NO_MASK, Bools, Form, Ints, fixed_codes, form_of, order_bytes, order_codes, validity
from millstream.operators import aggregate_kernels as kernels
from millstream.operators.accumulators import Retractable
from millstream.operators.cells import resized
from millstream.operators.event_time import TIME_TYPE, time_array
from millstream.operators.histogram import float_values, quantiles
from millstream.operators.items import ItemAccumulator, ItemIndex

_FIRST_CAPACITY: Final = 1_024
_NONE: Final = -1
_UNKNOWN: Final = -2


class Multiset(ItemAccumulator, Retractable):
    """Keeps what it has seen and how often. A value whose weights sum to 0 is gone; one below 0 waits for its rows.

    Items: the values, in the order in which they are compared, and the weight.

    Args:
        types: of the values.
        nulls: whether rows in which a value is null count too.
    """

    def __init__(self, types: Sequence[pa.DataType], *, nulls: bool = False) -> None:
        self._types = tuple(types)
        self._nulls = nulls
        self._index = ItemIndex(*types)
        self._weights: Ints = np.empty(0, np.int64)  # by item
        self._seen: Bools = np.empty(0, np.bool_)  # by item, for list_first_rows

    def _values(self, arguments: Sequence[pa.Array], times: Ints) -> list[pa.Array]:
        """Return the values of rows."""
        del times
        return list(arguments)

    def _changed(self, ids: Ints, slots: Ints, before: Ints) -> None:
        """The weights of these items, all different, were ``before``."""

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        super().resize(slots)
        self._index.resize(slots)

    def apply(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints, weights: Ints) -> None:
        """As ``Retractable.apply``."""
        values = self._values(arguments, times)
        masks = [mask for mask in map(validity, values) if len(mask)]
        if masks and not self._nulls:
            rows = np.flatnonzero(np.logical_and.reduce(masks))
            slots, values = slots[rows], [value.take(pa.array(rows)) for value in values]
            weights = weights[rows] if len(weights) else weights
        if len(slots):
            self._add(slots, values, weights)

    def _add(self, slots: Ints, values: Sequence[pa.Array], weights: Ints) -> None:
        known = self.items.count
        ids, new = self._index.find(slots, values)
        self.items.add(new)
        self._make_room()
        rows = np.empty(len(ids), np.int64)
        rows = rows[: kernels.list_first_rows(ids, self._seen, rows)]
        touched, slot_of = ids[rows], slots[rows]
        before = self._weights[touched]
        kernels.add_count(ids, NO_MASK, weights, self._weights)
        now = self._weights[touched]
        returned = (before == 0) & (now != 0) & (touched < known)
        self.items.put_back(touched[returned], slot_of[returned])
        self.items.touch(touched[now != 0])
        self._changed(touched, slot_of, before)
        self.items.take_out(touched[(now == 0) & ((before != 0) | (touched >= known))])
        self.collect_garbage()

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``, of what ``columns`` returned."""
        *values, weights = columns
        self._add(slots, values, fixed_codes(weights))

    def take_back(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``ItemAccumulator.take_back``."""
        *values, weights = columns
        ids, new = self._index.find(slots, values)
        self.items.add_stored(new)
        self._make_room()
        self._weights[ids] = fixed_codes(weights)
        self._changed(ids, slots, np.zeros(len(ids), np.int64))

    def _make_room(self) -> None:
        if self.items.count > len(self._weights):
            capacity = max(_FIRST_CAPACITY, 2 * len(self._weights), self.items.count)
            self._weights = resized(self._weights, capacity)
            self._seen = resized(self._seen, capacity, fill=False)

    def _present(self, slots: Ints) -> tuple[Ints, Ints]:
        """Return the items there are of some slots, and of each where its slot stands; slot by slot."""
        ids, groups = self.items.of(slots)
        there = self._weights[ids] > 0
        return ids[there], groups[there]

    def columns(self, ids: Ints) -> list[pa.Array]:
        """As ``ItemAccumulator.columns``."""
        return [*self._index.names(ids), pa.array(self._weights[ids])]

    def names(self, ids: Ints) -> list[pa.Array]:
        """As ``ItemAccumulator.names``."""
        return self._index.names(ids)

    def keep(self, ids: Ints) -> None:
        """As ``ItemAccumulator.keep``."""
        self._index.keep(ids)
        self._weights, self._seen = self._weights[ids], self._seen[ids]

    def clear(self, slots: Ints) -> None:
        """As ``Accumulator.clear``; ``drop`` has taken the items."""
        self._index.leave(slots)

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        super().compact(kept)
        self._index.move(kept)

    def _order(self, ids: Ints, groups: Ints, falling: bool) -> Ints:
        """Return how to put items in order: by group, then by their values, nulls last.

        Args:
            falling: of the first values the greatest comes first.
        """
        columns = [pa.array(groups)]
        for values in self._index.names(ids):
            fixed = form_of(values.type, "a value") is Form.FIXED
            valid = validity(values)
            codes = pa.array(order_codes(values), mask=~valid if len(valid) else None) if fixed else order_bytes(values)
            columns.append(codes)
        names = [str(number) for number in range(len(columns))]
        ways = ["ascending", "descending" if falling else "ascending", *["ascending"] * (len(columns) - 2)]
        table = pa.table(columns, names=names)
        order = pc.sort_indices(table, sort_keys=list(zip(names, ways, strict=True)))
        return np.asarray(order.to_numpy(), np.int64)


class DistinctMultiset(Multiset):
    """Counts different values."""

    def __init__(self, type: pa.DataType) -> None:
        super().__init__([type])
        self._counts: Ints = np.empty(0, np.int64)

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        super().resize(slots)
        self._counts = resized(self._counts, slots)

    def _changed(self, ids: Ints, slots: Ints, before: Ints) -> None:
        there = self._weights[ids] > 0
        kernels.add_count(slots, NO_MASK, there.astype(np.int64) - (before > 0), self._counts)

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``; int64."""
        return pa.array(self._counts[slots])

    def clear(self, slots: Ints) -> None:
        """As ``Accumulator.clear``."""
        super().clear(slots)
        self._counts[slots] = 0

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        super().compact(kept)
        self._counts = self._counts[kept]


class BestOfMultiset(Multiset):
    """Gives a value of the item that comes first; of equal ones by the first value, the least by the others.

    Args:
        types: of the values by which items are compared, the most important first.
        greatest: the greatest comes first.
        shown: which of the values it gives.
    """

    def __init__(self, types: Sequence[pa.DataType], *, greatest: bool, shown: int = 0, nulls: bool = False) -> None:
        super().__init__(types, nulls=nulls)
        self._greatest = greatest
        self._shown = shown
        self._best: Ints = np.empty(0, np.int64)  # by slot

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        super().resize(slots)
        self._best = resized(self._best, slots, fill=_NONE)

    def _changed(self, ids: Ints, slots: Ints, before: Ints) -> None:
        there = self._weights[ids] > 0
        gone = slots[~there]
        self._best[gone[self._best[gone] == ids[~there]]] = _UNKNOWN
        rising = there & (before <= 0) & (self._best[slots] != _UNKNOWN)
        if not bool(rising.any()):
            return
        held = np.unique(slots[rising])
        held = held[self._best[held] >= 0]
        self._choose(np.concatenate([self._best[held], ids[rising]]), np.concatenate([held, slots[rising]]))

    def _choose(self, ids: Ints, slots: Ints) -> None:
        """Set the best item of slots to the best of these."""
        order = self._order(ids, slots, self._greatest)
        slots = slots[order]
        first = np.ones(len(slots), np.bool_)
        first[1:] = slots[1:] != slots[:-1]
        self._best[slots[first]] = ids[order][first]

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``; the type of the value shown."""
        unknown = slots[self._best[slots] == _UNKNOWN]
        if len(unknown):
            self._best[unknown] = _NONE
            ids, groups = self._present(unknown)
            self._choose(ids, unknown[groups])
        best = self._best[slots]
        held = best >= 0
        values = self._index.names(best[held])[self._shown]
        return values if bool(held.all()) else values.take(pa.array(np.cumsum(held) - 1, mask=~held))

    def keep(self, ids: Ints) -> None:
        """As ``ItemAccumulator.keep``."""
        moved = np.full(len(self._weights), _UNKNOWN)
        super().keep(ids)
        moved[ids] = np.arange(len(ids))
        held = self._best >= 0
        self._best[held] = moved[self._best[held]]

    def clear(self, slots: Ints) -> None:
        """As ``Accumulator.clear``."""
        super().clear(slots)
        self._best[slots] = _NONE

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        super().compact(kept)
        self._best = self._best[kept]


class EdgeMultiset(BestOfMultiset):
    """Gives the value of the first or last row in time. Items: time, value, weight."""

    def __init__(self, type: pa.DataType, *, last: bool) -> None:
        super().__init__([TIME_TYPE, type], greatest=last, shown=1, nulls=True)

    def _values(self, arguments: Sequence[pa.Array], times: Ints) -> list[pa.Array]:
        return [time_array(times), *arguments]


class PickMultiset(BestOfMultiset):
    """Gives the value of the row that is least or greatest in something else. Items: by, value, weight."""

    def __init__(self, type: pa.DataType, by: pa.DataType, *, greatest: bool) -> None:
        super().__init__([by, type], greatest=greatest, shown=1)

    def _values(self, arguments: Sequence[pa.Array], times: Ints) -> list[pa.Array]:
        del times
        return [arguments[1], arguments[0]]


class SortedMultiset(Multiset):
    """Gives all values in a list, the least first and nulls last.

    Args:
        limit: how many; None: all.
    """

    def __init__(self, type: pa.DataType, limit: int | None) -> None:
        super().__init__([type], nulls=True)
        self._limit = limit

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``; lists, null for no row."""
        ids, groups = self._present(slots)
        order = self._order(ids, groups, falling=False)
        ids, groups = ids[order], groups[order]
        counts = np.zeros(len(slots), np.int64)
        rows = np.repeat(np.arange(len(ids)), self._weights[ids])
        if self._limit is not None:
            numbers = np.arange(len(rows)) - np.searchsorted(groups[rows], groups[rows])
            rows = rows[numbers < self._limit]
        np.add.at(counts, groups[rows], 1)
        ends = np.zeros(len(slots) + 1, np.int32)
        np.cumsum(counts, out=ends[1:])
        none = counts == 0
        values = self._index.names(ids)[0].take(pa.array(rows))
        return pa.ListArray.from_arrays(pa.array(ends), values, mask=pa.array(none) if bool(none.any()) else None)


class QuantileMultiset(Multiset):
    """Gives quantiles, exactly. Items: value, as float64, weight.

    Args:
        shares: which quantiles to give.
        type: of the result: float64 or a duration, or a list of these.
    """

    def __init__(self, shares: Sequence[float], type: pa.DataType) -> None:
        super().__init__([pa.float64()])
        self._shares = np.array(shares)
        self._type = type

    def _values(self, arguments: Sequence[pa.Array], times: Ints) -> list[pa.Array]:
        del times
        (values,) = arguments
        valid = validity(values)
        if not len(valid):
            return [pa.array(float_values(values))]
        floats = np.zeros(len(values))
        floats[valid] = float_values(values.drop_null())
        return [pa.array(floats, mask=~valid)]

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``; null for no value."""
        ids, groups = self._present(slots)
        order = self._order(ids, groups, falling=False)
        ids = ids[order]
        starts = np.searchsorted(groups[order], np.arange(len(slots) + 1))
        values = self._index.names(ids)[0].to_numpy()
        return quantiles(starts, self._weights[ids], values, values, self._shares, self._type)
