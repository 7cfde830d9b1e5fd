"""Publishes epochs in Kafka: messages and marker in one transaction, whose outcome is always found out.

The protocol is that of Materialize's Kafka sink and of Kafka Connect's exactly-once sources: fence, then read, then
write. A producer with a new epoch of its own makes the brokers decide what its predecessors have begun, and only then
is the marker read; both in advance, while an epoch is under way. Each transaction has a producer of its own:
librdkafka's transactions lack KIP-890, and a delayed answer to one of them may commit or abort the next one of the same
producer (KAFKA-17754).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.connectors.kafka_connection import Brokers, blame_brokers, persistently
from millstream.connectors.kafka_messages import KEY
from millstream.connectors.kafka_producers import Producers
from millstream.connectors.kafka_progress import Progress, Record
from millstream.connectors.kafka_sending import send, timed_out
from millstream.connectors.outbox import Sent, settle, unpack
from millstream.connectors.outbox_marker import Publisher
from millstream.engine.failpoints import hit
from millstream.engine.sink import Committable, Committer

_ADVICE: Final = (
    "What was to be sent waits in the checkpoint: mend what the brokers complain of, and start the job again"
)
_RIGHTS: Final = "docs/kafka.md lists the rights that a job needs"


@dataclass(frozen=True, slots=True)
class Target:
    """Where messages go to, and how.

    Attributes:
        upsert: of each key only the last message of an epoch is sent.
        transaction_bytes: more than that takes several transactions.
        patience: seconds to try again while the brokers are away.
    """

    brokers: Brokers
    topic: str
    upsert: bool
    transaction_bytes: int
    patience: float


@dataclass(frozen=True, slots=True)
class _Epoch:
    """What is to be published."""

    number: int
    after: int
    messages: pa.Table
    digest: str


class KafkaCommitter(Committer):
    """One start of a job towards one topic."""

    def __init__(self, target: Target, progress: Progress, sent: Sent, most_bytes: int) -> None:
        self._target = target
        self._progress = progress
        self._publisher: Publisher = progress.publisher
        self._name = progress.publisher.name
        self._sent = sent
        context = self._publisher.context
        self._seconds = max(1.0, min(30.0, target.patience))
        own = {
            "transactional.id": f"millstream-{context.job_id}-{context.sink_id}",
            "message.max.bytes": most_bytes,
        }
        self._producers = Producers(target.brokers, own, target.topic, self._seconds, progress.records)
        self._registered = False
        doing = f"registering this start of the job in topic {progress.topic!r}"
        with blame_brokers(self._name, doing, target.brokers, advice=_RIGHTS):
            self._persistently(self._register)

    def commit(self, epoch: int, committables: Sequence[Committable]) -> None:
        """Publish an epoch; each attempt finds out whether one before it has done so.

        Raises:
            ExternalError: the brokers were away for too long.
            JobError: they refuse the messages, or this start of the job must not write (any more).
        """
        if not committables:
            return
        letter = unpack(committables)
        keys = (KEY,) if self._target.upsert else ()
        whole = _Epoch(epoch, letter.after, settle(letter.rows, keys).combine_chunks(), letter.digest)
        doing = f"sending epoch {epoch} to topic {self._target.topic!r}"
        with blame_brokers(self._name, doing, self._target.brokers, advice=_ADVICE):
            while not self._persistently(lambda: self._publish(whole)):
                pass
        self._sent.note(epoch)

    def close(self) -> None:
        """Let go of connections."""
        self._producers.close()
        self._progress.close()

    # -- attempts: each has a producer of its own, and is one transaction at most ---------------------------------

    def _persistently(self, attempt: Any) -> Any:
        """Call ``attempt`` until it succeeds: where an outcome is not known, the next one finds it out.

        A producer that was fenced is no reason to stop. What the marker says is: either another start of the job has
        taken over, or a process that has to stop for the same reason has fenced this one with its last act, or a
        transaction took too long.
        """
        return persistently(attempt, self._name, self._target.patience, self._target.brokers)

    def _register(self) -> None:
        self._progress.make()
        producer, records = self._producers.take()
        record = self._progress.registered(records)
        if record is None:
            return
        producer.begin_transaction()
        self._progress.write(producer, record)
        producer.commit_transaction(self._seconds)
        self._producers.prepare(producer)
        self._registered = True

    def _publish(self, epoch: _Epoch) -> bool:
        """Publish what is missing of an epoch, as much as fits into a transaction; return whether all is there."""
        producer, records = self._producers.take()
        record = records.get(self._progress.key)
        marker = None if record is None else record.marker
        publisher, number, digest = self._publisher, epoch.number, epoch.digest
        missing = publisher.must_publish(marker, number, epoch.after, digest, registered=self._registered)
        start = 0
        if record is not None and record.part:
            publisher.check_same(record.furthest, number, digest)
            start = record.messages
        if not missing:
            return True
        end = self._end(epoch.messages, start)
        last = bool(end == epoch.messages.num_rows)
        done = self._done(record, epoch, end, last)
        producer.begin_transaction()
        hit("kafka.begun")
        send(producer, self._target.topic, epoch.messages.slice(start, end - start), self._seconds)
        self._progress.write(producer, done)
        if producer.flush(self._seconds):
            raise timed_out("sending messages")
        hit("kafka.sent")
        producer.commit_transaction(self._seconds)
        self._producers.prepare(producer)
        self._registered = True
        hit("kafka.visible")
        return last

    def _done(self, record: Record | None, epoch: _Epoch, end: int, last: bool) -> Record:
        if last:
            return self._progress.record(epoch.number, digest=epoch.digest, messages=end)
        before = 0 if record is None else record.epoch
        return self._progress.record(before, digest=epoch.digest, part=epoch.number, messages=end)

    # -- messages ------------------------------------------------------------------------------------------------

    def _end(self, messages: pa.Table, start: int) -> int:
        """Where a transaction ends that begins at a message: at least one fits."""
        rest = messages.slice(start)
        sizes = np.full(rest.num_rows, 64, np.int64)
        for column in rest.columns:
            if pa.types.is_binary(column.type):
                sizes += pc.fill_null(pc.binary_length(column), 0).to_numpy()
        fitting = int(np.searchsorted(np.cumsum(sizes), self._target.transaction_bytes, side="right"))
        return min(int(messages.num_rows), start + max(1, fitting))
