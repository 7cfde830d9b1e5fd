"""Puts the rows of a join together. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints
from millstream.operators.join_columns import JoinedColumn, assembled, joined_schema
from millstream.operators.row_buffer import RowBuffer

if TYPE_CHECKING:
    from millstream.operators.join import Join


class JoinOutput:
    """Makes the output of a join, and asks its ``where``."""

    def __init__(self, spec: Join, inputs: Sequence[pa.Schema]) -> None:
        left, right = inputs
        self._columns = spec.output_columns
        self._schema = joined_schema(self._columns, left, right)
        self._where = spec.where
        self._where_columns = spec.where_columns
        self._where_schema = joined_schema(self._where_columns, left, right)
        self._names = [_names(self._columns, side) for side in (0, 1)]
        self._where_names = [_names(self._where_columns, side) for side in (0, 1)]

    def passing(self, met: Met) -> Bools | None:
        """Return for which pairs ``where`` is true; None: for all."""
        if self._where is None:
            return None
        batch = assembled(
            self._where_columns, self._where_schema, len(met.rows), met.sides(self._where_names), met.window
        )
        true = self._where.evaluate(batch).fill_null(False)
        mask: Bools = np.asarray(true.to_numpy(zero_copy_only=False), np.bool_)
        return None if bool(mask.all()) else mask

    def pairs(self, met: Met) -> pa.RecordBatch:
        """Return pairs as they are put out."""
        return assembled(self._columns, self._schema, len(met.rows), met.sides(self._names), met.window)

    def alone(self, side: int, rows: pa.RecordBatch, window: Sequence[pa.Array] = ()) -> pa.RecordBatch:
        """Return rows of one side, with nulls for the other."""
        sides = (None, rows) if side else (rows, None)
        return assembled(self._columns, self._schema, rows.num_rows, sides, window)


@dataclass(frozen=True, slots=True)
class Met:
    """Pairs of rows of a batch and of rows that waited for them.

    Attributes:
        side: which one the batch is of.
        rows: int64, shape (pairs,): where a pair's row stands in the batch.
        ids: int64, shape (pairs,): the other one, in the buffer ``waiting``.
        window: the start and the end of the window of each pair, if they meet in windows.
    """

    side: int
    batch: pa.RecordBatch
    rows: Ints
    waiting: RowBuffer
    ids: Ints
    window: Sequence[pa.Array] = ()

    def sides(self, names: Sequence[list[str]]) -> list[pa.RecordBatch | None]:
        """Return the left and the right rows with these columns; None for a side of which there are none."""
        own, others = names[self.side], names[1 - self.side]
        mine = self.batch.select(own).take(pa.array(self.rows)) if own else None
        theirs = self.waiting.take(self.ids, others) if others else None
        return [theirs, mine] if self.side else [mine, theirs]

    def only(self, mask: Bools | None) -> Met:
        """Return some of the pairs (None: all)."""
        if mask is None:
            return self
        window = [bound.filter(pa.array(mask)) for bound in self.window]
        return Met(self.side, self.batch, self.rows[mask], self.waiting, self.ids[mask], window)


def _names(columns: Sequence[JoinedColumn], side: int) -> list[str]:
    """The columns of a side that pairs are made of: of a key that both have, the left row's."""
    if side == 0:
        return list(dict.fromkeys(column.left for column in columns if column.left is not None))
    return list(dict.fromkeys(c.right for c in columns if c.right is not None and c.left is None))
