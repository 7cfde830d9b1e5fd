"""What rows are ranked by, as kernels compare it. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from millstream.engine.codes import (
    Bytes,
    Form,
    Ints,
    byte_strings,
    form_of,
    order_bytes,
    order_codes,
    plain,
    validity,
)
from millstream.engine.expression import Expr, evaluate_all
from millstream.operators import aggregate_kernels, top_kernels
from millstream.operators.cells import resized
from millstream.operators.rank_kernels import HEAP_BYTES, Keys

_FIRST_HEAP = 4_096


class RankKeys:
    """Evaluates what rows are ranked by, and keeps it for entries 0..n-1.

    Args:
        by: (expression, whether the greatest is the best), the most important first.
        schema: of the rows.
    """

    def __init__(self, by: Sequence[tuple[Expr, bool]], schema: pa.Schema) -> None:
        self._exprs = [expr for expr, _ in by]
        texts = [form_of(expr.type_in(schema), str(expr)) is Form.BYTES for expr in self._exprs]
        places = np.where(texts, np.cumsum(texts, dtype=np.int64) - 1, -1)
        falling = np.array([down for _, down in by], np.bool_)
        width = sum(texts)
        self.entries = Keys(
            nulls=np.empty(0, np.int64),
            codes=np.empty((0, len(by)), np.int64),
            falling=falling,
            text=places.astype(np.int64),
            starts=np.empty((0, width), np.int64),
            sizes=np.empty((0, width), np.int64),
            heap=np.empty(_FIRST_HEAP if width else 0, np.uint8),
        )

    def of(self, batch: pa.RecordBatch) -> Keys:
        """Return what the rows of a batch are ranked by."""
        rows, held = batch.num_rows, self.entries
        nulls = np.zeros(rows, np.int64)
        codes = np.empty((rows, len(self._exprs)), np.int64)
        starts, sizes = (np.empty((rows, held.starts.shape[1]), np.int64) for _ in range(2))
        heaps: list[Bytes] = [np.empty(0, np.uint8)]
        for number, value in enumerate(evaluate_all(self._exprs, batch)):
            column, valid = plain(value), validity(value)
            if len(valid):
                nulls |= np.where(valid, 0, 1 << number)
            text = int(held.text[number])
            if text < 0:
                column_codes = order_codes(column)
            else:
                offsets, data = byte_strings(order_bytes(column))
                column_codes = np.empty(rows, np.int64)
                top_kernels.prefixes(offsets, data, column_codes)
                sizes[:, text] = np.diff(offsets)
                starts[:, text] = offsets[:-1] - offsets[0] + sum(map(len, heaps))
                heaps.append(data[offsets[0] : offsets[-1]])
            codes[:, number] = ~column_codes if held.falling[number] else column_codes
        return held._replace(nulls=nulls, codes=codes, starts=starts, sizes=sizes, heap=np.concatenate(heaps))

    def resize(self, entries: int) -> None:
        """Have room for entries 0..entries-1."""
        held = self.entries
        self.entries = held._replace(
            nulls=resized(held.nulls, entries),
            codes=_taller(held.codes, entries),
            starts=_taller(held.starts, entries),
            sizes=_taller(held.sizes, entries),
        )

    def make_room(self, used: int, fresh: Keys) -> None:
        """Have room in the heap, of which ``used`` bytes are taken, for the byte strings of a batch."""
        needed = used + len(fresh.heap)
        if needed > len(self.entries.heap):
            self.entries = self.entries._replace(heap=resized(self.entries.heap, max(2 * used, needed)))

    def compact(self, kept: Ints, counts: Ints) -> None:
        """Keep the entries ``kept`` (ascending), which become 0..n-1; ``counts`` are those of the lists."""
        held = self.entries
        starts, sizes = held.starts[kept], held.sizes[kept]
        if starts.shape[1]:
            ends = np.zeros(starts.size + 1, np.int64)
            np.cumsum(sizes.reshape(-1), out=ends[1:])
            heap = np.empty(max(_FIRST_HEAP, 2 * int(ends[-1])), np.uint8)
            aggregate_kernels.gather_strings(starts.reshape(-1), ends, held.heap, heap)
            starts = ends[:-1].reshape(starts.shape).copy()
            counts[HEAP_BYTES] = ends[-1]
            held = held._replace(heap=heap)
        self.entries = held._replace(nulls=held.nulls[kept], codes=held.codes[kept], starts=starts, sizes=sizes)


def _taller(matrix: Ints, rows: int) -> Ints:
    out = np.empty((rows, matrix.shape[1]), matrix.dtype)
    kept = min(rows, len(matrix))
    out[:kept] = matrix[:kept]
    return out
