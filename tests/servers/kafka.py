"""A real Apache Kafka broker for tests: one Java process in KRaft mode, on free ports of 127.0.0.1.

``python tests/servers/kafka.py`` fetches its jars from Maven Central, once, into a cache folder;
``MILLSTREAM_SERVERS`` names another one. Java 17 or newer and Maven must be there.

A test module asks for one with ``from servers.kafka import kafka_broker`` and
``broker = kafka_broker()``, which is a fixture that lasts as long as the module::

    kafka = kafka_broker()

    def test_it(kafka):
        topic = kafka.create("orders", partitions=3)
        job.read(ms.kafka_source(kafka.address, topic))
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

POM = Path(__file__).with_name("kafka.pom.xml")
VERSION = re.search(r"<version>(4[^<]+)</version>", POM.read_text())[1]  # type: ignore[index]
CACHE = Path(os.environ.get("MILLSTREAM_SERVERS", Path.home() / ".cache" / "millstream"))
JARS = CACHE / f"kafka-{VERSION}"
INSTALL = "make servers"

LONGEST_SECONDS = 60
"""A broker that does not answer after so long is taken not to start; its log is printed."""

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={folder}/data
auto.create.topics.enable=false
num.partitions=1
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
transaction.abort.timed.out.transaction.cleanup.interval.ms=200
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=200
controlled.shutdown.enable=false
log.cleaner.dedupe.buffer.size=2097152
log.cleaner.threads=1
num.network.threads=2
num.io.threads=4
"""

_LOGGING = """\
status=warn
appender.file.type=Console
appender.file.name=console
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d %p %m (%c)%n
rootLogger.level=warn
rootLogger.appenderRef.file.ref=console
"""


def missing() -> str | None:
    """Say what is not installed; None: all there."""
    if shutil.which("java") is None:
        return "there is no Java; install Java 17 or newer and Maven, then: " + INSTALL
    if not JARS.is_dir():
        return f"Kafka {VERSION} is not in {CACHE}: {INSTALL}"
    return None


def install() -> None:
    """Fetch the jars, unless they are there; a folder that is there is complete."""
    if JARS.is_dir():
        return
    if shutil.which("mvn") is None or shutil.which("java") is None:
        raise SystemExit(f"Kafka {VERSION} needs Java 17 or newer and Maven (Debian: default-jre-headless, maven)")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        fetched = Path(scratch) / "jars"
        command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={fetched}"]
        subprocess.run(command, check=True)
        fetched.rename(JARS)


class Clients:
    """What tests do with a broker, or with several.

    Attributes:
        address: what clients connect to.
        client: what the clients made here need besides it.
        replicas: of topics that are made here.
    """

    address: str
    client: dict[str, Any]
    replicas = 1

    def create(self, topic: str, partitions: int = 1, **settings: object) -> str:
        """Make a topic and return its name, made unique; ``cleanup_policy="compact"`` sets ``cleanup.policy``."""
        from confluent_kafka.admin import NewTopic

        name = f"{topic}-{uuid.uuid4().hex[:8]}"
        config = {key.replace("_", "."): str(value) for key, value in settings.items()}
        admin = self.admin
        admin.create_topics([NewTopic(name, partitions, self.replicas, config=config)])[name].result(30)
        return name

    def add_partitions(self, topic: str, total: int) -> None:
        """Let a topic have more partitions than before."""
        from confluent_kafka.admin import NewPartitions

        admin = self.admin
        admin.create_partitions([NewPartitions(topic, total)])[topic].result(30)

    @property
    def admin(self) -> Any:
        """A new AdminClient; it must be kept until it has answered."""
        from confluent_kafka.admin import AdminClient

        return AdminClient({"bootstrap.servers": self.address, "logger": _silent(), **self.client})

    def produce(self, topic: str, *messages: Mapping[str, Any]) -> None:
        """Send messages, each the arguments of ``confluent_kafka.Producer.produce``, and wait for all of them."""
        from confluent_kafka import Producer

        settings = {"bootstrap.servers": self.address, "linger.ms": 5, "logger": _silent()}
        producer = Producer({**settings, **self.client})
        failed: list[Any] = []
        for message in messages:
            producer.produce(topic, **message, on_delivery=lambda error, _: failed.append(error) if error else None)
            producer.poll(0)
        assert producer.flush(60) == 0
        assert failed == []

    def consume(self, topic: str, committed: bool = True) -> list[Any]:
        """Return all messages that are in a topic now, by partition and offset; ``committed``: read_committed.

        What an open transaction, or one before it, holds back is not among them.
        """
        from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

        consumer = Consumer(
            {
                "bootstrap.servers": self.address,
                "group.id": uuid.uuid4().hex,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,
                "isolation.level": "read_committed" if committed else "read_uncommitted",
                "logger": _silent(),
                **self.client,
            }
        )
        partitions = consumer.list_topics(topic, 30).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        open_, found = set(partitions), []
        while open_:
            for message in consumer.consume(10_000, 0.02):
                if message.error() is None:
                    found.append(message)
                else:
                    open_.discard(message.partition())
        consumer.close()
        return sorted(found, key=lambda m: (m.partition(), m.offset()))


class Broker(Clients):
    """One broker; a context manager. Topics are made by ``create``, never by producing to them.

    Attributes:
        address: what clients connect to, ``127.0.0.1:PORT``; the same after a restart.
        port: the one it listens on; ``controller``: the one that brokers of a cluster agree on what they are over.
        settings: more of them than those that all have.
        heap: how much memory Java may have for it.
        folder: its data, settings and log; removed at the end.
    """

    heap = "384m"

    def __init__(self, settings: Mapping[str, object] | None = None, users: Sequence[str] = ()) -> None:
        """Prepare to start.

        Args:
            settings: of the broker.
            users: what ``kafka-storage.sh --add-scram`` takes, for each.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="millstream-kafka-"))
        self.port, self.controller = free_ports(2)
        self.address = f"127.0.0.1:{self.port}"
        self.client: dict[str, Any] = {}
        self.settings = dict(settings or {})
        self._users = users
        self._process: subprocess.Popen[bytes] | None = None

    def advertise(self, port: int) -> None:
        """Tell clients another port, that of a proxy; to be called before it starts."""
        self.settings["advertised.listeners"] = f"PLAINTEXT://127.0.0.1:{port}"

    def __enter__(self) -> Broker:
        try:
            self.format(uuid.uuid4().hex[:22])
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def format(self, cluster: str) -> None:
        """Prepare its folder, as a member of a cluster."""
        lines = [_PROPERTIES.format(folder=self.folder, port=self.port, controller=self.controller)]
        lines += [f"{key}={value}\n" for key, value in self.settings.items()]
        self._properties.write_text("".join(lines))
        (self.folder / "log4j2.properties").write_text(_LOGGING)
        users = [word for user in self._users for word in ("--add-scram", user)]
        self._java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._properties), *users).wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, on the data that is there, and wait until it answers."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it, on the data that is there."""
        assert self._process is None, "it runs already"
        self._process = self._java("kafka.Kafka", str(self._properties))

    def wait(self) -> None:
        """Wait until it answers."""
        assert self._process is not None
        until = time.monotonic() + LONGEST_SECONDS
        while not self._answers():
            if time.monotonic() > until or self._process.poll() is not None:
                raise AssertionError(f"the broker does not start:\n{self.log[-4000:]}")
            time.sleep(0.05)

    @property
    def runs(self) -> bool:
        """Whether it has been started, and not killed."""
        return self._process is not None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone; nothing if it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    @property
    def log(self) -> str:
        """What it has printed."""
        return (self.folder / "broker.log").read_text(errors="replace")

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    def _java(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [
            "java",
            f"-Xmx{self.heap}",
            "-Xms128m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Xshare:auto",
        ]
        command += [f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}", "-cp", f"{JARS}/*", *arguments]
        with (self.folder / "broker.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder)

    def _answers(self) -> bool:
        from confluent_kafka import KafkaException

        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)):
                return False
        try:
            return len(self.admin.list_topics(timeout=1).brokers) > 0
        except KafkaException:
            return False

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def free_ports(count: int) -> list[int]:
    """Return ports nobody listens on; somebody might take one before it is used."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def kafka_broker(**settings: object) -> Callable[..., Iterator[Broker]]:
    """Return a fixture: a broker for all tests of a module; ``transaction_max_timeout_ms=1000`` is a setting of it."""
    import pytest

    @pytest.fixture(scope="module", name="kafka")
    def broker() -> Iterator[Broker]:
        reason = missing()
        if reason:
            pytest.skip(reason)
        with Broker({key.replace("_", "."): value for key, value in settings.items()}) as started:
            yield started

    return broker


def _silent() -> Any:
    import logging

    quiet = logging.getLogger("kafka-tests")
    quiet.propagate = False
    quiet.addHandler(logging.NullHandler())
    return quiet


if __name__ == "__main__":
    install()
    sys.stdout.write(f"Kafka {VERSION} is in {JARS}\n")
