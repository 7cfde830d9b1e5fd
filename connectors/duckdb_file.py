"""A DuckDB file that other programs read or write too: opened for a moment, and closed again.

DuckDB's lock is one of POSIX: it is gone as soon as this process closes any descriptor of the file. So a file is never
opened by other means while DuckDB has it, and the file of a checkpoint store, which stays open, is not opened at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import duckdb
from millstream.connectors.durable import is_of_the_disk, with_advice
from millstream.engine.errors import ExternalError, JobError

_PAUSE: Final = 0.05


@contextmanager
def opened(path: Path, what: str, *, read_only: bool, patience: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a file, waiting so many seconds while another process has it.

    Raises:
        ExternalError: it was in use all the time, or the disk failed.
        JobError: DuckDB finds fault with what is asked.
    """
    connection = _connect(path, what, read_only=read_only, patience=patience)
    try:
        with connection:
            connection.execute("SET timezone = 'UTC'")
            yield connection
    except duckdb.Error as error:
        # A COMMIT that finds no room says so in an error of another kind.
        outside = isinstance(error, duckdb.IOException | duckdb.FatalException | duckdb.OutOfMemoryException)
        if outside or is_of_the_disk(error):
            raise ExternalError(with_advice(f"{what}: {path} could not be read or written: {error}")) from error
        raise JobError(f"{what}: {error}") from error


def _connect(path: Path, what: str, *, read_only: bool, patience: float) -> duckdb.DuckDBPyConnection:
    until = time.monotonic() + patience
    while True:
        try:
            return duckdb.connect(str(path), read_only=read_only)
        except duckdb.Error as error:
            # In use by another process, or by this one for something else.
            busy = isinstance(error, duckdb.IOException | duckdb.ConnectionException)
            if not busy or time.monotonic() + _PAUSE > until:
                kind = ExternalError if busy else JobError
                raise kind(with_advice(f"{what}: {path} cannot be opened: {error}")) from error
        time.sleep(_PAUSE)


def refuse_store(path: Path, store: Path | None, what: str) -> None:
    """Raise JobError if a file is that of the job's checkpoint store, by whatever name."""
    if store is None:
        return
    same = path.resolve() == store.resolve() or (path.exists() and store.exists() and path.samefile(store))
    if same:
        raise JobError(f"{what}: {path} is the checkpoint store of the job itself: use another file")
