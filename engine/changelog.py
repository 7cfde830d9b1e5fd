"""Changelogs: streams whose rows carry a weight, +1 for a row that comes and -1 for one that is taken back.

The weights are those of differential dataflow (McSherry et al., CIDR 2013): a changelog stands for the multiset in
which each row occurs as often as its weights sum to. They travel in a last column of a reserved name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Ints

WEIGHT: Final = "$weight"
"""The column with the weight, int64, never null; the last one. No column of a user has this name."""


def is_changelog(schema: pa.Schema) -> bool:
    """Whether rows of a schema carry a weight.

    >>> is_changelog(pa.schema({"a": pa.int64()})), is_changelog(weighted(pa.schema({"a": pa.int64()})))
    (False, True)
    """
    return WEIGHT in schema.names


def weighted(schema: pa.Schema) -> pa.Schema:
    """Return the schema of a changelog of such rows; itself if it is one.

    >>> weighted(pa.schema({"a": pa.int64()})).names
    ['a', '$weight']
    """
    return schema if is_changelog(schema) else schema.append(pa.field(WEIGHT, pa.int64()))


def unweighted(schema: pa.Schema) -> pa.Schema:
    """Return the schema of the rows themselves.

    >>> unweighted(weighted(pa.schema({"a": pa.int64()}))).names
    ['a']
    """
    return schema.remove(schema.get_field_index(WEIGHT)) if is_changelog(schema) else schema


def weights_of(batch: pa.RecordBatch) -> Ints:
    """Return the weight of each row, int64, shape (rows,): 1 if the batch is of no changelog.

    >>> weights_of(pa.record_batch({"a": [7, 8]})).tolist()
    [1, 1]
    """
    if not is_changelog(batch.schema):
        return np.ones(batch.num_rows, np.int64)
    return np.asarray(batch.column(WEIGHT).to_numpy(zero_copy_only=False), np.int64)


def single_changes(batch: pa.RecordBatch, most: int) -> Iterator[pa.RecordBatch]:
    """Yield a batch of a changelog in parts of at most ``most`` rows, in which every weight is 1 or -1.

    A row whose weight is n is there n times.

    >>> batch = pa.record_batch({"a": [7, 8], WEIGHT: [2, -1]})
    >>> [part.to_pydict() for part in single_changes(batch, 10)]
    [{'a': [7, 7, 8], '$weight': [1, 1, -1]}]
    """
    weights = weights_of(batch)
    ends = np.cumsum(np.abs(weights))
    if bool((np.abs(weights) == 1).all()):
        yield from (batch.slice(first, most) for first in range(0, batch.num_rows, most))
        return
    for first in range(0, int(ends[-1]), most):
        rows = np.searchsorted(ends, np.arange(first, min(first + most, int(ends[-1]))), side="right")
        columns = [column.take(pa.array(rows)) for column in batch.select(unweighted(batch.schema).names).columns]
        yield pa.RecordBatch.from_arrays([*columns, pa.array(np.sign(weights[rows]))], schema=batch.schema)
