"""Days in a time zone."""

from __future__ import annotations

import datetime as dt
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.errors import DataError, JobError
from millstream.engine.expression import col
from millstream.engine.time import END_OF_TIME, START_OF_TIME
from millstream.operators.calendar_window import DAY, CalendarWindow
from millstream.operators.window_aggregate import WindowAggregate
from millstream.testing import BARRIER, Watermark, check_operator
from operator_kit import Advance, Harness, Restart, bag, rows_of

ZONES = ["Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "America/Sao_Paulo", "Asia/Tokyo"]
HOUR = DAY // 24
# Paris: clocks go forward on 29 March and back on 25 October 2026.
SPRING = 20_541 * DAY - HOUR
AUTUMN = 20_751 * DAY - 2 * HOUR


def test_days_have_23_and_25_hours_where_clocks_change() -> None:
    window = CalendarWindow(1, "Europe/Paris")
    starts = np.array([SPRING - 24 * HOUR, SPRING, SPRING + 23 * HOUR, AUTUMN, AUTUMN + 25 * HOUR])
    assert ((window.ends(starts) - starts) // HOUR).tolist() == [24, 23, 24, 25, 24]
    assert window.assign(starts).tolist() == starts.tolist()
    assert window.assign(window.ends(starts) - 1).tolist() == starts.tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-80 * 366 * DAY, 80 * 366 * DAY), min_size=1, max_size=40),
    st.sampled_from(ZONES),
    st.sampled_from([1, 7, 30]),
    st.integers(0, DAY - 1),
)
def test_windows_touch_and_hold_their_rows(times: list[int], zone: str, days: int, offset: int) -> None:
    window = CalendarWindow(days, zone, offset)
    at = np.array(times)
    starts = window.assign(at)
    ends = window.ends(starts)
    assert bool(((starts <= at) & (at < ends)).all())
    assert window.assign(ends).tolist() == ends.tolist()
    for time, start, end in zip(times, starts.tolist(), ends.tolist(), strict=True):
        assert [window.last_closed(x) for x in (end - 1, end)] == [start - 1, end - 1]
        assert window.assign(np.array([time])).tolist() == [start]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(-20 * 366 * DAY, 70 * 366 * DAY), min_size=1, max_size=60),
    st.sampled_from(["Europe/Paris", "America/New_York", "Asia/Tokyo"]),
    st.integers(1, 3),
)
def test_rows_are_counted_by_the_day_that_sql_sees_there(times: list[int], zone: str, parallelism: int) -> None:
    batch = pa.record_batch({"k": pa.array([time % 3 for time in times]), "t": pa.array(times)})
    spec = WindowAggregate(("k",), CalendarWindow(1, zone), (("n", ms.count()),), col("t"))
    half = len(times) // 2
    steps = [batch.slice(0, half), Advance(min(times)), Restart(parallelism), batch.slice(half)]
    run = Harness(spec, batch.schema, 2).run(steps).finish()
    with duckdb.connect() as connection:
        connection.register("input", pa.Table.from_batches([batch]))
        local = f"date_trunc('day', timezone('{zone}', make_timestamptz(t)))"
        midnight = f"epoch_us(timezone('{zone}', {{}}))"
        sql = f"select k, {local} as day, count(*) as n from input group by all"
        days = f"select k, {midnight.format('day')}, {midnight.format('day + interval 1 day')}, n from ({sql})"
        expected = connection.sql(days).fetchall()
    table = run.results()
    found = [table.column(0), *(table.column(i).cast(pa.int64()) for i in (1, 2)), table.column(3)]
    assert bag(rows_of(pa.table(found, names=["k", "start", "end", "n"]))) == bag(expected)


def test_a_day_fires_when_it_ends_there_plus_the_lateness() -> None:
    batch = pa.record_batch({"t": pa.array([SPRING, SPRING + 23 * HOUR - 1])})
    spec = WindowAggregate((), CalendarWindow(1, "Europe/Paris"), (("n", ms.count()),), col("t"), lateness=HOUR)
    run = Harness(spec, batch.schema).run([batch, Advance(SPRING + 24 * HOUR - 1)])
    assert run.results().num_rows == 0
    run.advance(SPRING + 24 * HOUR)
    assert run.results().column("n").to_pylist() == [2]
    run.feed(batch)
    assert run.results("late").num_rows == 2


def test_the_kit_finds_nothing_in_aggregates_and_tops() -> None:
    times = [SPRING - 1, SPRING, SPRING + 23 * HOUR, SPRING + 22 * HOUR, SPRING + 60 * HOUR]
    batch = pa.record_batch({"v": pa.array([1, 2, 3, 4, 5]), "t": pa.array(times)})
    script = [batch, BARRIER, Watermark(SPRING + 23 * HOUR), batch.slice(1), BARRIER]
    window = ms.tumbling("1d", zone="Europe/Paris")
    found = check_operator(WindowAggregate((), window, (("n", ms.sum("v")),), col("t")), script)["main"]
    assert [row["n"] for row in found] == [1, 6, 6, 10]
    job = ms.Job("top")
    out = ms.memory_sink()
    job.read(ms.memory_source([batch.set_column(1, "t", batch["t"].cast(pa.timestamp("us")))]), event_time="t").window(
        window
    ).top(1, by="v").select("v").write(out)
    job.run()
    assert [row["v"] for row in out.rows()] == [1, 4, 3, 5]


def test_weeks_begin_on_monday_with_four_days_of_offset() -> None:
    (start,) = ms.tumbling("7d", offset="4d", zone="Europe/Paris").assign(np.array([SPRING])).tolist()
    local = dt.datetime.fromtimestamp(start // 1_000_000, ZoneInfo("Europe/Paris"))
    assert (local.strftime("%A"), local.hour) == ("Monday", 0)


def test_a_skipped_day_is_an_empty_window() -> None:
    # Samoa went over the date line: 30 December 2011 was not.
    window = CalendarWindow(1, "Pacific/Apia")
    before = int(dt.datetime(2011, 12, 30, 9, 59, tzinfo=dt.UTC).timestamp()) * 1_000_000
    (start,) = window.assign(np.array([before])).tolist()
    (end,) = window.ends(np.array([start])).tolist()
    assert (end - start, window.assign(np.array([end])).tolist()) == (DAY, [end])


def test_the_ends_of_time_are_in_no_window() -> None:
    window = CalendarWindow(1, "Europe/Paris")
    assert (window.last_closed(START_OF_TIME), window.last_closed(END_OF_TIME)) == (START_OF_TIME, END_OF_TIME)
    with pytest.raises(DataError, match=r"9223372036854775807.*too far away for days in Europe/Paris"):
        window.assign(np.array([0, 2**63 - 1]))


def test_times_far_apart_are_not_listed_day_by_day() -> None:
    far = np.array([-700_000 * DAY, 0, 2_900_000 * DAY])
    assert ((far - CalendarWindow(1, "Asia/Tokyo").assign(far)) // HOUR).tolist()[1:] == [9, 9]


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        ("1h", {"zone": "Europe/Paris"}, "so many days, such as '1d'.*leave zone= out"),
        ("1d", {"zone": "Europe/Pariss"}, "'Europe/Pariss' is no time zone"),
        ("1d", {"zone": 2}, "2 is no time zone"),
        ("1d", {"zone": "Europe/Paris", "offset": "1d"}, "offset must be smaller"),
        ("2000d", {"zone": "Europe/Paris"}, "at most 1000 days"),
        ("0d", {"zone": "Europe/Paris"}, "needs a size"),
    ],
)
def test_what_makes_no_sense_is_refused(size: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        ms.tumbling(size, **options)
