"""What held the watermark of a stopped job back, as far as its last checkpoint tells."""

from __future__ import annotations

import time

import pyarrow as pa
from millstream.engine.store.catalog import Catalog, Query, moves_until
from millstream.engine.store.encoding import latest_positions
from millstream.engine.store.types import SplitPosition

HOLDS = pa.schema(
    {
        "waits": pa.string(),
        "holder": pa.string(),
        "seconds": pa.float64(),
        "watermark": pa.int64(),
        "reason": pa.string(),
    }
)
"""One row per thing that something waits for."""


def holds_at_last(query: Query, catalog: Catalog, now: float | None = None) -> pa.Table:
    """Return of each source the split whose event time was furthest behind at the last checkpoint; columns HOLDS.

    Args:
        now: seconds since 1970.
    """
    last = catalog.last
    if last is None:
        return HOLDS.empty_table()
    now = time.time() if now is None else now
    moves = moves_until(query, catalog, last.epoch)
    newest = {(p.source_id, p.split.id): epoch for epoch, p in sorted(moves, key=lambda move: move[0])}
    times = {int(epoch): entry.manifest.committed_at / 1e6 for epoch, entry in catalog.entries.items()}
    by_source: dict[str, list[SplitPosition]] = {}
    for position in latest_positions(moves):
        if not position.finished and position.source_id in last.operators:
            by_source.setdefault(position.source_id, []).append(position)
    rows = []
    for source, open_ in by_source.items():
        if all(position.max_time is None for position in open_):
            continue  # no event time, or nothing has been read
        behind = min(open_, key=lambda p: -(2**63) if p.max_time is None else p.max_time)
        moved = newest[(source, behind.split.id)]
        at = times.get(moved)
        since = f"in epoch {moved}" if at is not None else f"before epoch {min(times)}"
        rows.append(
            {
                "waits": "watermark",
                "holder": f"split {behind.split.id!r} of source {last.operators[source].name!r}",
                "seconds": None if at is None else now - at,
                "watermark": behind.max_time,
                "reason": f"its rows were the oldest when the job ended; it was last read {since}",
            }
        )
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["watermark"] or 0), schema=HOLDS)
