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
from millstream.operators import top_kernels
from millstream.operators.rank_kernels import FALLING_BYTES, FIXED, RISING_BYTES


class RankKeys:
    """Evaluates what rows are ranked by.

    Args:
        by: (expression, whether the greatest is the best), the most important first.
        schema: of the rows.

    Attributes:
        kinds: of each column: FIXED, RISING_BYTES or FALLING_BYTES.
    """

    def __init__(self, by: Sequence[tuple[Expr, bool]], schema: pa.Schema) -> None:
        self._by = tuple(by)
        texts = [form_of(expr.type_in(schema), str(expr)) is Form.BYTES for expr, _ in by]
        bytes_kinds = [FALLING_BYTES if down else RISING_BYTES for _, down in by]
        kinds = np.where(texts, bytes_kinds, FIXED)
        self.kinds: Ints = kinds.astype(np.int64)
        self.spans = sum(texts)

    def of(self, batch: pa.RecordBatch) -> tuple[Ints, Bytes]:
        """Return what the rows of a batch are ranked by, as in an entry of ``rank_kernels``, and its byte strings."""
        columns = len(self._by)
        words = np.zeros((batch.num_rows, 1 + columns + 2 * self.spans), np.int64)
        texts: list[Bytes] = [np.empty(0, np.uint8)]
        span, used = 1 + columns, 0
        for number, value in enumerate(evaluate_all([expr for expr, _ in self._by], batch)):
            column, valid = plain(value), validity(value)
            if len(valid):
                words[:, 0] |= np.where(valid, 0, 1 << number)
            if self.kinds[number] == FIXED:
                codes = order_codes(column)
            else:
                offsets, data = byte_strings(order_bytes(column))
                codes = np.empty(batch.num_rows, np.int64)
                top_kernels.prefixes(offsets, data, codes)
                words[:, span] = offsets[:-1] - offsets[0] + used
                words[:, span + 1] = np.diff(offsets)
                texts.append(data[offsets[0] : offsets[-1]])
                used += len(texts[-1])
                span += 2
            words[:, 1 + number] = ~codes if self._by[number][1] else codes
        return words, np.concatenate(texts)
