"""Random columns that are a pure function of (seed, column, event number), made a whole column at a time.

Every number of a column is drawn from its own counter, so any range of events can be made without the ones
before it.
"""

from __future__ import annotations

import zlib
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.int64]
Bits: TypeAlias = NDArray[np.uint64]

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR: Final = np.uint64(0x94D049BB133111EB)

_EVEN_BYTES: Final = np.uint64(0x00FF00FF00FF00FF)
_ODD_BYTES: Final = np.uint64(0xFF00FF00FF00FF00)
_EIGHT_AS: Final = np.uint64(0x6161616161616161)
_GAPS: Final = 20  # of 256 byte values: about every 13th character of a text with gaps is one


def draw(seed: int, column: str, numbers: Numbers) -> Bits:
    """Return 64 random bits for each event number.

    Args:
        seed: of the whole data set.
        column: what the bits are for; different columns are independent.
        numbers: int64 event numbers, 0 or more.

    >>> draw(1, "bid.price", np.arange(2)).tolist() == draw(1, "bid.price", np.arange(3)).tolist()[:2]
    True
    """
    start = np.array([seed * 0x1_0000_0000 + zlib.crc32(column.encode()) & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64)
    bits = numbers.astype(np.uint64)
    bits *= _GOLDEN
    bits += _mixed(start)
    return _mixed(bits)


def _mixed(bits: Bits) -> Bits:
    """Finish splitmix64 in place: neighbouring counters become unrelated bits."""
    bits ^= bits >> np.uint64(30)
    bits *= _FIRST_FACTOR
    bits ^= bits >> np.uint64(27)
    bits *= _SECOND_FACTOR
    bits ^= bits >> np.uint64(31)
    return bits


def below(bits: Bits, limit: int | Numbers) -> Numbers:
    """Return int64 numbers in ``[0, limit)``; ``limit``, less than 2**32, is one for all or one for each.

    >>> below(np.array([0, 2**63, 2**64 - 1], dtype=np.uint64), 10).tolist()
    [0, 5, 9]
    """
    factor = np.asarray(limit).astype(np.uint64)
    return ((bits >> np.uint64(32)) * factor >> np.uint64(32)).astype(np.int64)


def unit(bits: Bits) -> NDArray[np.float64]:
    """Return floats in ``[0, 1)``."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def text(bits: Bits, lengths: Numbers, gap: str | None = None) -> pa.StringArray:
    """Return one text of lower-case letters for each row.

    Args:
        bits: 64 random bits for each row, from which its letters follow.
        lengths: the number of letters of each row.
        gap: a character that stands now and then between letters, never first or last.

    >>> [len(word) for word in text(draw(1, "x", np.arange(2)), np.array([3, 5])).to_pylist()]
    [3, 5]
    """
    words = -(-int(lengths.max(initial=1)) // 8)
    raw = _mixed(bits[:, None] + _GOLDEN * np.arange(1, words + 1, dtype=np.uint64))
    letters = _letters(raw)
    if gap is not None:
        inner = np.arange(1, 8 * words + 1) < lengths[:, None]
        inner[:, 0] = False
        letters[inner & (raw.view(np.uint8) < _GAPS)] = ord(gap)
    kept = letters[np.arange(8 * words) < lengths[:, None]]
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.StringArray.from_buffers(len(lengths), pa.py_buffer(offsets), pa.py_buffer(kept))


def _letters(raw: Bits) -> NDArray[np.uint8]:
    """Return a letter for each byte, ``"a" + byte * 26 // 256``: eight at a time, in lanes of two bytes."""
    even = (raw & _EVEN_BYTES) * np.uint64(26) >> np.uint64(8) & _EVEN_BYTES
    odd = (raw >> np.uint64(8) & _EVEN_BYTES) * np.uint64(26) & _ODD_BYTES
    return (even + odd + _EIGHT_AS).view(np.uint8)
