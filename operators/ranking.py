"""Which of a group's rows are on top. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.codes import (
    Bools,
    Form,
    Ints,
    byte_strings,
    form_of,
    order_bytes,
    order_codes,
    plain,
    plain_type,
    validity,
)
from millstream.engine.expression import Expr
from millstream.operators import top_kernels as kernels

WORST: Final = np.int64(-(2**63))
"""The score of a null, and of a group that is not full: nothing scores less."""


class Ranking:
    """Orders rows by several expressions, nulls last, rows that are equal in all of them by arrival.

    Args:
        by: (expression, whether the greatest comes first), the most important first.
        n: how many rows a group keeps.
        ties: keep also every row that equals the n-th.
    """

    def __init__(self, by: Sequence[tuple[Expr, bool]], n: int, ties: bool) -> None:
        self._by = tuple(by)
        self._n = n
        self._ties = ties

    def types(self, schema: pa.Schema) -> list[pa.DataType]:
        """Return the types of ``columns``."""
        return [plain_type(expr.type_in(schema)) for expr, _ in self._by]

    def columns(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """Return what rows are ranked by."""
        return [plain(expr.evaluate(batch)) for expr, _ in self._by]

    def scores(self, column: pa.Array) -> Ints:
        """Return a first impression of the rows, int64: the better row never has the lesser score.

        Args:
            column: the first of ``columns``.
        """
        if form_of(column.type, "a column to rank by") is Form.FIXED:
            scores = order_codes(column)
        else:
            scores = np.empty(len(column), np.int64)
            kernels.prefixes(*byte_strings(order_bytes(column)), scores)
        if not self._by[0][1]:
            scores = ~scores
        valid = validity(column)
        return np.where(valid, scores, WORST) if len(valid) else scores

    def top(self, slots: Ints, columns: Sequence[pa.Array], arrivals: Ints) -> tuple[Ints, Ints, Ints]:
        """Pick each group's top rows.

        Args:
            slots: the group of each row, int64, shape (rows,).
            columns: what they are ranked by.
            arrivals: a number that grows with arrival.

        Returns:
            (the rows kept, ordered by group and rank; the groups that are full; the n-th row of each of these).
        """
        codes = [
            code for column, (_, down) in zip(columns, self._by, strict=True) for code in ascending_codes(column, down)
        ]
        order = np.lexsort([arrivals, *reversed(codes), slots])
        ordered = slots[order]
        new_slot = np.ones(len(order), np.bool_)
        new_slot[1:] = ordered[1:] != ordered[:-1]
        differs = new_slot.copy()
        for code in codes:
            differs[1:] |= code[order[1:]] != code[order[:-1]]
        place = np.arange(len(order))
        first = np.maximum.accumulate(np.where(new_slot, place, 0))
        equal_from = np.maximum.accumulate(np.where(differs, place, 0)) if self._ties else place
        kept: Bools = equal_from - first < self._n
        last = order[place - first == self._n - 1]
        return order[kept], slots[last], last


def ascending_codes(column: pa.Array, down: bool) -> list[Ints]:
    """Return int64 columns whose ascending order is the column's order, best first."""
    if form_of(column.type, "a column to rank by") is Form.FIXED:
        codes = order_codes(column)
    else:
        encoded = order_bytes(column).dictionary_encode()
        distinct = pc.array_sort_indices(encoded.dictionary).to_numpy()
        rank = np.empty(len(distinct), np.int64)
        rank[distinct] = np.arange(len(distinct))
        codes = rank[encoded.indices.fill_null(0).to_numpy()] if len(rank) else np.zeros(len(column), np.int64)
    valid = validity(column)
    codes = ~codes if down else codes
    return [(~valid).astype(np.int64), np.where(valid, codes, 0)] if len(valid) else [codes]
