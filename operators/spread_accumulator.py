"""Running variances. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Ints, fixed_codes, validity
from millstream.operators import aggregate_kernels as kernels
from millstream.operators.accumulators import Floats, NumberAccumulator
from millstream.operators.decimal_sum import decimal_words

_NO_RESTS = np.empty(0, np.float64)
_EXACT = 2**53


class SpreadAccumulator(NumberAccumulator):
    """Sums of ``x - shift`` and of its square, in double-double arithmetic; ``shift`` is the slot's first value.

    The textbook's formula loses the digits that the mean has in common with the shift; with a shift out of the data
    these are at most as many as the count has, of the 31 that are kept (Chan, Golub and LeVeque, "Algorithms for
    computing the sample variance", 1983). Only of decimals longer than 24 digits the shift is not exact enough.

    State: shift, sum, error, squares, error of the squares, count.

    Args:
        type: the argument's.
        ddof: what is taken off the count before dividing.
        root: give the standard deviation.
    """

    def __init__(self, type: pa.DataType, ddof: int, root: bool) -> None:
        super().__init__(*[np.float64] * 5, np.int64)
        self._scale = type.scale if pa.types.is_decimal(type) else 0
        self._ddof = ddof
        self._root = root

    def apply(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints, weights: Ints) -> None:
        """As ``Retractable.apply``."""
        del times
        (values,) = arguments
        kernels.add_spread(slots, *_double_double(values), validity(values), weights, *self.numbers)

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``."""
        *floats, counts = map(fixed_codes, columns)
        others = [*(column.view(np.float64) for column in floats), counts]
        kernels.merge_spread(slots, *others, *self.numbers[:6])

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``; float64, null for ``ddof`` values or fewer."""
        return pa.array(self._spread(slots), pa.float64(), mask=self.numbers[5][slots] <= self._ddof)

    def _spread(self, slots: Ints) -> Floats:
        _, sums, errors, squares, square_errors, counts = (column[slots] for column in self.numbers[:6])
        made = np.empty(len(slots), np.float64)
        kernels.deviations(sums, errors, squares, square_errors, counts, made)
        made /= np.maximum(counts - self._ddof, 1)
        unit = 10.0**self._scale
        return np.sqrt(made) / unit if self._root else made / unit / unit


class RetractableSpread(SpreadAccumulator):
    """As ``SpreadAccumulator``; values that are not finite are counted apart, so that they can be taken back.

    State: its state, of the finite values, and how many others there are.
    """

    def __init__(self, type: pa.DataType, ddof: int, root: bool) -> None:
        super().__init__(type, ddof, root)
        self.numbers.append(np.empty(0, np.int64))

    def apply(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints, weights: Ints) -> None:
        """As ``Retractable.apply``."""
        del times
        (values,) = arguments
        floats, rests = _double_double(values)
        valid, odd = validity(values), ~np.isfinite(floats)
        if len(valid):
            odd &= valid
        if bool(odd.any()):
            np.add.at(self.numbers[-1], slots[odd], weights[odd] if len(weights) else 1)
            valid = valid & ~odd if len(valid) else ~odd
        kernels.add_spread(slots, floats, rests, valid, weights, *self.numbers[:-1])

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``."""
        super().merge(slots, columns[:-1])
        np.add.at(self.numbers[-1], slots, fixed_codes(columns[-1]))

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``."""
        odd = self.numbers[-1][slots]
        made = self._spread(slots)
        made[odd > 0] = np.nan
        return pa.array(made, pa.float64(), mask=self.numbers[5][slots] + odd <= self._ddof)


def _double_double(values: pa.Array) -> tuple[Floats, Floats]:
    """Return numbers as floats and what is to be added to these, empty if nothing is; decimals in their last digit."""
    if pa.types.is_floating(values.type):
        return fixed_codes(values).view(np.float64), _NO_RESTS
    if pa.types.is_decimal(values.type):
        words = decimal_words(values)
        return _exact([(words[:, 1].view(np.int64), 64), (words[:, 0], 0)])
    codes = fixed_codes(values)
    if pa.types.is_uint64(values.type):
        return _exact([(codes.view(np.uint64), 0)])
    if not len(codes) or (int(codes.min()) >= -_EXACT and int(codes.max()) <= _EXACT):
        return codes.astype(np.float64), _NO_RESTS
    return _exact([(codes, 0)])


def _exact(words: Sequence[tuple[np.ndarray, int]]) -> tuple[Floats, Floats]:
    """Add words of 64 bits, each shifted to the left by so many bits: the most significant (and signed) one first."""
    total = error = np.zeros(len(words[0][0]))
    for word, shift in words:
        for part, more in ((word >> 32, 32), (word & 0xFFFFFFFF, 0)):
            value = part.astype(np.float64) * 2.0 ** (shift + more)
            rounded = total + value
            error = error + ((total - (rounded - (rounded - total))) + (value - (rounded - total)))
            total = rounded
    high = total + error
    return high, error - (high - total)
