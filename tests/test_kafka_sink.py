"""Messages in Kafka: what readers of what is committed find after each epoch, whatever happens, and what is refused."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream.connectors.kafka_connection import Brokers, explained
from millstream.engine.changelog import WEIGHT
from millstream.engine.errors import DataError, JobError, SchemaError
from millstream.engine.sink import Committable, Sink, SinkContext
from millstream.testing import check_sink
from servers.kafka import Broker, kafka_broker

kafka = kafka_broker()

ROWS = pa.RecordBatch.from_pylist([{"id": n, "name": f"n {n}"} for n in range(12)])


def objects(kafka: Broker, topic: str) -> list[dict[str, Any]]:
    return [json.loads(message.value()) for message in kafka.consume(topic)]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"key": "id"}, {"key": "id", "mode": "upsert", "transaction_bytes": 200}])
def test_a_crash_at_any_step_changes_nothing(options: dict[str, Any], kafka: Broker) -> None:
    def make(topic: str) -> Sink:
        # Every place has a progress topic of its own, since all have one job's id.
        return ms.kafka_sink(kafka.address, topic, progress=f"{topic}.progress", **options)

    rows = check_sink(lambda: kafka.create("t", 2), make, lambda topic: objects(kafka, topic), [ROWS])
    assert sorted(row["id"] for row in rows) == list(range(12))


def context(generation: int = 1, restored: int = 0, job_id: str = "j1", job: str = "shop") -> SinkContext:
    return SinkContext(job, job_id, "s1", generation, 0, 1, restored)


def write(sink: Sink, batches: list[pa.RecordBatch], of: SinkContext | None = None) -> None:
    """One start of a job, which writes a batch per epoch."""
    of = of or context()
    schema = batches[0].schema
    sink.check(schema)
    committer, writer = sink.committer(schema, of), sink.writer(schema, of)
    try:
        for epoch, batch in enumerate(batches, of.restored + 1):
            writer.write(batch)
            committer.commit(epoch, writer.prepare(epoch, False))
    finally:
        committer.close()


def prepared(sink: Sink, of: SinkContext, epoch: int, rows: pa.RecordBatch = ROWS) -> list[Committable]:
    writer = sink.writer(rows.schema, of)
    writer.write(rows)
    return list(writer.prepare(epoch, False))


# -- messages --------------------------------------------------------------------------------------------------


def test_keys_go_to_the_partitions_that_other_clients_choose(kafka: Broker) -> None:
    from confluent_kafka import Producer

    keys = ["", "a", "ab", "abc", "abcd", "abcde", "ключ", *(f"order-{n}" for n in range(40))]
    ours, theirs = kafka.create("ours", 7), kafka.create("theirs", 7)
    producer = Producer({"bootstrap.servers": kafka.address, "partitioner": "murmur2_random"})
    for key in keys:
        producer.produce(theirs, b"", key)
    producer.flush(10)
    write(ms.kafka_sink(kafka.address, ours, key="k"), [pa.record_batch({"k": keys})])
    assert {m.key(): m.partition() for m in kafka.consume(ours)} == {
        m.key(): m.partition() for m in kafka.consume(theirs)
    }


def test_what_a_message_is_made_of(kafka: Broker) -> None:
    at = dt.datetime(2026, 1, 31, 12, 0, 0, 123_000)
    row = {
        "id": 7, "shop": "nord", "at": at, "price": Decimal("1.50"), "trace": b"\x00\x01", "note": None,
        "text": 'say "hi"\n', "to": 1,
    }  # fmt: skip
    topic = kafka.create("t", 3)
    headers = {"trace-id": "trace", "shop": "shop"}
    sink = ms.kafka_sink(kafka.address, topic, key=["shop", "id"], headers=headers, timestamp="at", partition="to")
    schema = pa.schema([("at", pa.timestamp("us")), ("price", pa.decimal128(6, 2)), ("note", pa.string())])
    names = list(row)
    types = {field.name: field.type for field in schema}
    batch = pa.record_batch([pa.array([row[name]], types.get(name)) for name in names], names=names)
    write(sink, [batch])
    [message] = kafka.consume(topic)
    assert message.key() == b'{"shop":"nord","id":7}'
    assert message.partition() == 1
    assert message.timestamp()[1] == 1769860800123
    assert message.headers() == [("trace-id", b"\x00\x01"), ("shop", b"nord")]
    assert json.loads(message.value()) == {
        "id": 7, "at": "2026-01-31T12:00:00.123000", "price": "1.50", "note": None, "text": 'say "hi"\n',
    }  # fmt: skip


def test_bytes_are_sent_as_they_are(kafka: Broker) -> None:
    topic = kafka.create("t")
    batch = pa.record_batch({"at": [dt.date(2026, 1, 31), None, None], "body": [b"\xff\x00", b"", None]})
    write(ms.kafka_sink(kafka.address, topic, key="at", value="raw", column="body"), [batch])
    sent = [(message.key(), message.value()) for message in kafka.consume(topic)]
    assert sent == [(b"2026-01-31", b"\xff\x00"), (None, b""), (None, None)]


def changes(*rows: tuple[int, str, int]) -> pa.RecordBatch:
    columns = [pa.array(values) for values in zip(*rows, strict=True)]
    return pa.record_batch(columns, names=["id", "v", WEIGHT])


def test_a_changelog_becomes_upserts_and_tombstones(kafka: Broker) -> None:
    topic = kafka.create("t", cleanup_policy="compact")
    first = changes((1, "a", 1), (2, "b", 1), (3, "c", 1), (4, "d", 1), (4, "d", -1))
    # What comes stands before what goes, and behind it: only whole rows tell.
    second = changes((1, "A", 1), (1, "a", -1), (2, "b", -1), (3, "c", -1), (3, "C", 1), (5, "e", -1), (5, "e", 1))
    write(ms.kafka_sink(kafka.address, topic, key="id"), [first, second])
    sent = [(message.key(), message.value() and json.loads(message.value())["v"]) for message in kafka.consume(topic)]
    assert sent[:3] == [(b"1", "a"), (b"2", "b"), (b"3", "c")]
    assert sorted(sent[3:], key=str) == [(b"1", "A"), (b"2", None), (b"3", "C")]


def test_writers_see_only_parts_of_a_changelog(kafka: Broker) -> None:
    topic = kafka.create("t")
    sink = ms.kafka_sink(kafka.address, topic, key="id")
    schema = changes((1, "a", 1)).schema
    contexts = [SinkContext("shop", "j1", "s1", 1, index, 2) for index in range(2)]
    committer, writers = sink.committer(schema, contexts[0]), [sink.writer(schema, c) for c in contexts]
    for epoch, parts in enumerate([((1, "a", 1), (2, "x", 1)), ((1, "b", 1), (1, "a", -1))], 1):
        for writer, part in zip(writers, parts, strict=True):
            writer.write(changes(part))
        committer.commit(epoch, [c for writer in writers for c in writer.prepare(epoch, False)])
    committer.close()
    last = {message.key(): json.loads(message.value())["v"] for message in kafka.consume(topic)}
    assert last == {b"1": "b", b"2": "x"}


def test_at_least_once_is_there_before_the_checkpoint(kafka: Broker) -> None:
    topic = kafka.create("t", 2)
    sink = ms.kafka_sink(kafka.address, topic, key="id", delivery="at_least_once")
    writer = sink.writer(ROWS.schema, context())
    writer.write(ROWS)
    assert writer.prepare(1, False) == []
    assert sorted(row["id"] for row in objects(kafka, topic)) == list(range(12))


# -- the topic, looked at before the first row -----------------------------------------------------------------


def test_a_topic_that_is_not_there_is_not_made_by_chance(kafka: Broker) -> None:
    with pytest.raises(JobError, match=r"there is no topic 'nowhere'.*kafka-topics.sh --create --topic nowhere"):
        write(ms.kafka_sink(kafka.address, "nowhere"), [ROWS])


def test_a_compacted_topic_needs_keys(kafka: Broker) -> None:
    topic = kafka.create("t", cleanup_policy="compact")
    with pytest.raises(JobError, match=r"compacted and takes no messages without key="):
        write(ms.kafka_sink(kafka.address, topic), [ROWS])
    with pytest.raises(DataError, match=r"no value in its key 'k'"):
        write(ms.kafka_sink(kafka.address, topic, key="k"), [pa.record_batch({"k": ["a", None]})])


def test_what_the_brokers_would_refuse_is_found_before_the_checkpoint(kafka: Broker) -> None:
    topic = kafka.create("t", 2, max_message_bytes=2000)
    sink = ms.kafka_sink(kafka.address, topic, partition="to", timestamp="at")
    day = dt.datetime(2026, 1, 31)
    for row, error in [
        ({"a": "x" * 2000, "to": 0, "at": day}, r"takes 2,\d+ bytes.*2,000 are allowed"),
        ({"a": "x", "to": 2, "at": day}, r"2 in column 'to' is no partition: the topic has 0 to 1"),
        ({"a": "x", "to": 0, "at": dt.datetime(1969, 7, 20)}, r"1969-07-20 00:00:00 in column 'at' is not after"),
    ]:
        with pytest.raises(DataError, match=error):
            prepared(sink, context(), 1, pa.RecordBatch.from_pylist([row]))


# -- markers ---------------------------------------------------------------------------------------------------


def test_a_topic_ahead_of_the_store_is_refused(kafka: Broker) -> None:
    sink = ms.kafka_sink(kafka.address, kafka.create("t"))
    write(sink, [ROWS, ROWS])
    with pytest.raises(JobError, match=r"has epoch 2 of this job already.*goes on from epoch 1"):
        write(sink, [ROWS], context(2, restored=1))
    assert len(kafka.consume(sink.topic)) == 24


def test_a_job_that_starts_anew_beside_its_messages_is_refused(kafka: Broker) -> None:
    topic = kafka.create("t")
    write(ms.kafka_sink(kafka.address, topic), [ROWS])
    with pytest.raises(JobError, match=r"from another store \(up to epoch 1\).*again=True"):
        write(ms.kafka_sink(kafka.address, topic), [ROWS], context(job_id="j2"))
    write(ms.kafka_sink(kafka.address, topic, again=True), [ROWS], context(job_id="j3"))
    write(ms.kafka_sink(kafka.address, topic), [ROWS], context(job_id="j4", job="other"))
    assert len(kafka.consume(topic)) == 36


def test_a_progress_topic_that_has_gone_is_refused(kafka: Broker) -> None:
    """Whether the epoch that is committed again was there before nobody knows any more."""
    sink = ms.kafka_sink(kafka.address, kafka.create("t"))
    committer, rows = sink.committer(ROWS.schema, context()), prepared(sink, context(), 1)
    committer.commit(1, rows)
    committer.close()
    admin = kafka.admin
    admin.delete_topics([f"millstream.shop.{sink.topic}"])[f"millstream.shop.{sink.topic}"].result(10)
    committer = sink.committer(ROWS.schema, context(2, restored=1))
    with pytest.raises(JobError, match=r"knows nothing of this job"):
        committer.commit(1, rows)
    committer.close()
    assert len(kafka.consume(sink.topic)) == 12


def test_a_progress_topic_must_be_one(kafka: Broker) -> None:
    topic = kafka.create("t")
    for progress, error in [
        (kafka.create("p", 2, cleanup_policy="compact"), "has 2 partitions and must have one"),
        (kafka.create("p"), "cleanup.policy is 'delete'"),
    ]:
        with pytest.raises(JobError, match=error):
            write(ms.kafka_sink(kafka.address, topic, progress=progress), [ROWS])
    foreign = kafka.create("p", cleanup_policy="compact")
    kafka.produce(foreign, {"key": b"a", "value": b"something"})
    with pytest.raises(JobError, match=r"has a record b'a' of something else"):
        write(ms.kafka_sink(kafka.address, topic, progress=foreign), [ROWS])


def test_a_later_start_ends_what_an_earlier_one_is_about_to_do(kafka: Broker) -> None:
    sink = ms.kafka_sink(kafka.address, kafka.create("t"))
    old, new = context(1), context(2)
    zombie = sink.committer(ROWS.schema, old)
    rows = prepared(sink, old, 1)
    live = sink.committer(ROWS.schema, new)
    with pytest.raises(JobError, match=r"another process that runs this job has taken over"):
        zombie.commit(1, rows)
    with pytest.raises(JobError, match=r"this is start 1"):
        sink.committer(ROWS.schema, old)
    # Its last act has fenced the live one, which finds out that it is still the owner.
    live.commit(1, rows)
    live.close()
    zombie.close()
    assert len(kafka.consume(sink.topic)) == 12


def test_a_copy_of_the_store_that_went_on_differently_is_refused(kafka: Broker) -> None:
    sink = ms.kafka_sink(kafka.address, kafka.create("t"))
    write(sink, [ROWS])
    committer = sink.committer(ROWS.schema, context(2, restored=1))
    with pytest.raises(JobError, match=r"has other rows of epoch 1 than the checkpoint store"):
        committer.commit(1, prepared(sink, context(2), 1, ROWS.slice(3)))
    committer.close()


# -- what is refused when the job is built, and what is never said ---------------------------------------------


@pytest.mark.parametrize(
    ("schema", "options", "error"),
    [
        ({"a": pa.int64()}, {"key": "b"}, "no column 'b'"),
        ({"a": pa.float64()}, {"key": "a"}, "no key that others would find again"),
        ({"a": pa.int64()}, {"headers": {"h": "a"}}, "must be text or bytes"),
        ({"a": pa.int64()}, {"value": "raw", "column": "a"}, "must be text or bytes"),
        ({"a": pa.int64()}, {"timestamp": "a"}, "not a timestamp"),
        ({"a": pa.string()}, {"partition": "a"}, "not a whole number"),
        ({"a": pa.string()}, {"value": "raw"}, "no column 'value'"),
        ({"a": pa.string()}, {"headers": {"h": "a"}}, "no column is left"),
        ({"a": pa.duration("ns")}, {}, "'a' of type duration"),
        ({"a": pa.int64(), "b": pa.list_(pa.int64()), WEIGHT: pa.int64()}, {"key": "a"}, "whole rows"),
    ],
)
def test_rows_of_which_no_messages_can_be_made_are_refused(
    schema: dict[str, pa.DataType], options: dict[str, Any], error: str
) -> None:
    with pytest.raises(SchemaError, match=error):
        ms.kafka_sink("nowhere:1", "t", **options).check(pa.schema(schema))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"brokers": ""}, "host:port"),
        ({"topic": ""}, "no name"),
        ({"value": "xml"}, "'json', 'csv' or 'raw', or avro_values"),
        ({"column": "a"}, "is for value='raw'"),
        ({"mode": "replace"}, "'append' or 'upsert'"),
        ({"mode": "upsert"}, "need key="),
        ({"mode": "upsert", "key": "a", "delivery": "at_least_once"}, "need key="),
        ({"delivery": "maybe"}, "'exactly_once' or 'at_least_once'"),
        ({"settings": {"transactional.id": "mine"}}, "'transactional.id' cannot be set: it belongs"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], error: str) -> None:
    with pytest.raises(JobError, match=error):
        ms.kafka_sink(**{"brokers": "nowhere:1", "topic": "t", **options})


def test_a_changelog_needs_a_key() -> None:
    assert ms.kafka_sink("nowhere:1", "t", key="a").takes_changelog
    for options in ({}, {"key": "a", "mode": "append"}, {"key": "a", "delivery": "at_least_once"}):
        assert not ms.kafka_sink("nowhere:1", "t", **options).takes_changelog


def test_secrets_are_never_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "tweet-tweet")
    settings = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "me"}
    for password in ("${env:CANARY}", "tweet-tweet"):
        sink = ms.kafka_sink("127.0.0.1:1", "t", patience="10ms", settings={**settings, "sasl.password": password})
        said = [repr(sink), repr(sink.brokers), sink.identity(), sink.name, sink.guarantee(), str(sink)]
        bad = ms.kafka_sink("127.0.0.1:1", "t", settings={"sasl.password": password, "security.protocol": password})
        with pytest.raises(JobError) as refused:
            bad.committer(ROWS.schema, context())
        error: BaseException | None = refused.value
        while error is not None:
            said += [str(error), repr(error)]
            error = error.__cause__
        assert "tweet" not in " ".join(said)
        brokers = Brokers("x:1", {"sasl.password": password})
        assert brokers.hide(explained(ValueError("is 'tweet-tweet' right?"))) == "is '***' right?"


def test_a_variable_that_is_not_set_is_named() -> None:
    sink = ms.kafka_sink("127.0.0.1:1", "t", settings={"sasl.password": "${env:NOT_SET_ANYWHERE}"})
    with pytest.raises(JobError, match=r"the environment variable NOT_SET_ANYWHERE is not set"):
        sink.committer(ROWS.schema, context())
