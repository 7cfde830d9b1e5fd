"""Avro and Protobuf keys through a real broker and a real schema registry, beside Confluent's own serializers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import fastavro
import millstream as ms
import pyarrow as pa
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf.duration_pb2 import Duration
from kafka_kit import letters_of, run
from millstream.connectors.registered_messages import header
from servers.kafka import Broker, kafka_broker
from servers.registry import RegistryServer, schema_registry

kafka = kafka_broker()
registry = schema_registry()

ROWS = pa.table({"id": [7, None, 9], "shop": ["Rome", "Oslo", None]})
PAIR = {
    "type": "record",
    "name": "Pair",
    "fields": [{"name": "id", "type": "long"}, {"name": "shop", "type": ["null", "string"], "default": None}],
}


def write(sink: Any, rows: pa.Table = ROWS) -> None:
    job = ms.Job("write")
    job.read(ms.memory_source(rows)).write(sink)
    job.run(restarts=0)


def source(kafka: Broker, topic: str, key: Any, **options: Any) -> Any:
    return ms.kafka_source(kafka.address, topic, value="string", key=key, metadata=["key"], bounded=True, **options)


def context(topic: str) -> SerializationContext:
    return SerializationContext(topic, MessageField.KEY)


def by_confluent(registry: RegistryServer, topic: str, *keys: Any, schema: Any) -> list[bytes]:
    """Serialize keys; the schema is registered first as it is, since this serializer writes "long" in other words."""
    registry.register(f"{topic}-key", schema if isinstance(schema, dict) else json.dumps(schema))
    with SchemaRegistryClient({"url": registry.url}) as client:
        options = {"auto.register.schemas": False, "use.latest.version": True}
        serializer = AvroSerializer(client, json.dumps(schema), conf=options)
        return [serializer(key, context(topic)) for key in keys]


# -- written ---------------------------------------------------------------------------------------------------------


def test_one_column_is_the_whole_key_as_confluents_deserializer_reads_it(
    kafka: Broker, registry: RegistryServer
) -> None:
    topic = kafka.create("orders", 5)
    write(ms.kafka_sink(kafka.address, topic, key="id", key_as=ms.avro_values(registry.url)))

    assert registry.ask(f"/subjects/{topic}-key/versions/latest")["schema"] == '"long"'
    found = kafka.consume(topic)
    keys = {json.loads(m.value())["shop"]: m.key() for m in found}
    with SchemaRegistryClient({"url": registry.url}) as client:
        deserializer = AvroDeserializer(client)
        read = {shop: None if key is None else deserializer(key, context(topic)) for shop, key in keys.items()}
    assert read == {"Rome": 7, "Oslo": None, None: 9}
    (mine,) = by_confluent(registry, topic, 7, schema="long")
    assert keys["Rome"] == mine
    other = kafka.create("others", 5)
    write(ms.kafka_sink(kafka.address, other, key="raw", value="raw", column="raw"), pa.table({"raw": [mine]}))
    assert kafka.consume(other)[0].partition() == next(m for m in found if m.key() == mine).partition()


@pytest.mark.parametrize("values", [ms.avro_values, ms.protobuf_values])
def test_several_columns_come_back_as_a_struct(values: Any, kafka: Broker, registry: RegistryServer) -> None:
    topic = kafka.create("orders")
    write(ms.kafka_sink(kafka.address, topic, key=["id", "shop"], key_as=values(registry.url)))

    rows = run(source(kafka, topic, values(registry.url)))

    assert [row["key"] for row in rows] == ROWS.to_pylist()
    id_ = registry.ask(f"/subjects/{topic}-key/versions/latest")["id"]
    assert {message.key()[:5] for message in kafka.consume(topic)} == {header(id_)}


def test_a_schema_of_ones_own_is_taken_or_looked_up(kafka: Broker, registry: RegistryServer) -> None:
    topic = kafka.create("orders")
    rows = ROWS.slice(0, 1)

    def sink(**options: Any) -> Any:
        return ms.kafka_sink(kafka.address, topic, key="id", key_as=ms.avro_values(registry.url, **options), again=True)

    with pytest.raises(ms.JobError, match=rf"does not have the schema under subject '{topic}-key'"):
        write(sink(auto_register=False), rows)
    id_ = registry.register(f"{topic}-key", PAIR)
    write(sink(auto_register=False), rows)
    write(sink(message=PAIR, subject=f"{topic}-key", auto_register=False), rows)
    keys = {message.key() for message in kafka.consume(topic)}
    assert keys == set(by_confluent(registry, topic, {"id": 7, "shop": None}, schema=PAIR))
    assert {key[:5] for key in keys} == {header(id_)}
    two = ms.kafka_sink(kafka.address, topic, key=["id", "shop"], key_as=ms.avro_values(message="long"))
    with pytest.raises(ms.SchemaError, match="the key: the Avro schema is no record, and takes one column, not id, sh"):
        write(two)


def test_a_changelog_leaves_one_message_or_tombstone_of_each_avro_key(kafka: Broker, registry: RegistryServer) -> None:
    topic = kafka.create("totals", cleanup_policy="compact")
    job = ms.Job("totals")
    orders = job.read(ms.memory_source(pa.Table.from_pylist([{"k": n % 3, "n": n} for n in range(30)])))
    totals = orders.group_by("k").agg(n=ms.sum("n"))
    options = {"key_as": ms.avro_values(registry.url), "value": ms.avro_values(registry.url)}
    totals.write(ms.kafka_sink(kafka.address, topic, key="k", **options))
    job.run(restarts=0)
    last = {message.key(): message for message in kafka.consume(topic)}
    assert set(last) == set(by_confluent(registry, topic, 0, 1, 2, schema="long"))


# -- read ------------------------------------------------------------------------------------------------------------


def test_keys_of_confluents_serializer_are_read_each_by_its_id_as_the_latest_schema(
    kafka: Broker, registry: RegistryServer
) -> None:
    topic = kafka.create("orders")
    old = {**PAIR, "fields": [{"name": "id", "type": "int"}]}
    keys = by_confluent(registry, topic, {"id": 1}, schema=old)
    keys += by_confluent(registry, topic, {"id": 2**40, "shop": "Rome"}, {"id": 3, "shop": None}, schema=PAIR)
    kafka.produce(topic, *({"value": b"x", "key": key} for key in [*keys, None, keys[0]]))
    key = ms.avro_values(registry.url)

    out, job = ms.memory_sink(), ms.Job("read")
    rows = job.read(source(kafka, topic, key))
    rows.with_columns(id=ms.call("struct_field", ms.col("key"), indices=["id"])).write(out)
    job.run(restarts=0)

    found = [row["key"] for row in out.rows()]
    old_one = {"id": 1, "shop": None}
    assert found == [old_one, {"id": 2**40, "shop": "Rome"}, {"id": 3, "shop": None}, None, old_one]
    assert [row["id"] for row in out.rows()] == [1, 2**40, 3, None, 1]
    assert "key" not in source(kafka, topic, key).pushed_down(frozenset({"value"}), None, None).schema.names


def test_a_key_that_is_no_record_is_a_plain_column_also_without_a_registry(
    kafka: Broker, registry: RegistryServer
) -> None:
    topic, plain = kafka.create("orders"), kafka.create("plain")
    keys = by_confluent(registry, topic, "Rome", "Oslo", schema="string")
    kafka.produce(topic, *({"value": b"x", "key": key} for key in [*keys, None]))
    kafka.produce(plain, {"value": b"x", "key": b"\x08Rome"})
    assert [row["key"] for row in run(source(kafka, topic, ms.avro_values(registry.url)))] == ["Rome", "Oslo", None]
    assert [row["key"] for row in run(source(kafka, plain, ms.avro_values(message="string")))] == ["Rome"]


def test_bad_keys_are_put_aside_with_the_message_and_say_what_they_were(
    kafka: Broker, registry: RegistryServer, tmp_path: Path
) -> None:
    topic = kafka.create("orders")
    (good,) = by_confluent(registry, topic, {"id": 1, "shop": "a"}, schema=PAIR)
    bad = [b"", good[:-1], b"\x01" + good[1:], header(9_999), good + b"\x00"]
    kafka.produce(topic, *({"value": b"v%d" % n, "key": key} for n, key in enumerate([good, *bad, None, good])))
    key = ms.avro_values(registry.url)

    with pytest.raises(ms.DataError, match=r"offset 1: column 'key': expected a message .*; the key is b''"):
        run(source(kafka, topic, key))
    store = tmp_path / "store.duckdb"
    rows = run(source(kafka, topic, key, on_error="dead_letter"), store)

    assert [(row["value"], row["key"] and row["key"]["id"]) for row in rows] == [("v0", 1), ("v6", None), ("v7", 1)]
    letters = letters_of(store)
    assert [letter["raw"] for letter in letters] == [b"v%d" % n for n in range(1, 6)]
    assert all(f"the key is {key!r}" in letter["error"] for key, letter in zip(bad, letters, strict=True))


def test_a_protobuf_class_is_what_keys_are_read_as(kafka: Broker, registry: RegistryServer) -> None:
    topic = kafka.create("spans")
    key = ms.protobuf_values(registry.url, message=Duration)
    rows = pa.table({"seconds": [1, 2], "nanos": pa.array([0, 5], pa.int32())})
    write(ms.kafka_sink(kafka.address, topic, key=["seconds", "nanos"], key_as=key), rows)
    assert [row["key"] for row in run(source(kafka, topic, key))] == rows.to_pylist()
    sent = {message.key()[6:] for message in kafka.consume(topic)}
    assert sent == {Duration(seconds=1).SerializeToString(), Duration(seconds=2, nanos=5).SerializeToString()}


def test_what_makes_no_sense_is_refused() -> None:
    values = ms.avro_values(message="long")
    with pytest.raises(ms.JobError, match="no column has them"):
        ms.kafka_source("127.0.0.1:1", "t", value="raw", key=values)
    with pytest.raises(ms.JobError, match=r"key is 'binary' or .* or avro_values"):
        ms.kafka_source("127.0.0.1:1", "t", value="raw", key="avro")  # type: ignore[arg-type]
    with pytest.raises(ms.JobError, match="key_as= says what keys are, and there are none"):
        ms.kafka_sink("127.0.0.1:1", "t", key_as=values)
    with pytest.raises(ms.JobError, match="key_as must be avro_values"):
        ms.kafka_sink("127.0.0.1:1", "t", key="id", key_as="avro")  # type: ignore[arg-type]
    with pytest.raises(ms.JobError, match=r"key: avro_values\(\) needs a registry"):
        ms.kafka_source("127.0.0.1:1", "t", value="raw", key=ms.avro_values(), metadata=["key"])


def test_one_lone_key_in_avro_is_what_fastavro_writes(kafka: Broker) -> None:
    topic = kafka.create("orders")
    write(ms.kafka_sink(kafka.address, topic, key="shop", key_as=ms.avro_values()))
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, "string", "Rome")
    assert {message.key() for message in kafka.consume(topic)} >= {stream.getvalue(), None}
