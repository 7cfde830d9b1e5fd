"""Maps keys (rows of key columns) to slots 0..n-1, so that operators can keep their state in plain arrays.

Open addressing over int64 codes. Codes are the values themselves for numbers and times; byte strings are
interned first and stand for themselves by number. Nothing rests on hashes being different: codes are always
compared.
Importing this module loads numba.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from millstream.engine import kernels
from millstream.engine.codes import (
    NO_MASK,
    Bools,
    Bytes,
    Form,
    Ints,
    byte_strings,
    bytes_array,
    fixed_array,
    fixed_codes,
    form_of,
    validity,
)
from millstream.engine.errors import InternalError

_FIRST_CAPACITY: Final = 1_024
_MAX_SLOTS: Final = 2**32 - 2  # an entry of the table has 32 bits for the slot


class KeyIndex:
    """Gives every distinct key a slot, in the order in which keys come.

    Nulls are a key of their own; NaN equals NaN and -0.0 equals 0.0.

    Args:
        types: the types of the key columns. With none, every row has slot 0.

    Raises:
        SchemaError: a type cannot be a key (lists, structs, maps).

    >>> index = KeyIndex([pa.string(), pa.int64()])
    >>> index.slots([pa.array(["a", "b", "a", None]), pa.array([1, 1, 1, 1])]).tolist()
    [0, 1, 0, 2]
    >>> [column.to_pylist() for column in index.keys(np.array([2, 0]))]
    [[None, 'a'], [1, 1]]
    """

    def __init__(self, types: Sequence[pa.DataType]) -> None:
        if len(types) > 63:
            raise InternalError(f"a key has at most 63 columns, got {len(types)}")
        self.types: Final = tuple(types)
        forms = [form_of(type, f"key column {number}") for number, type in enumerate(types)]
        self._interners = [_Interner() if form is Form.BYTES else None for form in forms]
        # One more column of codes says which key columns are null; it appears with the first null.
        self._with_nulls = not types
        self._count = 0
        self._stored = np.empty((_FIRST_CAPACITY, max(1, len(types))), np.int64)
        self._table = _empty_table(_FIRST_CAPACITY)

    def __len__(self) -> int:
        return self._count

    def slots(self, arrays: Sequence[pa.Array], rows: int = 0) -> Ints:
        """Return the slot of each row, giving new keys the next free ones.

        Args:
            arrays: one array per key column, of the declared types and equal length.
            rows: how many rows there are if there are no key columns.

        Returns:
            int64, shape (rows,).
        """
        codes = self._codes(arrays, rows)
        out = np.empty(codes.shape[1], np.int64)
        row = 0
        while True:
            row, self._count = kernels.find_slots(codes, row, self._table, self._stored, self._count, out)
            if row == len(out):
                return out
            self._resize(2 * len(self._stored))

    def keys(self, slots: Ints | None = None) -> list[pa.Array]:
        """Return the key columns of some slots (of all, in order, if None), typed as declared."""
        codes = self._stored[: self._count] if slots is None else self._stored[slots]
        nulls = codes[:, -1] if self._with_nulls else None
        columns = []
        for number, (type, interner) in enumerate(zip(self.types, self._interners, strict=True)):
            column = np.ascontiguousarray(codes[:, number])
            null = None if nulls is None else (nulls >> number) & 1 != 0
            valid = ~null if null is not None and bool(null.any()) else NO_MASK
            if interner is None:
                columns.append(fixed_array(column, valid, type))
            else:
                columns.append(bytes_array(interner.values(column, valid), type))
        return columns

    def compact(self, keep: Bools) -> Ints:
        """Forget the slots where ``keep`` (shape (len,)) is false; the others move up, in their order.

        Returns:
            int64, shape (old length,): the new slot of each old one, -1 if it is gone.
        """
        if len(keep) != self._count:
            raise InternalError(f"compact: a mask of {len(keep)} for {self._count} slots")
        kept = np.flatnonzero(keep)
        moved = np.full(self._count, -1, np.int64)
        moved[kept] = np.arange(len(kept))
        stored = self._stored[kept]
        for number, interner in enumerate(self._interners):
            if interner is not None:
                present = stored[:, -1] >> number & 1 == 0 if self._with_nulls else slice(None)
                stored[present, number] = interner.compact(stored[present, number])
        capacity = _FIRST_CAPACITY
        while capacity < len(kept) * 2:
            capacity *= 2
        self._stored, self._count = stored, len(kept)
        self._resize(capacity)
        return moved

    def _codes(self, arrays: Sequence[pa.Array], rows: int) -> Ints:
        if len(arrays) != len(self.types):
            raise InternalError(f"expected {len(self.types)} key columns, got {len(arrays)}")
        rows = len(arrays[0]) if arrays else rows
        columns: list[Ints] = []
        nulls: Ints | None = None
        for number, (array, interner) in enumerate(zip(arrays, self._interners, strict=True)):
            valid = validity(array)
            codes = fixed_codes(array) if interner is None else interner.numbers(array, valid)
            if len(valid):
                codes = np.where(valid, codes, 0)
                nulls = np.zeros(rows, np.int64) if nulls is None else nulls
                nulls |= np.where(valid, 0, 1 << number)
            columns.append(codes)
        if nulls is not None and not self._with_nulls:
            self._widen()
        if self._with_nulls:
            columns.append(np.zeros(rows, np.int64) if nulls is None else nulls)
        return columns[0].reshape(1, rows) if len(columns) == 1 else np.stack(columns)

    def _widen(self) -> None:
        """Add the column of codes that says which key columns are null: so far none was."""
        self._with_nulls = True
        self._stored = np.hstack([self._stored, np.zeros((len(self._stored), 1), np.int64)])
        self._resize(len(self._stored))

    def _resize(self, capacity: int) -> None:
        if capacity > _MAX_SLOTS:
            raise InternalError(f"more than {_MAX_SLOTS // 2} keys in one subtask: raise the parallelism")
        stored = np.empty((capacity, self._stored.shape[1]), np.int64)
        stored[: self._count] = self._stored[: self._count]
        self._stored, self._table = stored, _empty_table(capacity)
        kernels.fill_table(self._table, self._stored, self._count)


class _Interner:
    """Numbers distinct byte strings 0..n-1 and keeps them, one after the other, in one buffer."""

    def __init__(self) -> None:
        self._clear(_FIRST_CAPACITY, 16 * _FIRST_CAPACITY)

    def _clear(self, capacity: int, size: int) -> None:
        self._count = 0
        self._ends = np.zeros(capacity + 1, np.int64)
        self._heap: Bytes = np.empty(size, np.uint8)
        self._table = _empty_table(capacity)

    def numbers(self, array: pa.Array, valid: Bools) -> Ints:
        """Return the number of each value, int64; what stands at nulls means nothing."""
        offsets, data = byte_strings(array)
        return self._numbers(offsets, data, valid)

    def _numbers(self, offsets: Ints, data: Bytes, valid: Bools) -> Ints:
        out = np.empty(len(offsets) - 1, np.int64)
        row = 0
        while True:
            row, self._count = kernels.find_strings(
                offsets, data, valid, row, self._table, self._ends, self._heap, self._count, out
            )
            if row == len(out):
                return out
            self._grow(int(offsets[row + 1] - offsets[row]))

    def _grow(self, size: int) -> None:
        used = int(self._ends[self._count])
        if used + size > len(self._heap):
            heap = np.empty(max(2 * len(self._heap), used + size), np.uint8)
            heap[:used] = self._heap[:used]
            self._heap = heap
        if self._count + 1 == len(self._ends):
            capacity = 2 * self._count
            self._ends = np.concatenate([self._ends, np.zeros(capacity + 1 - len(self._ends), np.int64)])
            self._table = _empty_table(capacity)
            kernels.fill_strings(self._table, self._ends, self._heap, self._count)

    def values(self, numbers: Ints, valid: Bools) -> pa.LargeBinaryArray:
        """Return the byte strings of some numbers, null where ``valid`` (or NO_MASK) is false."""
        parts = [None, pa.py_buffer(self._ends[: self._count + 1]), pa.py_buffer(self._heap)]
        held = pa.Array.from_buffers(pa.large_binary(), self._count, parts)
        return held.take(pa.array(numbers, mask=~valid if len(valid) else None))

    def compact(self, numbers: Ints) -> Ints:
        """Keep only the strings with these numbers; return their new numbers."""
        kept = np.unique(numbers)
        offsets, data = byte_strings(self.values(kept, NO_MASK))
        capacity = _FIRST_CAPACITY
        while capacity < 2 * len(kept):
            capacity *= 2
        self._clear(capacity, max(16 * capacity, 2 * int(offsets[-1])))
        self._numbers(offsets, data, NO_MASK)
        # They were put in in the order of their old numbers, so the new number is the rank.
        return np.searchsorted(kept, numbers)


def _empty_table(capacity: int) -> npt.NDArray[np.uint64]:
    """Twice as long as there are slots: probing stays short."""
    return np.zeros(2 * capacity, np.uint64)
