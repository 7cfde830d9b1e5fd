"""Writes rows to an Iceberg table, each exactly once: plain appends, or upserts by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
from millstream.connectors.holding_writer import HoldRule
from millstream.connectors.iceberg_committer import IcebergCommitter
from millstream.connectors.iceberg_table import Place, blame_catalog, driver, persistently
from millstream.connectors.lake_sink import LakeSink
from millstream.connectors.lake_types import ICEBERG, Fit, Format, fit, stored_schema
from millstream.connectors.outbox import read_keys
from millstream.connectors.outbox_marker import Publisher
from millstream.engine.errors import JobError
from millstream.engine.sink import Committer, SinkContext
from millstream.engine.time import Clock, Duration, micros

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog


def iceberg_sink(  # noqa: PLR0913
    catalog: str | Mapping[str, str],
    table: str,
    *,
    key: str | Sequence[str] | None = None,
    mode: Literal["upsert", "append"] | None = None,
    create: bool = False,
    partition_by: str | Sequence[str] = (),
    again: bool = False,
    hold_bytes: int | str = "32MB",
    roll_age: Duration = "1m",
    patience: Duration = "30s",
    clock: Clock | None = None,
    name: str | None = None,
) -> IcebergSink:
    """Write rows to an Iceberg table, exactly once.

    Rows wait in the checkpoint, up to ``hold_bytes`` and ``roll_age``, so that the table is not made of many small
    files. Then they are written, together with the epoch's number as a property of the table, in one commit: readers
    see all rows up to an epoch and none after. To have every epoch visible at once, at the price of a commit for each,
    say ``hold_bytes=0``.

    Args:
        catalog: the name of one that pyiceberg is configured for, or its properties, such as
            ``{"type": "rest", "uri": "https://…"}``; secrets as ``${env:NAME}`` or ``${file:/path}``.
        table: its name, with its namespace before the last dot.
        key: the columns that tell rows apart.
        mode: ``append``: rows are added; ``upsert``: a row replaces the one with its key, and a changelog may take it
            away, for which files that have such rows are written anew. None: upsert if there is a key.
        create: make the table, and its namespace, if it is not there.
        partition_by: the columns it is partitioned by if it is made.
        again: the job may start anew beside what it has written from another store.
        hold_bytes: below this many bytes of Arrow memory, of all subtasks together, rows wait.
        roll_age: how long rows wait at most, to the next checkpoint; restarts do not make them younger.
        patience: how long to try again while catalog or store are away, or others change the table, before the job
            restarts.
        clock: what tells how old rows are; None: the machine's.

    Raises:
        JobError: an argument makes no sense.

    >>> iceberg_sink("lake", "shop.orders", create=True)
    IcebergSink(iceberg:shop.orders)
    """
    keys = read_keys("iceberg_sink()", key, mode)
    if not all(table.split(".")) or "." not in table:
        raise JobError(f"iceberg_sink(): table must be a namespace and a name, as in 'shop.orders', got {table!r}")
    partitions = (partition_by,) if isinstance(partition_by, str) else tuple(partition_by)
    place = Place(catalog, {}, table) if isinstance(catalog, str) else Place("", dict(catalog), table)
    hold = HoldRule.of(hold_bytes, roll_age, clock)
    target = Target(place, create, again, micros(patience) / 1_000_000)
    return IcebergSink(name or f"iceberg:{table}", hold, keys, partitions, target)


@dataclass(frozen=True)
class Target:
    """Where rows go to and how; ``patience`` in seconds."""

    place: Place
    create: bool
    again: bool
    patience: float


@dataclass(frozen=True, repr=False)
class IcebergSink(LakeSink):
    """An Iceberg table; made by ``iceberg_sink``."""

    target: Target

    def identity(self) -> str:
        """Text that changes exactly when it is another destination."""
        by = f" by {list(self.keys)!r}" if self.keys else ""
        return f"iceberg {self.target.place.shown()!r} {self.target.place.table!r}{by}"

    @property
    def table_format(self) -> Format:
        """Iceberg."""
        return ICEBERG

    def committer(self, schema: pa.Schema, context: SinkContext) -> Committer:
        """Make the committer, which takes over from earlier starts.

        Raises:
            ExternalError: catalog or store are away.
            SchemaError: the table does not fit.
            JobError: there is no table, it is ahead of the store, or has rows of this job from another store.
        """
        publisher = Publisher(self.name, self.target.place.table, context)
        return IcebergCommitter(
            self.target, self.keys, publisher, self.fit(schema, context), self._generations.of(context)
        )

    def look(self, schema: pa.Schema) -> Fit:
        """Return how rows go into the table as it is now; it is made if that was asked for."""
        with blame_catalog(self.name, f"looking at table {self.target.place.table}"):
            return persistently(lambda: self._look(schema), self.name, self.target.patience)

    def _look(self, schema: pa.Schema) -> Fit:
        place, faults = self.target.place, driver()
        catalog, rows = place.connect(), stored_schema(self.name, schema, ICEBERG)
        if self.target.create and not catalog.table_exists(place.table):
            catalog.create_namespace_if_not_exists(place.namespace())
            with suppress(faults.TableAlreadyExistsError, faults.CommitFailedException):  # another one was faster
                self._make(catalog, rows)
        try:
            table = catalog.load_table(place.table)
        except faults.NoSuchTableError:
            raise JobError(f"{self.name}: there is no table {place.table!r}: pass create=True") from None
        fields = {f.field_id: f.name for f in table.schema().fields}
        self.check_partitions([fields.get(f.source_id, f.name) for f in table.spec().fields])
        return fit(self.name, rows, table.schema().as_arrow(), place.table)

    def _make(self, catalog: Catalog, rows: pa.Schema) -> None:
        with (
            catalog.create_table_transaction(self.target.place.table, rows) as transaction,
            transaction.update_spec() as spec,
        ):
            for column in self.partition_by:
                spec.add_identity(column)
