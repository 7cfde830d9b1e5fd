"""Jobs that read from Kafka, killed: each message is in the output once."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from kafka_kit import message, transaction
from nursery import Nursery, Start
from servers.kafka import Broker, kafka_broker

kafka = kafka_broker()

JOB = """
import pathlib
import time

import millstream as ms
from millstream.connectors import kafka_consumer

take = kafka_consumer.PartitionQueue.take
kafka_consumer.PartitionQueue.take = lambda queue, most: take(queue, {at_once})


def slowly(batch):
    if not pathlib.Path("hurry").exists():
        time.sleep({seconds})
    return batch


job = ms.Job("orders")
source = ms.kafka_source(
    {address!r}, {topic!r}, schema={{"n": "int64"}}, group={topic!r}, bounded=True, on_error="dead_letter"
)
job.read(source).map_batches(slowly, schema=source.schema).write(ms.jsonl("output", hold_bytes=0))
"""
POINTS = [
    "subtask.snapshot@3", "subtask.acknowledge@2", "store.before_commit@1", "store.before_commit@2",
    "store.after_commit@1", "store.after_commit@3", "sink.commit@1", "sink.committed@1", "source.committed@2",
    "job.stop@1",
]  # fmt: skip


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as running:
        yield running


def make(folder: Path, kafka: Broker, count: int, at_once: int = 20, seconds: float = 0) -> str:
    """Write a job, and a topic in which numbers up to ``count`` are to be seen and others are not; return its name."""
    topic = kafka.create("crashes", partitions=3)
    (folder / "job.py").write_text(JOB.format(address=kafka.address, topic=topic, at_once=at_once, seconds=seconds))
    with transaction(kafka, topic) as producer:
        for n in range(count):
            producer.produce(topic, message(n)["value"], partition=n % 3)
            if n % 10 == 5:
                producer.produce(topic, b"poison", partition=n % 3)
            if n % 40 == 39:
                producer.commit_transaction(30)
                producer.begin_transaction()
                producer.produce(topic, message(-n)["value"], partition=n % 3)
                producer.flush(30)
                producer.abort_transaction(30)
                producer.begin_transaction()
        producer.commit_transaction(30)
    return topic


def seen(folder: Path) -> list[int]:
    lines = [line for file in (folder / "output").rglob("part-*.jsonl") for line in file.read_text().splitlines()]
    return sorted(json.loads(line)["n"] for line in lines)


@pytest.mark.parametrize("point", POINTS)
def test_a_job_killed_anywhere_has_read_each_message_once(
    point: str, kafka: Broker, tmp_path: Path, nursery: Nursery
) -> None:
    make(tmp_path, kafka, 200)
    name, _, hits = point.partition("@")
    end = nursery.run(Start(str(tmp_path), failpoint=f"{name}=kill@{hits}"))
    assert end.killed, end
    before = seen(tmp_path)
    assert len(before) == len(set(before)), "messages are there twice"
    end = nursery.run(Start(str(tmp_path), parallelism=3))
    assert end.outcome.endswith("finished"), end
    assert seen(tmp_path) == list(range(200))
    assert letters(tmp_path) == 20


@pytest.mark.parametrize("what", ["wrong", pytest.param("gone", marks=pytest.mark.slow)])
def test_a_job_goes_on_where_its_checkpoint_says_whatever_its_group_says(
    what: str, kafka: Broker, tmp_path: Path, nursery: Nursery
) -> None:
    """Kafka drops a group's offsets after a week without it; they are there for others to look at."""
    topic = make(tmp_path, kafka, 200)
    # Counted by epochs that have rows: a broker that is slow to answer makes empty ones before them.
    assert nursery.run(Start(str(tmp_path), failpoint="files.visible=kill@2")).killed
    assert 0 < len(seen(tmp_path)) < 200
    admin, places = kafka.admin, [TopicPartition(topic, number, 0) for number in range(3)]
    admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(topic, places)])[topic].result(30)
    if what == "gone":
        admin.delete_consumer_groups([topic])[topic].result(30)
    end = nursery.run(Start(str(tmp_path)))
    assert end.outcome == "finished", end
    assert seen(tmp_path) == list(range(200))


def letters(folder: Path) -> int:
    import duckdb

    with duckdb.connect(str(folder / "job.duckdb"), read_only=True) as store:
        return store.execute("select count(*) from dead_letters").fetchall()[0][0]


@pytest.mark.slow
def test_forty_kills_at_random_moments(kafka: Broker, tmp_path: Path) -> None:
    """At least 240 s of sleep divided by three: no machine is so fast that the job ends before the last kill."""
    count, chance = 120_000, random.Random(11)
    make(tmp_path, kafka, count, at_once=200, seconds=0.4)
    command = [sys.executable, "-m", "millstream", "run", "job.py", "--store", "job.duckdb", "--every", "50ms"]
    command += ["--max-dead-letters", "100000", "--parallelism"]
    for kills in range(1, 41):
        process = subprocess.Popen(
            [*command, str(chance.randint(1, 3))], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(1.0, 2.5))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        rows = seen(tmp_path)
        assert len(rows) == len(set(rows)), f"after {kills} kills"
    (tmp_path / "hurry").touch()
    done = subprocess.run([*command, "2"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert seen(tmp_path) == list(range(count))
    assert letters(tmp_path) == count // 10
