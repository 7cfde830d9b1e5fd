"""Topics for measuring: made, and filled with JSON of 200 bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import click
import pyarrow as pa

SCHEMA: Final = pa.schema(
    {
        "id": pa.int64(),
        "user": pa.string(),
        "item": pa.string(),
        "amount": pa.float64(),
        "price": pa.int64(),
        "at": pa.timestamp("us"),
        "shop": pa.string(),
        "comment": pa.string(),
    }
)
AT_ONCE: Final = 10_000
"""How many messages are asked for at once."""


def value(n: int) -> bytes:
    """Return the n-th message, about 200 bytes.

    >>> len(value(123_456))
    200
    """
    row = {
        "id": n,
        "user": f"user-{n % 977:06}",
        "item": f"item-{n % 5000:05}",
        "amount": n * 37 % 100_000 / 100,
        "price": n % 997,
        "at": f"2026-01-01T00:{n // 600 % 60:02}:{n % 60:02}.123456",
        "shop": "north-west-12",
        "comment": "says little",
    }
    return json.dumps(row).encode().ljust(200)


def make(brokers: str, topic: str, partitions: int) -> None:
    """Make an empty topic."""
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(30)


def fill(brokers: str, topic: str, messages: int, partitions: int) -> None:
    """Make the topic and write the messages to it."""
    from confluent_kafka import Producer

    make(brokers, topic, partitions)
    producer = Producer({"bootstrap.servers": brokers, "linger.ms": 20, "queue.buffering.max.messages": 1_000_000})
    for n in range(messages):
        if n % AT_ONCE == 0:
            producer.flush(60)
        producer.produce(topic, value(n), partition=n // 1000 % partitions)
    producer.flush(60)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what measurements over a filled topic are told: brokers, messages, partitions and runs."""
    for option in (
        click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True),
        click.option("--partitions", type=click.IntRange(min=1), default=4, show_default=True),
        click.option("--messages", type=click.IntRange(min=1), default=1_000_000, show_default=True),
        brokers_option,
    ):
        command = option(command)
    return command


brokers_option = click.option("--brokers", required=True, help="host:port of a broker where topics may be made.")
