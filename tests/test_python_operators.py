"""Functions of the user's: the rows they make, and whose fault it is when they do not."""

from __future__ import annotations

import datetime as dt
import functools
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import millstream as ms
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.errors import DataError, JobError, MillstreamError, SchemaError, UserCodeError
from millstream.engine.expression_types import schema_of
from millstream.engine.operator import MAIN
from millstream.operators.python import FlatMap, Map, MapBatches, function_name
from millstream.testing import BARRIER, check_operator

SCHEMA = pa.schema({"n": pa.int64(), "s": pa.string()})
BATCH = pa.RecordBatch.from_pylist([{"n": n, "s": None if n == 3 else "x" * n} for n in range(6)], schema=SCHEMA)
SCRIPT = [BATCH.slice(0, 4), BARRIER, BATCH.slice(4), BARRIER]


def double(row: dict[str, Any]) -> dict[str, Any]:
    return {"twice": row["n"] * 2, "s": row["s"]}


def repeat(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for i in range(row["n"] % 3):
        yield {"n": row["n"], "i": i}


def upper(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.set_column(1, "s", pc.utf8_upper(batch["s"])).filter(pc.greater(batch["n"], 1))


def test_map_makes_one_row_of_each() -> None:
    spec = Map(double, {"twice": "int64", "s": str})
    assert check_operator(spec, SCRIPT)[MAIN] == [double(row) for row in BATCH.to_pylist()]
    assert spec.output_schemas([SCHEMA]) == {MAIN: pa.schema({"twice": pa.int64(), "s": pa.string()})}


def test_flat_map_makes_any_number() -> None:
    made = [{"n": n, "i": i} for n in range(6) for i in range(n % 3)]
    assert check_operator(FlatMap(repeat, {"n": int, "i": int}), SCRIPT)[MAIN] == made
    assert check_operator(FlatMap(lambda row: list(repeat(row)), {"n": int, "i": int}), SCRIPT)[MAIN] == made
    assert check_operator(FlatMap(lambda row: (), {"n": int}), SCRIPT) == {}


def test_flat_map_of_many_rows_comes_in_bounded_batches() -> None:
    sizes: list[int] = []

    class Sizes:
        def emit(self, batch: pa.RecordBatch, port: str = MAIN) -> None:
            sizes.append(batch.num_rows)

    spec = FlatMap(lambda row: ({"i": i} for i in range(50_000)), {"i": int})
    spec.build([SCHEMA]).process(BATCH.slice(0, 4), Sizes())
    assert sum(sizes) == 200_000
    assert max(sizes) <= 2 * 65_536


def test_map_batches_takes_and_makes_arrow() -> None:
    expected = [{"n": n, "s": None if n == 3 else "X" * n} for n in range(2, 6)]
    assert check_operator(MapBatches(upper, None), SCRIPT)[MAIN] == expected
    assert check_operator(MapBatches(upper, {"n": int, "s": str}), SCRIPT)[MAIN] == expected
    as_table = MapBatches(lambda batch: pa.Table.from_batches([batch, batch]), None)
    assert len(check_operator(as_table, SCRIPT)[MAIN]) == 12
    assert MapBatches(upper, None).output_schemas([SCHEMA])[MAIN] == SCHEMA


def test_the_schema_of_map_batches_is_learnt_from_an_empty_batch() -> None:
    asked: list[int] = []

    def watched(batch: pa.RecordBatch) -> pa.RecordBatch:
        asked.append(batch.num_rows)
        return batch.append_column("half", pc.divide(batch["n"].cast(pa.float64()), 2))

    stream = ms.Job("j").read(ms.memory_source([BATCH])).map_batches(watched)
    assert stream.schema.field("half").type == pa.float64()
    assert set(asked) == {0}


values = st.fixed_dictionaries(
    {
        "i": st.none() | st.integers(-(2**63), 2**63 - 1),
        "f": st.none() | st.floats(allow_nan=False),
        "s": st.none() | st.text(max_size=5),
        "b": st.none() | st.booleans(),
        "raw": st.none() | st.binary(max_size=5),
        "d": st.none() | st.decimals(-9999, 9999, places=2),
        "at": st.none() | st.datetimes(dt.datetime(1, 1, 1)),
        "day": st.none() | st.dates(),
        "list": st.none() | st.lists(st.none() | st.integers(-5, 5), max_size=3),
    }
)
TYPES = pa.schema(
    {
        "i": pa.int64(),
        "f": pa.float64(),
        "s": pa.string(),
        "b": pa.bool_(),
        "raw": pa.binary(),
        "d": pa.decimal128(8, 2),
        "at": pa.timestamp("us"),
        "day": pa.date32(),
        "list": pa.list_(pa.int64()),
    }
)


@settings(max_examples=30, deadline=None)
@given(st.lists(values, min_size=1, max_size=8))
def test_every_type_goes_through_a_function_unchanged(rows: list[dict[str, Any]]) -> None:
    batch = pa.RecordBatch.from_pylist(rows, schema=TYPES)
    assert check_operator(Map(dict, TYPES), [batch, BARRIER])[MAIN] == rows
    assert check_operator(FlatMap(lambda row: [row], TYPES), [batch])[MAIN] == rows


EAST = dt.timezone(dt.timedelta(hours=2))


@pytest.mark.parametrize(
    ("value", "type", "kept"),
    [
        (2.0, "int64", 2),
        (True, "float64", 1.0),
        (Decimal("3"), "int8", 3),
        (7, "decimal(5, 2)", Decimal(7)),
        (0.1, "float32", pa.scalar(0.1, pa.float32()).as_py()),
        (dt.datetime(2024, 1, 1, 12, tzinfo=EAST), "timestamp[us]", dt.datetime(2024, 1, 1, 10)),
        (dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC), "timestamp[s]", dt.datetime(2024, 1, 1, 12)),
        (dt.datetime(2024, 1, 1), "timestamp[s]", dt.datetime(2024, 1, 1)),
        ((1, None), pa.list_(pa.int64()), [1, None]),
        ([float("inf")], pa.list_(pa.float64()), [float("inf")]),
        ({"x": None}, pa.struct({"x": pa.int64(), "y": pa.string()}), {"x": None, "y": None}),
        ({"k": 1}, pa.map_(pa.string(), pa.int64()), [("k", 1)]),
        ("x", pa.dictionary(pa.int32(), pa.string()), "x"),
    ],
    ids=str,
)
def test_values_that_fit_another_type_are_taken(value: Any, type: Any, kept: Any) -> None:
    assert check_operator(Map(lambda row: {"n": value}, {"n": type}), [BATCH.slice(0, 1)])[MAIN] == [{"n": kept}]


# -- what is wrong with a function, told when the job is built -------------------------------------------------


async def later(row: dict[str, Any]) -> dict[str, Any]:
    return row


BUILT: list[tuple[Callable[[], Any], str]] = [
    (lambda: Map(5, {"a": int}), r"map\(\) takes a function, got 5"),
    (
        lambda: Map(lambda: {"a": 1}, {"a": int}),
        r"map\(\) calls its function with one argument, .*takes \(\)",
    ),
    (
        lambda: Map(lambda row, state: {}, {"a": int}),
        r"<lambda> \(.*test_python_operators.py:\d+\) takes \(row, state\)",
    ),
    (lambda: FlatMap(lambda *, row: [], {"a": int}), r"flat_map\(\) calls its function with one argument"),
    (lambda: MapBatches(lambda: None, None), r"with one argument, a pa.RecordBatch; .* takes \(\)"),
    (lambda: Map(later, {"a": int}), r"map\(\) takes a plain function; .*later \(.*\) is async"),
    (lambda: Map(repeat, {"n": int, "i": int}), r"repeat .* yields rows, but map\(\) makes one of each: use flat_map"),
    (lambda: Map(double, None), r"map\(\) needs schema=\{...\}: the columns that its function returns"),
    (lambda: FlatMap(repeat, {}), r"the schema has no columns; write one such as \{'id': 'int64'"),
    (lambda: Map(double, {"a": "intt"}), "'intt' is not a type .did you mean 'int8'"),
    (
        lambda: Map(double, ["a"]),
        r"expected a schema such as \{'id': 'int64', 'name': str\} or a pa.Schema, got \['a'\]",
    ),
]


@pytest.mark.parametrize(("write", "message"), BUILT, ids=range(len(BUILT)))
def test_functions_that_do_not_fit_are_refused_at_once(write: Callable[[], Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        write()


def test_a_function_that_fails_on_an_empty_batch_needs_a_schema() -> None:
    def first_only(batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch.slice(0, 1) if batch["n"][0].as_py() >= 0 else batch

    with pytest.raises(SchemaError, match=r"empty batch to learn its schema, and raised IndexError.*Write schema="):
        MapBatches(first_only, None).output_schemas([SCHEMA])
    with pytest.raises(SchemaError, match=r"must return a pa\.RecordBatch, got None"):
        MapBatches(lambda batch: None, None).output_schemas([SCHEMA])
    assert MapBatches(first_only, {"n": int, "s": str}).output_schemas([SCHEMA]) == {MAIN: SCHEMA}


# -- what is wrong with a function, told when it runs ------------------------------------------------------------


def failing(row: dict[str, Any]) -> dict[str, Any]:
    return {"n": 10 // (row["n"] - 2)}


def stops(row: dict[str, Any]) -> dict[str, Any]:
    raise StopIteration


def half_way(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"n": 1}
    raise KeyError("rate")


INT = {"n": "int64"}
RUN: list[tuple[Any, str]] = [
    (Map(failing, INT), r"failing \(.*\.py:\d+\) raised ZeroDivisionError: .*the row is \{'n': 2, 's': 'xx'\}"),
    (Map(stops, INT), r"raised StopIteration.*the row is \{'n': 0"),
    (Map(lambda row: row["m"], INT), r"<lambda> \(.*\) raised KeyError: 'm'; the row is \{'n': 0, 's': ''\}"),
    (Map(lambda row: None, INT), r"must return a dict, got None \(NoneType\); to leave rows out, use filter\(\)"),
    (Map(lambda row: [row], INT), r"must return a dict, got \[\{'n': 0, 's': ''\}\] \(list\)"),
    (Map(lambda row: {}, INT), r"exactly the keys 'n'; it lacks 'n': \{\}"),
    (Map(lambda row: row, INT), r"exactly the keys 'n'; it also has 's'"),
    (Map(lambda row: {"m": 1}, INT), r"it lacks 'n' and also has 'm'"),
    (Map(lambda row: {1: 1, "n": 1}, INT), r"also has '1'"),
    (Map(lambda row: {"n": "x" if row["n"] == 4 else 1}, INT), r"must return int64 for 'n', got 'x' \(str\).*'n': 4"),
    (Map(lambda row: {"n": 1.5}, INT), r"must return int64 for 'n', got 1.5 \(float\) \(it would become 1\)"),
    (Map(lambda row: {"n": dt.datetime(2024, 1, 1, 9)}, {"n": "date32"}), r"must return date32\[day\] for 'n'"),
    (Map(lambda row: {"n": 5}, {"n": "timestamp[us]"}), r"must return timestamp\[us\] for 'n', got 5"),
    (Map(lambda row: {"n": dt.datetime(2024, 1, 1, 9, 0, 0, 5)}, {"n": "timestamp[s]"}), "it would become datetime"),
    (Map(lambda row: {"n": b"x"}, {"n": str}), r"must return string for 'n', got b'x' \(bytes\)"),
    (Map(lambda row: {"n": [1, 2.5]}, {"n": pa.list_(pa.int64())}), r"it would become \[1, 2\]"),
    (Map(lambda row: {"n": {"x": 1, "y": 2}}, {"n": pa.struct({"x": pa.int64()})}), r"it would become \{'x': 1\}"),
    (Map(lambda row: {"n": 2**63}, INT), r"must return int64 for 'n', got 9223372036854775808"),
    (Map(lambda row: {"n": object()}, INT), r"must return int64 for 'n', got <object"),
    (Map(lambda row: {"n": Decimal("1.234")}, {"n": "decimal(5, 2)"}), r"must return decimal128\(5, 2\) for 'n'"),
    (
        Map(lambda row: {"n": None if row["s"] is None else 1}, pa.schema([pa.field("n", pa.int64(), nullable=False)])),
        r"must not return None for 'n', which the schema says is never null; the row is \{'n': 3, 's': None\}",
    ),
    (FlatMap(half_way, INT), r"half_way .* raised KeyError: 'rate'; the row is \{'n': 0"),
    (FlatMap(lambda row: None, INT), r"must return dicts in a list, or yield them, got None .*the row is \{'n': 0"),
    (FlatMap(lambda row: {"n": 1}, INT), r"must return dicts in a list, or yield them, got \{'n': 1\} \(dict\)"),
    (FlatMap(lambda row: "ab", INT), r"must return dicts in a list, or yield them, got 'ab'"),
    (FlatMap(lambda row: [row["n"]], INT), r"must return a dict, got 0 \(int\)"),
    (
        MapBatches(lambda batch: 1 // (6 - batch.num_rows), INT),
        r"ZeroDivisionError.*batch of 6 rows; its first: \{'n': 0",
    ),
    (MapBatches(lambda batch: batch.to_pylist(), INT), r"must return a pa.RecordBatch, got \[\{'n': 0"),
    (MapBatches(lambda batch: batch, INT), r"must return the columns n: int64, got n: int64, s: string"),
    (
        MapBatches(lambda batch: batch.select(["n"]), {"n": int, "s": str}),
        "must return the columns n: int64, s: string, got n",
    ),
    (
        MapBatches(lambda batch: batch, pa.schema([SCHEMA.field("n"), SCHEMA.field("s").with_nullable(False)])),
        "must not return nulls in 's', which the schema says is never null",
    ),
]


@pytest.mark.parametrize(("spec", "message"), RUN, ids=range(len(RUN)))
def test_functions_that_break_their_word_are_named_with_the_row(spec: Any, message: str) -> None:
    with pytest.raises(UserCodeError, match=rf"(?s){message}") as error:
        check_operator(spec, [BATCH])
    assert len(str(error.value)) < 1500
    assert error.value.restartable


def test_an_error_shows_long_values_shortened_and_strange_ones_too() -> None:
    schema = pa.schema({"s": pa.string(), "at": pa.timestamp("us")})
    batch = pa.RecordBatch.from_pylist([{"s": "y" * 10_000, "at": None}], schema=schema)
    with pytest.raises(UserCodeError) as error:
        check_operator(Map(lambda row: {"n": row["s"]}, INT), [batch])
    assert len(str(error.value)) < 1500
    far = pa.record_batch({"at": pa.array([0, 2**62], pa.timestamp("us"))})
    with pytest.raises(
        DataError, match=r"column 'at' \(timestamp\[us\]\) has a value that Python cannot hold.*drop\(\)"
    ):
        check_operator(Map(lambda row: {"n": row["at"].year}, INT), [far])
    with pytest.raises(UserCodeError, match=r"its first: \{'at': 4611686018427387904 \(timestamp\[us\]\)\}"):
        check_operator(MapBatches(lambda batch: batch["nope"], INT), [far.slice(1)])


def test_errors_of_our_own_kind_go_through_as_they_are() -> None:
    def refuse(row: dict[str, Any]) -> dict[str, Any]:
        raise DataError("this shop is closed")

    for spec in (Map(refuse, INT), FlatMap(refuse, INT)):
        with pytest.raises(DataError, match=r"^this shop is closed$"):
            check_operator(spec, [BATCH])


def test_a_failing_function_is_named_with_its_job_operator_and_row() -> None:
    job = ms.Job("prices")
    job.read(ms.memory_source([BATCH])).map(failing, schema=INT, name="halve").write(ms.memory_sink())
    with pytest.raises(ms.JobFailed) as failed:
        job.run(restarts=0)
    assert "job 'prices' failed: " in str(failed.value)
    assert "failing (" in str(failed.value)
    assert "the row is {'n': 2, 's': 'xx'}" in str(failed.value)
    cause = failed.value.__cause__
    assert isinstance(cause, MillstreamError)
    assert cause.__notes__ == ["in map 'halve', subtask 0"]
    assert isinstance(cause.__cause__, ZeroDivisionError)


# -- names -----------------------------------------------------------------------------------------------------


class Callee:
    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"n": 1}


def test_names_and_identities() -> None:
    assert function_name(json.loads) == "json.loads"
    assert function_name(functools.partial(functools.partial(json.loads), strict=True)) == "json.loads"
    assert function_name(Callee()).endswith("test_python_operators.Callee")
    assert function_name(dict) == "builtins.dict"
    same = [Map(double, {"twice": int, "s": str}), Map(double, {"twice": "int64", "s": "string"})]
    assert same[0] == same[1]
    assert hash(same[0]) == hash(same[1])
    others = [Map(double, {"twice": float, "s": str}), Map(failing, {"twice": int, "s": str}), FlatMap(double, INT)]
    assert len({spec.identity() for spec in [*same, *others]}) == 4
    assert schema_of({"a": float, "b": "float"}).types == [pa.float64(), pa.float64()]
    assert check_operator(Map(Callee(), INT), [BATCH.slice(0, 1)]) == {MAIN: [{"n": 1}]}
