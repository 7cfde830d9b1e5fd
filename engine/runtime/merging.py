"""Puts the snapshots of several epochs together as if they were one's: what a checkpoint left that was not written."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
from millstream.engine.state import StateDelta
from millstream.engine.store.types import NamedDelta, SplitPosition


def merge_deltas(deltas: Iterable[NamedDelta]) -> list[NamedDelta]:
    """Return one delta per operator, state table and subtask; the later ones come after the earlier.

    KEYED rows are applied in order, so the later row of a key wins. ROWS buckets that a later delta drops take the
    rows of the earlier ones with them; a bucket that was dropped is never written again. The latest ``full_from``
    holds for all: what it counts as written in an epoch that failed is written now, in a later one.

    >>> rows = pa.table({"key": [1], "deleted": [False]})
    >>> first, second = (NamedDelta("op", "state", StateDelta(rows, full_from)) for full_from in (3, 4))
    >>> [(merged.delta.rows.num_rows, merged.delta.full_from) for merged in merge_deltas([first, second])]
    [(2, 4)]
    """
    merged: dict[tuple[str, str, int], NamedDelta] = {}
    for later in deltas:
        key = (later.operator_id, later.table, later.subtask)
        earlier = merged.get(key)
        merged[key] = later if earlier is None else _merged(earlier, later)
    return list(merged.values())


def _merged(earlier: NamedDelta, later: NamedDelta) -> NamedDelta:
    one, two = earlier.delta, later.delta
    rows = pa.concat_tables([one.rows, two.rows])
    delta = StateDelta(rows, two.full_from, (*one.dropped, *two.dropped))
    return NamedDelta(later.operator_id, later.table, delta, later.subtask)


def merge_positions(positions: Iterable[SplitPosition]) -> list[SplitPosition]:
    """Return the last position of each split."""
    return list({(p.source_id, p.split.id): p for p in positions}.values())
