"""Savepoints and forks: a checkpoint kept under a name, and a second job that starts from one.

A savepoint is a file of its own, ``<store>.savepoints/<name>.duckdb``: the store may prune what it likes, or be lost.
No job runs on it; a new store is forked from it, whose job has an id of its own, so that its sinks write beside those
of the first job and never make anything visible that belongs to it.
"""

from __future__ import annotations

import contextlib
import glob
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
from millstream.engine.element import Epoch
from millstream.engine.errors import JobError, StoreError, StoreLocked
from millstream.engine.store.catalog import Catalog, load_catalog
from millstream.engine.store.copying import copy_checkpoint
from millstream.engine.store.instance import Instance, explain
from millstream.engine.store.lock import StoreLock, lock_path
from millstream.engine.store.reader import COMES_AND_GOES, check_file
from millstream.engine.store.server import ask
from millstream.engine.store.types import Manifest, Parent
from millstream.engine.store.witness import Witness, check_witness, read_witness, sync_folder

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_FOLDER: Final = ".savepoints"
_SUFFIX: Final = ".duckdb"
_PASSING: Final = ".passing-"
"""Savepoints that only live as long as a running job is being forked."""


@dataclass(frozen=True, slots=True)
class Savepoint:
    """A savepoint as it lies on disk; ``manifest`` is its only epoch."""

    name: str
    path: Path
    parent: Parent
    manifest: Manifest

    @property
    def bytes(self) -> int:
        """The size of its file."""
        return self.path.stat().st_size


def savepoints_folder(store: Path) -> Path:
    """The folder beside a store where its savepoints are."""
    return store.with_name(store.name + _FOLDER)


def savepoint_path(store: Path, name: str) -> Path:
    """The file of a savepoint.

    Raises:
        JobError: no savepoint can be called so.

    >>> savepoint_path(Path("shop.duckdb"), "before-upgrade").as_posix()
    'shop.duckdb.savepoints/before-upgrade.duckdb'
    """
    if not _NAME.fullmatch(name):
        raise JobError(
            f"a savepoint cannot be called {name!r}: give it a letter, then up to 63 letters, digits, '-' and '_'"
        )
    return savepoints_folder(store) / f"{name}{_SUFFIX}"


def write_savepoint(cursor: duckdb.DuckDBPyConnection, store: Path, name: str) -> Manifest:
    """Copy the last checkpoint that a connection to the store sees into a savepoint.

    Raises:
        StoreError: there is one of that name, or no checkpoint, or the disk failed.
    """
    return _write(cursor, store, savepoint_path(store, name), name, None)


def write_passing(cursor: duckdb.DuckDBPyConnection, store: Path, epoch: Epoch | None) -> str:
    """As ``write_savepoint``, for a fork that another process is about to make; return the file's name."""
    path = savepoints_folder(store) / f"{_PASSING}{uuid.uuid4().hex}{_SUFFIX}"
    _write(cursor, store, path, "passing", epoch)
    return path.name


def _write(cursor: duckdb.DuckDBPyConnection, store: Path, path: Path, name: str, epoch: Epoch | None) -> Manifest:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    taken_from = f"{store}@{name}"
    return copy_checkpoint(cursor, path, epoch=epoch, taken_from=taken_from, job_id=uuid.uuid4().hex, name=name)


def create_savepoint(store: Path, name: str) -> Savepoint:
    """Keep a checkpoint under a name: the next one of a running job, the last one of a stopped job.

    Raises:
        StoreError: there is one of that name, or no checkpoint, or the disk failed.
        JobError: no savepoint can be called so.
    """
    store = Path(store).absolute()
    path = savepoint_path(store, name)
    if path.exists():
        raise StoreError(f"there is a savepoint {name!r} of {store} already: give another name, or drop that one first")
    if _asked(store, "savepoint", name=name) is None:
        with _stopped(store) as (cursor, _):
            write_savepoint(cursor, store, name)
    return read_savepoint(path)


def _asked(store: Path, what: str, **arguments: object) -> pa.Table | None:
    """Let the running job answer; None if it is stopped."""
    check_file(store)
    until = time.monotonic() + COMES_AND_GOES
    while True:
        answer = ask(store, what, **arguments)
        if answer is not None or time.monotonic() > until:
            return answer
        try:
            StoreLock.shared(store).release()
        except StoreLocked:
            time.sleep(0.02)
        else:
            return None


def read_savepoint(path: Path) -> Savepoint:
    """Look into the file of a savepoint.

    Raises:
        StoreError: it is none.
    """
    with _opened(path) as (_, catalog):
        parent, last = catalog.parent, catalog.last
    if parent is None or parent.name is None or last is None:
        raise StoreError(f"{path} is not a savepoint")
    return Savepoint(parent.name, path, parent, last)


def list_savepoints(store: Path) -> list[Savepoint]:
    """Return the savepoints of a store, oldest epoch first."""
    files = savepoints_folder(Path(store).absolute()).glob(f"[A-Za-z]*{_SUFFIX}")
    return sorted(map(read_savepoint, files), key=lambda savepoint: (savepoint.manifest.epoch, savepoint.name))


def find_savepoint(store: Path, name: str) -> Savepoint:
    """Return a savepoint of a store.

    Raises:
        JobError: there is none of that name.
    """
    path = savepoint_path(Path(store).absolute(), name)
    if not path.exists():
        raise JobError(f"{store} has no savepoint {name!r}; {_there_are(Path(store))}")
    return read_savepoint(path)


def drop_savepoint(store: Path, name: str) -> None:
    """Remove a savepoint.

    Raises:
        JobError: there is none of that name.
    """
    path = savepoint_path(Path(store).absolute(), name)
    try:
        path.unlink()
        lock_path(path).unlink(missing_ok=True)  # of somebody who took it for a store
        sync_folder(path.parent)
    except FileNotFoundError:
        raise JobError(f"{store} has no savepoint {name!r}; {_there_are(Path(store))}") from None


def _there_are(store: Path) -> str:
    names = [savepoint.name for savepoint in list_savepoints(store)]
    return f"it has {', '.join(names)}" if names else "it has none"


def sweep(store: Path) -> None:
    """Remove what processes that died have left of copies. Only for who holds the store's lock, as its job starts."""
    folder = savepoints_folder(store)
    own = store.parent.glob(f".{glob.escape(store.name)}.tmp*")
    for leftover in (*own, *folder.glob(f"{_PASSING}*"), *folder.glob(".*.tmp*")):
        leftover.unlink(missing_ok=True)


# --- forks ----------------------------------------------------------------------------------------------------


def fork(store: Path, new: Path, *, epoch: int | None = None, savepoint: str | None = None) -> Manifest:
    """Copy a checkpoint into a new store, for a second job. The first is not touched; it may be running.

    Args:
        store: of the first job, or a savepoint's file.
        epoch: which checkpoint; None: the last.
        savepoint: the name of a savepoint of ``store`` instead.

    Raises:
        StoreError: there is no such checkpoint, ``new`` is there already, or the disk failed.
        JobError: there is no such savepoint.
    """
    store, new = Path(store).absolute(), Path(new).absolute()
    taken_from = f"{store}@{savepoint or epoch}" if savepoint or epoch is not None else str(store)
    wanted = None if epoch is None else Epoch(epoch)
    if savepoint is not None:
        return _fork_file(find_savepoint(store, savepoint).path, new, None, taken_from)
    if store.parent.suffix == _FOLDER:
        return _fork_file(store, new, None, taken_from)
    answer = _asked(store, "passing", epoch=epoch)
    if answer is None:
        return _fork_file(store, new, wanted, taken_from)
    passing = savepoints_folder(store) / str(answer.column("file")[0].as_py())
    try:
        return _fork_file(passing, new, None, taken_from)
    finally:
        passing.unlink(missing_ok=True)


def _fork_file(source: Path, new: Path, epoch: Epoch | None, taken_from: str) -> Manifest:
    new.parent.mkdir(parents=True, exist_ok=True)
    lock = StoreLock.exclusive(new)
    try:
        if new.exists() or read_witness(new, None) is not None:
            raise StoreError(f"{new} holds a job already: a fork needs a new store")
        opened = _opened if source.parent.suffix == _FOLDER else _stopped
        job_id = uuid.uuid4().hex
        with opened(source) as (cursor, _):
            manifest = copy_checkpoint(cursor, new, epoch=epoch, taken_from=taken_from, job_id=job_id, name=None)
        witness = Witness(new, job_id)
        witness.acknowledge(manifest.epoch)
        witness.close()
    finally:
        lock.release()
    return manifest


@dataclass(frozen=True, slots=True)
class From:
    """Where a new store is to start from.

    Attributes:
        store: a job's store or a savepoint's file.
    """

    store: Path
    epoch: int | None = None
    savepoint: str | None = None

    @property
    def text(self) -> str:
        """As it stands in ``Parent.taken_from``."""
        at = self.savepoint or self.epoch
        return str(self.store) if at is None else f"{self.store}@{at}"


def parse_from(text: str) -> From:
    """Read ``FILE``, ``STORE@EPOCH`` or ``STORE@SAVEPOINT``.

    >>> parse_from("/data/shop.duckdb@12").epoch, parse_from("/data/shop.duckdb@before").savepoint
    (12, 'before')
    """
    store, at, name = text.rpartition("@")
    if not at or Path(text).exists():
        return From(Path(text).absolute())
    path = Path(store).absolute()
    return From(path, epoch=int(name)) if name.isdecimal() else From(path, savepoint=name)


def begin_from(text: str, new: Path) -> None:
    """Fork into a new store unless that has been done: the same command may be given again after a crash.

    Raises:
        JobError: it would be the store itself.
        StoreError: as ``fork``.
    """
    source, new = parse_from(text), Path(new).absolute()
    if source.store == new or source.store.parent == savepoints_folder(new):
        raise JobError(
            f"{new} cannot go back to an earlier checkpoint of its own: what its sinks have shown since would come "
            f"twice. Start from {text} with another --store and other outputs"
        )
    if not new.exists():
        fork(source.store, new, epoch=source.epoch, savepoint=source.savepoint)


def check_begun_from(text: str, new: Path, parent: Parent | None) -> None:
    """Refuse a store that has not been started from what ``text`` says."""
    wanted = parse_from(text).text
    if parent is None or parent.taken_from != wanted:
        other = f"was started from {parent.taken_from}" if parent else "holds a job of its own"
        raise JobError(f"{new} {other}, not from {wanted}: give the job a new --store, or leave --from out")


@contextlib.contextmanager
def _stopped(store: Path) -> Iterator[tuple[duckdb.DuckDBPyConnection, Catalog]]:
    """Open the store of a stopped job for reading."""
    lock = StoreLock.shared(store)
    try:
        with _opened(store) as (cursor, catalog):
            check_witness(store, catalog)
            yield cursor, catalog
    finally:
        lock.release()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[duckdb.DuckDBPyConnection, Catalog]]:
    check_file(path)
    instance = Instance(path, read_only=True)
    try:
        catalog = load_catalog(lambda sql: instance.connection.sql(sql).to_arrow_table())
        yield instance.cursor(), catalog
    except duckdb.Error as error:
        raise explain(error, path, "read the store") from error
    finally:
        instance.close()
