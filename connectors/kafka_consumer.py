"""One Kafka consumer for all partitions that a process reads of a source, and a queue for each of them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from millstream.connectors.kafka_connection import Brokers, blame_brokers, of_no_concern
from millstream.engine.errors import ExternalError

_MESSAGES_AT_ONCE: Final = 10_000
_PAUSE: Final = 0.005
"""Seconds for which nothing is fetched after less than so many came: few large batches cost less than many small."""
_MOST_QUEUED: Final = 8 << 20
"""Bytes of values that wait for a reader before its partition is no longer fetched."""
_ERROR: Final = Message.error
_PARTITION: Final = Message.partition
_TOPIC: Final = Message.topic


class PartitionQueue:
    """What has been fetched of one partition and not been read.

    Attributes:
        next: the offset after the last message put in, or where it begins.
        parked: it is not fetched, until the queue is empty.
    """

    def __init__(self, topic: str, partition: int, start: int) -> None:
        self.topic = topic
        self.partition = partition
        self.next = start
        self.parked = False
        self._lock = threading.Lock()
        self._runs: deque[Sequence[Message]] = deque()
        self._bytes = 0
        self._reached: int | None = None
        self._error: KafkaError | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Topic and partition."""
        return self.topic, self.partition

    @property
    def full(self) -> bool:
        """Whether enough waits."""
        return self._bytes > _MOST_QUEUED

    def put(self, messages: Sequence[Message]) -> None:
        """Add messages, in order. Those that have been in it already are left out."""
        messages = from_offset(messages, self.next)
        if messages:
            with self._lock:
                self._runs.append(messages)
                self._bytes += sum(map(len, messages))
                self.next = offset_of(messages[-1]) + 1

    def take(self, most: int) -> Sequence[Message]:
        """Return the next messages, at most so many, and forget them; none if nothing waits."""
        taken: Sequence[Message] = ()
        with self._lock:
            while self._runs and len(taken) < most:
                run = self._runs.popleft()
                room = most - len(taken)
                if len(run) > room:
                    self._runs.appendleft(run[room:])
                    run = run[:room]
                self._bytes -= sum(map(len, run))
                taken = [*taken, *run] if taken else run
        return taken

    def put_event(self, *, reached: int | None = None, error: KafkaError | None = None) -> None:
        """Note that all there is below an offset has been put in, or why nothing more will come."""
        with self._lock:
            self._reached, self._error = reached, error

    def event(self) -> tuple[int | None, KafkaError | None]:
        """Return what has been noted, if no message that came before it waits."""
        with self._lock:
            return (None, None) if self._runs else (self._reached, self._error)


class SharedConsumer:
    """Fetches for all readers of a source in this process. Any thread may call.

    The reader that has nothing left fetches, for itself and the others; no thread of our own is needed, since the
    client fetches ahead in its own. A partition whose reader does not keep up is given up for a while, so that it
    holds up no other one, and assigned again at the offset where it stopped.

    Args:
        brokers: where to fetch from. A consumer is made when the first partition is opened, and again after the last
            was closed.
        settings: of the consumer, besides.
        source: what errors call it.
    """

    def __init__(self, brokers: Brokers, settings: Mapping[str, Any], source: str) -> None:
        self._brokers = brokers
        self._settings = settings
        self._source = source
        self._lock = threading.Lock()
        self._consumer: Consumer | None = None
        self._queues: dict[tuple[str, int], PartitionQueue] = {}
        self._topics: dict[str, int] = {}
        self._fetch_at = 0.0

    @property
    def idle(self) -> bool:
        """Whether no partition is open."""
        return not self._queues

    def open(self, topic: str, partition: int, start: int) -> PartitionQueue:
        """Fetch a partition from an offset."""
        queue = PartitionQueue(topic, partition, start)
        with self._lock, self._blaming():
            if self._consumer is None:
                self._consumer = self._brokers.consumer(self._settings)
            old = self._queues.pop(queue.key, None)
            if old is not None and not old.parked:
                self._consumer.incremental_unassign([TopicPartition(*old.key)])
            self._topics.setdefault(topic, len(self._topics))
            self._queues[queue.key] = queue
            self._assign(self._consumer, queue)
        return queue

    def close(self, queue: PartitionQueue) -> None:
        """Fetch it no longer."""
        with self._lock, self._blaming():
            if self._queues.get(queue.key) is not queue or self._consumer is None:
                return
            del self._queues[queue.key]
            if not self._queues:
                self._consumer.close()
                self._consumer = None
            elif not queue.parked:
                self._consumer.incremental_unassign([TopicPartition(*queue.key)])

    def fill(self, queue: PartitionQueue) -> None:
        """Fetch what is there now, without waiting, unless another reader is at it.

        Raises:
            ExternalError: the client has given up.
        """
        if time.monotonic() < self._fetch_at or not self._lock.acquire(blocking=False):
            return
        try:
            assert self._consumer is not None, f"{queue.key} is read after it was closed"
            with self._blaming():
                if queue.parked:
                    queue.parked = False
                    self._assign(self._consumer, queue)
                messages = self._consumer.consume(_MESSAGES_AT_ONCE, 0)
            self._fetch_at = time.monotonic() + (_PAUSE if len(messages) < _MESSAGES_AT_ONCE else 0)
            if messages:
                self._distribute(messages)
                self._park(self._consumer, queue)
        finally:
            self._lock.release()

    def _blaming(self) -> AbstractContextManager[None]:
        return blame_brokers(f"Kafka source {self._source!r}", "fetching", self._brokers)

    def _assign(self, consumer: Consumer, queue: PartitionQueue) -> None:
        consumer.incremental_assign([TopicPartition(queue.topic, queue.partition, queue.next)])

    def _park(self, consumer: Consumer, asking: PartitionQueue) -> None:
        full = [queue for queue in self._queues.values() if queue.full and not queue.parked and queue is not asking]
        if full:
            consumer.incremental_unassign([TopicPartition(*queue.key) for queue in full])
            for queue in full:
                queue.parked = True

    def _distribute(self, messages: Sequence[Message]) -> None:
        """Put messages into the queues of their partitions."""
        if not any(map(_ERROR, messages)):
            self._distribute_good(messages)
            return
        start = 0
        for place, error in enumerate(map(_ERROR, messages)):
            if error is not None:
                self._distribute_good(messages[start:place])
                self._note(error, messages[place])
                start = place + 1
        self._distribute_good(messages[start:])

    def _distribute_good(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        numbers = self._numbers(messages)
        cuts = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(messages)]
        for start, end in pairwise(cuts):
            queue = self._queues.get(_place(messages[start]))
            if queue is not None:
                queue.put(messages[start:end] if end - start < len(messages) else messages)

    def _numbers(self, messages: Sequence[Message]) -> npt.NDArray[np.int64]:
        """Return a number for each message that tells its partition from any other."""
        numbers = np.fromiter(map(_PARTITION, messages), np.int64, len(messages))
        if len(self._topics) > 1:
            topics = map(self._topics.__getitem__, map(_TOPIC, messages))
            numbers += np.fromiter(topics, np.int64, len(messages)) << 32
        return numbers

    def _note(self, error: KafkaError, message: Message) -> None:
        """Take an event that came instead of a message."""
        topic, partition = _place(message)
        queue = self._queues.get((topic, partition))
        if error.code() == KafkaError._PARTITION_EOF:
            if queue is not None:
                queue.put_event(reached=offset_of(message))
        elif of_no_concern(error) or (error.retriable() and not error.fatal()):
            return
        elif queue is not None:
            queue.put_event(error=error)
        elif partition < 0:
            raise ExternalError(f"Kafka source {self._source!r}: {error.str()}")


def _place(message: Message) -> tuple[str, int]:
    topic, partition = message.topic(), message.partition()
    return topic or "", -1 if partition is None else partition


def offset_of(message: Message) -> int:
    """Return the offset of a message, which has one."""
    offset: int | None = message.offset()
    assert offset is not None
    return offset


def from_offset(messages: Sequence[Message], least: int) -> Sequence[Message]:
    """Return those at this offset or behind it, of messages in order."""
    if not messages or offset_of(messages[0]) >= least:
        return messages
    return [message for message in messages if offset_of(message) >= least]
