"""Avro messages that say they have more than they can: none hangs, none ends the process, none harms its neighbours."""

from __future__ import annotations

import io
from decimal import Decimal
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from millstream.connectors.avro_bounds import DEEPEST, FREE_ITEMS, AvroBounds
from millstream.connectors.avro_messages import AvroMessages
from millstream.connectors.avro_types import arrow_type, expanded

BILLION = b"\x80\xa8\xd6\xb9\x07"
MILLION = 1_000_000
EMPTY = {"type": "record", "name": "E", "fields": [{"name": "no", "type": "null"}]}
NEXT = {
    "type": "record",
    "name": "T",
    "fields": [{"name": "n", "type": "int"}, {"name": "next", "type": ["null", "T"]}],
}
TREE = {"type": "record", "name": "T", "fields": [{"name": "kids", "type": {"type": "array", "items": "T"}}]}
ITSELF = {"type": "record", "name": "T", "fields": [{"name": "same", "type": "T"}]}
MAPS = {
    "type": "map",
    "values": ["null", {"type": "record", "name": "M", "fields": [{"name": "m", "type": ["M", "null"]}]}],
}
FIXED = {"type": "fixed", "name": "F", "size": 0}


def listed(items: Any) -> Any:
    return {"type": "array", "items": items}


def record(type_: Any) -> Any:
    return {"type": "record", "name": "R", "fields": [{"name": "n", "type": "int"}, {"name": "x", "type": type_}]}


def written(schema: Any, value: Any) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), value)
    return stream.getvalue()


def bounds(schema: Any) -> AvroBounds:
    names: dict[str, Any] = {}
    return AvroBounds(fastavro.parse_schema(schema, named_schemas=names), names)


BOMBS = {
    "nulls": (listed("null"), BILLION + b"\0", "lists of 1000000000 items"),
    "nulls in blocks with sizes": (listed("null"), b"\xff\xa7\xd6\xb9\x07\0\0", "lists of 1000000000 items"),
    "empty records": (listed(EMPTY), BILLION + b"\0", "lists of 1000000000 items"),
    "fixed of no size": (listed(FIXED), BILLION + b"\0", "lists of 1000000000 items"),
    "many lists of nulls": (listed(listed("null")), b"\xd0\x0f" + b"\xd0\x0f\0" * 1000, "lists of"),
    "blocks of nulls": (listed("null"), b"\xd0\x0f" * 1000 + b"\0", "lists of"),
    "deep records": (NEXT, b"\x02\x02" * MILLION + b"\x02\0", "nested deeper"),
    "deep lists": (TREE, b"\x02" * MILLION + b"\0" * MILLION, "nested deeper"),
    "a record of itself": (ITSELF, b"", "nested deeper"),
    "numbers": (listed("int"), BILLION + b"\0", "Error"),
    "maps": ({"type": "map", "values": "null"}, BILLION + b"\0" * 1000, "Error"),
    "a long text": ("string", BILLION + b"abc", "Error"),
    "a long number": ("long", b"\x80" * MILLION, "Error"),
    "a long decimal": (
        {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
        b"\x80\x89\x7a" + b"\x7f" * MILLION,
        "a decimal has 1000000 bytes",
    ),
}


# What contains itself has no column; where a message ends with what is passed over, its length does not matter.
PASSED_OVER = BOMBS.keys() - {"a long text", "a long number", "a long decimal"}
DECODED = {bomb for bomb, (type_, _, _) in BOMBS.items() if type_ not in (NEXT, TREE, ITSELF)}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("column", "bomb"), [*(("n", bomb) for bomb in sorted(PASSED_OVER)), *(("x", bomb) for bomb in sorted(DECODED))]
)
def test_a_bomb_is_bad_by_itself_whether_it_is_decoded_or_passed_over(column: str, bomb: str) -> None:
    type_, data, expected = BOMBS[bomb]
    wanted = pa.schema({"n": pa.int32()} if column == "n" else {"x": arrow_type(expanded(type_))})
    decoder = AvroMessages(wanted, record(type_))
    batch, bad = decoder.decode([b"\x02" + data, b"\x02" + data])
    assert (batch.num_rows, sorted(bad)) == (0, [0, 1])
    assert expected in bad[0]


def test_lists_of_nothing_and_nested_values_of_a_usual_size_are_read() -> None:
    schema = record(listed("null"))
    batch, bad = AvroMessages(pa.schema({"x": pa.list_(pa.null())}), schema).decode(
        [written(schema, {"n": 1, "x": [None] * n}) for n in (0, 3, FREE_ITEMS, FREE_ITEMS + 50)]
    )
    assert [len(row["x"]) for row in batch.to_pylist()] == [0, 3, FREE_ITEMS]
    assert list(bad) == [3]
    chain: Any = None
    for n in range(DEEPEST // 2 - 2):
        chain = {"n": n, "next": chain}
    batch, bad = AvroMessages(pa.schema({"n": pa.int32()}), record(NEXT)).decode(
        [written(record(NEXT), {"n": 7, "x": chain})]
    )
    assert (batch.to_pylist(), bad) == ([{"n": 7}], {})


def test_only_schemas_that_allow_it_are_walked_over() -> None:
    assert not bounds(record(listed(["null", EMPTY]))).needed
    assert not bounds(record({"type": "map", "values": "null"})).needed
    twice = {"type": "record", "name": "D", "fields": [{"name": "a", "type": FIXED}, {"name": "b", "type": "F"}]}
    assert not bounds(record(twice)).needed
    assert bounds(record(listed(twice))).needed
    for schema in (NEXT, TREE, ITSELF, MAPS, listed(FIXED), record({"type": "map", "values": listed(EMPTY)})):
        assert bounds(schema).needed


ANY = {
    "type": "record",
    "name": "A",
    "fields": [
        {"name": "number", "type": ["null", "double", "long"]},
        {"name": "texts", "type": {"type": "map", "values": "bytes"}},
        {"name": "kind", "type": {"type": "enum", "name": "K", "symbols": ["X", "Y"]}},
        {"name": "two", "type": {"type": "fixed", "name": "Two", "size": 2}},
        {"name": "none", "type": listed("null")},
        {"name": "more", "type": listed("A")},
        {"name": "flags", "type": listed("boolean")},
        {"name": "small", "type": "float"},
    ],
}
VALUES = st.recursive(
    st.just([]),
    lambda more: st.lists(
        st.fixed_dictionaries(
            {
                "number": st.none() | st.floats(allow_nan=False) | st.integers(-(2**63), 2**63 - 1),
                "texts": st.dictionaries(st.text(), st.binary(), max_size=2),
                "kind": st.sampled_from(["X", "Y"]),
                "two": st.binary(min_size=2, max_size=2),
                "none": st.lists(st.none(), max_size=3),
                "more": more,
                "flags": st.lists(st.booleans(), max_size=3),
                "small": st.floats(width=32, allow_nan=False),
            }
        ),
        max_size=2,
    ),
    max_leaves=6,
)


@given(VALUES, st.data())
def test_what_fastavro_writes_passes_and_what_is_cut_off_does_not(values: list[Any], data: st.DataObject) -> None:
    checked = bounds(ANY)
    for value in values:
        whole = written(ANY, value)
        checked.check(whole)
        with pytest.raises(ValueError, match=r"should follow|does not end"):
            checked.check(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(st.binary(max_size=40))
def test_garbage_is_refused_or_decoded_whatever_the_schema(garbage: bytes) -> None:
    for type_ in (NEXT, TREE, MAPS, ANY, listed(listed(EMPTY))):
        batch, bad = AvroMessages(pa.schema({"n": pa.int32()}), record(type_)).decode([b"\x02" + garbage])
        assert batch.num_rows + len(bad) == 1


def test_decimals_keep_all_their_digits_also_beside_other_threads_contexts() -> None:
    schema = record({"type": "bytes", "logicalType": "decimal", "precision": 76, "scale": 30})
    value = Decimal(f"{'9' * 46}.{'8' * 30}")
    batch, _ = AvroMessages(pa.schema({"x": pa.decimal256(76, 30)}), schema).decode(
        [written(schema, {"n": 1, "x": value})]
    )
    assert batch["x"][0].as_py() == value


def test_many_megabytes_are_decoded_in_shares_and_keep_their_order() -> None:
    schema = record("string")
    values = [written(schema, {"n": n, "x": "x" * 1_500_000}) for n in range(7)]
    batch, bad = AvroMessages(pa.schema({"n": pa.int32()}), schema).decode([*values[:4], b"\x01", *values[4:]])
    assert (batch["n"].to_pylist(), list(bad)) == (list(range(7)), [4])
