"""Rows that functions fetch: each once, from the cursor of the last checkpoint, whatever fails."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from http_kit import running
from millstream.connectors.polling import CursorSource
from millstream.engine import failpoints
from millstream.engine.errors import JobError, UserCodeError
from millstream.engine.source import ReadContext, SplitEnd, SplitReader

SCHEMA = {"n": int}
FAST = ms.retry(3, wait="1ms", longest="2ms")
SIZE = 20


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


def numbers(cursor: int, upto: int = SIZE) -> list[dict[str, int]]:
    return [{"n": n} for n in range(cursor, min(cursor + 3, upto))]


def pages(cursor: int) -> Any:
    rows = numbers(cursor)
    return (rows, cursor + len(rows), True) if rows else None


async def pages_async(cursor: int) -> Any:
    return pages(cursor)


async def yielded(cursor: int) -> AsyncIterator[Any]:
    while rows := numbers(cursor):
        cursor += len(rows)
        yield rows, cursor


def yielded_plainly(cursor: int) -> Iterator[Any]:
    while rows := numbers(cursor):
        cursor += len(rows)
        yield pa.RecordBatch.from_pylist(rows, pa.schema({"n": pa.int64()})), cursor


SOURCES: dict[str, Callable[[], CursorSource]] = {
    "poll": lambda: ms.poll(pages, schema=SCHEMA, start=0, bounded=True, retry=FAST),
    "poll async": lambda: ms.poll(pages_async, schema=SCHEMA, start=0, bounded=True, retry=FAST),
    "generate": lambda: ms.generate(yielded, schema=SCHEMA, start=0, bounded=True, retry=FAST),
    "generate plainly": lambda: ms.generate(yielded_plainly, schema=SCHEMA, start=0, bounded=True, retry=FAST),
}


def opened(source: CursorSource, position: Any = None) -> SplitReader:
    (split,) = source.discover()
    return source.open(split, position, ReadContext([].append))


def next_of(reader: SplitReader) -> list[int] | None:
    """The next rows; None at the end."""
    for _ in range(5000):
        got = reader.read()
        if got is SplitEnd.FINISHED:
            return None
        if isinstance(got, pa.RecordBatch):
            return got.column("n").to_pylist()
        time.sleep(0.001)
    raise AssertionError("nothing came")


def rest_of(reader: SplitReader) -> list[int]:
    rows: list[int] = []
    while (got := next_of(reader)) is not None:
        rows += got
    reader.close()
    return rows


@pytest.mark.parametrize("kind", SOURCES)
def test_every_position_is_where_the_rest_begins(kind: str) -> None:
    reader, read = opened(SOURCES[kind]()), 0
    while (got := next_of(reader)) is not None:
        read += len(got)
        assert rest_of(opened(SOURCES[kind](), reader.position())) == list(range(read, SIZE))
    assert read == SIZE
    reader.close()


@pytest.mark.parametrize(
    ("kind", "point"),
    list(zip(SOURCES, ["store.after_commit", "sink.prepared", "source.committed", "store.before_commit"], strict=True)),
)
def test_each_row_comes_once_through_a_crash(kind: str, point: str, tmp_path: Path) -> None:
    out = ms.memory_sink()
    job = ms.Job("fetch")
    job.read(SOURCES[kind](), name="rows").write(out)
    failpoints.arm(f"{point}=raise")
    assert job.run(tmp_path / "s.duckdb", every="1ms").restarts == 1
    assert [row["n"] for row in out.rows()] == list(range(SIZE))
    assert job.run(tmp_path / "s.duckdb").outcome == "already finished"


def test_a_function_that_raises_is_called_again_with_the_same_cursor():
    asked: list[int] = []

    def shaky(cursor: int) -> Any:
        asked.append(cursor)
        if asked.count(cursor) < 3:
            raise ConnectionError("reset")
        return pages(cursor)

    source = ms.poll(shaky, schema=SCHEMA, start=0, bounded=True, retry=FAST)
    assert rest_of(opened(source)) == list(range(SIZE))
    assert asked == [cursor for cursor in [*range(0, SIZE, 3), SIZE] for _ in range(3)]


def test_a_generator_that_raises_goes_on_after_what_it_has_yielded():
    begun: list[int] = []

    async def shaky(cursor: int) -> AsyncIterator[Any]:
        begun.append(cursor)
        async for rows, after in yielded(cursor):
            yield rows, after
            raise ConnectionError("reset")

    assert rest_of(opened(ms.generate(shaky, schema=SCHEMA, start=0, bounded=True, retry=FAST))) == list(range(SIZE))
    assert begun == [*range(0, SIZE, 3), SIZE]


def test_what_keeps_raising_fails_the_job_with_its_cursor():
    def broken(cursor: int) -> Any:
        if cursor == 6:
            raise ValueError("no such page")
        return pages(cursor)

    reader = opened(ms.poll(broken, schema=SCHEMA, start=0, retry=FAST))
    assert (next_of(reader), next_of(reader)) == ([0, 1, 2], [3, 4, 5])
    with pytest.raises(UserCodeError, match=r"'broken': .* asked with cursor 6, raised ValueError: no such page"):
        next_of(reader)
    reader.close()


def test_an_error_that_is_not_to_be_retried_fails_at_once():
    calls = []

    def broken(cursor: int) -> Any:
        calls.append(cursor)
        raise ValueError("no")

    reader = opened(ms.poll(broken, schema=SCHEMA, retry=ms.retry(5, on=OSError)))
    with pytest.raises(UserCodeError):
        next_of(reader)
    assert calls == [None]
    reader.close()


def test_it_is_asked_again_for_what_has_come_since(tmp_path: Path) -> None:
    table, out, seen = [0, 1], ms.memory_sink(), threading.Event()

    def since(cursor: int) -> Any:
        rows = [{"n": n} for n in table if n > cursor]
        return rows, max([cursor, *table])

    job = ms.Job("fetch")
    job.read(ms.poll(since, schema=SCHEMA, start=-1, every="5ms")).write(out)

    def look(status: Any) -> None:
        if out.rows():
            seen.set()

    with running(job, tmp_path / "s.duckdb", on_status=look):
        assert seen.wait(30)
        table += [2, 3]
        while len(out.rows()) < 4:
            time.sleep(0.005)
    table += [4]
    with running(job, tmp_path / "s.duckdb"):
        while len(out.rows()) < 5:
            time.sleep(0.005)
    assert [row["n"] for row in out.rows()] == [0, 1, 2, 3, 4]


def test_an_endless_generator_that_ends_is_started_again_where_it_ended():
    begun: list[int] = []

    async def connection(cursor: int) -> AsyncIterator[Any]:
        begun.append(cursor)
        yield [{"n": cursor}], cursor + 1

    reader = opened(ms.generate(connection, schema=SCHEMA, start=0, retry=FAST))
    assert [next_of(reader) for _ in range(4)] == [[0], [1], [2], [3]]
    reader.close()
    assert begun[:4] == [0, 1, 2, 3]


def test_a_generator_gets_no_further_ahead_than_a_step():
    made: list[int] = []

    async def fast(cursor: int) -> AsyncIterator[Any]:
        for n in range(100):
            made.append(n)
            yield [{"n": n}], n + 1

    reader = opened(ms.generate(fast, schema=SCHEMA, start=0))
    assert next_of(reader) == [0]
    time.sleep(0.05)
    assert len(made) <= 3
    reader.close()


def test_a_generator_is_closed_with_its_reader():
    closed = threading.Event()

    async def held(cursor: int) -> AsyncIterator[Any]:
        try:
            while True:
                cursor += 1
                yield [{"n": cursor}], cursor
        finally:
            closed.set()

    reader = opened(ms.generate(held, schema=SCHEMA, start=0))
    next_of(reader)
    reader.close()
    assert closed.wait(10)


def test_cursors_are_the_same_after_a_restart_and_before_it():
    asked: list[Any] = []

    def page(cursor: Any) -> Any:
        asked.append(cursor)
        return [{"n": 1}], {"after": (1, "a"), 3: b"x"}, True

    reader = opened(ms.poll(page, schema=SCHEMA))
    next_of(reader)
    next_of(reader)
    reader.close()
    assert asked[:2] == [None, {"after": [1, "a"], 3: b"x"}]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "never None, since it is not bounded"),
        ([{"n": 1}], r"must return \(rows, cursor\)"),
        (([{"n": "x"}], 1), "rows do not fit schema=: "),
        (([{"m": 1}], 1), r"rows have 'm', which schema= has not \(n\)"),
        (([1], 1), "rows are a list of dicts, or Arrow, got list"),
        ((pa.table({"m": [1]}), 1), "have the columns m int64; schema= says n int64"),
        (([], object()), "cannot be kept in a checkpoint"),
    ],
)
def test_what_a_function_must_not_return_is_named(given: Any, told: str) -> None:
    reader = opened(ms.poll(lambda cursor: given, schema=SCHEMA, name="rows"))
    with pytest.raises(UserCodeError, match=told):
        next_of(reader)
    reader.close()


@pytest.mark.parametrize("given", [7, None])
def test_what_is_no_generator_is_named(given: Any) -> None:
    reader = opened(ms.generate(lambda cursor: given, schema=SCHEMA, name="rows"))
    with pytest.raises(UserCodeError, match="'rows': the function must be a generator, async or not, got"):
        next_of(reader)
    reader.close()


def test_rows_may_be_arrow_and_lack_columns():
    def page(cursor: Any) -> Any:
        return (pa.table({"n": [[1], [2, 3]][cursor or 0]}), 1, True) if cursor != 2 else ([{}], 2, True)

    reader = opened(ms.poll(page, schema=SCHEMA))
    assert (next_of(reader), next_of(reader)) == ([1], [2, 3])
    reader.close()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ms.poll(pages, schema=SCHEMA, every=0), "longer than 0"),
        (lambda: ms.poll(lambda cursor: None, schema=SCHEMA), "give one, as in name="),
        (lambda: ms.poll("pages", schema=SCHEMA), "takes a function"),
        (lambda: ms.generate(yielded, schema=SCHEMA, retry=3), r"takes ms\.retry"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(JobError, match=told):
        make()
