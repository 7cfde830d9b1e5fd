"""Exact sums of decimals: 192-bit integers in three arrays of words. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.codes import NO_MASK, Ints, byte_strings, fixed_codes, validity
from millstream.engine.errors import DataError
from millstream.operators import aggregate_kernels as kernels
from millstream.operators.accumulators import NO_WEIGHTS, Floats, Retractable
from millstream.operators.cells import resized

Words = npt.NDArray[np.uint64]

_LIMIT: Final = 10**38  # decimal128 holds what is nearer to zero
_SURELY_BELOW: Final = np.int64(_LIMIT // 2**64 - 2)
_CONTEXT: Final = Context(prec=80)


class DecimalSum(Retractable):
    """Adds decimals exactly; whatever the order of the rows, only the final sum must fit 38 digits.

    Args:
        scale: digits after the point, the argument's own.
        mean: give the mean (float64) instead of the sum (decimal128(38, scale)).
        what: names the aggregate, for the error.
    """

    def __init__(self, scale: int, mean: bool, what: str) -> None:
        self._scale = scale
        self._type = pa.decimal128(38, scale)
        self._mean = mean
        self._what = what
        self._low: Words = np.empty(0, np.uint64)
        self._middle: Words = np.empty(0, np.uint64)
        self._high: Ints = np.empty(0, np.int64)
        self._counts: Ints = np.empty(0, np.int64)

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        self._low = resized(self._low, slots)
        self._middle = resized(self._middle, slots)
        self._high = resized(self._high, slots)
        self._counts = resized(self._counts, slots)

    def apply(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints, weights: Ints) -> None:
        """As ``Retractable.apply``."""
        del times
        (values,) = arguments
        words = decimal_words(values)
        valid = validity(values)
        kernels.add_wide(slots, words, valid, weights, self._low, self._middle, self._high, self._counts)

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``."""
        counts = self._counts[slots]
        present = pa.array(counts > 0)
        if self._mean:
            means = self._floats(slots) / (np.maximum(counts, 1) * 10.0**self._scale)
            return pa.array(means, mask=counts == 0)
        sums, overflows = self._sums(slots)
        if bool(overflows.any()):
            at = int(np.flatnonzero(overflows)[0])
            total = Decimal(self._value(int(slots[at]))).scaleb(-self._scale, _CONTEXT)
            raise DataError(
                f"{self._what}: the sum of a group is {total}, which {self._type} cannot hold. "
                "Sum a narrower type instead: cast the column to fewer digits or to float64 first"
            )
        return pc.if_else(present, sums, pa.scalar(None, self._type))

    def state(self, slots: Ints) -> list[pa.Array]:
        """As ``Accumulator.state``: sum, overflow (how many times 10**38 in the last digit come on top), count."""
        sums, overflows = self._sums(slots)
        return [sums, pa.array(overflows), pa.array(self._counts[slots])]

    def load(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.load``."""
        words = decimal_words(columns[0])
        self._low[slots], self._middle[slots] = words[:, 0], words[:, 1]
        self._high[slots] = words[:, 1].view(np.int64) >> 63
        overflows = fixed_codes(columns[1])
        for at in np.flatnonzero(overflows):
            slot = int(slots[at])
            self._set(slot, self._value(slot) + int(overflows[at]) * _LIMIT)
        self._counts[slots] = fixed_codes(columns[2])

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``."""
        sums, overflows, counts = decimal_words(columns[0]), fixed_codes(columns[1]), fixed_codes(columns[2])
        kernels.add_wide(slots, sums, NO_MASK, NO_WEIGHTS, self._low, self._middle, self._high, self._counts)
        np.add.at(self._counts, slots, counts - 1)  # a sum was counted as one value
        for at in np.flatnonzero(overflows):
            slot = int(slots[at])
            self._set(slot, self._value(slot) + int(overflows[at]) * _LIMIT)

    def clear(self, slots: Ints) -> None:
        """As ``Accumulator.clear``."""
        for column in (self._low, self._middle, self._high, self._counts):
            column[slots] = 0

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        self._low, self._middle, self._high = self._low[kept], self._middle[kept], self._high[kept]
        self._counts = self._counts[kept]

    def _sums(self, slots: Ints) -> tuple[pa.Array, Ints]:
        """Return the sums as decimals, and how many times 10**38 must be added to each: nearly always 0."""
        words = np.stack([self._low[slots], self._middle[slots]], axis=1)
        middle = words[:, 1].view(np.int64)
        fits = (self._high[slots] == middle >> 63) & (middle < _SURELY_BELOW) & (middle > -_SURELY_BELOW)
        overflows = np.zeros(len(slots), np.int64)
        for at in np.flatnonzero(~fits):
            value = self._value(int(slots[at]))
            overflows[at], rest = (0, value) if abs(value) < _LIMIT else divmod(value, _LIMIT)
            words[at] = [rest & (2**64 - 1), rest >> 64 & (2**64 - 1)]
        return pa.Array.from_buffers(self._type, len(slots), [None, pa.py_buffer(words)]), overflows

    def _floats(self, slots: Ints) -> Floats:
        """Return the sums, in units of the last digit."""
        low = self._low[slots].view(np.int64)
        sign = low >> 63
        floats = low.astype(np.float64)
        for at in np.flatnonzero((self._middle[slots].view(np.int64) != sign) | (self._high[slots] != sign)):
            floats[at] = float(self._value(int(slots[at])))
        return floats

    def _value(self, slot: int) -> int:
        return (int(self._high[slot]) << 128) + (int(self._middle[slot]) << 64) + int(self._low[slot])

    def _set(self, slot: int, value: int) -> None:
        self._low[slot] = value & (2**64 - 1)
        self._middle[slot] = value >> 64 & (2**64 - 1)
        self._high[slot] = value >> 128


def decimal_words(values: pa.Array) -> Words:
    """Return the two words of each decimal of at most 128 bits, low word first, shape (n, 2)."""
    if not pa.types.is_decimal128(values.type):
        values = values.cast(pa.decimal128(38, values.type.scale))
    offsets, data = byte_strings(values)
    return data[offsets[0] : offsets[-1]].view(np.uint64).reshape(-1, 2)
