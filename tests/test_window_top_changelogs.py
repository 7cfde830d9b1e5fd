"""The top rows of windows over changelogs, and before their windows close: what SQL gives over the rows there are."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import millstream as ms
import pyarrow as pa
import pytest
from changelog_kit import changelogs, hashable, held_by, net
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream import col
from millstream.engine.changelog import WEIGHT, weighted
from millstream.engine.errors import JobError, SchemaError
from millstream.operators.paned_windows import CumulatingWindow, SlidingWindow
from millstream.operators.session_window import SessionWindow
from millstream.operators.window_top import WindowTop
from millstream.operators.window_updates import Updates
from millstream.operators.windows import TumblingWindow, Window
from millstream.testing import BARRIER, Tick, Watermark, check_operator, simulate
from nursery import Nursery, Start
from operator_kit import Advance, Harness, Restart, Step, bag, rows_of
from test_paned_windows import windows_sql
from test_session_changelogs import by_hand
from test_window_changelogs import there_at_last
from window_kit import SCHEMA, SIZE

NAMES = SCHEMA.names
RANKS = st.sampled_from([[("i", True)], [("s", False), ("b", True)], [("f", True)], [("n", False), ("d", True)]])
GROUPS = st.sampled_from([(), ("k",), ("g", "h")])


def spec_of(window: Window, by: list[tuple[str, bool]], n: int, keys: tuple[str, ...], **options: Any) -> WindowTop:
    made = {"ties": False, "time": col("t"), **options}
    return WindowTop(keys, window, tuple((col(name), down) for name, down in by), n, **made)


def best(rows: pa.Table, spec: WindowTop, window: str, query: str = "select * from input", more: str = "") -> list[Any]:
    """SQL's best rows of each key and window; of equal ones the least by their columns."""
    order = ", ".join(f"{expr} {'desc' if down else 'asc'} nulls last" for expr, down in spec.by)
    rest = ", ".join(f"{name} asc nulls last" for name in NAMES)
    group = ", ".join([*spec.keys, window])
    rank = (
        "rank() over (partition by {} order by {})" if spec.ties else "row_number() over (partition by {} order by {})"
    )
    ranked = rank.format(group, order if spec.ties else f"{order}, {rest}")
    with duckdb.connect() as connection:
        connection.register("input", rows)
        query = f"select {', '.join(NAMES)}{more} from ({query}) qualify {ranked} <= {spec.n}"
        return [hashable(row) for row in rows_of(connection.sql(query).to_arrow_table())]


@settings(max_examples=12, deadline=None)
@given(changelogs(), RANKS, st.sampled_from([1, 2]), GROUPS, st.sampled_from([0, 15]), st.integers(1, 2), st.booleans())
def test_what_fires_is_what_sql_gives_over_the_rows_that_are_there(
    steps: list[Step],
    by: list[tuple[str, bool]],
    n: int,
    keys: tuple[str, ...],
    lateness: int,
    parallelism: int,
    ties: bool,
) -> None:
    spec = spec_of(TumblingWindow(SIZE), by, n, keys, lateness=lateness, ties=ties)
    run = Harness(spec, weighted(SCHEMA), parallelism).run(steps).finish()
    there, late = there_at_last(steps, lateness)
    assert bag(map(hashable, rows_of(run.results()))) == bag(best(there, spec, "start"))
    found = run.results("late")
    assert Counter(zip(found["seq"].to_pylist(), found[WEIGHT].to_pylist(), strict=True)) == late


@settings(max_examples=12, deadline=None)
@given(
    changelogs(),
    st.sampled_from([Updates(0), Updates(0, correct=True), Updates(None, correct=True)]),
    RANKS,
    st.sampled_from([1, 2]),
    GROUPS,
    st.booleans(),
)
def test_what_is_shown_early_is_the_top_at_any_time(
    steps: list[Step], updates: Updates, by: list[tuple[str, bool]], n: int, keys: tuple[str, ...], stays: bool
) -> None:
    lateness = 15 if updates.correct else 0
    spec = spec_of(TumblingWindow(SIZE), by, n, keys, lateness=lateness, updates=updates)
    if stays:  # an append stream: of its rows the first to arrive are better, and no two are equal here
        steps = [
            step.drop_columns([WEIGHT]) if isinstance(step, pa.RecordBatch) else step for step in map(first, steps)
        ]
    run = Harness(spec, SCHEMA if stays else weighted(SCHEMA), 2)
    for number, step in enumerate(steps, 1):
        run.run([step])
        until = run.watermark if updates.early is None else 2**62
        told = steps[:number]
        there, _ = there_at_last([_weighted(s) for s in told] if stays else told, lateness)
        ended = there.filter(pa.compute.less_equal(pa.compute.add(there["start"], SIZE), until))
        expected = Counter(best(ended, spec, "start"))
        if stays:
            assert Counter(_ranked(net(run.out.batches["main"]), spec)) == Counter(_ranked(expected, spec))
        else:
            assert net(run.out.batches["main"]) == expected


def first(step: Step) -> Step:
    """Of a changelog only what comes, once."""
    if not isinstance(step, pa.RecordBatch):
        return step
    kept = step.filter(pa.compute.greater(step[WEIGHT], 0))
    return kept.set_column(len(NAMES), WEIGHT, pa.array([1] * kept.num_rows, pa.int64()))


def _weighted(step: Step) -> Step:
    if not isinstance(step, pa.RecordBatch):
        return step
    return pa.RecordBatch.from_arrays(
        [*step.columns, pa.array([1] * step.num_rows, pa.int64())], schema=weighted(SCHEMA)
    )


def _ranked(rows: Counter[Any], spec: WindowTop) -> list[Any]:
    """What rows are ranked and told apart by; which of equal ones is on top depends on arrival."""
    names = [*spec.keys, *(str(expr) for expr, _ in spec.by)]
    return [tuple(0.0 if row[NAMES.index(name)] == 0.0 else row[NAMES.index(name)] for name in names) for row in rows]


def without_time(steps: list[Step]) -> list[Step]:
    return [step for step in steps if not isinstance(step, Advance)]


@settings(max_examples=6, deadline=None)
@given(changelogs(), st.sampled_from([SlidingWindow(12, 8), CumulatingWindow(10, 4, 7)]), RANKS, GROUPS)
def test_windows_that_overlap(
    steps: list[Step], window: Any, by: list[tuple[str, bool]], keys: tuple[str, ...]
) -> None:
    spec = spec_of(window, by, 2, keys)
    steps = without_time(steps)
    run = Harness(spec, weighted(SCHEMA)).run(steps).finish()
    query = f"select * from input join ({windows_sql(window)}) on epoch_us(t) >= start and epoch_us(t) < stop"
    held = held_by([step for step in steps if isinstance(step, pa.RecordBatch)])
    expected = best(held, spec, "start, stop", query, ", make_timestamp(start), make_timestamp(stop)")
    assert bag(map(hashable, rows_of(run.results()))) == bag(expected)


@settings(max_examples=6, deadline=None)
@given(changelogs(), RANKS, st.sampled_from([(), ("k",)]))
def test_sessions(steps: list[Step], by: list[tuple[str, bool]], keys: tuple[str, ...]) -> None:
    spec = spec_of(SessionWindow(10), by, 2, keys)
    steps = without_time(steps)
    run = Harness(spec, weighted(SCHEMA), 2).run(steps).finish()
    sessions, _ = by_hand(steps, keys, 0)
    schema = SCHEMA.append(pa.field("session", pa.int64()))
    held = pa.Table.from_pylist([{**row, "session": n} for n, rows in enumerate(sessions) for row in rows], schema)
    found = run.results().drop_columns(["window_start", "window_end"])
    assert bag(map(hashable, rows_of(found))) == bag(best(held, spec, "session"))


SMALL = weighted(pa.schema({"k": pa.string(), "v": pa.int64(), "t": pa.int64()}))


def rows(*values: tuple[str, int, int, int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict(zip(SMALL.names, row, strict=True)) for row in values], schema=SMALL)


SCRIPT = [
    rows(("a", 1, 3, 1), ("a", 2, 4, 2), ("b", 5, 9, 1), ("a", 1, 3, 2)),
    BARRIER,
    rows(("a", 2, 4, -1), ("b", 5, 9, -1), ("b", 6, 12, 1)),
    Watermark(9),
    BARRIER,
    rows(("a", 1, 3, -1), ("b", 6, 12, 1)),
    Watermark(10),
    rows(("a", 2, 4, -1), ("b", 7, 12, 1)),
    BARRIER,
    rows(("b", 6, 12, -1), ("b", 7, 12, -1)),
]


@pytest.mark.parametrize(
    "window", [TumblingWindow(10), SlidingWindow(10, 5), CumulatingWindow(10, 4), SessionWindow(5)], ids=repr
)
@pytest.mark.parametrize("ties", [False, True])
def test_the_kit_finds_nothing(window: Window, ties: bool) -> None:
    check_operator(spec_of(window, [("v", True)], 2, ("k",), ties=ties), SCRIPT)


@pytest.mark.parametrize("updates", [Updates(0), Updates(7, correct=True)])
@pytest.mark.parametrize("changes", [False, True])
def test_the_kit_finds_nothing_where_results_change(updates: Updates, changes: bool) -> None:
    script: list[Any] = [*SCRIPT[:4], Tick(5), *SCRIPT[4:7], Tick(8), *SCRIPT[7:]]
    if not changes:
        script = [s.drop_columns([WEIGHT]) if isinstance(s, pa.RecordBatch) else s for s in script]
    lateness = 15 if updates.correct else 0
    check_operator(spec_of(TumblingWindow(10), [("v", True)], 2, ("k",), lateness=lateness, updates=updates), script)


def test_only_what_changes_at_the_top_is_told() -> None:
    run = Harness(spec_of(TumblingWindow(10), [("v", True)], 2, ("k",), updates=Updates(0)), SMALL)
    run.feed(rows(("a", 1, 3, 1), ("a", 5, 3, 1)))
    told = len(run.out.batches["main"])
    run.run([Restart(2)])
    run.feed(rows(("a", 9, 4, 1)))
    run.feed(rows(("a", 0, 4, 1)))
    made = [tuple(row.values()) for batch in run.out.batches["main"][told:] for row in batch.to_pylist()]
    assert made == [("a", 1, 3, -1), ("a", 9, 4, 1)]


def test_rows_may_have_columns_that_are_called_like_those_of_windows() -> None:
    names = ["window_start", "window_end", "t"]
    schema = weighted(pa.schema({name: pa.int64() for name in names}))
    batch = pa.record_batch([pa.array([n, n + 1], pa.int64()) for n in (7, 8, 3)] + [pa.array([1, 1])], schema=schema)
    run = Harness(spec_of(TumblingWindow(10), [("window_start", True)], 1, ()), schema).run([batch]).finish()
    assert run.results().to_pylist() == [{"window_start": 8, "window_end": 9, "t": 4}]


def test_what_cannot_be_ranked_is_refused_before_anything_runs() -> None:
    made = [{"id": 1, "at": dt.datetime(2026, 1, 1), "tags": ["a"]}]
    stream = ms.Job("j").read(ms.memory_source(made), event_time="at")
    last = stream.deduplicate("id", keep="last")
    with pytest.raises(SchemaError, match="'tags' of a changelog to rank, whose rows are found by their values"):
        last.window(ms.tumbling("1h")).top(1, by="id")
    assert stream.window(ms.tumbling("1h"), early="batch").top(1, by="id").is_changelog
    for window in (ms.sliding("1h", "1m"), ms.session("1h")):
        with pytest.raises(JobError, match=r"early=, late='correct'\) works in windows of ms\.tumbling\(\) only"):
            stream.window(window, early="1s").top(1, by="id")


START = dt.datetime(2026, 1, 1)


def orders(count: int) -> list[pa.RecordBatch]:
    """Orders that change their amount, each three times within an hour."""
    made = [
        {"order": n // 3, "shop": f"s{n // 3 % 4}", "amount": n * 37 % 101, "at": START + dt.timedelta(minutes=n // 3)}
        for n in range(count)
    ]
    return [pa.RecordBatch.from_pylist(made[n : n + 7]) for n in range(0, count, 7)]


def top_orders(count: int) -> tuple[ms.Job, ms.Stream, ms.Stream]:
    job = ms.Job("orders")
    last = job.read(ms.memory_source(orders(count)), event_time="at", max_delay="1h").deduplicate("order", keep="last")
    shops = last.group_by("shop")
    closed = shops.window(ms.tumbling("1h")).top(2, by="amount")
    early = shops.window(ms.tumbling("1h"), lateness="1h", early="batch", late="correct").top(2, by="amount")
    return job, closed, early.changes()


def expected(count: int) -> Counter[Any]:
    last = {row["order"]: row for batch in orders(count) for row in batch.to_pylist()}.values()
    found: Counter[Any] = Counter()
    for shop, hour in {(row["shop"], row["at"].replace(minute=0)) for row in last}:
        held = [row for row in last if (row["shop"], row["at"].replace(minute=0)) == (shop, hour)]
        found.update(
            (row["order"], row["amount"]) for row in sorted(held, key=lambda r: (-r["amount"], r["order"]))[:2]
        )
    return found


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
def test_a_seed(seed: int, tmp_path: Path) -> None:
    out, early = ms.memory_sink("out"), ms.memory_sink("early")

    def make() -> ms.Job:
        job, closed, changes = top_orders(300)
        closed.write(out)
        changes.write(early)
        return job

    assert simulate(make, tmp_path / "s.duckdb", seed).crashes
    assert Counter((row["order"], row["amount"]) for row in out.rows()) == expected(300), f"seed {seed}"
    check_net(early.rows(), 300)


def check_net(made: list[dict[str, Any]], count: int) -> None:
    found: Counter[Any] = Counter()
    for row in made:
        found[row["order"], row["amount"]] += row["weight"]
    assert {row: weight for row, weight in found.items() if weight} == expected(count)


JOB = """
import millstream as ms
from test_window_top_changelogs import top_orders

job, closed, early = top_orders(300)
closed.write(ms.jsonl("closed", hold_bytes=0))
early.write(ms.jsonl("early", hold_bytes=0))
"""


def test_a_process_killed_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    with Nursery() as nursery:
        for point, parallelism in (("store.before_commit=kill@4", 2), ("subtask.snapshot=kill@11", 3)):
            assert nursery.run(Start(str(tmp_path), parallelism=parallelism, failpoint=point)).killed
        end = nursery.run(Start(str(tmp_path)))
    assert end.outcome == "finished", end.log
    assert end.restored_from > 0

    def told(folder: str) -> list[dict[str, Any]]:
        files = (tmp_path / folder).rglob("*.jsonl")
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    assert Counter((row["order"], row["amount"]) for row in told("closed")) == expected(300)
    check_net(told("early"), 300)
