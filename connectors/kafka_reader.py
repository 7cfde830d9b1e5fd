"""Reads one partition of a Kafka topic, from exactly the offset where a checkpoint stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import pyarrow as pa
from confluent_kafka import KafkaError, Message
from millstream.connectors.kafka_consumer import PartitionQueue, SharedConsumer, offset_of
from millstream.connectors.kafka_rows import RowDecoder
from millstream.connectors.kafka_topics import GroupOffsets, Place, Topics
from millstream.connectors.reading_plan import empty_batch, shown
from millstream.engine.errors import DataError, ExternalError
from millstream.engine.source import DeadLetter, Position, ReadContext, SplitEnd, SplitReader

OnError: TypeAlias = Literal["fail", "dead_letter"]
OnLost: TypeAlias = Literal["fail", "earliest"]


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the readers of a source share.

    Attributes:
        consumer: fetches.
        topics: knows where partitions begin and end.
        group: is told what checkpoints cover; None: nobody is.
    """

    consumer: SharedConsumer
    topics: Topics
    group: GroupOffsets | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of a partition.

    Attributes:
        next: the offset to read on from; None: the first message that is there.
        end: the offset before which it ends; None: it has no end.
    """

    next: int | None
    end: int | None = None

    @classmethod
    def of(cls, position: Position) -> Stretch:
        """Take it out of a position that is not None."""
        return cls(*position) if isinstance(position, list | tuple) else cls(position)

    def position(self) -> Position:
        """As it is kept."""
        return self.next if self.end is None else [self.next, self.end]

    @property
    def over(self) -> bool:
        """Whether nothing of it is left."""
        return self.end is not None and (self.end == 0 or (self.next is not None and self.next >= self.end))


@dataclass(frozen=True, slots=True)
class Rules:
    """What becomes of messages that cannot be had.

    Attributes:
        source: the source's name.
        on_error: what becomes of messages that cannot be decoded.
        on_lost: what to do if the broker has removed messages that have not been read.
    """

    source: str
    on_error: OnError
    on_lost: OnLost


class KafkaReader(SplitReader):
    """Reads one partition.

    Its position is the offset of the next message; of a source with an end, ``[offset, end]``. Offsets may have gaps
    (compaction, the records that end transactions): a position stands after the last message, or after a gap.
    """

    def __init__(
        self, cluster: Cluster, place: Place, stretch: Stretch, rows: RowDecoder, rules: Rules, context: ReadContext
    ) -> None:
        self._cluster = cluster
        self._place = place
        self._next, self._end = stretch.next, stretch.end
        self._rows = rows
        self._rules = rules
        self._context = context
        self._queue = None if stretch.over else self._fetch()

    def read(self) -> pa.RecordBatch | SplitEnd:
        """Return the next rows, none of them if all messages were bad, or PENDING, or FINISHED at the end.

        Raises:
            DataError: a message is bad and not to be kept, or messages are gone that have not been read.
            ExternalError: the client has given up.
        """
        if self._queue is None or self._stretch.over:
            return SplitEnd.FINISHED
        messages = self._queue.take(self._context.batch_rows)
        if not messages:
            self._cluster.consumer.fill(self._queue)
            messages = self._queue.take(self._context.batch_rows)
        if self._cluster.group is not None:
            self._cluster.group.tell()
        if not messages:
            return self._go_on_without_rows()
        upto = offset_of(messages[-1]) + 1
        if self._end is not None and upto > self._end:
            messages, upto = [message for message in messages if offset_of(message) < self._end], self._end
        batch = self._decode(messages)
        self._next = upto
        return batch

    def position(self) -> Position:
        """Return the offset of the next message, and the end if it has one."""
        return self._stretch.position()

    def committed(self, position: Position) -> None:
        """Tell the group."""
        group, read = self._cluster.group, Stretch.of(position).next if position is not None else None
        if group is None or read is None:
            return
        group.note(self._place, read)
        if self._cluster.consumer.idle:
            group.tell_now()
        else:
            group.tell()

    def close(self) -> None:
        """Fetch it no longer."""
        if self._queue is None:
            return
        self._cluster.consumer.close(self._queue)
        self._queue = None
        if self._cluster.group is not None and self._cluster.consumer.idle:
            self._cluster.group.tell_now()

    @property
    def _stretch(self) -> Stretch:
        return Stretch(self._next, self._end)

    def _decode(self, messages: Any) -> pa.RecordBatch:
        batch, bad = self._rows.decode(messages)
        for index in sorted(bad):
            self._refuse(messages[index], bad[index])
        return batch

    def _refuse(self, message: Message, problem: str) -> None:
        raw = message.value() or b""
        offset = offset_of(message)
        if self._rules.on_error == "fail":
            raise DataError(
                f"{self._where}, offset {offset}: {problem}, in {shown(raw)}; pass on_error='dead_letter' to put such "
                "messages aside"
            )
        self._keep(f"offset {offset}", problem, raw)

    def _keep(self, position: str, problem: str, raw: bytes) -> None:
        topic, partition = self._place
        self._context.dead_letter(DeadLetter(self._rules.source, f"{topic}/{partition}", position, problem, raw))

    def _go_on_without_rows(self) -> pa.RecordBatch | SplitEnd:
        """Take what came instead of messages: the end of the log, or trouble."""
        assert self._queue is not None
        reached, error = self._queue.event()
        if error is not None:
            return self._meet(error)
        if reached is None or (self._next is not None and reached <= self._next):
            return SplitEnd.PENDING
        self._next = reached if self._end is None else min(reached, self._end)
        return SplitEnd.FINISHED if self._stretch.over else empty_batch(self._rows.schema)

    def _meet(self, error: KafkaError) -> pa.RecordBatch | SplitEnd:
        if error.code() not in {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}:
            raise ExternalError(f"{self._where}: cannot be read: {error.str()}")
        first = self._cluster.topics.starts([self._place])[self._place]
        behind = self._cluster.topics.ends([self._place])[self._place]
        if self._next is not None and self._next < first:
            self._pass_over(first)
            self._open_again()
            return SplitEnd.FINISHED if self._stretch.over else empty_batch(self._rows.schema)
        if self._next is not None and self._next > behind:
            raise DataError(
                f"{self._where}: the next message to read has offset {self._next}, and the partition ends at {behind}: "
                "the topic was deleted and created again, or its brokers have lost messages; start anew with a new "
                "store, or under another topic"
            )
        self._open_again()
        return SplitEnd.PENDING

    def _pass_over(self, first: int) -> None:
        """Go on behind messages that are gone, if that is wanted."""
        lost = f"offsets {self._next} to {first - 1}"
        if self._rules.on_lost == "fail":
            raise DataError(
                f"{self._where}: {lost} were removed by the broker before they were read: its retention is shorter "
                "than the job was behind; pass on_lost='earliest' to go on without them, and raise retention.ms"
            )
        self._keep(lost, "removed by the broker before they were read", b"")
        self._next = first if self._end is None else min(first, self._end)

    def _open_again(self) -> None:
        assert self._queue is not None
        if not self._stretch.over:
            self._queue = self._fetch()

    def _fetch(self) -> PartitionQueue:
        # The client could find out where a partition begins by itself, but takes half a second for it.
        first = self._cluster.topics.starts([self._place])[self._place] if self._next is None else self._next
        return self._cluster.consumer.open(*self._place, first)

    @property
    def _where(self) -> str:
        topic, partition = self._place
        return f"Kafka source {self._rules.source!r}: topic {topic!r}, partition {partition}"
