"""ISO 8601 texts to timestamps, a column at a time."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from millstream.connectors.reading_plan import failing

# A zone only counts after a time of day: in a mere date, "-31" is the day.
_ZONE: Final = r"[T ].*(?:Z|[+-]\d{2}(?::?\d{2})?)$"


def parse_timestamps(texts: pa.Array, target: pa.TimestampType) -> tuple[pa.Array, dict[int, str]]:
    """Return the timestamps and, per row that holds none, what is wrong with it (the row is null then).

    Texts with a zone offset are converted to UTC, those without are taken to be UTC. Digits finer than the
    target's unit are cut off.

    >>> values, bad = parse_timestamps(pa.array(["2024-01-31", "2024-01-31T12:00:00+01:00", "x"]), pa.timestamp("us"))
    >>> [str(v) for v in values], list(bad)
    (['2024-01-31 00:00:00', '2024-01-31 11:00:00', 'None'], [2])
    """
    utc = pa.timestamp(target.unit, "UTC")
    for type_ in (pa.timestamp(target.unit), utc):
        try:
            return _relabelled(pc.cast(texts, type_), target), {}
        except pa.ArrowInvalid:
            continue
    return _one_kind_at_a_time(texts, target)


def _one_kind_at_a_time(texts: pa.Array, target: pa.TimestampType) -> tuple[pa.Array, dict[int, str]]:
    zoned = pc.fill_null(pc.match_substring_regex(texts, _ZONE), fill_value=False)
    values: pa.Array = pa.nulls(len(texts), target)
    problems: dict[int, str] = {}
    for kind, zone in ((pc.invert(zoned), None), (zoned, "UTC")):
        rows = pc.indices_nonzero(kind)
        parsed, bad = _parse(texts.take(rows), target, zone)
        values = pc.replace_with_mask(values, kind, parsed)
        problems |= {rows[i].as_py(): problem for i, problem in bad.items()}
    return values, problems


def _parse(texts: pa.Array, target: pa.TimestampType, zone: str | None) -> tuple[pa.Array, dict[int, str]]:
    def attempt(start: int, end: int) -> tuple[int, pa.Array]:
        part = texts.slice(start, end - start)
        try:
            return start, pc.cast(part, pa.timestamp(target.unit, zone))
        except pa.ArrowInvalid:
            # More digits than the unit has: nanoseconds are as fine as texts get.
            return start, pc.cast(pc.cast(part, pa.timestamp("ns", zone)), pa.timestamp(target.unit, zone), safe=False)

    done, bad = failing(len(texts), attempt)
    pieces = dict(done)
    pieces |= {row: pa.nulls(1, pa.timestamp(target.unit, zone)) for row in bad}
    ordered = [pieces[start] for start in sorted(pieces)]
    joined = pa.concat_arrays(ordered) if ordered else pa.nulls(0, pa.timestamp(target.unit, zone))
    said = {row: f"expected an ISO 8601 time, got {texts[row].as_py()!r}" for row in bad}
    return _relabelled(joined, target), said


def _relabelled(values: pa.Array, target: pa.TimestampType) -> pa.Array:
    """Return the same instants under another zone's name."""
    return values.cast(pa.int64()).cast(target) if values.type != target else values
