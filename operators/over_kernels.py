"""Loops over rows for ``over``, compiled. Importing this module loads numba.

Rows stand key by key, in the order of event time. A frame of a row is ``starts[i]`` up to and without ``stops[i]``;
neither goes back from one frame to the next.
"""

from __future__ import annotations

from typing import Any

from millstream.engine.jit import kernel
from millstream.operators.double_double import plus

_FAN = 16


@kernel
def time_frames(at: Any, first: Any, times: Any, reach: int, starts: Any) -> None:
    """Find the first row of the key that is at most ``reach`` before each of the rows ``at``."""
    start = 0
    for place in range(at.shape[0]):
        row = at[place]
        start = max(start, first[row])
        while times[start] < times[row] - reach:
            start += 1
        starts[place] = start


@kernel
def running_sums(at: Any, begin: Any, values: Any, valid: Any, sums: Any, errors: Any) -> None:
    """Add up from the row ``begin`` of each row's key, onto what stands in ``sums`` and ``errors`` at that row.

    Args:
        at: int64, shape (n,): rows, from ``begin`` on without a gap.
        sums: float64, shape (n,): at the first row of each key what came before; gets the sums.
        errors: likewise: what comes on top.
    """
    high = low = 0.0
    for place in range(at.shape[0]):
        row = at[place]
        if row == begin[place]:
            high, low = sums[place], errors[place]
        if valid[row]:
            high, low = plus(high, low, values[row], 0.0)
        sums[place], errors[place] = high, low


@kernel
def build_sums(values: Any, valid: Any, ends: Any, highs: Any, lows: Any) -> None:
    """Add rows up by 16, these sums by 16, and so on.

    Args:
        ends: int64: where each level ends in ``highs``, and so begins the next; the rows themselves are the first.
        highs, lows: float64: get the sums, ``highs + lows``.
    """
    for row in range(values.shape[0]):
        highs[row] = values[row] if valid[row] else 0.0
        lows[row] = 0.0
    below = 0
    for level in range(1, ends.shape[0]):
        begin = ends[level - 1]
        for node in range(ends[level] - begin):
            high = low = 0.0
            for child in range(below + node * _FAN, min(below + (node + 1) * _FAN, begin)):
                high, low = plus(high, low, highs[child], 0.0)
                high, low = plus(high, low, lows[child], 0.0)
            highs[begin + node], lows[begin + node] = high, low
        below = begin


@kernel
def frame_sums(starts: Any, stops: Any, ends: Any, highs: Any, lows: Any, sums: Any) -> None:
    """Add up the floats of each frame: its ragged ends row by row, what is between from the levels above."""
    for place in range(starts.shape[0]):
        start, stop = starts[place], stops[place]
        high = low = 0.0
        base = 0
        level = 0
        while start < stop:
            while start < stop and (start % _FAN != 0 or level + 1 == ends.shape[0]):
                high, low = plus(high, low, highs[base + start], 0.0)
                high, low = plus(high, low, lows[base + start], 0.0)
                start += 1
            while start < stop and stop % _FAN != 0:
                stop -= 1
                high, low = plus(high, low, highs[base + stop], 0.0)
                high, low = plus(high, low, lows[base + stop], 0.0)
            start //= _FAN
            stop //= _FAN
            base = ends[level]
            level += 1
        sums[place] = high + low


@kernel
def frame_extremes(starts: Any, stops: Any, codes: Any, valid: Any, greatest: bool, queue: Any, found: Any) -> None:
    """Find the first row with the least or greatest code in each frame; -1 if it has no valid one.

    The queue holds the rows that are the extreme of what is left once those before them have gone (Lemire, 2006).

    Args:
        queue: int64, with room for all rows: scratch.
    """
    head = tail = 0
    reached = 0
    for place in range(starts.shape[0]):
        start, stop = starts[place], stops[place]
        reached = max(reached, start)
        while reached < stop:
            if valid[reached]:
                code = codes[reached]
                while tail > head and (codes[queue[tail - 1]] < code if greatest else codes[queue[tail - 1]] > code):
                    tail -= 1
                queue[tail] = reached
                tail += 1
            reached += 1
        while head < tail and queue[head] < start:
            head += 1
        found[place] = queue[head] if head < tail else -1
