"""What a tortured job reads: a Kafka topic or a folder of files, to which rows are added while it runs."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import millstream as ms
import pyarrow as pa
import pyarrow.parquet as pq
from millstream.benchmarks.torture_rows import SCHEMA, row
from millstream.engine.source import Source

if TYPE_CHECKING:
    from confluent_kafka import Producer

SPLITS: Final = 3
"""Partitions of the topic."""

FILE_ROWS: Final = 100
_FILE: Final = re.compile(r"(\d{6})\.parquet")
_KINDS: Final = pa.schema([("p", pa.int64()), ("k", pa.string()), ("s", pa.int64())])


class Input(Protocol):
    """Where rows come from.

    Attributes:
        fed: by split, how many rows there are.
    """

    fed: Counter[int]

    def make(self) -> None:
        """Make it, empty."""

    def feed(self) -> int:
        """Add some rows and return how many."""

    def flush(self) -> None:
        """Wait until all of them are there."""

    def source(self) -> Source:
        """What a job reads it by, for ever."""

    def split_of(self, name: str) -> int:
        """Return the number of a split from its name in the checkpoint."""

    def forget(self) -> None:
        """Let go of what others might have noted down of how far the job has come; the job must not need it."""


class TopicInput:
    """A topic; its partitions are the splits."""

    def __init__(self, brokers: str, topic: str) -> None:
        self.brokers = brokers
        self.topic = topic
        self.fed: Counter[int] = Counter()
        self._producer: Producer | None = None

    def make(self) -> None:
        """Make the topic."""
        make_topic(self.brokers, self.topic, SPLITS)

    def feed(self) -> int:
        """Send a message to each partition; they stay in order, and come once, whatever the brokers go through."""
        from confluent_kafka import Producer

        if self._producer is None:
            settings = {"enable.idempotence": True, "linger.ms": 5, "message.timeout.ms": 0, "logger": silent()}
            self._producer = Producer({"bootstrap.servers": self.brokers, **settings})
        for split in range(SPLITS):
            value = json.dumps(row(split, self.fed[split])).encode()
            self._producer.produce(self.topic, value, partition=split)
            self.fed[split] += 1
        self._producer.poll(0)
        return SPLITS

    def flush(self) -> None:
        """Wait until the brokers have all of them."""
        assert self._producer is not None
        if left := self._producer.flush(120):
            raise TimeoutError(f"{left} rows of the input could not be sent to {self.brokers} within two minutes")

    def source(self) -> Source:
        """Read the topic; its group is told how far, for ``forget``."""
        return ms.kafka_source(self.brokers, self.topic, schema=SCHEMA, group=self.topic)

    def split_of(self, name: str) -> int:
        """A split is called as topic and partition."""
        return int(re.findall(r"\d+", name)[-1])

    def forget(self) -> None:
        """Delete the group with its offsets, as Kafka does after a week."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({"bootstrap.servers": self.brokers, "logger": silent()})
        deleted = admin.delete_consumer_groups([self.topic])[self.topic]
        try:
            deleted.result(30)
        except KafkaException as error:
            if "not exist" not in str(error) and "NOT_FOUND" not in str(error):
                raise


class FolderInput:
    """A folder; each file is a split."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fed: Counter[int] = Counter()

    def make(self) -> None:
        """Make the folder."""
        self.folder.mkdir()

    def feed(self) -> int:
        """Put a file into it, whole."""
        split = len(self.fed)
        rows = pa.Table.from_pylist([row(split, number) for number in range(FILE_ROWS)], schema=_KINDS)
        hidden = self.folder / f".{split:06}"
        pq.write_table(rows, hidden)
        hidden.rename(self.folder / f"{split:06}.parquet")
        self.fed[split] = FILE_ROWS
        return FILE_ROWS

    def flush(self) -> None:
        """They are there."""

    def source(self) -> Source:
        """Read the folder."""
        return ms.files(self.folder / "*.parquet", schema=SCHEMA, follow=True, name="rows")

    def split_of(self, name: str) -> int:
        """A split is called after its file."""
        found = _FILE.search(name)
        assert found, name
        return int(found[1])

    def forget(self) -> None:
        """Nobody has noted anything down."""


def make_topic(brokers: str, topic: str, partitions: int) -> None:
    """Make a topic, unless it is there."""
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": brokers, "logger": silent()})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(30)


def silent() -> Any:
    """A logger that says nothing of brokers that are away for a moment."""
    import logging

    quiet = logging.getLogger("millstream.torture")
    quiet.propagate = False
    quiet.addHandler(logging.NullHandler())
    return quiet
