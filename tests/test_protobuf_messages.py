"""Protobuf to Arrow and back: types, extremes, evolution, messages that do not fit."""

from __future__ import annotations

import base64
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.connectors.protobuf_format import own_message, packed, path_and_rest
from millstream.connectors.protobuf_messages import ProtobufMessages, ProtobufValues, columns_of
from millstream.connectors.protobuf_schemas import file_of, message_of, path_to, proto_of
from millstream.connectors.schema_registry import Registered
from millstream.engine.errors import DataError, SchemaError

I64 = st.integers(-(2**63), 2**63 - 1)
NESTED = pa.struct({"a": pa.int64(), "tags": pa.list_(pa.string()), "at": pa.timestamp("us", "UTC")})
COLUMNS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.bool_(): st.booleans(),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): I64,
    pa.uint32(): st.integers(0, 2**32 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): st.text(),
    pa.binary(): st.binary(),
    pa.timestamp("us", "UTC"): I64,
    pa.duration("us"): I64,
    NESTED: st.fixed_dictionaries({"a": st.none() | I64, "tags": st.lists(st.text()), "at": st.none() | I64}),
}
MANY: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.list_(pa.int64()): st.lists(I64),
    pa.list_(NESTED): st.lists(COLUMNS[NESTED]),
    pa.list_(pa.timestamp("us", "UTC")): st.lists(I64),
    pa.map_(pa.string(), pa.float64()): st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=1),
}
SCHEMA = pa.schema([(f"c{i}", type_) for i, type_ in enumerate([*COLUMNS, *MANY])])
DERIVED = message_of(file_of(own_message(SCHEMA, "orders-value", None)), [0])


def compiled(text: str) -> Any:
    return file_of(Registered(1, "PROTOBUF", 'syntax = "proto3";\n' + text))


def columns() -> st.SearchStrategy[list[list[Any]]]:
    def of_size(size: int) -> st.SearchStrategy[list[list[Any]]]:
        single = [st.lists(st.none() | values, min_size=size, max_size=size) for values in COLUMNS.values()]
        many = [st.lists(values, min_size=size, max_size=size) for values in MANY.values()]
        return st.tuples(*single, *many).map(list)

    return st.integers(1, 4).flatmap(of_size)


@settings(max_examples=60)
@given(columns())
def test_rows_come_back_as_they_were(drawn: list[list[Any]]) -> None:
    table = pa.table([pa.array(c, t) for c, t in zip(drawn, SCHEMA.types, strict=True)], schema=SCHEMA)

    values = ProtobufValues(DERIVED, SCHEMA).encode(table).to_pylist()

    batch, bad = ProtobufMessages(SCHEMA, DERIVED).decode(values)
    assert bad == {}
    assert pa.table(batch).equals(table)
    assert ProtobufValues(DERIVED, SCHEMA).encode(table).to_pylist() == values


def test_a_message_made_of_columns_has_these_columns() -> None:
    assert columns_of(DERIVED) == SCHEMA


def test_what_others_write_has_these_types_and_absence_is_null_where_it_is_no_value() -> None:
    file = compiled(
        """
        import "google/protobuf/wrappers.proto";
        import "google/protobuf/duration.proto";
        enum Kind { UNKNOWN = 0; SALE = 1; }
        message Order {
          int64 id = 1;
          optional int32 count = 2;
          Kind kind = 3;
          oneof who { string name = 4; fixed64 number = 5; }
          google.protobuf.StringValue note = 6;
          google.protobuf.Duration took = 7;
          map<int32, Kind> kinds = 8;
        }
        """
    )
    order = message_of(file, [0])
    from google.protobuf.message_factory import GetMessageClass

    cls = GetMessageClass(order)
    full = cls(id=1, count=2, kind=1, name="x", note={"value": "n"}, took={"seconds": -1, "nanos": -500_000_000})
    full.kinds[7] = 1
    strange = cls(kind=9)
    batch, bad = ProtobufMessages(columns_of(order), order).decode(
        [full.SerializeToString(), b"", strange.SerializeToString()]
    )
    assert bad == {}
    assert batch.drop_columns(["took", "kinds"]).to_pylist() == [
        {"id": 1, "count": 2, "kind": "SALE", "name": "x", "number": None, "note": "n"},
        {"id": 0, "count": None, "kind": "UNKNOWN", "name": None, "number": None, "note": None},
        {"id": 0, "count": None, "kind": "9", "name": None, "number": None, "note": None},
    ]
    assert batch["took"].cast(pa.int64()).to_pylist() == [-1_500_000, None, None]
    assert batch["kinds"].to_pylist() == [[(7, "SALE")], [], []]
    encoded = ProtobufValues(order, batch.schema).encode(pa.table(batch)).to_pylist()
    assert [cls.FromString(value) for value in encoded] == [full, cls(), strange]


def test_fields_are_known_by_their_numbers_and_unknown_ones_passed_over() -> None:
    old = message_of(compiled("message O { int64 n = 1; string gone = 2; }"), [0])
    new = message_of(compiled("message O { int64 renamed = 1; optional string more = 3; }"), [0])
    rows = pa.table({"n": [5], "gone": ["x"]})
    (value,) = ProtobufValues(old, rows.schema).encode(rows).to_pylist()
    batch, _ = ProtobufMessages(columns_of(new), new).decode([value])
    assert batch.to_pylist() == [{"renamed": 5, "more": None}]


def test_a_message_that_contains_itself_makes_no_column_and_may_be_left_out() -> None:
    tree = message_of(compiled("message T { int64 n = 1; T next = 2; }"), [0])
    with pytest.raises(SchemaError, match=r"field 'next' of T: T contains itself"):
        columns_of(tree)
    batch, bad = ProtobufMessages(pa.schema({"n": pa.int32()}), tree).decode([b"\x08\x05\x12\x00"])
    assert (batch.to_pylist(), bad) == ([{"n": 5}], {})


@given(st.lists(st.binary(max_size=30), max_size=8), st.integers(0, 8))
def test_garbage_harms_no_other_message(garbage: list[bytes], place: int) -> None:
    order = message_of(compiled("message O { int64 n = 1; string s = 2; repeated O more = 3; }"), [0])
    values = [*garbage[:place], b"\x08\x2a\x12\x04good", *garbage[place:]]
    batch, bad = ProtobufMessages(pa.schema({"n": pa.int64(), "s": pa.string()}), order).decode(values)
    assert min(place, len(garbage)) not in bad
    assert batch.num_rows == len(values) - len(bad)
    assert {"n": 42, "s": "good"} in batch.to_pylist()


def test_nulls_that_would_become_values_and_numbers_too_large_fail() -> None:
    order = message_of(
        compiled("message O { int32 n = 1; I i = 2; repeated int32 l = 3; } message I { int32 m = 1; }"), [0]
    )
    for column, problem in {
        "n": (pa.array([None], pa.int32()), "column 'n' has nulls"),
        "i": (pa.array([{"m": None}], pa.struct({"m": pa.int32()})), r"I\.m is null"),
        "l": (pa.array([[None]], pa.list_(pa.int32())), "a row does not fit the Protobuf schema"),
    }.items():
        rows = pa.table({column: problem[0]})
        with pytest.raises(DataError, match=problem[1]):
            ProtobufValues(order, rows.schema).encode(rows)
    rows = pa.table({"n": [2**31]})
    with pytest.raises(DataError, match="column 'n' does not fit"):
        ProtobufValues(order, rows.schema).encode(rows)


@pytest.mark.parametrize(
    "type_", [pa.date32(), pa.decimal128(9, 2), pa.timestamp("ns"), pa.list_(pa.list_(pa.int64()))]
)
def test_columns_without_a_form_are_named(type_: pa.DataType) -> None:
    with pytest.raises(SchemaError, match="column 'x': Protobuf has no type for"):
        proto_of(pa.schema({"x": type_}), "m")


# -- schemas and places ----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 300), min_size=1, max_size=4))
def test_the_place_of_a_message_comes_back(path: list[int]) -> None:
    assert path_and_rest(packed(path) + b"rest") == (tuple(path), b"rest")


@given(st.binary(max_size=12))
def test_any_bytes_are_a_place_or_refused(value: bytes) -> None:
    try:
        path, rest = path_and_rest(value)
    except ValueError:
        return
    assert value.endswith(rest)
    assert path


def test_nested_messages_are_found_by_their_place() -> None:
    file = compiled("message A {} message B { message C {} message D { int32 n = 1; } }")
    found = message_of(file, [1, 1])
    assert (found.full_name, path_to(found)) == ("B.D", [1, 1])
    with pytest.raises(SchemaError, match=r"no message at \[2\]"):
        message_of(file, [2])


def test_references_are_compiled_and_serialized_schemas_linked() -> None:
    shop = 'syntax = "proto3"; package a; message Shop { string city = 1; }'
    main = 'syntax = "proto3"; import "a/shop.proto"; message O { a.Shop shop = 1; }'
    found = file_of(Registered(2, "PROTOBUF", main, {"a/shop.proto": Registered(1, "PROTOBUF", shop)}))
    expected = pa.schema({"shop": pa.struct({"city": pa.string()})})
    assert columns_of(message_of(found, [0])) == expected
    serialized = {file.name: base64.b64encode(file.serialized_pb).decode() for file in [found, *found.dependencies]}
    reference = {"a/shop.proto": Registered(1, "PROTOBUF", serialized["a/shop.proto"])}
    again = file_of(Registered(2, "PROTOBUF", serialized[found.name], reference))
    assert columns_of(message_of(again, [0])) == expected
    for wrong in ("message", 'syntax = "proto3"; import "../x.proto"; message O {}'):
        with pytest.raises(SchemaError, match="no Protobuf schema"):
            file_of(Registered(1, "PROTOBUF", wrong))
    with pytest.raises(SchemaError, match="no name for a file"):
        file_of(Registered(1, "PROTOBUF", main, {"../../shop.proto": Registered(1, "PROTOBUF", shop)}))
