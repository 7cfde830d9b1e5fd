"""Lookups over changelogs: what a row was answered is taken back with it, whatever the table says by then."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from changelog_kit import changelogs, hashable, held_by, net
from hypothesis import given, settings
from hypothesis import strategies as st
from join_kit import LEFT
from millstream.engine.changelog import WEIGHT, weighted
from millstream.engine.errors import DataError, JobError
from millstream.operators import changes as changes_of_state
from millstream.operators import changing_lookup_operator, row_contents
from millstream.operators.join_columns import join_columns
from millstream.operators.lookup import FunctionTable, Lookup
from millstream.testing import BARRIER, Tick, check_operator, simulate
from nursery import Nursery, Start
from operator_kit import Harness, Step, rows_of
from window_kit import SCHEMA

FOUND = pa.Table.from_pylist(
    [{"k": 0, "name": "zero"}, {"k": 0, "name": "null"}, {"k": 1, "name": None}],
    pa.schema({"k": pa.int32(), "name": pa.string()}),
)


def fixed(keys: pa.RecordBatch) -> pa.Table:
    """Always the same."""
    return FOUND.filter(pa.compute.is_in(FOUND["k"], keys["k"]))


class Drifting:
    """A table that is another one with each call, and does not always have something."""

    def __init__(self) -> None:
        self.calls = 0
        self.asked = Counter[Any]()

    def __call__(self, keys: pa.RecordBatch) -> pa.Table:
        self.calls += 1
        self.asked.update(keys["k"].to_pylist())
        rows = [{"k": k, "name": f"{self.calls} {n}"} for k in keys["k"].to_pylist() for n in range(self.calls % 3)]
        return pa.Table.from_pylist(rows, pa.schema({"k": keys.schema.field("k").type, "name": pa.string()}))


def spec_of(table: Any, left: pa.Schema = SCHEMA, how: str = "left", **options: Any) -> Lookup:
    right = pa.schema([left.field("k"), pa.field("name", pa.string())])
    columns = join_columns(left, right, [("k", "k")], "_right", False)
    return Lookup(
        left_keys=("k",),
        right_keys=("k",),
        how=how,
        columns=columns,
        table=FunctionTable(table, right),
        changes=True,
        **options,
    )


@settings(max_examples=15, deadline=None)
@given(changelogs(), st.sampled_from(["inner", "left"]), st.integers(1, 2))
def test_every_prefix_comes_to_what_sql_gives(steps: list[Step], how: str, parallelism: int) -> None:
    run = Harness(spec_of(fixed, how=how), weighted(SCHEMA), parallelism)
    batches: list[pa.RecordBatch] = []
    for step in steps:
        run.run([step])
        if isinstance(step, pa.RecordBatch):
            batches.append(step)
            with duckdb.connect() as connection:
                connection.register("l", held_by(batches)).register("f", FOUND)
                joined = connection.sql(f"select l.*, f.name from l {how} join f on l.k = f.k").to_arrow_table()
            assert net(run.out.batches["main"]) == Counter(map(hashable, rows_of(joined)))


@settings(max_examples=15, deadline=None)
@given(changelogs(), st.sampled_from([0, 3_600_000_000]))
def test_each_row_has_one_answer_however_the_table_changes(steps: list[Step], remember: int) -> None:
    """Of n answers, or of none, a row has all n or stands alone; nothing is left of rows that are gone."""
    run = Harness(spec_of(Drifting(), remember=remember), weighted(SCHEMA))
    batches: list[pa.RecordBatch] = []
    for step in steps:
        run.run([step])
        if not isinstance(step, pa.RecordBatch):
            continue
        batches.append(step)
        found: dict[Any, Counter[str | None]] = {}
        for (*row, name), weight in net(run.out.batches["main"]).items():
            found.setdefault(tuple(row), Counter())[name] = weight
        held = Counter(map(hashable, rows_of(held_by(batches))))
        assert found.keys() == held.keys()
        for row, answers in found.items():
            assert set(answers.values()) == {held[row]}
            calls = {name and name.split()[0] for name in answers}
            assert len(calls) == 1
            (call,) = calls
            assert len(answers) == (1 if call is None else int(call) % 3)


ROWS = weighted(LEFT)


def rows(*given: tuple[int | None, Any, int]) -> pa.RecordBatch:
    """Rows of (k, tags, weight)."""
    made = [{"k": k, "tags": tags, "f": -0.0, WEIGHT: weight} for k, tags, weight in given]
    return pa.RecordBatch.from_pylist(made, ROWS)


SCRIPT = [
    rows((1, ["a"], 1), (2, [], 2), (None, None, 1), (3, ["a", None], 1)),
    BARRIER,
    Tick(5),
    rows((1, ["a"], 1), (2, [], -2), (3, ["a", None], -1), (3, ["a", None], 1)),
    BARRIER,
    BARRIER,
    rows((1, ["a"], -2), (None, None, 1), (2, [], 1)),
    Tick(9),
    BARRIER,
    rows((3, ["a", None], -1), (None, None, -1)),
]


def by_number(keys: pa.RecordBatch) -> pa.Table:
    found = [{"k": k, "name": f"{k} {n}"} for k in keys["k"].to_pylist() for n in range(3 - k)]
    return pa.Table.from_pylist(found, pa.schema({"k": pa.int64(), "name": pa.string()}))


@pytest.mark.parametrize("how", ["inner", "left"])
def test_it_keeps_the_contract_of_operators(how: str) -> None:
    made = check_operator(spec_of(by_number, LEFT, how, remember=4), SCRIPT)["main"]
    left = Counter({(row["k"], row["name"]): row[WEIGHT] for row in made})
    assert left == Counter({(2, "2 0"): 1} | ({(None, None): 1} if how == "left" else {}))


def test_a_row_is_asked_for_once_while_it_is_there_and_again_when_it_comes_back() -> None:
    table = Drifting()
    run = Harness(spec_of(table, LEFT), ROWS)
    run.feed(rows((1, None, 1), (2, None, 1)))
    run.feed(rows((1, None, 3), (1, None, -2)))
    run.feed(rows((1, None, -2), (2, None, -1)))
    assert net(run.out.batches["main"]) == {}
    assert table.asked == {1: 1, 2: 1}
    run.feed(rows((1, None, 1)))
    assert table.asked == {1: 2, 2: 1}


def test_the_memory_of_rows_that_are_gone_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (changing_lookup_operator, row_contents):
        monkeypatch.setattr(module, "_MIN_GARBAGE", 4)
    monkeypatch.setattr(changes_of_state, "WHOLE_STATE_ROWS", 8)
    run = Harness(spec_of(Drifting(), LEFT), ROWS)
    there: list[int] = []
    for step, weights in enumerate(itertools.islice(itertools.cycle([(1, 1, 1), (1, -1, -1)]), 60)):
        coming = [step * 3 + n for n, weight in enumerate(weights) if weight > 0]
        going = [there.pop(0) for weight in weights if weight < 0]
        there += coming
        run.feed(rows(*((n, [str(n)], 1) for n in coming), *((n, [str(n)], -1) for n in going), (7_000 + step, [], 0)))
        (operator,) = run.subtasks
        assert len(operator._rows) <= 2 * len(there) + 8  # type: ignore[attr-defined]
        assert len(operator._contents._index) <= 2 * len(there) + 8  # type: ignore[attr-defined]
        assert {row[0] for row in net(run.out.batches["main"])} == set(there)
        if step % 7 == 3:
            run.restart(1 + step % 2)
            run.restart(1)


def test_a_delta_holds_what_changed_and_a_slice() -> None:
    run = Harness(spec_of(Drifting(), LEFT), ROWS)
    (operator,) = run.subtasks
    many = rows(*((n, [], 1) for n in range(30_000)))
    run.feed(many)
    assert operator.snapshot(1)["answers"].rows.num_rows == 30_000
    run.feed(rows((5, [], -1), (6, [], 1)))
    delta = operator.snapshot(2)["answers"].rows
    assert 2 <= delta.num_rows <= 2 + 30_000 / 20
    assert np.sum(delta["deleted"].to_numpy()) == 1


def test_what_is_taken_back_must_have_come() -> None:
    run = Harness(spec_of(Drifting(), LEFT), ROWS)
    run.feed(rows((1, None, 1)))
    with pytest.raises(DataError, match=r"lookup: a row .* never came, or is gone already: \{'k': 2, .*must make the"):
        run.feed(rows((1, None, -1), (2, None, -1)))


def test_rows_of_a_changelog_cannot_be_put_aside() -> None:
    stream = ms.Job("j").read(ms.memory_source([{"k": 1}])).group_by("k").agg(n=ms.count())
    with pytest.raises(JobError, match=r"lookup\(on_error='dead_letter'\): the stream is a changelog.*could not be"):
        stream.lookup(by_number, on="k", schema={"name": str}, on_error="dead_letter")


def payments(count: int) -> list[pa.RecordBatch]:
    made = [{"order": n * 7 % 40, "k": n * n % 11} for n in range(count)]
    return [pa.RecordBatch.from_pylist(made[at : at + 5]) for at in range(0, count, 5)]


def last(count: int) -> Counter[Any]:
    return Counter({row["order"]: row["k"] for batch in payments(count) for row in batch.to_pylist()}.items())


DRIFTING = Drifting()


def looked_up(count: int) -> tuple[ms.Job, ms.Stream]:
    job = ms.Job("orders")
    newest = job.read(ms.memory_source(payments(count))).deduplicate("order", keep="last")
    return job, newest.lookup(DRIFTING, on="k", schema={"name": str}, how="left", cache="1h", cache_keys=2)


@pytest.mark.parametrize("seed", range(4))
def test_a_seed(seed: int, tmp_path: Path) -> None:
    out = ms.memory_sink()

    def make() -> ms.Job:
        job, named = looked_up(200)
        named.changes().write(out)
        return job

    assert simulate(make, tmp_path / "s.duckdb", seed).crashes
    check_net(out.rows(), 200)


def check_net(rows: list[dict[str, Any]], count: int) -> None:
    """All that is left is one answer for each order."""
    found: Counter[Any] = Counter()
    for row in rows:
        found[row["order"], row["k"], row["name"]] += row["weight"]
    assert set(found.values()) <= {0, 1}
    assert {(order, k) for order, k, _ in +found} == last(count).keys()


JOB = """
import millstream as ms
from test_lookup_changelogs import looked_up

job, named = looked_up(200)
named.changes().write(ms.jsonl("output", hold_bytes=0))
"""


def test_a_process_killed_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    with Nursery() as nursery:
        for point, parallelism in (("store.before_commit=kill@4", 2), ("subtask.snapshot=kill@9", 3)):
            assert nursery.run(Start(str(tmp_path), parallelism=parallelism, failpoint=point)).killed
        end = nursery.run(Start(str(tmp_path)))
    assert end.outcome == "finished", end.log
    assert end.restored_from > 0
    files = (tmp_path / "output").rglob("*.jsonl")
    check_net([json.loads(line) for file in files for line in file.read_text().splitlines()], 200)
