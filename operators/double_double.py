"""Sums of floats that keep what rounding takes away: numbers of two floats, good to about 106 bits.

The arithmetic is that of Dekker (Numerische Mathematik 18, 1971) and Knuth (The Art of Computer Programming 2, 4.2.2).
Importing this module loads numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from millstream.engine.jit import inlined


@inlined
def sum_exactly(left: Any, right: Any) -> Any:
    """Return the rounded sum of two floats, and what rounding took away."""
    total = left + right
    part = total - left
    return total, (left - (total - part)) + (right - part)


@inlined
def _halves(value: Any) -> Any:
    """Cut a float into two of half as many bits: products of halves are exact."""
    scaled = 134217729.0 * value
    high = scaled - (scaled - value)
    return high, value - high


@inlined
def product_exactly(left: Any, right: Any) -> Any:
    """Return the rounded product of two floats, and what rounding took away."""
    product = left * right
    high, low = _halves(left)
    upper, lower = _halves(right)
    return product, low * lower - (((product - high * upper) - low * upper) - high * lower)


@inlined
def times(value: Any, weight: Any) -> Any:
    """Return the rounded product of a float and a weight, and what rounding took away."""
    if abs(weight) == 1:
        return value * weight, 0.0
    product, rest = product_exactly(value, np.float64(weight))
    return product, rest if np.isfinite(rest) else 0.0


@inlined
def plus(high: Any, low: Any, value: Any, rest: Any) -> Any:
    """Add ``value + rest`` to ``high + low``."""
    total, error = sum_exactly(high, value)
    if not np.isfinite(total):
        return total, 0.0
    error += low + rest
    rounded = total + error
    return rounded, error - (rounded - total) if np.isfinite(rounded) else 0.0
