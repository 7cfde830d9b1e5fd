"""Reads a store as a restore would, whole: every retained epoch, against the checksums kept when it was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
from millstream.engine.element import Epoch
from millstream.engine.errors import StoreCorrupt, StoreError
from millstream.engine.state import StateKind
from millstream.engine.store.catalog import Catalog, Query, committables_of, load_catalog, positions_at, written_to
from millstream.engine.store.instance import Instance, explain
from millstream.engine.store.lock import StoreLock
from millstream.engine.store.reader import check_file
from millstream.engine.store.restoring import restore_keyed, restore_rows
from millstream.engine.store.versions import pieces_of
from millstream.engine.store.witness import read_witness


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one epoch.

    Attributes:
        rows: state rows that were read and are those that were written.
        committed_at: microseconds since 1970.
        problem: why it cannot be restored; empty: it can.
    """

    epoch: Epoch
    kind: str
    committed_at: int
    rows: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a store is worth.

    Attributes:
        findings: one per retained epoch, oldest first.
        acknowledged: the last epoch that the witness has seen; None: there is no witness.
        problem: what is wrong with the store as a whole; empty: nothing.
    """

    findings: tuple[Finding, ...]
    acknowledged: Epoch | None = None
    problem: str = ""

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problem and not any(finding.problem for finding in self.findings)


def verify_store(path: Path) -> Verdict:
    """Verify the store of a stopped job; nothing is changed.

    Raises:
        StoreLocked: the job is running.
        StoreError: there is no store, or it is something else.
    """
    path = Path(path).absolute()
    check_file(path)
    lock = StoreLock.shared(path)
    try:
        return _verdict(path)
    finally:
        lock.release()


def _verdict(path: Path) -> Verdict:
    try:
        instance = Instance(path, read_only=True)
    except StoreCorrupt as error:
        return Verdict((), problem=str(error))
    try:
        seen = read_witness(path, None)
        catalog = load_catalog(lambda sql: instance.connection.sql(sql).to_arrow_table())
        read_witness(path, catalog.job_id)
        findings = tuple(find(instance, catalog, epoch) for epoch in catalog.entries)
    except StoreCorrupt as error:
        return Verdict((), problem=str(error))
    except duckdb.Error as error:
        return Verdict((), problem=str(explain(error, path, "read the store")))
    finally:
        instance.close()
    last = findings[-1].epoch if findings else None
    if seen is not None and (last is None or last < seen):
        told = f"it ends at epoch {last or 'none'}, but epoch {seen} had been acknowledged"
        return Verdict(findings, seen, f"{told}: its .wal was lost or cut, or an older copy was put back")
    return Verdict(findings, seen)


def find(instance: Instance, catalog: Catalog, epoch: Epoch) -> Finding:
    """Verify one epoch of an open store."""
    manifest = catalog.entry(epoch).manifest
    rows, problem = 0, ""
    try:
        rows = verify_epoch(instance, catalog, epoch)
    except StoreError as error:
        problem = str(error)
    except duckdb.Error as error:
        problem = str(explain(error, instance.path, f"read epoch {epoch}"))
    return Finding(epoch, manifest.kind.value, manifest.committed_at, rows, problem)


def verify_epoch(instance: Instance, catalog: Catalog, epoch: Epoch) -> int:
    """Read all that a restore of an epoch would read; return how many rows of state that is.

    Raises:
        StoreCorrupt: something is missing, or is not what was written.
    """

    def query(sql: str) -> pa.Table:
        return instance.connection.sql(sql).to_arrow_table()

    manifest = catalog.entry(epoch).manifest
    positions_at(query, catalog, epoch)
    if epoch == next(reversed(catalog.entries)):
        committables_of(query, catalog, epoch)
    return sum(_verify_table(instance, query, catalog, epoch, key) for key in manifest.tables)


def _verify_table(instance: Instance, query: Query, catalog: Catalog, epoch: Epoch, key: tuple[str, str]) -> int:
    manifest = catalog.entry(epoch).manifest
    pieces, written = pieces_of(catalog, manifest.generation, key), written_to(query, catalog, key, epoch)
    table = pieces.held[-1].table
    cursor = instance.cursor()
    try:
        if table.kind is StateKind.KEYED:
            oldest = Epoch(manifest.tables[key].full_from)
            return sum(b.num_rows for b in restore_keyed(cursor, pieces, table, (oldest, epoch), written))
        return sum(b.num_rows for b in restore_rows(cursor, pieces, table, epoch, written))
    finally:
        cursor.close()
