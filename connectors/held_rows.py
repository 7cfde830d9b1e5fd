"""Rows that a sink holds back over several epochs, as they wait in its checkpointed state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from millstream.engine.state import StateKind, StateTable

HELD: Final = "held_rows"
"""The state table of rows that are held back."""


@dataclass(frozen=True, slots=True)
class HeldSchema:
    """The columns of HELD: a bucket, the wall-clock time of its first row, and the rows' own columns.

    >>> held = HeldSchema.of(pa.schema([("a", pa.int64()), ("File", pa.string())]))
    >>> held.bucket, held.since, held.schema.names
    ('_file', 'since', ['_file', 'since', 'a', 'File'])
    """

    bucket: str
    since: str
    schema: pa.Schema

    @staticmethod
    def of(rows: pa.Schema, bucket: str = "file") -> HeldSchema:
        """Choose names that are not among the rows' own, which SQL compares without regard to case."""
        taken = {name.lower() for name in rows.names}
        since = "since"
        while bucket in taken:
            bucket = "_" + bucket
        while since in taken:
            since = "_" + since
        own = [pa.field(bucket, pa.int64()), pa.field(since, pa.int64())]
        return HeldSchema(bucket, since, pa.schema([*own, *rows]))

    def table(self) -> StateTable:
        """The declaration."""
        return StateTable(HELD, self.schema, (self.bucket,), (self.bucket,), StateKind.ROWS)

    def rows(self, batches: Sequence[pa.RecordBatch], bucket: int, since: int) -> pa.Table:
        """Put the two columns in front of batches."""
        plain = pa.Table.from_batches(batches)
        count = plain.num_rows
        own = [pa.repeat(pa.scalar(value, pa.int64()), count) for value in (bucket, since)]
        return pa.Table.from_arrays([*own, *plain.columns], schema=self.schema)


def own_memory(batches: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Return the same rows in few batches that keep no more memory alive than their own rows need."""
    whole: list[pa.RecordBatch] = pa.Table.from_batches(batches).combine_chunks().to_batches()
    if sum(2 * batch.nbytes < batch.get_total_buffer_size() for batch in whole):
        return [batch.take(pa.array(np.arange(batch.num_rows))) for batch in whole]
    return whole
