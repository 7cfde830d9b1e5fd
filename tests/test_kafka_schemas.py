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
from kafka_kit import run
from millstream.connectors.registered_messages import header
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
    options = {"registry": registry.url} if with_registry else {}
    write(ms.kafka_sink(kafka.address, topic, key="id", value="avro", **options))

    given = options or {"message": derived()}
    source = ms.kafka_source(kafka.address, topic, value="avro", bounded=True, **given)

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
            kafka.address, topic, value="avro", registry=registry.url, auto_register=False, again=True, **options
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
    source = ms.kafka_source(kafka.address, topic, value="avro", registry=registry.url, bounded=True)
    assert {row["more"] for row in run(source)} == {7}


def test_a_schema_that_the_registry_finds_incompatible_stops_the_job_at_its_start(
    kafka: Broker, registry: RegistryServer
) -> None:
    topic = kafka.create("orders")
    registry.ask_to_keep_compatible(f"{topic}-value")
    registry.register(f"{topic}-value", ORDER)
    with pytest.raises(ms.JobError, match="not compatible"):
        write(ms.kafka_sink(kafka.address, topic, value="avro", registry=registry.url))
    assert kafka.consume(topic) == []


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

    source = ms.kafka_source(kafka.address, topic, value="avro", registry=registry.url, bounded=True)

    assert run(source) == [{"id": 2**40, "shop": {"city": "Rome"}}, {"id": 1, "shop": None}, {"id": 3, "shop": None}]


def test_poison_is_put_aside_with_its_place_and_bytes(kafka: Broker, registry: RegistryServer, tmp_path: Path) -> None:
    topic = kafka.create("orders")
    id_ = registry.register(f"{topic}-value", ORDER)
    good = header(id_) + avro(ORDER, {"id": 1, "note": None, "price": Decimal(1)})
    poison = [b"\x01" + good[1:], header(9_999) + good[5:], good[:-1], good + b"\x00", b"", b'{"id": 1}']
    kafka.produce(topic, *({"value": value} for value in [good, *poison, good]))
    options = {"value": "avro", "registry": registry.url, "bounded": True}

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


# -- the registry is away --------------------------------------------------------------------------------------------


def test_a_registry_that_is_away_is_nobodys_poison(kafka: Broker, registry: RegistryServer, tmp_path: Path) -> None:
    topic = kafka.create("orders")
    subject = f"{topic}-value"
    first = registry.register(subject, ORDER)
    value = avro(ORDER, {"id": 1, "note": None, "price": Decimal(1)})
    (port,) = free_ports(1)
    away = {"url": f"http://127.0.0.1:{port}", "max.retries": 0}
    kafka.produce(topic, {"value": header(first) + value})
    declared = {"value": "avro", "schema": {"id": int}, "bounded": True, "on_error": "dead_letter"}

    with pytest.raises(ms.ExternalError, match=r"schema registry http://127\.0\.0\.1"):
        ms.kafka_source(kafka.address, topic, value="avro", registry=away)
    with pytest.raises(ms.JobFailed, match=r"schema registry .* Connection refused"):
        write(ms.kafka_sink(kafka.address, topic, value="avro", registry=away))
    store = tmp_path / "store.duckdb"
    with pytest.raises(ms.JobFailed, match=r"schema registry .* Connection refused"):
        run(ms.kafka_source(kafka.address, topic, registry=away, **declared), store)
    assert letters_of(store) == []
    assert run(ms.kafka_source(kafka.address, topic, registry=registry.url, **declared), store) == [{"id": 1}]


def test_logins_stay_out_of_errors_and_of_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGIN", "me:very-secret")
    (port,) = free_ports(1)
    settings = {"url": f"http://127.0.0.1:{port}", "basic.auth.user.info": "${env:LOGIN}", "max.retries": 0}
    with pytest.raises(ms.ExternalError) as failed:
        ms.kafka_source("127.0.0.1:1", "orders", value="avro", registry=settings)
    assert "secret" not in str(failed.value)
    source = ms.kafka_source("127.0.0.1:1", "orders", value="avro", registry=settings, schema={"n": int})
    sink = ms.kafka_sink("127.0.0.1:1", "orders", value="avro", registry=settings)
    assert "secret" not in repr(source) + repr(sink) + repr(sink.shape)
    with pytest.raises(ms.JobError) as refused:
        ms.kafka_source("127.0.0.1:1", "orders", value="avro", registry={**settings, "no.such": "${env:LOGIN}"})
    assert "secret" not in str(refused.value)


def letters_of(store: Path) -> list[dict[str, Any]]:
    import duckdb

    with duckdb.connect(str(store), read_only=True) as connection:
        return connection.sql("select * from dead_letters order by epoch, number").arrow().read_all().to_pylist()
