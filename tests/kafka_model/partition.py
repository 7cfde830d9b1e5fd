"""A partition: a log, its transactions, and what a reader of what is committed may see of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from confluent_kafka import KafkaError

Message = tuple[bytes | None, bytes | None]


@dataclass(eq=False, slots=True)
class Span:
    """What one transaction has written to one partition; ``committed`` is None while that is not decided."""

    first: int
    committed: bool | None = None


@dataclass(eq=False, slots=True)
class Entry:
    """A message in the log."""

    offset: int
    key: bytes | None
    value: bytes | None
    span: Span


@dataclass(eq=False, slots=True)
class Writer:
    """What a partition knows of a producer id."""

    epoch: int
    sequence: int = 0


@dataclass(eq=False)
class Partition:
    """A log, whose end is the high watermark: there is one replica."""

    entries: list[Entry] = field(default_factory=list)
    end: int = 0
    open: dict[int, Span] = field(default_factory=dict)
    writers: dict[int, Writer] = field(default_factory=dict)

    @property
    def stable(self) -> int:
        """The last stable offset: before it everything is decided."""
        return min((span.first for span in self.open.values()), default=self.end)

    def refusal(self, producer: int, epoch: int, sequence: int) -> int | None:
        """Return the error that a batch gets, and -1 for one that is there already."""
        writer = self.writers.get(producer)
        if writer is None or epoch > writer.epoch:
            return None if sequence == 0 else KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER
        if epoch < writer.epoch:
            return KafkaError.INVALID_PRODUCER_EPOCH
        if sequence < writer.sequence:
            return -1
        return None if sequence == writer.sequence else KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER

    def append(self, producer: int, epoch: int, messages: list[Message]) -> None:
        """Take a batch that is not refused."""
        writer = self.writers.setdefault(producer, Writer(epoch))
        if epoch > writer.epoch:
            writer.epoch, writer.sequence = epoch, 0
        writer.sequence += len(messages)
        span = self.open.setdefault(producer, Span(self.end))
        for key, value in messages:
            self.entries.append(Entry(self.end, key, value, span))
            self.end += 1

    def mark(self, producer: int, epoch: int, committed: bool) -> None:
        """Write down how a producer's transaction has ended."""
        writer = self.writers.setdefault(producer, Writer(epoch))
        if epoch > writer.epoch:
            writer.epoch, writer.sequence = epoch, 0
        span = self.open.pop(producer, None)
        if span is not None:
            span.committed = committed
        self.end += 1

    def committed(self, start: int = 0) -> list[Entry]:
        """What a reader of what is committed sees from an offset on."""
        stable = self.stable
        return [e for e in self.entries if start <= e.offset < stable and e.span.committed]

    def compact(self) -> None:
        """Drop what is aborted, and all but the last of each key, as far as everything is decided."""
        stable = self.stable
        last = {entry.key: entry.offset for entry in self.committed()}
        self.entries = [e for e in self.entries if e.offset >= stable or last.get(e.key) == e.offset]
