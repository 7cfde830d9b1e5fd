"""What a store says of itself: its job, manifests, positions. Read through any function that answers SQL."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import pyarrow as pa
from millstream.engine.element import BarrierKind, Epoch, Generation
from millstream.engine.errors import StoreCorrupt, StoreError
from millstream.engine.sink import Committable
from millstream.engine.store.columns import literal
from millstream.engine.store.encoding import (
    Body,
    TableKey,
    Written,
    checksum,
    latest_positions,
    read_position,
    unpack_body,
)
from millstream.engine.store.outbox import read_outbox
from millstream.engine.store.schema import FORMAT, operators_from_rows, origins_from_rows
from millstream.engine.store.types import Manifest, OperatorState, Origin, Parent, SplitPosition, StoreFacts

Query: TypeAlias = Callable[[str], pa.Table]
"""Answers one SELECT."""

_SPLIT: Final = "epoch, source, split, info, position, max_time, finished"


@dataclass(frozen=True, slots=True)
class Entry:
    """One epoch as the store keeps it."""

    manifest: Manifest
    body: Body


@dataclass(slots=True)
class Catalog:
    """What is kept in memory of a store: small, and equal to what is on disk after every commit.

    Attributes:
        parent: of a copy, the checkpoint it was made of.
        entries: every epoch that can be restored, in ascending order.
        operators: by generation, those of its job.
        origins: by generation, where what they keep comes from, by (operator id, state table name or "").
        forgotten: by id, after which epoch the state of an operator, source or sink was dropped, and its name.
        splits: (source id, split id) of every split that has a position in the newest generation.
        position_rows: rows in the table ``positions``, superseded ones included.
        drops: per ROWS table the oldest epoch whose dropped buckets are still on disk.
    """

    job_id: str
    generation: Generation
    parent: Parent | None = None
    entries: dict[Epoch, Entry] = field(default_factory=dict)
    operators: dict[int, dict[str, OperatorState]] = field(default_factory=dict)
    origins: dict[int, dict[TableKey, Origin]] = field(default_factory=dict)
    forgotten: dict[str, tuple[Epoch, str]] = field(default_factory=dict)
    published: Epoch | None = None
    splits: set[tuple[str, str]] = field(default_factory=set)
    position_rows: int = 0
    drops: dict[TableKey, int] = field(default_factory=dict)

    @property
    def last(self) -> Manifest | None:
        """The newest committed epoch, without what has been dropped after it."""
        if not self.entries:
            return None
        manifest = next(reversed(self.entries.values())).manifest
        gone = self.dropped_after(manifest.epoch)
        return without(manifest, gone) if gone else manifest

    def dropped_after(self, epoch: Epoch) -> frozenset[str]:
        """The ids of those whose state was dropped after this epoch."""
        return frozenset(id_ for id_, (at, _) in self.forgotten.items() if at >= epoch)

    def begins_after(self, generation: int, source: str) -> int:
        """After which epoch the positions of a source begin to count."""
        return self.origins.get(generation, {}).get((source, ""), Origin(1, 0)).since

    def entry(self, epoch: Epoch) -> Entry:
        """Return an epoch that can be restored.

        Raises:
            StoreError: it never was, or has been pruned.
        """
        if epoch not in self.entries:
            have = ", ".join(map(str, self.entries)) or "none"
            raise StoreError(f"epoch {epoch} is not in the store: restorable epochs are {have}")
        return self.entries[epoch]


def without(manifest: Manifest, gone: frozenset[str]) -> Manifest:
    """Return a manifest that knows nothing of some operators."""
    return replace(
        manifest,
        tables={key: table for key, table in manifest.tables.items() if key[0] not in gone},
        watermarks={id_: time for id_, time in manifest.watermarks.items() if id_ not in gone},
        operators={id_: operator for id_, operator in manifest.operators.items() if id_ not in gone},
    )


def check_format(query: Query) -> None:
    """Raise StoreError unless this version of Millstream knows the store's layout."""
    formats = query("SELECT format FROM job")["format"].to_pylist()
    if formats != [FORMAT]:
        raise StoreError(
            f"the store has format {formats}, this version of Millstream reads {FORMAT}: "
            f"run the job with the version that wrote it, or give it a new store"
        )


def load_catalog(query: Query) -> Catalog:
    """Read a store's catalog.

    Raises:
        StoreError: it was written by another version of Millstream.
        StoreCorrupt: a manifest is damaged.
    """
    check_format(query)
    jobs = query("SELECT * FROM job").to_pylist()
    generation = query("SELECT coalesce(max(generation), 0) AS newest FROM generations").to_pylist()[0]["newest"]
    parent = None if jobs[0]["parent"] is None else Parent(**json.loads(jobs[0]["parent"]))
    catalog = Catalog(jobs[0]["job_id"], Generation(generation), parent)
    declared = query("SELECT * FROM operators ORDER BY rowid").to_pylist()
    catalog.operators, catalog.origins = operators_from_rows(declared), origins_from_rows(declared)
    for row in query("SELECT operator, name, epoch FROM forgotten ORDER BY rowid").to_pylist():
        catalog.forgotten[row["operator"]] = (row["epoch"], row["name"])
    catalog.published = query("SELECT max(epoch) AS epoch FROM published").to_pylist()[0]["epoch"]
    rows = query("SELECT * REPLACE (epoch_us(committed_at) AS committed_at) FROM manifest ORDER BY epoch")
    for row in rows.to_pylist():
        catalog.entries[row["epoch"]] = _entry(row, catalog.operators)
    splits = query("SELECT source, split, count(*) AS n, max(epoch) AS newest FROM positions GROUP BY ALL").to_pylist()
    catalog.position_rows = sum(row["n"] for row in splits)
    found = [(row["source"], row["split"], row["newest"]) for row in splits]
    found += [(p.source_id, p.split.id, e) for e, entry in catalog.entries.items() for p in entry.body.positions]
    catalog.splits = {
        (source, split) for source, split, epoch in found if epoch > catalog.begins_after(catalog.generation, source)
    }
    catalog.drops = pending_drops(query)
    return catalog


def pending_drops(query: Query) -> dict[TableKey, int]:
    """Return per ROWS table the oldest epoch whose dropped buckets are still on disk."""
    rows = query("SELECT operator, state_table, min(epoch) AS oldest FROM dropped GROUP BY ALL").to_pylist()
    return {(row["operator"], row["state_table"]): row["oldest"] for row in rows}


def _entry(row: Mapping[str, object], operators: Mapping[int, Mapping[str, OperatorState]]) -> Entry:
    epoch, data = row["epoch"], row["body"]
    assert isinstance(epoch, int)
    assert isinstance(data, bytes)
    if checksum(data) != row["checksum"]:
        raise StoreCorrupt(f"the manifest of epoch {epoch} does not match its checksum: restore the store")
    body = unpack_body(data, Epoch(epoch))
    generation, committed_at = row["generation"], row["committed_at"]
    assert isinstance(generation, int)
    assert isinstance(committed_at, int)
    manifest = Manifest(
        epoch=Epoch(epoch),
        generation=Generation(generation),
        kind=BarrierKind(row["kind"]),
        committed_at=committed_at,
        tables=body.tables,
        watermarks=body.watermarks,
        operators=operators.get(generation, {}),
        memory=body.memory,
        ended=body.ended,
    )
    return Entry(manifest, body)


def count_positions(query: Query) -> int:
    """Return how many rows ``positions`` has."""
    return int(query("SELECT count(*) AS n FROM positions").to_pylist()[0]["n"])


def positions_at(query: Query, catalog: Catalog, epoch: Epoch) -> list[SplitPosition]:
    """Return the latest position of every split at an epoch, by source and split.

    Raises:
        StoreCorrupt: some are missing.
    """
    entry = catalog.entry(epoch)
    positions = latest_positions(moves_until(query, catalog, epoch))
    if len(positions) != entry.body.splits:
        raise StoreCorrupt(
            f"epoch {epoch} has positions of {entry.body.splits} splits, but {len(positions)} were found: restore "
            f"the store from a backup"
        )
    return positions


def moves_until(query: Query, catalog: Catalog, epoch: Epoch) -> list[tuple[int, SplitPosition]]:
    """Return (epoch, position) as far as they are kept; the newest of each split is among them."""
    rows = query(f"SELECT {_SPLIT} FROM positions WHERE epoch <= {int(epoch)}").to_pylist()  # noqa: S608
    found = [(row.pop("epoch"), read_position(**row)) for row in rows]
    found += [(e, p) for e, other in catalog.entries.items() if e <= epoch for p in other.body.positions]
    generation = catalog.entry(epoch).manifest.generation
    return [(e, p) for e, p in found if e > catalog.begins_after(generation, p.source_id)]


def positions_after_drops(query: Query, catalog: Catalog, epoch: Epoch) -> list[SplitPosition]:
    """Return the positions at an epoch that a job goes on from: without sources that were dropped after it."""
    gone = catalog.dropped_after(epoch)
    return [position for position in positions_at(query, catalog, epoch) if position.source_id not in gone]


def facts_of(query: Query, catalog: Catalog, witness: Epoch | None) -> StoreFacts:
    """Return what recovery reads before it decides."""
    last = catalog.last
    read: frozenset[str] = frozenset()
    unpublished: Mapping[str, int] = {}
    if last is not None:
        read = frozenset(position.source_id for position in positions_after_drops(query, catalog, last.epoch))
        if catalog.published != last.epoch:
            unpublished = count_committables(catalog, last.epoch)
    dropped = {id_: name for id_, (_, name) in catalog.forgotten.items()}
    newest = catalog.operators.get(catalog.generation, {})
    # Where the first job writes does not bind a fork that has shown nothing yet.
    bound = last is None or catalog.parent is None or catalog.parent.epoch < last.epoch
    folders = {id_: operator.folders for id_, operator in newest.items() if bound or operator.kind != "sink"}
    letters = query(
        "SELECT node, count(*) AS n, count_if(replay) AS marked FROM dead_letters GROUP BY node"
    ).to_pylist()
    return StoreFacts(
        job_id=catalog.job_id,
        last=last,
        witness=witness,
        generation=catalog.generation,
        folders=folders,
        read=read,
        unpublished=unpublished,
        dropped=dropped,
        dead_letters={row["node"]: row["n"] for row in letters},
        replays=sum(int(row["marked"]) for row in letters),
    )


def committables_of(query: Query, catalog: Catalog, epoch: Epoch) -> dict[str, list[Committable]]:
    """Return what the sinks handed over at an epoch, by sink id, in order.

    Raises:
        StoreCorrupt: the outbox does not hold what was written; of an earlier epoch than the last it holds nothing.
    """
    body = catalog.entry(epoch).body
    if body.outbox is not None:
        return read_outbox(query, epoch, body.outbox)
    by_sink: dict[str, list[Committable]] = {}
    for sink, committable in body.committables:
        by_sink.setdefault(sink, []).append(committable)
    return by_sink


def count_committables(catalog: Catalog, epoch: Epoch) -> dict[str, int]:
    """Return how many committables the sinks handed over at an epoch, by sink id."""
    body = catalog.entry(epoch).body
    return dict(body.outbox.counts if body.outbox is not None else Counter(sink for sink, _ in body.committables))


def written_to(query: Query, catalog: Catalog, key: TableKey, epoch: Epoch) -> list[Written]:
    """Return what was written to one state table up to an epoch, as far as it is still kept."""
    rows = query(
        f"SELECT epoch, bucket, rows, digest FROM written WHERE operator = {literal(key[0])} "  # noqa: S608
        f"AND state_table = {literal(key[1])} AND epoch <= {int(epoch)}"
    ).to_pylist()
    kept = [Written(row["epoch"], key, row["bucket"], row["rows"], row["digest"]) for row in rows]
    for at, entry in catalog.entries.items():
        if at <= epoch:
            kept += [w for w in entry.body.written if w.table == key]
    return kept
