"""Producer, consumer and admin as far as the connector uses them, behaving as librdkafka does on a bad network.

A request may be lost, arrive late (after the client has given up, or sent it again, or died), be answered in vain, or
arrive twice. The client asks again until its time is up, and then says ``_TIMED_OUT``: it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import ConfigResource, NewTopic
from millstream.connectors.kafka_connection import Brokers

from kafka_model.broker import OK, Cluster, Place
from kafka_model.partition import Entry, Message

_FENCED: Final = (KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.INVALID_PRODUCER_ID_MAPPING)
_UNTIL_GIVEN_UP: Final = (0.05, 0.05, 0.05, 1.0, 35.0)
_LATE: Final = (0.02, 0.1, 0.5, 2.0, 10.0, 40.0, 100.0)


@dataclass(frozen=True, repr=False)
class ModelBrokers(Brokers):
    """Hands out clients of a model."""

    cluster: Any = None

    def producer(self, ours: Mapping[str, Any]) -> Any:
        return ModelProducer(self.cluster, ours)

    def consumer(self, ours: Mapping[str, Any]) -> Any:
        return ModelConsumer(self.cluster)

    def admin(self) -> Any:
        return ModelAdmin(self.cluster)


class Lost(Exception):
    """No answer has come."""


def failure(code: int, text: str) -> KafkaException:
    return KafkaException(KafkaError(code, text))


class Client:
    """A connection."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.world = cluster.world

    def call(self, kind: str, apply: Callable[[], Any], risk: float = 1.0) -> Any:
        """Send one request and return its answer; raises Lost."""
        world, cluster = self.world, self.cluster
        world.step(kind)
        if cluster.down or world.chance("lost", risk):
            self._give_up()
        if world.chance("late", risk):
            self._arrive_later(kind, apply)
            self._give_up()
        world.sleep(world.draw.uniform(0.0002, 0.002))
        if cluster.down:
            self._give_up()
        answer = apply()
        if world.chance("repeated", risk):
            self._arrive_later(kind, apply)
        if world.chance("unanswered", risk):
            self._give_up()
        world.sleep(world.draw.uniform(0.0002, 0.002))
        world.step(f"{kind} answered {answer}" if isinstance(answer, int) else f"{kind} answered")
        return answer

    def _give_up(self) -> None:
        self.world.sleep(self.world.draw.choice(_UNTIL_GIVEN_UP))
        raise Lost

    def _arrive_later(self, kind: str, apply: Callable[[], Any]) -> None:
        def arrive() -> None:
            if not self.cluster.down:
                answer = apply()
                self.world.note(f"late {kind}" + (f": {answer}" if isinstance(answer, int) else ""))

        self.world.at(self.world.draw.choice(_LATE) * self.world.draw.uniform(0.5, 1.5), arrive)

    def until_answered(self, kind: str, apply: Callable[[], Any], seconds: float, risk: float = 1.0) -> Any:
        """Ask until there is an answer other than CONCURRENT_TRANSACTIONS; raises KafkaException."""
        deadline, pause = self.world.now + seconds, 0.02
        while True:
            try:
                answer = self.call(kind, apply, risk)
            except Lost:
                pass
            else:
                if (answer[0] if isinstance(answer, tuple) else answer) != KafkaError.CONCURRENT_TRANSACTIONS:
                    return answer
            if self.world.now + pause >= deadline:
                raise failure(KafkaError._TIMED_OUT, kind)
            self.world.sleep(pause)
            pause = min(1.0, 2 * pause)

    def list_topics(self, topic: str | None = None, timeout: float = 30.0) -> Any:
        """Metadata of one topic, or of all."""

        def look() -> Any:
            topics = self.cluster.topics
            wanted = topics if topic is None else [topic]
            return SimpleNamespace(topics={name: _described(name, topics) for name in wanted})

        return self.until_answered("metadata", look, timeout)


def _described(name: str, topics: Mapping[str, Any]) -> Any:
    if name not in topics:
        return SimpleNamespace(error=KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART), partitions={})
    return SimpleNamespace(error=None, partitions=dict(enumerate(topics[name].partitions)))


class ModelProducer(Client):
    """A transactional producer; it sends when it is polled, flushed or asked to commit."""

    def __init__(self, cluster: Cluster, settings: Mapping[str, Any]) -> None:
        super().__init__(cluster)
        self._id = str(settings["transactional.id"])
        self._timeout = float(settings.get("transaction.timeout.ms", 60_000)) / 1000
        self._producer = self._epoch = -1
        self.state = "new"
        self._error: KafkaError | None = None
        self._queue: dict[Place, list[Message]] = {}
        self._sending: tuple[Place, list[Message]] | None = None
        self._sequences: dict[Place, int] = {}
        self._places: set[Place] = set()

    def __len__(self) -> int:
        waiting = sum(len(messages) for messages in self._queue.values())
        return waiting + (len(self._sending[1]) if self._sending else 0)

    @property
    def _me(self) -> tuple[str, int, int]:
        return self._id, self._producer, self._epoch

    def init_transactions(self, timeout: float) -> None:
        asked = self._id, self._timeout
        code, producer, epoch = self.until_answered("init", lambda: self.cluster.init_producer(*asked), timeout)
        assert code == OK
        self._producer, self._epoch, self.state = producer, epoch, "ready"

    def begin_transaction(self) -> None:
        self._check()
        if self.state != "ready":
            raise failure(KafkaError._STATE, f"begin_transaction() while {self.state}")
        self.state = "begun"

    def produce(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        partition: int = 0,
    ) -> None:
        self.world.step("produce")
        if self.state != "begun":
            raise failure(KafkaError._STATE, f"produce() while {self.state}")
        if self._error is not None:
            raise failure(KafkaError._STATE, "produce() in a transaction that has failed")
        if len(self) > 1 and self.world.chance("queue full"):
            raise BufferError("the queue is full")
        self._queue.setdefault((topic, partition), []).append((key, value))

    def poll(self, timeout: float = 0.0) -> int:
        """Let a part of the queue go."""
        if timeout:
            self._send_some(self.world.now + timeout)
        return 0

    def flush(self, timeout: float) -> int:
        """Let the queue go; return how much is left of it."""
        deadline = self.world.now + timeout
        while len(self) and self._error is None and self.world.now < deadline:
            self._send_some(deadline)
        return len(self)

    def commit_transaction(self, timeout: float) -> None:
        self._check()
        if self.flush(timeout):
            raise failure(KafkaError._TIMED_OUT, "commit_transaction")
        self._check()
        self.state = "committing"
        self._end(timeout, commit=True)

    def abort_transaction(self, timeout: float) -> None:
        self._queue, self._sending = {}, None
        self._error = None if self._error is None or not self._error.fatal() else self._error
        self._check()
        self._end(timeout, commit=False)

    def send_offsets_to_transaction(self, offsets: Sequence[TopicPartition], group: str, timeout: float) -> None:
        """Add a group's one offset to the transaction; here a group is its name."""
        self._check()
        [offset] = offsets
        added = self.until_answered(
            "offsets", lambda: self.cluster.add_offsets(*self._me, group, offset.metadata), timeout
        )
        self._places.add(("offsets of", 0))
        if added != OK:
            self._fail(added)
            self._check()

    # -- sending ---------------------------------------------------------------------------------------------------

    def _send_some(self, deadline: float) -> None:
        if self._sending is None:
            if not self._queue:
                return
            place = self.world.draw.choice(list(self._queue))
            waiting = self._queue[place]
            count = self.world.draw.randint(1, len(waiting))
            self._sending = place, waiting[:count]
            self._queue[place] = waiting[count:]
            if not self._queue[place]:
                del self._queue[place]
        place, batch = self._sending
        if self._ask("add", lambda: self.cluster.add_partitions(*self._me, [place]), deadline, place):
            sequence = self._sequences.get(place, 0)
            me = self._me
            if self._ask("produce", lambda: self.cluster.produce(*me, place, sequence, batch), deadline, None):
                self._sequences[place] = sequence + len(batch)
                self._sending = None

    def _ask(self, kind: str, apply: Callable[[], int], deadline: float, place: Place | None) -> bool:
        """Whether it is done; if not, it is to be tried again, or the transaction has failed."""
        if place in self._places:
            return True
        try:
            code = self.until_answered(f"{kind} {place or ''}", apply, max(0.0, deadline - self.world.now))
        except KafkaException:
            return False
        if code != OK:
            self._fail(code)
            return False
        if place is not None:
            self._places.add(place)
        return True

    def _end(self, timeout: float, commit: bool) -> None:
        if self._places:
            me = self._me
            kind = "commit" if commit else "abort"
            code = self.until_answered(kind, lambda: self.cluster.end(*me, commit), timeout, risk=4.0)
            if code != OK:
                self._fail(code)
                self._check()
        self._places = set()
        self.state = "ready"

    def _fail(self, code: int) -> None:
        fenced = code in _FENCED
        self._error = KafkaError(
            KafkaError._FENCED if fenced else code, "in a transaction", fatal=fenced, txn_requires_abort=not fenced
        )
        self._queue, self._sending = {}, None

    def _check(self) -> None:
        if self._error is not None:
            raise KafkaException(self._error)


class _Event:
    """A message, or that the end of the partition is reached."""

    def __init__(self, offset: int, entry: Entry | None) -> None:
        self._offset = offset
        self._entry = entry

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._entry.key if self._entry else None

    def value(self) -> bytes | None:
        return self._entry.value if self._entry else None

    def error(self) -> KafkaError | None:
        return None if self._entry else KafkaError(KafkaError._PARTITION_EOF)


class ModelConsumer(Client):
    """Reads what is committed of one partition."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self._place: Place | None = None
        self._at = self._high = 0
        self._told_end = -1
        self._fetched: list[Entry] = []

    def assign(self, wanted: Sequence[TopicPartition]) -> None:
        [one] = wanted
        self._place, self._at = (one.topic, one.partition), max(0, one.offset)
        self._told_end, self._fetched = -1, []

    def unassign(self) -> None:
        self._place = None

    def close(self) -> None:
        self._place = None

    def poll(self, timeout: float) -> _Event | None:
        if not self._fetched:
            try:
                self._fetched, stable, self._high = self._fetch()
            except Lost:
                self.world.sleep(timeout)
                return None
            if not self._fetched:
                self._at = max(self._at, stable)
                if self._told_end != self._at:
                    self._told_end = self._at
                    return _Event(self._at, None)
                self.world.sleep(timeout)
                return None
        entry = self._fetched.pop(0)
        self._at = entry.offset + 1
        return _Event(entry.offset, entry)

    def _fetch(self) -> Any:
        """Return what is committed from here on, the last stable offset, and the high watermark."""
        assert self._place is not None
        partition, start = self.cluster.partition(self._place), self._at
        return self.call("fetch", lambda: (partition.committed(start), partition.stable, partition.end))

    def get_watermark_offsets(self, partition: TopicPartition, cached: bool) -> tuple[int, int]:
        return 0, self._high

    def committed_metadata(self, group: str, timeout: float) -> str | None:
        """Return what belongs to a group's offset, when it is stable."""
        deadline = self.world.now + timeout
        while True:
            error, metadata = self.until_answered("group", lambda: self.cluster.group_offset(group), timeout)
            if error == OK:
                return str(metadata) if metadata is not None else None
            if self.world.now > deadline:
                raise failure(error, "committed")
            self.world.sleep(0.1)


class _Answered:
    """A future of the admin client, answered already."""

    def __init__(self, value: Any = None, error: KafkaException | None = None) -> None:
        self._value, self._error = value, error

    def result(self, timeout: float) -> Any:
        if self._error is not None:
            raise self._error
        return self._value


class ModelAdmin(Client):
    """Makes topics and tells their settings."""

    def create_topics(self, wanted: Sequence[NewTopic], request_timeout: float) -> dict[str, _Answered]:
        [topic] = wanted
        settings = dict(topic.config)
        made = self.until_answered(
            "create topic",
            lambda: (OK, self.cluster.create(topic.topic, topic.num_partitions, settings)),
            request_timeout,
        )
        exists = None if made[1] else failure(KafkaError.TOPIC_ALREADY_EXISTS, topic.topic)
        return {topic.topic: _Answered(error=exists)}

    def describe_configs(self, wanted: Sequence[ConfigResource], request_timeout: float) -> dict[Any, _Answered]:
        [resource] = wanted
        topics = self.cluster.topics
        found = self.until_answered("settings", lambda: (OK, topics[resource.name].settings), request_timeout)[1]
        return {resource: _Answered({name: SimpleNamespace(value=value) for name, value in found.items()})}
