"""Rows as the kit compares them: as dicts, in any order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

_SHOWN = 3


def rows_of(batches: Sequence[pa.RecordBatch]) -> list[dict[str, Any]]:
    """The rows of some batches as dicts, in order."""
    return [row for batch in batches for row in batch.to_pylist()]


def bag(rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Return how often each row occurs; NaN equals NaN."""
    return Counter(repr(sorted(row.items())) for row in rows)


def demand(got: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raise AssertionError unless both are the same rows, whatever their order."""
    found, wanted = bag(got), bag(expected)
    if found != wanted:
        raise AssertionError(f"{where}: {difference(found, wanted)}")


def difference(found: Counter[str], wanted: Counter[str]) -> str:
    """Say which rows are missing and which are too many."""
    parts = []
    for rows, what in ((wanted - found, "missing"), (found - wanted, "too many")):
        if rows:
            shown = ", ".join(f"{row} x {times}" for row, times in list(rows.items())[:_SHOWN])
            more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
            parts.append(f"{what}: {shown}{more}")
    return "; ".join(parts)
