"""Hands messages over to a producer."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from millstream.connectors.kafka_connection import driver
from millstream.connectors.kafka_messages import HEADER, KEY, PARTITION, TIME, VALUE
from millstream.engine.changelog import WEIGHT

if TYPE_CHECKING:
    from confluent_kafka import Producer

_AT_A_TIME: Final = 10_000


def send(producer: Producer, topic: str, messages: pa.Table, seconds: float) -> None:
    """Hand messages over, waiting while the producer's queue is full. They have arrived once it is flushed.

    Of a changelog a row that is taken back is sent without a value: a tombstone.

    Args:
        seconds: how long the queue may stay full.

    Raises:
        BufferError: it stayed full.
        KafkaException: the client refuses a message.
    """
    produce = producer.produce
    for batch in messages.to_batches(_AT_A_TIME):
        for arguments, more in _arguments(batch):
            try:
                produce(topic, *arguments, **more)
            except BufferError:
                _wait_for_room(producer, seconds)
                produce(topic, *arguments, **more)
        producer.poll(0)


def _wait_for_room(producer: Producer, seconds: float) -> None:
    """Wait until half of the queue has gone; raises BufferError."""
    until, most = time.monotonic() + seconds, len(producer) // 2
    while len(producer) > most:
        if time.monotonic() > until:
            raise BufferError(f"the brokers have taken no messages for {seconds:g} s")
        producer.poll(0.05)


def _arguments(messages: pa.RecordBatch) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return what ``Producer.produce`` takes after the topic: value, key and partition; and more by name."""
    names = messages.schema.names
    values = messages[VALUE]
    if WEIGHT in names:
        values = pc.if_else(pc.greater(messages[WEIGHT], 0), values, None)
    plain = zip(values.to_pylist(), messages[KEY].to_pylist(), messages[PARTITION].to_pylist(), strict=True)
    more: dict[str, list[Any]] = {}
    if TIME in names:
        more["timestamp"] = pc.fill_null(messages[TIME], 0).to_pylist()
    headers = [name for name in names if name.startswith(HEADER)]
    if headers:
        said = [name.removeprefix(HEADER) for name in headers]
        rows = zip(*(messages[name].to_pylist() for name in headers), strict=True)
        more["headers"] = [list(zip(said, row, strict=True)) for row in rows]
    if not more:
        return zip(plain, itertools.repeat({}))
    return zip(plain, (dict(zip(more, row, strict=True)) for row in zip(*more.values(), strict=True)), strict=True)


def timed_out(doing: str) -> Exception:
    """Return the client's own error for what took too long."""
    kafka = driver()
    error: Exception = kafka.KafkaException(kafka.KafkaError(kafka.KafkaError._TIMED_OUT, doing))
    return error
