"""The topic in which a Kafka cluster keeps how far each sink of a job has come.

It is compacted and has one partition. A record of it is written in the same transaction as the messages it counts.
Group offsets would do for that, too, but Kafka drops those of a group that has been away for a week.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from hashlib import blake2s
from typing import TYPE_CHECKING, Any, Final

import msgspec
from millstream.connectors.kafka_connection import Brokers, code_of, driver, of_no_concern
from millstream.connectors.kafka_sending import timed_out
from millstream.connectors.outbox_marker import Marker, Publisher
from millstream.engine.errors import JobError
from millstream.engine.logs import log

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Producer

_SETTINGS: Final = {"cleanup.policy": "compact", "segment.bytes": str(1 << 20), "min.cleanable.dirty.ratio": "0.1"}
_SECONDS: Final = 30.0
_LONGEST_NAME: Final = 249


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the topic says of one sink of one job.

    Attributes:
        target: the topic it writes to.
        epoch: the last one published whole; 0: none yet.
        digest: of the messages of that epoch, or of the one that is published in part.
        part: the epoch of which the first ``messages`` are published, and more to come; 0: none.
        messages: how many messages of ``epoch``, or of ``part``.
    """

    job: str
    job_id: str
    sink_id: str
    target: str
    epoch: int
    generation: int
    owner: str
    digest: str = ""
    part: int = 0
    messages: int = 0

    @property
    def marker(self) -> Marker:
        """What there is to decide by."""
        return Marker(self.epoch, self.generation, self.owner, "" if self.part else self.digest)

    @property
    def furthest(self) -> Marker:
        """As ``marker``, with an epoch of which a part is published."""
        return Marker(max(self.epoch, self.part), self.generation, self.owner, self.digest)


def progress_name(job: str, target: str) -> str:
    """Name the progress topic of a job for the topic it writes to.

    >>> progress_name("shop", "orders")
    'millstream.shop.orders'
    """
    plain = f"millstream.{job}.{target}"
    name = re.sub(r"[^A-Za-z0-9._-]", "_", plain)
    if name == plain and len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 17]}-{blake2s(plain.encode(), digest_size=8).hexdigest()}"


@dataclass
class Progress:
    """One start of a job, towards its progress topic."""

    brokers: Brokers
    publisher: Publisher
    topic: str
    target: str
    again: bool
    _from: int | None = None
    _consumer: Consumer | None = None
    _reading: threading.Lock = field(default_factory=threading.Lock)
    _over: bool = False

    def make(self) -> None:
        """Make the topic if it is not there. Raises JobError if the one that is there is not compacted."""
        kafka = driver()
        admin = self.brokers.admin()
        found = admin.list_topics(timeout=_SECONDS).topics.get(self.topic)
        if found is not None and found.error is None:
            if len(found.partitions) != 1:
                raise JobError(
                    f"{self._name}: topic {self.topic!r}, for its progress, has {len(found.partitions)} partitions and "
                    "must have one: pass another one as progress="
                )
            self._check_compacted(admin)
            return
        wanted = kafka.admin.NewTopic(self.topic, 1, -1, config=_SETTINGS)
        try:
            admin.create_topics([wanted], request_timeout=_SECONDS)[self.topic].result(_SECONDS + 5)
        except kafka.KafkaException as error:
            if code_of(error) != "TOPIC_ALREADY_EXISTS":
                raise
        self._wait_until_known(admin)

    def _check_compacted(self, admin: Any) -> None:
        policy = topic_settings(admin, self.topic).get("cleanup.policy", "compact")
        if policy != "compact":
            raise JobError(
                f"{self._name}: topic {self.topic!r} keeps how far the job has come, and its cleanup.policy is "
                f"{policy!r}: Kafka would forget it. Set it to 'compact', or pass another topic as progress="
            )

    def _wait_until_known(self, admin: Any) -> None:
        until = time.monotonic() + _SECONDS
        while True:
            found = admin.list_topics(self.topic, timeout=_SECONDS).topics[self.topic]
            if found.error is None and found.partitions:
                return
            if time.monotonic() > until:
                raise driver().KafkaException(found.error)
            time.sleep(0.05)

    # -- reading: only after a new producer has fenced the others, so that what is found cannot change ----------------

    def records(self) -> dict[bytes, Record]:
        """Read the topic to its end, from this sink's last record on; called by one thread at a time."""
        try:
            with self._reading:
                return self._records()
        finally:
            if self._over:
                self.close()

    def _records(self) -> dict[bytes, Record]:
        kafka = driver()
        if self._consumer is None:
            self._consumer = self.brokers.consumer({"auto.offset.reset": "earliest", "fetch.wait.max.ms": 1})
            # Before it has a connection it would ask for the partition's leader again only after half a second.
            self._consumer.list_topics(self.topic, _SECONDS)
        try:
            start = kafka.OFFSET_BEGINNING if self._from is None else self._from
            self._consumer.assign([kafka.TopicPartition(self.topic, 0, start)])
            found = self._read_to_the_end(self._consumer)
            self._consumer.unassign()
        except BaseException:
            self._let_go()
            raise
        return found

    def close(self) -> None:
        """Let go of the connection; whoever reads does it when it has."""
        self._over = True
        if self._reading.acquire(blocking=False):
            try:
                self._let_go()
            finally:
                self._reading.release()

    def _let_go(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def _read_to_the_end(self, consumer: Consumer) -> dict[bytes, Record]:
        kafka = driver()
        found: dict[bytes, Record] = {}
        until = time.monotonic() + _SECONDS
        stuck = ""
        while time.monotonic() < until:
            message = consumer.poll(1.0)
            if message is None:
                continue
            error = message.error()
            if error is None:
                record = self._decoded(message.key(), message.value())
                if record is not None:
                    found[message.key()] = record
                if message.key() == self.key:
                    self._from = message.offset()
            elif of_no_concern(error):
                continue
            elif error.code() != kafka.KafkaError._PARTITION_EOF:
                raise kafka.KafkaException(error)
            elif message.offset() >= self._end(consumer):
                return found
            else:
                stuck = (
                    f": a transaction that began at offset {message.offset()} is not over. If it stays so, the brokers "
                    "have lost sight of it: kafka-transactions.sh find-hanging"
                )
        raise timed_out(f"reading {self.topic} to its end{stuck}")

    def _end(self, consumer: Consumer) -> int:
        """The offset behind the last record; before it there may be one of another sink's open transaction."""
        return int(consumer.get_watermark_offsets(driver().TopicPartition(self.topic, 0), cached=True)[1])

    def _decoded(self, key: bytes | None, value: bytes | None) -> Record | None:
        if value is None:
            return None
        try:
            return msgspec.json.decode(value, type=Record)
        except msgspec.DecodeError as error:
            raise JobError(
                f"{self._name}: topic {self.topic!r} is to keep how far the job has come, and has a record {key!r} of "
                f"something else ({error}): pass another topic as progress="
            ) from None

    # -- writing: each within a transaction ----------------------------------------------------------------------

    def registered(self, records: dict[bytes, Record]) -> Record | None:
        """Return the record that says that this start has taken over; None: there should be one to change.

        Args:
            records: all there are.

        Raises:
            JobError: this start must not write.
        """
        record = records.get(self.key)
        self.publisher.may_start(None if record is None else record.furthest)
        context = self.publisher.context
        if record is not None:
            return msgspec.structs.replace(record, generation=context.generation, owner=self.publisher.owner)
        if context.restored:
            # If messages have been published that will be found, and must not be hidden now.
            return None
        if not self.again:
            self._check_alone(records)
        return self.record(0)

    def record(self, epoch: int, *, digest: str = "", part: int = 0, messages: int = 0) -> Record:
        """Return the record of this start at an epoch."""
        context = self.publisher.context
        return Record(
            job=context.job,
            job_id=context.job_id,
            sink_id=context.sink_id,
            target=self.target,
            epoch=epoch,
            generation=context.generation,
            owner=self.publisher.owner,
            digest=digest,
            part=part,
            messages=messages,
        )

    def write(self, producer: Producer, record: Record) -> None:
        """Add a record to a producer's transaction."""
        producer.produce(self.topic, msgspec.json.encode(record), self.key, 0)

    def _check_alone(self, records: dict[bytes, Record]) -> None:
        """Refuse a job that starts anew beside what it has written from another store."""
        context = self.publisher.context
        for record in records.values():
            same = record.job == context.job and record.target == self.target and record.job_id != context.job_id
            if same and (record.epoch or record.part):
                raise JobError(
                    f"{self._name}: job {context.job!r} has written to topic {self.target!r} before, from another "
                    f"store (up to epoch {record.epoch}), and starts anew now: it would write the same messages again. "
                    f"Go on with that store. To start over, delete the topics {self.target!r} and {self.topic!r}; to "
                    "add to what is there, pass again=True to the sink"
                )

    @property
    def key(self) -> bytes:
        """That of this sink's record."""
        context = self.publisher.context
        return f"{context.job_id}/{context.sink_id}".encode()

    @property
    def _name(self) -> str:
        return self.publisher.name


def topic_settings(admin: Any, topic: str) -> dict[str, str]:
    """Return a topic's settings; nothing if this client may not ask."""
    kafka = driver()
    resource = kafka.admin.ConfigResource(kafka.admin.ConfigResource.Type.TOPIC, topic)
    try:
        found = admin.describe_configs([resource], request_timeout=_SECONDS)[resource].result(_SECONDS + 5)
    except kafka.KafkaException as error:
        if not code_of(error).endswith("AUTHORIZATION_FAILED"):
            raise
        log.info("the settings of a Kafka topic may not be read: DescribeConfigs is not allowed", topic=topic)
        return {}
    return {name: entry.value for name, entry in found.items()}
