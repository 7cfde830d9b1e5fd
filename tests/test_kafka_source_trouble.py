"""The Kafka source where messages or topics are gone, a reader is slow, or something is wrong; and what groups show."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import millstream as ms
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from kafka_kit import SCHEMA, Running, message, read_all, run, transaction, until
from millstream.connectors import kafka_consumer, kafka_topics
from millstream.engine.source import DeadLetter, ReadContext, SplitEnd, SplitReader
from servers.kafka import Broker, kafka_broker

kafka = kafka_broker()


# -- what is not there any more ----------------------------------------------------------------------------------------


def remove_before(kafka: Broker, topic: str, offset: int) -> None:
    admin = kafka.admin
    for future in admin.delete_records([TopicPartition(topic, 0, offset)]).values():
        future.result(30)


def test_messages_removed_before_they_were_read_are_named_or_put_on_record(kafka: Broker) -> None:
    topic = kafka.create("retention")
    kafka.produce(topic, *(message(n) for n in range(100)))
    remove_before(kafka, topic, 50)

    def reader(on_lost: Any) -> tuple[SplitReader, list[DeadLetter]]:
        source = ms.kafka_source(kafka.address, topic, schema=SCHEMA, bounded=True, on_lost=on_lost)
        kept: list[DeadLetter] = []
        return source.open(source.discover()[0], [30, 100], ReadContext(kept.append)), kept

    failing, _ = reader("fail")
    with pytest.raises(ms.DataError, match="offsets 30 to 49 were removed by the broker before they were read"):
        read_all(failing)
    failing.close()
    passing, kept = reader("earliest")
    assert [row["n"] for row in read_all(passing)] == list(range(50, 100))
    assert [(letter.position, letter.raw) for letter in kept] == [("offsets 30 to 49", b"")]
    passing.close()
    source = ms.kafka_source(kafka.address, topic, schema=SCHEMA, bounded=True)
    assert [row["n"] for row in run(source)] == list(range(50, 100)), "the earliest is the first that is there"


def test_a_position_behind_the_end_is_refused(kafka: Broker) -> None:
    topic = kafka.create("behind")
    kafka.produce(topic, message(0))
    source = ms.kafka_source(kafka.address, topic, schema=SCHEMA)
    reader = source.open(source.discover()[0], 7, ReadContext(lambda _: None))
    with pytest.raises(ms.DataError, match="has offset 7, and the partition ends at 1"):
        read_all(reader)
    reader.close()


def test_a_topic_made_anew_is_not_read_on(kafka: Broker, tmp_path: Path) -> None:
    topic = kafka.create("anew")
    kafka.produce(topic, *(message(n) for n in range(5)))
    source = lambda: ms.kafka_source(kafka.address, topic, schema=SCHEMA)  # noqa: E731
    with Running(source(), tmp_path / "s.duckdb") as job:
        job.has(range(5))
        job.checkpoints(1)
    delete(kafka, topic)
    make_again(kafka, topic)
    kafka.produce(topic, *(message(n) for n in range(10)))  # its end is behind the position, and nothing else tells
    with Running(source(), tmp_path / "s.duckdb") as job:
        until(lambda: job.failure)
    assert isinstance(job.failure, ms.DataError)
    assert f"{topic}/0 was {{'topic_id'" in str(job.failure)


def delete(kafka: Broker, topic: str) -> None:
    admin = kafka.admin
    admin.delete_topics([topic])[topic].result(30)
    until(lambda: topic not in admin.list_topics(timeout=10).topics)


def make_again(kafka: Broker, topic: str) -> None:
    from confluent_kafka.admin import NewTopic

    admin = kafka.admin
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
    until(lambda: topic in admin.list_topics(timeout=10).topics)


def test_a_topic_that_is_deleted_under_a_job(kafka: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_topics, "_LOOK_EVERY", 0.1)
    topic = kafka.create("deleted")
    kafka.produce(topic, message(0))
    with Running(ms.kafka_source(kafka.address, topic, schema=SCHEMA), tmp_path / "s.duckdb") as job:
        job.has([0])
        delete(kafka, topic)
        until(lambda: job.failure)
    assert isinstance(job.failure, ms.ExternalError | ms.JobFailed)
    assert topic in str(job.failure)


def test_a_broker_that_is_killed_and_comes_back_under_a_job(kafka: Broker, tmp_path: Path) -> None:
    topic = kafka.create("away", partitions=2)
    kafka.produce(topic, *(message(n, partition=n % 2) for n in range(10)))
    with Running(ms.kafka_source(kafka.address, topic, schema=SCHEMA), tmp_path / "s.duckdb") as job:
        job.has(range(10))
        kafka.restart()
        kafka.produce(topic, *(message(n, partition=n % 2) for n in range(10, 20)))
        job.has(range(20))


# -- groups, memory, mistakes ------------------------------------------------------------------------------------------


def group_offsets(kafka: Broker, group: str) -> dict[int, int]:
    admin = kafka.admin
    answer = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(30)
    return {at.partition: at.offset for at in answer.topic_partitions}


def test_the_offsets_of_the_group_follow_the_checkpoints(
    kafka: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_topics, "_TELL_EVERY", 0.05)
    topic = kafka.create("lag", partitions=2)
    kafka.produce(topic, *(message(n, partition=n % 2) for n in range(10)))
    run(ms.kafka_source(kafka.address, topic, schema=SCHEMA, bounded=True, group=f"{topic}-a"), tmp_path / "a.duckdb")
    assert group_offsets(kafka, f"{topic}-a") == {0: 5, 1: 5}
    source = ms.kafka_source(kafka.address, topic, schema=SCHEMA, group=f"{topic}-b")
    with Running(source, tmp_path / "b.duckdb"):
        until(lambda: group_offsets(kafka, f"{topic}-b") == {0: 5, 1: 5})
        with transaction(kafka, topic) as producer:
            producer.produce(topic, json.dumps({"n": 10}), partition=1)
            producer.commit_transaction(30)
        until(lambda: group_offsets(kafka, f"{topic}-b") == {0: 5, 1: 7})  # no lag of a control record is left


def test_a_partition_whose_reader_does_not_keep_up_is_given_up_and_taken_again(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_consumer, "_MOST_QUEUED", 500)
    monkeypatch.setattr(kafka_consumer, "_MESSAGES_AT_ONCE", 97)
    topic = kafka.create("slow", partitions=3)
    kafka.produce(topic, *(message(n, partition=n % 3) for n in range(6_000)))
    source = ms.kafka_source(kafka.address, topic, schema=SCHEMA, bounded=True)
    fast, slow, slower = (source.open(split, None, ReadContext(lambda _: None, 1000)) for split in source.discover())
    parked = []
    rows = {reader: [] for reader in (fast, slow, slower)}

    def step(reader: SplitReader) -> bool:
        got = reader.read()
        if not isinstance(got, SplitEnd):
            rows[reader] += got.column("n").to_pylist()
        return got is SplitEnd.FINISHED

    ended: set[SplitReader] = set()
    for turn in range(10_000_000):
        for reader, every in ((fast, 1), (slow, 7), (slower, 50)):
            if turn % every == 0 and reader not in ended and step(reader):
                ended.add(reader)
        parked += [q for q in source.client.cluster.consumer._queues.values() if q.parked]
        if len(ended) == 3:
            break
    assert parked, "nothing was given up"
    assert list(rows.values()) == [list(range(part, 6_000, 3)) for part in range(3)]


def test_mistakes_are_explained(kafka: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_topics, "_PATIENCE", 2.0)
    with pytest.raises(ms.ExternalError, match="there is no topic 'nowhere'; create it, or correct its name"):
        ms.kafka_source(kafka.address, "nowhere", schema=SCHEMA).discover()
    with pytest.raises(ms.ExternalError, match=r"looking up topic 't' failed: .*127\.0\.0\.1:1"):
        ms.kafka_source("127.0.0.1:1", "t", schema=SCHEMA).discover()
    with pytest.raises(ms.JobError, match=r"refuses its settings: .*no\.such"):
        ms.kafka_source(kafka.address, "t", schema=SCHEMA, settings={"no.such": 1}).discover()
    monkeypatch.delenv("NO_SUCH", raising=False)
    with pytest.raises(ms.JobError, match="NO_SUCH is not set"):
        ms.kafka_source(kafka.address, "t", schema=SCHEMA, settings={"client.id": "${env:NO_SUCH}"}).discover()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "say which columns the values have"),
        ({"schema": SCHEMA, "value": "raw"}, "value='raw' has the column 'value'; leave schema out"),
        ({"schema": SCHEMA, "value": "xml"}, "value is 'json' or 'csv' or 'string' or 'raw', or avro_values"),
        ({"schema": {"n": "duration[us]"}, "value": "csv"}, "cannot be read from CSV"),
        ({"schema": SCHEMA, "start": "now"}, "start is 'earliest', 'latest' or a datetime, got 'now'"),
        ({"schema": SCHEMA, "metadata": ["time"]}, "metadata 'time' is not known; there are key, timestamp"),
        ({"schema": SCHEMA, "metadata": {"offset": "n"}}, "two columns 'n'"),
        ({"schema": SCHEMA, "settings": {"group.id": "g"}}, "'group.id' cannot be set: pass group="),
        ({"schema": SCHEMA, "settings": {"transactional.id": "t"}}, "'transactional.id' cannot be set"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ms.JobError, match=re.escape(said)):
        ms.kafka_source("127.0.0.1:1", "t", **options)
