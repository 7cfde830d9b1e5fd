"""Rows made from their numbers: each once, whatever the position, the number of splits or the speed."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from millstream.connectors.generator import GeneratorSource, generator
from millstream.engine.errors import JobError, UserCodeError
from millstream.engine.source import Position, ReadContext, SplitEnd, SplitReader
from millstream.engine.time import ManualClock

SCHEMA = pa.schema([("n", pa.int64())])


def numbers(start: int, stop: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"n": list(range(start, stop))}, schema=SCHEMA)


def open_split(source: GeneratorSource, split: int = 0, position: Position = None) -> SplitReader:
    return source.open(source.discover()[split], position, ReadContext(lambda letter: None))


def read(reader: SplitReader, batches: int = 999) -> list[int]:
    values: list[int] = []
    for _ in range(batches):
        got = reader.read()
        if isinstance(got, SplitEnd):
            break
        values += got.column("n").to_pylist()
    return values


@given(rows=st.integers(0, 60), batch_rows=st.integers(1, 9), splits=st.integers(1, 4), taken=st.integers(0, 5))
def test_every_row_comes_once_also_across_a_restart(rows: int, batch_rows: int, splits: int, taken: int) -> None:
    source = generator(numbers, schema=SCHEMA, rows=rows, batch_rows=batch_rows, splits=splits)
    found: list[int] = []
    for split in range(splits):
        before = open_split(source, split)
        found += read(before, taken)
        after = open_split(source, split, before.position())
        found += read(after)
        assert after.read() is SplitEnd.FINISHED
    assert sorted(found) == list(range(rows))


def test_without_rows_there_is_no_end() -> None:
    source = generator(numbers, schema=SCHEMA, batch_rows=2)
    assert not source.bounded
    assert read(open_split(source, position=10**12), 2) == [10**12 + i for i in range(4)]


def test_the_rate_holds_over_all_splits_and_starts_anew_after_a_restart() -> None:
    clock = ManualClock()
    source = generator(numbers, schema=SCHEMA, rate=100, splits=2, clock=clock)
    readers = [open_split(source, split) for split in range(2)]
    assert [reader.read() for reader in readers] == [SplitEnd.PENDING, SplitEnd.PENDING]
    clock.advance(1)
    assert sorted(n for reader in readers for n in read(reader)) == list(range(100))
    clock.advance(1000)
    again = [open_split(source, split, readers[split].position()) for split in range(2)]
    assert [reader.read() for reader in again] == [SplitEnd.PENDING, SplitEnd.PENDING]
    clock.advance(1)
    assert sorted(n for reader in again for n in read(reader)) == list(range(100, 200))


def test_a_slow_rate_still_comes_row_by_row() -> None:
    clock = ManualClock()
    reader = open_split(generator(numbers, schema=SCHEMA, rate=0.5, rows=2, clock=clock))
    clock.advance(1.9)
    assert reader.read() is SplitEnd.PENDING
    clock.advance(0.1)
    assert read(reader) == [0]
    clock.advance(2)
    assert read(reader) == [1]
    assert reader.read() is SplitEnd.FINISHED


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda start, stop: numbers(start, stop - 1), "asked for rows 0 to 3, returned 3 rows instead of 4"),
        (lambda start, stop: [1, 2, 3, 4], r"returned a list; it must return a pyarrow\.RecordBatch"),
        (lambda start, stop: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (
            lambda start, stop: pa.RecordBatch.from_pydict({"m": [1.0] * 4}),
            "columns that are not those of schema=: expected n int64; got m double",
        ),
    ],
)
def test_a_function_that_does_not_keep_its_word_is_told(fn: Any, message: str) -> None:
    reader = open_split(generator(fn, schema=SCHEMA, batch_rows=4))
    with pytest.raises(UserCodeError, match=message):
        reader.read()
    assert reader.position() == 0


@pytest.mark.parametrize("argument", ["rows", "rate", "batch_rows", "splits"])
def test_arguments_that_make_no_sense_are_refused(argument: str) -> None:
    with pytest.raises(JobError, match=f"generator 'generator': {argument} must be"):
        generator(numbers, schema=SCHEMA, **{argument: -1})


def test_identity_changes_with_whatever_gives_a_position_its_meaning() -> None:
    same = [generator(numbers, schema=SCHEMA, rows=rows) for rows in (None, 5)]
    others = [
        generator(numbers, schema=SCHEMA, splits=2),
        generator(numbers, schema=SCHEMA, splits=2, batch_rows=5),
        generator(numbers, schema=SCHEMA, name="other"),
    ]
    assert len({source.identity() for source in same}) == 1
    assert len({source.identity() for source in [*same, *others]}) == 4
