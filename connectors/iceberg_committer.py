"""Publishes epochs in an Iceberg table: rows and marker in one commit, whose outcome is always found out.

The marker is a property of the table, and part of the summary of each snapshot that the sink adds. The property is
what remains when old snapshots expire; the summaries tell whether the table was rolled back, which properties do not
follow. Every change of a marker adds a snapshot, and a commit fails if there is one that was not there when the marker
was read; so what was decided then holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from millstream.connectors.durable import blame_disk, sync_file, sync_folder
from millstream.connectors.iceberg_table import blame_catalog, ours_alone, persistently
from millstream.connectors.iceberg_upsert import upsert
from millstream.connectors.lake_types import Fit, check_still
from millstream.connectors.outbox import Letter, Sent, settle, unpack
from millstream.connectors.outbox_marker import Marker, Publisher
from millstream.engine.errors import JobError
from millstream.engine.failpoints import hit
from millstream.engine.sink import Committable, Committer

if TYPE_CHECKING:
    from millstream.connectors.iceberg_sink import Target
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

_ADVICE: Final = "What was to be written waits in the checkpoint: mend what is complained of, and start the job again"


class IcebergCommitter(Committer):
    """One start of a job towards one table."""

    def __init__(self, target: Target, keys: Sequence[str], publisher: Publisher, fit: Fit, sent: Sent) -> None:
        self._target = target
        self._keys = keys
        self._publisher = publisher
        self._name = publisher.name
        self._fit = fit
        self._sent = sent
        self._catalog: Catalog | None = None
        self._registered = False
        with blame_catalog(self._name, "registering this start of the job"):
            self._persistently(self._register)

    def commit(self, epoch: int, committables: Sequence[Committable]) -> None:
        """Publish an epoch; each attempt finds out whether one before it has done so.

        Raises:
            ExternalError: catalog or store were away for too long, or others changed the table all the time.
            JobError: they refuse the rows, or this start of the job must not write (any more).
        """
        if not committables:
            return
        letter = unpack(committables)
        letter = replace(letter, rows=self._fit.cast(settle(letter.rows, self._keys)))
        with blame_catalog(self._name, f"writing epoch {epoch} to {self._publisher.place}", advice=_ADVICE):
            self._persistently(lambda table: self._publish(table, epoch, letter))
        self._registered = True
        self._sent.note(epoch)
        hit("iceberg.visible")

    # -- attempts: each is one commit at most -----------------------------------------------------------------------

    def _persistently(self, work: Callable[[Table], None]) -> None:
        """Call ``work(table)``, with the table as it is then, until it succeeds."""

        def attempt() -> None:
            catalog, self._catalog = self._catalog or self._target.place.connect(), None
            work(ours_alone(catalog.load_table(self._target.place.table)))
            self._catalog = catalog

        persistently(attempt, self._name, self._target.patience)

    def _register(self, table: Table) -> None:
        marker = self._read(table)
        self._publisher.may_start(marker)
        if marker is None and self._publisher.context.restored:
            # There should be one. If rows have been published that will be found, and must not be hidden now.
            return
        if marker is None:
            self._check_alone(table)
        last = (marker.epoch, marker.digest) if marker is not None else (0, "")
        self._write(table, self._fit.columns.empty_table(), *last)
        self._registered = True

    def _publish(self, table: Table, epoch: int, letter: Letter) -> None:
        marker = self._read(table)
        publisher, registered = self._publisher, self._registered
        if not publisher.must_publish(marker, epoch, letter.after, letter.digest, registered=registered):
            return
        if marker is None or not marker.epoch:
            self._check_alone(table)
        check_still(self._fit, table.schema().as_arrow(), publisher.place)
        hit("iceberg.begun")
        self._write(table, letter.rows, epoch, letter.digest)
        hit("iceberg.written")

    def _write(self, table: Table, rows: pa.Table, epoch: int, digest: str) -> None:
        """Add a snapshot with rows, perhaps none, and the marker."""
        context = self._publisher.context
        marker = {
            "epoch": epoch,
            "generation": context.generation,
            "owner": self._publisher.owner,
            "digest": digest,
            "sequence": table.last_sequence_number + 1,
        }
        properties = {self._key: json.dumps(marker)}
        if rows.num_rows:
            properties[self._job] = context.job_id
        with table.transaction() as transaction:
            transaction.set_properties(properties)
            summary = {self._key: str(epoch)}
            if self._keys and rows.num_rows:
                upsert(transaction, table, rows, self._keys, summary)
            else:
                transaction.append(rows, snapshot_properties=summary)
        with blame_disk(self._name, f"writing epoch {epoch} to the disk"):
            _make_durable(table)

    # -- the marker -------------------------------------------------------------------------------------------------

    def _read(self, table: Table) -> Marker | None:
        text = table.properties.get(self._key)
        if text is None:
            return None
        marker = json.loads(text)
        epoch = self._epoch_of(table, marker)
        # Of a version without digests, or of another epoch than that of the snapshot the table was rolled back to.
        digest = marker.get("digest", "") if epoch == marker["epoch"] else ""
        return Marker(epoch, marker["generation"], marker["owner"], digest)

    def _epoch_of(self, table: Table, marker: Mapping[str, Any]) -> int:
        """Return the epoch that the current snapshot has: less than the marker's if the table was rolled back."""
        snapshot, oldest = table.current_snapshot(), 0
        while snapshot is not None:
            if snapshot.summary is not None and self._key in snapshot.summary.additional_properties:
                return min(int(snapshot.summary.additional_properties[self._key]), int(marker["epoch"]))
            oldest = snapshot.sequence_number or 0
            before = snapshot.parent_snapshot_id
            snapshot = None if before is None else table.snapshot_by_id(before)
        # Where older snapshots have expired, the one with the marker may be among them; otherwise it should be here.
        expired = oldest > marker["sequence"] or table.format_version < 2
        return int(marker["epoch"]) if expired else 0

    def _check_alone(self, table: Table) -> None:
        """Refuse a job that has published nothing yet beside what it has written from another store."""
        context = self._publisher.context
        found = table.properties.get(self._job)
        if self._target.again or found is None or found == context.job_id:
            return
        raise JobError(
            f"{self._name}: job {context.job!r} has written to {self._publisher.place} before, from another store, and "
            "starts anew now: it would write the same rows again. Go on with that store. To start over, drop the "
            "table; to write beside what is there, pass again=True to the sink"
        )

    @property
    def _key(self) -> str:
        context = self._publisher.context
        return f"millstream.{context.job_id}.{context.sink_id}"

    @property
    def _job(self) -> str:
        return f"millstream.job.{self._publisher.context.job}"


def _make_durable(table: Table) -> None:
    """Wait until the files of a local table's last commit are on disk, which pyiceberg does not."""
    snapshot = table.current_snapshot()
    if snapshot is None or not table.metadata_location.startswith(("file:", "/")):
        return
    manifests = [m for m in snapshot.manifests(table.io) if m.added_snapshot_id == snapshot.snapshot_id]
    entries = [entry for manifest in manifests for entry in manifest.fetch_manifest_entry(table.io)]
    files = [table.metadata_location, snapshot.manifest_list]
    files += [m.manifest_path for m in manifests] + [entry.data_file.file_path for entry in entries]
    paths = [Path(file.removeprefix("file://")) for file in files]
    for path in paths:
        sync_file(path)
    for folder in {path.parent for path in paths}:
        sync_folder(folder)
