"""Rows that an operator holds back, named by ids 0..n-1, in a few batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Ints

_MAX_ROWS: Final = 1 << 18
_MAX_BYTES: Final = 1 << 26  # far from the 2 GB that a column of strings can hold


class Rows:
    """Append-only rows of one schema. A batch is merged with its predecessor once it is half as long.

    So there are not many batches, and a row is copied only a few times. Long batches stay as they are.

    >>> rows = Rows(pa.schema({"a": pa.int64()}))
    >>> rows.append(pa.record_batch({"a": [1, 2]}))
    >>> rows.append(pa.record_batch({"a": [3]}))
    >>> rows.take(np.array([2, 0])).to_pydict()
    {'a': [3, 1]}
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._ends: list[int] = [0]

    def __len__(self) -> int:
        return self._ends[-1]

    def append(self, batch: pa.RecordBatch) -> None:
        """Add rows; the first gets the id ``len``."""
        if batch.num_rows == 0:
            return
        self._batches.append(batch)
        while len(self._batches) > 1 and _merge(*self._batches[-2:]):
            last = self._batches.pop()
            self._batches[-1] = pa.concat_batches([self._batches[-1], last])
            self._ends.pop()
        self._ends[len(self._batches) :] = [self._ends[len(self._batches) - 1] + self._batches[-1].num_rows]

    def take(self, ids: Ints, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """Return some rows, in the order asked for.

        Args:
            columns: only these, at least one; None: all.
        """
        names = self._schema.names if columns is None else columns
        if not self._batches:
            return pa.RecordBatch.from_pylist([], self._schema).select(names)
        if len(self._batches) == 1:
            return self._batches[0].select(names).take(pa.array(ids))
        order = np.argsort(ids, kind="stable")
        edges = np.searchsorted(ids[order], self._ends)
        parts = [
            batch.select(names).take(pa.array(ids[order[first:last]] - base))
            for batch, base, first, last in zip(self._batches, self._ends, edges, edges[1:], strict=False)
        ]
        back = np.empty(len(ids), np.int64)
        back[order] = np.arange(len(ids))
        return pa.concat_batches(parts).take(pa.array(back))

    def compact(self, kept: Ints) -> None:
        """Keep the rows ``kept`` (ascending), which become 0..n-1."""
        edges = np.searchsorted(kept, self._ends)
        old = list(zip(self._batches, self._ends, edges, edges[1:], strict=False))
        self._batches, self._ends = [], [0]
        for batch, base, first, last in old:
            self.append(batch.take(pa.array(kept[first:last] - base)))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Return all rows, in order."""
        return iter(self._batches)


def _merge(first: pa.RecordBatch, second: pa.RecordBatch) -> bool:
    rows = first.num_rows + second.num_rows
    if 2 * second.num_rows < first.num_rows or rows > _MAX_ROWS:
        return False
    # ``nbytes`` counts what the rows take, not the buffers that they are slices of.
    return bool(first.nbytes + second.nbytes <= _MAX_BYTES)
