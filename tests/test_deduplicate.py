"""The first row of each key: against a model in plain Python, cut, delayed, restored and spread in any way."""

from __future__ import annotations

import math
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import millstream as ms
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream import col
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.key_words import MOST_COLUMNS
from millstream.engine.time import START_OF_TIME
from millstream.operators.deduplicate import MOST_KEYS, Deduplicate
from millstream.testing import BARRIER, Watermark, check_operator
from operator_kit import Advance, Harness, Restart, Step, bag, canonical, rows_of

LEAST, MOST = -(2**63), 2**63 - 1
SCHEMA = pa.schema(
    {
        "i": pa.int64(),
        "f": pa.float64(),
        "s": pa.string(),
        "n": pa.decimal128(20, 2),
        "d": pa.dictionary(pa.int8(), pa.string()),
        "t": pa.int64(),
        "seq": pa.int64(),
    }
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "i": st.none() | st.integers(-2, 2) | st.sampled_from([LEAST, MOST]),
    "f": st.sampled_from([None, math.nan, math.inf, -math.inf, 0.0, -0.0, 1.5]),
    "s": st.sampled_from([None, "", "\0", "a", "eight by", "eight by\0", "nine byte", "é" * 20]),
    "n": st.sampled_from([None, Decimal("0.00"), Decimal("-1.25"), Decimal(10**15)]),
    "d": st.sampled_from([None, "", "x"]),
    "t": st.none() | st.integers(-30, 30) | st.sampled_from([LEAST, START_OF_TIME, MOST]),
}
KEYS = st.sampled_from([("i",), ("f",), ("s",), ("n",), ("d",), ("f", "i"), ("s", "i"), ("i", "s", "n", "f", "d")])


@st.composite
def streams(draw: st.DrawFn) -> list[Step]:
    """Batches of random rows, slices of longer ones now and then, with watermarks and restarts in between."""
    steps: list[Step] = []
    seq = 0
    for _ in range(draw(st.integers(1, 6))):
        count, cut = draw(st.integers(1, 14)), draw(st.integers(0, 2))
        columns = [
            pa.array(draw(st.lists(values, min_size=count + cut, max_size=count + cut)), SCHEMA.field(name).type)
            for name, values in VALUES.items()
        ]
        numbers = pa.array(range(seq - cut, seq + count))
        steps.append(pa.record_batch([*columns, numbers], schema=SCHEMA).slice(cut))
        seq += count
        after = draw(st.sampled_from(["nothing", "advance", "restart", "advance, restart", "restart, advance"]))
        for what in after.split(", "):
            if what == "advance":
                steps.append(Advance(draw(st.integers(-40, 40))))
            if what == "restart":
                steps.append(Restart(draw(st.integers(1, 3))))
    return steps


def by_hand(steps: list[Step], keys: tuple[str, ...], within: int | None) -> dict[str, list[int]]:
    """The numbers of the rows on each port."""
    kept: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    ports: dict[str, list[int]] = {"main": [], "duplicates": [], "late": []}
    watermark = START_OF_TIME
    for step in steps:
        if isinstance(step, Advance):
            watermark = max(watermark, step.time)
        if not isinstance(step, pa.RecordBatch):
            continue
        for row in step.to_pylist():
            key, time = tuple(canonical(row[name]) for name in keys), row["t"]
            if within is None:
                port = "duplicates" if kept[key] else "main"
            else:
                forgotten = max(watermark - within, LEAST)
                if time is None or time <= forgotten:
                    port = "late"
                else:
                    near = [t for t in kept[key] if t > forgotten and abs(t - time) < within]
                    port = "duplicates" if near else "main"
            if port == "main":
                kept[key].append(time)
            ports[port].append(row["seq"])
    return ports


@settings(max_examples=300, deadline=None)
@given(streams(), KEYS, st.sampled_from([None, 1, 7, 25]), st.integers(1, 3))
def test_any_stream_is_parted_as_by_hand(
    steps: list[Step], keys: tuple[str, ...], within: int | None, parallelism: int
) -> None:
    spec = Deduplicate(keys, within, None if within is None else col("t"))
    run = Harness(spec, SCHEMA, parallelism).run(steps).finish()
    expected = by_hand(steps, keys, within)
    rows = pa.Table.from_batches([step for step in steps if isinstance(step, pa.RecordBatch)])
    for port in spec.output_schemas([SCHEMA]):
        result = run.results(port)
        assert sorted(result.column("seq").to_pylist()) == expected[port], port
        whole = rows.filter(pa.array([seq in expected[port] for seq in rows.column("seq").to_pylist()], pa.bool_()))
        assert bag(rows_of(result)) == bag(rows_of(whole))
    assert run.counters["duplicates"] == len(expected["duplicates"])
    assert run.counters["late_rows"] + run.counters["null_time_rows"] == len(expected["late"])


def spec_of(*keys: str, within: int | None = None) -> Deduplicate:
    return Deduplicate(keys, within, None if within is None else col("t"))


def batch(*rows: tuple[Any, ...]) -> pa.RecordBatch:
    """Rows of i, t, in the order of ``seq``."""
    schema = pa.schema({"i": pa.int64(), "t": pa.int64(), "seq": pa.int64()})
    columns = list(zip(*rows, strict=True))
    return pa.record_batch([*map(pa.array, columns), pa.array(range(len(rows)))], schema=schema)


def kept(spec: Deduplicate, *steps: Step) -> list[tuple[Any, ...]]:
    first = next(step for step in steps if isinstance(step, pa.RecordBatch))
    run = Harness(spec, first.schema).run(steps).finish()
    return [row[:2] for row in rows_of(run.results())]


@pytest.mark.parametrize("within", [None, 10])
@pytest.mark.parametrize("keys", [("i",), ("s",), ("f", "n"), ("s", "d", "i")])
def test_it_does_in_every_way_what_the_engine_asks_of_an_operator(within: int | None, keys: tuple[str, ...]) -> None:
    def rows(first: int, count: int) -> pa.RecordBatch:
        made = [
            {
                "i": n % 4 or None,
                "f": [0.0, math.nan, None][n % 3],
                "s": ["", "a" * (n % 3), None][n % 3],
                "n": Decimal(n % 2),
                "d": "xy"[n % 2],
                "t": n * 7 % 25 if n % 6 else None,
                "seq": n,
            }
            for n in range(first, first + count)
        ]
        return pa.RecordBatch.from_pylist(made, SCHEMA)

    script = [
        rows(0, 9),
        BARRIER,
        Watermark(9),
        rows(9, 8),
        Watermark(14),
        BARRIER,
        BARRIER,
        rows(17, 9),
        Watermark(22),
    ]
    ports = check_operator(spec_of(*keys, within=within), [*script, rows(26, 8)])
    assert set(ports) == {"main", "duplicates", *(["late"] if within else [])}


# -- what "within" means ---------------------------------------------------------------------------------------


def test_what_is_nearer_than_within_is_a_duplicate_on_either_side() -> None:
    rows = [(1, 100), (1, 109), (1, 110), (1, 91), (1, 90), (1, 100)]
    assert kept(spec_of("i", within=10), batch(*rows)) == [(1, 100), (1, 110), (1, 90)]


def test_a_duplicate_does_not_prolong_the_memory_of_its_key() -> None:
    assert kept(spec_of("i", within=10), batch((1, 0), (1, 8), (1, 16))) == [(1, 0), (1, 16)]


def test_a_row_is_remembered_until_the_watermark_reaches_its_time_plus_within() -> None:
    first, again = batch((1, 20)), batch((1, 20))
    run = Harness(spec_of("i", within=10), first.schema).run([first, Advance(29), again, Advance(30), again])
    assert [run.results(port).num_rows for port in ("main", "duplicates", "late")] == [1, 1, 1]


def test_behind_the_watermark_only_what_is_remembered_counts() -> None:
    steps = [batch((1, 20)), Advance(30), batch((1, 25))]
    assert kept(spec_of("i", within=10), *steps) == [(1, 20), (1, 25)]


def test_of_rows_on_time_the_result_does_not_depend_on_the_watermark() -> None:
    rng = np.random.default_rng(3)
    rows = [(int(key), n + int(late)) for n, (key, late) in enumerate(rng.integers(0, [4, 30], (400, 2)))]
    plain = [batch(row) for row in rows]
    pressed = [step for n, row in enumerate(rows) for step in (Advance(n), batch(row))]
    assert kept(spec_of("i", within=15), *plain) == kept(spec_of("i", within=15), *pressed)


def test_times_far_apart_of_one_key_are_found_without_going_through_all() -> None:
    """All 200,000 rows are remembered, since the watermark stands still: a list per key would take for ever."""
    times = np.arange(200_000) * 10
    rows = pa.record_batch({"i": np.zeros(len(times), np.int64), "t": times, "seq": times})
    again = rows.set_column(1, "t", pa.array(times + 9))
    run = Harness(spec_of("i", within=10), rows.schema).run([rows, again])
    assert [run.results(port).num_rows for port in ("main", "duplicates")] == [200_000, 200_000]


# -- what it keeps ---------------------------------------------------------------------------------------------


def numbered(numbers: Any, times: Any) -> pa.RecordBatch:
    return pa.record_batch({"i": pa.array(numbers, pa.int64()), "t": pa.array(times, pa.int64())})


def test_a_snapshot_holds_what_is_new_however_much_there_is() -> None:
    run = Harness(spec_of("i"), numbered([], []).schema, parallelism=2)
    for start in (0, 300_000, 300_100):
        numbers = np.arange(start, 300_000 if start == 0 else start + 100)
        run.feed(numbered(np.concatenate([numbers, numbers]), np.zeros(2 * len(numbers))))
        run.checkpoint()
    run.checkpoint()
    sizes: dict[int, int] = defaultdict(int)
    for epoch, rows in run.store.rows["seen"]:
        sizes[epoch] += rows.num_rows
    assert sizes == {1: 300_000, 2: 100, 3: 100}


def test_a_restored_job_says_how_far_back_to_read_even_if_nothing_changes() -> None:
    run = Harness(spec_of("i", within=10), numbered([], []).schema)
    run.feed(numbered([1], [0]))
    run.checkpoint()
    run.feed(numbered([2], [9]))
    run.restart(3)
    run.advance(11)
    run.checkpoint()
    assert min(run.store.full_from["seen"].values()) == 2, "key 1 is forgotten, and with it all of epoch 1"
    run.advance(19)
    run.checkpoint()
    assert min(run.store.full_from["seen"].values()) == 4
    run.restart(1)
    run.feed(numbered([1, 2], [20, 20]))
    assert run.results().num_rows == 4


def test_space_of_forgotten_keys_is_used_again_and_old_epochs_need_not_be_read() -> None:
    run = Harness(spec_of("i", within=1_000), numbered([], []).schema)
    straggler = 40_000
    for step in range(60):
        numbers = np.arange(step * 1_000, (step + 1) * 1_000)
        run.feed(numbered([*numbers, -step - 1], [*numbers, straggler + step * 10_000]))
        run.advance(step * 1_000)
        run.checkpoint()
        seen = run.subtasks[0]._seen
        assert len(seen) < 6_000
        assert seen.bytes_held < 900_000
        if step > 10:
            oldest = min(run.store.full_from["seen"].values())
            rows = sum(rows.num_rows for epoch, rows in run.store.rows["seen"] if epoch >= oldest)
            assert rows < 3 * (2_000 + step) + 4_096, "rows that are far ahead of their time hold the others back"
    run.restart(2)
    run.feed(numbered(-np.arange(60) - 1, straggler + np.arange(60) * 10_000))
    assert [run.results(port).num_rows for port in ("duplicates", "late")] == [58, 2]


def test_of_very_many_epochs_the_oldest_are_written_anew() -> None:
    run = Harness(spec_of("i"), numbered([], []).schema)
    for step in range(2_500):
        run.feed(numbered([step], [0]))
        run.checkpoint()
    oldest = min(run.store.full_from["seen"].values())
    assert oldest > 1
    written = sum(rows.num_rows for _, rows in run.store.rows["seen"])
    assert written < 3 * 2_500 * 3
    run.store.rows["seen"] = [(epoch, rows) for epoch, rows in run.store.rows["seen"] if epoch >= oldest]
    run.restart(3)
    run.feed(numbered(np.arange(2_501), np.zeros(2_501)))
    assert run.results().num_rows == 2_501


def test_only_what_is_wanted_is_asked_for() -> None:
    schema = pa.schema({name: pa.int64() for name in "ikotx"})
    spec, timed = spec_of("i", "k"), spec_of("i", within=5)
    nothing = {"main": frozenset(), "duplicates": frozenset(), "late": frozenset()}
    assert spec.columns_needed(nothing, [schema]) == [frozenset("ik")]
    assert timed.columns_needed({**nothing, "main": frozenset("o"), "late": frozenset("x")}, [schema]) == [
        frozenset("itox")
    ]
    pruned = timed.pruned({**nothing, "main": frozenset("o")})
    assert {port: made.names for port, made in pruned.output_schemas([schema]).items()} == {
        "main": ["o"],
        "duplicates": [],
        "late": [],
    }
    assert pruned.identity() == timed.identity(), "state is found by the operator as written"


def test_a_source_reads_no_more_than_what_is_needed(tmp_path: Path) -> None:
    rows = pa.table({**{name: [1] for name in "ikotx"}, "at": pa.array([0], pa.timestamp("us"))})
    pq.write_table(rows, tmp_path / "rows.parquet")
    job = ms.Job("j")
    unique = job.read(ms.files(tmp_path), event_time="at").deduplicate("i", within="1m")
    unique.select("o").write(ms.blackhole())
    (source,) = job.plan().graph.sources()
    assert set(source.schemas["main"].names) == {"i", "o", "at"}


def test_a_column_called_as_one_of_ours_is_no_trouble() -> None:
    rows = pa.record_batch({"time": [1, 1, 2], "written": [1, 1, 1], "deleted": ["a", "a", "a"], "t": [1, 2, 3]})
    spec = spec_of("time", "written", "deleted", within=9)
    run = Harness(spec, rows.schema).run([rows, Restart(2), rows]).finish()
    assert bag(rows_of(run.results())) == bag([(1, 1, "a", 1), (2, 1, "a", 3)])


# -- what is said to people ------------------------------------------------------------------------------------


def orders(**options: Any) -> ms.Stream:
    rows = pa.table({"id": [1], "tags": [["a"]], "at": pa.array([0], pa.timestamp("us"))})
    return ms.Job("j").read(ms.memory_source(rows), **options)


def test_the_plan_says_what_is_kept_and_for_how_long() -> None:
    assert spec_of("i", "k").describe() == "first row of each i, k, for ever"
    assert spec_of("i", within=90_000_000).describe() == "first row of each i within 1m30s of t"


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ((), {}, r"deduplicate\('id'\)"),
        (("idd",), {}, "did you mean 'id'"),
        ((["id"],), {}, "names of columns"),
        (("tags",), {}, "key column 'tags' has type list.*Make such a column first"),
        (("id",), {"within": "1h"}, "event_time='sent_at'.*or leave within= out"),
        (("id",), {"keep": "last", "within": "1h"}, r"group_by\('id'\)\.window\(ms\.tumbling\('1h'\)\)\.top\(1"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_write(
    columns: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobError, match=message):
        orders().deduplicate(*columns, **options)


@pytest.mark.parametrize("within", [0, "2000000d"])
def test_a_time_that_makes_no_sense_is_refused(within: Any) -> None:
    with pytest.raises(JobError, match="leave it out"):
        orders(event_time="at").deduplicate("id", within=within)
    with pytest.raises(JobError, match="'soon' is not a duration"):
        orders(event_time="at").deduplicate("id", within="soon")


def test_a_time_column_of_another_type_and_too_many_columns_are_refused() -> None:
    with pytest.raises(SchemaError, match=r"string.*timestamp"):
        Deduplicate(("i",), 10, col("s")).output_schemas([SCHEMA])
    assert MOST_KEYS == MOST_COLUMNS, "said twice, since the one is known without loading numba"
    with pytest.raises(JobError, match="1 to 28 columns, got 29"):
        Deduplicate(tuple(f"c{n}" for n in range(29)))


def test_there_are_no_late_rows_where_keys_are_remembered_for_ever() -> None:
    with pytest.raises(JobError, match="no row is late"):
        orders().deduplicate("id").late  # noqa: B018
    assert orders(event_time="at").deduplicate("id", within="1m").late.columns == ["id", "tags", "at"]
