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
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
import millstream as ms
from millstream.benchmarks.beside import in_turns, show
from millstream.benchmarks.kafka_topic import AT_ONCE, fill, make, options, value

_EVERY_SECONDS: Final = 1.0


def copy_plainly(
    *,
    brokers: str,
    source: str,
    target: str,
    partitions: int,
    every: float,
    wait: float,
    enough: Callable[[int], bool],
) -> None:
    """Copy with the client library alone, until the number of messages copied is enough.

    Args:
        every: seconds that a transaction lasts before it is committed.
        wait: seconds for which a batch of messages is waited for.
    """
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
    while not enough(copied):
        producer.begin_transaction()
        until = time.monotonic() + every
        while time.monotonic() < until and not enough(copied):
            batch = consumer.consume(AT_ONCE, wait)
            for message in batch:
                producer.produce(target, message.value(), message.key(), message.partition())
            producer.poll(0)
            copied += len(batch)
        places = consumer.position([TopicPartition(source, number) for number in range(partitions)])
        producer.send_offsets_to_transaction(places, consumer.consumer_group_metadata(), 30)
        producer.commit_transaction(60)
    consumer.close()


def copying(brokers: str, source: str, target: str, *, bounded: bool) -> ms.Job:
    """Return the job that copies."""
    job = ms.Job("copy")
    rows = job.read(ms.kafka_source(brokers, source, value="raw", metadata=["partition"], bounded=bounded))
    rows.write(ms.kafka_sink(brokers, target, value="raw", partition="partition"))
    return job


def plain(brokers: str, source: str, target: str, messages: int, partitions: int) -> None:
    """Copy with the client library alone."""
    copy_plainly(
        brokers=brokers,
        source=source,
        target=target,
        partitions=partitions,
        every=_EVERY_SECONDS,
        wait=0.5,
        enough=lambda copied: copied >= messages,
    )


def job(brokers: str, source: str, target: str, messages: int, partitions: int) -> None:
    """Copy with a job."""
    del messages, partitions
    with tempfile.TemporaryDirectory(prefix="kafka-") as folder:
        copying(brokers, source, target, bounded=True).run(Path(folder) / "job.duckdb", every=_EVERY_SECONDS)


@click.command()
@options
def main(brokers: str, messages: int, partitions: int, runs: int) -> None:
    """Measure copying within Kafka, beside the plain client."""
    source = f"millstream-benchmark-{uuid.uuid4().hex[:8]}"
    fill(brokers, source, messages, partitions)

    def way(name: str, copy: Callable[..., None]) -> Callable[[int], None]:
        def turn(number: int) -> None:
            copy(brokers, source, targets[name, number], messages, partitions)

        targets = {(name, number): f"{source}-{name}-{number}" for number in range(runs + 1)}
        for target in targets.values():
            make(brokers, target, partitions)
        return turn

    best = in_turns({"plain": way("plain", plain), "job": way("job", job)}, runs)
    click.echo(f"{messages:,} messages of {len(value(0))} bytes, {partitions} partitions, best of {runs}")
    show("messages", messages, best)


if __name__ == "__main__":
    main()
