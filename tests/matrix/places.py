"""Where the jobs of the matrix write to: each kind of sink as a place that can be made, named in a job, and read."""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import psycopg
import pytest
from http_kit import Receiver, Sent
from millstream.engine.store.reader import StoreReader
from pipeline_kit import leftovers
from servers import kafka
from servers.kafka import Broker
from servers.postgres import running_server

from matrix.shapes import Row

_tables = itertools.count(1)


class Servers:
    """One of each kind, started when a place first asks for it; a context manager."""

    def __enter__(self) -> Servers:
        self._held = ExitStack()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    @cached_property
    def broker(self) -> Broker:
        """A Kafka broker."""
        reason = kafka.missing()
        if reason:
            pytest.skip(reason)
        return self._held.enter_context(Broker())

    @cached_property
    def postgres(self) -> str:
        """The way to a database of a PostgreSQL server."""
        return self._held.enter_context(running_server().database())


class Place(ABC):
    """A new, empty destination for one job.

    Args:
        folder: the job's own.
        servers: shared with other places.

    Attributes:
        points: what the names of its fail points begin with.
        key: rows of one ``k`` replace each other.
        rare: it is written to in few epochs, perhaps only at the end.
        ordered: rows of one ``k`` are seen in the order in which they were written.
        sink: the sink, as the job says it.
    """

    points: ClassVar[str]
    key: ClassVar[bool] = False
    rare: ClassVar[bool] = False
    ordered: ClassVar[bool] = False
    sink: str

    def __init__(self, folder: Path, servers: Servers) -> None:
        self.folder = folder
        self.servers = servers
        self.make()

    @abstractmethod
    def make(self) -> None:
        """Make it and set ``sink``."""

    @abstractmethod
    def read(self) -> list[Row]:
        """What a reader sees now."""

    def aside(self) -> list[Row]:
        """What the destination has refused, and the job put aside."""
        return []

    def left_over(self) -> list[str]:
        """What should be gone once the job has finished."""
        return []

    def close(self) -> None:
        """Give back what the place holds of its server."""


def rows_of(found: Iterable[dict[str, Any]]) -> list[Row]:
    """Rows read by names."""
    return [Row(row["k"], row["at"], row["n"]) for row in found]


class Files(Place):
    """Parquet files, every epoch visible at once."""

    points = "files."

    def make(self) -> None:
        self.sink = 'ms.parquet("output/rows", hold_bytes=0)'

    def read(self) -> list[Row]:
        files = [str(path) for path in (self.folder / "output" / "rows").rglob("part-*")]
        if not files:
            return []
        with duckdb.connect(config={"threads": 1}) as connection:
            return [
                Row(*row) for row in connection.execute('select k, "at", n from read_parquet(?)', [files]).fetchall()
            ]

    def left_over(self) -> list[str]:
        return leftovers(self.folder)


class Topic(Place):
    """A topic of Kafka."""

    points = "kafka."
    ordered = True

    def make(self) -> None:
        self.topic = self.servers.broker.create("matrix", 2)
        self.progress = self.topic + "-progress"
        self.sink = (
            f'ms.kafka_sink({self.servers.broker.address!r}, {self.topic!r}, key="k", progress={self.progress!r})'
        )

    def read(self) -> list[Row]:
        return rows_of(json.loads(message.value()) for message in self.servers.broker.consume(self.topic))

    def close(self) -> None:
        # They would be some hundred in the end, and each takes memory and files of the broker.
        admin = self.servers.broker.admin
        for deleted in admin.delete_topics([self.topic, self.progress]).values():
            deleted.exception(30)


class PostgresAppend(Place):
    """Rows of a table of PostgreSQL."""

    points = "postgres."

    def make(self) -> None:
        self.table = f"{type(self).__name__.lower()}_{self.folder.parent.name}_{self.folder.name}"[-60:].replace(
            "-", "_"
        )
        key = ', key="k"' if self.key else ""
        self.sink = f"ms.postgres_sink({self.servers.postgres!r}, {self.table!r}, create=True{key})"

    def read(self) -> list[Row]:
        with psycopg.connect(self.servers.postgres, autocommit=True) as connection:
            if connection.execute("select to_regclass(%s)", [self.table]).fetchone() == (None,):
                return []
            return [Row(*row) for row in connection.execute(f'select k, "at", n from "{self.table}"')]


class PostgresUpsert(PostgresAppend):
    """Rows of a table of PostgreSQL, one for each key."""

    key = True


class DuckDBAppend(Place):
    """Rows of a table of a DuckDB file."""

    points = "duckdb."

    def make(self) -> None:
        key = ', key="k"' if self.key else ""
        self.sink = f'ms.duckdb_sink("out.duckdb", "rows"{key})'

    def read(self) -> list[Row]:
        path = self.folder / "out.duckdb"
        if not path.exists():
            return []
        with duckdb.connect(path, config={"threads": 1}) as connection:
            if ("rows",) not in connection.execute("show tables").fetchall():
                return []
            return [Row(*row) for row in connection.execute('select k, "at", n from "rows"').fetchall()]


class DuckDBUpsert(DuckDBAppend):
    """Rows of a table of a DuckDB file, one for each key."""

    key = True


class DeltaAppend(Place):
    """A Delta Lake table, with a commit for every epoch."""

    points = "delta."
    hold: ClassVar[int | str] = 0

    def make(self) -> None:
        pytest.importorskip("deltalake", reason="pip install 'millstream[delta]'")
        key = ', key="k"' if self.key else ""
        self.sink = f'ms.delta_sink("lake", create=True, hold_bytes={self.hold!r}{key})'

    def read(self) -> list[Row]:
        from deltalake import DeltaTable

        path = str(self.folder / "lake")
        return rows_of(DeltaTable(path).to_pyarrow_table().to_pylist()) if DeltaTable.is_deltatable(path) else []


class DeltaUpsert(DeltaAppend):
    """A Delta Lake table, with one row for each key."""

    key = True


class DeltaHeld(DeltaUpsert):
    """The same, whose rows are held back for some epochs."""

    hold = "1000B"
    rare = True


class Iceberg(Place):
    """An Iceberg table, whose catalog is a file."""

    points = "iceberg."

    def make(self) -> None:
        pytest.importorskip("pyiceberg", reason="pip install 'millstream[iceberg]'")
        lake = self.folder / "lake"
        lake.mkdir()
        self.catalog = {"type": "sql", "uri": f"sqlite:///{lake}/catalog.db", "warehouse": f"file://{lake}/warehouse"}
        key = ', key="k"' if self.key else ""
        self.sink = f'ms.iceberg_sink({self.catalog!r}, "matrix.rows", create=True, hold_bytes=0{key})'

    def read(self) -> list[Row]:
        from pyiceberg.catalog import load_catalog

        catalog = load_catalog("default", **self.catalog)
        if not catalog.table_exists("matrix.rows"):
            return []
        return rows_of(catalog.load_table("matrix.rows").scan().to_arrow().to_pylist())


class IcebergUpsert(Iceberg):
    """An Iceberg table, with one row for each key."""

    key = True


class Webhook(Place):
    """A server that passes over idempotency keys it knows, and refuses some messages for good."""

    points = "http."
    ordered = True

    def make(self) -> None:
        self.receiver = Receiver(self._answer)
        self.sink = (
            f'ms.http_sink({self.receiver.url!r}, order_by="k", on_error="dead_letter", name="hook",'
            ' retry=ms.retry(3, wait="1ms"))'
        )

    def _answer(self, sent: Sent, times: int) -> tuple[int, dict[str, str], str]:
        del times
        return (422, {}, "refused") if refused(sent.body) else (200, {}, "")

    def read(self) -> list[Row]:
        return rows_of(body for body in self.receiver.effects if not refused(body))

    def aside(self) -> list[Row]:
        with StoreReader.open(self.folder / "job.duckdb") as reader:
            return rows_of(json.loads(letter["raw"]) for letter in reader.dead_letters().to_pylist())

    def close(self) -> None:
        self.receiver.close()


def refused(body: dict[str, Any]) -> bool:
    """Whether the receiver takes no such message, however often it comes."""
    return bool(body["n"] % 5 == 1)


PLACES: dict[str, type[Place]] = {
    "files": Files,
    "duckdb_upsert": DuckDBUpsert,
    "delta": DeltaAppend,
    "http": Webhook,
    "kafka": Topic,
    "postgres": PostgresAppend,
    "iceberg": Iceberg,
    "duckdb": DuckDBAppend,
    "delta_upsert": DeltaUpsert,
    "iceberg_upsert": IcebergUpsert,
    "delta_held": DeltaHeld,
    "postgres_upsert": PostgresUpsert,
}
"""Those that need no server to be started come first: samples begin with them."""
