"""The conformance kit takes sources that keep the contract, and catches whatever breaks it."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import millstream as ms
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from millstream.engine.expression import Expr
from millstream.engine.source import Chunk, Position, ReadContext, Source, Split, SplitEnd, SplitReader
from millstream.testing import check_source

START = dt.datetime(2026, 1, 1)
TIMED = pa.Table.from_pylist(
    [{"n": n, "s": f"x{n % 3}", "at": START + dt.timedelta(seconds=n * 7 % 11)} for n in range(11)]
)


@dataclass(frozen=True)
class ListSource(Source):
    """Rows of a table; the readers that tests break derive from ``ListReader``."""

    reader: Callable[..., SplitReader]
    table: pa.Table = field(default_factory=lambda: TIMED)
    predicate: Expr | None = None
    columns: frozenset[str] | None = None
    ids: Sequence[str] = ("0",)
    ends: bool = True

    @property
    def name(self) -> str:
        return "list"

    def identity(self) -> str:
        return "list"

    @property
    def schema(self) -> pa.Schema:
        return self.table.schema if self.columns is None else self.table.select(self._kept()).schema

    def _kept(self) -> list[str]:
        return [name for name in self.table.schema.names if self.columns is None or name in self.columns]

    @property
    def bounded(self) -> bool:
        return self.ends

    def discover(self) -> Sequence[Split]:
        return [Split(id) for id in self.ids]

    def open(self, split: Split, position: Position, context: ReadContext) -> SplitReader:
        return self.reader(self, position, context.batch_rows)

    def pushed_down(self, columns: frozenset[str], predicate: Expr | None, event_time: str | None) -> Source:
        return replace(self, columns=columns, predicate=predicate)


class ListReader(SplitReader):
    def __init__(self, source: ListSource, position: Position, batch_rows: int) -> None:
        self.source = source
        self.at = position or 0
        self.size = batch_rows

    def read(self) -> pa.RecordBatch | Chunk | SplitEnd:
        rows = self.source.table.slice(self.at, self.size).combine_chunks().to_batches()
        if not rows:
            return SplitEnd.FINISHED if self.source.ends else SplitEnd.PENDING
        self.at += rows[0].num_rows
        return self.reduced(rows[0])

    def reduced(self, rows: pa.RecordBatch) -> pa.RecordBatch | Chunk:
        whole, predicate = rows, self.source.predicate
        if predicate is not None:
            rows = rows.filter(predicate.evaluate(rows).fill_null(False))
        times = [int(t.value) for t in whole.column("at") if t.is_valid]
        return Chunk(rows.select(self.source._kept()), whole.num_rows, max(times))

    def position(self) -> Position:
        return self.at


class SkipsARowOnSeek(ListReader):
    def __init__(self, source: ListSource, position: Position, batch_rows: int) -> None:
        super().__init__(source, position and position + 1, batch_rows)


class RepeatsARowOnSeek(ListReader):
    def __init__(self, source: ListSource, position: Position, batch_rows: int) -> None:
        super().__init__(source, position and position - 1, batch_rows)


class StandsBeforeWhatItRead(ListReader):
    def position(self) -> Position:
        return max(self.at - self.size, 0)


class CountsBatches(ListReader):
    def __init__(self, source: ListSource, position: Position, batch_rows: int) -> None:
        super().__init__(source, position and position * batch_rows, batch_rows)

    def position(self) -> Position:
        return -(-self.at // self.size)


class CountsRowsThatRemain(ListReader):
    remaining = 0

    def reduced(self, rows: pa.RecordBatch) -> pa.RecordBatch | Chunk:
        chunk = super().reduced(rows)
        self.remaining += chunk.batch.num_rows
        return chunk

    def position(self) -> Position:
        return self.remaining if self.source.predicate is not None else self.at


class PositionIsNoPlainValue(ListReader):
    def position(self) -> Position:
        return self.source.table.schema


class DropsTheLastRowOfEachFilteredBatch(ListReader):
    def reduced(self, rows: pa.RecordBatch) -> pa.RecordBatch | Chunk:
        chunk = super().reduced(rows)
        if self.source.predicate is None:
            return chunk
        return replace(chunk, batch=chunk.batch.slice(0, max(chunk.batch.num_rows - 1, 0)))


class TellsOnlyOfRowsThatRemain(ListReader):
    def reduced(self, rows: pa.RecordBatch) -> pa.RecordBatch | Chunk:
        chunk = super().reduced(rows)
        return replace(chunk, rows_read=chunk.batch.num_rows)


class ForgetsTheLatestTime(ListReader):
    def reduced(self, rows: pa.RecordBatch) -> pa.RecordBatch | Chunk:
        return replace(super().reduced(rows), max_time=None)


class ChangesATypeNowAndThen(ListReader):
    def reduced(self, rows: pa.RecordBatch) -> pa.RecordBatch | Chunk:
        chunk = super().reduced(rows)
        floats = chunk.batch.column(0).cast(pa.float64())
        return chunk if self.at < 5 else replace(chunk, batch=chunk.batch.set_column(0, "n", floats))


class NeverEnds(ListReader):
    def read(self) -> pa.RecordBatch | Chunk | SplitEnd:
        got = super().read()
        return SplitEnd.PENDING if got is SplitEnd.FINISHED else got


ORDERS = itertools.cycle([("0", "1"), ("1", "0")])


class ShufflesItsSplits(ListSource):
    def discover(self) -> Sequence[Split]:
        return [Split(id) for id in next(ORDERS)]


def test_sources_that_keep_the_contract() -> None:
    assert check_source(lambda: ListSource(ListReader), event_time="at") == TIMED.to_pylist()
    assert check_source(lambda: ms.memory_source(TIMED, splits=3), event_time="at") == TIMED.to_pylist()

    def numbers(start: int, stop: int) -> pa.RecordBatch:
        return pa.RecordBatch.from_pydict({"n": list(range(start, stop))})

    schema = pa.schema([("n", pa.int64())])
    made = check_source(lambda: ms.generator(numbers, schema=schema, rows=20, batch_rows=4, splits=2))
    assert sorted(row["n"] for row in made) == list(range(20))
    endless = check_source(lambda: ms.generator(numbers, schema=schema, batch_rows=4), limit=10)
    assert [row["n"] for row in endless] == list(range(12))
    waiting = check_source(lambda: ms.memory_source(TIMED, bounded=False), limit=100)
    assert waiting == TIMED.to_pylist()


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("order", ["name", "event_time"])
def test_the_files_source(kind: str, order: str, tmp_path: Path) -> None:
    for number, part in enumerate((TIMED.slice(0, 7), TIMED.slice(7))):
        path = tmp_path / f"{number}.{kind}"
        if kind == "parquet":
            pq.write_table(part, path, row_group_size=3)
        elif kind == "csv":
            pc.write_csv(part, path)
        else:
            rows = [{**row, "at": row["at"].isoformat()} for row in part.to_pylist()]
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = check_source(lambda: ms.files(tmp_path / f"*.{kind}", order=order), event_time="at")
    assert found == TIMED.to_pylist()


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (SkipsARowOnSeek, "read on from 3 after 3 rows: missing"),
        (RepeatsARowOnSeek, "read on from 3 after 3 rows: too many"),
        (StandsBeforeWhatItRead, "read on from 0 after 3 rows: too many"),
        (CountsBatches, "read on from 1 after 3 rows: missing"),
        (CountsRowsThatRemain, "read on without a filter from .*was pushed down"),
        (DropsTheLastRowOfEachFilteredBatch, "pushed down: missing"),
        (TellsOnlyOfRowsThatRemain, "Chunks speak of 1 rows read, of 11"),
        (ForgetsTheLatestTime, "highest 'at' of all rows read is .* windows would wait for ever"),
        (ChangesATypeNowAndThen, r"the batch has \['n: double'\]; the schema says"),
        (NeverEnds, "a bounded source went silent without an end"),
    ],
)
def test_sources_that_break_it(reader: Callable[..., SplitReader], message: str) -> None:
    with pytest.raises(AssertionError, match=rf"(?s)list.*{message}"):
        check_source(lambda: ListSource(reader), event_time="at")


def test_sources_whose_splits_or_positions_cannot_be_kept() -> None:
    with pytest.raises(AssertionError, match="two splits have one id"):
        check_source(lambda: ListSource(ListReader, ids=("a", "a")))
    with pytest.raises(AssertionError, match="the same splits in the same order"):
        check_source(lambda: ShufflesItsSplits(ListReader))
    with pytest.raises(TypeError, match="can not serialize"):
        check_source(lambda: ListSource(PositionIsNoPlainValue))
    with pytest.raises(AssertionError, match="has no end: write limit="):
        check_source(lambda: ListSource(ListReader, ends=False))
