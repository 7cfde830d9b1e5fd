"""Looks into a store from outside: asks the running job, or opens the file of a stopped one for reading."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

import duckdb
import pyarrow as pa
from millstream.engine.element import Epoch
from millstream.engine.errors import StoreError, StoreLocked
from millstream.engine.sink import Committable
from millstream.engine.store.catalog import (
    check_format,
    committables_of,
    count_committables,
    facts_of,
    load_catalog,
    positions_at,
)
from millstream.engine.store.encoding import TableKey
from millstream.engine.store.holds import holds_at_last
from millstream.engine.store.instance import Instance, explain
from millstream.engine.store.letters import ALL, Selection, count_letters, letters_of, replayable_letters
from millstream.engine.store.lock import StoreLock
from millstream.engine.store.query import answer
from millstream.engine.store.schema import view_names
from millstream.engine.store.server import ask
from millstream.engine.store.sizes import StateSize, state_size
from millstream.engine.store.types import Manifest, MarkedLetter, SplitPosition, StoreFacts

COMES_AND_GOES: Final = 5.0
"""Seconds a job may hold its store without answering: it is just starting, or ending."""


class _Query(Protocol):
    def __call__(self, sql: str, epoch: int | None = None) -> pa.Table: ...


class StoreReader:
    """Reads a store that somebody else may be writing. Use it in a ``with`` block: it may keep a job from starting.

    >>> import tempfile
    >>> from millstream.engine.store.store import CheckpointStore
    >>> path = Path(tempfile.mkdtemp()) / "job.duckdb"
    >>> CheckpointStore.open(path).close()
    >>> with StoreReader.open(path) as reader:
    ...     reader.query("SELECT format FROM job").to_pylist(), reader.running
    ([{'format': 4}], False)
    """

    def __init__(self, query: _Query, path: Path, running: bool, close: Callable[[], None]) -> None:
        self.running = running
        self._path = path
        self._query = query
        self._close = close

    @classmethod
    def open(cls, path: Path) -> StoreReader:
        """Ask the running job if there is one; else open the file.

        Raises:
            StoreLocked: the job is running but does not answer.
            StoreError: there is no such store, it is something else, or it cannot be read.
        """
        path = Path(path).absolute()
        until = time.monotonic() + COMES_AND_GOES
        while True:
            if ask(path, "query", sql="SELECT 1") is not None:
                return cls(lambda sql, epoch=None: _answered(path, sql, epoch), path, running=True, close=lambda: None)
            check_file(path)
            try:
                lock = StoreLock.shared(path)
            except StoreLocked:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
            else:
                return cls._of_file(path, lock)

    @classmethod
    def open_copy(cls, path: Path) -> StoreReader:
        """Open a savepoint's file, which nobody ever writes.

        Raises:
            StoreError: there is no such file, it is something else, or it cannot be read.
        """
        check_file(path)
        return cls._of_file(path, None)

    @classmethod
    def _of_file(cls, path: Path, lock: StoreLock | None) -> StoreReader:
        with contextlib.ExitStack() as undo:
            if lock is not None:
                undo.callback(lock.release)
            instance = Instance(path, read_only=True)
            undo.callback(instance.close)
            if not _read(instance, "SELECT 1 FROM duckdb_tables() WHERE table_name = 'job'").num_rows:
                raise StoreError(f"{path} is a DuckDB database, but not the store of a job: give the job's own")
            check_format(partial(_read, instance))
            close = undo.pop_all().close
        return cls(lambda sql, epoch=None: _read(instance, sql, epoch), path, running=False, close=close)

    def query(self, sql: str, epoch: int | None = None) -> pa.Table:
        """Answer one SELECT. Views of every operator's state are in the schema ``state``, as of ``epoch`` if given.

        Raises:
            JobError: it is not a single SELECT, or DuckDB refuses it, or the epoch is not in the store any more.
        """
        return self._query(sql, epoch)

    def job_id(self) -> str:
        """The job's id."""
        return load_catalog(self._query).job_id

    def facts(self) -> StoreFacts:
        """What a start of the job would decide by, save what the witness says."""
        return facts_of(self._query, load_catalog(self._query), None)

    def manifests(self) -> list[Manifest]:
        """Every epoch that can be restored, oldest first."""
        return [entry.manifest for entry in load_catalog(self._query).entries.values()]

    def positions(self, epoch: Epoch) -> list[SplitPosition]:
        """The position of every split at an epoch."""
        return positions_at(self._query, load_catalog(self._query), epoch)

    def committables(self, epoch: Epoch) -> dict[str, list[Committable]]:
        """What the sinks handed over at exactly this epoch, by sink id, as far as the manifest holds it."""
        catalog = load_catalog(self._query)
        if catalog.entry(epoch).body.outbox is not None:
            return {}
        return committables_of(self._query, catalog, epoch)

    def count_committables(self, epoch: Epoch) -> dict[str, int]:
        """How many things the sinks handed over at exactly this epoch, by sink id."""
        return count_committables(load_catalog(self._query), epoch)

    def state_sizes(self, manifest: Manifest) -> dict[TableKey, StateSize]:
        """How much state there was at an epoch, by (operator id, table name)."""
        catalog = load_catalog(self._query)
        return {
            (id_, table.name): state_size(self._query, catalog, manifest, (id_, table.name), table)
            for id_, operator in manifest.operators.items()
            for table in operator.tables
            if (id_, table.name) in manifest.tables
        }

    def dead_letters(
        self, selection: Selection = ALL, columns: Sequence[str] = (), limit: int | None = None
    ) -> pa.Table:
        """Dead letters, oldest first; without ``columns`` all of them."""
        return letters_of(self._query, selection, columns, limit)

    def count_dead_letters(self, selection: Selection = ALL) -> int:
        """How many dead letters there are."""
        return count_letters(self._query, selection)

    def replayable_letters(self, selection: Selection) -> list[MarkedLetter]:
        """Dead letters of operators, oldest first, as they are replayed."""
        return replayable_letters(self._query, selection)

    def state_views(self) -> list[str]:
        """The names of the views of operators' state."""
        rows = self._query("SELECT view_name FROM duckdb_views() WHERE schema_name = 'state' ORDER BY view_name")
        return [str(name) for name in rows.column("view_name").to_pylist()]

    def holds(self) -> pa.Table:
        """What holds the job back: one row each, with the columns ``HOLDS``."""
        if not self.running:
            return holds_at_last(self._query, load_catalog(self._query))
        found = ask(self._path, "stuck")
        if found is None:
            raise StoreError(f"the job at {self._path} has stopped: ask again")
        return found

    def view_owners(self) -> dict[str, tuple[str, int]]:
        """By view: the operator whose state it shows, and the bytes of memory that held at the last checkpoint."""
        last = load_catalog(self._query).last
        if last is None:
            return {}
        held = {id_: sum(parts.values()) for id_, parts in last.memory.items()}
        names = view_names(list(last.operators.values()))
        return {view: (last.operators[id_].name, held.get(id_, 0)) for (id_, _), view in names.items()}

    def close(self) -> None:
        """Let go of the store."""
        self._close()

    def __enter__(self) -> StoreReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def check_file(path: Path) -> None:
    """Refuse what is no database before a lock file is put beside it."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except FileNotFoundError:
        raise StoreError(f"there is no store at {path}: give the path the job was started with") from None
    except OSError as error:
        raise StoreError(f"cannot read the store {path} ({error.strerror})") from error
    if head[8:] != b"DUCK":
        raise StoreError(f"{path} is not the store of a job: give the file that the job was started with")


def _answered(path: Path, sql: str, epoch: int | None) -> pa.Table:
    result = ask(path, "query", sql=sql, epoch=epoch)
    if result is None:
        raise StoreError(f"the job at {path} has stopped: ask again")
    return result


def _read(instance: Instance, sql: str, epoch: int | None = None) -> pa.Table:
    cursor = instance.cursor()
    try:
        return answer(cursor, sql, epoch)
    except duckdb.Error as error:
        raise explain(error, instance.path, "read the store") from error
    finally:
        cursor.close()
