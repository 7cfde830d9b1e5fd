"""The data path of the Kafka sink: messages into the checkpoint, or straight to the brokers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from millstream.connectors.kafka_connection import Brokers, blame_brokers, driver
from millstream.connectors.kafka_messages import Messages
from millstream.connectors.kafka_sending import send, timed_out
from millstream.connectors.outbox import OutboxWriter, Sent
from millstream.engine.sink import Committable, SinkContext, SinkWriter

if TYPE_CHECKING:
    from confluent_kafka import Producer


class OutboxMessages(OutboxWriter):
    """Keeps the messages of an epoch for the checkpoint."""

    def __init__(
        self,
        name: str,
        schema: pa.Schema,
        keys: Sequence[str],
        context: SinkContext,
        sent: Sent,
        messages: Messages,
    ) -> None:
        super().__init__(name, schema, keys, context, sent, lambda rows: rows)
        self._messages = messages

    def write(self, batch: pa.RecordBatch) -> None:
        """Keep a batch. Raises DataError if a row of it makes no message."""
        super().write(self._messages.of(batch))


class SentAtOnce(SinkWriter):
    """Sends messages as they come; the brokers have them before their checkpoint is committed."""

    def __init__(
        self, name: str, brokers: Brokers, topic: str, messages: Messages, most_bytes: int, patience: float
    ) -> None:
        self._name = name
        self._brokers = brokers
        self._topic = topic
        self._messages = messages
        self._patience = patience
        self._failed: Any = None
        milliseconds = max(1000, int(patience * 1000))
        self._producer: Producer = brokers.producer(
            {
                "message.max.bytes": most_bytes,
                "delivery.timeout.ms": milliseconds,
                "on_delivery": self._hear,
            }
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Send a batch.

        Raises:
            DataError: a row makes no message.
            ExternalError: the brokers take no more.
            JobError: they refuse one.
        """
        messages = pa.Table.from_batches([self._messages.of(batch)])
        with self._blame():
            self._check()
            send(self._producer, self._topic, messages, self._patience)

    def prepare(self, epoch: int, final: bool) -> Sequence[Committable]:
        """Wait until the brokers have everything."""
        del epoch, final
        with self._blame():
            if self._producer.flush(self._patience + 1):
                raise timed_out("sending messages")
            self._check()
        return []

    def _hear(self, error: Any, message: Any) -> None:
        del message
        self._failed = self._failed or error

    def _check(self) -> None:
        if self._failed is not None:
            raise driver().KafkaException(self._failed)

    def _blame(self) -> Any:
        return blame_brokers(self._name, f"sending to topic {self._topic!r}", self._brokers)
