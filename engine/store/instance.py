"""The one DuckDB instance of a store: its settings, its connections, and what its errors mean to people."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
from millstream.engine.errors import StoreCorrupt, StoreError, StoreLocked

_OLDEST: Final = (1, 5)

_SETTINGS: Final = {
    "enable_external_access": "false",  # no SQL reaches a file
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "threads": "2",
    "memory_limit": "2GB",  # beyond it DuckDB spills beside the store
    "wal_autocheckpoint": "1GB",  # `prune` folds the log long before, off the data path
    # Large inserts would be written to the file before COMMIT, and the log only point there: if a process dies while it
    # writes the log, DuckDB 1.5 takes such rows for committed when it reads the log again.
    "enable_optimistic_write": "false",
}

_BEFORE_LOCKING: Final = (
    "SET python_enable_replacements=false",
    "PRAGMA disable_checkpoint_on_shutdown",  # a full disk must not turn `close` into a failure
    # Trying these on strings and floats takes two thirds of the time of writing them, and saves a quarter of the file.
    "SET disabled_compression_methods='fsst,dict_fsst,zstd,alp,alprd'",
    "SET lock_configuration=true",
)


def check_version(version: str = duckdb.__version__) -> None:
    """Refuse a DuckDB that is known to damage its file.

    >>> check_version("1.4.4")
    Traceback (most recent call last):
    millstream.engine.errors.StoreError: DuckDB 1.4.4 can damage its file when the disk fills up: install 1.5.6 or newer
    """
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < _OLDEST:
        raise StoreError(f"DuckDB {version} can damage its file when the disk fills up: install 1.5.6 or newer")


class Instance:
    """Opens the file, hands out cursors, and can close and open it again when DuckDB has invalidated it.

    ``connection`` belongs to the store's thread alone. Cursors may be asked for from any thread.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        check_version()
        self.path = path
        self._read_only = read_only
        self._lock = threading.Lock()
        self._cursors: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()
        self.connection = self._connect()
        self._cursor_maker = self.connection.cursor()

    def _connect(self) -> duckdb.DuckDBPyConnection:
        try:
            connection = duckdb.connect(str(self.path), read_only=self._read_only, config=dict(_SETTINGS))
            for statement in _BEFORE_LOCKING:
                connection.execute(statement)
        except duckdb.Error as error:
            raise explain(error, self.path, "open the store") from error
        return connection

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """Return a new connection to the same instance. Keep its transactions short, and close it."""
        with self._lock:
            cursor = self._cursor_maker.cursor()
            self._cursors.add(cursor)
            return cursor

    def reopen(self) -> None:
        """Close every connection and open the file again: afterwards memory says what the disk says."""
        with self._lock:
            self._close_all()
            self.connection = self._connect()
            self._cursor_maker = self.connection.cursor()

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            self._close_all()

    def interrupt(self) -> None:
        """End whatever the cursors are at, with an error."""
        with self._lock:
            self._interrupt_all()

    def _interrupt_all(self) -> None:
        for cursor in list(self._cursors):
            with contextlib.suppress(duckdb.Error):  # it may have been closed already
                cursor.interrupt()

    def _close_all(self) -> None:
        self._interrupt_all()
        for cursor in list(self._cursors):
            cursor.close()
        self._cursors.clear()
        self._cursor_maker.close()
        self.connection.close()


def insert_arrow(connection: duckdb.DuckDBPyConnection, into: str, rows: pa.Table, first: str = "") -> None:
    """Append Arrow rows, by position, to the quoted table ``into``; ``first`` is SQL for leading columns."""
    connection.register("millstream_rows", rows)
    # If this fails the transaction is over and the name goes with it: nothing to undo here.
    connection.execute(f"INSERT INTO {into} SELECT {first} * FROM millstream_rows")  # noqa: S608
    connection.unregister("millstream_rows")


def explain(error: Exception, path: Path, doing: str) -> StoreError | StoreLocked:
    """Say what a DuckDB error means for the store and what to do about it."""
    text = str(error)
    first = text.splitlines()[0] if text else type(error).__name__
    for signs, make, advice in _ADVICE:
        if any(sign in text for sign in signs):
            return make(f"could not {doing} ({path}): {advice}. DuckDB says: {first}")
    return StoreError(f"could not {doing} ({path}). DuckDB says: {first}")


_Maker = Callable[[str], StoreError | StoreLocked]
_ADVICE: Final[tuple[tuple[tuple[str, ...], _Maker, str], ...]] = (
    (
        ("No space left", "File too large", "Disk quota exceeded"),
        StoreError,
        "the disk is full. Nothing that was committed is lost; make room and the job goes on",
    ),
    (("Read-only file system",), StoreError, "the file system is read-only. Give the job a store it can write to"),
    (
        ("Permission denied", "Cannot open file"),
        StoreError,
        "this user may not write there, or the folder does not exist. Change its permissions or give another path",
    ),
    (
        ("Could not set lock",),
        StoreLocked,
        "another program has the file open, perhaps the DuckDB command line. Close it there and start again",
    ),
    (
        ("orrupt", "replaying WAL", "WAL checkpoint iteration", "Could not read enough bytes", "not a valid DuckDB"),
        StoreCorrupt,
        "the file is damaged or not a Millstream store. Restore it from a backup, or run `millstream store salvage`",
    ),
    (
        ("has been invalidated",),
        StoreError,
        "DuckDB gave up after an earlier error. Nothing that was committed is lost; restart the job",
    ),
)
