"""Loops over the bytes of strings, compiled. Importing this module loads numba: import it where it is used.

Positions are unsigned within the loops: numba would make every signed one count from the end when negative, which
halves the speed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from millstream.engine.jit import kernel

_ONE = np.uint64(1)


@kernel
def split_part(offsets: Any, data: Any, separator: Any, part: int, starts: Any, out: Any) -> None:
    """Find one part of every string.

    Args:
        offsets: of the strings in ``data``, int64, shape (n + 1,).
        data: uint8.
        separator: uint8, at least one byte.
        part: which one, the first is 1.
        starts: filled with where the part begins in ``data``, int64, shape (n,).
        out: filled with the parts' offsets, shape (n + 1,); a string with too few parts gives an empty one.
    """
    width = np.uint64(len(separator))
    first = separator[0]
    total = np.uint64(0)
    out[0] = 0
    for row in range(len(starts)):
        at = np.uint64(offsets[row])
        end = np.uint64(offsets[row + 1])
        start = at
        found = 1
        while at + width <= end:
            if data[at] != first:
                at += _ONE
                continue
            same = _ONE
            while same < width and data[at + same] == separator[same]:
                same += _ONE
            if same < width:
                at += _ONE
                continue
            if found == part:
                break
            found += 1
            at += width
            start = at
        if found < part:
            start = end
        elif at + width > end:
            at = end
        starts[row] = start
        if found == part:
            total += at - start
        out[row + 1] = total


@kernel
def gather(data: Any, starts: Any, offsets: Any, out: Any) -> None:
    """Copy the piece of ``data`` that begins at ``starts[i]`` to ``out[offsets[i]:offsets[i + 1]]``."""
    for row in range(len(starts)):
        source = np.uint64(starts[row])
        at = np.uint64(offsets[row])
        end = np.uint64(offsets[row + 1])
        while at < end:
            out[at] = data[source]
            at += _ONE
            source += _ONE


@kernel
def count_byte(offsets: Any, data: Any, wanted: Any, out: Any) -> None:
    """Count a byte in every string; ``out`` is int32, shape (n,)."""
    for row in range(len(out)):
        at = np.uint64(offsets[row])
        end = np.uint64(offsets[row + 1])
        count = np.int32(0)
        while at < end:
            count += np.int32(data[at] == wanted)
            at += _ONE
        out[row] = count


@kernel
def count_characters(offsets: Any, data: Any, out: Any) -> None:
    """Count the UTF-8 characters of every string: the bytes that continue none. ``out`` is int32, shape (n,)."""
    for row in range(len(out)):
        at = np.uint64(offsets[row])
        end = np.uint64(offsets[row + 1])
        count = np.int32(0)
        while at < end:
            count += np.int32((data[at] & 0xC0) != 0x80)
            at += _ONE
        out[row] = count
