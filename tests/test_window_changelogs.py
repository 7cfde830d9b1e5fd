"""Windows over changelogs: their results are those of the rows that are there when they fire."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from changelog_kit import Net, changelogs, hashable, net
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream import col
from millstream.engine.changelog import WEIGHT, weighted
from millstream.engine.errors import JobError, SchemaError
from millstream.operators.window_aggregate import WindowAggregate
from millstream.operators.window_updates import Updates
from millstream.operators.windows import TumblingWindow
from millstream.testing import BARRIER, Watermark, check_operator, simulate
from operator_kit import Advance, Harness, Step, bag, rows_of
from test_group_aggregate_retractions import AGGREGATES
from window_kit import SCHEMA, SIZE, by_sql, start_of

EPOCH = dt.datetime(1970, 1, 1)


def spec_of(made: Any, keys: tuple[str, ...], lateness: int = 0, updates: Updates | None = None) -> WindowAggregate:
    named = tuple((f"x{number}", aggregate) for number, (aggregate, _) in enumerate(made))
    return WindowAggregate(keys, TumblingWindow(SIZE), named, col("t"), lateness, updates)


def there_at_last(steps: list[Step], lateness: int) -> tuple[pa.Table, Counter[tuple[int, int]]]:
    """The rows that changes in time come to, with their windows; and the late changes, by row and weight."""
    watermark, held, row_of = -(2**62), Counter[int](), dict[int, dict[str, Any]]()
    late: Counter[tuple[int, int]] = Counter()
    for step in steps:
        if isinstance(step, Advance):
            watermark = max(watermark, step.time)
        if isinstance(step, pa.RecordBatch):
            for row in step.to_pylist():
                weight = row.pop(WEIGHT)
                if row["t"] is None or start_of(row["t"]) + SIZE + lateness <= watermark:
                    late[row["seq"], weight] += 1
                else:
                    held[row["seq"]] += weight
                    row_of[row["seq"]] = {**row, "start": start_of(row["t"])}
    rows = [row_of[seq] for seq, weight in held.items() for _ in range(weight)]
    return pa.Table.from_pylist(rows, SCHEMA.append(pa.field("start", pa.int64()))), late


@settings(max_examples=12, deadline=None)
@given(
    changelogs(),
    st.sampled_from([(), ("k",), ("g", "k"), ("h",)]),
    st.sampled_from([0, 15]),
    st.integers(1, 2),
    st.integers(0, 3),
)
def test_what_fires_is_what_sql_gives_over_the_rows_that_are_there(
    steps: list[Step], keys: tuple[str, ...], lateness: int, parallelism: int, quarter: int
) -> None:
    made = AGGREGATES[quarter::4]
    run = Harness(spec_of(made, keys, lateness), weighted(SCHEMA), parallelism).run(steps).finish()
    there, late = there_at_last(steps, lateness)
    expected = by_sql(there, keys, [sql for _, sql in made]) if there.num_rows else []
    assert bag(map(hashable, rows_of(run.results()))) == bag(map(hashable, expected))
    found = run.results("late")
    assert Counter(zip(found["seq"].to_pylist(), found[WEIGHT].to_pylist(), strict=True)) == late


@settings(max_examples=6, deadline=None)
@given(
    changelogs(),
    st.sampled_from([Updates(0), Updates(0, correct=True), Updates(None, correct=True)]),
    st.sampled_from([(), ("g", "k")]),
    st.integers(1, 2),
)
def test_what_is_shown_early_comes_to_what_is_there_at_any_time(
    steps: list[Step], updates: Updates, keys: tuple[str, ...], parallelism: int
) -> None:
    made = AGGREGATES[::7]
    lateness = 15 if updates.correct else 0
    run = Harness(spec_of(made, keys, lateness, updates), weighted(SCHEMA), parallelism)

    def expected(until: int, through: int) -> Net:
        there, _ = there_at_last(steps[:through], lateness)
        rows = by_sql(there, keys, [sql for _, sql in made]) if there.num_rows else []
        ended = [row for row in rows if (row[len(keys) + 1] - EPOCH) // dt.timedelta(microseconds=1) <= until]
        return Counter(hashable(row) for row in ended)

    for number, step in enumerate(steps, 1):
        run.run([step])
        assert net(run.out.batches["main"]) == expected(run.watermark if updates.early is None else 2**62, number)
    assert net(run.finish().out.batches["main"]) == expected(2**62, len(steps))


SMALL = weighted(pa.schema({"k": pa.string(), "v": pa.int64(), "t": pa.int64()}))


def rows(*values: tuple[str, int, int, int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict(zip(SMALL.names, row, strict=True)) for row in values], schema=SMALL)


def test_the_kit() -> None:
    made = [(aggregate, "") for aggregate in (ms.count(), ms.sum("v"), ms.min("v"), ms.last("v"), ms.collect("v"))]
    script = [
        rows(("a", 1, 3, 1), ("a", 2, 4, 2), ("b", 5, 9, 1)),
        BARRIER,
        rows(("a", 2, 4, -1), ("b", 5, 9, -1), ("b", 6, 12, 1)),
        Watermark(9),
        BARRIER,
        rows(("a", 1, 3, -1)),
        Watermark(10),
        rows(("a", 2, 4, -1), ("b", 7, 12, 1)),  # the first is late
        BARRIER,
        rows(("b", 6, 12, -1)),
    ]
    got = check_operator(spec_of(made, ("k",)), script)
    assert [(row["k"], row["x0"], row["x4"]) for row in got["main"]] == [("a", 1, [2]), ("b", 1, [7])]
    assert [(row["k"], row[WEIGHT]) for row in got["late"]] == [("a", -1)]


def test_the_kit_with_results_that_change() -> None:
    made = [(aggregate, "") for aggregate in (ms.count(), ms.max("v"))]
    script = [
        rows(("a", 1, 3, 1), ("b", 5, 9, 1)),
        Watermark(10),
        BARRIER,
        rows(("a", 1, 3, -1), ("b", 8, 9, 1)),
        BARRIER,
        rows(("a", 9, 5, 1)),
    ]
    got = check_operator(spec_of(made, ("k",), 20, Updates(None, correct=True)), script)["main"]
    assert sorted((row["k"], row["x0"], row["x1"], row[WEIGHT]) for row in got) == [("a", 1, 9, 1), ("b", 2, 8, 1)]


START = dt.datetime(2026, 1, 1)


def orders() -> list[pa.RecordBatch]:
    """Orders whose last state counts, each in three states within an hour of event time."""
    made = [
        {"order": n // 3, "state": n % 3, "at": START + dt.timedelta(minutes=n // 3 * 2 + n % 3 * 20)}
        for n in range(300)
    ]
    return [pa.RecordBatch.from_pylist(made[n : n + 7]) for n in range(0, 300, 7)]


@pytest.mark.parametrize("seed", range(3))
def test_the_last_state_of_each_order_counts_in_its_hour(seed: int, tmp_path: Path) -> None:
    out, late = ms.memory_sink("out"), ms.memory_sink("late")

    def make() -> ms.Job:
        job = ms.Job("orders")
        source = ms.memory_source(orders(), name="orders")
        last = job.read(source, event_time="at", max_delay="1h").deduplicate("order", keep="last")
        hours = last.filter(col("state") >= 0).window(ms.tumbling("1h"), lateness="1h").agg(n=ms.count())
        hours.write(out)
        hours.late.changes().write(late)
        return job

    simulate(make, tmp_path / "store", seed, parallelism=1 + seed)
    assert sum(row["n"] for row in out.rows()) == 100
    expected = Counter((START + dt.timedelta(minutes=2 * n + 40)).replace(minute=0) for n in range(100))
    assert {row["window_start"]: row["n"] for row in out.rows()} == expected
    assert late.rows() == []


def test_what_does_not_take_changelogs_says_what_to_do() -> None:
    stream = ms.Job("j").read(ms.memory_source(orders()), event_time="at")
    last = stream.deduplicate("order", keep="last")
    for window in (ms.count_window(3), ms.tumbling("1h", time="processing"), ms.session("1h", time="processing")):
        with pytest.raises(JobError, match=r"changelog.*only windows of event time give rows back.*Leave time="):
            last.window(window).agg(n=ms.count())
    with pytest.raises(JobError, match=r"window\(\) needs event time, and this changelog has none"):
        last.agg(n=ms.count()).window(ms.tumbling("1h"))
    with pytest.raises(JobError, match=r"is a changelog.*changes=True.*put .changes"):
        last.group_by("order").process(lambda row, state: row, schema={"order": int})
    with pytest.raises(SchemaError, match=r"approx_count_distinct.*count_distinct"):
        last.window(ms.tumbling("1h")).agg(n=ms.approx_count_distinct("order"))
    with pytest.raises(JobError, match="needs event time"):
        last.changes().window(ms.tumbling("1h"))
