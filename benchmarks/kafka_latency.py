"""Kafka to Kafka, exactly once: how long it takes from an event produced until a read_committed reader sees it.

``python -m millstream.benchmarks.kafka_latency --brokers HOST:PORT`` has a process produce events at a steady rate,
each with the time in it, and another one copy them to a topic that this process reads. First that is a loop of the
plain client (consume, produce, commit the offsets in the same transaction), then a job that takes checkpoints as
often as the loop commits. Both must copy every event once. All processes are on this machine, and so have the same
monotonic clock.
"""

from __future__ import annotations

import multiprocessing
import struct
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import click
import millstream as ms
import numpy as np
import numpy.typing as npt
from millstream.benchmarks.beside import cpu_seconds
from millstream.benchmarks.kafka_copy import copy_plainly, copying
from millstream.benchmarks.kafka_topic import AT_ONCE, brokers_option, make
from millstream.engine.time import micros

_BYTES: Final = 200
_TICK_SECONDS: Final = 0.002
_SIGN: Final = -1
"""The number of an event that shows that copying has begun."""
_PATIENCE_SECONDS: Final = 60.0
_EVENT: Final = np.dtype([("number", "<i8"), ("at", "<i8")])
_SHOWN: Final = {"p50": 50, "p90": 90, "p99": 99, "max": 100}

Nanoseconds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Stream:
    """What is to be copied, and how.

    Attributes:
        rate: events a second.
        warm: seconds of events that do not count, before the others.
        seconds: seconds of events that count.
        every: seconds between two commits.
    """

    brokers: str
    source: str
    target: str
    partitions: int
    rate: int
    warm: float
    seconds: float
    every: float

    @property
    def uncounted(self) -> int:
        """How many events do not count."""
        return int(self.rate * self.warm)

    @property
    def events(self) -> int:
        """How many there are."""
        return self.uncounted + int(self.rate * self.seconds)


@dataclass(frozen=True, slots=True)
class Result:
    """How it went.

    Attributes:
        latencies: of the events that count, in nanoseconds, sorted.
        rate: events produced a second.
        cpu_s: processor time that copying took per second.
    """

    latencies: Nanoseconds
    rate: float
    cpu_s: float

    def at(self, percent: float) -> float:
        """Return the latency that so many percent of the events did not exceed, in milliseconds."""
        return float(np.percentile(self.latencies, percent)) / 1e6


def _event(number: int) -> bytes:
    return struct.pack("<qq", number, time.monotonic_ns()).ljust(_BYTES)


def produce(stream: Stream) -> None:
    """Produce all events at the rate."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": stream.brokers, "linger.ms": 5})
    producer.list_topics(stream.source, 30)
    began, number = time.monotonic(), 0
    while number < stream.events:
        due = min(stream.events, int((time.monotonic() - began) * stream.rate))
        for n in range(number, due):
            producer.produce(stream.source, _event(n), partition=n % stream.partitions)
        number = max(number, due)
        producer.poll(0)
        time.sleep(_TICK_SECONDS)
    producer.flush(60)


def plain(stream: Stream, control: ms.Control) -> None:
    """Copy with the client library alone."""
    copy_plainly(
        brokers=stream.brokers,
        source=stream.source,
        target=stream.target,
        partitions=stream.partitions,
        every=stream.every,
        wait=0.01,
        enough=lambda _: control.stop_requested,
    )


def job(stream: Stream, control: ms.Control) -> None:
    """Copy with a job."""
    with tempfile.TemporaryDirectory(prefix="kafka-") as folder:
        store = Path(folder) / "job.duckdb"
        copying(stream.brokers, stream.source, stream.target, bounded=False).run(
            store, every=stream.every, control=control
        )


WAYS: Final = {"plain": plain, "job": job}


def copy(way: str, stream: Stream, asked: Connection) -> None:
    """Copy until the other end of the connection is told to stop; say how much processor time it took, when asked."""
    control = ms.Control()
    copying_ = threading.Thread(target=WAYS[way], args=(stream, control), name=way)
    copying_.start()
    while asked.recv() == "time":
        asked.send(cpu_seconds())
    control.stop()
    copying_.join()


@contextmanager
def _process(work: Callable[..., None], *arguments: Any) -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    try:
        yield
        process.join(_PATIENCE_SECONDS)
        if process.exitcode != 0:
            raise click.ClickException(f"{work.__name__} of {arguments[0]} ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def measure(way: str, stream: Stream) -> Result:
    """Copy a stream one way, and read what comes of it.

    Raises:
        ClickException: an event was lost, or came twice.
    """
    for topic in (stream.source, stream.target):
        make(stream.brokers, topic, stream.partitions)
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    with _process(copy, way, stream, theirs):
        batches = _visible(stream)
        _show_sign(stream)
        found = [next(batches)[1:]]
        with _process(produce, stream):
            cpu, began = _asked(ours), time.monotonic()
            read = len(found[0])
            while read < stream.events:
                found.append(next(batches))
                read += len(found[-1])
            spent, took = _asked(ours) - cpu, time.monotonic() - began
        ours.send("stop")
    return result_of(stream, np.concatenate(found), spent / took)


def _asked(copier: Connection) -> float:
    copier.send("time")
    return float(copier.recv())


def _show_sign(stream: Stream) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": stream.brokers})
    producer.produce(stream.source, _event(_SIGN), partition=0)
    producer.flush(60)


def _visible(stream: Stream) -> Iterator[Nanoseconds]:
    """Read the target, in batches as ``result_of`` takes them."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": stream.brokers,
            "group.id": stream.target,
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    consumer.assign([TopicPartition(stream.target, number, 0) for number in range(stream.partitions)])
    until = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < until:
        first = consumer.poll(0.1)
        if first is None:
            continue
        messages = [first, *consumer.consume(AT_ONCE, 0)]
        seen = time.monotonic_ns()
        events = np.frombuffer(b"".join(message.value()[: _EVENT.itemsize] for message in messages), _EVENT)
        yield np.stack([events["number"], events["at"], np.full(len(events), seen)], axis=1)
        until = time.monotonic() + _PATIENCE_SECONDS
    raise click.ClickException(f"nothing has come through for {_PATIENCE_SECONDS:g} s")


def result_of(stream: Stream, events: Nanoseconds, cpu_s: float) -> Result:
    """Make a result of all events that were read: number, time of production and time it was seen of each.

    Raises:
        ClickException: an event is missing, or is there twice.
    """
    events = events[np.argsort(events[:, 0])]
    if not np.array_equal(events[:, 0], np.arange(stream.events)):
        raise click.ClickException(f"of {stream.events:,} events not each one came once")
    counted = events[stream.uncounted :]
    span = (counted[-1, 1] - counted[0, 1]) / 1e9
    return Result(np.sort(counted[:, 2] - counted[:, 1]), (len(counted) - 1) / max(span, 1e-9), cpu_s)


def show(name: str, result: Result) -> None:
    """Print a line.

    >>> show("plain", Result(np.arange(1, 101) * 1_000_000, 10_000.4, 0.123))
    plain p50  50.5 ms, p90  90.1 ms, p99  99.0 ms, max 100.0 ms at 10,000 events/s, 0.12 s of processor time a second
    """
    shown = ", ".join(f"{word} {result.at(percent):>5.1f} ms" for word, percent in _SHOWN.items())
    click.echo(f"{name:5} {shown} at {result.rate:,.0f} events/s, {result.cpu_s:.2f} s of processor time a second")


@click.command()
@brokers_option
@click.option("--rate", type=click.IntRange(min=1), default=10_000, show_default=True, help="Events a second.")
@click.option("--seconds", type=click.FloatRange(min=0.01), default=20.0, show_default=True)
@click.option("--warm", type=click.FloatRange(min=0), default=3.0, show_default=True, help="Seconds not counted.")
@click.option("--every", default="100ms", show_default=True, help="Between two commits.")
@click.option("--partitions", type=click.IntRange(min=1), default=4, show_default=True)
def main(brokers: str, rate: int, seconds: float, warm: float, every: str, partitions: int) -> None:
    """Measure latency within Kafka, beside the plain client."""
    click.echo(f"{rate:,} events of {_BYTES} bytes a second, {seconds:g} s, {partitions} partitions, every {every}")
    results = {}
    for way in WAYS:
        topic = f"millstream-benchmark-{uuid.uuid4().hex[:8]}"
        stream = Stream(
            brokers, topic, f"{topic}-{way}", partitions, rate, warm, seconds, every=micros(every) / 1_000_000
        )
        results[way] = measure(way, stream)
        show(way, results[way])
    ratios = (f"{word} {results['plain'].at(at) / results['job'].at(at):.2f}" for word, at in _SHOWN.items())
    click.echo(f"ratio {', '.join(ratios)}")


if __name__ == "__main__":
    main()
