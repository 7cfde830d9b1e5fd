"""Joins within an interval or a window, against DuckDB, however rows come and wherever batches end."""

from __future__ import annotations

import datetime as dt
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from join_kit import PAIR, SCHEMAS, WHERES, Streams, bag, joined, streams, where_of
from millstream import col
from millstream.operators.join import HOWS
from millstream.testing import check_operator

NEAR = {
    "before": (("-9s", "0s"), "r.at between l.at - interval 9 second and l.at"),
    "after": (("3s", "12s"), "r.at between l.at + interval 3 second and l.at + interval 12 second"),
    "around": ((-4, 4), "r.at between l.at - interval 4 second and l.at + interval 4 second"),
    "until": ((col("at"), col("hi")), "r.at between l.at and l.hi"),
    "past": ((dt.timedelta(seconds=-20), "-6s"), "r.at between l.at - interval 20 second and l.at - interval 6 second"),
}


def by_sql(given: Streams, how: str, condition: str) -> list[tuple[Any, ...]]:
    if how == "semi":
        return given.sql(f"select l.* from l where exists (from r where l.k = r.k and {condition})")
    if how == "anti":
        return given.sql(f"select l.* from l where not exists (from r where l.k = r.k and {condition})")
    return given.sql(f"select {PAIR} from l {how} join r on l.k = r.k and {condition}")


@pytest.mark.parametrize("how", HOWS)
@settings(max_examples=8, deadline=None)
@given(given=streams(), near=st.sampled_from(sorted(NEAR)), where=st.sampled_from(list(WHERES)))
def test_rows_within_an_interval_are_those_of_sql(how: str, given: Streams, near: str, where: str | None) -> None:
    between, condition = NEAR[near]
    spec = joined(on="k", how=how, between=between, where=where_of(where))
    got = check_operator(spec, given.steps, schemas=SCHEMAS)
    assert bag(got.get("main", [])) == by_sql(given, how, f"{condition} and {WHERES[where]}")
    assert not got.keys() - {"main"}, "a row on time was late"


WINDOWS = {
    "tumbling": (ms.tumbling("10s"), lambda at: [(at // 10 * 10, at // 10 * 10 + 10)]),
    "sliding": (ms.sliding("10s", "4s"), lambda at: [(s, s + 10) for s in range(-60, 60, 4) if s <= at < s + 10]),
    "cumulating": (
        ms.cumulating("10s", "5s"),
        lambda at: [(at // 10 * 10, at // 10 * 10 + length) for length in (5, 10) if at < at // 10 * 10 + length],
    ),
}


def in_windows(given: Streams, side: int, window: str) -> pa.Table:
    """Every row of a stream once for each of its windows."""
    table = given.table(side)
    found = [
        (row, start, end)
        for row, at in enumerate(table["at"].cast(pa.int64()).to_pylist())
        for start, end in WINDOWS[window][1](at // 1_000_000)
    ]
    rows, starts, ends = zip(*found, strict=True) if found else ((), (), ())
    expanded = table.take(pa.array(rows, pa.int64()))
    for name, bounds in (("window_start", starts), ("window_end", ends)):
        expanded = expanded.append_column(name, pa.array([b * 1_000_000 for b in bounds], pa.timestamp("us")))
    return expanded


@pytest.mark.parametrize("how", HOWS)
@settings(max_examples=5, deadline=None)
@given(given=streams(), window=st.sampled_from(sorted(WINDOWS)), where=st.sampled_from(list(WHERES)))
def test_rows_in_the_same_window_are_those_of_sql(how: str, given: Streams, window: str, where: str | None) -> None:
    spec = joined(on="k", how=how, window=WINDOWS[window][0], where=where_of(where))
    got = check_operator(spec, given.steps, schemas=SCHEMAS)
    on = f"l.k = r.k and l.window_start = r.window_start and l.window_end = r.window_end and {WHERES[where]}"
    if how in {"semi", "anti"}:
        query = f"select l.* from l where {'not' if how == 'anti' else ''} exists (from r where {on})"
    else:
        bounds = ", ".join(f"coalesce(l.{name}, r.{name}) as {name}" for name in ("window_start", "window_end"))
        query = f"select {PAIR}, {bounds} from l {how} join r on {on}"
    expected = given.sql(query, l=in_windows(given, 0, window), r=in_windows(given, 1, window))
    assert bag(got.get("main", [])) == expected
    assert not got.keys() - {"main"}, "a row on time was late"
