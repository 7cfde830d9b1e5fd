"""What changelogs come to, beside what DuckDB makes of the same rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import duckdb
import pyarrow as pa
from millstream.engine.changelog import WEIGHT
from operator_kit import canonical, rows_of

Net = Counter[tuple[Any, ...]]


def net(batches: Iterable[pa.RecordBatch]) -> Net:
    """Each row with the sum of its weights, unless that is 0."""
    found: Net = Counter()
    for batch in batches:
        assert batch.schema.names[-1] == WEIGHT
        for *values, weight in rows_of(pa.Table.from_batches([batch])):
            found[hashable(values)] += weight
    return Counter({row: weight for row, weight in found.items() if weight})


def hashable(value: Any) -> Any:
    """Lists and dicts as tuples; NaN equals NaN."""
    if isinstance(value, (list, tuple)):
        return tuple(hashable(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, hashable(item)) for name, item in value.items())
    return canonical(value)


def aggregated(rows: pa.Table, keys: Sequence[str], made: Sequence[str]) -> Net:
    """The results of SQL aggregates over rows, per key; none without a row."""
    # 0.0 and -0.0 are one key; DuckDB shows one of them, we show 0.0.
    shown = [f"{key} + 0.0" if key == "h" else key for key in keys]
    group = f"group by {', '.join(keys)}" if keys else "having count(*) > 0"
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        result = connection.sql(f"select {', '.join([*shown, *made])} from rows {group}").to_arrow_table()
    return Counter(hashable(row) for row in rows_of(result))
