"""Changelogs in sessions, which shrink and part when rows are taken back."""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import duckdb
import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from changelog_kit import changelogs, hashable
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream import col
from millstream.engine.changelog import WEIGHT, weighted
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.session_window import SessionWindow
from millstream.operators.window_aggregate import WindowAggregate
from millstream.testing import BARRIER, Watermark, check_operator, simulate
from operator_kit import Advance, Harness, Restart, Step, bag, rows_of
from test_paned_changelogs import MERGED
from window_kit import SCHEMA

GAP = 10
Rows = list[dict[str, Any]]


def spec_of(made: list[AggregateSpec], keys: tuple[str, ...] = ("k",), lateness: int = 0) -> WindowAggregate:
    named = tuple((f"x{number}", aggregate) for number, aggregate in enumerate(made))
    return WindowAggregate(keys, SessionWindow(GAP), named, col("t"), lateness)


def micros(time: dt.datetime) -> int:
    return (time - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1)


def parts_of(rows: Rows) -> list[Rows]:
    """Sessions of the rows of a key."""
    parts: list[Rows] = []
    for row in sorted(rows, key=lambda row: row["t"]):
        if not parts or micros(row["t"]) - micros(parts[-1][-1]["t"]) >= GAP:
            parts.append([])
        parts[-1].append(row)
    return parts


def by_hand(steps: list[Step], keys: tuple[str, ...], lateness: int) -> tuple[list[Rows], Counter[tuple[int, int]]]:
    """The sessions that fire when time goes on, made anew each time of the rows there are; and the late changes."""
    held: dict[str, Rows] = defaultdict(list)
    fired: list[Rows] = []
    late, watermark = Counter[tuple[int, int]](), -(2**40)
    for step in [*steps, Advance(2**40)]:
        if isinstance(step, Advance) and step.time > watermark:
            watermark = step.time
            for key, rows in held.items():
                parts = parts_of(rows)
                over = [micros(part[-1]["t"]) + GAP + lateness <= watermark for part in parts]
                fired += [part for part, ended in zip(parts, over, strict=True) if ended]
                held[key] = [row for part, ended in zip(parts, over, strict=True) if not ended for row in part]
        for row in step.to_pylist() if isinstance(step, pa.RecordBatch) else ():
            weight = row.pop(WEIGHT)
            if row["t"] is None or micros(row["t"]) + GAP + lateness <= watermark:
                late[row["seq"], weight] += 1
                continue
            rows = held[repr([0.0 if row[name] == 0 else row[name] for name in keys])]
            rows += [row] * weight
            for _ in range(-weight):
                rows.remove(next(other for other in rows if other["seq"] == row["seq"]))
    return fired, late


def by_sql(sessions: list[Rows], keys: tuple[str, ...], made: list[str]) -> list[Any]:
    schema = SCHEMA.append(pa.field("session", pa.int64()))
    rows = pa.Table.from_pylist([{**row, "session": n} for n, held in enumerate(sessions) for row in held], schema)
    shown = [f"any_value({key}) + 0.0" if key == "h" else f"any_value({key})" for key in keys]
    times = ["make_timestamp(min(epoch_us(t)))", f"make_timestamp(max(epoch_us(t)) + {GAP})"]
    with duckdb.connect() as connection:
        connection.register("input", rows)
        query = f"select {', '.join([*shown, *times, *made])} from input group by session"
        return rows_of(connection.sql(query).to_arrow_table())


@settings(max_examples=20, deadline=None)
@given(
    changelogs(),
    st.sampled_from([(), ("k",), ("g", "k"), ("h",)]),
    st.sampled_from([0, 15]),
    st.integers(1, 2),
    st.integers(0, 5),
)
def test_any_changes_make_the_sessions_of_the_rows_that_are_there(
    steps: list[Step], keys: tuple[str, ...], lateness: int, parallelism: int, part: int
) -> None:
    made = MERGED[part::6]
    spec = spec_of([aggregate for aggregate, _ in made], keys, lateness)
    run = Harness(spec, weighted(SCHEMA), parallelism).run(steps).finish()
    sessions, late = by_hand(steps, keys, lateness)
    assert bag(map(hashable, rows_of(run.results()))) == bag(
        map(hashable, by_sql(sessions, keys, [s for _, s in made]))
    )
    found = run.results("late")
    assert Counter(zip(found["seq"].to_pylist(), found[WEIGHT].to_pylist(), strict=True)) == late
    assert not any(subtask._open.count for subtask in run.subtasks)


SMALL = weighted(pa.schema({"k": pa.string(), "t": pa.int64()}))


def rows(*times: int, weight: int = 1, key: str = "a") -> pa.RecordBatch:
    made = [{"k": key, "t": time, WEIGHT: weight} for time in times]
    return pa.RecordBatch.from_pylist(made, schema=SMALL)


def fired(run: Harness) -> list[tuple[int, int, int]]:
    made = run.results()
    starts, ends = (made[name].cast(pa.int64()).to_pylist() for name in ("window_start", "window_end"))
    return sorted(zip(starts, ends, made["x0"].to_pylist(), strict=True))


def run_of(*steps: Step) -> Harness:
    return Harness(spec_of([ms.count()]), SMALL).run(steps)


def test_a_session_shrinks_at_both_ends_and_parts_in_the_middle() -> None:
    run = run_of(rows(0, 5, 12, 20, 25), rows(0, 12, 25, weight=-1), Restart(2)).finish()
    assert fired(run) == [(5, 15, 1), (20, 30, 1)]


def test_a_row_that_is_replaced_keeps_its_session_together() -> None:
    # Time has passed the end of what is left when the row is taken back, but it is put back before time goes on.
    steps = [rows(0, 8, 16), Advance(12), rows(8, weight=-1), rows(8), Restart(2)]
    assert fired(run_of(*steps).finish()) == [(0, 26, 3)]
    halfway = [*steps[:3], Restart(2), rows(8)]
    assert fired(run_of(*halfway).finish()) == [(0, 26, 3)]


def test_what_is_left_behind_fires_once_time_goes_on() -> None:
    run = run_of(rows(0, 8, 16), Advance(12), rows(8, weight=-1))
    assert fired(run) == []
    run.run([Restart(1), Advance(13)])
    assert fired(run) == [(0, 10, 1)]
    run.run([rows(8)]).finish()
    assert fired(run) == [(0, 10, 1), (8, 26, 2)]


def test_a_row_of_an_open_session_is_late_when_a_session_of_its_own_would_have_fired() -> None:
    run = run_of(rows(0, 8, 16), Advance(12), rows(0, weight=-1)).finish()
    assert fired(run) == [(0, 26, 3)]
    assert run.results("late")["t"].to_pylist() == [0]


def test_moments_without_rows_are_forgotten_once_they_are_closed() -> None:
    run = run_of(rows(0, 5), rows(0, 5, weight=-1), Advance(14))
    assert run.subtasks[0]._open.count == 1
    run.run([Advance(15)])
    assert run.subtasks[0]._open.count == 0
    assert run.finish().results().num_rows == 0


def test_slots_are_used_again() -> None:
    run = Harness(spec_of([ms.count_distinct("t")]), SMALL)
    for time in range(0, 1_000, 20):
        made = {"k": np.arange(1_000).astype(str), "t": np.full(1_000, time), WEIGHT: np.ones(1_000, np.int64)}
        run.feed(pa.RecordBatch.from_pydict(made, schema=SMALL))
        run.advance(time)
        assert len(run.subtasks[0]._index) < 6_000
    assert run.finish().results().num_rows == 50_000


def test_the_kit() -> None:
    made = [ms.count(), ms.min("t"), ms.last("t"), ms.collect("t")]
    script = [
        rows(0, 5, 12),
        rows(3, 3, key="b"),
        BARRIER,
        rows(5, weight=-1),
        Watermark(11),
        rows(12, weight=-1),
        BARRIER,
        rows(12, 14),
        rows(3, weight=-1, key="b"),
        Watermark(13),
        BARRIER,
        rows(3, weight=-1, key="b"),
        rows(30, key="b"),
    ]
    found = check_operator(spec_of(made), script)
    assert sorted((row["k"], row["x0"], row["x3"]) for row in found["main"]) == [
        ("a", 1, [0]),
        ("a", 2, [12, 14]),
        ("b", 1, [3]),
        ("b", 1, [30]),
    ]
    assert [(row["k"], row["t"], row[WEIGHT]) for row in found["late"]] == [("b", 3, -1)]


START = dt.datetime(2026, 1, 1)


def changing_orders() -> list[pa.RecordBatch]:
    """Orders that are each moved on three times, a few minutes at a time."""
    made = [
        {"order": n // 4 + n % 4 * 2, "shop": f"s{n % 3}", "at": START + dt.timedelta(minutes=n + n % 5 * 2)}
        for n in range(240)
    ]
    return [pa.RecordBatch.from_pylist(made[n : n + 8]) for n in range(0, 240, 8)]


def make(out: Any) -> ms.Job:
    job = ms.Job("orders")
    last = job.read(ms.memory_source(changing_orders()), event_time="at", max_delay="30m").deduplicate(
        "order", keep="last"
    )
    last.group_by("shop").window(ms.session("9m"), lateness="10m").agg(
        n=ms.count(), first=ms.first("order"), all=ms.collect("order")
    ).write(out)
    return job


@pytest.mark.parametrize("seed", range(2))
def test_crashes_do_not_show(seed: int, tmp_path: Path) -> None:
    expected, out = ms.memory_sink(), ms.memory_sink()
    make(expected).run()
    orders = {
        row["order"]: row for batch in changing_orders() for row in sorted(batch.to_pylist(), key=lambda r: r["at"])
    }
    assert sum(row["n"] for row in expected.rows()) == len(orders)
    done = simulate(lambda: make(out), tmp_path / "s.duckdb", seed)
    assert sorted(map(repr, out.rows())) == sorted(map(repr, expected.rows())), f"seed {seed} reproduces it"
    assert done.crashes > 0
