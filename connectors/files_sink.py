"""Writes rows to Parquet, CSV or JSON lines files, each row exactly once.

What a reader of the folder may rely on:

* Every file under the folder is whole, and stays as it is.
* With ``atomic_epochs`` (the default) it sees, at any moment, all rows up to some epoch and none after: the
  files of an epoch appear in one rename. The subtasks agree whether to hand over all they hold or nothing, so
  holding rows back to avoid small files does not tear an epoch either. An epoch of several files, or of
  partitions, is a folder ``epoch-…`` of its own: with ``partition_by`` the layout is
  ``folder/epoch-…/day=…/part-….parquet``.
* Without it the layout is the plain Hive one, ``folder/day=…/part-….parquet``. Each partition is held back and
  handed over at its own pace, and the files of an epoch appear one after the other, since no file system can do
  that in one step: a reader may see a part of an epoch, though never a part of a file.

Read the folder recursively: ``SELECT * FROM 'revenue/**/*.parquet'`` in DuckDB, or ``pyarrow.dataset``. Walking
a folder is not one step either: a reader that must not miss an epoch which appears meanwhile walks it again.

Unfinished files are in ``.millstream/`` beside the folder, not inside it: DuckDB's ``**`` looks into hidden
folders.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from millstream.connectors.byte_size import byte_size
from millstream.connectors.durable import blame_disk
from millstream.connectors.file_formats import Csv, FileFormat, JsonLines, Parquet
from millstream.connectors.files_claim import Claim
from millstream.connectors.files_committer import FilesCommitter
from millstream.connectors.files_layout import Layout
from millstream.connectors.files_scratch import remove_dead, scratch
from millstream.connectors.files_writer import FileWriter, RollRule, WriterSettings, plain_schema
from millstream.connectors.held_rows import HeldSchema
from millstream.connectors.partition_path import can_partition
from millstream.connectors.roll_agreement import Agreements
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.sink import Committer, Sink, SinkContext, SinkKind, SinkWriter
from millstream.engine.state import StateTable
from millstream.engine.time import Clock, Duration, SystemClock, micros


def parquet(  # noqa: PLR0913
    folder: str | os.PathLike[str],
    *,
    partition_by: Sequence[str] = (),
    atomic_epochs: bool = True,
    roll_rows: int = 1_000_000,
    roll_bytes: int | str = "128MB",
    roll_age: Duration = "5m",
    hold_bytes: int | str = "8MB",
    compression: str = "zstd",
    staging: str | os.PathLike[str] | None = None,
    append: bool = False,
    clock: Clock | None = None,
    name: str | None = None,
) -> FileSink:
    """Write rows to Parquet files in a folder, exactly once.

    Rows that would make but a small file wait in the checkpoint, up to ``hold_bytes`` and ``roll_age``. To
    have every epoch visible at once, at the price of a file per subtask and epoch, say ``hold_bytes=0``.

    Args:
        folder: made if it is not there; nothing but finished files is ever put in it.
        partition_by: columns whose values name folders, ``day=2026-01-31``; they are left out of the files.
        atomic_epochs: show readers whole epochs only, in folders ``epoch-…``; False: the plain Hive layout.
        roll_rows: rows after which a file is written at once (per subtask and partition).
        roll_bytes: the same in bytes of Arrow memory, also over all partitions of a subtask (twice as much).
        roll_age: how long rows wait at most, to the next checkpoint; restarts do not make them younger.
        hold_bytes: below this many bytes rows wait.
        compression: zstd, snappy, lz4, gzip, brotli or none.
        staging: where unfinished files are, on the same file system and outside of ``folder``; None: in
            ``.millstream`` beside it.
        clock: what tells how old rows are; None: the machine's.

    Raises:
        JobError: an argument makes no sense.

    >>> parquet("revenue", partition_by=["day"], roll_bytes="64MB")
    FileSink(parquet:revenue)
    """
    rule = _rule(roll_rows, roll_bytes, roll_age, hold_bytes)
    places = _Places(Path(folder), None if staging is None else Path(staging), Path.cwd())
    return FileSink(Parquet(compression), places, tuple(partition_by), atomic_epochs, append, rule, clock, name)


def csv(  # noqa: PLR0913
    folder: str | os.PathLike[str],
    *,
    partition_by: Sequence[str] = (),
    atomic_epochs: bool = True,
    roll_rows: int = 1_000_000,
    roll_bytes: int | str = "128MB",
    roll_age: Duration = "5m",
    hold_bytes: int | str = "8MB",
    compression: str = "none",
    staging: str | os.PathLike[str] | None = None,
    append: bool = False,
    clock: Clock | None = None,
    name: str | None = None,
) -> FileSink:
    """Write rows to CSV files with a header; else as ``parquet``. ``compression``: none, gzip, zstd or bz2."""
    rule = _rule(roll_rows, roll_bytes, roll_age, hold_bytes)
    places = _Places(Path(folder), None if staging is None else Path(staging), Path.cwd())
    return FileSink(Csv(compression), places, tuple(partition_by), atomic_epochs, append, rule, clock, name)


def jsonl(  # noqa: PLR0913
    folder: str | os.PathLike[str],
    *,
    partition_by: Sequence[str] = (),
    atomic_epochs: bool = True,
    roll_rows: int = 1_000_000,
    roll_bytes: int | str = "128MB",
    roll_age: Duration = "5m",
    hold_bytes: int | str = "8MB",
    compression: str = "none",
    staging: str | os.PathLike[str] | None = None,
    append: bool = False,
    clock: Clock | None = None,
    name: str | None = None,
) -> FileSink:
    """Write rows as JSON lines; otherwise as ``parquet``. ``compression``: none, gzip, zstd or bz2.

    Times are ISO 8601, bytes base64, decimals texts; NaN and infinities become null, since JSON has none.
    """
    rule = _rule(roll_rows, roll_bytes, roll_age, hold_bytes)
    places = _Places(Path(folder), None if staging is None else Path(staging), Path.cwd())
    return FileSink(JsonLines(compression), places, tuple(partition_by), atomic_epochs, append, rule, clock, name)


@dataclass(frozen=True, slots=True)
class _Places:
    """The folders as they were written, and the folder the process was in then."""

    folder: Path
    staging: Path | None
    home: Path

    def resolved(self) -> tuple[Path, Path]:
        """Return the folder for finished files, and the one for unfinished ones."""
        folder = (self.home / self.folder).resolve()
        if folder == folder.parent:
            raise JobError(f"a file sink cannot write to {folder}: give it a folder of its own")
        staging = folder.parent / ".millstream" if self.staging is None else (self.home / self.staging).resolve()
        if staging == folder or folder in staging.parents:
            raise JobError(
                f"staging={str(self.staging)!r} is inside {str(folder)!r}, where readers would find unfinished "
                "files; give a folder outside of it, on the same file system"
            )
        return folder, staging


@dataclass(frozen=True, slots=True, repr=False)
class FileSink(Sink):
    """Files in a folder; made by ``parquet``, ``csv`` and ``jsonl``."""

    file_format: FileFormat
    places: _Places
    partition_by: tuple[str, ...]
    atomic_epochs: bool
    append: bool
    rule: RollRule
    clock: Clock | None
    given_name: str | None
    _agreements: Agreements = field(default_factory=Agreements, compare=False)

    def __repr__(self) -> str:
        return f"FileSink({self.name})"

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.given_name or f"{self.file_format.name}:{self.places.folder}"

    def identity(self) -> str:
        """Text that changes exactly when it is another destination, or another layout of it."""
        layout = "epochs" if self.atomic_epochs else "hive"
        by = list(self.partition_by)
        return f"files {self.file_format.name} {str(self.places.folder)!r} {layout} by {by!r}"

    @property
    def kind(self) -> SinkKind:
        """How it has its effect once."""
        return SinkKind.TWO_PHASE

    def check(self, schema: pa.Schema) -> None:
        """Raise SchemaError when rows of this schema cannot be written."""
        for column in self.partition_by:
            if column not in schema.names:
                raise SchemaError(
                    f"{self.name}: there is no column {column!r} to partition by, but: {', '.join(schema.names)}"
                )
            type_ = plain_schema(schema).field(column).type
            if not can_partition(type_):
                raise SchemaError(
                    f"{self.name}: column {column!r} of type {type_} cannot name folders; partition by a "
                    "text, integer, boolean, decimal, date or timestamp column"
                )
        if len(set(self.partition_by)) < len(self.partition_by):
            raise SchemaError(f"{self.name}: partition_by names a column twice: {', '.join(self.partition_by)}")
        if len(schema.names) == len(self.partition_by):
            raise SchemaError(f"{self.name}: every column is in partition_by, so the files would have none")
        self.file_format.check(schema)

    def running(self, context: SinkContext) -> AbstractContextManager[None]:
        """Remove what dead runs without a store have left; without one, hold the staging folder of this run."""
        layout = Layout.of(*self.places.resolved(), context)
        remove_dead(layout.shared)
        return nullcontext() if context.store is not None else scratch(layout.staging)

    def writer(self, schema: pa.Schema, context: SinkContext) -> SinkWriter:
        """Make one running copy. Raises ExternalError when the folder cannot be made."""
        clock = self.clock or SystemClock()
        settings = WriterSettings(self.name, self.partition_by, self.file_format, self.rule, clock)
        agreement = self._agreements.of(context) if self.atomic_epochs else None
        layout = Layout.of(*self.places.resolved(), context)
        with blame_disk(self.name, "making its folders"):
            layout.make()
        return FileWriter(settings, schema, context, layout, agreement)

    def committer(self, schema: pa.Schema, context: SinkContext) -> Committer:
        """Make the committer.

        Raises:
            ExternalError: the folder cannot be made.
            JobError: the job starts anew, and has published in the folder before.
        """
        del schema
        layout = Layout.of(*self.places.resolved(), context)
        claim = Claim(self.name, layout, context)
        with blame_disk(self.name, "making its folders"):
            if not context.restored and not self.append:
                claim.check()
            layout.make()
        return FilesCommitter(self.name, layout, claim, self.atomic_epochs)

    def state_tables(self, schema: pa.Schema) -> tuple[StateTable, ...]:
        """Declare the rows that are in no file yet."""
        return (HeldSchema.of(plain_schema(schema)).table(),)

    def folders(self) -> tuple[str, ...]:
        """The folder for finished files, and the one for unfinished ones."""
        folder, staging = self.places.resolved()
        return str(folder), str(staging)

    def guarantee(self) -> str:
        """One sentence for the plan."""
        once = "exactly once: files are renamed into place after the checkpoint that covers them"
        if self.atomic_epochs:
            return f"{once}; readers see whole epochs, each in one step"
        return f"{once}; the files of one epoch appear one after the other"


def _rule(roll_rows: int, roll_bytes: int | str, roll_age: Duration, hold_bytes: int | str) -> RollRule:
    rule = RollRule(roll_rows, byte_size(roll_bytes), micros(roll_age), byte_size(hold_bytes))
    if rule.rows < 1 or rule.bytes < 1:
        raise JobError(f"roll_rows and roll_bytes must be at least 1, got {roll_rows} and {roll_bytes!r}")
    if rule.hold_bytes > rule.bytes:
        raise JobError(f"hold_bytes={hold_bytes!r} is more than roll_bytes={roll_bytes!r}: it would have no effect")
    return rule
