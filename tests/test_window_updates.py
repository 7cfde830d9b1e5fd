"""Windows that show results before these are final: what they take back was shown, and at last all is as without."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from changelog_kit import Net, hashable, net
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream import col
from millstream.engine.changelog import WEIGHT
from millstream.operators.window_aggregate import WindowAggregate
from millstream.operators.window_updates import Updates
from millstream.operators.windows import TumblingWindow
from millstream.testing import BARRIER, Tick, Watermark, check_operator, simulate
from operator_kit import Advance, Harness, Step
from window_kit import SCHEMA, SIZE, by_sql, split_by_lateness, streams

EPOCH = dt.datetime(1970, 1, 1)
WINDOW = TumblingWindow(SIZE)
SQL = {
    "n": (ms.count(), "count(*)"),
    "total": (ms.sum("i"), "sum(i)::int64"),
    "least": (ms.min("s"), "min(s)"),
    "distinct": (ms.count_distinct("d"), "count(distinct d)"),
    "all": (ms.collect("seq"), "list(seq order by seq)"),
}
AGGREGATES = tuple((name, aggregate) for name, (aggregate, _) in SQL.items())


def spec(updates: Updates | None, keys: tuple[str, ...] = ("g",), lateness: int = 0) -> WindowAggregate:
    return WindowAggregate(keys, WINDOW, AGGREGATES, col("t"), lateness, updates)


def expected(steps: list[Step], keys: tuple[str, ...], lateness: int, until: int) -> Net:
    """What SQL gives over the rows that have come, of windows that end by then."""
    on_time, *_ = split_by_lateness(steps, lateness)
    made = by_sql(on_time, keys, [sql for _, sql in SQL.values()])
    ended = [row for row in made if (row[len(keys) + 1] - EPOCH) // dt.timedelta(microseconds=1) <= until]
    return Counter(hashable(row) for row in ended)


@settings(max_examples=8, deadline=None)
@given(
    streams(),
    st.sampled_from([Updates(0), Updates(0, correct=True), Updates(None, correct=True)]),
    st.sampled_from([(), ("g", "k"), ("h",)]),
    st.integers(1, 2),
)
def test_after_every_step_the_changelog_comes_to_what_sql_gives(
    steps: list[Step], updates: Updates, keys: tuple[str, ...], parallelism: int
) -> None:
    lateness = 15 if updates.correct else 0
    run = Harness(spec(updates, keys, lateness), SCHEMA, parallelism)
    for number, step in enumerate(steps, 1):
        run.run([step])
        until = run.watermark if updates.early is None else 2**62
        assert net(run.out.batches["main"]) == expected(steps[:number], keys, lateness, until)
    assert net(run.finish().out.batches["main"]) == expected(steps, keys, lateness, 2**62)


ROW = pa.schema(
    {"g": pa.string(), "i": pa.int64(), "s": pa.string(), "d": pa.date32(), "seq": pa.int64(), "t": "int64"}
)


def rows(*made: tuple[str, int]) -> pa.RecordBatch:
    values = [
        {"g": key, "i": t, "s": f"{key}{t}", "d": dt.date(2026, 1, 1 + t % 5), "seq": 7, "t": t} for key, t in made
    ]
    return pa.RecordBatch.from_pylist(values, ROW)


@st.composite
def scripts(draw: st.DrawFn) -> list[Any]:
    now, time, steps = 0, 0, []
    for _ in range(draw(st.integers(1, 7))):
        now += draw(st.sampled_from([0, 1, 3, 5, 12]))
        steps.append(Tick(now))
        made = draw(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 40)), max_size=4))
        steps += [rows(*made)] if made else []
        time += draw(st.sampled_from([0, 7, 10]))
        steps += draw(st.sampled_from([[], [BARRIER], [Watermark(time)], [Watermark(time), BARRIER]]))
    return [*steps, rows(("a", 1))]


@pytest.mark.parametrize(
    "updates", [Updates(0), Updates(5), Updates(None, correct=True), Updates(5, correct=True)], ids=str
)
@settings(max_examples=3, deadline=None)
@given(scripts())
def test_at_last_all_is_as_without_updates(updates: Updates, script: list[Any]) -> None:
    lateness = 12 if updates.correct else 0
    results = check_operator(spec(updates, lateness=lateness), script)
    assert all(row.pop(WEIGHT) == 1 for row in results.get("main", []))
    plain = check_operator(spec(None, lateness=lateness), script)
    assert sorted(map(repr, results.get("main", []))) == sorted(map(repr, plain.get("main", [])))
    assert results.get("late") == plain.get("late")


def told(updates: Updates, steps: list[Any], lateness: int = 0) -> list[list[tuple[int, int, int]]]:
    """Run one subtask; return what each step emits: window, count, weight."""
    window = WindowAggregate((), WINDOW, (("n", ms.count()),), col("t"), lateness, updates)
    run = Harness(window, ROW)
    made = []
    for step in steps:
        before = len(run.out.batches["main"])
        (subtask,) = run.subtasks
        if isinstance(step, Tick):
            due = subtask.next_due()
            if due is not None and due <= step.time:
                subtask.on_clock(step.time, run.out)
        else:
            run.run([step])
        new = [row for batch in run.out.batches["main"][before:] for row in batch.to_pylist()]
        micro = dt.timedelta(microseconds=1)
        made.append([((row["window_start"] - EPOCH) // micro, row["n"], row[WEIGHT]) for row in new])
    return made


def test_early_results_come_when_due_and_only_where_they_have_changed() -> None:
    steps = [Tick(0), rows(("a", 1), ("a", 12)), rows(("a", 2)), Advance(3), Tick(5), Tick(9), rows(("a", 3)), Tick(10)]
    shown = told(Updates(5), steps)
    assert [step for step in shown if step] == [[(0, 2, 1), (10, 1, 1)], [(0, 2, -1), (0, 3, 1)]]


def test_a_window_takes_back_what_late_rows_change() -> None:
    steps = [rows(("a", 1)), Advance(10), rows(("a", 2), ("a", 13)), rows(("a", 3)), Advance(25), rows(("a", 4))]
    assert told(Updates(None, correct=True), steps, lateness=10) == [
        [],
        [(0, 1, 1)],
        [(0, 1, -1), (0, 2, 1)],
        [(0, 2, -1), (0, 3, 1)],
        [(10, 1, 1)],
        [],
    ]


START = dt.datetime(2026, 1, 1)
BATCHES = [
    pa.RecordBatch.from_pylist(
        [{"k": f"k{n % 4}", "v": n, "at": START + dt.timedelta(milliseconds=100 * (n ^ 21))} for n in range(m, m + 8)]
    )
    for m in range(0, 240, 8)
]
MADE = {"n": ms.count(), "all": ms.collect("v"), "most": ms.max("v"), "mean": ms.mean("v")}


def make(early: Any, late: str, out: Any) -> ms.Job:
    job = ms.Job("updates")
    made = job.read(ms.memory_source(BATCHES), event_time="at", max_delay="1s").group_by("k")
    made.window(ms.tumbling("3s"), lateness="3s", early=early, late=late).agg(**MADE).changes().write(out)
    return job


@pytest.mark.parametrize(
    ("seed", "early", "late"), [(0, "20ms", "wait"), (1, "batch", "wait"), (2, "20ms", "correct"), (3, None, "correct")]
)
def test_crashes_do_not_show(seed: int, early: Any, late: str, tmp_path: Path) -> None:
    out = ms.memory_sink()
    done = simulate(lambda: make(early, late, out), tmp_path / "s.duckdb", seed)
    found: Counter[Any] = Counter()
    for row in out.rows():
        found[row["k"], row["window_start"], row["n"], tuple(row["all"]), row["most"], row["mean"]] += row["weight"]
    groups: dict[Any, list[int]] = {}
    for row in pa.Table.from_batches(BATCHES).to_pylist():
        start = START + (row["at"] - START) // dt.timedelta(seconds=3) * dt.timedelta(seconds=3)
        groups.setdefault((row["k"], start), []).append(row["v"])
    wanted = {(*key, len(v), tuple(v), max(v), sum(v) / len(v)): 1 for key, v in groups.items()}
    assert {row: weight for row, weight in found.items() if weight} == wanted
    assert done.crashes > 0


def refused() -> dict[str, tuple[Any, str]]:
    minute = ms.tumbling("1m")
    return {
        "early": (lambda s: s.window(minute, early=0), "early is a time such as"),
        "late": (lambda s: s.window(minute, late="never"), "late is 'wait' or 'correct'"),
        "lateness": (lambda s: s.window(minute, late="correct").agg(n=ms.count()), "needs a lateness"),
        "window": (lambda s: s.window(ms.session("1m"), early="1s").agg(n=ms.count()), "tumbling.. only"),
        "clock": (
            lambda s: s.window(ms.tumbling("1m", time="processing"), late="correct").agg(n=ms.count()),
            "needs a lateness",
        ),
    }


@pytest.mark.parametrize("what", refused())
def test_what_makes_no_sense_is_refused(what: str) -> None:
    call, words = refused()[what]
    with pytest.raises(ms.JobError, match=words):
        call(ms.Job("j").read(ms.memory_source(BATCHES), event_time="at"))


def test_final_knows_its_key_and_early_results_work_by_the_clock_too() -> None:
    job, out = ms.Job("j"), ms.memory_sink()
    counts = job.read(ms.memory_source(BATCHES)).window(ms.tumbling("1d", time="processing"), early="batch")
    counts.agg(n=ms.count()).final().write(out)
    job.run()
    assert sum(row["n"] for row in out.rows()) == 240
