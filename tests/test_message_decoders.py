"""Values of messages, many at a time: the good ones come out as they would by themselves, the bad ones are named."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.connectors.csv_decoder import CsvDialect
from millstream.connectors.message_decoders import (
    CsvMessages,
    JsonMessages,
    MessageDecoder,
    RawMessages,
    decode_scalars,
)

SCHEMA = pa.schema({"item": pa.string(), "n": pa.int8(), "at": pa.timestamp("us")})
GOOD = {"item": "tea", "n": 7, "at": "2026-01-01T10:00:00Z"}
JSON = [
    json.dumps(GOOD).encode(),
    json.dumps(GOOD, indent=2).encode(),  # an object over several lines is one object
    b"{}",
    b'{"item": "x", "other": [1, {"deep": null}]}',
    b'{"n": 300}',
    b'{"n": 1.0}',
    b'{"n": "1"}',
    b'{"n": 170141183460469231731687303715884105727}',
    b'{"at": "yesterday"}',
    b'{"item": "tea"',
    b'{"item": "tea"} {"item": "cup"}',
    b'{"item": "\xff"}',
    b"[1]",
    b"null",
    b"",
    b" ",
    b"[" * 5000,
]
CSV = [
    b"tea,1,2026-01-01",
    b"tea,1,2026-01-01\r\n",
    b'"a\nb",2,',
    b'"a""b",2,',
    b",,",
    b'no "quote,1,',
    b"tea,300,",
    b"tea,x,",
    b"tea",
    b"tea,1,,",
    b"",
    b"\n",
    b"a,1,\nb,2,",
    b'"open,1,',
    b"a,1,\rb,2,",
    b"\xff,1,",
    b"tea,1,noon",
]


def one_by_one(decoder: MessageDecoder, values: Sequence[bytes]) -> tuple[list[object], list[int]]:
    rows: list[object] = []
    bad = []
    for place, value in enumerate(values):
        batch, problems = decoder.decode([value])
        rows += batch.to_pylist()
        if problems:
            bad.append(place)
        assert len(problems) + batch.num_rows == 1, f"{value!r} is neither one row nor bad"
    return rows, bad


DECODERS = {
    "json": (JsonMessages(SCHEMA), JSON, 4),
    "csv": (CsvMessages(SCHEMA, SCHEMA.names, CsvDialect(header=False)), CSV, 6),
    "string": (RawMessages(pa.string()), [b"tea", b"", b"\xff", "é".encode()], 3),
    "raw": (RawMessages(pa.binary()), [b"tea", b"", b"\xff"], 3),
}


@pytest.mark.parametrize("name", DECODERS)
@settings(deadline=None)
@given(data=st.data())
def test_messages_do_not_affect_each_other(name: str, data: st.DataObject) -> None:
    decoder, samples, good = DECODERS[name]
    values = data.draw(st.lists(st.sampled_from(samples) | st.sampled_from(samples[:good]), max_size=12))
    batch, bad = decoder.decode(values)
    assert (batch.to_pylist(), sorted(bad)) == one_by_one(decoder, values)


def test_what_is_good_and_what_is_bad() -> None:
    assert one_by_one(DECODERS["json"][0], JSON)[1] == list(range(4, len(JSON)))
    assert one_by_one(DECODERS["csv"][0], CSV)[1] == list(range(6, len(CSV)))


def test_csv_columns_that_are_not_asked_for_are_still_counted() -> None:
    decoder = CsvMessages(pa.schema({"n": pa.int8()}), SCHEMA.names, CsvDialect(delimiter=";", header=False))
    batch, bad = decoder.decode([b"tea;1;", b"tea;2", b"x;3;noon"])
    assert batch.to_pylist() == [{"n": 1}, {"n": 3}]
    assert list(bad) == [1]


@given(st.lists(st.none() | st.integers(-(2**31), 2**31 - 1)))
def test_integers_as_kafka_serializers_write_them(numbers: list[int | None]) -> None:
    column, bad = decode_scalars([None if n is None else struct.pack(">i", n) for n in numbers], pa.int32())
    assert column.to_pylist() == numbers
    assert not bad


def test_keys_that_do_not_fit_are_named() -> None:
    column, bad = decode_scalars([b"a", None, b"\xff", b"b"], pa.string())
    assert column.to_pylist() == ["a", None, "b"]
    assert list(bad) == [2]
