"""Topics in a real broker, and jobs that read them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import millstream as ms
from confluent_kafka import Producer
from millstream.engine.source import Source, SplitEnd, SplitReader
from servers.kafka import Broker

SCHEMA = {"n": "int64"}


def message(n: int, **more: Any) -> dict[str, Any]:
    return {"value": json.dumps({"n": n}).encode(), **more}


def numbers(result: Any) -> list[int]:
    return sorted(row["n"] for row in result.rows())


def run(source: Source, store: Path | None = None, parallelism: int = 1, **options: Any) -> list[dict[str, Any]]:
    job, out = ms.Job("read"), ms.memory_sink()
    job.read(source).write(out)
    job.run(store, parallelism=parallelism, every="20ms", restarts=0, **options)
    return out.rows()


def letters_of(store: Path) -> list[dict[str, Any]]:
    import duckdb

    with duckdb.connect(str(store), read_only=True) as connection:
        return connection.sql("select * from dead_letters order by epoch, number").arrow().read_all().to_pylist()


@contextmanager
def transaction(broker: Broker, name: str) -> Iterator[Producer]:
    producer = Producer({"bootstrap.servers": broker.address, "transactional.id": name})
    producer.init_transactions(30)
    producer.begin_transaction()
    yield producer


def read_all(reader: SplitReader, most: float = 30) -> list[dict[str, Any]]:
    """Read until the end."""
    rows: list[dict[str, Any]] = []
    until = time.monotonic() + most
    while time.monotonic() < until:
        got = reader.read()
        if got is SplitEnd.FINISHED:
            return rows
        rows += [] if isinstance(got, SplitEnd) else got.to_pylist()
    raise AssertionError(f"no end after {len(rows)} rows")


def until(condition: Callable[[], object], most: float = 30) -> None:
    end = time.monotonic() + most
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)


class Running:
    """A job without an end, in a thread."""

    def __init__(self, source: Source, store: Path, **options: Any) -> None:
        self.out = ms.memory_sink()
        self.control = ms.Control()
        job = ms.Job("endless")
        job.read(source).write(self.out)
        self.status: Any = None
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(job, store), kwargs=options)
        self._thread.start()

    def _run(self, job: ms.Job, store: Path, **options: Any) -> None:
        try:
            job.run(store, every="20ms", control=self.control, on_status=self._look, **{"restarts": 0} | options)
        except BaseException as error:
            self.failure = error

    def _look(self, status: Any) -> None:
        self.status = status

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        self.control.stop()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def checkpoints(self, more: int) -> None:
        """Wait for so many more of them."""
        until(lambda: self.status is not None)
        have = self.status.checkpoints.committed
        until(lambda: self.status.checkpoints.committed >= have + more)

    def has(self, expected: Sequence[int]) -> None:
        until(lambda: self.failure or len(self.out.rows()) >= len(expected))
        assert self.failure is None, self.failure
        assert numbers(self.out) == list(expected)
