"""Running sums of floats. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from millstream.engine.codes import NO_MASK, Bools, Ints, fixed_codes, validity
from millstream.operators import aggregate_kernels as kernels
from millstream.operators.accumulators import NO_WEIGHTS, Floats, NumberAccumulator


class FloatSum(NumberAccumulator):
    """Adds floats in double-double arithmetic, so that the order of the rows all but never shows.

    State: sum, error (what comes on top), count.

    Args:
        mean: give the mean instead of the sum; both are float64.
    """

    def __init__(self, mean: bool) -> None:
        self._mean = mean
        super().__init__(np.float64, np.float64, np.int64)

    def apply(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints, weights: Ints) -> None:
        """As ``Retractable.apply``."""
        del times
        (values,) = arguments
        floats = fixed_codes(values).view(np.float64)
        kernels.add_floats(slots, floats, validity(values), weights, *self.numbers)

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``."""
        sums, errors, counts = map(fixed_codes, columns)
        own = self.numbers[:3]
        kernels.add_floats(slots, sums.view(np.float64), NO_MASK, NO_WEIGHTS, *own)
        kernels.add_floats(slots, errors.view(np.float64), NO_MASK, NO_WEIGHTS, *own)
        np.add.at(self.numbers[2], slots, counts - 2)  # a sum was counted as two values

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``."""
        sums, errors, counts = (column[slots] for column in self.numbers)
        return self._shown(sums + errors, counts)

    def _shown(self, totals: Floats, counts: Ints) -> pa.Array:
        if self._mean:
            with np.errstate(invalid="ignore"):
                totals = totals / np.maximum(counts, 1)
        return pa.array(totals, pa.float64(), mask=counts <= 0)


class RetractableFloatSum(FloatSum):
    """As ``FloatSum``; NaN and infinite values are counted apart, so that they can be taken back.

    State: sum, error, count (of finite values), and how many values are NaN, infinite, and minus infinite.

    Args:
        mean: as for ``FloatSum``.
    """

    def __init__(self, mean: bool) -> None:
        super().__init__(mean)
        self.numbers += [np.empty(0, np.int64)] * 3

    def apply(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints, weights: Ints) -> None:
        """As ``Retractable.apply``."""
        del times
        (values,) = arguments
        floats, valid = fixed_codes(values).view(np.float64), validity(values)
        odd = ~np.isfinite(floats)
        if len(valid):
            odd &= valid
        if bool(odd.any()):
            self._count_odd(slots[odd], floats[odd], weights[odd] if len(weights) else weights)
            valid = valid & ~odd if len(valid) else ~odd
        kernels.add_floats(slots, floats, valid, weights, *self.numbers[:3])
        self._settle(slots)

    def _count_odd(self, slots: Ints, floats: Floats, weights: Ints) -> None:
        for counts, chosen in zip(self.numbers[3:], _odd(floats), strict=True):
            np.add.at(counts, slots[chosen], weights[chosen] if len(weights) else 1)

    def _settle(self, slots: Ints) -> None:
        """Let no trace of rounding remain where no finite value is left."""
        empty = slots[self.numbers[2][slots] == 0]
        self.numbers[0][empty] = self.numbers[1][empty] = 0.0

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``."""
        super().merge(slots, columns[:3])
        for own, others in zip(self.numbers[3:], columns[3:], strict=True):
            np.add.at(own, slots, fixed_codes(others))

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``."""
        sums, errors, counts, nans, highs, lows = (column[slots] for column in self.numbers)
        totals = sums + errors
        totals = np.where(highs > 0, np.inf, np.where(lows > 0, -np.inf, totals))
        totals = np.where((nans > 0) | ((highs > 0) & (lows > 0)), np.nan, totals)
        return self._shown(totals, counts + nans + highs + lows)


def _odd(floats: Floats) -> tuple[Bools, Bools, Bools]:
    return np.isnan(floats), floats == np.inf, floats == -np.inf
