"""One value of any type, or null, per slot: plain arrays for what fits a machine word, a byte heap for the rest.

Importing this module loads numba.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from millstream.engine.codes import (
    Bools,
    Bytes,
    Form,
    Ints,
    byte_strings,
    fixed_array,
    fixed_codes,
    form_of,
    has_form,
    order_bytes,
    ordered_bytes_array,
    validity,
)
from millstream.operators import aggregate_kernels as kernels
from millstream.operators.rows import Rows

_MIN_GARBAGE: Final = 65_536

_A = TypeVar("_A", bound=np.generic)


def resized(array: npt.NDArray[_A], size: int, fill: Any = 0) -> npt.NDArray[_A]:
    """Return the array with ``size`` elements: cut off, or filled up with ``fill``."""
    out = np.full(size, fill, array.dtype)
    kept = min(size, len(array))
    out[:kept] = array[:kept]
    return out


class Cells(ABC):
    """One value or null per slot; ``resize`` before a slot is used."""

    @abstractmethod
    def resize(self, slots: int) -> None:
        """Have room for slots 0..slots-1; new ones are null."""

    @abstractmethod
    def put(self, slots: Ints, values: pa.Array) -> None:
        """Set slots, all different, to values, shape (n,)."""

    @abstractmethod
    def get(self, slots: Ints) -> pa.Array:
        """Return the values of slots."""

    @abstractmethod
    def clear(self, slots: Ints) -> None:
        """Set slots, all different, to null."""

    @abstractmethod
    def compact(self, kept: Ints) -> None:
        """Keep the slots ``kept`` (ascending), which become 0..n-1."""


def cells_for(type: pa.DataType) -> FixedCells | ByteCells | RowCells:
    """Return empty cells for values of a type.

    >>> cells = cells_for(pa.string())
    >>> cells.resize(2)
    >>> cells.put(np.array([1]), pa.array(["x"]))
    >>> cells.get(np.array([0, 1])).to_pylist()
    [None, 'x']
    """
    if not has_form(type):
        return RowCells(type)
    return FixedCells(type) if form_of(type, "a value to keep") is Form.FIXED else ByteCells(type)


class FixedCells(Cells):
    """Cells for types of which a value fits one int64."""

    def __init__(self, type: pa.DataType) -> None:
        self._type = type
        self.codes: Ints = np.empty(0, np.int64)
        self.valid: Bools = np.empty(0, np.bool_)

    def resize(self, slots: int) -> None:
        """As ``Cells.resize``."""
        self.codes = resized(self.codes, slots)
        self.valid = resized(self.valid, slots, fill=False)

    def put(self, slots: Ints, values: pa.Array) -> None:
        """As ``Cells.put``."""
        valid = validity(values)
        self.codes[slots] = fixed_codes(values)
        self.valid[slots] = valid if len(valid) else True

    def get(self, slots: Ints) -> pa.Array:
        """As ``Cells.get``."""
        return fixed_array(self.codes[slots], self.valid[slots], self._type)

    def clear(self, slots: Ints) -> None:
        """As ``Cells.clear``."""
        self.valid[slots] = False

    def compact(self, kept: Ints) -> None:
        """As ``Cells.compact``."""
        self.codes = self.codes[kept]
        self.valid = self.valid[kept]


class ByteCells(Cells):
    """Cells for byte strings, kept as ``order_bytes``; replaced ones stay in the heap until half of it is garbage."""

    def __init__(self, type: pa.DataType) -> None:
        self._type = type
        self.starts: Ints = np.empty(0, np.int64)
        self.sizes: Ints = np.empty(0, np.int64)
        self.heap: Bytes = np.empty(4_096, np.uint8)
        self._used = 0
        self._live = 0

    def resize(self, slots: int) -> None:
        """As ``Cells.resize``."""
        self.starts = resized(self.starts, slots)
        self.sizes = resized(self.sizes, slots, fill=-1)

    def put(self, slots: Ints, values: pa.Array) -> None:
        """As ``Cells.put``."""
        encoded = order_bytes(values)
        offsets, data = byte_strings(encoded)
        valid = validity(encoded)
        sizes = np.diff(offsets)
        if len(valid):
            slots_set = slots[valid]
            self._live -= _total(self.sizes[slots[~valid]])
            self.sizes[slots[~valid]] = -1
            self._put(slots_set, *byte_strings(encoded.filter(pa.array(valid))), sizes[valid])
        else:
            self._put(slots, offsets, data, sizes)

    def _put(self, slots: Ints, offsets: Ints, data: Bytes, sizes: Ints) -> None:
        added = int(sizes.sum())
        self._live += added - _total(self.sizes[slots])
        if self._used + added > len(self.heap):
            self.heap = resized(self.heap, max(2 * len(self.heap), self._used + added))
        starts = self._used + np.cumsum(sizes) - sizes
        kernels.copy_strings(offsets, data, starts, self.heap)
        self.starts[slots] = starts
        self.sizes[slots] = sizes
        self._used += added
        if self._used > 2 * self._live + _MIN_GARBAGE:
            self._collect()

    def get(self, slots: Ints) -> pa.Array:
        """As ``Cells.get``."""
        ends, data = self._gather(slots)
        valid = self.sizes[slots] >= 0
        bitmap = None if bool(valid.all()) else pa.array(valid).buffers()[1]
        parts = [bitmap, pa.py_buffer(ends), pa.py_buffer(data)]
        return ordered_bytes_array(pa.Array.from_buffers(pa.large_binary(), len(slots), parts), self._type)

    def clear(self, slots: Ints) -> None:
        """As ``Cells.clear``."""
        self._live -= _total(self.sizes[slots])
        self.sizes[slots] = -1

    def compact(self, kept: Ints) -> None:
        """As ``Cells.compact``."""
        self.starts = self.starts[kept]
        self.sizes = self.sizes[kept]
        self._collect()

    def _gather(self, slots: Ints) -> tuple[Ints, Bytes]:
        ends = np.zeros(len(slots) + 1, np.int64)
        np.cumsum(np.maximum(self.sizes[slots], 0), out=ends[1:])
        data = np.empty(int(ends[-1]), np.uint8)
        kernels.gather_strings(self.starts[slots], ends, self.heap, data)
        return ends, data

    def _collect(self) -> None:
        """Rewrite the heap without what has been replaced."""
        ends, data = self._gather(np.arange(len(self.sizes)))
        self.starts = np.ascontiguousarray(ends[:-1])
        self._used = self._live = len(data)
        self.heap = resized(data, max(4_096, 2 * len(data)))


class RowCells(Cells):
    """Cells for any other type, lists and structs: Arrow rows; replaced ones stay until half of them are garbage."""

    def __init__(self, type: pa.DataType) -> None:
        self._schema = pa.schema([pa.field("value", type)])
        self._rows = Rows(self._schema)
        self._row_of: Ints = np.empty(0, np.int64)
        self._live = 0

    def resize(self, slots: int) -> None:
        """As ``Cells.resize``."""
        self._row_of = resized(self._row_of, slots, fill=-1)

    def put(self, slots: Ints, values: pa.Array) -> None:
        """As ``Cells.put``."""
        first = len(self._rows)
        self._live += int((self._row_of[slots] < 0).sum())
        self._rows.append(pa.record_batch([values], schema=self._schema))
        self._row_of[slots] = np.arange(first, len(self._rows))
        if len(self._rows) > 2 * self._live + _MIN_GARBAGE:
            self._collect()

    def get(self, slots: Ints) -> pa.Array:
        """As ``Cells.get``."""
        rows = self._row_of[slots]
        held = rows >= 0
        values = self._rows.take(rows[held]).column(0)
        return values.take(pa.array(np.cumsum(held) - 1, mask=~held))

    def clear(self, slots: Ints) -> None:
        """As ``Cells.clear``."""
        self._live -= int((self._row_of[slots] >= 0).sum())
        self._row_of[slots] = -1

    def compact(self, kept: Ints) -> None:
        """As ``Cells.compact``."""
        self._row_of = self._row_of[kept]
        self._collect()

    def _collect(self) -> None:
        """Forget the rows that have been replaced."""
        slots = np.flatnonzero(self._row_of >= 0)
        slots = slots[np.argsort(self._row_of[slots])]
        self._rows.compact(self._row_of[slots])
        self._row_of[slots] = np.arange(len(slots))
        self._live = len(slots)


def _total(sizes: Ints) -> int:
    return int(np.maximum(sizes, 0).sum())
