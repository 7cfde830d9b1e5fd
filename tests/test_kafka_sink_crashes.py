"""Jobs that write to Kafka, killed, stopped and doubled; and the broker killed, frozen and cut off under them."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from kafka_kit import until
from millstream.connectors.kafka_progress import Progress
from millstream.engine.errors import ExternalError
from millstream.engine.sink import SinkContext
from nursery import Nursery, Start
from servers.kafka import Broker, kafka_broker
from servers.proxy import Proxy

kafka = kafka_broker()

COUNT = 48
JOB = """
import millstream as ms

job = ms.Job({name!r})
rows = job.read(ms.files("input/*.jsonl", name="rows"))
rows.with_columns(v=ms.col("n") * 10).write(ms.kafka_sink({brokers!r}, {appended!r}, key="k", transaction_bytes=400))
rows.group_by("k").agg(n=ms.sum("n")).write(ms.kafka_sink({brokers!r}, {totals!r}, key="k"))
"""
POINTS = [
    "sink.prepared@3", "store.before_commit@2", "store.after_commit@2", "sink.commit@3", "kafka.fenced@1",
    "kafka.fenced@4", "kafka.begun@1", "kafka.begun@4", "kafka.sent@2", "kafka.sent@5", "kafka.visible@1",
    "kafka.visible@2", "kafka.visible@5", "sink.committed@3",
]  # fmt: skip


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as running:
        yield running


class Place:
    """A job's folder and its topics."""

    def __init__(self, folder: Path, kafka: Broker, brokers: str = "") -> None:
        self.folder = folder
        self.kafka = kafka
        self.appended, self.totals = kafka.create("appended", 3), kafka.create("totals", cleanup_policy="compact")
        (folder / "input").mkdir()
        for part in range(4):
            lines = "".join(json.dumps({"n": n, "k": n % 5}) + "\n" for n in range(part, COUNT, 4))
            (folder / "input" / f"{part}.jsonl").write_text(lines)
        names = {"appended": self.appended, "totals": self.totals, "name": folder.name}
        (folder / "job.py").write_text(JOB.format(brokers=brokers or kafka.address, **names))

    def seen(self) -> list[int]:
        return [json.loads(message.value())["n"] for message in self.kafka.consume(self.appended)]

    def check(self, besides: Sequence[int] = ()) -> None:
        """All is there, once."""
        assert sorted(self.seen()) == [*besides, *range(COUNT)]
        last = {message.key(): json.loads(message.value()) for message in self.kafka.consume(self.totals)}
        assert sorted((row["k"], row["n"]) for row in last.values()) == [(k, sum(range(k, COUNT, 5))) for k in range(5)]


@pytest.fixture
def place(tmp_path: Path, kafka: Broker) -> Place:
    return Place(tmp_path, kafka)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_job_killed_anywhere_has_written_each_row_once(point: str, place: Place, nursery: Nursery) -> None:
    name, _, hits = point.partition("@")
    end = nursery.run(Start(str(place.folder), failpoint=f"{name}=kill@{hits}"))
    assert end.killed, end
    seen = place.seen()
    assert len(seen) == len(set(seen)), "rows are there twice"
    end = nursery.run(Start(str(place.folder), parallelism=1))
    assert end.outcome == "finished", end
    place.check()


def test_a_recovery_killed_at_each_of_its_steps_writes_each_row_once(place: Place, nursery: Nursery) -> None:
    for point in ("kafka.sent@3", "store.after_commit", "kafka.begun", "kafka.sent", "kafka.visible", "recovery.done"):
        name, _, hits = point.partition("@")
        end = nursery.run(Start(str(place.folder), failpoint=f"{name}=kill@{hits or 1}"))
        assert end.killed, (point, end)
    end = nursery.run(Start(str(place.folder)))
    assert end.outcome == "finished", end
    place.check()


@pytest.mark.parametrize(
    "point", ["kafka.sent@3", *(pytest.param(p, marks=pytest.mark.slow) for p in ("kafka.begun@3", "kafka.visible@3"))]
)
def test_a_job_that_was_away_for_longer_than_a_transaction_may_last_loses_nothing(
    point: str, place: Place, kafka: Broker, nursery: Nursery
) -> None:
    """The brokers have aborted what it had sent, and forgotten who sent it."""
    job, limits = place.folder / "job.py", {"transaction.timeout.ms": 1000, "message.timeout.ms": 900}
    job.write_text(job.read_text().replace('key="k"', f'key="k", settings={limits}'))
    name, _, hits = point.partition("@")
    assert nursery.run(Start(str(place.folder), failpoint=f"{name}=kill@{hits}")).killed
    kafka.produce(place.appended, *({"value": b'{"n": -1}', "partition": number} for number in range(3)))
    until = time.monotonic() + 30
    while place.seen().count(-1) < 3:  # they stand behind the open transaction until it is aborted
        assert time.monotonic() < until, "the transaction stays open"
        time.sleep(0.05)
    seen = [n for n in place.seen() if n >= 0]
    assert len(seen) == len(set(seen)), "rows are there twice"
    assert nursery.run(Start(str(place.folder))).outcome == "finished"
    place.check(besides=[-1] * 3)


def test_a_failure_while_publishing_restarts_the_job_within_its_process(place: Place, nursery: Nursery) -> None:
    end = nursery.run(Start(str(place.folder), failpoint="kafka.sent=raise@3"))
    assert (end.outcome, end.restarts) == ("finished", 1), end
    place.check()


@pytest.mark.slow
def test_a_broker_killed_again_and_again_under_a_job(tmp_path: Path, kafka: Broker, nursery: Nursery) -> None:
    with Broker() as own:
        place = Place(tmp_path, own)
        over, kills, store = threading.Event(), 0, tmp_path / "job.duckdb"

        def disturb() -> None:
            nonlocal kills
            chance = random.Random(7)
            # The first kill hits the job however fast the machine is.
            while not (store.exists() or over.is_set()):
                over.wait(0.01)
            while kills < 3 and not over.is_set():
                own.restart()
                kills += 1
                over.wait(chance.uniform(1.0, 2.5))

        disturber = threading.Thread(target=disturb)
        disturber.start()
        end = nursery.run(Start(str(tmp_path), every=0.05))
        over.set()
        disturber.join()
        assert end.outcome == "finished", end.log
        assert kills > 0
        place.check()


STOPS_ITSELF = """
import os, signal
import millstream.connectors.kafka_committer as committer

hit = committer.hit

def stop(name):
    if name == "kafka.begun":
        committer.hit = hit
        os.kill(os.getpid(), signal.SIGSTOP)
    hit(name)

committer.hit = stop
from millstream.cli import main
main(["run", "job.py", "--store", "job.duckdb"])
"""


def test_a_zombie_and_a_copy_of_its_store_write_each_row_once(place: Place, nursery: Nursery) -> None:
    """A process is stopped with a transaction open, another one goes on with its work, and it wakes up again."""
    command = [sys.executable, "-c", STOPS_ITSELF]
    with (place.folder / "zombie.log").open("w") as log:
        zombie = subprocess.Popen(command, cwd=place.folder, stdout=log, stderr=log)
    try:
        os.waitpid(zombie.pid, os.WUNTRACED)
        refused = nursery.run(Start(str(place.folder)))
        assert "StoreLocked" in refused.log
        for kept in filter(Path.is_file, place.folder.glob("job.duckdb*")):
            shutil.copy(kept, kept.with_name(kept.name.replace("job.", "copy.")))
        end = nursery.run(Start(str(place.folder), store="copy.duckdb"))
        assert end.outcome == "already finished", "all had been read; only the sending was left"
    finally:
        zombie.send_signal(signal.SIGCONT)
    assert zombie.wait(60) != 0
    assert "another process that runs this job has taken over" in (place.folder / "zombie.log").read_text()
    place.check()


ROWS = pa.record_batch({"n": pa.array(range(10))})
CONTEXT = SinkContext("shop", "j1", "s1", 1, 0, 1)


def numbers(kafka: Broker, topic: str) -> list[int]:
    return [json.loads(message.value())["n"] for message in kafka.consume(topic)]


def end_transaction(data: bytes) -> bool:
    """Whether this is a request of kind 26, EndTxn: its length, then its kind, come first."""
    return len(data) > 6 and data[4:6] == b"\0\x1a"


@pytest.mark.parametrize("where", ["before", "after"])
def test_an_answer_lost_in_the_commit_is_found_out(where: str) -> None:
    """The connection is cut while a transaction ends: nobody knows whether it has."""
    commits = 0

    def cut(data: bytes) -> str:
        nonlocal commits
        if not end_transaction(data):
            return "pass"
        commits += 1
        return where if commits == 3 else "pass"

    broker = Broker()
    with Proxy(broker.port, cut) as proxy:
        broker.advertise(proxy.port)
        with broker:
            check_lost_answers(broker, f"127.0.0.1:{proxy.port}")
    assert commits == 5, "the start of the job, three epochs, and one of these again"


def check_lost_answers(broker: Broker, address: str) -> None:
    topic = broker.create("t")
    sink = ms.kafka_sink(address, topic)
    committer, writer = sink.committer(ROWS.schema, CONTEXT), sink.writer(ROWS.schema, CONTEXT)
    for epoch in (1, 2, 3):
        writer.write(ROWS)
        committer.commit(epoch, writer.prepare(epoch, False))
    committer.close()
    assert numbers(broker, topic) == [*range(10)] * 3


def test_closing_waits_for_nobody_who_reads_the_marker_ahead_and_leaves_no_connection(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = kafka.create("t")
    began, may_go_on = threading.Event(), threading.Event()
    read_to_the_end = Progress._read_to_the_end
    before, others = connections(), set(threading.enumerate())
    sink = ms.kafka_sink(kafka.address, topic)
    committer, writer = sink.committer(ROWS.schema, CONTEXT), sink.writer(ROWS.schema, CONTEXT)
    writer.write(ROWS)
    committer.commit(1, writer.prepare(1, False))
    until(lambda: "millstream-kafka-producer" not in {t.name for t in set(threading.enumerate()) - others})

    def read(progress: Progress, consumer: Any) -> Any:
        began.set()
        assert may_go_on.wait(30)
        return read_to_the_end(progress, consumer)

    writer.write(ROWS)
    monkeypatch.setattr(Progress, "_read_to_the_end", read)
    committer.commit(2, writer.prepare(2, False))
    assert began.wait(30)
    committer.close()
    may_go_on.set()
    until(lambda: connections() <= before)


def connections() -> int:
    """How many clients of librdkafka there are in this process; those that asked for topics are in cycles."""
    gc.collect()
    count = 0
    for task in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it has just ended
            count += task.read_text() == "rdk:main\n"
    return count


@pytest.mark.slow
def test_brokers_that_stay_away_fail_the_start_so_that_the_job_may_be_restarted() -> None:
    with Broker() as own:
        topic = own.create("t")
        sink = ms.kafka_sink(own.address, topic, patience="5s")
        committer, writer = sink.committer(ROWS.schema, CONTEXT), sink.writer(ROWS.schema, CONTEXT)
        writer.write(ROWS)
        rows = writer.prepare(1, False)
        assert own.consume(f"millstream.shop.{topic}"), "the start of the job is visible before"
        own.kill()
        with pytest.raises(ExternalError, match=r"sending epoch 1 to topic 't-\w+' failed.*The brokers asked are"):
            committer.commit(1, rows)
        own.start()
        for _ in range(2):
            committer.commit(1, rows)
        committer.close()
        assert numbers(own, topic) == list(range(10))


def test_a_transaction_that_took_too_long_is_begun_again(kafka: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The brokers have aborted it and fenced its producer; the job is still the owner of the topic."""
    topic = kafka.create("t")
    sink = ms.kafka_sink(kafka.address, topic, settings={"transaction.timeout.ms": 1000, "message.timeout.ms": 900})
    committer = sink.committer(ROWS.schema, CONTEXT)
    writer = sink.writer(ROWS.schema, CONTEXT)
    writer.write(ROWS)
    waited: list[bool] = []

    def hit(name: str) -> None:
        if name == "kafka.sent" and not waited:
            waited.append(True)
            kafka.produce(topic, {"value": b'{"n": -1}'})
            while not numbers(kafka, topic):  # it stands behind the open transaction
                time.sleep(0.05)

    monkeypatch.setattr("millstream.connectors.kafka_committer.hit", hit)
    committer.commit(1, writer.prepare(1, False))
    committer.close()
    assert numbers(kafka, topic) == [-1, *range(10)]
    assert [m.value() for m in kafka.consume(topic, committed=False)].count(b'{"n":0}') == 2, "it was sent twice"
