"""The conditions of a pattern, computed: which of them hold for a row. Importing this module loads numba."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
from millstream.engine.codes import (
    NO_MASK,
    Bools,
    Form,
    Ints,
    form_of,
    order_codes,
    validity,
)
from millstream.engine.expression import Expr, evaluate_all
from millstream.engine.key_index import KeyIndex
from millstream.operators import match_kernels as kernels
from millstream.operators.cells import resized
from millstream.operators.match import Match
from millstream.operators.match_expressions import COMPARISONS, PREVIOUS, Comparison
from millstream.operators.rows import Rows

_FIRST_CAPACITY: Final = 1_024
_NUMBERS: Final = {name: getattr(kernels, name.upper()) for name in COMPARISONS}


class Conditions:
    """Computes, for many rows at once, what depends only on a row and the one before it.

    Attributes:
        look_back: whether the row before plays a part.
    """

    def __init__(self, spec: Match, schema: pa.Schema) -> None:
        conditions = spec.conditions(schema)
        self._within = spec.within
        self._exprs = [(spec.bits[c.name], c.alone) for c in conditions if c.alone is not None]
        self._always = sum(spec.bits[c.name] for c in conditions if c.alone is None)
        read = frozenset().union(*(expr.columns() for _, expr in self._exprs))
        self._own = [name for name in schema.names if name in read]
        self._previous = [name for name in schema.names if PREVIOUS + name in read]
        self.look_back = bool(self._previous)

    def masks(self, held: Rows, times: Ints, due: Ints, before: Ints) -> Ints:
        """Return the masks of rows: a bit for each condition that is true, neither false nor null.

        Args:
            held: all rows.
            times: of all rows.
            due: int64, shape (n,): ids of rows.
            before: int64, shape (n,): the row before each; -1: there is none.
        """
        masks = np.full(len(due), self._always)
        if not self._exprs:
            return masks
        columns = {name: held.take(due, [name]).column(0) for name in self._own}
        if self.look_back:
            near = (before >= 0) & (times[due] - times[before] <= self._within)
            found = held.take(before[near], self._previous)
            places = pa.array(np.cumsum(near) - 1, mask=~near)
            columns |= {PREVIOUS + name: found.column(name).take(places) for name in self._previous}
        if not columns:
            columns = {"": pa.nulls(len(due))}
        batch = pa.RecordBatch.from_pydict(columns)
        for (bit, _), true in zip(self._exprs, evaluate_all([expr for _, expr in self._exprs], batch), strict=True):
            masks[true.fill_null(False).to_numpy(zero_copy_only=False)] |= bit
        return masks


class Terms:
    """Comparisons with the row that a match begins with: both sides as numbers that compare as the values do.

    Attributes:
        terms: int64, shape (2, k), of ``match_kernels``.
        codes: int64, shape (4 k, at least as many as there are rows), likewise.
    """

    def __init__(self, spec: Match, schema: pa.Schema) -> None:
        named = [(spec.bits[c.name], one) for c in spec.conditions(schema) for one in c.comparisons]
        self._comparisons = [comparison for _, comparison in named]
        self._types = [comparison.type_in(schema) for comparison in self._comparisons]
        numbers = [[bit, _NUMBERS[comparison.function]] for bit, comparison in named]
        self.terms: Ints = np.ascontiguousarray(np.array(numbers, np.int64).reshape(-1, 2).T)
        self._clear()

    def _clear(self) -> None:
        self._indices = [_index(type) for type in self._types]
        self._count = 0
        self.codes: Ints = np.empty((4 * len(self._types), 0), np.int64)

    def append(self, batch: pa.RecordBatch) -> None:
        """Compute both sides of all comparisons for rows, whose ids follow those before."""
        if not self._comparisons:
            return
        first, self._count = self._count, self._count + batch.num_rows
        if self._count > self.codes.shape[1]:
            capacity = max(_FIRST_CAPACITY, 2 * self._count)
            self.codes = np.stack([resized(line, capacity) for line in self.codes])
        sides: list[Expr] = [side for one in self._comparisons for side in _sides(one)]
        for line, values in enumerate(evaluate_all(sides, batch)):
            codes, valid = _numbers(values.cast(self._types[line // 2]), self._indices[line // 2])
            self.codes[line, first : self._count] = codes
            self.codes[len(sides) + line, first : self._count] = valid if len(valid) else True

    def rebuild(self, batch: pa.RecordBatch) -> None:
        """These are all rows now; their ids are 0..n-1."""
        self._clear()
        self.append(batch)


def _sides(comparison: Comparison) -> tuple[Expr, Expr]:
    return comparison.own, comparison.begin


def _index(type: pa.DataType) -> KeyIndex | None:
    return KeyIndex([type]) if form_of(type, "a compared value") is Form.BYTES else None


def _numbers(values: pa.Array, index: KeyIndex | None) -> tuple[Ints, Bools]:
    """Return numbers that compare as values do, and which of them compare with anything at all: not nulls, not NaN."""
    valid = validity(values)
    if index is not None:
        return index.slots([values]), valid
    codes = order_codes(values)
    if pa.types.is_floating(values.type):
        numbers = ~np.isnan(values.fill_null(0).to_numpy(zero_copy_only=False))
        valid = numbers & valid if len(valid) else numbers
    return codes, valid if len(valid) else NO_MASK
