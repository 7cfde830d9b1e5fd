"""Changelogs in windows that share panes: what fires is what SQL gives over the rows that are there by then."""

from __future__ import annotations

from collections import Counter
from typing import Any

import duckdb
import millstream as ms
import pyarrow as pa
import pytest
from changelog_kit import changelogs, hashable
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream import col
from millstream.engine.changelog import WEIGHT, weighted
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.paned_windows import CumulatingWindow, SlidingWindow
from millstream.operators.window_aggregate import WindowAggregate
from millstream.operators.windows import PanedWindow
from millstream.testing import BARRIER, Watermark, check_operator
from operator_kit import Advance, Harness, Restart, Step, bag, rows_of
from test_group_aggregate_retractions import AGGREGATES
from window_kit import SCHEMA

WINDOWS: list[PanedWindow] = [
    SlidingWindow(10, 5, 3),
    SlidingWindow(12, 8),
    SlidingWindow(10, 10),
    CumulatingWindow(10, 4, 7),
    CumulatingWindow(12, 3),
]
MERGED = [(made, sql) for made, sql in AGGREGATES if made.can_merge]


def spec_of(
    window: PanedWindow, made: list[AggregateSpec], keys: tuple[str, ...] = ("k",), lateness: int = 0
) -> WindowAggregate:
    named = tuple((f"x{number}", aggregate) for number, aggregate in enumerate(made))
    return WindowAggregate(keys, window, named, col("t"), lateness)


def shares(steps: list[Step], window: PanedWindow, lateness: int) -> tuple[pa.Table, Counter[tuple[int, int]]]:
    """The rows that each window has when it fires, with its start and stop; and the late changes by row and weight."""
    watermark, late = -(2**40), Counter[tuple[int, int]]()
    held, row_of = Counter[tuple[int, int]](), dict[int, dict[str, Any]]()
    for step in steps:
        if isinstance(step, Advance):
            watermark = max(watermark, step.time)
        for row in step.to_pylist() if isinstance(step, pa.RecordBatch) else ():
            weight = row.pop(WEIGHT)
            time = None if row["t"] is None else pa.scalar(row["t"], pa.timestamp("us")).value
            ends = [] if time is None else [end for end in range(-99, 99) if _holds(window, end, time)]
            open = [end for end in ends if end + lateness > watermark]
            for end in open:
                held[row["seq"], end] += weight
            late[row["seq"], weight] += not open
            row_of[row["seq"]] = row
    rows = [
        {**row_of[seq], "start": window.start_of(end), "stop": end}
        for (seq, end), weight in held.items()
        for _ in range(weight)
    ]
    fields = [pa.field(name, pa.int64()) for name in ("start", "stop")]
    return pa.Table.from_pylist(rows, pa.schema([*SCHEMA, *fields])), +late


def _holds(window: PanedWindow, end: int, time: int) -> bool:
    """Whether the window with an end holds a time, by the words of the guide and not by ours."""
    if isinstance(window, SlidingWindow):
        return (end - window.offset - window.size) % window.slide == 0 and end - window.size <= time < end
    length = (end - window.offset) % window.size or window.size
    whole = length % window.step == 0 or length == window.size
    return whole and end - length <= time < end


def by_sql(rows: pa.Table, keys: tuple[str, ...], made: list[str]) -> list[Any]:
    shown = [f"{key} + 0.0" if key == "h" else key for key in keys]
    outputs = ", ".join([*shown, "make_timestamp(start)", "make_timestamp(stop)", *made])
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        query = f"select {outputs} from rows group by {', '.join([*keys, 'start', 'stop'])}"
        return rows_of(connection.sql(query).to_arrow_table())


@settings(max_examples=18, deadline=None)
@given(
    changelogs(),
    st.sampled_from(WINDOWS),
    st.sampled_from([(), ("k",), ("g", "k"), ("h",)]),
    st.sampled_from([0, 15]),
    st.integers(1, 2),
    st.integers(0, 5),
)
def test_what_fires_is_what_sql_gives_over_the_rows_that_are_there(
    steps: list[Step], window: PanedWindow, keys: tuple[str, ...], lateness: int, parallelism: int, part: int
) -> None:
    made = MERGED[part::6]
    spec = spec_of(window, [aggregate for aggregate, _ in made], keys, lateness)
    run = Harness(spec, weighted(SCHEMA), parallelism).run(steps).finish()
    there, late = shares(steps, window, lateness)
    expected = by_sql(there, keys, [sql for _, sql in made]) if there.num_rows else []
    assert bag(map(hashable, rows_of(run.results()))) == bag(map(hashable, expected))
    found = run.results("late")
    assert Counter(zip(found["seq"].to_pylist(), found[WEIGHT].to_pylist(), strict=True)) == late


SMALL = weighted(pa.schema({"k": pa.string(), "v": pa.int64(), "t": pa.int64()}))


def rows(*values: tuple[str, int, int, int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict(zip(SMALL.names, row, strict=True)) for row in values], schema=SMALL)


SCRIPT = [
    rows(("a", 1, 3, 1), ("a", 2, 7, 2), ("b", 5, 9, 1)),
    BARRIER,
    rows(("a", 2, 7, -1), ("b", 5, 9, -1), ("b", 6, 12, 1)),
    Watermark(9),
    BARRIER,
    rows(("a", 1, 3, -1)),
    Watermark(10),
    rows(("a", 2, 7, -1), ("b", 7, 12, 1)),  # the first only leaves windows that end after 10
    BARRIER,
    rows(("b", 6, 12, -1)),
]


@pytest.mark.parametrize("window", [SlidingWindow(10, 5), CumulatingWindow(10, 5)], ids=["sliding", "cumulating"])
def test_the_kit(window: PanedWindow) -> None:
    made = [ms.count(), ms.sum("v"), ms.min("v"), ms.last("v"), ms.collect("v")]
    got = check_operator(spec_of(window, made), SCRIPT)["main"]
    found = [(row["k"], row["window_end"].microsecond, row["x0"], row["x4"]) for row in got]
    assert sorted(found) == [("a", 5, 1, [1]), ("a", 10, 1, [2]), ("b", 15, 1, [7]), ("b", 20, 1, [7])]


def test_a_window_that_passed_without_rows_does_not_fire_after_a_restart() -> None:
    steps = [rows(("a", 1, 6, 1), ("a", 1, 6, -1)), Advance(10), rows(("a", 2, 6, 1)), Restart(2), Advance(15)]
    run = Harness(spec_of(SlidingWindow(10, 5), [ms.count()]), SMALL).run(steps).finish()
    assert [(row["window_end"].microsecond, row["x0"]) for row in run.results().to_pylist()] == [(15, 1)]
