"""The Kafka source, against a real broker: which rows come, where it begins and ends, messages that do not fit."""

from __future__ import annotations

import datetime as dt
import json
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import millstream as ms
import pytest
from kafka_kit import SCHEMA, Running, message, numbers, read_all, run, transaction, until
from millstream.connectors import kafka_consumer, kafka_topics
from millstream.connectors.kafka_source import KafkaSource
from millstream.engine.source import DeadLetter, ReadContext, Source, Split, SplitEnd, SplitReader
from millstream.testing import check_source
from servers.kafka import Broker, kafka_broker

kafka = kafka_broker()


# -- rows and positions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patient(Source):
    """A source whose readers wait a little before they say that nothing is there, for who counts how often they do."""

    inner: Source

    @property
    def name(self) -> str:
        return self.inner.name

    def identity(self) -> str:
        return self.inner.identity()

    @property
    def schema(self) -> Any:
        return self.inner.schema

    def discover(self) -> Sequence[Split]:
        return self.inner.discover()

    def open(self, split: Split, position: Any, context: ReadContext) -> SplitReader:
        return PatientReader(self.inner.open(split, position, context))

    def pushed_down(self, *what: Any) -> Source:
        return Patient(self.inner.pushed_down(*what))


class PatientReader(SplitReader):
    def __init__(self, inner: SplitReader) -> None:
        self.inner = inner

    def position(self) -> Any:
        return self.inner.position()

    def close(self) -> None:
        self.inner.close()

    def read(self) -> Any:
        got = self.inner.read()
        if got is SplitEnd.PENDING:
            time.sleep(0.001)
        return got


@pytest.mark.slow
def test_it_keeps_the_contract_of_sources_where_offsets_have_gaps(kafka: Broker) -> None:
    topic = kafka.create("gaps", retention_ms=-1)
    at = 1_767_225_600_000
    for part in range(2):
        kafka.produce(topic, *(message(10 * part + n, timestamp=at + n) for n in range(2)))
        with transaction(kafka, f"{topic}-{part}") as producer:
            producer.produce(topic, json.dumps({"n": 10 * part + 5}))
            producer.commit_transaction(30)
    with transaction(kafka, topic) as producer:
        producer.produce(topic, json.dumps({"n": 99}))
        producer.flush(30)
        producer.abort_transaction(30)
    metadata = ["timestamp", "offset"]
    source = ms.kafka_source(kafka.address, topic, schema=SCHEMA, metadata=metadata, bounded=True)
    until(lambda: len(run(source)) == 6)  # what ends a transaction reaches the partition a little later
    rows = check_source(lambda: Patient(source), event_time="timestamp")
    assert sorted(row["n"] for row in rows) == [0, 1, 5, 10, 11, 15]
    offsets = [row["offset"] for row in rows]
    assert offsets == sorted(set(offsets))
    assert offsets[-1] > len(offsets) - 1, "there is a control record between"
    assert rows[1]["timestamp"] == dt.datetime(2026, 1, 1, 0, 0, 0, 1000)


def test_metadata_come_as_columns(kafka: Broker) -> None:
    topic = kafka.create("metadata", partitions=2)
    headers = [("h", b"\x00"), ("h", None)]
    kafka.produce(topic, message(0, partition=1, key=b"k", headers=headers), message(1, partition=1))
    every = {"key": "k", "headers": "h", "topic": "t", "partition": "p", "offset": "o"}
    rows = run(ms.kafka_source(kafka.address, topic, schema=SCHEMA, metadata=every, bounded=True))
    kept = [{"key": "h", "value": b"\x00"}, {"key": "h", "value": None}]
    assert rows == [
        {"n": 0, "k": b"k", "h": kept, "t": topic, "p": 1, "o": 0},
        {"n": 1, "k": None, "h": [], "t": topic, "p": 1, "o": 1},
    ]


@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_each_message_of_several_topics_once(parallelism: int, kafka: Broker, tmp_path: Path) -> None:
    one, other = kafka.create("one", partitions=3), kafka.create("other", partitions=2)
    kafka.produce(one, *(message(n, partition=n % 3) for n in range(3000)))
    kafka.produce(other, *(message(n, partition=n % 2) for n in range(3000, 5000)))
    source = ms.kafka_source(kafka.address, [one, other], schema=SCHEMA, metadata=["topic"], bounded=True)
    rows = run(source, tmp_path / "s.duckdb", parallelism)
    assert sorted((row["n"], row["topic"]) for row in rows) == [(n, one if n < 3000 else other) for n in range(5000)]


def test_an_empty_topic_and_one_that_ends_with_a_control_record_end(kafka: Broker) -> None:
    topic = kafka.create("empty", partitions=2)
    assert run(ms.kafka_source(kafka.address, topic, schema=SCHEMA, bounded=True)) == []
    with transaction(kafka, topic) as producer:
        producer.produce(topic, json.dumps({"n": 1}), partition=0)
        producer.commit_transaction(30)
        producer.begin_transaction()
        producer.produce(topic, json.dumps({"n": 2}), partition=1)
        producer.flush(30)
        producer.abort_transaction(30)
    assert run(ms.kafka_source(kafka.address, topic, schema=SCHEMA, bounded=True)) == [{"n": 1}]


def test_an_open_transaction_is_where_the_end_is(kafka: Broker) -> None:
    topic = kafka.create("open")
    kafka.produce(topic, message(0))
    with transaction(kafka, topic) as producer:
        producer.produce(topic, json.dumps({"n": 1}))
        producer.flush(30)
        kafka.produce(topic, message(2))
        source = ms.kafka_source(kafka.address, topic, schema=SCHEMA, bounded=True)
        assert run(source) == [{"n": 0}]
        uncommitted = {"isolation.level": "read_uncommitted"}
        assert len(run(ms.kafka_source(kafka.address, topic, schema=SCHEMA, bounded=True, settings=uncommitted))) == 3
        producer.commit_transaction(30)
    assert run(source) == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_it_ends_where_the_topic_ended_when_the_job_began_also_after_a_restart(
    kafka: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_consumer, "_MESSAGES_AT_ONCE", 20)
    topic = kafka.create("ends", partitions=2)
    kafka.produce(topic, *(message(n, partition=n % 2) for n in range(1000)))
    job, out = ms.Job("ends"), ms.memory_sink()
    failed = False

    def fail_once(batch: Any) -> Any:
        nonlocal failed
        if not failed and out.rows():  # a checkpoint is committed
            failed = True
            kafka.produce(topic, *(message(n, partition=n % 2) for n in range(1000, 1100)))
            raise RuntimeError("once")
        time.sleep(0 if failed else 0.05)
        return batch

    source = ms.kafka_source(kafka.address, topic, schema=SCHEMA, bounded=True)
    job.read(source).map_batches(fail_once, schema=SCHEMA).write(out)
    assert job.run(tmp_path / "s.duckdb", every="20ms").restarts == 1
    assert numbers(out) == list(range(1000))


# -- where it begins ---------------------------------------------------------------------------------------------------


def test_it_begins_at_a_time(kafka: Broker) -> None:
    topic = kafka.create("since", partitions=2, retention_ms=-1)
    at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    stamp = int(at.timestamp() * 1000)
    kafka.produce(topic, *(message(n, partition=0, timestamp=stamp + n) for n in range(-5, 5)))
    for start in (at, at.replace(tzinfo=None)):
        rows = run(ms.kafka_source(kafka.address, topic, schema=SCHEMA, start=start, bounded=True))
        assert [row["n"] for row in rows] == [0, 1, 2, 3, 4]


def test_latest_is_where_the_job_first_began_whatever_came_while_it_was_down(kafka: Broker, tmp_path: Path) -> None:
    topic = kafka.create("latest", partitions=3)
    kafka.produce(topic, *(message(n, partition=n % 3) for n in range(9)))
    source = lambda: ms.kafka_source(kafka.address, topic, schema=SCHEMA, start="latest")  # noqa: E731
    with Running(source(), tmp_path / "s.duckdb") as job:
        job.checkpoints(2)  # nothing has been read, of any partition
    kafka.produce(topic, *(message(n, partition=n % 3) for n in range(9, 18)))
    with Running(source(), tmp_path / "s.duckdb", parallelism=2) as job:
        job.has(range(9, 18))


def test_partitions_that_are_added_are_read_from_their_beginning(
    kafka: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_topics, "_LOOK_EVERY", 0.1)
    topic = kafka.create("grows")
    kafka.produce(topic, message(0))
    source = lambda: ms.kafka_source(kafka.address, topic, schema=SCHEMA, start="latest")  # noqa: E731
    with Running(source(), tmp_path / "s.duckdb") as job:
        job.checkpoints(1)
        add_partitions(kafka, topic, 2)
        kafka.produce(topic, *(message(n, partition=n % 2) for n in range(1, 5)))
        job.has(range(1, 5))
    add_partitions(kafka, topic, 3)
    kafka.produce(topic, *(message(n, partition=2) for n in range(5, 8)))
    with Running(source(), tmp_path / "s.duckdb") as job:
        job.has(range(5, 8))


def add_partitions(kafka: Broker, topic: str, count: int) -> None:
    from confluent_kafka.admin import NewPartitions

    admin = kafka.admin
    admin.create_partitions([NewPartitions(topic, count)])[topic].result(30)
    until(lambda: len(admin.list_topics(topic, 10).topics[topic].partitions) == count)


# -- messages that do not fit ------------------------------------------------------------------------------------------


def letters(source: KafkaSource) -> tuple[list[dict[str, Any]], list[DeadLetter]]:
    """Read a source that ends, without a job."""
    rows: list[dict[str, Any]] = []
    kept: list[DeadLetter] = []
    for split in source.discover():
        reader = source.open(split, None, ReadContext(kept.append))
        rows += read_all(reader)
        reader.close()
    return rows, kept


def test_poison_is_put_aside_with_its_place_and_bytes(kafka: Broker, tmp_path: Path) -> None:
    topic = kafka.create("poison", partitions=2)
    kafka.produce(topic, *(message(n, partition=n % 2) for n in range(100)))
    kafka.produce(topic, {"value": b"{not json", "partition": 1}, {"value": b'{"n": 1e99}', "partition": 0})
    kafka.produce(topic, *(message(n, partition=n % 2) for n in range(100, 200)))
    source = ms.kafka_source(kafka.address, topic, schema=SCHEMA, bounded=True, on_error="dead_letter", name="orders")
    rows, kept = letters(source)
    assert sorted(row["n"] for row in rows) == list(range(200))
    assert [(letter.source, letter.split, letter.position, letter.raw) for letter in kept] == [
        ("orders", f"{topic}/0", "offset 50", b'{"n": 1e99}'),
        ("orders", f"{topic}/1", "offset 50", b"{not json"),
    ]
    assert len(run(source, tmp_path / "s.duckdb", max_dead_letters=2)) == 200
    with pytest.raises(
        ms.DataError, match=rf"topic '{topic}', partition [01], offset 50: .*, in '{{(not json|\"n\": 1e99}})"
    ):
        run(ms.kafka_source(kafka.address, topic, schema=SCHEMA, bounded=True))


def test_messages_without_a_value_are_rows_of_nulls_or_passed_over(kafka: Broker) -> None:
    topic = kafka.create("tombstones")
    kafka.produce(topic, message(1, key=b"a"), {"key": b"b"}, {"key": b"c", "value": b"bad"}, message(4, key=b"\xff"))
    kafka.produce(topic, {"key": b"e"}, message(6, key=b"f"))

    def source(**options: Any) -> KafkaSource:
        options = {"schema": SCHEMA} | options
        return ms.kafka_source(
            kafka.address, topic, metadata=["key"], key="string", bounded=True, on_error="dead_letter", **options
        )

    rows, kept = letters(source())
    assert [(row["key"], row["n"]) for row in rows] == [("a", 1), ("b", None), ("e", None), ("f", 6)]
    assert [letter.position for letter in kept] == ["offset 2", "offset 3"]
    assert "column 'key'" in kept[1].error
    rows, kept = letters(source(tombstones="skip"))
    assert [(row["key"], row["n"]) for row in rows] == [("a", 1), ("f", 6)]
    rows, kept = letters(source(value="raw", schema=None))
    assert [row["value"] for row in rows] == [b'{"n": 1}', None, b"bad", None, b'{"n": 6}']


def test_csv_strings_and_keys_of_kafka_serializers(kafka: Broker) -> None:
    topic = kafka.create("csv")
    kafka.produce(
        topic, {"value": b'"a;b";1', "key": struct.pack(">q", 2**40)}, {"value": b"-;2"}, {"value": "é;3".encode()}
    )
    schema = {"item": str, "n": "int64"}
    csv = ms.kafka_source(
        kafka.address, topic, value="csv", schema=schema, delimiter=";", null_values=["-"], bounded=True,
        metadata={"key": "id"}, key="int64",
    )  # fmt: skip
    assert run(csv) == [
        {"item": "a;b", "n": 1, "id": 2**40},
        {"item": None, "n": 2, "id": None},
        {"item": "é", "n": 3, "id": None},
    ]
    texts = ms.kafka_source(kafka.address, topic, value="string", bounded=True)
    assert [row["value"] for row in run(texts)] == ['"a;b";1', "-;2", "é;3"]
