"""Writes rows to a Delta Lake table, each exactly once: plain appends, or upserts by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa
from millstream.connectors.delta_committer import DeltaCommitter
from millstream.connectors.delta_progress import Progress, new_owner
from millstream.connectors.delta_table import Place, blame_table, driver, persistently
from millstream.connectors.lake_fits import Fits
from millstream.connectors.lake_types import DELTA, Fit, fit, stored_schema
from millstream.connectors.outbox import Generations, OutboxWriter, check_keys, outbox_table
from millstream.connectors.outbox_marker import Publisher
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.sink import Committer, Sink, SinkContext, SinkKind, SinkWriter
from millstream.engine.state import StateTable
from millstream.engine.time import Duration, micros


def delta_sink(  # noqa: PLR0913
    path: str | Path,
    *,
    key: str | Sequence[str] | None = None,
    mode: Literal["upsert", "append"] | None = None,
    create: bool = False,
    partition_by: str | Sequence[str] = (),
    again: bool = False,
    options: Mapping[str, str] | None = None,
    patience: Duration = "30s",
    name: str | None = None,
) -> DeltaSink:
    """Write rows to a Delta Lake table, exactly once.

    The rows of an epoch wait in the checkpoint. After it is committed they are written, together with the epoch's
    number as a transaction identifier, in one commit of the table: readers see an epoch whole or not at all.

    Args:
        path: of the table's folder, or a URI such as ``s3://bucket/table``.
        key: the columns that tell rows apart.
        mode: ``append``: rows are added; ``upsert``: a row replaces the one with its key, and a changelog may take it
            away, for which files that have such rows are written anew. None: upsert if there is a key.
        create: make the table if it is not there.
        partition_by: the columns it is partitioned by if it is made; of one that is there, they must be its own.
        again: the job may start anew beside what it has written from another store.
        options: for the store, as deltalake takes them; secrets as ``${env:NAME}`` or ``${file:/path}``.
        patience: how long to try again while the store is away, or others change the table, before the job restarts.

    Raises:
        JobError: an argument makes no sense.

    >>> delta_sink("lake/orders", create=True)
    DeltaSink(delta:lake/orders)
    """
    keys = (key,) if isinstance(key, str) else tuple(key or ())
    wanted = mode or ("upsert" if keys else "append")
    if wanted not in ("upsert", "append") or (wanted == "upsert") != bool(keys):
        raise JobError(
            "delta_sink(): mode is 'upsert', which needs a key, as in key='id', or 'append', which has none; "
            f"got mode={mode!r} and key={key!r}"
        )
    partitions = (partition_by,) if isinstance(partition_by, str) else tuple(partition_by)
    place = Place(str(path), Path.cwd(), dict(options or {}))
    target = Target(place, keys, create, partitions, again, micros(patience) / 1_000_000)
    return DeltaSink(target, name or f"delta:{path}")


@dataclass(frozen=True)
class Target:
    """Where rows go to and how; ``patience`` in seconds."""

    place: Place
    keys: tuple[str, ...]
    create: bool
    partition_by: tuple[str, ...]
    again: bool
    patience: float


@dataclass(frozen=True, repr=False)
class DeltaSink(Sink):
    """A Delta Lake table; made by ``delta_sink``."""

    target: Target
    given_name: str
    _generations: Generations = field(default_factory=Generations, compare=False)
    _fits: Fits = field(default_factory=Fits, compare=False)

    def __repr__(self) -> str:
        return f"DeltaSink({self.name})"

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.given_name

    def identity(self) -> str:
        """Text that changes exactly when it is another destination."""
        return f"delta {self.target.place.uri!r} by {list(self.target.keys)!r}"

    @property
    def kind(self) -> SinkKind:
        """How it has its effect once."""
        return SinkKind.OUTBOX

    @property
    def takes_changelog(self) -> bool:
        """Upserts do: a row that is taken back goes from the table."""
        return bool(self.target.keys)

    def check(self, schema: pa.Schema) -> None:
        """Raise SchemaError when rows of this schema cannot be written to any table."""
        check_keys(self.name, schema, self.target.keys)
        rows = stored_schema(self.name, schema, DELTA)
        for column in self.target.partition_by:
            if column not in rows.names:
                raise SchemaError(
                    f"{self.name}: there is no column {column!r} to partition by, but: {', '.join(rows.names)}"
                )

    def writer(self, schema: pa.Schema, context: SinkContext) -> SinkWriter:
        """Make one running copy."""
        admit = self._fit(schema, context).admit
        return OutboxWriter(self.name, schema, self.target.keys, context, self._generations.of(context), admit)

    def committer(self, schema: pa.Schema, context: SinkContext) -> Committer:
        """Make the committer, which takes over from earlier starts.

        Raises:
            ExternalError: the store is away.
            SchemaError: the table does not fit.
            JobError: there is no table, it is ahead of the store, or has rows of this job from another store.
        """
        fit_ = self._fit(schema, context)
        publisher = Publisher(self.name, self.target.place.location(), context, new_owner())
        progress = Progress(publisher, self.target.again)
        return DeltaCommitter(self.target, progress, fit_, self._generations.of(context))

    def state_tables(self, schema: pa.Schema) -> tuple[StateTable, ...]:
        """Declare what is kept of epochs."""
        del schema
        return (outbox_table(),)

    def folders(self) -> tuple[str, ...]:
        """The table's folder, if it is local."""
        folder = self.target.place.folder()
        return () if folder is None else (str(folder),)

    def guarantee(self) -> str:
        """One sentence for the plan."""
        return (
            "exactly once: rows wait in the checkpoint and are written with the epoch's number in one commit, which "
            "readers see whole"
        )

    def _fit(self, schema: pa.Schema, context: SinkContext) -> Fit:
        """Return how rows go into the table; made if that was asked for."""

        def look() -> Fit:
            with blame_table(self.name, f"looking at {self.target.place.location()}"):
                return persistently(lambda: self._look(schema), self.name, self.target.patience)

        return self._fits.of(context, look)

    def _look(self, schema: pa.Schema) -> Fit:
        target, place = self.target, self.target.place
        rows = stored_schema(self.name, schema, DELTA)
        table = place.open()
        if table is None and target.create:
            driver().DeltaTable.create(
                place.location(),
                rows,
                mode="ignore",
                partition_by=list(target.partition_by),
                storage_options=place.settings(),
            )
            table = place.open()
        if table is None:
            raise JobError(f"{self.name}: there is no Delta table at {place.location()}: pass create=True")
        partitions = table.metadata().partition_columns
        if target.partition_by and list(target.partition_by) != partitions:
            raise SchemaError(
                f"{self.name}: the table is partitioned by {', '.join(partitions) or 'nothing'}, not by "
                f"{', '.join(target.partition_by)}: leave partition_by out, or write to another table"
            )
        return fit(self.name, rows, pa.schema(table.schema().to_arrow()), place.location())
