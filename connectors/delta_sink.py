"""Writes rows to a Delta Lake table, each exactly once: plain appends, or upserts by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
from millstream.connectors.delta_committer import DeltaCommitter
from millstream.connectors.delta_progress import Progress, new_owner
from millstream.connectors.delta_table import Place, blame_table, driver, persistently
from millstream.connectors.holding_writer import HoldRule
from millstream.connectors.lake_sink import LakeSink
from millstream.connectors.lake_types import DELTA, Fit, Format, fit, stored_schema
from millstream.connectors.outbox import read_keys
from millstream.connectors.outbox_marker import Publisher
from millstream.engine.errors import JobError
from millstream.engine.sink import Committer, SinkContext
from millstream.engine.time import Clock, Duration, micros


def delta_sink(  # noqa: PLR0913
    path: str | Path,
    *,
    key: str | Sequence[str] | None = None,
    mode: Literal["upsert", "append"] | None = None,
    create: bool = False,
    partition_by: str | Sequence[str] = (),
    again: bool = False,
    hold_bytes: int | str = "32MB",
    roll_age: Duration = "1m",
    options: Mapping[str, str] | None = None,
    patience: Duration = "30s",
    clock: Clock | None = None,
    name: str | None = None,
) -> DeltaSink:
    """Write rows to a Delta Lake table, exactly once.

    Rows wait in the checkpoint, up to ``hold_bytes`` and ``roll_age``, so that the table is not made of many small
    files. Then they are written, together with the epoch's number as a transaction identifier, in one commit of the
    table: readers see all rows up to an epoch and none after. To have every epoch visible at once, at the price of a
    commit for each, say ``hold_bytes=0``.

    Args:
        path: of the table's folder, or a URI such as ``s3://bucket/table``.
        key: the columns that tell rows apart.
        mode: ``append``: rows are added; ``upsert``: a row replaces the one with its key, and a changelog may take it
            away, for which files that have such rows are written anew. None: upsert if there is a key.
        create: make the table if it is not there.
        partition_by: the columns it is partitioned by if it is made; of one that is there, they must be its own.
        again: the job may start anew beside what it has written from another store.
        hold_bytes: below this many bytes of Arrow memory, of all subtasks together, rows wait.
        roll_age: how long rows wait at most, to the next checkpoint; restarts do not make them younger.
        options: for the store, as deltalake takes them; secrets as ``${env:NAME}`` or ``${file:/path}``.
        patience: how long to try again while the store is away, or others change the table, before the job restarts.
        clock: what tells how old rows are; None: the machine's.

    Raises:
        JobError: an argument makes no sense.

    >>> delta_sink("lake/orders", create=True)
    DeltaSink(delta:lake/orders)
    """
    keys = read_keys("delta_sink()", key, mode)
    partitions = (partition_by,) if isinstance(partition_by, str) else tuple(partition_by)
    place = Place(str(path), Path.cwd(), dict(options or {}))
    hold = HoldRule.of(hold_bytes, roll_age, clock)
    target = Target(place, create, again, micros(patience) / 1_000_000)
    return DeltaSink(name or f"delta:{path}", hold, keys, partitions, target)


@dataclass(frozen=True)
class Target:
    """Where rows go to and how; ``patience`` in seconds."""

    place: Place
    create: bool
    again: bool
    patience: float


@dataclass(frozen=True, repr=False)
class DeltaSink(LakeSink):
    """A Delta Lake table; made by ``delta_sink``."""

    target: Target

    def identity(self) -> str:
        """Text that changes exactly when it is another destination."""
        return f"delta {self.target.place.uri!r} by {list(self.keys)!r}"

    @property
    def table_format(self) -> Format:
        """Delta Lake."""
        return DELTA

    def committer(self, schema: pa.Schema, context: SinkContext) -> Committer:
        """Make the committer, which takes over from earlier starts.

        Raises:
            ExternalError: the store is away.
            SchemaError: the table does not fit.
            JobError: there is no table, it is ahead of the store, or has rows of this job from another store.
        """
        fit_ = self.fit(schema, context)
        publisher = Publisher(self.name, self.target.place.location(), context, new_owner())
        progress = Progress(publisher, self.target.again)
        return DeltaCommitter(self.target, self.keys, progress, fit_, self._generations.of(context))

    def folders(self) -> tuple[str, ...]:
        """The table's folder, if it is local."""
        folder = self.target.place.folder()
        return () if folder is None else (str(folder),)

    def look(self, schema: pa.Schema) -> Fit:
        """Return how rows go into the table as it is now; it is made if that was asked for."""
        with blame_table(self.name, f"looking at {self.target.place.location()}"):
            return persistently(lambda: self._look(schema), self.name, self.target.patience)

    def _look(self, schema: pa.Schema) -> Fit:
        target, place = self.target, self.target.place
        rows = stored_schema(self.name, schema, DELTA)
        table = place.open()
        if table is None and target.create:
            driver().DeltaTable.create(
                place.location(),
                rows,
                mode="ignore",
                partition_by=list(self.partition_by),
                storage_options=place.settings(),
            )
            table = place.open()
        if table is None:
            raise JobError(f"{self.name}: there is no Delta table at {place.location()}: pass create=True")
        self.check_partitions(table.metadata().partition_columns)
        return fit(self.name, rows, pa.schema(table.schema().to_arrow()), place.location())
