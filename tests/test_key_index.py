from __future__ import annotations

import datetime as dt
import math
import subprocess
import sys
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.errors import SchemaError
from millstream.engine.hashing import exchange_hash, partition
from millstream.engine.key_index import KeyIndex
from operator_kit import canonical

DAY = dt.datetime(1969, 12, 31, 23)
TYPES: dict[pa.DataType, list[Any]] = {
    pa.int8(): [-128, 0, 127],
    pa.int64(): [-(2**63), -1, 0, 1, 2**63 - 1],
    pa.uint8(): [0, 255],
    pa.uint64(): [0, 2**63, 2**64 - 1],
    pa.bool_(): [True, False],
    pa.float32(): [0.0, 0.5, math.nan, -math.inf],
    pa.float64(): [0.0, -1e-300, math.nan, math.inf],
    pa.float16(): [0.0, 1.5, math.nan],
    pa.timestamp("us"): [DAY, dt.datetime(2026, 1, 1)],
    pa.timestamp("ms", "Europe/Zurich"): [dt.datetime(2026, 1, 1, tzinfo=dt.UTC)],
    pa.date32(): [dt.date(1, 1, 1), dt.date(2026, 2, 3)],
    pa.date64(): [dt.date(1969, 1, 1), dt.date(2026, 2, 3)],
    pa.time32("s"): [dt.time(0), dt.time(23, 59, 59)],
    pa.time64("us"): [dt.time(0, 0, 0, 1)],
    pa.duration("us"): [dt.timedelta(0), dt.timedelta(-5)],
    pa.string(): ["", "a", "a\0", "ä", "long" * 30],
    pa.large_string(): ["", "b"],
    pa.string_view(): ["", "c", "more than twelve bytes"],
    pa.binary(): [b"", b"\0", b"\0\0"],
    pa.binary(3): [b"abc", b"\xff\0\0"],
    pa.decimal128(10, 2): [Decimal("0.00"), Decimal("-1.25")],
    pa.decimal128(38, 0): [Decimal(10**37), Decimal(-(10**37))],
    pa.decimal256(60, 1): [Decimal("1.5"), Decimal("-1.5")],
    pa.dictionary(pa.int8(), pa.string()): ["", "d"],
}


@st.composite
def keyed_batches(draw: st.DrawFn) -> tuple[list[pa.DataType], list[list[pa.Array]]]:
    """Types of key columns and batches of them; arrays are slices now and then, as they are in life."""
    types = draw(st.lists(st.sampled_from(list(TYPES)), min_size=1, max_size=3))
    batches = []
    for _ in range(draw(st.integers(1, 5))):
        count, cut = draw(st.integers(0, 12)), draw(st.integers(0, 2))
        arrays = []
        for type in types:
            values = draw(st.lists(st.sampled_from([None, *TYPES[type]]), min_size=count, max_size=count))
            arrays.append(array_of(values, type).slice(cut))
        batches.append(arrays)
    return types, batches


def array_of(values: list[Any], type: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(type):
        return pa.array(values, type.value_type).dictionary_encode().cast(type)
    if pa.types.is_float16(type):
        return pa.array([None if v is None else np.float16(v) for v in values], type)
    return pa.array(values, type)


def rows_of(arrays: list[pa.Array]) -> list[tuple[Any, ...]]:
    return list(zip(*([canonical(v) for v in array.to_pylist()] for array in arrays), strict=True))


@settings(max_examples=300, deadline=None)
@given(keyed_batches(), st.data())
def test_an_index_is_a_dict_of_rows(keyed: tuple[list[pa.DataType], list[list[pa.Array]]], data: st.DataObject) -> None:
    types, batches = keyed
    index, model = KeyIndex(types), {}
    for arrays in batches:
        rows = rows_of(arrays)
        expected = [model.setdefault(row, len(model)) for row in rows]
        assert index.slots(arrays).tolist() == expected
        assert len(index) == len(model)
        assert [column.type for column in index.keys()]  # noqa: SIM118 == types
        assert rows_of(index.keys()) == list(model)
        assert rows_of(index.keys(np.array(expected, np.int64))) == rows
        if data.draw(st.booleans()):
            keep = np.array([data.draw(st.booleans()) for _ in model], np.bool_)
            moved = index.compact(keep)
            assert moved.tolist() == [int(keep[:i].sum()) if kept else -1 for i, kept in enumerate(keep)]
            model = {row: i for i, row in enumerate(r for r, kept in zip(model, keep, strict=True) if kept)}
            assert rows_of(index.keys()) == list(model)


def test_zero_and_minus_zero_are_one_key_and_so_are_all_nans() -> None:
    nans = np.array([0x7FF8000000000000, 0xFFF8000000000001], np.uint64).view(np.float64)
    index = KeyIndex([pa.float64()])
    assert index.slots([pa.array(np.concatenate([[0.0, -0.0], nans]))]).tolist() == [0, 0, 1, 1]


def test_what_stands_under_a_null_does_not_matter() -> None:
    column = pa.array(np.array([1, 2, 0]), mask=np.array([True, True, False]))
    assert KeyIndex([pa.int64()]).slots([column]).tolist() == [0, 0, 1]
    assert len(set(exchange_hash([column]).tolist())) == 2
    text = pa.Array.from_buffers(
        pa.string(), 2, [pa.py_buffer(b"\0"), pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"ab")]
    )
    assert KeyIndex([pa.string()]).slots([text]).tolist() == [0, 0]
    assert len(set(exchange_hash([text]).tolist())) == 1


def test_many_keys_survive_growth_and_compaction() -> None:
    numbers = np.random.default_rng(1).permutation(200_000)
    columns = [pa.array(numbers), pa.array(np.char.add("key", numbers.astype(str)))]
    index = KeyIndex([pa.int64(), pa.string()])
    assert index.slots(columns).tolist() == list(range(len(numbers)))
    index.compact(numbers % 3 == 0)
    kept = numbers[numbers % 3 == 0]
    assert index.keys()[0].to_pylist() == kept.tolist()
    assert index.keys()[1].to_pylist() == [f"key{n}" for n in kept]
    assert index.slots(columns)[numbers % 3 == 0].tolist() == list(range(len(kept)))
    assert len(index) == len(numbers)


def test_without_key_columns_every_row_has_slot_zero() -> None:
    index = KeyIndex([])
    assert index.slots([], rows=3).tolist() == [0, 0, 0]
    assert len(index) == 1
    assert index.keys() == []
    assert exchange_hash([], rows=2).tolist() == [0, 0]


@pytest.mark.parametrize("type", [pa.list_(pa.int64()), pa.struct({"a": pa.int64()}), pa.map_(pa.string(), pa.int8())])
def test_nested_types_are_refused_as_keys(type: pa.DataType) -> None:
    with pytest.raises(SchemaError, match="expected a number"):
        KeyIndex([type])
    with pytest.raises(SchemaError, match="expected a number"):
        exchange_hash([pa.nulls(1, type)])


@settings(max_examples=200, deadline=None)
@given(keyed_batches())
def test_a_row_hashes_alike_in_any_batch(keyed: tuple[list[pa.DataType], list[list[pa.Array]]]) -> None:
    _, batches = keyed
    seen: dict[tuple[Any, ...], int] = {}
    for arrays in batches:
        hashes = exchange_hash(arrays)
        for number, row in enumerate(rows_of(arrays)):
            (alone,) = exchange_hash([array.slice(number, 1) for array in arrays]).tolist()
            assert alone == hashes[number] == seen.setdefault(row, alone)
    assert len(set(seen.values())) == len(seen)


def test_text_hashes_by_its_bytes_whatever_holds_it() -> None:
    words = pa.array(["", "a", None, "word" * 9])
    expected = exchange_hash([words]).tolist()
    for type in (pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())):
        assert exchange_hash([words.cast(type)]).tolist() == expected


PINNED = """
import pyarrow as pa
from decimal import Decimal
from millstream.engine.hashing import exchange_hash
columns = [
    pa.array([1, -1, None]),
    pa.array(["", "millstream", None]),
    pa.array([0.5, float("nan"), None]),
    pa.array([Decimal("1.5"), Decimal("-1.5"), None]),
]
for hashed in [*([c] for c in columns), columns]:
    print(*exchange_hash(hashed).tolist())
"""

PINNED_HASHES = """
11638717081223100439 8283345265125749450 5383078470568653318
14362224844409685573 7998343217046848099 5383078470568653318
9320196639812325211 2609558847212600091 5383078470568653318
17971011870669657747 14008521080296424099 5383078470568653318
13220244150381361578 11668983340494654978 7825815392542021348
"""


def test_hashes_are_those_of_every_release_and_process() -> None:
    done = subprocess.run([sys.executable, "-c", PINNED], capture_output=True, text=True, check=True)
    assert done.stdout == PINNED_HASHES.lstrip()


@pytest.mark.parametrize("column", [pa.array(np.arange(100_000)), pa.array(np.arange(100_000).astype(str))])
@pytest.mark.parametrize("parts", [2, 3, 16])
def test_hashes_spread_consecutive_keys_evenly(column: pa.Array, parts: int) -> None:
    sizes = np.bincount((exchange_hash([column]) % np.uint64(parts)).astype(np.int64), minlength=parts)
    assert sizes.max() - sizes.min() < 0.1 * sizes.mean()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5)), st.integers(1, 5))
def test_a_partition_keeps_every_row_once_and_in_order(hashes: list[int], parts: int) -> None:
    batch = pa.record_batch(
        {"row": pa.array(range(len(hashes)), pa.int64()), "s": pa.array(map(str, hashes), pa.string())}
    )
    split = partition(batch, np.array(hashes, np.uint64), parts)
    expected = [[row for row, hashed in enumerate(hashes) if hashed % parts == part] for part in range(parts)]
    assert [part.column("row").to_pylist() for part in split] == expected
    assert all(
        part.column("s").to_pylist() == [str(hashes[r]) for r in rows]
        for part, rows in zip(split, expected, strict=True)
    )
