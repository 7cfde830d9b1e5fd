"""Which partition Kafka's own clients give a key: murmur2, compiled. Importing this module loads numba.

The hash is Austin Appleby's MurmurHash2 with the seed and the rounding of Kafka's Java client, so that a key that
somebody else produces goes to the same partition.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from millstream.engine.jit import kernel

_LOW = np.uint64(0xFFFFFFFF)
_M = np.uint64(0x5BD1E995)
_SEED = np.uint64(0x9747B28C)
_POSITIVE = np.uint64(0x7FFFFFFF)


@kernel
def partitions_of(offsets: Any, data: Any, count: int, out: Any) -> None:
    """Write the partition of each key, of ``count`` partitions.

    Args:
        offsets: int64, shape (rows + 1,), into ``data``.
        data: uint8: the keys' bytes.
        out: int32, shape (rows,).
    """
    s8, s16, s24 = np.uint64(8), np.uint64(16), np.uint64(24)
    for row in range(out.shape[0]):
        at, end = offsets[row], offsets[row + 1]
        h = _SEED ^ np.uint64(end - at)
        while end - at >= 4:
            k = (
                np.uint64(data[at])
                | np.uint64(data[at + 1]) << s8
                | np.uint64(data[at + 2]) << s16
                | np.uint64(data[at + 3]) << s24
            )
            k = (k * _M) & _LOW
            k ^= k >> s24
            k = (k * _M) & _LOW
            h = ((h * _M) & _LOW) ^ k
            at += 4
        if end - at > 2:
            h ^= np.uint64(data[at + 2]) << s16
        if end - at > 1:
            h ^= np.uint64(data[at + 1]) << s8
        if end - at > 0:
            h = ((h ^ np.uint64(data[at])) * _M) & _LOW
        h ^= h >> np.uint64(13)
        h = (h * _M) & _LOW
        h ^= h >> np.uint64(15)
        out[row] = np.int32(np.int64(h & _POSITIVE) % count)
