"""Lookups: what is found, what is asked for and how often, and what is said when it goes wrong."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import millstream as ms
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from join_kit import LEFT, SCHEMAS, Streams, bag, streams
from millstream.engine.errors import JobError, SchemaError, UserCodeError
from millstream.engine.lookup import LookupTable
from millstream.engine.operator import OperatorSpec
from millstream.testing import On, Tick, check_operator, simulate
from millstream.testing.operators import DEAD_LETTERS

ANSWER = pa.schema({"k": pa.int64(), "s": pa.string(), "name": pa.string()})


class Remembering:
    """A function that notes what it is asked for; there are two rows for 1, one for 2, and none for 3."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[Any, ...]]] = []

    def __call__(self, keys: pa.RecordBatch) -> pa.Table:
        self.asked.append([tuple(row.values()) for row in keys.to_pylist()])
        rows = [{**key, "name": f"{key['k']} {n}"} for key in keys.to_pylist() for n in range(3 - key["k"])]
        return pa.Table.from_pylist(rows, pa.schema([ANSWER.field(n) for n in keys.schema.names] + [ANSWER.field(2)]))


def spec_of(table: Any, left: pa.Schema = LEFT, **options: Any) -> OperatorSpec:
    job = ms.Job("j")
    stream = job.read(ms.memory_source(left.empty_table(), name="l"))
    node = job.graph.nodes[stream.lookup(table, **options)._edge.node]
    assert isinstance(node.body, OperatorSpec)
    return node.body


@pytest.mark.parametrize("how", ["inner", "left"])
@settings(max_examples=8, deadline=None)
@given(given=streams(), cache=st.sampled_from([None, "1h"]), cache_keys=st.integers(1, 4), batch=st.integers(1, 3))
def test_rows_are_those_of_sql_however_much_is_remembered(
    how: str, given: Streams, cache: str | None, cache_keys: int, batch: int
) -> None:
    script = [step for step in given.steps if not isinstance(step, On) or step.input == 0]
    options = {"cache": cache, "cache_keys": cache_keys, "batch": batch}
    spec = spec_of(Remembering(), on="k", schema={"name": str}, how=how, **options)
    got = check_operator(spec, script, schemas=SCHEMAS[:1])
    found = pa.Table.from_pylist([{"k": 1, "name": "1 0"}, {"k": 1, "name": "1 1"}, {"k": 2, "name": "2 0"}])
    expected = given.sql(f"select l.*, f.name from l {how} join f on l.k = f.k", f=found)
    assert bag(got.get("main", [])) == expected


KEYS = pa.schema({"k": pa.int64(), "s": pa.string()})


def keys(*rows: tuple[int | None, str | None]) -> On:
    return On(0, pa.RecordBatch.from_pylist([{"k": k, "s": s} for k, s in rows], KEYS))


def run(spec: OperatorSpec, *steps: On | Tick) -> Counter[str]:
    """What one subtask puts out."""
    operator, found = spec.build([KEYS]), Counter[str]()

    class Out:
        def emit(self, batch: pa.RecordBatch, port: str = "main") -> None:
            found.update(f"{port} {list(row.values())}" for row in batch.to_pylist())

    for step in steps:
        if isinstance(step, Tick):
            operator.on_clock(step.time, Out())
        else:
            operator.process(step.batch, Out())
    return found


def test_a_key_is_asked_for_once_while_its_answer_is_fresh_and_null_keys_are_not() -> None:
    table = Remembering()
    spec = spec_of(table, KEYS, on=["k", "s"], schema={"name": str}, cache="10s")
    again = keys((1, "a"), (1, "a"), (1, "b"), (3, "a"), (None, "a"), (1, None))
    found = run(spec, again, Tick(9_999_999), again, Tick(10_000_000), again)
    assert [sorted(asked) for asked in table.asked] == 2 * [[(1, "a"), (1, "b"), (3, "a")]]
    assert found["main [1, 'a', '1 1']"] == 6
    assert found.total() == 18


def test_without_a_cache_a_key_is_asked_for_once_in_each_batch() -> None:
    table = Remembering()
    run(
        spec_of(table, KEYS, on="k", schema={"name": str}, batch=2), *2 * [keys((1, "a"), (2, "a"), (3, "a"), (1, "b"))]
    )
    assert [sorted(asked) for asked in table.asked] == 2 * [[(1,), (2,)], [(3,)]]


def test_the_keys_used_last_are_remembered() -> None:
    table = Remembering()
    spec = spec_of(table, KEYS, on="k", schema={"name": str}, cache="1h", cache_keys=4)
    numbers = [[-n] for n in (1, 2, 3, 4)] + [[-1], [-5], [-1], [-5], [-2]]
    run(spec, *(keys(*((n, None) for n in some)) for some in numbers))
    assert [asked for (asked,) in table.asked] == [(-1,), (-2,), (-3,), (-4,), (-5,), (-2,)]


def failing(keys: pa.RecordBatch) -> pa.Table:
    if 2 in keys["k"].to_pylist():
        raise TimeoutError("no answer")
    return Remembering()(keys)


def test_rows_whose_lookup_fails_are_dead_letters_or_fail_the_job() -> None:
    options = {"on": "k", "schema": {"name": str}, "how": "left"}
    rows = keys((1, "a"), (2, "b"), (3, "c"), (2, "d"))
    got = check_operator(spec_of(failing, KEYS, on_error="dead_letter", **options), [rows])
    assert Counter(row["name"] for row in got["main"]) == Counter(["1 0", "1 1", None])
    letters = [(letter["row"]["s"], letter["error_type"], letter["error"]) for letter in got[DEAD_LETTERS]]
    assert letters == [(s, "TimeoutError", "no answer") for s in "bd"]
    with pytest.raises(UserCodeError, match=r"failing \(.*raised TimeoutError: no answer; asked for 3 keys"):
        run(spec_of(failing, KEYS, **options), rows)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ({"k": [1], "name": ["x"]}, r"must return a pa.Table or a pa.RecordBatch, got"),
        (pa.table({"k": [1]}), "must return a column 'name', got k"),
        (pa.table({"k": [1], "name": [2]}), "column 'name' must be string, got int64"),
        (pa.table({"k": [7], "name": ["x"]}), "returned a row of the key 7, which it was not asked for"),
    ],
)
def test_a_function_that_returns_what_it_must_not_is_told(result: Any, says: str) -> None:
    with pytest.raises(UserCodeError, match=says):
        run(spec_of(lambda keys: result, KEYS, on="k", schema={"name": str}), keys((1, "a")))


def test_a_table_of_a_duckdb_file_may_change_while_the_job_runs(tmp_path: Path) -> None:
    file = tmp_path / "ref.duckdb"
    with duckdb.connect(file) as connection:
        connection.execute(
            """create table "the names" as select 1::bigint as "key", 'ann' as name, [1] as more,
            timestamptz '2026-01-01 00:00:00+00' as since, 'b'::enum('a', 'b') as letter"""
        )
    whole = spec_of(ms.duckdb_table(file, "the names"), KEYS, on={"k": "key"}, how="left")
    spec = whole.pruned({"main": frozenset({"k", "s", "key", "name", "more"})})
    assert run(spec, keys((1, "a"), (2, "b"))) == {
        "main [1, 'a', 1, 'ann', [1]]": 1,
        "main [2, 'b', None, None, None]": 1,
    }
    with duckdb.connect(file) as connection:
        connection.execute("""insert into "the names" values (2, 'bob', [], null, 'a'), (2, 'bea', null, null, null)""")
    (row,) = check_operator(whole, [keys((1, "a"))])["main"]
    assert (row["since"], row["letter"]) == (dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "b")
    assert run(spec, keys((2, "b"))) == {"main [2, 'b', 2, 'bob', []]": 1, "main [2, 'b', 2, 'bea', None]": 1}


def test_what_cannot_be_looked_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"lookup\(\) needs schema="):
        spec_of(failing, on="k")
    with pytest.raises(JobError, match="takes a function, got 3"):
        spec_of(3, on="k", schema={"name": str})
    with pytest.raises(JobError, match=r"lookup\(how='full'\): how is one of 'inner', 'left'"):
        spec_of(failing, on="k", schema={"name": str}, how="full")
    with pytest.raises(JobError, match=r"lookup\(batch=0\) takes a number of keys, at least 1"):
        spec_of(failing, on="k", schema={"name": str}, batch=0)
    with pytest.raises(JobError, match=r"lookup\(\): on_error is 'fail' or 'dead_letter', got 'skip'"):
        spec_of(failing, on="k", schema={"name": str}, on_error="skip")
    with pytest.raises(JobError, match=r"duckdb_table\(.*Name a DuckDB file that is there"):
        ms.duckdb_table(tmp_path / "none.duckdb", "t")
    file = tmp_path / "ref.duckdb"
    with duckdb.connect(file) as connection:
        connection.execute("create table t as select 'a' as k")
    table = ms.duckdb_table(file, "t")
    assert isinstance(table, LookupTable)
    with pytest.raises(SchemaError, match="values of two types are never equal"):
        spec_of(table, on="k")
    with pytest.raises(JobError, match=r"lookup\(schema=\.\.\.\): t of .* has a schema"):
        spec_of(table, on="k", schema={"k": str})


def test_every_row_has_its_effect_once_though_lookups_are_made_again(tmp_path: Path) -> None:
    out = ms.memory_sink()

    def make() -> ms.Job:
        job = ms.Job("looked up")
        batches = [pa.record_batch({"n": [n, n + 1], "k": [n % 3 + 1, 3]}) for n in range(0, 80, 2)]
        rows = job.read(ms.memory_source(batches, splits=2))
        rows.lookup(Remembering(), on="k", schema={"name": str}, how="left", cache="1h").write(out)
        return job

    assert simulate(make, tmp_path / "s.duckdb", 3).crashes > 0
    names = {1: ["1 0", "1 1"], 2: ["2 0"], 3: [None]}
    expected = Counter((n, name) for n in range(80) for name in names[3 if n % 2 else n % 3 + 1])
    assert Counter((row["n"], row["name"]) for row in out.rows()) == expected
