"""Where splits start is part of the first checkpoint, also of those that nobody has come to read yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from millstream.engine.graph import Node, OperatorId, Read
from millstream.engine.runtime.source_reading import SourceReading
from millstream.engine.runtime.splits import SplitQueue
from millstream.engine.source import ReadContext, Source, Split, SplitEnd, SplitOrder, SplitReader
from millstream.testing import ManualClock


@dataclass(frozen=True)
class Log(Source):
    """Partitions that grow, read from where they ended when they were opened first."""

    ends: dict[str, int]
    contexts: list[ReadContext] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "log"

    def identity(self) -> str:
        return "log"

    @property
    def schema(self) -> pa.Schema:
        return pa.schema({"n": pa.int64()})

    @property
    def bounded(self) -> bool:
        return False

    @property
    def order(self) -> SplitOrder:
        return SplitOrder.CONCURRENT

    def discover(self) -> Sequence[Split]:
        return [Split(name) for name in self.ends]

    def open(self, split: Split, position: Any, context: ReadContext) -> SplitReader:
        self.contexts.append(context)
        return LogReader(self.ends[split.id] if position is None else position)


class LogReader(SplitReader):
    def __init__(self, start: int) -> None:
        self._start = start

    def read(self) -> SplitEnd:
        return SplitEnd.PENDING

    def position(self) -> int:
        return self._start


def readings(source: Source, queue: SplitQueue, subtasks: int) -> list[SourceReading]:
    node = Node(OperatorId("o"), "log", Read(source), (), {})
    return [SourceReading(node, Read(source), queue, ManualClock(), number) for number in range(subtasks)]


def test_a_checkpoint_before_anything_is_read_knows_where_each_split_starts() -> None:
    source = Log({"a": 3, "b": 5, "c": 7})
    first, second = readings(source, SplitQueue(source, [], 2, ManualClock()), 2)
    kept = [*first.take_positions(), *second.take_positions()]
    assert sorted((at.split.id, at.position) for at in kept) == [("a", 3), ("b", 5), ("c", 7)]
    assert all(context.starts_anew for context in source.contexts)
    assert first.take_positions() == second.take_positions() == [], "and does not know it twice"
    grown = Log({"a": 30, "b": 50, "c": 70, "d": 1})
    queue = SplitQueue(grown, kept, 1, ManualClock())
    (reading,) = readings(grown, queue, 1)
    assert reading.next() is None
    assert [split.reader.position() for split in reading.open_splits] == [3, 5, 7, 1]
    assert not any(context.starts_anew for context in grown.contexts), "d was not there when the job began"
