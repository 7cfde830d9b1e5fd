"""Kafka to nowhere: JSON of 200 bytes read and decoded by a job, beside the plain client and msgspec doing the same.

``python -m millstream.benchmarks.kafka_source --brokers HOST:PORT`` makes a topic, fills it, lets both read it in
turns, and prints the best of each, in seconds and in processor time. The plain loop is what one would write without a
stream engine: ``consume(10000)``, a msgspec decoder for a generated class, a column of each field. It keeps no offsets.
The job takes checkpoints.
"""

from __future__ import annotations

import tempfile
import uuid
from operator import attrgetter
from pathlib import Path
from typing import Any

import click
import msgspec
import pyarrow as pa
from millstream.benchmarks.beside import in_turns, show
from millstream.benchmarks.kafka_topic import AT_ONCE, SCHEMA, fill, options, value


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
        rows = [decode(message.value()) for message in consumer.consume(AT_ONCE, 1.0)]
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


@click.command()
@options
def main(brokers: str, messages: int, partitions: int, runs: int) -> None:
    """Measure reading from Kafka, beside the plain client."""
    topic = f"millstream-benchmark-{uuid.uuid4().hex[:8]}"
    fill(brokers, topic, messages, partitions)
    ways = {
        "plain": lambda _: plain(brokers, topic, messages, partitions),
        "job": lambda _: job(brokers, topic, messages, partitions),
    }
    best = in_turns(ways, runs)
    click.echo(f"{messages:,} messages of {len(value(0))} bytes, {partitions} partitions, best of {runs}")
    show("messages", messages, best)


if __name__ == "__main__":
    main()
