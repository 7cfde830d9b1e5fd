"""Publishes epochs in a Delta Lake table: rows and marker in one commit, whose outcome is always found out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote

import pyarrow as pa
from millstream.connectors.delta_progress import Progress, short_digest
from millstream.connectors.delta_table import blame_table, persistently
from millstream.connectors.durable import blame_disk, size_of, sync_file, sync_folder
from millstream.connectors.lake_types import Fit, check_still
from millstream.connectors.outbox import Letter, Sent, settle, unpack
from millstream.engine.changelog import WEIGHT, is_changelog, unweighted
from millstream.engine.errors import JobError
from millstream.engine.failpoints import hit
from millstream.engine.sink import Committable, Committer

if TYPE_CHECKING:
    import deltalake
    from millstream.connectors.delta_sink import Target

Result = TypeVar("Result")

_ADVICE: Final = "What was to be written waits in the checkpoint: mend what is complained of, and start the job again"


class DeltaCommitter(Committer):
    """One start of a job towards one table."""

    def __init__(self, target: Target, keys: Sequence[str], progress: Progress, fit: Fit, sent: Sent) -> None:
        self._target = target
        self._keys = keys
        self._progress = progress
        self._publisher = progress.publisher
        self._name = progress.publisher.name
        self._fit = fit
        self._sent = sent
        self._table: deltalake.DeltaTable | None = None
        with blame_table(self._name, "registering this start of the job"):
            self._registered = self._persistently(progress.register)

    def commit(self, epoch: int, committables: Sequence[Committable]) -> None:
        """Publish an epoch; each attempt finds out whether one before it has done so.

        Raises:
            ExternalError: the store was away for too long, or others changed the table all the time.
            JobError: the table refuses the rows, or this start of the job must not write (any more).
        """
        if not committables:
            return
        letter = unpack(committables)
        rows = self._fit.cast(settle(letter.rows, self._keys))
        letter = Letter(rows, letter.after, short_digest(letter.digest))
        with blame_table(self._name, f"writing epoch {epoch} to {self._publisher.place}", advice=_ADVICE):
            self._persistently(lambda table: self._publish(table, epoch, letter))
        folder = self._target.place.folder()
        if folder is not None:
            with blame_disk(self._name, f"writing epoch {epoch} to the disk"):
                self._make_durable(folder, epoch)
        self._registered = True
        self._sent.note(epoch)
        hit("delta.visible")

    # -- attempts: each is one commit at most -----------------------------------------------------------------------

    def _persistently(self, work: Callable[[deltalake.DeltaTable], Result]) -> Result:
        """Call ``work(table)``, with the table as it is then, until it succeeds.

        Where the answer to a commit is lost nobody knows the outcome: the next attempt reads the marker. Should that
        commit arrive after it was read, it and the next one exclude each other.
        """

        def attempt() -> Result:
            table, self._table = self._table, None
            if table is None:
                table = self._target.place.open()
                if table is None:
                    raise JobError(f"{self._name}: the table at {self._publisher.place} has gone")
            else:
                table.update_incremental()
            result = work(table)
            self._table = table
            return result

        return persistently(attempt, self._name, self._target.patience)

    def _publish(self, table: deltalake.DeltaTable, epoch: int, letter: Letter) -> None:
        progress = self._progress
        marker = progress.read(table)
        publisher, registered = self._publisher, self._registered
        if not publisher.must_publish(marker, epoch, letter.after, letter.digest, registered=registered):
            return
        if marker is None or not marker.epoch:
            progress.check_alone(table)
        check_still(self._fit, pa.schema(table.schema().to_arrow()), publisher.place)
        hit("delta.begun")
        properties = progress.properties(epoch, letter.digest)
        if self._keys:
            _merge(table, letter.rows, self._keys, properties)
        else:
            _append(table, letter.rows, properties)
        written = progress.read(table)
        if written is None or written.epoch != epoch:
            # A merge that changes nothing makes no commit.
            progress.mark(table, epoch, letter.digest)
        hit("delta.written")

    # -- the disk ---------------------------------------------------------------------------------------------------

    def _make_durable(self, folder: Path, epoch: int) -> None:
        """Wait until an epoch's commit and files are on disk, which deltalake does not.

        Raises:
            JobError: a file of it has been lost, as in a power cut.
        """
        commit = self._commit_of(folder / "_delta_log", epoch)
        if commit is None:
            return  # the log was cleaned up since: it has been waited for long ago
        for action in _actions(commit):
            added = action.get("add")
            if added is None or "://" in added["path"]:
                continue
            path = folder / unquote(added["path"])
            if size_of(path) != added["size"]:
                raise JobError(
                    f"{self._name}: {path} should have {added['size']} bytes and has {size_of(path) or 'none'}: a file "
                    f"of epoch {epoch} was lost, as in a power cut. Restore the table to the version before "
                    f"{int(commit.stem)}; the rows wait in the checkpoint"
                )
            sync_file(path)
            sync_folder(path.parent)
        sync_file(commit)
        sync_folder(commit.parent)

    def _commit_of(self, log: Path, epoch: int) -> Path | None:
        """Return the file of the commit that published an epoch; it is among the last ones."""
        progress = self._progress
        for path in sorted(log.glob("[0-9]*.json"), reverse=True):
            txns = {a["txn"]["appId"]: a["txn"]["version"] for a in _actions(path) if "txn" in a}
            if txns.get(progress.key, epoch) < epoch:
                return None
            # Registering repeats the epoch, and not that rows came.
            if progress.key in txns and progress.job in txns:
                return path
        return None


def _actions(commit: Path) -> list[dict[str, Any]]:
    """Read a file of the log; only line feeds part its lines."""
    return [json.loads(line) for line in commit.read_bytes().split(b"\n") if line]


def _append(table: deltalake.DeltaTable, rows: pa.Table, properties: Any) -> None:
    from deltalake import write_deltalake

    schema = pa.schema(table.schema().to_arrow())
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.schema.names else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    write_deltalake(table, pa.Table.from_arrays(columns, schema=schema), mode="append", commit_properties=properties)


def _merge(table: deltalake.DeltaTable, rows: pa.Table, keys: Sequence[str], properties: Any) -> None:
    columns = unweighted(rows.schema).names
    values = {_quoted(name): f"s.{_quoted(name)}" for name in columns}
    merge = table.merge(
        rows,
        " AND ".join(f"t.{_quoted(key)} = s.{_quoted(key)}" for key in keys),
        source_alias="s",
        target_alias="t",
        commit_properties=properties,
    )
    stays = None
    if is_changelog(rows.schema):
        stays = f"s.{_quoted(WEIGHT)} > 0"
        merge = merge.when_matched_delete(f"s.{_quoted(WEIGHT)} < 0")
    if len(columns) > len(keys):
        merge = merge.when_matched_update(values)
    merge.when_not_matched_insert(values, stays).execute()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
