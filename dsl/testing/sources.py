"""``check_source``: a source, read on from every position it can stop at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.expression import Expr, col
from millstream.engine.source import Chunk, Position, ReadContext, Source, Split, SplitEnd, SplitReader
from millstream.testing.rows import demand, rows_of

_BATCH_ROWS: Final = 3
_PATIENCE: Final = 100_000
"""How often a source may say that it has nothing now before its split counts as read."""


def check_source(
    make: Callable[[], Source], *, event_time: str | None = None, limit: int | None = None
) -> list[dict[str, Any]]:
    """Read a source whole; then again from every position it can stop at, and demand the rest of the rows.

    Positions go through msgpack as they do in a checkpoint, and are used by readers with other batch sizes and with
    columns and filters pushed down: they must mean the same. Every batch must have the schema promised. The test
    data should be small, and make several batches of 3 rows.

    Args:
        make: returns the source, anew each time.
        event_time: the column whose highest value a pushed-down source must know.
        limit: reads no more than about so many rows of each split; needed for a source without end.

    Returns:
        All rows, split by split, in order.

    Raises:
        AssertionError: a row was left out, repeated or changed, or a promise was broken.

    >>> from millstream import memory_source
    >>> rows = [{"n": n} for n in range(10)]
    >>> check_source(lambda: memory_source(rows, splits=2)) == rows
    True
    """
    source = make()
    assert source.bounded or limit is not None, f"{source.name} has no end: write limit=... rows"
    assert source.name, "a source needs a name"
    assert source.identity() == make().identity(), f"{source.name}: identity() differs between equal sources"
    splits = _splits(make)
    whole = [_Whole(make(), split, limit) for split in splits]
    for read in whole:
        _check_positions(make, read)
    if limit is None:
        _check_push_down(make, whole, event_time)
    return [row for read in whole for row in read.rows]


def _splits(make: Callable[[], Source]) -> Sequence[Split]:
    splits, again = make().discover(), make().discover()
    ids = [split.id for split in splits]
    assert ids == [split.id for split in again], "discover() must name the same splits in the same order each time"
    assert len(ids) == len(set(ids)), f"two splits have one id: {ids}"
    return [Split(split.id, _stored(dict(split.info))) for split in splits]


def _stored(value: Any) -> Any:
    """Return a value as it comes back out of a checkpoint: tuples as lists, and nothing but plain values."""
    return msgpack.unpackb(msgpack.packb(value), strict_map_key=False)


@dataclass(frozen=True, slots=True)
class _Read:
    """What one call of ``read`` gave, and where the reader stood after it."""

    rows: list[dict[str, Any]]
    rows_read: int
    max_time: Any
    position: Position


class _Whole:
    """One split, read from its start to its end (or limit)."""

    def __init__(self, source: Source, split: Split, limit: int | None) -> None:
        self.split = split
        self.limit = limit
        self.reads = _read(source, split, None, limit)
        self.rows = [row for read in self.reads for row in read.rows]


def _context(batch_rows: int) -> ReadContext:
    return ReadContext(dead_letter=lambda _: None, batch_rows=batch_rows)


def _read(
    source: Source, split: Split, position: Position, limit: int | None, batch_rows: int = _BATCH_ROWS
) -> list[_Read]:
    """Read a split from a position to its end, or until ``limit`` rows have come."""
    where = f"{source.name}, split {split.id!r}"
    reader = source.open(split, position, _context(batch_rows))
    reads: list[_Read] = []
    nothing = total = 0
    while limit is None or total < limit:
        got = reader.read()
        if got is SplitEnd.FINISHED:
            break
        if isinstance(got, SplitEnd):
            nothing += 1
            assert nothing < _PATIENCE or not source.bounded, f"{where}: a bounded source went silent without an end"
            if nothing == _PATIENCE:
                break
            continue
        nothing = 0
        reads.append(_checked(source, got, reader, where))
        total += reads[-1].rows_read
    reader.close()
    return reads


def _checked(source: Source, got: pa.RecordBatch | Chunk, reader: SplitReader, where: str) -> _Read:
    chunk = got if isinstance(got, Chunk) else Chunk(got, got.num_rows)
    promised = {field.name: field.type for field in source.schema}
    strange = [f"{f.name}: {f.type}" for f in chunk.batch.schema if not _same(promised.get(f.name), f.type)]
    assert not strange, f"{where}: the batch has {strange}; the schema says {promised}"
    missing = sorted(promised.keys() - set(chunk.batch.schema.names))
    assert not missing, f"{where}: the batch lacks {missing}, which the schema promises"
    chunk.batch.validate(full=True)
    position = reader.position()
    assert _stored(position) == _stored(reader.position()), f"{where}: position() changes when it is asked twice"
    return _Read(rows_of([chunk.batch]), chunk.rows_read, chunk.max_time, _stored(position))


def _same(promised: pa.DataType | None, got: pa.DataType) -> bool:
    return promised is not None and bool(promised.equals(got))


# -- positions -------------------------------------------------------------------------------------------------


def _check_positions(make: Callable[[], Source], whole: _Whole) -> None:
    split = whole.split
    name = f"{make().name}, split {split.id!r}"
    start = make().open(split, None, _context(_BATCH_ROWS))
    nothing_read = _stored(start.position())
    start.close()
    positions = [nothing_read, *(read.position for read in whole.reads)]
    done = 0
    for number, position in enumerate(positions):
        done += len(whole.reads[number - 1].rows) if number else 0
        for batch_rows in (_BATCH_ROWS, 2 * _BATCH_ROWS + 1):
            rest = _rows(make(), split, position, _left(whole.limit, done), batch_rows)
            _demand_rest(rest, whole.rows[done:], whole.limit, f"{name}, read on from {position!r} after {done} rows")
    stopped: list[dict[str, Any]] = []
    position = None
    while read := _read(make(), split, position, 1):
        stopped += read[0].rows
        position = read[0].position
        if whole.limit is not None and len(stopped) >= whole.limit:
            break
    _demand_rest(stopped, whole.rows, whole.limit, f"{name}, stopped and opened again after every read")


def _left(limit: int | None, done: int) -> int | None:
    return None if limit is None else max(limit - done, 1)


def _rows(source: Source, split: Split, position: Position, limit: int | None, batch_rows: int) -> list[dict[str, Any]]:
    return [row for read in _read(source, split, position, limit, batch_rows) for row in read.rows]


def _demand_rest(got: list[dict[str, Any]], expected: list[dict[str, Any]], limit: int | None, where: str) -> None:
    """Demand the same rows in the same order; with a limit each may be cut off elsewhere."""
    most = min(len(got), len(expected)) if limit is not None else max(len(got), len(expected))
    demand(got[:most], expected[:most], where)
    assert list(map(repr, got[:most])) == list(map(repr, expected[:most])), f"{where}: the rows come in another order"


# -- push-down -------------------------------------------------------------------------------------------------


def _check_push_down(make: Callable[[], Source], whole: Sequence[_Whole], event_time: str | None) -> None:
    schema = make().schema
    every = frozenset(schema.names)
    rows = [row for read in whole for row in read.rows]
    table = pa.Table.from_pylist(rows, schema=schema)
    for column in schema.names:
        narrow = make().pushed_down(frozenset([column]), None, None)
        got = [{column: row[column]} for read in whole for row in _all(narrow, read.split)]
        where = f"{narrow.name}, only column {column!r} asked for"
        demand(got, [{column: row[column]} for row in rows], where)
    for predicate in _predicates(table):
        pushed = make().pushed_down(every, predicate, event_time)
        where = f"{pushed.name}, with {predicate} pushed down"
        for read in whole:
            reads = _read(pushed, read.split, None, None)
            demand(
                _passing(predicate, [row for r in reads for row in r.rows], schema),
                _passing(predicate, read.rows, schema),
                where,
            )
            counted = sum(r.rows_read for r in reads)
            assert counted == len(read.rows), f"{where}: Chunks speak of {counted} rows read, of {len(read.rows)}"
            _check_max_time(reads, read.rows, schema, event_time, where)
            _check_positions_agree(make, predicate, reads, read, schema)


def _all(source: Source, split: Split) -> list[dict[str, Any]]:
    columns = {field.name for field in source.schema}
    rows = [row for read in _read(source, split, None, None) for row in read.rows]
    assert all(row.keys() == columns for row in rows), f"{source.name}: the schema after push-down is {columns}"
    return rows


def _predicates(table: pa.Table) -> list[Expr]:
    """One that keeps a few rows, one that keeps none, for each column that can be compared with a literal."""
    found = []
    for field in table.schema:
        known = table[field.name].drop_null()
        if not len(known) or not (pa.types.is_primitive(field.type) or pa.types.is_string(field.type)):
            continue
        middle = known[len(known) // 2].as_py()
        found += [col(field.name) == middle, col(field.name).is_null()]
    return found


def _passing(predicate: Expr, rows: list[dict[str, Any]], schema: pa.Schema) -> list[dict[str, Any]]:
    batches = pa.Table.from_pylist(rows, schema=schema).to_batches()
    return rows_of([batch.filter(predicate.evaluate(batch)) for batch in batches])


def _check_max_time(
    reads: Sequence[_Read], rows: list[dict[str, Any]], schema: pa.Schema, event_time: str | None, where: str
) -> None:
    if event_time is None:
        return
    of_chunks = [read.max_time for read in reads if read.max_time is not None]
    of_rows = [_latest(read.rows, schema, event_time) for read in reads if read.max_time is None]
    known = [time for time in [*of_chunks, *of_rows] if time is not None]
    expected = _latest(rows, schema, event_time)
    assert max(known, default=None) == expected, (
        f"{where}: the highest {event_time!r} of all rows read is {expected} (microseconds), the Chunks say "
        f"{max(known, default=None)}: without it windows would wait for ever"
    )


def _latest(rows: list[dict[str, Any]], schema: pa.Schema, column: str) -> int | None:
    values = pa.array([row[column] for row in rows], schema.field(column).type)
    latest = pc.max(values)
    return int(latest.cast(pa.timestamp("us"), safe=False).value) if latest.is_valid else None


def _check_positions_agree(
    make: Callable[[], Source], predicate: Expr, pushed: Sequence[_Read], whole: _Whole, schema: pa.Schema
) -> None:
    """A job may come back with another filter: a position must mean the same whatever is pushed down."""
    done = 0
    for read in pushed:
        done += read.rows_read
        rest = _rows(make(), whole.split, read.position, None, _BATCH_ROWS)
        where = f"{make().name}, read on without a filter from {read.position!r}, where {predicate} was pushed down"
        demand(rest, whole.rows[done:], where)
    done = 0
    for read in whole.reads:
        done += read.rows_read
        source = make().pushed_down(frozenset(schema.names), predicate, None)
        rest = _rows(source, whole.split, read.position, None, _BATCH_ROWS)
        where = f"{source.name}, read on with {predicate} pushed down from {read.position!r}"
        demand(_passing(predicate, rest, schema), _passing(predicate, whole.rows[done:], schema), where)
