"""What expressions compute on text and times, against Python and DuckDB."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from expression_kit import duck, python, values
from hypothesis import example, given, settings
from hypothesis import strategies as st
from millstream.engine.errors import DataError
from millstream.engine.expression import Expr, col

few = settings(max_examples=30, deadline=None)
a = col("a")

TEXT_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
alphabet = "aAbB/ %_.éÉßÄ日本😀\u0301\t"
columns = st.lists(st.none() | st.text(alphabet=alphabet, max_size=8), min_size=1, max_size=10)
pieces = st.text(alphabet="aAb/ é日_%.", min_size=1, max_size=2)


def text(column: list[str | None], type: pa.DataType = TEXT_TYPES[0]) -> pa.Array:
    array = pa.array(column, pa.string())
    return array.dictionary_encode() if pa.types.is_dictionary(type) else array.cast(type)


def part(value: str, separator: str, index: int) -> str:
    parts = value.split(separator)
    return parts[index - 1] if index <= len(parts) else ""


PYTHON: list[tuple[Expr, Callable[[str], Any]]] = [
    (a.str.length(), len),
    (a.str.slice(1), lambda s: s[1:]),
    (a.str.slice(-2), lambda s: s[-2:]),
    (a.str.slice(1, 3), lambda s: s[1:3]),
    (a.str.slice(-3, -1), lambda s: s[-3:-1]),
    (a.str.slice(3, 1), lambda s: ""),
    (a.str.strip(), str.strip),
    (a.str.lstrip(), str.lstrip),
    (a.str.rstrip(), str.rstrip),
    (a.str.strip("aé"), lambda s: s.strip("aé")),
    (a.str.lstrip("a/"), lambda s: s.lstrip("a/")),
    (a.str.rstrip("日"), lambda s: s.rstrip("日")),
    (a.str.concat("-", a), lambda s: f"{s}-{s}"),
    (a + "é", lambda s: s + "é"),
    ("é" + a, lambda s: "é" + s),
    (a.str.contains("A", ignore_case=True), lambda s: "a" in s.lower()),
    (a.str.contains(""), lambda s: True),
    (a.str.starts_with(""), lambda s: True),
]


@pytest.mark.parametrize("type", TEXT_TYPES, ids=str)
@few
@given(columns)
@example(["", None, "é"])
@example([None, None])
def test_text_is_pythons(type: pa.DataType, column: list[str | None]) -> None:
    for expr, function in PYTHON:
        assert values(expr, a=text(column, type)) == python(function, column), expr


@few
@given(columns, pieces, st.integers(1, 4))
def test_looking_for_text(column: list[str | None], piece: str, index: int) -> None:
    array = text(column)
    assert values(a.str.contains(piece), a=array) == python(lambda s: piece in s, column)
    assert values(a.str.starts_with(piece), a=array) == python(lambda s: s.startswith(piece), column)
    assert values(a.str.ends_with(piece), a=array) == python(lambda s: s.endswith(piece), column)
    assert values(a.str.count(piece), a=array) == python(lambda s: s.count(piece), column)
    assert values(a.str.replace(piece, "日x"), a=array) == python(lambda s: s.replace(piece, "日x"), column)
    for type in TEXT_TYPES:
        found = values(a.str.split_part(piece, index), a=text(column, type))
        assert found == python(lambda s: part(s, piece, index), column)


@few
@given(columns, st.text(alphabet="aAé日%_/", max_size=4))
def test_patterns_are_duckdbs(column: list[str | None], pattern: str) -> None:
    array = text(column)
    assert values(a.str.lower(), a=array) == duck("lower(a)", a=array)
    assert values(a.str.upper(), a=array) == duck("upper(a)", a=array)
    assert values(a.str.like(pattern), a=array) == duck(f"a LIKE '{pattern}'", a=array)
    assert values(a.str.like(pattern, ignore_case=True), a=array) == duck(f"a ILIKE '{pattern}'", a=array)
    for regex in ("^a", "[a-zé]+.", "(a|日)(.)?", "/$"):
        assert values(a.str.matches(regex), a=array) == duck(f"regexp_matches(a, '{regex}')", a=array)
        replaced = duck(f"regexp_replace(a, '{regex}', '<\\0>', 'g')", a=array)
        assert values(a.str.replace_regex(regex, r"<\0>"), a=array) == replaced
        found = duck(f"CASE WHEN regexp_matches(a, '{regex}') THEN regexp_extract(a, '{regex}') END", a=array)
        assert values(a.str.extract(regex), a=array) == found


def test_groups_of_a_pattern() -> None:
    urls = ["https://x/?channel_id=7&b=8", "none", None, "channel_id="]
    expr = a.str.extract(r"(&|\?|^)channel_id=([^&]*)", 2)
    assert values(expr, a=urls) == ["7", None, None, ""]
    assert values(a.str.extract("(?P<host>//[a-z])", "host"), a=urls) == ["//x", None, None, None]
    assert values(a.str.extract(r"[(](x)|\((?:y)(z)?", 2), a=["(y", "(yz", "(x"]) == ["", "z", ""]
    assert values(a.str.extract(r"\Q(\E(.)", 1), a=["(q"]) == ["q"]
    assert values(a.str.extract("(?i)CHANNEL(_)", 1), a=urls) == ["_", None, None, "_"]
    assert values(a.str.replace_regex("(.)=(.)", r"\2=\1"), a=["a=b"]) == ["b=a"]


def test_every_part_of_long_text_in_one_batch() -> None:
    rows = ["/".join(f"p{i}.{n}" for i in range(n % 7)) for n in range(20_000)]
    assert values(a.str.split_part("/", 3), a=rows) == [part(row, "/", 3) for row in rows]
    assert values(a.str.count("/"), a=rows) == [row.count("/") for row in rows]
    assert values(a.str.length(), a=rows) == [len(row) for row in rows]


# -- times -----------------------------------------------------------------------------------------------------

moments = st.one_of(
    st.sampled_from(
        [
            dt.datetime(1969, 12, 31, 23, 59, 59, 999999),
            dt.datetime(1970, 1, 1),
            dt.datetime(1900, 2, 28, 23, 59, 59, 1),
            dt.datetime(2000, 2, 29, 12),
            dt.datetime(2024, 12, 30),
            dt.datetime(1, 1, 8),
            dt.datetime(9999, 12, 31, 23, 59, 59, 999999),
        ]
    ),
    st.datetimes(dt.datetime(1, 1, 8), dt.datetime(9999, 12, 31)),
)
time_columns = st.lists(st.none() | moments, min_size=1, max_size=10)
EPOCH = dt.datetime(1970, 1, 1)
MICROSECOND = dt.timedelta(microseconds=1)

PARTS: dict[str, Callable[[dt.datetime], Any]] = {
    "year": lambda t: t.year,
    "month": lambda t: t.month,
    "day": lambda t: t.day,
    "hour": lambda t: t.hour,
    "minute": lambda t: t.minute,
    "second": lambda t: t.second,
    "weekday": lambda t: t.weekday(),
    "date": lambda t: t.date(),
}


@few
@given(time_columns)
def test_parts_of_times_are_pythons(column: list[dt.datetime | None]) -> None:
    for unit, resolution in (("us", 1), ("ms", 1_000), ("s", 1_000_000)):
        rounded = python(lambda t, r=resolution: EPOCH + (t - EPOCH) // MICROSECOND // r * r * MICROSECOND, column)
        array = pa.array(rounded, pa.timestamp(unit))
        for name, part_of in PARTS.items():
            assert values(getattr(a.dt, name)(), a=array) == python(part_of, rounded), name
        assert values(a.dt.epoch_us(), a=array) == python(lambda t: (t - EPOCH) // MICROSECOND, rounded)
    days = python(dt.datetime.date, column)
    for type in (pa.date32(), pa.date64()):
        for name in ("year", "month", "day", "weekday"):
            assert values(getattr(a.dt, name)(), a=pa.array(days, type)) == python(PARTS[name], days), name
        assert values(a.dt.date(), a=pa.array(days, type)) == days


def zone_of(name: str) -> dt.tzinfo:
    return dt.timezone(dt.timedelta(hours=5, minutes=30)) if name.startswith("+") else ZoneInfo(name)


FLOORS = {"hour": {}, "day": {"hour": 0}, "month": {"hour": 0, "day": 1}, "year": {"hour": 0, "day": 1, "month": 1}}


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York", "+05:30"])
@few
@given(st.lists(st.none() | st.datetimes(dt.datetime(1971, 1, 1), dt.datetime(2030, 1, 1)), min_size=1, max_size=10))
def test_parts_of_times_are_those_of_their_zone(zone: str, column: list[dt.datetime | None]) -> None:
    array = pa.array(column, pa.timestamp("us")).cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us", zone))
    local = python(lambda t: t.replace(tzinfo=dt.UTC).astimezone(zone_of(zone)), column)
    for name, part_of in PARTS.items():
        assert values(getattr(a.dt, name)(), a=array) == python(part_of, local), name
    shown = values(a.dt.strftime("%Y-%m-%d %H:%M:%S %z"), a=array)
    assert shown == python(lambda t: t.replace(microsecond=0).strftime("%Y-%m-%d %H:%M:%S %z"), local)
    for unit, least in FLOORS.items():
        floor = python(lambda t, c=least: t.replace(minute=0, second=0, microsecond=0, tzinfo=None, **c), local)
        found = values(a.dt.truncate(unit), a=array)
        assert python(lambda t: t.replace(tzinfo=None), found) == floor, unit


def test_days_whose_midnight_came_twice_or_never() -> None:
    def local(zone: str, *moments: dt.datetime) -> pa.Array:
        return pa.array(moments, pa.timestamp("us")).cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us", zone))

    def hours(expr: Expr, column: pa.Array) -> list[str]:
        return [t.astimezone(dt.UTC).strftime("%dT%H:%M") for t in values(expr, a=column)]

    # In Sao Paulo 2018-11-04 began at 01:00, 03:00 UTC; in Havana it was 00:00 at 04:00 and at 05:00 UTC.
    skipped = local("America/Sao_Paulo", dt.datetime(2018, 11, 4, 2, 59), dt.datetime(2018, 11, 4, 3, 20))
    assert hours(a.dt.truncate("day"), skipped) == ["03T03:00", "04T03:00"]
    assert hours(a.dt.truncate("hour"), skipped) == ["04T02:00", "04T03:00"]
    twice = local(
        "America/Havana", dt.datetime(2018, 11, 4, 3, 59), *(dt.datetime(2018, 11, 4, h, 30) for h in (4, 5, 6))
    )
    assert hours(a.dt.truncate("day"), twice) == ["03T04:00", "04T04:00", "04T04:00", "04T04:00"]
    assert hours(a.dt.truncate("hour"), twice) == ["04T03:00", "04T04:00", "04T05:00", "04T06:00"]


@few
@given(time_columns)
def test_truncating_is_duckdbs(column: list[dt.datetime | None]) -> None:
    array = pa.array(column, pa.timestamp("us"))
    for unit in ("second", "minute", "hour", "day", "week", "month", "quarter", "year"):
        assert values(a.dt.truncate(unit), a=array) == duck(f"date_trunc('{unit}', a)", a=array), unit
    days = pa.array(python(dt.datetime.date, column), pa.date32())
    for unit in ("week", "month", "quarter", "year"):
        found = duck(f"CAST(date_trunc('{unit}', a) AS DATE)", a=days)
        assert values(a.dt.truncate(unit), a=days) == found, unit


@few
@given(time_columns, st.sampled_from(["10s", "1us", "1500ms", "7m", "36h"]))
def test_truncating_to_a_duration_counts_from_1970(column: list[dt.datetime | None], unit: str) -> None:
    micros = {"10s": 10_000_000, "1us": 1, "1500ms": 1_500_000, "7m": 420_000_000, "36h": 129_600_000_000}[unit]
    array = pa.array(column, pa.timestamp("us"))
    expected = python(lambda t: EPOCH + (t - EPOCH) // MICROSECOND // micros * micros * MICROSECOND, column)
    assert values(a.dt.truncate(unit), a=array) == expected


def test_nanoseconds_are_rounded_down() -> None:
    column = pa.array([-1, -1_000, -1_001, 0, 999, None], pa.timestamp("ns"))
    assert values(a.dt.epoch_us(), a=column) == [-1, -1, -2, 0, 0, None]
    assert values(a.dt.truncate("1us").cast("int64"), a=column) == [-1_000, -1_000, -2_000, 0, 0, None]
    assert values(a.dt.date(), a=column)[0] == dt.date(1969, 12, 31)
    assert values(a.dt.second(), a=column) == [59, 59, 59, 0, 0, None]


@pytest.mark.parametrize(
    ("expr", "column"),
    [
        (a.dt.date(), pa.array([0, 2**62], pa.timestamp("s"))),
        (a.dt.truncate("1d"), pa.array([0, -(2**63)], pa.timestamp("us"))),
        (a.dt.truncate("10s"), pa.array([0, -(2**63)], pa.timestamp("ns"))),
        (a.dt.epoch_us(), pa.array([0, 2**60], pa.timestamp("ms"))),
        (a + dt.timedelta(days=1), pa.array([0, 2**63 - 1], pa.timestamp("us"))),
        (a - dt.datetime(1970, 1, 2), pa.array([0, -(2**63)], pa.timestamp("us"))),
    ],
    ids=str,
)
def test_times_beyond_all_reason_are_an_error_and_no_other_time(expr: Expr, column: pa.Array) -> None:
    with pytest.raises(DataError, match=rf"first where a = -?\d+ \(timestamp\[{column.type.unit}\]\)"):
        values(expr, a=column)
    assert len(values(expr, a=column.slice(0, 1))) == 1


FORMATS = ["%Y-%m-%d", "%H:%M", "%Y-%m-%dT%H:%M:%S", "%d.%m.%y %I%p", "%j %a %b", "%%Y", "at %H o'clock", "week %V", ""]


@few
@given(st.lists(st.none() | st.datetimes(dt.datetime(1000, 1, 1), dt.datetime(9999, 1, 1)), min_size=1, max_size=10))
def test_written_times_are_pythons(column: list[dt.datetime | None]) -> None:
    array = pa.array(column, pa.timestamp("us"))
    for format in FORMATS:
        assert values(a.dt.strftime(format), a=array) == python(lambda t, f=format: t.strftime(f), column), format
    whole = python(lambda t: t.replace(microsecond=0), column)
    written = {"a": values(a.dt.strftime("%Y-%m-%d %H:%M:%S"), a=array)}
    assert values(a.str.parse_time("%Y-%m-%d %H:%M:%S"), a=pa.array(written["a"], pa.string())) == whole
    assert values(a.cast("timestamp[us]"), a=pa.array(written["a"], pa.string())) == whole


def test_a_text_that_is_no_time_is_an_error_and_shown() -> None:
    with pytest.raises(DataError, match=r"parse_time\(a, .*'soon'.*; first where a = 'soon'"):
        values(a.str.parse_time("%Y-%m-%d"), a=["2024-01-31", "soon"])
