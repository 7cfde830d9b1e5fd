"""The top rows of groups of a changelog, of which any row may be taken back. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Ints
from millstream.engine.expression import Expr
from millstream.operators.multisets import Multiset
from millstream.operators.ranking import Ranking


class TopMultiset(Multiset):
    """Keeps all rows, and gives the best in a list; of equal ones the least by their columns. Items: row, weight.

    Args:
        schema: of a row.
        by: (expression, whether the greatest comes first), the most important first.
        n: how many rows it gives.
        ties: give also every row that equals the n-th.
    """

    def __init__(self, schema: pa.Schema, by: Sequence[tuple[Expr, bool]], n: int, ties: bool) -> None:
        super().__init__(schema.types, nulls=True)
        self._schema = schema
        self._ranking = Ranking(by, n, ties)
        self._most = None if ties else n

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``; lists of rows, the best first."""
        ids, groups = self._present(slots)
        order = self._order(ids, groups, falling=False)
        ids, groups = ids[order], groups[order]
        rows = pa.record_batch(self._index.names(ids), schema=self._schema)
        copies = np.repeat(np.arange(len(ids)), np.minimum(self._weights[ids], self._most or self._weights[ids]))
        ranked = [column.take(pa.array(copies)) for column in self._ranking.columns(rows)]
        kept, _, _ = self._ranking.top(groups[copies], ranked, np.arange(len(copies)))
        best = copies[kept]
        ends = np.searchsorted(groups[best], np.arange(len(slots) + 1)).astype(np.int32)
        chosen = rows.take(pa.array(best))
        return pa.ListArray.from_arrays(
            pa.array(ends), pa.StructArray.from_arrays(chosen.columns, fields=list(self._schema))
        )
