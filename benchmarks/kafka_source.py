"""Kafka to nowhere: JSON of 200 bytes read and decoded by a job, beside the plain client and msgspec doing the same.

``python -m millstream.benchmarks.kafka_source --brokers HOST:PORT`` makes a topic, fills it, lets both read it in
turns, and prints the best of each, in seconds and in processor time. The plain loop is what one would write without a
stream engine: ``consume(10000)``, a msgspec decoder for a generated class, a column of each field. It keeps no offsets.
The job takes checkpoints.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

import click
import msgspec
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
_AT_ONCE: Final = 10_000


@dataclass(frozen=True, slots=True)
class Run:
    """One reading of the whole topic.

    Attributes:
        seconds: how long it took.
        cpu_s: processor time of all threads of this process in that time.
    """

    seconds: float
    cpu_s: float


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


def fill(brokers: str, topic: str, messages: int, partitions: int) -> None:
    """Make the topic and write the messages to it."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(30)
    producer = Producer({"bootstrap.servers": brokers, "linger.ms": 20, "queue.buffering.max.messages": 1_000_000})
    for n in range(messages):
        if n % _AT_ONCE == 0:
            producer.flush(60)
        producer.produce(topic, value(n), partition=n // 1000 % partitions)
    producer.flush(60)


def plain(brokers: str, topic: str, messages: int, partitions: int) -> None:
    """Read with the client library alone."""
    from confluent_kafka import Consumer, TopicPartition

    types: list[Any] = [{pa.int64(): int, pa.float64(): float}.get(field.type, str) | None for field in SCHEMA]
    fields = [(name, type_, None) for name, type_ in zip(SCHEMA.names, types, strict=True)]
    decode = msgspec.json.Decoder(msgspec.defstruct("Row", fields, gc=False)).decode
    getters = [attrgetter(name) for name in SCHEMA.names]
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "plain", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
    read = 0
    while read < messages:
        rows = [decode(message.value()) for message in consumer.consume(_AT_ONCE, 1.0)]
        columns = [list(map(getter, rows)) for getter in getters]
        arrays = [_column(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
        read += pa.RecordBatch.from_arrays(arrays, schema=SCHEMA).num_rows
    consumer.close()


def _column(values: list[Any], type_: pa.DataType) -> pa.Array:
    return pa.array(values, pa.string()).cast(type_) if pa.types.is_timestamp(type_) else pa.array(values, type_)


def job(brokers: str, topic: str, messages: int, partitions: int) -> None:
    """Read with a job."""
    import millstream as ms

    del messages, partitions
    reading = ms.Job("kafka")
    reading.read(ms.kafka_source(brokers, topic, schema=SCHEMA, bounded=True)).write(ms.blackhole())
    with tempfile.TemporaryDirectory(prefix="kafka-") as folder:
        reading.run(Path(folder) / "job.duckdb", every="1s")


def measured(read: Callable[[], None]) -> Run:
    """Measure in this process."""
    began, cpu = time.perf_counter(), _cpu_seconds()
    read()
    return Run(time.perf_counter() - began, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@click.command()
@click.option("--brokers", required=True, help="host:port of a broker where topics may be made.")
@click.option("--messages", type=click.IntRange(min=1), default=1_000_000, show_default=True)
@click.option("--partitions", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True)
def main(brokers: str, messages: int, partitions: int, runs: int) -> None:
    """Measure reading from Kafka, beside the plain client."""
    topic = f"millstream-benchmark-{uuid.uuid4().hex[:8]}"
    fill(brokers, topic, messages, partitions)
    results: dict[str, list[Run]] = {"plain": [], "job": []}
    for turn in range(runs + 1):
        for name, read in (("plain", plain), ("job", job)):
            run = measured(lambda read=read: read(brokers, topic, messages, partitions))  # type: ignore[misc]
            if turn:  # the first one loads code
                results[name].append(run)
    click.echo(f"{messages:,} messages of {len(value(0))} bytes, {partitions} partitions, best of {runs}")
    best = {name: (min(r.seconds for r in of), min(r.cpu_s for r in of)) for name, of in results.items()}
    for name, (seconds, cpu) in best.items():
        click.echo(
            f"{name:5} {messages / seconds:>9,.0f} messages/s {messages / cpu:>9,.0f} a second of processor time"
        )
    ratios = [of_plain / of_job for of_job, of_plain in zip(best["job"], best["plain"], strict=True)]
    click.echo(f"ratio {ratios[0]:>9.2f} {'':11}{ratios[1]:>9.2f}")


if __name__ == "__main__":
    main()
