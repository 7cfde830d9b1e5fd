"""Protocols that are each wrong in one place, as others have them or had them. A trial must find that out."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaException, TopicPartition
from millstream.connectors.kafka_committer import KafkaCommitter
from millstream.connectors.kafka_producers import Producers
from millstream.connectors.kafka_progress import Progress, Record
from millstream.connectors.outbox_marker import Marker, Publisher

from kafka_model.clients import ModelConsumer
from kafka_model.trial import Mutation


class MarkerBeforeFence(Producers[Any]):
    """Reads the marker, and only then ends what others have begun."""

    def _ready(self) -> tuple[Any, Any]:
        found = self._look()
        return self._fenced(), found


class NoFence(Producers[Any]):
    """Each producer has an id of its own, so that none ends the transaction of another."""

    def _fenced(self) -> Any:
        self._settings["transactional.id"] = uuid.uuid4().hex
        return super()._fenced()


class OneProducer(Producers[Any]):
    """Goes on with the same producer, whatever has become of its last transaction, as long as it can be used."""

    _kept: Any = None

    def take(self) -> tuple[Any, Any]:
        producer = self._kept
        try:
            if producer is None:
                producer = self._fenced()
            elif producer.state == "committing":
                producer.commit_transaction(self._seconds)
            elif producer.state == "begun":
                producer.abort_transaction(self._seconds)
        except KafkaException:
            self._kept = None
            raise
        self._kept = producer
        return producer, self._look()

    def prepare(self, used: Any) -> None:
        """There is one already."""


class NextWithoutTheLast(KafkaCommitter):
    """Tries once, and goes on to the next epoch without knowing what has become of the last."""

    def _persistently(self, attempt: Callable[[], Any]) -> Any:
        if attempt == self._register:
            return super()._persistently(attempt)
        try:
            return attempt()
        except (KafkaException, BufferError):
            return True


def _any_later(
    self: Publisher, marker: Marker | None, epoch: int, after: int, digest: str, *, registered: bool
) -> bool:
    """As ``Publisher.must_publish``, without the rule that epochs follow each other."""
    return marker is None or marker.epoch < epoch


def _any_gap(self: Publisher, marker: Marker | None, epoch: int, after: int, digest: str, *, registered: bool) -> bool:
    """As ``Publisher.must_publish``, but another copy of the store may have published what this one does not know."""
    if marker is not None and after < marker.epoch < epoch:
        after = marker.epoch
    return _must_publish(self, marker, epoch, after, digest, registered=registered)


_must_publish: Final = Publisher.must_publish


def _any_digest(self: Publisher, marker: Marker, epoch: int, digest: str) -> None:
    """As ``Publisher.check_same``: what is there of an epoch is taken for what the checkpoint has of it."""


def _first_end(self: Progress, consumer: Any) -> int:
    """As ``Progress._end``: the first end is taken for the last, also before a transaction that is not decided."""
    return 0


def _uncommitted(self: ModelConsumer) -> Any:
    """As ``ModelConsumer._fetch``, with isolation.level=read_uncommitted."""
    assert self._place is not None
    partition, start = self.cluster.partition(self._place), self._at
    return self.call("fetch", lambda: ([e for e in partition.entries if e.offset >= start],) + 2 * (partition.end,))


class MarkerOfGroup(Progress):
    """Keeps the marker in a consumer group's offset."""

    def make(self) -> None:
        """It needs no topic."""

    def _records(self) -> dict[bytes, Record]:
        consumer: Any = self.brokers.consumer({})
        text = consumer.committed_metadata(self.topic, 30.0)
        return {} if text is None else {self.key: msgspec.json.decode(text, type=Record)}

    def write(self, producer: Any, record: Record) -> None:
        offset = TopicPartition(self.target, 0, 0, msgspec.json.encode(record).decode())
        producer.send_offsets_to_transaction([offset], self.topic, 30.0)


_CONNECTORS: Final = "millstream.connectors."

MUTATIONS: Final = {
    "marker read before the fence": Mutation({f"{_CONNECTORS}kafka_committer.Producers": MarkerBeforeFence}),
    "no fence": Mutation({f"{_CONNECTORS}kafka_committer.Producers": NoFence}),
    "producer reused": Mutation({f"{_CONNECTORS}kafka_committer.Producers": OneProducer}),
    "published before the checkpoint": Mutation(published_first=True),
    "no sequence": Mutation(
        {
            f"{_CONNECTORS}kafka_sink.KafkaCommitter": NextWithoutTheLast,
            f"{_CONNECTORS}outbox_marker.Publisher.must_publish": _any_later,
        }
    ),
    "marker read before it is committed": Mutation({"kafka_model.clients.ModelConsumer._fetch": _uncommitted}),
    "marker not read to the end": Mutation({f"{_CONNECTORS}kafka_progress.Progress._end": _first_end}),
    "a gap let through": Mutation({f"{_CONNECTORS}outbox_marker.Publisher.must_publish": _any_gap}),
    "other messages let through": Mutation({f"{_CONNECTORS}outbox_marker.Publisher.check_same": _any_digest}),
    "marker in a group's offset": Mutation({f"{_CONNECTORS}kafka_sink.Progress": MarkerOfGroup}),
}
