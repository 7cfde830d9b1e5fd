"""Running ``arg_min`` and ``arg_max``. Importing this module loads numba."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from millstream.engine.codes import (
    Bools,
    Form,
    Ints,
    byte_strings,
    form_of,
    order_array,
    order_bytes,
    order_codes,
    validity,
)
from millstream.operators import aggregate_kernels as kernels
from millstream.operators.accumulators import NO_TIMES, Accumulator
from millstream.operators.cells import ByteCells, cells_for, resized


class _Picks(Accumulator):
    """Keeps a value and what it was picked by; rows where one of the two is null do not count.

    State: value, by.
    """

    def __init__(self, type: pa.DataType, greatest: bool) -> None:
        self._values = cells_for(type)
        self._greatest = greatest
        self._best_row: Ints = np.empty(0, np.int64)

    @abstractmethod
    def _find(self, slots: Ints, by: pa.Array, valid: Bools, touched: Ints) -> int:
        """Find rows better than what slots hold, as ``kernels.find_extremes``."""

    @abstractmethod
    def _put(self, slots: Ints, by: pa.Array) -> None:
        """Set what some slots were picked by."""

    @abstractmethod
    def _by(self, slots: Ints) -> pa.Array:
        """Return what some slots were picked by."""

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        self._values.resize(slots)
        self._best_row = np.full(slots, -1)

    def update(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints) -> None:
        """As ``Accumulator.update``."""
        del times
        values, by = arguments
        valid = _both(validity(values), validity(by))
        touched = np.empty(len(slots), np.int64)
        touched = touched[: self._find(slots, by, valid, touched)]
        rows = pa.array(self._best_row[touched])
        self._values.put(touched, values.take(rows))
        self._put(touched, by.take(rows))
        self._best_row[touched] = -1

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``: the row that was picked is as good as the rows it was picked from."""
        self.update(slots, columns, NO_TIMES)

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``; the value's type."""
        return self._values.get(slots)

    def state(self, slots: Ints) -> list[pa.Array]:
        """As ``Accumulator.state``."""
        return [self._values.get(slots), self._by(slots)]

    def load(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.load``."""
        self._values.put(slots, columns[0])
        self._put(slots, columns[1])

    def clear(self, slots: Ints) -> None:
        """As ``Accumulator.clear``."""
        self._values.clear(slots)

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        self._values.compact(kept)
        self._best_row = np.full(len(kept), -1)


class _PicksByWord(_Picks):
    """By a type of which a value fits one int64."""

    def __init__(self, type: pa.DataType, by: pa.DataType, greatest: bool) -> None:
        super().__init__(type, greatest)
        self._by_type = by
        self._best: Ints = np.empty(0, np.int64)
        self._seen: Bools = np.empty(0, np.bool_)

    def _find(self, slots: Ints, by: pa.Array, valid: Bools, touched: Ints) -> int:
        codes = order_codes(by)
        return kernels.find_best(slots, codes, valid, self._greatest, self._best, self._seen, self._best_row, touched)

    def _put(self, slots: Ints, by: pa.Array) -> None:
        valid = validity(by)
        self._best[slots] = order_codes(by)
        self._seen[slots] = valid if len(valid) else True

    def _by(self, slots: Ints) -> pa.Array:
        return order_array(self._best[slots], self._seen[slots], self._by_type)

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        super().resize(slots)
        self._best = resized(self._best, slots)
        self._seen = resized(self._seen, slots, fill=False)

    def clear(self, slots: Ints) -> None:
        """As ``Accumulator.clear``."""
        super().clear(slots)
        self._seen[slots] = False

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        super().compact(kept)
        self._best, self._seen = self._best[kept], self._seen[kept]


class _PicksByBytes(_Picks):
    """By strings, binary or decimals."""

    def __init__(self, type: pa.DataType, by: pa.DataType, greatest: bool) -> None:
        super().__init__(type, greatest)
        self._cells = ByteCells(by)

    def _find(self, slots: Ints, by: pa.Array, valid: Bools, touched: Ints) -> int:
        offsets, data = byte_strings(order_bytes(by))
        held = self._cells
        return kernels.find_extremes(
            slots, offsets, data, valid, self._greatest, held.starts, held.sizes, held.heap, self._best_row, touched
        )

    def _put(self, slots: Ints, by: pa.Array) -> None:
        self._cells.put(slots, by)

    def _by(self, slots: Ints) -> pa.Array:
        return self._cells.get(slots)

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        super().resize(slots)
        self._cells.resize(slots)

    def clear(self, slots: Ints) -> None:
        """As ``Accumulator.clear``."""
        super().clear(slots)
        self._cells.clear(slots)

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        super().compact(kept)
        self._cells.compact(kept)


def _both(left: Bools, right: Bools) -> Bools:
    if len(left) and len(right):
        return left & right
    return left if len(left) else right


def picks(type: pa.DataType, by: pa.DataType, greatest: bool) -> Accumulator:
    """Return an accumulator for the value of a type in the row where ``by`` is least or greatest."""
    form = form_of(by, "by= of arg_min or arg_max")
    return (_PicksByWord if form is Form.FIXED else _PicksByBytes)(type, by, greatest)
