"""Makes a store again out of what can still be read of a damaged one.

DuckDB opens a file whose write-ahead log was cut, at the last whole transaction, and refuses one whose log was
changed inside. Salvage works on a copy: it cuts the log before the first entry that does not match its checksum, takes
the newest epoch that is whole to the last digest, and writes a new store of it. What came after that epoch is lost,
and whoever salvages must know how much that is.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
from millstream.engine.element import Epoch
from millstream.engine.errors import StoreCorrupt, StoreError
from millstream.engine.store.catalog import load_catalog
from millstream.engine.store.copying import copy_checkpoint
from millstream.engine.store.encoding import checksum
from millstream.engine.store.instance import Instance, explain
from millstream.engine.store.lock import StoreLock
from millstream.engine.store.reader import check_file
from millstream.engine.store.verifying import Finding, find
from millstream.engine.store.witness import read_witness

_BAD_ENTRY: Final = re.compile(r"entry at byte position (\d+)")
_OF_THE_LOG: Final = ("WAL", ".wal")


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What was saved.

    Attributes:
        epoch: the one the new store holds.
        acknowledged: the last one the witness had seen; None: there is no witness, or it is damaged.
        log: what had to be done to the write-ahead log; empty: nothing.
        given_up: newer epochs that were there and not whole.
    """

    epoch: Epoch
    acknowledged: Epoch | None
    log: str
    given_up: tuple[Finding, ...]


def salvage(path: Path, target: Path) -> Salvaged:
    """Write the newest whole epoch of a damaged store to ``target``; the store itself is not touched.

    The new store is that of the same job, with what its sinks have still to show, and has no witness.

    Raises:
        StoreLocked: the job is running.
        StoreError: ``target`` is there already, or there is no store.
        StoreCorrupt: nothing whole is left.
    """
    path, target = Path(path).absolute(), Path(target).absolute()
    check_file(path)
    if target.exists():
        raise StoreError(f"{target} is there already: give another name")
    with contextlib.ExitStack() as undo:
        undo.callback(StoreLock.shared(path).release)
        work = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix=".salvage-", dir=target.parent)))
        copy = work / path.name
        for suffix in ("", ".wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
        instance, log = _opened(copy)
        undo.callback(instance.close)
        try:
            epoch, given_up = _newest_whole(instance)
            _copy(instance, target, epoch, path)
        except duckdb.Error as error:
            raise explain(error, path, "salvage the store") from error
    return Salvaged(epoch, _acknowledged(path), log, given_up)


def _opened(copy: Path) -> tuple[Instance, str]:
    """Open a copy, cutting its log where it must be cut; return what was done to that, too."""
    log = copy.with_name(copy.name + ".wal")
    size, cut = log.stat().st_size if log.exists() else 0, None
    while True:
        try:
            instance = Instance(copy)
        except StoreError as error:
            if not any(sign in str(error) for sign in _OF_THE_LOG) or not log.exists():
                raise StoreCorrupt(
                    f"the database file itself cannot be opened, so nothing can be salvaged: restore it from a backup. "
                    f"{error}"
                ) from error
            entry = _BAD_ENTRY.search(str(error))
            at = int(entry[1]) if entry else 0
            cut = at if cut is None or at < cut else 0
            if cut:
                with log.open("r+b") as file:
                    file.truncate(cut)
            else:
                log.unlink()
        else:
            return instance, "" if cut is None else f"cut at byte {cut:,} of {size:,}"


def _newest_whole(instance: Instance) -> tuple[Epoch, tuple[Finding, ...]]:
    _forget_damaged_manifests(instance)
    catalog = load_catalog(lambda sql: instance.connection.sql(sql).to_arrow_table())
    given_up: list[Finding] = []
    for epoch in reversed(catalog.entries):
        finding = find(instance, catalog, epoch)
        if not finding.problem:
            return epoch, tuple(given_up)
        given_up.append(finding)
    problems = "; ".join(f"epoch {finding.epoch}: {finding.problem}" for finding in given_up) or "there are none"
    raise StoreCorrupt(f"no epoch is whole, so nothing can be salvaged: restore the store from a backup. {problems}")


def _forget_damaged_manifests(instance: Instance) -> None:
    for epoch, body, expected in instance.connection.execute("SELECT epoch, body, checksum FROM manifest").fetchall():
        if checksum(body) != expected:
            instance.connection.execute("DELETE FROM manifest WHERE epoch = ?", [epoch])


def _copy(instance: Instance, target: Path, epoch: Epoch, path: Path) -> None:
    cursor = instance.cursor()
    ((job_id,),) = cursor.execute("SELECT job_id FROM job").fetchall()
    try:
        copy_checkpoint(cursor, target, epoch=epoch, taken_from=str(path), job_id=job_id, name=None, same_job=True)
    finally:
        cursor.close()


def _acknowledged(path: Path) -> Epoch | None:
    try:
        return read_witness(path, None)
    except StoreError:
        return None
