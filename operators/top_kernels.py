"""Loops over rows for ``window_top``, compiled. Importing this module loads numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from millstream.engine.jit import kernel

_SIGN = np.uint64(1 << 63)
_BYTE = np.uint64(8)


@kernel
def prefixes(offsets: Any, data: Any, out: Any) -> None:
    """Turn the first eight bytes of each byte string into an int64 that orders as they do."""
    for row in range(out.shape[0]):
        word = np.uint64(0)
        start = offsets[row]
        size = offsets[row + 1] - start
        for step in range(8):
            word <<= _BYTE
            if step < size:
                word |= np.uint64(data[start + step])
        out[row] = np.int64(word ^ _SIGN)


@kernel
def prune(slots: Any, scores: Any, thresholds: Any, rising: bool, rows: Any) -> int:
    """Find the rows that score no less than their slot's threshold.

    Args:
        thresholds: int64, by slot; if ``rising`` they are raised to the best score seen.
        rows: int64, shape (n,): takes the rows found.

    Returns:
        How many were found.
    """
    count = 0
    for row in range(slots.shape[0]):
        slot = slots[row]
        score = scores[row]
        if score >= thresholds[slot]:
            if rising:
                thresholds[slot] = score
            rows[count] = row
            count += 1
    if not rising:
        return count
    found = 0
    for at in range(count):
        row = rows[at]
        if scores[row] >= thresholds[slots[row]]:
            rows[found] = row
            found += 1
    return found


@kernel
def collect(slots: Any, head: Any, following: Any, rows: Any, groups: Any) -> int:
    """List the rows held by some slots.

    Args:
        head: int64, by slot: the first row of its list, -1 if it has none.
        following: int64, by row: the next row of the list, -1 at its end.
        rows: int64: takes the rows; if it is too short only the count is right.
        groups: int64, as long: takes, for each row, where its slot stands in ``slots``.

    Returns:
        How many rows there are.
    """
    count = 0
    for group in range(slots.shape[0]):
        row = head[slots[group]]
        while row >= 0:
            if count < rows.shape[0]:
                rows[count] = row
                groups[count] = group
            count += 1
            row = following[row]
    return count


@kernel
def link(slots: Any, rows: Any, head: Any, following: Any) -> None:
    """Put each row at the head of its slot's list."""
    for at in range(rows.shape[0]):
        row = rows[at]
        slot = slots[at]
        following[row] = head[slot]
        head[slot] = row
