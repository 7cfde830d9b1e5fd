"""Jobs over TLS with a password and with no more rights than the documents name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from nursery import End, Nursery, Start
from servers.guarded_kafka import GuardedBroker, certificates
from servers.kafka import missing

PASSWORD = "a-secret-nobody-may-see"
JOB = """
import millstream as ms

settings = {{
    "security.protocol": "SASL_SSL",
    "sasl.mechanism": "SCRAM-SHA-512",
    "sasl.username": {user!r},
    "sasl.password": "${{env:KAFKA_PASSWORD}}",
    "ssl.ca.location": {authority!r},
}}
job = ms.Job({job!r})
orders = job.read(
    ms.kafka_source({brokers!r}, {orders!r}, schema={{"n": int}}, bounded=True, group={group!r}, settings=settings)
)
orders.with_columns(v=ms.col("n") * 10).write(ms.kafka_sink({brokers!r}, {totals!r}, settings=settings))
"""
COUNT = 40


@pytest.fixture(scope="module")
def kafka() -> Iterator[GuardedBroker]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with GuardedBroker(dict.fromkeys(("all", *LACKS, "stranger"), PASSWORD)) as broker:
        yield broker


# What docs/kafka_source.md and docs/kafka.md ask for: kind, name, rights.
RIGHTS = (
    ("topic", "{orders}", "Describe"),
    ("topic", "{orders}", "Read"),
    ("group", "{group}", "Read"),
    ("topic", "{totals}", "Describe"),
    ("topic", "{totals}", "Write"),
    ("topic", "millstream.{job}.{totals}", "Create"),
    ("topic", "millstream.{job}.{totals}", "Describe"),
    ("topic", "millstream.{job}.{totals}", "Read"),
    ("topic", "millstream.{job}.{totals}", "Write"),
    ("transactional_id", "millstream-", "Describe"),
    ("transactional_id", "millstream-", "Write"),
)
LACKS = {
    "no-orders": (("topic", "{orders}", "Read"), "orders"),
    "no-totals": (("topic", "{totals}", "Write"), "totals"),
    "no-progress": (("topic", "millstream.{job}.{totals}", "Read"), "millstream."),
    "no-marker": (("topic", "millstream.{job}.{totals}", "Write"), "millstream."),
    "no-id": (("transactional_id", "millstream-", "Write"), "ransactional"),
}
"""A user who lacks one right, which, and what the error has to name."""


class Place:
    """A job's folder, its topics, and what its user may do."""

    def __init__(
        self, folder: Path, kafka: GuardedBroker, monkeypatch: pytest.MonkeyPatch, user: str, password: str = PASSWORD
    ) -> None:
        self.folder, self.kafka = folder, kafka
        self.totals = kafka.create("totals", 2)
        names = {"orders": kafka.create("orders", 2), "totals": self.totals, "job": f"revenue-{user}", "group": user}
        kafka.produce(names["orders"], *({"value": json.dumps({"n": n}).encode()} for n in range(COUNT)))
        lacking = LACKS[user][0] if user in LACKS else None
        for right in RIGHTS if user != "stranger" else ():
            kind, name, what = right
            if right != lacking:
                kafka.allow(user, kind, name.format(**names), [what], prefixed=kind == "transactional_id")
        monkeypatch.setenv("KAFKA_PASSWORD", password)
        text = JOB.format(user=user, brokers=kafka.address, authority=str(kafka.authority), **names)
        (folder / "job.py").write_text(text)

    def seen(self) -> list[int]:
        return sorted(json.loads(message.value())["n"] for message in self.kafka.consume(self.totals))

    def check_that_nobody_sees(self, secret: str, end: End) -> None:
        assert secret not in end.log + end.outcome
        files = [file for file in self.folder.iterdir() if file.is_file()]
        assert {"job.py", "run.log"} <= {file.name for file in files}
        assert not [file for file in files if secret.encode() in file.read_bytes()]


def test_the_documented_rights_are_enough_also_after_a_kill(
    kafka: GuardedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, kafka, monkeypatch, "all")
    with Nursery() as nursery:  # its processes have the environment of now
        end = nursery.run(Start(str(tmp_path), failpoint="kafka.sent=kill@1"))
        assert end.killed, end
        end = nursery.run(Start(str(tmp_path)))
    assert end.outcome.endswith("finished"), end
    assert place.seen() == list(range(COUNT))
    place.check_that_nobody_sees(PASSWORD, end)


@pytest.mark.slow
@pytest.mark.parametrize("user", LACKS)
def test_a_right_that_lacks_is_named(
    user: str, kafka: GuardedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, kafka, monkeypatch, user)
    with Nursery() as nursery:
        end = nursery.run(Start(str(tmp_path)))
    assert end.outcome != "finished", end
    assert LACKS[user][1] in end.outcome + end.log, end
    assert "authori" in (end.outcome + end.log).lower(), end
    assert place.seen() == []
    place.check_that_nobody_sees(PASSWORD, end)


def test_a_wrong_password_is_told_and_not_shown(
    kafka: GuardedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "wrong-but-secret-too"
    place = Place(tmp_path, kafka, monkeypatch, "stranger", password)
    with Nursery() as nursery:
        end = nursery.run(Start(str(tmp_path)))
    assert "do not let this job in" in end.log
    assert "SASL authentication error" in end.log
    place.check_that_nobody_sees(password, end)


@pytest.mark.slow
def test_brokers_with_a_certificate_of_somebody_else_are_not_talked_to(
    kafka: GuardedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Place(tmp_path, kafka, monkeypatch, "stranger")
    other = tmp_path / "other"
    other.mkdir()
    job = tmp_path / "job.py"
    job.write_text(job.read_text().replace(str(kafka.authority), str(certificates(other))))
    with Nursery() as nursery:
        end = nursery.run(Start(str(tmp_path)))
    assert "do not let this job in" in end.log
    assert "certificate verify failed" in end.log
