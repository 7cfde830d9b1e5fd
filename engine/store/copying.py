"""Copies one checkpoint into a file of its own: a savepoint, or the store of a second job."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
from millstream.engine.element import Epoch
from millstream.engine.errors import StoreError
from millstream.engine.failpoints import hit
from millstream.engine.state import StateKind
from millstream.engine.store.catalog import Catalog, Entry, Query, load_catalog, positions_at, written_to
from millstream.engine.store.columns import literal, quote
from millstream.engine.store.encoding import checksum, pack_body
from millstream.engine.store.generation import create_views
from millstream.engine.store.instance import Instance, explain, insert_arrow
from millstream.engine.store.pruning import position_row
from millstream.engine.store.schema import CREATE, FORMAT, POSITIONS, WRITTEN, create_state_table, rows_to_arrow
from millstream.engine.store.types import Manifest, Parent
from millstream.engine.store.verifying import verify_epoch
from millstream.engine.store.versions import Pieces, pieces_of
from millstream.engine.store.witness import sync_folder

_BATCH_ROWS: Final = 131_072


def copy_checkpoint(
    cursor: duckdb.DuckDBPyConnection,
    target: Path,
    *,
    epoch: Epoch | None,
    taken_from: str,
    job_id: str,
    name: str | None,
    same_job: bool = False,
) -> Manifest:
    """Copy a checkpoint to ``target``, which then appears at once, whole and durable.

    Only what the checkpoint needs is copied: what is pruned in the store afterwards does not concern the copy.

    Args:
        cursor: a connection to the store, whose transaction sees one state of it however long this takes.
        epoch: which one; None: the last.
        job_id: of the copy.
        name: of a savepoint. Without one the copy is another job's: it gets no committables, since making output of the
            checkpoint visible is the first job's affair, and would be done twice. What is in the outbox is not copied
            to a savepoint either: no job runs on it.
        same_job: the copy takes the store's place, with all there is to show: it is not another job's.

    Raises:
        StoreError: the epoch is not in the store, the target is there already, or the disk failed.
        StoreCorrupt: the rows are not those that were written.
    """
    # Of a store there is one at a time, since it is locked; of savepoints anyone may be making one.
    temporary = target.with_name(f".{target.name}.tmp" if name is None else f".{target.name}.{os.getpid()}.tmp")
    with _snapshot(cursor) as query, contextlib.ExitStack() as undo:
        catalog = load_catalog(query)
        entry = catalog.entry(_wanted(catalog, epoch))
        undo.callback(_remove, temporary)
        _remove(temporary)
        parent = None if same_job else Parent(catalog.job_id, int(entry.manifest.epoch), taken_from, name)
        instance = Instance(temporary)
        try:
            _fill(instance, query, cursor, catalog, entry, job_id, parent)
            # What does not match its digests is noticed now, and not when it is needed.
            verify_epoch(instance, load_catalog(_query_of(instance)), entry.manifest.epoch)
        except duckdb.Error as error:
            raise explain(error, target, "copy the checkpoint") from error
        finally:
            instance.close()
        hit("copy.written")
        _put_in_place(temporary, target)
    return entry.manifest


@contextlib.contextmanager
def _snapshot(cursor: duckdb.DuckDBPyConnection) -> Iterator[Query]:
    cursor.execute("BEGIN TRANSACTION READ ONLY")
    try:
        yield lambda sql: cursor.sql(sql).to_arrow_table()
    finally:
        with contextlib.suppress(duckdb.Error):
            cursor.execute("ROLLBACK")


def _wanted(catalog: Catalog, epoch: Epoch | None) -> Epoch:
    if epoch is not None:
        return epoch
    if not catalog.entries:
        raise StoreError("the store holds no checkpoint yet: there is nothing to copy")
    return next(reversed(catalog.entries))


def _fill(
    instance: Instance,
    query: Query,
    cursor: duckdb.DuckDBPyConnection,
    catalog: Catalog,
    entry: Entry,
    job_id: str,
    parent: Parent | None,
) -> None:
    into = instance.connection
    generation = int(entry.manifest.generation)
    parts = [pieces_of(catalog, generation, key) for key in catalog.origins.get(generation, {}) if key[1]]
    into.execute("BEGIN TRANSACTION")
    for statement in CREATE:
        into.execute(statement)
    told = None if parent is None else json.dumps(asdict(parent))
    into.execute("INSERT INTO job VALUES (?, ?, now()::TIMESTAMP, ?)", [FORMAT, job_id, told])
    for pieces in parts:
        _copy_state(into, query, cursor, catalog, entry, pieces)
    _copy_records(into, query, catalog, entry, parent)
    into.execute("COMMIT")
    copied = load_catalog(_query_of(instance))
    into.execute("BEGIN TRANSACTION")
    create_views(into, copied, generation)
    into.execute("COMMIT")
    into.execute("CHECKPOINT")


def _copy_state(
    into: duckdb.DuckDBPyConnection,
    query: Query,
    cursor: duckdb.DuckDBPyConnection,
    catalog: Catalog,
    entry: Entry,
    pieces: Pieces,
) -> None:
    epoch, key = int(entry.manifest.epoch), pieces.key
    described = entry.manifest.tables.get(key)
    keyed = pieces.held[-1].table.kind is StateKind.KEYED
    oldest = max(pieces.since + 1, described.full_from if described and keyed else 0)
    for piece in pieces.held:
        into.execute(create_state_table(piece.name, piece.table))
        if described is None:
            continue
        sql = f"SELECT * FROM main.{quote(piece.name)} WHERE epoch BETWEEN {oldest} AND {epoch}"  # noqa: S608
        for batch in cursor.sql(sql).to_arrow_reader(_BATCH_ROWS):
            insert_arrow(into, quote(piece.name), pa.Table.from_batches([batch]))
    if described is None:
        return
    written = [w for w in written_to(query, catalog, key, entry.manifest.epoch) if oldest <= w.epoch < epoch]
    if written:
        rows = [[w.epoch, *w.table, w.bucket, w.rows, w.digest] for w in written]
        insert_arrow(into, "written", rows_to_arrow(rows, WRITTEN))
    its = f"operator = {literal(key[0])} AND state_table = {literal(key[1])}"
    dropped = query(f"SELECT * FROM dropped WHERE {its} AND epoch BETWEEN {oldest} AND {epoch}")  # noqa: S608
    if dropped.num_rows:
        insert_arrow(into, "dropped", dropped)


def _copy_records(
    into: duckdb.DuckDBPyConnection, query: Query, catalog: Catalog, entry: Entry, parent: Parent | None
) -> None:
    epoch, generation = int(entry.manifest.epoch), int(entry.manifest.generation)
    for table, where in (
        ("generations", f"generation <= {generation}"),
        ("operators", f"generation <= {generation}"),
    ):
        rows = query(f"SELECT * FROM {table} WHERE {where} ORDER BY rowid")  # noqa: S608
        if rows.num_rows:
            insert_arrow(into, table, rows)
    positions = [position_row(epoch, p) for p in positions_at(query, catalog, entry.manifest.epoch)]
    if positions:
        insert_arrow(into, "positions", rows_to_arrow(positions, POSITIONS))
    manifest = query(f"SELECT * FROM manifest WHERE epoch = {epoch}")  # noqa: S608
    if parent is None:
        _copy_what_is_its_own(into, query, entry.manifest)
    elif parent.name is None or entry.body.outbox is not None:
        body = pack_body(replace(entry.body, committables=(), outbox=None))
        for column, value in (("body", body), ("checksum", checksum(body))):
            at = manifest.schema.get_field_index(column)
            manifest = manifest.set_column(
                at, manifest.schema.field(at), pa.array([value], manifest.schema.field(at).type)
            )
    insert_arrow(into, "manifest", manifest)


def _copy_what_is_its_own(into: duckdb.DuckDBPyConnection, query: Query, manifest: Manifest) -> None:
    """What only the job itself may have: what its sinks have still to show, dead letters, and what it has dropped."""
    for table, where in (
        ("outbox", f"epoch = {int(manifest.epoch)}"),
        ("dead_letters", f"epoch <= {int(manifest.epoch)}"),
        ("forgotten", f"generation <= {int(manifest.generation)}"),
    ):
        rows = query(f"SELECT * FROM {table} WHERE {where} ORDER BY rowid")  # noqa: S608
        if rows.num_rows:
            insert_arrow(into, table, rows)


def _query_of(instance: Instance) -> Query:
    return lambda sql: instance.connection.sql(sql).to_arrow_table()


def _remove(path: Path) -> None:
    for file in (path, path.with_name(path.name + ".wal")):
        file.unlink(missing_ok=True)


def _put_in_place(temporary: Path, target: Path) -> None:
    try:
        fd = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o600)
            os.fsync(fd)
        finally:
            os.close(fd)
        # Unlike a rename this fails if somebody was faster.
        os.link(temporary, target)
        sync_folder(target.parent)
    except FileExistsError:
        raise StoreError(f"{target} is there already: give another name, or remove it first") from None
    except OSError as error:
        raise StoreError(f"cannot put the copy at {target} ({error.strerror})") from error
