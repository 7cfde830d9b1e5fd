"""Transactional producers, each for one transaction, made before they are needed."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from millstream.connectors.kafka_connection import Brokers
from millstream.engine.failpoints import hit

if TYPE_CHECKING:
    from confluent_kafka import Producer


class Producers:
    """Producers with one transactional id. Each fences those before it.

    It does no harm that one is made long before it is used: whoever fences it later makes its transaction fail, and
    what is read once it is there cannot be changed by those before it.

    Args:
        topic: any that is there.
        seconds: how long one may take.
    """

    def __init__(self, brokers: Brokers, settings: Mapping[str, Any], topic: str, seconds: float) -> None:
        self._brokers = brokers
        self._settings = dict(settings)
        self._topic = topic
        self._seconds = seconds
        self._next: Future[Producer] | None = None

    def take(self) -> Producer:
        """Return a producer nobody has used, when the transactions of those before it are decided.

        Raises:
            KafkaException: the brokers are away or refuse.
        """
        future, self._next = self._next, None
        return self._fenced() if future is None else future.result()

    def prepare(self) -> None:
        """Begin to make the next one, which takes a while."""
        future: Future[Producer] = Future()

        def make() -> None:
            try:
                future.set_result(self._fenced())
            except BaseException as error:
                future.set_exception(error)

        self._next = future
        threading.Thread(target=make, name="millstream-kafka-producer", daemon=True).start()

    def close(self) -> None:
        """Let go of the next one."""
        self._next = None

    def _fenced(self) -> Producer:
        producer = self._brokers.producer(self._settings)
        # Before it has a connection it would ask for its coordinator again only after half a second.
        producer.list_topics(self._topic, self._seconds)
        producer.init_transactions(self._seconds)
        hit("kafka.fenced")
        return producer
