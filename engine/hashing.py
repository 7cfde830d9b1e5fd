"""The hash that decides which subtask owns a key: stable across processes, releases and batch layouts.

State rows are routed again by this hash after a restart, in another process and perhaps at another
parallelism, so equal values of a column's declared type must hash alike for ever. A change here orphans every
stored state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from millstream.engine.codes import Form, byte_strings, fixed_codes, form_of, validity
from millstream.engine.errors import InternalError

Hashes = npt.NDArray[np.uint64]

_START: Final = np.uint64(0x6D696C6C73747265)


def exchange_hash(arrays: Sequence[pa.Array], rows: int = 0) -> Hashes:
    """Hash rows of key columns; nulls are a value of their own, NaN equals NaN, -0.0 equals 0.0.

    Args:
        arrays: the key columns, all of the same length, in the exchange's order.
        rows: how many rows there are if there are no key columns: all get the hash 0.

    Returns:
        uint64, shape (rows,), well mixed in all its bits.

    Raises:
        SchemaError: a column's type cannot be a key (lists, structs, maps).

    >>> first, second = exchange_hash([pa.array(["a", "a"])])
    >>> bool(first == second)
    True
    """
    from millstream.engine import kernels

    if not arrays:
        return np.zeros(rows, np.uint64)
    state = np.full(len(arrays[0]), _START, np.uint64)
    for number, array in enumerate(arrays):
        valid = validity(array)
        if form_of(array.type, f"key column {number}") is Form.FIXED:
            kernels.fold_fixed(state, fixed_codes(array), valid)
        else:
            offsets, data = byte_strings(array)
            kernels.fold_bytes(state, offsets, data, valid)
    return state


def partition(batch: pa.RecordBatch, hashes: Hashes, n: int) -> list[pa.RecordBatch]:
    """Split a batch into ``n``: part p has the rows with ``hash % n == p``, in order. Parts may be empty.

    >>> batch = pa.record_batch({"k": [1, 2, 3]})
    >>> [part.num_rows for part in partition(batch, np.array([0, 1, 2], np.uint64), 2)]
    [2, 1]
    """
    from millstream.engine import kernels

    if len(hashes) != batch.num_rows:
        raise InternalError(f"partition: {len(hashes)} hashes for {batch.num_rows} rows")
    if n == 1:
        return [batch]
    order = np.empty(batch.num_rows, np.int64)
    ends = np.empty(n, np.int64)
    kernels.counting_sort(hashes, n, order, ends)
    starts = [0, *ends[:-1].tolist()]
    sizes = [end - start for start, end in zip(starts, ends.tolist(), strict=True)]
    if batch.num_rows in sizes:  # all rows go one way: nothing to move
        return [batch if size else batch.slice(0, 0) for size in sizes]
    ordered = batch.take(pa.array(order))
    return [ordered.slice(start, size) for start, size in zip(starts, sizes, strict=True)]
