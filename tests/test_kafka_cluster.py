"""A job from Kafka to Kafka with three brokers: they are killed, one or all, and so is the job, before or after."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from kafka_kit import until
from servers.kafka import missing
from servers.kafka_cluster import Cluster

KEYS, PARTITIONS, CHUNK, LONGEST = 7, 3, 20, 120.0
JOB = """
import millstream as ms

job = ms.Job("copy")
rows = job.read(ms.kafka_source({brokers!r}, {read!r}, schema={{"n": int, "k": int}}))
rows.write(ms.kafka_sink({brokers!r}, {written!r}, key="k", progress={progress!r}))
"""
COORDINATOR = "__transaction_state"
"""The leader of its only partition coordinates every transaction."""
ROUNDS = (
    (COORDINATOR, "kafka.sent=kill@2"),
    ("written", "kafka.begun=kill@3"),
    ("progress", "store.after_commit=kill@2"),
    ("all", "kafka.visible=kill@2"),
    (COORDINATOR, ""),
    ("written", ""),
    ("read", ""),
)
"""Which broker is killed, the one that leads a topic; and where the job is killed before it, if it is."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with Cluster() as started:
        yield started


class Readers:
    """Reads what is committed, all the time, and keeps it."""

    def __init__(self, cluster: Cluster, topic: str) -> None:
        self.of: dict[int, list[tuple[int, int]]] = defaultdict(list)
        settings = {"bootstrap.servers": cluster.address, "group.id": "reader", "isolation.level": "read_committed"}
        self._consumer = Consumer({**settings, "enable.auto.commit": False, "reconnect.backoff.max.ms": 200})
        self._consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    @property
    def count(self) -> int:
        return sum(map(len, list(self.of.values())))

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._consumer.close()

    def _read(self) -> None:
        while not self._over.is_set():
            for message in self._consumer.consume(1000, 0.02):
                if message.error() is None:
                    self.of[message.partition()].append(row_of(message.value()))


class Feeder:
    """Writes rows, numbered, a few at a time; each is there once, whatever happens to the brokers."""

    def __init__(self, cluster: Cluster, topic: str) -> None:
        self._producer = Producer(
            {"bootstrap.servers": cluster.address, "enable.idempotence": True, "reconnect.backoff.max.ms": 200}
        )
        self._topic = topic
        self._failed: list[object] = []
        self.count = 0

    def feed(self) -> None:
        for n in range(self.count, self.count + CHUNK):
            value = json.dumps({"n": n, "k": n % KEYS}).encode()
            self._producer.produce(self._topic, value, str(n % KEYS).encode(), on_delivery=self._hear)
        self.count += CHUNK

    def flush(self) -> None:
        assert self._producer.flush(LONGEST) == 0
        assert self._failed == []

    def _hear(self, error: object, message: object) -> None:
        if error is not None:
            self._failed.append(error)


def row_of(value: bytes) -> tuple[int, int]:
    row = json.loads(value)
    return row["k"], row["n"]


class Running:
    """The job, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, failpoint: str = "") -> None:
        command = [sys.executable, "-m", "millstream", "run", "job.py", "--store", "job.duckdb"]
        command += ["--every", "50ms", "--restarts", "1000", "--parallelism", "2"]
        environment = {**os.environ, "MILLSTREAM_FAILPOINTS": failpoint}
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self._folder, env=environment, stdout=log, stderr=log)

    @property
    def killed(self) -> bool:
        assert self.process is not None
        status = self.process.poll()
        assert status in (None, -signal.SIGKILL), (status, self.log)
        return status is not None

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(LONGEST)

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_brokers_and_job_are_killed_and_each_row_is_there_once_and_in_order(cluster: Cluster, tmp_path: Path) -> None:
    topics = {name: cluster.create(name, PARTITIONS) for name in ("read", "written")}
    topics["progress"] = f"progress-of-{topics['written']}"
    (tmp_path / "job.py").write_text(JOB.format(brokers=cluster.address, **topics))
    readers, feeder, job = Readers(cluster, topics["written"]), Feeder(cluster, topics["read"]), Running(tmp_path)
    kills = {"job": 0, "broker": 0}

    def shown() -> None:
        feeder.flush()
        until(lambda: job.killed or readers.count >= feeder.count, LONGEST)

    def in_sync() -> bool:
        return all(cluster.in_sync(name) for name in (topics["read"], topics["written"], COORDINATOR))

    try:
        for topic, failpoint in ROUNDS:
            job.start(failpoint)
            feeder.feed()
            shown()
            while failpoint and not job.killed:
                feeder.feed()
                shown()
            feeder.feed()
            nodes = [*cluster.brokers] if topic == "all" else [cluster.leader(topics.get(topic, topic))]
            cluster.kill(*nodes)
            kills["broker"] += len(nodes)
            if topic == "all":
                cluster.start()
            if not failpoint:
                shown()  # it has lived through that
                assert job.end(signal.SIGKILL) == -signal.SIGKILL
                feeder.feed()
            job.start()
            shown()
            cluster.start()
            until(in_sync, LONGEST)
            feeder.feed()
            shown()
            assert job.end(signal.SIGKILL) == -signal.SIGKILL
            kills["job"] += 2
        job.start()
        feeder.feed()
        shown()
        assert job.end(signal.SIGTERM) == 0, job.log
    finally:
        readers.close()
        job.end(signal.SIGKILL)
    assert kills == {"job": 14, "broker": 9}
    check(cluster, topics["written"], readers, feeder.count)


def check(cluster: Cluster, topic: str, readers: Readers, count: int) -> None:
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for message in cluster.consume(topic):
        found[message.partition()].append(row_of(message.value()))
    rows = [row for partition in found.values() for row in partition]
    assert sorted(n for _, n in rows) == list(range(count)), "each row once"
    for partition in found.values():
        of_key: dict[int, list[int]] = defaultdict(list)
        for k, n in partition:
            of_key[k].append(n)
        assert all(numbers == sorted(numbers) for numbers in of_key.values()), "in order"
    assert readers.of == found, "who reads all the time has seen the same"
