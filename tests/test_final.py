"""``final()`` and ``consolidate()``: what is left of a changelog, in the end or at each checkpoint."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from changelog_kit import changelogs, hashable, held_by, net
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream import col
from millstream.engine.changelog import weighted
from millstream.engine.errors import DataError, JobError, SchemaError
from millstream.engine.store.letters import LetterChange, Selection
from millstream.engine.store.store import CheckpointStore
from millstream.operators.consolidate import Consolidate
from millstream.operators.final import FinalRows
from millstream.testing import BARRIER, check_operator, simulate
from operator_kit import Harness, Restart, Step, rows_of
from window_kit import SCHEMA

WHOLE = tuple(SCHEMA.names)


def bag(table: pa.Table) -> Counter[Any]:
    return Counter(hashable(row) for row in rows_of(table))


@settings(max_examples=30, deadline=None)
@given(changelogs(), st.sampled_from([WHOLE, ("seq", "k")]), st.integers(1, 2))
def test_what_is_left_is_what_was_not_taken_back(steps: list[Step], keys: tuple[str, ...], parallelism: int) -> None:
    batches = [step for step in steps if isinstance(step, pa.RecordBatch)]
    held = held_by(batches)
    run = Harness(FinalRows(keys), weighted(SCHEMA), parallelism).run(steps)
    assert run.results().num_rows == 0
    if keys != WHOLE and max(bag(held).values(), default=1) > 1:
        with pytest.raises(DataError, match="more than one row had seq="):
            run.finish()
        return
    assert bag(run.finish().results()) == bag(held)


@settings(max_examples=30, deadline=None)
@given(changelogs())
def test_consolidated_changes_come_to_the_same(steps: list[Step]) -> None:
    schema = weighted(SCHEMA)
    run = Harness(Consolidate(), schema)
    batches: list[pa.RecordBatch] = []
    for step in steps:
        if isinstance(step, pa.RecordBatch):
            run.feed(step)
            batches.append(step)
            continue
        run.checkpoint()
        assert net(run.out.batches["main"]) == net(batches)
    run.finish()
    assert net(run.out.batches["main"]) == net(batches)


SMALL = weighted(pa.schema({"k": pa.string(), "v": pa.list_(pa.int64())}))


def rows(*values: tuple[str | None, list[int] | None, int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict(zip(SMALL.names, row, strict=True)) for row in values], schema=SMALL)


SCRIPT = [
    rows(("a", [1], 1), ("b", None, 1), (None, [2], 1)),
    BARRIER,
    rows(("a", [1], -1), ("a", [1, 2], 1), ("b", None, -1), ("c", [], 1), ("c", [], -1)),
    BARRIER,
    rows(("a", [1, 2], -1), ("a", [3], 1), ("b", [7], 1), ("b", [7], -1), (None, [2], -1), (None, [2], 1)),
    BARRIER,
    rows(("c", [9], 1)),
]


def test_they_keep_the_contract_of_operators() -> None:
    found = check_operator(FinalRows(("k",)), SCRIPT)["main"]
    left = [("a", [3]), (None, [2]), ("c", [9])]
    assert sorted(map(repr, (tuple(row.values()) for row in found))) == sorted(map(repr, left))
    found = check_operator(Consolidate(), SCRIPT)["main"]
    assert sorted(map(repr, (tuple(row.values()) for row in found))) == sorted(repr((*row, 1)) for row in left)


def test_consolidate_lets_net_changes_through_at_the_barrier_and_what_goes_first() -> None:
    run = Harness(Consolidate(), SMALL).run([SCRIPT[0], SCRIPT[2]])  # type: ignore[list-item]
    assert run.out.batches == {}
    run.checkpoint()
    run.feed(SCRIPT[4])  # type: ignore[arg-type]
    run.checkpoint()
    assert [[tuple(row.values()) for row in batch.to_pylist()] for batch in run.out.batches["main"]] == [
        [(None, [2], 1), ("a", [1, 2], 1)],
        [("a", [1, 2], -1), ("a", [3], 1)],
    ]


def test_consolidate_does_not_hold_what_cancels_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.operators.consolidate._HELD_ROWS", 50)
    operator = Consolidate().build([SMALL])
    run = Harness(Consolidate(), SMALL)
    for n in range(200):
        operator.process(rows(("a", [n], 1), ("a", [n - 1], -1 if n else 1)), run.out)
        assert operator._rows <= 54  # type: ignore[attr-defined]
    operator.on_barrier(run.out)
    assert net(run.out.batches["main"]) == Counter({("a", (199,)): 1, ("a", (-1,)): 1})


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([rows(("a", [1], 1), ("a", [2], 1))], "more than one row had k='a' at a time"),
        ([rows(("a", [1], 1), ("a", [2], 1)), rows(("a", [1], -1))], None),
        ([rows(("a", [1], -1))], "takes more rows back than it has brought, of k='a'"),
        ([rows(("a", [1], 1)), rows(("a", [1], 2))], "more than one row had k='a' at a time"),
    ],
)
def test_a_key_of_two_rows_is_an_error_and_no_guess(batches: list[pa.RecordBatch], message: str | None) -> None:
    run = Harness(FinalRows(("k",)), SMALL).run(batches)
    if message is None:
        assert rows_of(run.finish().results()) == [("a", [2])]
        return
    with pytest.raises(DataError, match=message):
        run.finish()


def test_a_row_is_not_taken_for_another_one_of_its_key() -> None:
    schema = weighted(pa.schema({"k": pa.string(), "v": pa.int64()}))
    batch = pa.record_batch([["a", "a", "a"], [1, 2, 2], [1, 1, -1]], schema=schema)
    with pytest.raises(DataError, match="do not tell rows apart"):
        Harness(FinalRows(("k",)), schema).run([batch]).finish()


# -- streams ---------------------------------------------------------------------------------------------------

START = dt.datetime(2026, 1, 1)
ROWS = [{"shop": f"s{n % 7}", "n": n * 37 % 101, "at": START + dt.timedelta(seconds=n)} for n in range(200)]


def keys_of(stream: ms.Stream) -> tuple[str, ...]:
    return stream._graph.nodes[stream.final()._edge.node].body.keys  # type: ignore[union-attr]


def test_the_key_is_known_as_long_as_its_columns_are_there() -> None:
    sums = ms.Job("j").read(ms.memory_source(ROWS)).group_by("shop").agg(total=ms.sum("n"), all=ms.collect("n"))
    assert keys_of(sums) == ("shop",)
    assert keys_of(sums.filter(col("total") > 1).rename(s="shop").with_columns(x=1).consolidate()) == ("s",)
    assert keys_of(sums.select("total")) == ("total",)
    assert keys_of(sums.select("total", shop=col("shop").str.upper())) == ("total", "shop")
    with pytest.raises(SchemaError, match=r"'all' has type list.*as in final\('shop'\)"):
        sums.drop("shop").final()
    with pytest.raises(SchemaError, match="there is no column 'shops'"):
        sums.final("shops")


def test_the_key_of_a_ranking_is_known_if_it_tells_rows_apart() -> None:
    shops = ms.Job("j").read(ms.memory_source(ROWS)).group_by("shop")
    assert keys_of(shops.top(1, by="n").select("shop", "n")) == ("shop",)
    assert keys_of(shops.top(2, by="n", row_number="place")) == ("shop", "place")
    assert keys_of(shops.top(2, by="n")) == keys_of(shops.top(1, by="n", ties=True)) == ("shop", "n", "at")
    assert keys_of(ms.Job("j").read(ms.memory_source(ROWS)).top(1, by="n")) == ()


def test_append_streams_need_neither() -> None:
    rows = ms.Job("j").read(ms.memory_source(ROWS))
    with pytest.raises(JobError, match=r"leave final\(\) out"):
        rows.final()
    with pytest.raises(JobError, match="leave it out"):
        rows.consolidate()


def test_a_map_cannot_be_consolidated() -> None:
    schema = weighted(pa.schema({"m": pa.map_(pa.string(), pa.int64())}))
    with pytest.raises(SchemaError, match="column 'm' is map"):
        Consolidate().output_schemas([schema])


def make(out: tuple[Any, ...]) -> ms.Job:
    job = ms.Job("final")
    batches = pa.Table.from_pylist(ROWS).to_batches(max_chunksize=9)
    orders = job.read(ms.memory_source(batches), event_time="at", max_delay="2s")
    sums = orders.group_by("shop").agg(n=ms.sum("n"), some=ms.collect("n", limit=3))
    sums.final().write(out[0])
    sums.select("n").consolidate().final().write(out[1])
    sums.consolidate().changes().write(out[2])
    orders.agg(n=ms.count()).final().write(out[3])
    return job


def sinks() -> tuple[Any, ...]:
    return tuple(ms.memory_sink(name=name) for name in ("rows", "whole", "net", "all"))


def result(out: tuple[Any, ...]) -> list[Counter[Any]]:
    changes: Counter[Any] = Counter()
    for row in out[2].rows():
        changes[hashable([row["shop"], row["n"], row["some"]])] += row["weight"]
    tables = [Counter(hashable(list(row.values())) for row in sink.rows()) for sink in out]
    return [*tables[:2], +changes, tables[3]]


@pytest.fixture(scope="module")
def expected() -> list[Counter[Any]]:
    out = sinks()
    make(out).run()
    kept, whole, changes, count = result(out)
    assert kept == changes
    assert whole == Counter((row[1],) for row in kept)
    assert (len(kept), count) == (7, Counter({(200,): 1}))
    return [kept, whole, changes, count]


@pytest.mark.parametrize("seed", [0, 1, 2, 5])
def test_crashes_do_not_show(seed: int, tmp_path: Path, expected: list[Counter[Any]]) -> None:
    out = sinks()
    done = simulate(lambda: make(out), tmp_path / "s.duckdb", seed)
    assert result(out) == expected, f"seed {seed} reproduces it"
    assert done.crashes > 0


# -- after the end ---------------------------------------------------------------------------------------------

PLAIN = weighted(pa.schema({"k": pa.string(), "v": pa.int64()}))


def plain(*values: tuple[str, int, int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict(zip(PLAIN.names, row, strict=True)) for row in values], schema=PLAIN)


def test_what_was_given_is_not_changed_any_more_and_new_keys_are_given() -> None:
    run = Harness(FinalRows(("k",)), PLAIN).run([plain(("a", 1, 1), ("b", 2, 1))]).finish()
    run.run(
        [plain(("a", 1, -1), ("a", 5, 1), ("c", 7, 1)), plain(("a", 5, -1), ("a", 6, 1), ("d", 0, 1), ("d", 0, -1))]
    )
    run.checkpoint()
    assert rows_of(run.results()) == [("a", 1), ("b", 2), ("c", 7)]
    assert rows_of(run.results("late")) == [("a", 1, -1), ("a", 6, 1)]
    run.run([Restart(2), plain(("b", 2, -1), ("c", 7, -1), ("c", 8, 1), ("e", 1, 1))]).finish()
    assert rows_of(run.results())[3:] == [("e", 1)]
    assert sorted(rows_of(run.results("late"))[2:]) == [("b", 2, -1), ("c", 7, -1), ("c", 8, 1)]
    assert run.counters["late_rows"] == 5


def test_of_whole_rows_there_may_be_more_after_the_end() -> None:
    run = Harness(FinalRows(("k", "v")), PLAIN).run([plain(("a", 1, 1))]).finish()
    run.run([plain(("a", 1, 2), ("a", 2, -1))]).checkpoint()
    assert rows_of(run.results()) == [("a", 1)] * 3
    assert rows_of(run.results("late")) == [("a", 2, -1)]


def test_two_rows_of_a_key_are_an_error_after_the_end_too() -> None:
    run = Harness(FinalRows(("k",)), PLAIN).finish()
    run.run([plain(("b", 1, 1), ("a", 1, 1), ("a", 2, 1))])
    with pytest.raises(DataError, match="more than one row had k='a' at a time"):
        run.checkpoint()


@pytest.mark.parametrize("seed", range(3))
def test_a_replay_after_the_end_changes_what_is_late(seed: int, tmp_path: Path) -> None:
    """Whatever crashes: what was given and what was late come to the sums of all rows."""
    out, late, good = ms.memory_sink("out"), ms.memory_sink("late"), False

    def refuse(row: dict[str, Any]) -> dict[str, Any]:
        assert good or row["n"] % 10 != 3
        return row

    def made() -> ms.Job:
        job = ms.Job("replays")
        given = [{"shop": f"s{n % 7}" if n < 53 else "new", "n": n} for n in range(54)]
        read = job.read(ms.memory_source(pa.Table.from_pylist(given).to_batches(max_chunksize=4), splits=2))
        kept = read.map(refuse, schema={"shop": str, "n": int}, on_error="dead_letter", name="refuse")
        final = kept.group_by("shop").agg(n=ms.sum("n")).final()
        final.write(out)
        final.late.changes().write(late)
        return job

    def sums(numbers: Iterable[int]) -> dict[str, int]:
        found: Counter[str] = Counter()
        for n in numbers:
            found[f"s{n % 7}" if n < 53 else "new"] += n
        return dict(found)

    store = tmp_path / "s.duckdb"
    simulate(made, store, seed, crashes=2)
    before = sums(n for n in range(54) if n % 10 != 3)
    assert {row["shop"]: row["n"] for row in out.rows()} == before
    assert late.rows() == []
    marking = CheckpointStore.open(store)
    assert marking.change_letters(Selection(), LetterChange.MARK) == 6
    marking.close()
    good = True
    simulate(made, store, seed, crashes=2, steps_between=30)
    now = Counter({(row["shop"], row["n"]): 1 for row in out.rows()})
    for row in late.rows():
        now[row["shop"], row["n"]] += row["weight"]
    assert +now == Counter(dict.fromkeys(sums(range(54)).items(), 1)), f"seed {seed} reproduces it"
    assert {row["shop"]: row["n"] for row in out.rows()} == before | {"new": 53}
