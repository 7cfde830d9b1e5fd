"""Kafka to Kafka, exactly once: messages copied by a job, beside a loop of the plain client that does the same.

``python -m millstream.benchmarks.kafka_copy --brokers HOST:PORT`` makes topics, fills one, lets both copy it in turns,
and prints the best of each, in seconds and in processor time. The plain loop is Kafka's own recipe: consume, produce,
and commit the offsets in the same transaction, about once a second. It keeps no state and decodes nothing; nor does the
job, which takes a checkpoint every second.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from pathlib import Path
from typing import Final

import click
from millstream.benchmarks.kafka_source import Run, fill, measured, value

_AT_ONCE: Final = 10_000
_EVERY_SECONDS: Final = 1.0


def plain(brokers: str, source: str, target: str, messages: int, partitions: int) -> None:
    """Copy with the client library alone."""
    from confluent_kafka import Consumer, Producer, TopicPartition

    consumer = Consumer({"bootstrap.servers": brokers, "group.id": target, "enable.auto.commit": False})
    consumer.assign([TopicPartition(source, number, 0) for number in range(partitions)])
    producer = Producer(
        {
            "bootstrap.servers": brokers,
            "transactional.id": target,
            "linger.ms": 5,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    producer.init_transactions(30)
    copied = 0
    while copied < messages:
        producer.begin_transaction()
        until = time.monotonic() + _EVERY_SECONDS
        while time.monotonic() < until and copied < messages:
            batch = consumer.consume(_AT_ONCE, 0.5)
            for message in batch:
                producer.produce(target, message.value(), message.key(), message.partition())
            producer.poll(0)
            copied += len(batch)
        places = consumer.position([TopicPartition(source, number) for number in range(partitions)])
        producer.send_offsets_to_transaction(places, consumer.consumer_group_metadata(), 30)
        producer.commit_transaction(60)
    consumer.close()


def job(brokers: str, source: str, target: str, messages: int, partitions: int) -> None:
    """Copy with a job."""
    import millstream as ms

    del messages, partitions
    copying = ms.Job("copy")
    rows = copying.read(ms.kafka_source(brokers, source, value="raw", metadata=["partition"], bounded=True))
    rows.write(ms.kafka_sink(brokers, target, value="raw", partition="partition"))
    with tempfile.TemporaryDirectory(prefix="kafka-") as folder:
        copying.run(Path(folder) / "job.duckdb", every=_EVERY_SECONDS)


def make(brokers: str, topic: str, partitions: int) -> None:
    """Make an empty topic."""
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(30)


@click.command()
@click.option("--brokers", required=True, help="host:port of a broker where topics may be made.")
@click.option("--messages", type=click.IntRange(min=1), default=1_000_000, show_default=True)
@click.option("--partitions", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True)
def main(brokers: str, messages: int, partitions: int, runs: int) -> None:
    """Measure copying within Kafka, beside the plain client."""
    source = f"millstream-benchmark-{uuid.uuid4().hex[:8]}"
    fill(brokers, source, messages, partitions)
    results: dict[str, list[Run]] = {"plain": [], "job": []}
    for turn in range(runs + 1):
        for name, copy in (("plain", plain), ("job", job)):
            target = f"{source}-{name}-{turn}"
            make(brokers, target, partitions)
            run = measured(lambda: copy(brokers, source, target, messages, partitions))  # noqa: B023
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
