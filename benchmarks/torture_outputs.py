"""What a tortured job writes to, and how another process sees it: a Kafka topic, tables of PostgreSQL, a folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import millstream as ms
import pyarrow.parquet as pq
from millstream.benchmarks.torture_inputs import SPLITS, make_topic, silent
from millstream.benchmarks.torture_reader import FolderReader
from millstream.benchmarks.torture_rows import Oracle
from millstream.connectors.postgres_connection import quoted_table

if TYPE_CHECKING:
    import psycopg
    from confluent_kafka import TopicPartition

TIMEOUT_MS: Final = 3_000
"""How long a transaction of Kafka may be open; a pause of a torture run is longer."""


class Output(Protocol):
    """Where rows go to."""

    def make(self) -> None:
        """Make it, empty."""

    def write(self, rows: ms.Stream) -> None:
        """Let a job write rows with the columns p, k and s to it."""

    def watcher(self, oracle: Oracle) -> Watcher:
        """Return what reads it."""


class Watcher(Protocol):
    """A reader in another process than the job's."""

    def look(self) -> None:
        """Tell the oracle every row that can be seen now and was not before, and whatever should never be seen."""

    def left_over(self) -> list[str]:
        """What should be gone after the end of the job."""


class TopicOutput:
    """A topic, with messages under their keys, read as it is committed."""

    def __init__(self, brokers: str, topic: str) -> None:
        self.brokers = brokers
        self.topic = topic

    def make(self) -> None:
        """Make the topic."""
        make_topic(self.brokers, self.topic, SPLITS)

    def write(self, rows: ms.Stream) -> None:
        """Exactly once."""
        timeouts = {"transaction.timeout.ms": TIMEOUT_MS, "message.timeout.ms": TIMEOUT_MS - 500}
        rows.write(ms.kafka_sink(self.brokers, self.topic, key="k", settings=timeouts))

    def watcher(self, oracle: Oracle) -> Watcher:
        """A consumer of what is committed."""
        return _TopicWatcher(self, oracle)


class _TopicWatcher:
    def __init__(self, output: TopicOutput, oracle: Oracle) -> None:
        from confluent_kafka import Consumer

        self._oracle = oracle
        self._consumer = Consumer(
            {
                "bootstrap.servers": output.brokers,
                "group.id": f"{output.topic}-watcher",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,
                "isolation.level": "read_committed",
                "reconnect.backoff.max.ms": 500,
                "logger": silent(),
            }
        )
        self._topic = output.topic
        self._next = dict.fromkeys(range(SPLITS), 0)

    def look(self) -> None:
        """Read every partition from where the last look ended to its end."""
        from confluent_kafka import KafkaError

        self._consumer.assign([self._place(number) for number in self._next])
        waiting = set(self._next)
        while waiting:
            for message in self._consumer.consume(10_000, 0.05):
                partition, offset, error = message.partition(), message.offset(), message.error()
                if error is None:
                    assert partition is not None
                    assert offset is not None
                    value = json.loads(message.value() or b"{}")
                    self._oracle.see([(value["k"], value["s"])])
                    self._next[partition] = offset + 1
                elif error.code() == KafkaError._PARTITION_EOF and partition is not None:
                    waiting.discard(partition)

    def left_over(self) -> list[str]:
        """What a topic holds is there for good."""
        return []

    def _place(self, number: int) -> TopicPartition:
        from confluent_kafka import TopicPartition

        return TopicPartition(self._topic, number, self._next[number])


class TablesOutput:
    """Two tables: one with every row, and one with the number of rows of each key, which changes all the time."""

    def __init__(self, dsn: str, table: str) -> None:
        self.dsn = dsn
        self.table = table
        self.totals = f"{table}_totals"
        self.progress = f"{table}_progress"

    def make(self) -> None:
        """Make the first; what is written later has a higher place. The job makes the others."""
        import psycopg

        with psycopg.connect(self.dsn, autocommit=True) as connection:
            columns = "place bigserial primary key, p bigint, k text, s bigint"
            connection.execute(f"create table {quoted_table(self.table)} ({columns})".encode())

    def write(self, rows: ms.Stream) -> None:
        """Exactly once, each table in a transaction of its own."""
        rows.write(ms.postgres_sink(self.dsn, self.table, progress=self.progress))
        totals = rows.group_by("k").agg(n=ms.count())
        totals.write(ms.postgres_sink(self.dsn, self.totals, key="k", create=True, progress=self.progress))

    def watcher(self, oracle: Oracle) -> Watcher:
        """A session that sees both tables and their epochs at one moment."""
        return _TablesWatcher(self, oracle)


class _TablesWatcher:
    def __init__(self, output: TablesOutput, oracle: Oracle) -> None:
        self._output = output
        self._oracle = oracle
        self._connection: psycopg.Connection[Any] | None = None
        self._place = 0
        self._rows: dict[int, int] = {}  # by epoch of the first table, its rows then
        self._totals: dict[int, int] = {}
        self._epochs = {self._output.table: 0, self._output.totals: 0}

    def look(self) -> None:
        """Read what has come, in one transaction; again if the server goes away."""
        import psycopg

        while True:
            try:
                connection = self._connected()
                with connection.transaction():
                    connection.execute(b"set transaction isolation level repeatable read, read only")
                    self._see(connection)
                return
            except psycopg.OperationalError:
                self._connection = None

    def _connected(self) -> psycopg.Connection[Any]:
        import psycopg

        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._output.dsn, autocommit=True, connect_timeout=2)
        return self._connection

    def _see(self, connection: psycopg.Connection[Any]) -> None:
        """All is read before any of it is told, since the server may go away in between."""
        output = self._output
        name = quoted_table(output.table)
        later = f"select place, k, s from {name} where place > %s order by place".encode()  # noqa: S608 - it is quoted
        new = connection.execute(later, [self._place]).fetchall()
        rows = self._number(connection, "select count(*) from {}", output.table)
        totals = self._number(connection, "select sum(n) from {}", output.totals)
        epochs = self._read_epochs(connection)
        if new:
            self._place = new[-1][0]
        self._oracle.see((key, number) for _, key, number in new)
        for table, epoch in epochs.items():
            if epoch < self._epochs[table]:
                self._oracle.complain(f"table {table} went back from epoch {self._epochs[table]} to {epoch}")
        self._epochs = epochs
        self._demand_whole(self._rows, epochs[output.table], rows)
        self._demand_whole(self._totals, epochs[output.totals], totals)
        if epochs[output.table] == epochs[output.totals] and rows != totals:
            self._oracle.complain(f"at epoch {epochs[output.table]} there are {rows} rows, but the totals say {totals}")
        if rows != self._oracle.seen.total():
            self._oracle.complain(f"there are {rows} rows, of which {self._oracle.seen.total()} were seen to come")

    def _demand_whole(self, known: dict[int, int], epoch: int, rows: int) -> None:
        if known.setdefault(epoch, rows) != rows:
            self._oracle.complain(
                f"epoch {epoch} was seen with {known[epoch]} rows and with {rows}: half of it is there"
            )

    def _read_epochs(self, connection: psycopg.Connection[Any]) -> dict[str, int]:
        output, epochs = self._output, dict.fromkeys(self._epochs, 0)
        if self._number(connection, "select count(*) from {}", output.progress):
            marks = f"select target, epoch from {quoted_table(output.progress)}"  # noqa: S608 - it is quoted
            for target, epoch in connection.execute(marks.encode()).fetchall():
                epochs[re.sub(r'^.*\.|"', "", target)] = epoch
        return epochs

    def _number(self, connection: psycopg.Connection[Any], sql: str, table: str) -> int:
        """A number out of a table; 0 if it is not there yet."""
        name = quoted_table(table)
        if connection.execute(b"select to_regclass(%s) is not null", [name]).fetchone() != (True,):
            return 0
        found = connection.execute(sql.format(name).encode()).fetchone()
        return int((found and found[0]) or 0)

    def left_over(self) -> list[str]:
        """A transaction that was prepared and forgotten would be."""
        found = self._connected().execute(b"select gid from pg_prepared_xacts").fetchall()
        return [f"prepared transaction {gid}" for (gid,) in found]


class FolderOutput:
    """A folder of Parquet files, every epoch visible at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        """The job makes it."""

    def write(self, rows: ms.Stream) -> None:
        """Exactly once."""
        rows.write(ms.parquet(self.folder, hold_bytes=0, compression="none"))

    def watcher(self, oracle: Oracle) -> Watcher:
        """A reader of the folder."""
        return _FolderWatcher(self, oracle)


class _FolderWatcher:
    def __init__(self, output: FolderOutput, oracle: Oracle) -> None:
        self._output = output
        self._oracle = oracle
        self._reader = FolderReader(output.folder)
        self._known: set[str] = set()
        self._complaints = 0

    def look(self) -> None:
        """Look for files that are not whole, change or go away; then read those that have come, in their order."""
        self._reader.look()
        for sentence in self._reader.findings.violations[self._complaints :]:
            self._oracle.complain(sentence)
        self._complaints = len(self._reader.findings.violations)
        new = self._reader.seen() - self._known
        self._known |= new
        for path in self._in_order(new):
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                table = pq.ParquetFile(file).read(columns=["k", "s"])
                self._oracle.see(zip(table["k"].to_pylist(), table["s"].to_pylist(), strict=True))

    def _in_order(self, names: set[str]) -> list[Path]:
        """By the time at which they were renamed to where they are, which changes nothing else."""
        paths = [self._output.folder / name for name in names]
        return sorted(paths, key=lambda path: path.stat().st_ctime_ns)

    def left_over(self) -> list[str]:
        """Staged files."""
        staging = self._output.folder.parent / ".millstream" / self._output.folder.name
        return [str(path) for path in staging.glob("*/*/g*/*") if path.is_file()]
