"""Windows that rows make themselves."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from pathlib import Path
from typing import Any

import duckdb
import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.errors import DataError, JobError
from millstream.engine.expression import col
from millstream.operators.session_window import SessionWindow
from millstream.operators.window_aggregate import WindowAggregate
from millstream.testing import BARRIER, Watermark, check_operator, simulate
from operator_kit import Advance, Harness, Restart, Step, bag, rows_of
from window_kit import SCHEMA, streams

GAP = 10
AGGREGATES = {
    "n": (ms.count(), "count(*)"),
    "i": (ms.sum("i"), "sum(i)"),
    "f": (ms.mean("f"), "avg(f)"),
    "s": (ms.max("s"), "max(s)"),
    "first": (ms.first("s"), "first(s order by t, seq)"),
    "last": (ms.last("n"), "last(n order by t, seq)"),
    "pick": (ms.arg_max("d", "seq"), "arg_max(d, seq)"),
    "distinct": (ms.count_distinct("s"), "count(distinct s)"),
    "about": (ms.approx_count_distinct("seq"), "count(*)"),
    "median": (ms.median("seq"), "median(seq)"),
}


def spec_of(keys: tuple[str, ...] = ("k",), lateness: int = 0, **aggregates: Any) -> WindowAggregate:
    made = aggregates or {name: aggregate for name, (aggregate, _) in AGGREGATES.items()}
    return WindowAggregate(keys, SessionWindow(GAP), tuple(made.items()), col("t"), lateness)


def micros(time: dt.datetime) -> int:
    return (time - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1)


def by_hand(steps: list[Step], keys: tuple[str, ...], lateness: int) -> tuple[list[list[dict[str, Any]]], int]:
    """Sessions as lists of rows, made row by row, and how many rows were late or without time."""
    sessions: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
    fired, late, watermark = [], 0, -(2**40)
    for step in [*steps, Advance(2**40)]:
        if isinstance(step, Advance):
            watermark = max(watermark, step.time)
            for key, held in sessions.items():
                ended = [s for s in held if max(micros(r["t"]) for r in s) + GAP + lateness <= watermark]
                fired += ended
                sessions[key] = [s for s in held if s not in ended]
        for row in step.to_pylist() if isinstance(step, pa.RecordBatch) else ():
            if row["t"] is None or micros(row["t"]) + GAP + lateness <= watermark:
                late += 1
                continue
            key = repr([0.0 if row[name] == 0 else row[name] for name in keys])
            near = [s for s in sessions[key] if any(abs(micros(r["t"]) - micros(row["t"])) < GAP for r in s)]
            apart = [s for s in sessions[key] if s not in near]
            sessions[key] = [*apart, [*(r for s in near for r in s), row]]
    return fired, late


def by_sql(sessions: list[list[dict[str, Any]]], keys: tuple[str, ...]) -> list[Any]:
    schema = SCHEMA.append(pa.field("session", pa.int64()))
    rows = pa.Table.from_pylist([{**row, "session": n} for n, held in enumerate(sessions) for row in held], schema)
    shown = [f"any_value({key}) + 0.0" if key == "h" else f"any_value({key})" for key in keys]
    times = ["make_timestamp(min(epoch_us(t)))", f"make_timestamp(max(epoch_us(t)) + {GAP})"]
    outputs = ", ".join([*shown, *times, *(sql for _, sql in AGGREGATES.values())])
    with duckdb.connect() as connection:
        connection.register("input", rows)
        return rows_of(connection.sql(f"select {outputs} from input group by session").to_arrow_table())


@settings(max_examples=40, deadline=None)
@given(streams(), st.sampled_from([(), ("k",), ("g", "k"), ("h",)]), st.sampled_from([0, 15]), st.integers(1, 2))
def test_any_stream_makes_the_sessions_that_row_by_row_makes(
    steps: list[Step], keys: tuple[str, ...], lateness: int, parallelism: int
) -> None:
    run = Harness(spec_of(keys, lateness), SCHEMA, parallelism).run(steps).finish()
    sessions, late = by_hand(steps, keys, lateness)
    assert bag(rows_of(run.results())) == bag(by_sql(sessions, keys))
    assert run.results("late").num_rows == late


PLAIN = pa.schema({"k": pa.int64(), "t": pa.int64()})


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-300, 300)), min_size=1, max_size=60), st.integers(1, 9))
def test_without_watermarks_sessions_are_those_of_sql(rows: list[tuple[int, int]], size: int) -> None:
    table = pa.Table.from_arrays([pa.array(column) for column in zip(*rows, strict=True)], schema=PLAIN)
    steps: list[Step] = [step for batch in table.to_batches(size) for step in (batch, Restart(1 + batch.num_rows % 3))]
    run = Harness(spec_of(n=ms.count(), all=ms.sum("t")), PLAIN).run(steps).finish()
    with duckdb.connect() as connection:
        connection.register("input", table)
        marked = f"select *, t - lag(t) over (partition by k order by t) < {GAP} as near from input"
        numbered = f"select *, count(*) filter (near is not true) over (partition by k order by t) as s from ({marked})"
        times = f"make_timestamp(min(t)), make_timestamp(max(t) + {GAP})"
        sql = f"select k, {times}, count(*), sum(t)::bigint from ({numbered}) group by k, s"
        expected = rows_of(connection.sql(sql).to_arrow_table())
    assert bag(rows_of(run.results())) == bag(expected)


def batch_of(*rows: tuple[int, int]) -> pa.RecordBatch:
    return pa.record_batch([pa.array(column) for column in zip(*rows, strict=True)], schema=PLAIN)


def test_a_row_exactly_a_gap_later_is_another_session() -> None:
    run = Harness(spec_of(n=ms.count()), PLAIN).run([batch_of((1, 0), (1, 9), (1, 19), (1, 28))]).finish()
    assert run.results().column("n").to_pylist() == [2, 2]


def test_sessions_that_grow_together_leave_one_row_of_state() -> None:
    run = Harness(spec_of(n=ms.count(), all=ms.collect("t")), PLAIN).run([batch_of((1, 0), (1, 15), (2, 3))])
    assert run.subtasks[0].snapshot(1)["windows"].rows.num_rows == 3
    run.feed(batch_of((1, 8)))
    rows = run.subtasks[0].snapshot(2)["windows"].rows.to_pylist()
    assert [(row["k"], row["deleted"]) for row in rows] == [(1, True), (1, False), (2, False)]
    assert [row["all"] for row in run.finish().results().to_pylist()] == [[3], [0, 15, 8]]


def test_slots_of_sessions_are_used_again() -> None:
    run = Harness(spec_of(n=ms.count(), d=ms.count_distinct("t")), PLAIN)
    for number in range(40):
        run.feed(pa.record_batch([np.arange(1_000), np.full(1_000, number * 2 * GAP)], schema=PLAIN))
        run.advance(number * 2 * GAP)
        assert len(run.subtasks[0]._index) < 5_000
    run.restart(3)
    assert run.finish().results().column("d").to_pylist() == [1] * 40_000


def test_the_kit_finds_nothing() -> None:
    before = [batch_of((1, 0), (2, 3)), BARRIER, batch_of((1, 15), (1, 8))]
    script = [*before, Watermark(14), BARRIER, batch_of((2, 5), (1, 4))]
    found = check_operator(spec_of(n=ms.count(), m=ms.median("t"), d=ms.count_distinct("t")), script)
    assert len(found["main"]) == 3
    assert found["late"] == [{"k": 1, "t": 4}]


START = dt.datetime(2026, 1, 1)
ROWS = [{"shop": f"s{n * n % 7}", "at": START + dt.timedelta(seconds=(n ^ 5) + n // 40 * 9)} for n in range(300)]

BATCHES = [pa.RecordBatch.from_pylist(ROWS[n : n + 10]) for n in range(0, len(ROWS), 10)]


def make(out: Any) -> ms.Job:
    job = ms.Job("visits")
    rows = job.read(ms.memory_source(BATCHES), event_time="at", max_delay="9s")
    made = rows.group_by("shop").window(ms.session("8s"))
    made.agg(n=ms.count(), times=ms.count_distinct("at"), m=ms.last("at")).write(out)
    return job


@pytest.mark.parametrize("seed", range(4))
def test_crashes_do_not_show(seed: int, tmp_path: Path) -> None:
    expected, out = ms.memory_sink(), ms.memory_sink()
    make(expected).run()
    done = simulate(lambda: make(out), tmp_path / "s.duckdb", seed)
    assert sorted(map(repr, out.rows())) == sorted(map(repr, expected.rows())), f"seed {seed} reproduces it"
    assert done.crashes > 0
    assert len(expected.rows()) > 20


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(JobError, match="needs a size"):
        ms.session("0s")
    with pytest.raises(DataError, match=r"9223372036854775807.*too far away"):
        Harness(spec_of(n=ms.count()), PLAIN).feed(batch_of((1, 2**63 - 1)))
