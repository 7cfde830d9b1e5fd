"""Transactional producers, each for one transaction, made before they are needed, with what there is once they are."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from millstream.connectors.kafka_connection import Brokers, code_of, driver
from millstream.engine.failpoints import hit

if TYPE_CHECKING:
    from confluent_kafka import Producer


Found = TypeVar("Found")

_ASK_AGAIN_SECONDS: Final = 0.02
_ASK_AGAIN_AT_MOST: Final = 0.5


class Producers(Generic[Found]):
    """Producers with one transactional id. Each fences those before it, and only then one looks what they have written.

    It does no harm that both are done long before a producer is used. Of what is written under this transactional id,
    those before it can change nothing any more, and whoever comes after it has to fence it first: so as long as its
    transaction can be committed, what was found is what there is. It fences when it has its epoch, so the one after it
    may be connected meanwhile, but no more.

    Args:
        topic: any that is there.
        seconds: how long one may take.
        look: what is done when a producer has fenced those before it; never twice at a time.
    """

    def __init__(
        self, brokers: Brokers, settings: Mapping[str, Any], topic: str, seconds: float, look: Callable[[], Found]
    ) -> None:
        self._brokers = brokers
        self._settings = dict(settings)
        self._topic = topic
        self._seconds = seconds
        self._look = look
        self._next: Future[tuple[Producer, Found]] | None = None
        self._connected: deque[Producer] = deque(maxlen=1)
        self._over = False

    def take(self) -> tuple[Producer, Found]:
        """Return a producer nobody has used, and what was found when the transactions before it were decided.

        Raises:
            KafkaException: the brokers are away or refuse.
        """
        future, self._next = self._next, None
        return self._ready() if future is None else future.result()

    def prepare(self, used: Producer) -> None:
        """Begin to make the next one, which takes a while, and let go of one whose transaction is over."""
        future: Future[tuple[Producer, Found]] = Future()
        over = [used]

        def make() -> None:
            try:
                future.set_result(self._ready())
            except BaseException as error:
                future.set_exception(error)
            else:
                self._connect_next()
            over.clear()  # its threads end here, for which nobody need wait

        self._next = future
        threading.Thread(target=make, name="millstream-kafka-producer", daemon=True).start()

    def close(self) -> None:
        """Let go of the next ones, also of one that is being made."""
        self._over = True
        self._next = None
        self._connected.clear()

    def _ready(self) -> tuple[Producer, Found]:
        producer = self._fenced()
        return producer, self._look()

    def _fenced(self) -> Producer:
        producer = self._connected.pop() if self._connected else self._connect()
        self._get_epoch(producer)
        hit("kafka.fenced")
        return producer

    def _connect_next(self) -> None:
        # What fails is tried again, and complained of, when it is needed.
        with suppress(Exception):
            self._connected.append(self._connect())
        if self._over:
            self._connected.clear()

    def _connect(self) -> Producer:
        producer = self._brokers.producer(self._settings)
        # Before it has a connection it would ask for its coordinator again only after half a second.
        producer.list_topics(self._topic, self._seconds)
        return producer

    def _get_epoch(self, producer: Producer) -> None:
        """Call ``init_transactions``, which ends what those before it have begun.

        While the brokers still write down the end of the last transaction they ask to come again, which the client
        would do after half a second; called again, it does so at once.
        """
        until, pause = time.monotonic() + self._seconds, _ASK_AGAIN_SECONDS
        while True:
            left = until - time.monotonic()
            try:
                producer.init_transactions(max(0.0, min(pause, left)))
            except driver().KafkaException as error:
                # One that was given up too early might still get an epoch, and fence its successor.
                if not _may_still_come(error) or pause >= left:
                    raise
                pause = min(2 * pause, _ASK_AGAIN_AT_MOST)
            else:
                return


def _may_still_come(error: BaseException) -> bool:
    """Whether the client goes on asking for an epoch; it then says what it was told last."""
    return code_of(error) == "_TIMED_OUT" or bool(error.args[0].retriable())
