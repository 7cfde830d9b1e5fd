"""Rows as the kit compares them: as dicts, in any order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from millstream.engine.changelog import WEIGHT

_SHOWN = 3


def rows_of(batches: Sequence[pa.RecordBatch]) -> list[dict[str, Any]]:
    """The rows of some batches as dicts, in order."""
    return [row for batch in batches for row in batch.to_pylist()]


def settled(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the rows of a changelog come to: each row once, with the sum of its weights, unless that is 0.

    Rows of other streams are returned as they are.
    """
    if not rows or WEIGHT not in rows[0]:
        return [dict(row) for row in rows]
    net: dict[str, dict[str, Any]] = {}
    for row in rows:
        value = {name: part for name, part in row.items() if name != WEIGHT}
        net.setdefault(repr(value), {**value, WEIGHT: 0})[WEIGHT] += row[WEIGHT]
    return [row for row in net.values() if row[WEIGHT]]


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
