"""Schema registries behind TLS: logins, tokens, certificates; what is wrong is told at once, and no secret is shown."""

from __future__ import annotations

import base64
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from cli_kit import call
from kafka_kit import run
from nursery import Nursery, Start
from servers.guarded_kafka import certificates
from servers.guarded_registry import KEY_PASSWORD, LOGIN, PASSWORD, TOKEN, GuardedRegistry
from servers.kafka import Broker, kafka_broker
from servers.registry import RegistryServer, schema_registry

kafka = kafka_broker()
registry = schema_registry()

SECRETS = (PASSWORD, TOKEN, KEY_PASSWORD, *(base64.b64encode(LOGIN[n:].encode()).decode()[:-4] for n in range(3)))
JOB = """
import millstream as ms

avro = ms.avro_values({registry!r})
job = ms.Job("copy")
orders = job.read(
    ms.kafka_source({brokers!r}, {topic!r}, key=avro, metadata={{"key": "k"}}, value=avro, bounded=True)
)
orders.write(ms.kafka_sink({brokers!r}, {out!r}, key="k", key_as=avro, value=avro))
"""


@pytest.fixture(params=["login", *(pytest.param(needs, marks=pytest.mark.slow) for needs in ("token", "certificate"))])
def guard(request: pytest.FixtureRequest, registry: RegistryServer, tmp_path: Path) -> Any:
    folder = tmp_path / "guard"
    folder.mkdir()
    with GuardedRegistry(registry.url, folder, request.param) as started:
        started.settings = settings_of(started, request.param, tmp_path)
        yield started


def settings_of(guard: GuardedRegistry, needs: str, folder: Path) -> dict[str, Any]:
    """What lets a client in, its secrets in the environment and in files."""
    common = {"url": guard.url, "ssl.ca.location": str(guard.authority)}
    if needs == "login":
        return {**common, "basic.auth.user.info": "${env:REGISTRY_LOGIN}"}
    if needs == "token":
        (folder / "token").write_text(TOKEN + "\n")
        bearer = {
            "credentials.source": "STATIC_TOKEN",
            "token": f"${{file:{folder / 'token'}}}",
            "logical.cluster": "c",
        }
        return common | {f"bearer.auth.{name}": value for name, value in bearer.items()}
    own = {"certificate.location": str(guard.certificate), "key.location": str(guard.key)}
    return common | {f"ssl.{name}": value for name, value in own.items()} | {"ssl.key.password": "${env:KEY_PASSWORD}"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_LOGIN", LOGIN)
    monkeypatch.setenv("KEY_PASSWORD", KEY_PASSWORD)


def shown(*texts: str) -> list[str]:
    return [secret for secret in SECRETS for text in texts if secret in text]


def test_a_job_gets_in_and_shows_no_secret(
    guard: Any, kafka: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    topic, out = kafka.create("orders"), kafka.create("copied")
    avro = ms.avro_values(guard.settings)
    rows = pa.table({"id": range(10), "shop": ["Rome", "Oslo"] * 5})
    job = ms.Job("write")
    job.read(ms.memory_source(rows)).write(ms.kafka_sink(kafka.address, topic, key="id", key_as=avro, value=avro))
    job.run(restarts=0)
    settings = {"registry": guard.settings, "brokers": kafka.address, "topic": topic, "out": out}
    (tmp_path / "job.py").write_text(JOB.format(**settings))
    plan = call("plan", tmp_path / "job.py").output
    with Nursery() as nursery:
        killed = nursery.run(Start(str(tmp_path), failpoint="kafka.sent=kill@1"))
        assert killed.killed, killed
        end = nursery.run(Start(str(tmp_path)))
    assert end.outcome.endswith("finished"), end
    found = run(ms.kafka_source(kafka.address, out, value=avro, bounded=True))
    assert sorted(found, key=lambda row: row["id"]) == [{**row, "k": row["id"]} for row in rows.to_pylist()]
    assert guard.refused == 0
    kept = [file.read_bytes().decode("latin-1") for file in tmp_path.glob("job.*")]
    assert len(kept) > 1
    assert shown(plan, killed.log, end.log, caplog.text, repr(avro), *kept) == []


# -- who is not let in ------------------------------------------------------------------------------------------------


def told(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = "".join(map(str, (error.value, error.value.__cause__ or "")))
    assert shown(text) == []
    assert error.value.__suppress_context__
    return text


@pytest.mark.parametrize("guard", ["login"], indirect=True)
def test_a_wrong_password_stops_the_job_and_is_told_at_once(
    guard: Any, kafka: Broker, registry: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = kafka.create("orders")
    monkeypatch.setenv("REGISTRY_LOGIN", f"me:{TOKEN}")
    with pytest.raises(
        ms.JobError, match=r"kafka_source.*: schema registry https://127.0.0.1:\d+/.*401.*other cred"
    ) as e:
        ms.kafka_source(kafka.address, topic, value=ms.avro_values(guard.settings))
    told(e)
    assert guard.refused == 1
    job = ms.Job("write")
    values = ms.avro_values(guard.settings)
    job.read(ms.memory_source([{"n": 1}])).write(ms.kafka_sink(kafka.address, topic, value=values))
    with pytest.raises(ms.JobError, match=r"a schema for subject .* failed: 401") as e:
        job.run(restarts=3)
    told(e)
    assert guard.refused == 2
    id_ = registry.register(f"{topic}-value", {"type": "record", "name": "R", "fields": [{"name": "n", "type": "int"}]})
    kafka.produce(topic, {"value": b"\0" + id_.to_bytes(4, "big") + b"\2"})
    options = {"schema": {"n": int}, "bounded": True, "on_error": "dead_letter"}
    with pytest.raises(ms.JobError, match=rf"asking for schema {id_} failed: 401") as e:
        run(ms.kafka_source(kafka.address, topic, value=values, **options))
    told(e)


@pytest.mark.parametrize("guard", ["login"], indirect=True)
def test_a_registry_with_a_certificate_of_somebody_else_is_not_talked_to(
    guard: Any, kafka: Broker, tmp_path: Path
) -> None:
    topic = kafka.create("orders")
    other = tmp_path / "other"
    other.mkdir()
    settings = {**guard.settings, "ssl.ca.location": str(certificates(other))}
    for wrong in (settings, {key: value for key, value in settings.items() if key != "ssl.ca.location"}):
        with pytest.raises(ms.JobError, match=r"certificate verify failed.*ssl\.ca\.location") as error:
            ms.kafka_source(kafka.address, topic, value=ms.avro_values(wrong))
        told(error)
    assert guard.refused == 0


@pytest.mark.parametrize("guard", ["certificate"], indirect=True)
def test_who_has_no_certificate_or_cannot_open_its_key_is_told(
    guard: Any, kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = {key: value for key, value in guard.settings.items() if key in ("url", "ssl.ca.location")}
    with pytest.raises(ms.JobError, match=r"(?i)certificate.required.*ssl\.certificate\.location") as error:
        ms.kafka_source(kafka.address, "orders", value=ms.avro_values(without))
    told(error)
    monkeypatch.setenv("KEY_PASSWORD", TOKEN)
    with pytest.raises(ms.JobError, match="refuses its settings") as error:
        ms.kafka_source(kafka.address, "orders", value=ms.avro_values(guard.settings))
    told(error)
    missing = {**guard.settings, "ssl.ca.location": "/no/such/file"}
    with pytest.raises(ms.JobError, match="refuses its settings") as error:
        ms.kafka_source(kafka.address, "orders", value=ms.avro_values(missing))


class _Html(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Welcome</html>")

    def log_message(self, format: str, *values: object) -> None:
        """Say nothing."""


def test_what_answers_and_is_no_registry_is_told() -> None:
    with HTTPServer(("127.0.0.1", 0), _Html) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        try:
            with pytest.raises(ms.JobError, match=r"no JSON.* See whether the URL is that of a schema registry"):
                ms.kafka_source("x:1", "t", value=ms.avro_values(f"http://127.0.0.1:{server.server_port}"))
        finally:
            server.shutdown()
