"""What rows that come one after the other amount to, for a destination that keeps one row per key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.changelog import WEIGHT, unweighted

_RANK: Final = "$rank"


def net_rows(changes: pa.Table) -> pa.Table:
    """Return the rows of a changelog of which something remains, in the order of their last occurrence.

    Rows are compared whole, so that a row and its taking back cancel, whichever of the two came first. Columns must be
    of types that can be grouped by: no lists, no structs.

    Args:
        changes: with a last column ``WEIGHT``.

    >>> rows = pa.table({"k": [1, 1, 2], "v": ["a", "a", "b"], WEIGHT: [1, -1, 1]})
    >>> net_rows(rows).to_pylist()
    [{'k': 2, 'v': 'b', '$weight': 1}]
    """
    names = unweighted(changes.schema).names
    ranked = changes.append_column(_RANK, pa.array(np.arange(changes.num_rows)))
    sums = ranked.group_by(names, use_threads=False).aggregate([(WEIGHT, "sum"), (_RANK, "max")])
    left = sums.filter(pc.not_equal(sums[f"{WEIGHT}_sum"], 0)).sort_by(f"{_RANK}_max")
    kept = changes.select(names).take(left[f"{_RANK}_max"])
    return kept.append_column(changes.schema.field(WEIGHT), left[f"{WEIGHT}_sum"])


def last_per_key(rows: pa.Table, keys: Sequence[str]) -> pa.Table:
    """Return the last row of each key, in order; of a changelog whose ``net_rows`` these are, what each key ends as.

    There a row that remains comes before one that is taken back, wherever they stood: the key has that row, or if there
    is none, the key is gone, which a row of weight -1 says.

    >>> last_per_key(pa.table({"k": [1, 2, 1], "v": ["a", "b", "c"]}), ["k"]).to_pylist()
    [{'k': 2, 'v': 'b'}, {'k': 1, 'v': 'c'}]
    >>> moved = pa.table({"k": [1, 1, 2], "v": ["new", "old", "gone"], WEIGHT: [1, -1, -1]})
    >>> last_per_key(moved, ["k"]).to_pylist()
    [{'k': 1, 'v': 'new', '$weight': 1}, {'k': 2, 'v': 'gone', '$weight': -1}]
    """
    count = rows.num_rows
    rank = np.arange(count)
    if WEIGHT in rows.schema.names:
        rank = rank + count * (rows[WEIGHT].to_numpy() > 0)
    ranked = rows.select(list(keys)).append_column(_RANK, pa.array(rank))
    best = ranked.group_by(list(keys), use_threads=False).aggregate([(_RANK, "max")])[f"{_RANK}_max"].to_numpy()
    if len(best) == count:
        return rows
    return rows.take(np.sort(best % count))
