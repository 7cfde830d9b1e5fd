"""What aggregates keep while they run: plain arrays with one element per slot. Importing this module loads numba."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from millstream.engine.codes import (
    NO_MASK,
    Bools,
    Form,
    Ints,
    byte_strings,
    fixed_array,
    fixed_codes,
    form_of,
    order_array,
    order_bytes,
    order_codes,
    validity,
)
from millstream.engine.errors import DataError
from millstream.operators import aggregate_kernels as kernels
from millstream.operators.cells import ByteCells, cells_for, resized
from millstream.operators.event_time import TIME_TYPE, event_times

Floats = npt.NDArray[np.float64]


_EXACT: Final = 2**53
"""Every whole number up to here is a float64."""

NO_TIMES: Final[Ints] = np.empty(0, np.int64)
"""For the ``update`` of accumulators that do not look at times."""

NO_WEIGHTS: Final[Ints] = np.empty(0, np.int64)
"""What kernels take for "every row counts once"."""


class Accumulator(ABC):
    """The running values of one aggregate, one per slot. ``resize`` comes before a slot's first use."""

    @abstractmethod
    def resize(self, slots: int) -> None:
        """Have room for slots 0..slots-1; new ones hold nothing."""

    @abstractmethod
    def update(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints) -> None:
        """Take rows in.

        Args:
            slots: int64, shape (n,): the slot of each row.
            arguments: the arguments of the aggregate, each an array of shape (n,).
            times: event times, int64 microseconds, shape (n,).
        """

    @abstractmethod
    def result(self, slots: Ints) -> pa.Array:
        """Return the aggregate's value for some slots. Raises DataError on overflow."""

    @abstractmethod
    def state(self, slots: Ints) -> list[pa.Array]:
        """Return the state columns for some slots, as the spec declares them."""

    @abstractmethod
    def load(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """Set slots, all different, to what ``state`` once returned."""

    @abstractmethod
    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """Add to slots, which may be named repeatedly, what ``state`` once returned, in this order."""

    def absorb(self, other: Self, slots: Ints, into: Ints) -> None:
        """Merge some slots of another accumulator, in this order, into one's own."""
        self.merge(into, other.state(slots))

    @abstractmethod
    def clear(self, slots: Ints) -> None:
        """Have slots hold nothing again."""

    @abstractmethod
    def compact(self, kept: Ints) -> None:
        """Keep the slots ``kept`` (ascending), which become 0..n-1."""


class Retractable(Accumulator):
    """An accumulator of which rows can be taken back: what it holds follows from the sum of the weights of each row."""

    @abstractmethod
    def apply(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints, weights: Ints) -> None:
        """As ``update``, with the weight of each row: int64, shape (n,), or NO_WEIGHTS."""

    def update(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints) -> None:
        """As ``Accumulator.update``."""
        self.apply(slots, arguments, times, NO_WEIGHTS)


class NumberAccumulator(Retractable):
    """Keeps int64 and float64 numbers, 0 at first: an array for each column of its state.

    Args:
        types: of the columns.
    """

    def __init__(self, *types: type[np.int64 | np.float64]) -> None:
        self.numbers: list[npt.NDArray[Any]] = [np.empty(0, type) for type in types]

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        self.numbers = [resized(column, slots) for column in self.numbers]

    def state(self, slots: Ints) -> list[pa.Array]:
        """As ``Accumulator.state``."""
        return [pa.array(column[slots]) for column in self.numbers]

    def load(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.load``."""
        for own, column in zip(self.numbers, columns, strict=True):
            own[slots] = fixed_codes(column).view(own.dtype)

    def clear(self, slots: Ints) -> None:
        """As ``Accumulator.clear``."""
        for column in self.numbers:
            column[slots] = 0

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        self.numbers = [column[kept] for column in self.numbers]


class CountAccumulator(NumberAccumulator):
    """Counts rows, or values that are not null. State: count."""

    def __init__(self) -> None:
        super().__init__(np.int64)

    def apply(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints, weights: Ints) -> None:
        """As ``Retractable.apply``."""
        del times
        valid = validity(arguments[0]) if arguments else NO_MASK
        kernels.add_count(slots, valid, weights, *self.numbers)

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``."""
        np.add.at(self.numbers[0], slots, fixed_codes(columns[0]))

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``; int64."""
        return pa.array(self.numbers[0][slots])


class IntSum(NumberAccumulator):
    """Adds integers exactly; the sum may pass beyond int64 on its way, but must be back at the end.

    State: sum, overflow (how many times 2**64 come on top), count.

    Args:
        mean: give the mean (float64) instead of the sum (int64).
        what: names the aggregate, for the error.
    """

    def __init__(self, mean: bool, what: str) -> None:
        self._mean = mean
        self._what = what
        super().__init__(np.int64, np.int64, np.int64)

    def apply(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints, weights: Ints) -> None:
        """As ``Retractable.apply``."""
        del times
        (values,) = arguments
        valid = validity(values)
        if pa.types.is_uint64(values.type):
            # Half of uint64 does not fit int64: what wraps there counts as one wrap more.
            codes = fixed_codes(values)
            kernels.add_ints(slots, codes, valid, weights, *self.numbers)
            beyond = (codes < 0) & valid if len(valid) else codes < 0
            np.add.at(self.numbers[1], slots[beyond], weights[beyond] if len(weights) else 1)
        else:
            kernels.add_ints(slots, fixed_codes(values), valid, weights, *self.numbers)

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``."""
        sums, wraps, counts = map(fixed_codes, columns)
        kernels.add_ints(slots, sums, NO_MASK, NO_WEIGHTS, *self.numbers)
        np.add.at(self.numbers[1], slots, wraps)
        np.add.at(self.numbers[2], slots, counts - 1)  # a sum was counted as one value

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``."""
        sums, wraps, counts = (column[slots] for column in self.numbers)
        if self._mean:
            return pa.array(int_means(sums, wraps, counts), mask=counts == 0)
        if bool(wraps.any()):
            at = int(np.flatnonzero(wraps)[0])
            total = int(wraps[at]) * 2**64 + int(sums[at])
            raise DataError(
                f"{self._what}: the sum of a group is {total}, which int64 cannot hold. "
                "Sum a wider type instead: cast the column to decimal or float64 first"
            )
        return fixed_array(sums, counts > 0, pa.int64())


def int_means(sums: Ints, wraps: Ints, counts: Ints) -> Floats:
    """Divide ``wraps * 2**64 + sums`` by counts, correctly rounded."""
    counts = np.maximum(counts, 1)
    means = sums / counts
    # A total beyond 2**53 has no float of its own: Python's integers divide without one.
    for i in np.flatnonzero((wraps != 0) | (sums > _EXACT) | (sums < -_EXACT)):
        means[i] = (int(wraps[i]) * 2**64 + int(sums[i])) / int(counts[i])
    return means


class Extremes(Accumulator):
    """Keeps the least or greatest value of each slot; nulls do not count, NaN is the greatest number."""

    def __init__(self, type: pa.DataType, greatest: bool) -> None:
        self._type = type
        self._greatest = greatest
        self._best: Ints = np.empty(0, np.int64)
        self._seen: Bools = np.empty(0, np.bool_)

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        self._best = resized(self._best, slots)
        self._seen = resized(self._seen, slots, fill=False)

    def update(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints) -> None:
        """As ``Accumulator.update``."""
        del times
        (values,) = arguments
        codes, valid = order_codes(values), validity(values)
        kernels.keep_extremes(slots, codes, valid, self._greatest, self._best, self._seen)

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``: a value is as good as the rows it came from."""
        self.update(slots, columns, NO_TIMES)

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``; the argument's type."""
        return order_array(self._best[slots], self._seen[slots], self._type)

    def state(self, slots: Ints) -> list[pa.Array]:
        """As ``Accumulator.state``: the value."""
        return [self.result(slots)]

    def load(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.load``."""
        valid = validity(columns[0])
        self._best[slots] = order_codes(columns[0])
        self._seen[slots] = valid if len(valid) else True

    def clear(self, slots: Ints) -> None:
        """As ``Accumulator.clear``."""
        self._seen[slots] = False

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        self._best, self._seen = self._best[kept], self._seen[kept]


class ByteExtremes(Accumulator):
    """As ``Extremes``, for strings, binary and decimals."""

    def __init__(self, type: pa.DataType, greatest: bool) -> None:
        self._greatest = greatest
        self._cells = ByteCells(type)
        self._best_row: Ints = np.empty(0, np.int64)

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        self._cells.resize(slots)
        self._best_row = np.full(slots, -1)

    def update(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints) -> None:
        """As ``Accumulator.update``."""
        del times
        (values,) = arguments
        cells, touched = self._cells, np.empty(len(slots), np.int64)
        offsets, data = byte_strings(order_bytes(values))
        count = kernels.find_extremes(
            slots,
            offsets,
            data,
            validity(values),
            self._greatest,
            cells.starts,
            cells.sizes,
            cells.heap,
            self._best_row,
            touched,
        )
        touched = touched[:count]
        cells.put(touched, values.take(pa.array(self._best_row[touched])))
        self._best_row[touched] = -1

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``: a value is as good as the rows it came from."""
        self.update(slots, columns, NO_TIMES)

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``; the argument's type."""
        return self._cells.get(slots)

    def state(self, slots: Ints) -> list[pa.Array]:
        """As ``Accumulator.state``: the value."""
        return [self._cells.get(slots)]

    def load(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.load``."""
        self._cells.put(slots, columns[0])

    def clear(self, slots: Ints) -> None:
        """As ``Accumulator.clear``."""
        self._cells.clear(slots)

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        self._cells.compact(kept)
        self._best_row = np.full(len(kept), -1)


class Edges(Accumulator):
    """Keeps the value (null too) of the first or last row in time of each slot."""

    def __init__(self, type: pa.DataType, last: bool) -> None:
        self._last = last
        self._cells = cells_for(type)
        self._times: Ints = np.empty(0, np.int64)
        self._seen: Bools = np.empty(0, np.bool_)
        self._best_row: Ints = np.empty(0, np.int64)

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        self._cells.resize(slots)
        self._times = resized(self._times, slots)
        self._seen = resized(self._seen, slots, fill=False)
        self._best_row = np.full(slots, -1)

    def update(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints) -> None:
        """As ``Accumulator.update``."""
        (values,) = arguments
        touched = np.empty(len(slots), np.int64)
        count = kernels.find_edges(slots, times, self._last, self._times, self._seen, self._best_row, touched)
        touched = touched[:count]
        self._cells.put(touched, values.take(pa.array(self._best_row[touched])))
        self._best_row[touched] = -1

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``."""
        values, times = columns
        seen = times.is_valid()
        rows = seen.to_numpy(zero_copy_only=False)
        self.update(slots[rows], [values.filter(seen)], event_times(times)[0][rows])

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``; the argument's type."""
        return self._cells.get(slots)

    def state(self, slots: Ints) -> list[pa.Array]:
        """As ``Accumulator.state``: value, time."""
        return [self._cells.get(slots), fixed_array(self._times[slots], self._seen[slots], TIME_TYPE)]

    def load(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.load``."""
        self._cells.put(slots, columns[0])
        times, valid = event_times(columns[1])
        self._times[slots] = times
        self._seen[slots] = valid if len(valid) else True

    def clear(self, slots: Ints) -> None:
        """As ``Accumulator.clear``."""
        self._cells.clear(slots)
        self._seen[slots] = False

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        self._cells.compact(kept)
        self._times, self._seen = self._times[kept], self._seen[kept]
        self._best_row = np.full(len(kept), -1)


def extremes(type: pa.DataType, greatest: bool) -> Accumulator:
    """Return an accumulator for the least or greatest value of a type."""
    if form_of(type, "the argument of min or max") is Form.FIXED:
        return Extremes(type, greatest)
    return ByteExtremes(type, greatest)
