"""Avro to Arrow and back: types, extremes, evolution, messages that do not fit. fastavro itself is the reference."""

from __future__ import annotations

import datetime as dt
import io
from decimal import Decimal
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from millstream.connectors.avro_messages import AvroMessages, AvroValues
from millstream.connectors.avro_types import arrow_schema, as_record, avro_of, expanded
from millstream.connectors.registered_messages import RegisteredMessages, header
from millstream.connectors.schema_registry import UnknownSchema
from millstream.engine.errors import DataError, ExternalError, SchemaError

COLUMNS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.bool_(): st.booleans(),
    pa.int8(): st.integers(-(2**7), 2**7 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint32(): st.integers(0, 2**32 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): st.text(),
    pa.binary(): st.binary(),
    pa.decimal128(38, 5): st.decimals(-(10**32), 10**32, places=5),
    pa.date32(): st.dates(),
    pa.time32("ms"): st.integers(0, 86_399_999),
    pa.time64("us"): st.integers(0, 86_399_999_999),
    pa.timestamp("ms"): st.integers(-(2**63), 2**63 - 1),
    pa.timestamp("us"): st.integers(-(2**63), 2**63 - 1),
    pa.timestamp("ns"): st.integers(-(2**63), 2**63 - 1),
    pa.timestamp("us", "UTC"): st.integers(-(2**63), 2**63 - 1),
    pa.list_(pa.timestamp("ms")): st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)),
    pa.map_(pa.string(), pa.int32()): st.dictionaries(st.text(), st.none() | st.integers(0, 9)),
    pa.struct({"a": pa.date32(), "b": pa.list_(pa.string())}): st.fixed_dictionaries(
        {"a": st.none() | st.dates(), "b": st.none() | st.lists(st.none() | st.text())}
    ),
}


def written(schema: Any, *values: Any) -> list[bytes]:
    parsed, out = fastavro.parse_schema(schema), []
    for value in values:
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, parsed, value)
        out.append(stream.getvalue())
    return out


def record(**fields: Any) -> Any:
    return {"type": "record", "name": "R", "fields": [{"name": n, "type": t} for n, t in fields.items()]}


@given(st.data())
def test_rows_come_back_as_they_were(data: st.DataObject) -> None:
    types = data.draw(st.lists(st.sampled_from(list(COLUMNS)), min_size=1, max_size=4))
    schema = pa.schema([(f"c{i}", type_) for i, type_ in enumerate(types)])
    size = data.draw(st.integers(1, 5))
    columns = [data.draw(st.lists(st.none() | COLUMNS[type_], min_size=size, max_size=size)) for type_ in types]
    table = pa.table([pa.array(column, type_) for column, type_ in zip(columns, types, strict=True)], schema=schema)
    avro = avro_of(schema, "orders-value")

    values = AvroValues(avro, schema).encode(table).to_pylist()

    batch, bad = AvroMessages(schema, avro).decode(values)
    assert bad == {}
    assert pa.table(batch).equals(table)
    again = AvroValues(avro, schema).encode(table).to_pylist()
    assert values == again


@pytest.mark.parametrize(
    ("type_", "value", "expected"),
    [
        (["null", "string"], None, (pa.string(), None)),
        (["string", "null"], "x", (pa.string(), "x")),
        ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, "B", (pa.string(), "B")),
        ({"type": "fixed", "name": "F", "size": 2}, b"ab", (pa.binary(), b"ab")),
        ({"type": "string", "logicalType": "uuid"}, "0" * 8, (pa.string(), "0" * 8)),
        ({"type": "array", "items": "long"}, [1], (pa.list_(pa.int64()), [1])),
        ({"type": "map", "values": "double"}, {"a": 1.0}, (pa.map_(pa.string(), pa.float64()), [("a", 1.0)])),
        (
            {"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 2},
            Decimal("-1.25"),
            (pa.decimal128(5, 2), Decimal("-1.25")),
        ),
        (
            {"type": "fixed", "name": "F", "size": 8, "logicalType": "decimal", "precision": 5, "scale": 2},
            Decimal("-1.25"),
            (pa.decimal128(5, 2), Decimal("-1.25")),
        ),
        (
            {"type": "long", "logicalType": "timestamp-millis"},
            dt.datetime(1969, 12, 31, tzinfo=dt.UTC),
            (pa.timestamp("ms", "UTC"), dt.datetime(1969, 12, 31, tzinfo=dt.UTC)),
        ),
        (
            {"type": "long", "logicalType": "local-timestamp-micros"},
            dt.datetime(2026, 1, 1, 0, 0, 0, 1),
            (pa.timestamp("us"), dt.datetime(2026, 1, 1, 0, 0, 0, 1)),
        ),
        ({"type": "int", "logicalType": "date"}, dt.date(1960, 1, 1), (pa.date32(), dt.date(1960, 1, 1))),
        ({"type": "int", "logicalType": "time-millis"}, dt.time(1), (pa.time32("ms"), dt.time(1))),
        ({"type": "int", "logicalType": "no-such"}, 5, (pa.int32(), 5)),
    ],
)
def test_what_others_write_has_these_types(type_: Any, value: Any, expected: tuple[pa.DataType, Any]) -> None:
    schema = record(x=type_)
    columns = arrow_schema(expanded(schema))

    batch, bad = AvroMessages(columns, schema).decode(written(schema, {"x": value}))

    assert (columns.field("x").type, batch["x"][0].as_py(), bad) == (*expected, {})


def test_named_types_are_found_where_they_are_referred_to_also_beside_columns_that_are_left_out() -> None:
    point = {"type": "record", "name": "P", "fields": [{"name": "x", "type": "int"}]}
    schema = record(a=point, b="P", c={"type": "array", "items": "P"})
    columns = arrow_schema(expanded(schema))
    values = written(schema, {"a": {"x": 1}, "b": {"x": 2}, "c": [{"x": 3}]})

    batch, _ = AvroMessages(pa.schema([columns.field("c"), columns.field("b")]), schema).decode(values)

    assert batch.to_pylist() == [{"c": [{"x": 3}], "b": {"x": 2}}]


def test_a_schema_that_is_no_record_is_a_column() -> None:
    columns = arrow_schema(expanded(as_record("long")))
    batch, bad = AvroMessages(columns, "long").decode(written("long", 7))
    assert (batch.to_pylist(), bad) == ([{"value": 7}], {})


def test_what_has_no_column_type_is_named_and_may_be_left_out() -> None:
    tree = {"type": "record", "name": "T", "fields": [{"name": "next", "type": ["null", "T"]}]}
    schema = record(n="int", either=["int", "string"], tree=tree)
    with pytest.raises(SchemaError, match="field 'either' of the Avro schema: a union of 2 types"):
        arrow_schema(expanded(schema))
    with pytest.raises(SchemaError, match=r"field 'tree' .* contains itself"):
        arrow_schema(expanded(record(tree=tree)))
    values = written(schema, {"n": 1, "either": "x", "tree": {"next": {"next": None}}})
    batch, _ = AvroMessages(pa.schema({"n": pa.int64()}), schema).decode(values)
    assert batch.to_pylist() == [{"n": 1}]


# -- evolution -------------------------------------------------------------------------------------------------------


def test_a_declared_schema_takes_fields_by_name_widens_them_and_has_null_for_what_a_writer_lacks() -> None:
    columns = pa.schema({"n": pa.int64(), "at": pa.timestamp("us"), "new": pa.string()})
    schema = record(at={"type": "long", "logicalType": "timestamp-millis"}, gone="string", n="int")
    at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    batch, _ = AvroMessages(columns, schema).decode(written(schema, {"at": at, "gone": "x", "n": 1}))
    assert batch.to_pylist() == [{"n": 1, "at": at.replace(tzinfo=None), "new": None}]


def test_a_readers_schema_resolves_as_avro_has_it_and_keeps_the_writers_unit() -> None:
    old = record(id="int", at={"type": "long", "logicalType": "timestamp-millis"})
    new = record(n="long", at={"type": "long", "logicalType": "timestamp-micros"})
    new["fields"][0]["aliases"] = ["id"]
    new["fields"].append({"name": "shop", "type": "string", "default": "unknown"})
    columns = arrow_schema(expanded(new))
    at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    batch, bad = AvroMessages(columns, old, new).decode(written(old, {"id": 1, "at": at}))
    assert (batch.to_pylist(), bad) == ([{"n": 1, "at": at, "shop": "unknown"}], {})


def test_types_that_no_cast_leads_to_are_refused_before_any_message() -> None:
    with pytest.raises(SchemaError, match=r"column 'x' is declared .*, and written as"):
        AvroMessages(pa.schema({"x": pa.date32()}), record(x="boolean"))


# -- messages that do not fit ----------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=30), max_size=8), st.integers(0, 8))
def test_garbage_harms_no_other_message(garbage: list[bytes], place: int) -> None:
    schema = record(n="int", s=["null", "string"], e={"type": "enum", "name": "E", "symbols": ["A"]})
    (good,) = written(schema, {"n": 42, "s": "good", "e": "A"})
    values = [*garbage[:place], good, *garbage[place:]]
    batch, bad = AvroMessages(arrow_schema(expanded(schema)), schema).decode(values)
    assert min(place, len(garbage)) not in bad
    assert batch.num_rows == len(values) - len(bad)
    assert {"n": 42, "s": "good", "e": "A"} in batch.to_pylist()


def test_values_that_a_column_cannot_hold_are_bad_by_themselves() -> None:
    values = written(record(n="long"), {"n": 1}, {"n": 2**40}, {"n": 3})
    batch, bad = AvroMessages(pa.schema({"n": pa.int32()}), record(n="long")).decode(values)
    assert batch.to_pylist() == [{"n": 1}, {"n": 3}]
    assert list(bad) == [1]


def test_rows_that_a_schema_cannot_hold_fail_with_the_column_or_the_row() -> None:
    columns = pa.schema({"n": pa.int64()})
    values = AvroValues(record(n="int"), columns)
    with pytest.raises(DataError, match="column 'n' does not fit the Avro schema, where it is int32"):
        values.encode(pa.table({"n": [2**31]}))
    with pytest.raises(DataError, match=r"a row does not fit .* \{'n': None\}"):
        values.encode(pa.table({"n": pa.array([None], pa.int64())}))
    with pytest.raises(SchemaError, match="no field 'm'"):
        AvroValues(record(n="int"), pa.schema({"n": pa.int64(), "m": pa.int64()}))
    with pytest.raises(SchemaError, match="no column 'n'"):
        AvroValues(record(n="int", m="int"), pa.schema({"m": pa.int64()}))


# -- ids ------------------------------------------------------------------------------------------------------------


def test_each_message_is_decoded_as_its_id_says_and_each_id_is_asked_for_once() -> None:
    schemas = {1: record(n="int"), 2: record(m="string", n="long"), 3: record(n="boolean")}
    asked: list[int] = []

    def make(id_: int) -> AvroMessages:
        asked.append(id_)
        if id_ not in schemas:
            raise UnknownSchema("no such")
        return AvroMessages(pa.schema({"n": pa.date32()}) if id_ == 3 else columns, schemas[id_])

    columns = pa.schema({"n": pa.int64()})
    decoder = RegisteredMessages(columns, make)
    one, two = written(schemas[1], {"n": 1}, {"n": 2})
    (three,) = written(schemas[2], {"m": "x", "n": 3})
    values = [header(2) + three, header(1) + one, b"\x01" + header(1)[1:] + one, header(3) + b"\x01", header(7), b""]
    values += [header(2) + three, header(1) + two, header(1)]

    batch, bad = decoder.decode(values)

    assert batch["n"].to_pylist() == [3, 1, 3, 2]
    assert sorted(bad) == [2, 3, 4, 5, 8]
    assert bad[4] == "the registry knows no schema 7: no such"
    assert bad[2].startswith("expected a message that begins with a zero byte")
    decoder.decode(values)
    assert sorted(asked) == [1, 2, 3, 7, 7]  # what is unknown may come to be known


def test_a_registry_that_is_away_makes_no_message_bad() -> None:
    def make(id_: int) -> AvroMessages:
        raise ExternalError("away")

    with pytest.raises(ExternalError):
        RegisteredMessages(pa.schema({"n": pa.int64()}), make).decode([header(1)])
