"""Loops over rows that fold values into arrays indexed by slot, compiled. Importing this module loads numba.

In every kernel ``slots`` is int64, shape (n,); ``valid`` bool, shape (n,), or empty if every row is valid; ``weights``
int64, shape (n,), or empty if every row counts once; and the arrays that come after the values have one element per
slot and are changed in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from millstream.engine.jit import inlined, kernel
from millstream.operators.double_double import plus, product_exactly, sum_exactly, times

_CARRY = np.uint64(1)
_ZERO = np.uint64(0)
_LOW = np.int64(2**32 - 1)
_HALF = np.uint64(32)
_LOW_HALF = np.uint64(2**32 - 1)


@kernel
def touch(slots: Any, starts: Any, start_of: Any, changed: Any) -> None:
    """Note of each slot the start of its window, and that it has changed."""
    for row in range(slots.shape[0]):
        slot = slots[row]
        start_of[slot] = starts[row]
        changed[slot] = True


@kernel
def list_first_rows(slots: Any, seen: Any, rows: Any) -> int:
    """List the first row of each slot, in order.

    Args:
        seen: bool, by slot: false everywhere, before and after.
        rows: int64, shape (n,): takes the rows.

    Returns:
        How many there are.
    """
    count = 0
    for row in range(slots.shape[0]):
        if not seen[slots[row]]:
            seen[slots[row]] = True
            rows[count] = row
            count += 1
    for at in range(count):
        seen[slots[rows[at]]] = False
    return count


@kernel
def add_count(slots: Any, valid: Any, weights: Any, counts: Any) -> None:
    """Count the valid rows of each slot."""
    masked = valid.shape[0] > 0
    weighted = weights.shape[0] > 0
    for row in range(slots.shape[0]):
        if not masked or valid[row]:
            counts[slots[row]] += weights[row] if weighted else 1


@kernel
def number_rows(slots: Any, limit: int, counts: Any, rows: Any, numbers: Any) -> int:
    """Number the rows of each slot on from its count, up to ``limit``.

    Args:
        counts: int64, by slot: how many rows it has had; brought up to date.
        rows: int64, shape (n,): takes the rows below the limit.
        numbers: int64, shape (n,): takes their numbers.

    Returns:
        How many rows were below the limit.
    """
    found = 0
    for row in range(slots.shape[0]):
        slot = slots[row]
        if counts[slot] < limit:
            rows[found] = row
            numbers[found] = counts[slot]
            counts[slot] += 1
            found += 1
    return found


@inlined
def _wraps_of_product(left: Any, right: Any) -> Any:
    """Return how many times 2**64 come on top of ``left * right`` in int64."""
    high, low = left >> 32, left & _LOW
    upper, lower = right >> 32, right & _LOW
    carry = np.int64((np.uint64(low) * np.uint64(lower)) >> np.uint64(32))
    middle = high * lower + carry
    rest = low * upper + (middle & _LOW)
    return high * upper + (middle >> 32) + (rest >> 32) + (1 if left * right < 0 else 0)


@kernel
def add_ints(slots: Any, values: Any, valid: Any, weights: Any, sums: Any, wraps: Any, counts: Any) -> None:
    """Add int64 values. A sum is ``wraps * 2**64 + sums``, so no order of the values can overflow on the way."""
    masked = valid.shape[0] > 0
    weighted = weights.shape[0] > 0
    for row in range(slots.shape[0]):
        if masked and not valid[row]:
            continue
        slot = slots[row]
        old = sums[slot]
        value = values[row]
        weight = weights[row] if weighted else 1
        if weight != 1:
            wraps[slot] += _wraps_of_product(value, weight)
            value *= weight
        new = old + value
        if (old ^ new) & (value ^ new) < 0:
            wraps[slot] += 1 if value >= 0 else -1
        sums[slot] = new
        counts[slot] += weight


@kernel
def add_floats(slots: Any, values: Any, valid: Any, weights: Any, sums: Any, errors: Any, counts: Any) -> None:
    """Add floats in double-double arithmetic: a sum is ``sums + errors``, good to about 106 bits."""
    masked = valid.shape[0] > 0
    weighted = weights.shape[0] > 0
    for row in range(slots.shape[0]):
        if masked and not valid[row]:
            continue
        slot = slots[row]
        value, rest, weight = values[row], 0.0, 1
        if weighted:
            weight = weights[row]
            value, rest = times(value, weight)
        sums[slot], errors[slot] = plus(sums[slot], errors[slot], value, rest)
        counts[slot] += weight


@kernel
def add_spread(  # noqa: PLR0913, PLR0917  kernels know no objects
    slots: Any,
    values: Any,
    rests: Any,
    valid: Any,
    weights: Any,
    shifts: Any,
    sums: Any,
    errors: Any,
    squares: Any,
    square_errors: Any,
    counts: Any,
) -> None:
    """Add up values and their squares, less the first value of the slot, in double-double arithmetic.

    Args:
        rests: float64, shape (n,): what comes on top of ``values``; empty: nothing.
        shifts: takes the first value of each slot.
    """
    masked = valid.shape[0] > 0
    double = rests.shape[0] > 0
    weighted = weights.shape[0] > 0
    for row in range(slots.shape[0]):
        if masked and not valid[row]:
            continue
        slot = slots[row]
        if counts[slot] == 0:
            shifts[slot] = values[row]
        weight = weights[row] if weighted else 1
        counts[slot] += weight
        high, low = sum_exactly(values[row], -shifts[slot])
        if not np.isfinite(high):
            overflow = np.isfinite(values[row]) and np.isfinite(shifts[slot])
            squares[slot] += np.inf if overflow else np.nan
            continue
        if double:
            high, low = sum_exactly(high, low + rests[row])
        square, rest = product_exactly(high, high)
        rest += 2.0 * high * low
        if weight != 1:
            high, more = times(high, weight)
            low = low * weight + more
            square, more = times(square, weight)
            rest = rest * weight + more
        sums[slot], errors[slot] = plus(sums[slot], errors[slot], high, low)
        squares[slot], square_errors[slot] = plus(squares[slot], square_errors[slot], square, rest)
        if counts[slot] == 0:
            # Whatever rounding has left goes, and the next value is a new shift.
            sums[slot] = errors[slot] = squares[slot] = square_errors[slot] = 0.0


@kernel
def merge_spread(  # noqa: PLR0913, PLR0917  kernels know no objects
    slots: Any,
    other_shifts: Any,
    other_sums: Any,
    other_errors: Any,
    other_squares: Any,
    other_square_errors: Any,
    other_counts: Any,
    shifts: Any,
    sums: Any,
    errors: Any,
    squares: Any,
    square_errors: Any,
    counts: Any,
) -> None:
    """Add what ``add_spread`` made of other rows, as if it had taken the slot's own shift off them.

    With ``d`` the difference of the shifts, ``x + d`` adds up to ``sum + count * d``, and its square to
    ``squares + 2 * d * sum + count * d * d``.
    """
    for row in range(slots.shape[0]):
        count = np.float64(other_counts[row])
        if count == 0.0:
            continue
        slot = slots[row]
        if counts[slot] == 0:
            shifts[slot] = other_shifts[row]
        counts[slot] += other_counts[row]
        high, low = sum_exactly(other_shifts[row], -shifts[slot])
        if not np.isfinite(high) or not np.isfinite(other_squares[row]):
            overflow = np.isfinite(shifts[slot]) and np.isfinite(other_shifts[row])
            squares[slot] += other_squares[row] if overflow else np.nan
            if overflow and not np.isfinite(high):
                squares[slot] += np.inf
            continue
        squares[slot], square_errors[slot] = plus(
            squares[slot], square_errors[slot], other_squares[row], other_square_errors[row]
        )
        sums[slot], errors[slot] = plus(sums[slot], errors[slot], other_sums[row], other_errors[row])
        if high == 0.0:
            continue
        product, rest = product_exactly(2.0 * high, other_sums[row])
        rest += 2.0 * (high * other_errors[row] + low * other_sums[row])
        squares[slot], square_errors[slot] = plus(squares[slot], square_errors[slot], product, rest)
        product, rest = product_exactly(high, count)
        rest += low * count
        sums[slot], errors[slot] = plus(sums[slot], errors[slot], product, rest)
        square, lost = product_exactly(product, high)
        squares[slot], square_errors[slot] = plus(
            squares[slot], square_errors[slot], square, lost + rest * high + product * low
        )


@kernel
def deviations(sums: Any, errors: Any, squares: Any, square_errors: Any, counts: Any, out: Any) -> None:
    """Compute sums of squared differences from the mean from what ``add_spread`` keeps: squares - sum * mean."""
    for slot in range(out.shape[0]):
        count = np.float64(max(counts[slot], 1))
        mean = sums[slot] / count
        product, lost = product_exactly(mean, count)
        rest_of_mean = (((sums[slot] - product) - lost) + errors[slot]) / count
        taken, rest = product_exactly(sums[slot], mean)
        rest += sums[slot] * rest_of_mean + errors[slot] * mean
        if np.isfinite(squares[slot]):
            left, lost = sum_exactly(squares[slot], -taken)
            out[slot] = max(left + (lost + (square_errors[slot] - rest)), 0.0)
        else:
            out[slot] = squares[slot]


@inlined
def _product_unsigned(left: Any, right: Any) -> Any:
    """Return both words of the product of two uint64, the low one first."""
    low, high = left & _LOW_HALF, left >> _HALF
    lower, upper = right & _LOW_HALF, right >> _HALF
    middle = high * lower + ((low * lower) >> _HALF)
    rest = low * upper + (middle & _LOW_HALF)
    return left * right, high * upper + (middle >> _HALF) + (rest >> _HALF)


@inlined
def _negated(first: Any, second: Any, third: Any) -> Any:
    """Return minus an integer of three words."""
    first = ~first + _CARRY
    second = ~second + (_CARRY if first == _ZERO else _ZERO)
    third = ~third + (_CARRY if first == _ZERO and second == _ZERO else _ZERO)
    return first, second, third


@inlined
def _wide_times(first: Any, second: Any, weight: Any) -> Any:
    """Return the three words of a 128-bit integer (low word first) times a weight."""
    third = ~_ZERO if np.int64(second) < 0 else _ZERO
    if weight == 1:
        return first, second, third
    negative = (np.int64(second) < 0) != (weight < 0)
    if np.int64(second) < 0:
        first, second, third = _negated(first, second, third)
    factor = np.uint64(-weight) if weight < 0 else np.uint64(weight)
    first, carry = _product_unsigned(first, factor)
    second, third = _product_unsigned(second, factor)
    second += carry
    third += _CARRY if second < carry else _ZERO
    if negative:
        first, second, third = _negated(first, second, third)
    return first, second, third


@kernel
def add_wide(  # noqa: PLR0913, PLR0917  kernels know no objects
    slots: Any, words: Any, valid: Any, weights: Any, low: Any, middle: Any, high: Any, counts: Any
) -> None:
    """Add 128-bit integers (``words``: uint64, shape (n, 2), low word first) into 192-bit ones."""
    masked = valid.shape[0] > 0
    weighted = weights.shape[0] > 0
    for row in range(slots.shape[0]):
        if masked and not valid[row]:
            continue
        slot = slots[row]
        weight = weights[row] if weighted else 1
        first, second, third = _wide_times(words[row, 0], words[row, 1], weight)
        total = low[slot] + first
        carry = _CARRY if total < first else _ZERO
        low[slot] = total
        total = middle[slot] + second
        over = _CARRY if total < second else _ZERO
        total += carry
        over += _CARRY if total < carry else _ZERO
        middle[slot] = total
        high[slot] += np.int64(third + over)
        counts[slot] += weight


@kernel
def keep_extremes(slots: Any, codes: Any, valid: Any, greatest: bool, best: Any, seen: Any) -> None:
    """Keep the least (or greatest) code of each slot."""
    masked = valid.shape[0] > 0
    for row in range(slots.shape[0]):
        if masked and not valid[row]:
            continue
        slot = slots[row]
        code = codes[row]
        if not seen[slot] or (code > best[slot] if greatest else code < best[slot]):
            best[slot] = code
            seen[slot] = True


@inlined
def _compare(left: Any, start: int, size: int, right: Any, other: int, length: int) -> int:
    """Compare two byte strings; negative if the left one is less."""
    for step in range(min(size, length)):
        if left[start + step] != right[other + step]:
            return -1 if left[start + step] < right[other + step] else 1
    return size - length


@kernel
def find_extremes(  # noqa: PLR0913, PLR0917  kernels know no objects
    slots: Any,
    offsets: Any,
    data: Any,
    valid: Any,
    greatest: bool,
    starts: Any,
    sizes: Any,
    heap: Any,
    best_row: Any,
    touched: Any,
) -> int:
    """Find the row whose byte string is less (or greater) than its slot's and all other rows' of the slot.

    Args:
        starts: int64: where in ``heap`` the slot's own string is.
        sizes: int64: how long it is, -1 if there is none.
        best_row: int64, -1 everywhere: takes the row found, of the slots touched.
        touched: int64, shape (n,): takes the slots for which there is such a row.

    Returns:
        How many slots were touched.
    """
    count = 0
    masked = valid.shape[0] > 0
    for row in range(slots.shape[0]):
        if masked and not valid[row]:
            continue
        slot = slots[row]
        best = best_row[slot]
        start = offsets[row]
        size = offsets[row + 1] - start
        if best >= 0:
            at = offsets[best]
            order = _compare(data, start, size, data, at, offsets[best + 1] - at)
        elif sizes[slot] >= 0:
            order = _compare(data, start, size, heap, starts[slot], sizes[slot])
        else:
            order = 1 if greatest else -1
        if (order > 0) if greatest else (order < 0):
            if best < 0:
                touched[count] = slot
                count += 1
            best_row[slot] = row
    return count


@kernel
def find_best(  # noqa: PLR0913, PLR0917  kernels know no objects
    slots: Any, codes: Any, valid: Any, greatest: bool, best: Any, seen: Any, best_row: Any, touched: Any
) -> int:
    """Find the first row of which the code is less (or greater) than its slot's and no other's is less still.

    ``best`` and ``seen`` are brought up to date; ``best_row``, ``touched`` and the answer are as in
    ``find_extremes``.
    """
    count = 0
    masked = valid.shape[0] > 0
    for row in range(slots.shape[0]):
        if masked and not valid[row]:
            continue
        slot = slots[row]
        code = codes[row]
        if not seen[slot] or (code > best[slot] if greatest else code < best[slot]):
            best[slot] = code
            seen[slot] = True
            if best_row[slot] < 0:
                touched[count] = slot
                count += 1
            best_row[slot] = row
    return count


@kernel
def find_edges(slots: Any, times: Any, last: bool, best_time: Any, seen: Any, best_row: Any, touched: Any) -> int:
    """Find the row that is first (or last) in time in its slot, also against what the slot has seen.

    Of rows with one time the first to arrive is the first, the last to arrive the last. ``best_time`` and ``seen``
    are brought up to date; ``best_row``, ``touched`` and the answer are as in ``find_extremes``.
    """
    count = 0
    for row in range(slots.shape[0]):
        slot = slots[row]
        time = times[row]
        if not seen[slot] or (time >= best_time[slot] if last else time < best_time[slot]):
            best_time[slot] = time
            seen[slot] = True
            if best_row[slot] < 0:
                touched[count] = slot
                count += 1
            best_row[slot] = row
    return count


@kernel
def copy_strings(offsets: Any, data: Any, starts: Any, heap: Any) -> None:
    """Copy the byte strings ``data[offsets[i]:offsets[i + 1]]`` to ``heap[starts[i]:]``."""
    for row in range(starts.shape[0]):
        start = starts[row]
        begin = offsets[row]
        for step in range(offsets[row + 1] - begin):
            heap[start + step] = data[begin + step]


@kernel
def gather_strings(starts: Any, ends: Any, heap: Any, out: Any) -> None:
    """Copy the byte string that begins at ``heap[starts[i]]`` to ``out[ends[i]:ends[i + 1]]``."""
    for row in range(starts.shape[0]):
        start = starts[row]
        begin = ends[row]
        for step in range(ends[row + 1] - begin):
            out[begin + step] = heap[start + step]
