"""Rows from memory, rows into memory, printed rows and rows into the void."""

from __future__ import annotations

import io
import json
from typing import Any

import msgpack
import pyarrow as pa
import pytest
from millstream.connectors.blackhole import blackhole
from millstream.connectors.memory import MemorySource, memory_sink, memory_source
from millstream.connectors.printing import print_sink
from millstream.engine.errors import ExternalError, JobError, JobFailed, SchemaError
from millstream.engine.sink import Committable, Sink, SinkContext, SinkKind
from millstream.engine.source import Position, ReadContext, SplitEnd

SCHEMA = pa.schema([("a", pa.int64())])
CONTEXT = SinkContext("job", "job1", "sink1", generation=1, subtask=0, parallelism=1)


def batch(*values: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"a": list(values)}, schema=SCHEMA)


def read(
    source: MemorySource, split: int = 0, position: Position = None, batch_rows: int = 3, batches: int = 99
) -> tuple[list[Any], Position]:
    """Read at most so many batches of a split."""
    reader = source.open(source.discover()[split], position, ReadContext(lambda letter: None, batch_rows))
    values: list[Any] = []
    for _ in range(batches):
        got = reader.read()
        if isinstance(got, SplitEnd):
            break
        values += got.column(0).to_pylist()
    return values, reader.position()


@pytest.mark.parametrize("taken", range(5))
def test_a_split_is_read_on_from_its_position(taken: int) -> None:
    source = memory_source([{"a": i} for i in range(10)])
    first, position = read(source, batches=taken)
    rest, _ = read(source, position=position, batch_rows=4)
    assert first + rest == list(range(10))


def test_splits_cover_every_row_once() -> None:
    source = memory_source([{"a": i} for i in range(10)], splits=4)
    assert [i for split in range(4) for i in read(source, split)[0]] == list(range(10))


def test_batches_keep_their_boundaries() -> None:
    source = memory_source([batch(1), batch(2, 3)])
    reader = source.open(source.discover()[0], None, ReadContext(lambda letter: None))
    assert [reader.read().num_rows, reader.read().num_rows, reader.read()] == [1, 2, SplitEnd.FINISHED]


def test_an_unbounded_source_waits_at_its_end() -> None:
    source = memory_source(pa.table({"a": [1]}), bounded=False)
    reader = source.open(source.discover()[0], None, ReadContext(lambda letter: None))
    assert [reader.read().num_rows, reader.read(), reader.read()] == [1, SplitEnd.PENDING, SplitEnd.PENDING]


def test_no_rows_need_a_schema() -> None:
    with pytest.raises(JobError, match="'memory' has no rows: pass schema="):
        memory_source([])
    assert read(memory_source([], schema=SCHEMA)) == ([], 0)


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(JobError, match="source 'mine': the rows do not fit one schema"):
        memory_source([{"a": "x"}], schema=SCHEMA, name="mine")


def prepared(sink: Sink, epoch: int, *batches: pa.RecordBatch) -> list[Committable]:
    writer = sink.writer(SCHEMA, CONTEXT)
    for one in batches:
        writer.write(one)
    return list(writer.prepare(epoch, final=False))


def test_rows_are_there_when_their_epoch_is_committed_and_once() -> None:
    sink = memory_sink()
    committer = sink.committer(SCHEMA, CONTEXT)
    committables = prepared(sink, 1, batch(1, 2), batch(3))
    assert sink.rows() == []
    committer.commit(1, committables)
    committer.commit(1, committables)
    committer.commit(2, prepared(sink, 2))
    committer.commit(3, prepared(sink, 3, batch(4)))
    assert sink.rows() == [{"a": 1}, {"a": 2}, {"a": 3}, {"a": 4}]
    assert sink.table() == pa.table({"a": [1, 2, 3, 4]}, schema=SCHEMA)


def test_rows_travel_in_the_checkpoint_to_another_sink_object() -> None:
    stored = msgpack.packb([dict(c.payload) for c in prepared(memory_sink(), 1, batch(7))])
    after = memory_sink()
    again = [Committable(payload) for payload in msgpack.unpackb(stored)]
    after.committer(SCHEMA, CONTEXT).commit(1, again)
    assert after.rows() == [{"a": 7}]


def test_printed_rows_are_lines_of_json_up_to_the_limit() -> None:
    stream = io.StringIO()
    sink = print_sink(limit=3, stream=stream)
    one, other = sink.writer(SCHEMA, CONTEXT), sink.writer(SCHEMA, CONTEXT)
    one.write(batch(1, 2))
    other.write(batch(3, 4))
    one.write(batch(5))
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert sink.kind is SinkKind.AT_LEAST_ONCE
    assert "again after a crash" in sink.guarantee()


class FullStream(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


class ClosedPipe(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_reader_who_has_gone_ends_the_job_without_a_restart() -> None:
    writer = print_sink(stream=ClosedPipe()).writer(SCHEMA, CONTEXT)
    with pytest.raises(JobFailed, match="print: whoever read the printed rows has gone"):
        writer.write(batch(1))
    assert not JobFailed.restartable


def test_rows_that_cannot_be_printed() -> None:
    writer = print_sink(stream=FullStream()).writer(SCHEMA, CONTEXT)
    with pytest.raises(ExternalError, match=r"print: the rows cannot be printed: .*No space left"):
        writer.write(batch(1))
    with pytest.raises(SchemaError, match="'m' of type map"):
        print_sink().check(pa.schema([("m", pa.map_(pa.int8(), pa.int8()))]))


def test_the_blackhole_counts_over_all_its_writers() -> None:
    sink = blackhole()
    sink.writer(SCHEMA, CONTEXT).write(batch(1, 2))
    sink.writer(SCHEMA, CONTEXT).write(batch(3))
    assert (sink.rows, sink.bytes) == (3, 24)
