"""Rows whose ids only grow: appended at one end, given up at the other. Importing this module loads numba."""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Ints
from millstream.engine.kernels import counting_sort

_MOST_ROWS: Final = 1 << 18
_MOST_BYTES: Final = 1 << 26


class RowLog:
    """Rows of one schema in chunks of up to some 260,000: to append and to give up costs the same however many wait.

    A chunk is merged with its predecessor once it is half as long, unless that would make it too large; so a row is
    copied only a few times.

    Attributes:
        first: the lowest id held.
        end: the id of the next row.

    >>> log = RowLog(pa.schema({"a": pa.int64()}))
    >>> log.append(pa.record_batch({"a": [1, 2]}))
    >>> log.append(pa.record_batch({"a": [3]}))
    >>> log.take(np.array([2, 0])).to_pydict()
    {'a': [3, 1]}
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema: Final = schema
        self._chunks: deque[pa.RecordBatch] = deque()
        self._starts: deque[int] = deque()
        self.first = 0
        self.end = 0

    def __len__(self) -> int:
        return self.end - self.first

    @property
    def oldest(self) -> int:
        """Where the oldest chunk ends."""
        return self._starts[1] if len(self._starts) > 1 else self.end

    def append(self, batch: pa.RecordBatch) -> None:
        """Add rows; the first gets the id ``end``."""
        if not batch.num_rows:
            return
        start, self.end = self.end, self.end + batch.num_rows
        while self._chunks and self._merges(self._chunks[-1], batch):
            batch = pa.concat_batches([self._chunks.pop(), batch])
            start = self._starts.pop()
        self._chunks.append(batch)
        self._starts.append(start)

    @staticmethod
    def _merges(before: pa.RecordBatch, batch: pa.RecordBatch) -> bool:
        return bool(
            2 * batch.num_rows >= before.num_rows
            and before.num_rows + batch.num_rows <= _MOST_ROWS
            and before.nbytes + batch.nbytes <= _MOST_BYTES
        )

    def give_up(self) -> None:
        """Forget the oldest chunk."""
        self._chunks.popleft()
        self._starts.popleft()
        self.first = self._starts[0] if self._starts else self.end

    def take(self, ids: Ints, names: list[str] | None = None) -> pa.RecordBatch:
        """Return some rows, in the order asked for.

        Args:
            names: the columns wanted, at least one; None: all.
        """
        names = self.schema.names if names is None else names
        if not len(ids):
            return pa.RecordBatch.from_pylist([], self.schema).select(names)
        if len(self._chunks) == 1:
            return self._chunks[0].select(names).take(pa.array(ids - self.first))
        chunks = np.searchsorted(np.array(self._starts), ids, side="right") - 1
        order, ends = np.empty(len(ids), np.int64), np.empty(len(self._chunks), np.int64)
        counting_sort(chunks.view(np.uint64), len(self._chunks), order, ends)
        ordered = ids[order]
        parts, begin = [], 0
        for chunk, start, end in zip(self._chunks, self._starts, ends.tolist(), strict=True):
            if end > begin:
                parts.append(chunk.select(names).take(pa.array(ordered[begin:end] - start)))
            begin = end
        if len(parts) == 1:
            return parts[0]
        back = np.empty(len(ids), np.int64)
        back[order] = np.arange(len(ids))
        return pa.concat_batches(parts).take(pa.array(back))
