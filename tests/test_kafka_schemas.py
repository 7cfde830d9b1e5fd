"""Avro, Protobuf and CSV through a real broker and a real schema registry."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import millstream as ms
import pyarrow as pa
import pytest
from google.protobuf.duration_pb2 import Duration
from kafka_kit import Running, letters_of, run, until
from millstream.connectors.protobuf_format import own_message
from millstream.connectors.protobuf_schemas import file_of, message_of
from millstream.connectors.registered_messages import header
from nursery import Nursery, Start
from servers.kafka import Broker, free_ports, kafka_broker
from servers.registry import RegistryServer, schema_registry

kafka = kafka_broker()
registry = schema_registry()

ORDER = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "note", "type": ["null", "string"], "default": None},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
    ],
}
ROWS = [{"id": n, "note": None if n % 3 else f"no. {n}", "day": f"2026-01-0{n % 9 + 1}"} for n in range(20)]
JOB = """
import millstream as ms

job = ms.Job("avro")
rows = job.read(ms.files("input/*.jsonl", name="rows"))
avro = ms.avro_values({registry!r})
rows.write(ms.kafka_sink({brokers!r}, {topic!r}, key="n", key_as=avro, value=avro))
"""
COLUMNS = {"id": int, "note": str, "day": "date32"}


def avro(schema: Any, value: Any) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), value)
    return stream.getvalue()


def rows() -> list[dict[str, Any]]:
    return pa.Table.from_pylist(ROWS).cast(table_schema()).to_pylist()


def table_schema() -> pa.Schema:
    return pa.schema({"id": pa.int64(), "note": pa.string(), "day": pa.date32()})


def write(sink: Any, store: Path | None = None) -> None:
    job = ms.Job("write")
    job.read(ms.memory_source(pa.Table.from_pylist(rows(), schema=table_schema()))).write(sink)
    job.run(store, restarts=0)


# -- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_registry", [True, False])
def test_avro_rows_come_back(with_registry: bool, kafka: Broker, registry: RegistryServer) -> None:
    topic = kafka.create("orders")
    values = ms.avro_values(registry.url if with_registry else None)
    write(ms.kafka_sink(kafka.address, topic, key="id", value=values))

    source = ms.kafka_source(
        kafka.address, topic, value=values if with_registry else ms.avro_values(message=derived()), bounded=True
    )

    assert source.schema == table_schema()
    assert sorted(run(source), key=lambda row: row["id"]) == rows()
    if with_registry:
        found = registry.ask(f"/subjects/{topic}-value/versions/latest")
        assert {message.value()[:5] for message in kafka.consume(topic)} == {header(found["id"])}


def derived() -> dict[str, Any]:
    types = {"id": "long", "note": "string", "day": {"type": "int", "logicalType": "date"}}
    fields = [{"name": name, "type": ["null", type_], "default": None} for name, type_ in types.items()]
    return {"type": "record", "name": "any", "fields": fields}


def test_csv_rows_come_back(kafka: Broker) -> None:
    topic = kafka.create("orders")
    write(ms.kafka_sink(kafka.address, topic, value="csv"))
    source = ms.kafka_source(kafka.address, topic, value="csv", schema=COLUMNS, bounded=True)
    assert sorted(run(source), key=lambda row: row["id"]) == rows()
    assert kafka.consume(topic)[0].value() == b'0,"no. 0",2026-01-01'


def test_a_sink_that_may_not_register_takes_the_latest_schema_or_looks_its_own_up(
    kafka: Broker, registry: RegistryServer
) -> None:
    topic = kafka.create("orders")

    def sink(**options: Any) -> Any:
        return ms.kafka_sink(
            kafka.address, topic, value=ms.avro_values(registry.url, auto_register=False, **options), again=True
        )

    with pytest.raises(ms.JobError, match=rf"does not have the schema under subject '{topic}-value'"):
        write(sink())
    schema = derived()
    schema["fields"].append({"name": "more", "type": "int", "default": 7})
    id_ = registry.register(f"{topic}-value", schema)
    write(sink())
    write(sink(message=schema))
    with pytest.raises(ms.JobError, match="does not have the schema"):
        write(sink(message={**schema, "name": "another"}))
    assert {message.value()[:5] for message in kafka.consume(topic)} == {header(id_)}
    assert registry.ask(f"/subjects/{topic}-value/versions") == [1]
    source = ms.kafka_source(kafka.address, topic, value=ms.avro_values(registry.url), bounded=True)
    assert {row["more"] for row in run(source)} == {7}


def test_a_schema_that_the_registry_finds_incompatible_stops_the_job_at_its_start(
    kafka: Broker, registry: RegistryServer
) -> None:
    topic = kafka.create("orders")
    registry.ask_to_keep_compatible(f"{topic}-value")
    registry.register(f"{topic}-value", ORDER)
    with pytest.raises(ms.JobError, match="not compatible"):
        write(ms.kafka_sink(kafka.address, topic, value=ms.avro_values(registry.url)))
    assert kafka.consume(topic) == []


def test_protobuf_rows_come_back_with_and_without_a_registry(kafka: Broker, registry: RegistryServer) -> None:
    table = pa.table({"id": [1, 2], "note": ["x", None], "tags": [["a"], []], "in": [{"n": 5}, {"n": None}]})
    topic, plain = kafka.create("orders"), kafka.create("plain")
    for sink in (
        ms.kafka_sink(kafka.address, topic, value=ms.protobuf_values(registry.url)),
        ms.kafka_sink(kafka.address, plain, value=ms.protobuf_values()),
    ):
        job = ms.Job(f"write {sink.topic}")
        job.read(ms.memory_source(table)).write(sink)
        job.run(restarts=0)

    source = ms.kafka_source(kafka.address, topic, value=ms.protobuf_values(registry.url), bounded=True)

    assert run(source) == table.to_pylist()
    id_ = registry.ask(f"/subjects/{topic}-value/versions/latest")["id"]
    with_id = [message.value() for message in kafka.consume(topic)]
    assert with_id == [header(id_) + b"\x00" + message.value() for message in kafka.consume(plain)]
    message = message_of(file_of(own_message(table.schema, "x", None)), [0])
    source = ms.kafka_source(kafka.address, plain, value=ms.protobuf_values(message=message), bounded=True)
    assert run(source) == table.to_pylist()
    source = ms.kafka_source(
        kafka.address, topic, value=ms.protobuf_values(registry.url), schema={"id": "int32"}, bounded=True
    )
    assert run(source) == [{"id": 1}, {"id": 2}]


def test_a_protobuf_class_is_registered_and_only_its_messages_are_taken(
    kafka: Broker, registry: RegistryServer
) -> None:
    topic = kafka.create("spans")
    sink = ms.kafka_sink(kafka.address, topic, value=ms.protobuf_values(registry.url, message=Duration))
    job = ms.Job("write")
    job.read(ms.memory_source(pa.table({"seconds": [1, 2], "nanos": pa.array([0, 5], pa.int32())}))).write(sink)
    job.run(restarts=0)
    id_ = registry.register(f"{topic}-value", 'syntax = "proto3"; message Other { int64 seconds = 1; }', "PROTOBUF")
    kafka.produce(topic, {"value": header(id_) + b"\x00\x08\x07"}, {"value": header(id_) + b"\x04\x02\x08\x00"})

    source = ms.kafka_source(
        kafka.address,
        topic,
        value=ms.protobuf_values(registry.url, message=Duration),
        bounded=True,
        on_error="dead_letter",
    )

    assert run(source) == [{"seconds": 1, "nanos": 0}, {"seconds": 2, "nanos": 5}]


def test_a_changelog_leaves_tombstones_also_of_avro(kafka: Broker, registry: RegistryServer) -> None:
    topic = kafka.create("totals", cleanup_policy="compact")
    job = ms.Job("totals")
    orders = job.read(ms.memory_source(pa.Table.from_pylist([{"k": n % 3, "n": n} for n in range(30)])))
    totals = orders.group_by("k").agg(n=ms.sum("n"))
    totals.write(ms.kafka_sink(kafka.address, topic, key="k", value=ms.avro_values(registry.url)))
    job.run(restarts=0)
    source = ms.kafka_source(kafka.address, topic, value=ms.avro_values(registry.url), bounded=True)
    assert sorted((row["k"], row["n"]) for row in run(source)) == [(k, sum(range(k, 30, 3))) for k in range(3)]


# -- evolution and poison --------------------------------------------------------------------------------------------


def test_versions_mix_and_references_are_followed(kafka: Broker, registry: RegistryServer) -> None:
    topic = kafka.create("orders")
    subject = f"{topic}-value"
    shop = {"type": "record", "name": "Shop", "namespace": "a", "fields": [{"name": "city", "type": "string"}]}
    registry.register(f"{topic}-shop", shop)
    one = {"type": "record", "name": "O", "namespace": "a", "fields": [{"name": "id", "type": "int"}]}
    two = {
        **one,
        "fields": [{"name": "id", "type": "long"}, {"name": "shop", "type": ["null", "a.Shop"], "default": None}],
    }
    first = registry.register(subject, one)
    reference = {"name": "a.Shop", "subject": f"{topic}-shop", "version": 1}
    second = registry.register(subject, two, references=[reference])
    in_full = json.loads(json.dumps(two).replace('"a.Shop"', json.dumps(shop)))
    values = [
        header(second) + avro(in_full, {"id": 2**40, "shop": {"city": "Rome"}}),
        header(first) + avro(one, {"id": 1}),
        header(second) + avro(in_full, {"id": 3, "shop": None}),
    ]
    kafka.produce(topic, *({"value": value} for value in values))

    source = ms.kafka_source(kafka.address, topic, value=ms.avro_values(registry.url), bounded=True)

    assert run(source) == [{"id": 2**40, "shop": {"city": "Rome"}}, {"id": 1, "shop": None}, {"id": 3, "shop": None}]


def test_poison_is_put_aside_with_its_place_and_bytes(kafka: Broker, registry: RegistryServer, tmp_path: Path) -> None:
    topic = kafka.create("orders")
    id_ = registry.register(f"{topic}-value", ORDER)
    good = header(id_) + avro(ORDER, {"id": 1, "note": None, "price": Decimal(1)})
    nulls = {"name": "none", "type": {"type": "array", "items": "null"}}
    bomb = registry.register(f"{topic}-value", {**ORDER, "fields": [nulls, *ORDER["fields"]]})
    poison = [b"\x01" + good[1:], header(9_999) + good[5:], good[:-1], good + b"\x00", b"", b'{"id": 1}']
    poison.append(header(bomb) + b"\x80\xa8\xd6\xb9\x07\0" + good[5:])
    kafka.produce(topic, *({"value": value} for value in [good, *poison, good]))
    options = {"value": ms.avro_values(registry.url, message=ORDER), "bounded": True}

    with pytest.raises(ms.DataError, match="offset 1: expected a message that begins with a zero byte"):
        run(ms.kafka_source(kafka.address, topic, **options))
    source = ms.kafka_source(kafka.address, topic, on_error="dead_letter", **options)
    store = tmp_path / "store.duckdb"
    found = run(source, store)

    assert [row["id"] for row in found] == [1, 1]
    letters = letters_of(store)
    assert [(letter["split"], letter["position"], letter["raw"]) for letter in letters] == [
        (f"{topic}/0", f"offset {place}", value) for place, value in enumerate(poison, 1)
    ]
    assert "the registry knows no schema 9999" in letters[1]["error"]
    assert "lists of 1000000000 items that take no bytes" in letters[6]["error"]


# -- the registry is away --------------------------------------------------------------------------------------------


def test_a_registry_that_is_away_is_nobodys_poison(kafka: Broker, registry: RegistryServer, tmp_path: Path) -> None:
    topic = kafka.create("orders")
    subject = f"{topic}-value"
    first = registry.register(subject, ORDER)
    value = avro(ORDER, {"id": 1, "note": None, "price": Decimal(1)})
    (port,) = free_ports(1)
    away = {"url": f"http://127.0.0.1:{port}", "max.retries": 0}
    kafka.produce(topic, {"value": header(first) + value})
    declared = {"schema": {"id": int}, "bounded": True, "on_error": "dead_letter"}

    with pytest.raises(ms.ExternalError, match=r"schema registry http://127\.0\.0\.1"):
        ms.kafka_source(kafka.address, topic, value=ms.avro_values(away))
    with pytest.raises(ms.JobFailed, match=r"schema registry .* Connection refused"):
        write(ms.kafka_sink(kafka.address, topic, value=ms.avro_values(away)))
    store = tmp_path / "store.duckdb"
    with pytest.raises(ms.JobFailed, match=r"schema registry .* Connection refused"):
        run(ms.kafka_source(kafka.address, topic, value=ms.avro_values(away), **declared), store)
    assert letters_of(store) == []
    assert run(ms.kafka_source(kafka.address, topic, value=ms.avro_values(registry.url), **declared), store) == [
        {"id": 1}
    ]


@pytest.mark.slow
def test_a_registry_that_goes_away_and_comes_back_costs_restarts_and_no_message(
    kafka: Broker, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, registry: RegistryServer
) -> None:
    """A message with a new id comes while it is away; the source goes on with those it knows."""
    topic = kafka.create("orders")
    schemas = [{"type": "record", "name": "O", "fields": [{"name": "n", "type": type_}]} for type_ in ("int", "long")]
    own = RegistryServer(tmp_path_factory.mktemp("own"))
    own.start()
    try:
        first, second = (own.register(f"{topic}-value", schema) for schema in schemas)
        source = ms.kafka_source(
            kafka.address,
            topic,
            value=ms.avro_values({"url": own.url, "max.retries": 0}),
            schema={"n": int},
            on_error="dead_letter",
        )
        with Running(source, tmp_path / "store.duckdb", restarts=1_000) as running:
            kafka.produce(topic, {"value": header(first) + avro(schemas[0], {"n": 0})})
            running.has([0])
            own.kill()
            kafka.produce(topic, {"value": header(first) + avro(schemas[0], {"n": 1})})
            running.has([0, 1])
            kafka.produce(topic, {"value": header(second) + avro(schemas[1], {"n": 2})})
            until(lambda: running.status.generation > 1)
            own.start()
            running.has([0, 1, 2])
        assert letters_of(tmp_path / "store.duckdb") == []
    finally:
        own.kill()


@pytest.mark.slow
def test_a_job_killed_where_avro_is_staged_and_sent_has_written_each_row_once(
    kafka: Broker, registry: RegistryServer, tmp_path: Path
) -> None:
    topic = kafka.create("orders", 2)
    (tmp_path / "input").mkdir()
    for part in range(4):
        (tmp_path / "input" / f"{part}.jsonl").write_text(
            "".join(json.dumps({"n": n}) + "\n" for n in range(part, 48, 4))
        )
    (tmp_path / "job.py").write_text(JOB.format(brokers=kafka.address, topic=topic, registry=registry.url))
    with Nursery() as nursery:
        for point in ("store.before_commit@2", "kafka.sent@1", "kafka.visible@1"):
            name, _, hits = point.partition("@")
            end = nursery.run(Start(str(tmp_path), failpoint=f"{name}=kill@{hits}"))
            assert end.killed, (point, end)
        end = nursery.run(Start(str(tmp_path)))
    assert end.outcome == "finished", end
    source = ms.kafka_source(kafka.address, topic, value=ms.avro_values(registry.url), bounded=True)
    assert sorted(row["n"] for row in run(source)) == list(range(48))
    assert registry.ask(f"/subjects/{topic}-value/versions") == [1]


def test_logins_stay_out_of_errors_and_of_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGIN", "me:very-secret")
    (port,) = free_ports(1)
    settings = {"url": f"http://127.0.0.1:{port}", "basic.auth.user.info": "${env:LOGIN}", "max.retries": 0}
    with pytest.raises(ms.ExternalError) as failed:
        ms.kafka_source("127.0.0.1:1", "orders", value=ms.avro_values(settings))
    assert "secret" not in str(failed.value)
    source = ms.kafka_source("127.0.0.1:1", "orders", value=ms.avro_values(settings), schema={"n": int})
    sink = ms.kafka_sink("127.0.0.1:1", "orders", value=ms.avro_values(settings))
    assert "secret" not in repr(source) + repr(sink) + repr(sink.shape)
    with pytest.raises(ms.JobError) as refused:
        ms.kafka_source("127.0.0.1:1", "orders", value=ms.avro_values({**settings, "no.such": "${env:LOGIN}"}))
    assert "secret" not in str(refused.value)
