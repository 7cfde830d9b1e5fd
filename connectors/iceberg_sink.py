"""Appends rows to an Iceberg table, each exactly once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
from millstream.connectors.iceberg_committer import IcebergCommitter
from millstream.connectors.iceberg_table import Place, blame_catalog, driver, persistently
from millstream.connectors.lake_fits import Fits
from millstream.connectors.lake_types import ICEBERG, Fit, fit, stored_schema
from millstream.connectors.outbox import Generations, OutboxWriter, outbox_table
from millstream.connectors.outbox_marker import Publisher
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.sink import Committer, Sink, SinkContext, SinkKind, SinkWriter
from millstream.engine.state import StateTable
from millstream.engine.time import Duration, micros

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog


def iceberg_sink(
    catalog: str | Mapping[str, str],
    table: str,
    *,
    create: bool = False,
    partition_by: str | Sequence[str] = (),
    again: bool = False,
    patience: Duration = "30s",
    name: str | None = None,
) -> IcebergSink:
    """Append rows to an Iceberg table, exactly once.

    The rows of an epoch wait in the checkpoint. After it is committed they are written, together with the epoch's
    number as a property of the table, in one commit: readers see an epoch whole or not at all.

    Args:
        catalog: the name of one that pyiceberg is configured for, or its properties, such as
            ``{"type": "rest", "uri": "https://…"}``; secrets as ``${env:NAME}`` or ``${file:/path}``.
        table: its name, with its namespace before the last dot.
        create: make the table, and its namespace, if it is not there.
        partition_by: the columns it is partitioned by if it is made.
        again: the job may start anew beside what it has written from another store.
        patience: how long to try again while catalog or store are away, or others change the table, before the job
            restarts.

    Raises:
        JobError: an argument makes no sense.

    >>> iceberg_sink("lake", "shop.orders", create=True)
    IcebergSink(iceberg:shop.orders)
    """
    if not all(table.split(".")) or "." not in table:
        raise JobError(f"iceberg_sink(): table must be a namespace and a name, as in 'shop.orders', got {table!r}")
    partitions = (partition_by,) if isinstance(partition_by, str) else tuple(partition_by)
    place = Place(catalog, {}, table) if isinstance(catalog, str) else Place("", dict(catalog), table)
    target = Target(place, create, partitions, again, micros(patience) / 1_000_000)
    return IcebergSink(target, name or f"iceberg:{table}")


@dataclass(frozen=True)
class Target:
    """Where rows go to and how; ``patience`` in seconds."""

    place: Place
    create: bool
    partition_by: tuple[str, ...]
    again: bool
    patience: float


@dataclass(frozen=True, repr=False)
class IcebergSink(Sink):
    """An Iceberg table; made by ``iceberg_sink``."""

    target: Target
    given_name: str
    _generations: Generations = field(default_factory=Generations, compare=False)
    _fits: Fits = field(default_factory=Fits, compare=False)

    def __repr__(self) -> str:
        return f"IcebergSink({self.name})"

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.given_name

    def identity(self) -> str:
        """Text that changes exactly when it is another destination."""
        return f"iceberg {self.target.place.shown()!r} {self.target.place.table!r}"

    @property
    def kind(self) -> SinkKind:
        """How it has its effect once."""
        return SinkKind.OUTBOX

    def check(self, schema: pa.Schema) -> None:
        """Raise SchemaError when rows of this schema cannot be written to any table."""
        rows = stored_schema(self.name, schema, ICEBERG)
        for column in self.target.partition_by:
            if column not in rows.names:
                raise SchemaError(
                    f"{self.name}: there is no column {column!r} to partition by, but: {', '.join(rows.names)}"
                )

    def writer(self, schema: pa.Schema, context: SinkContext) -> SinkWriter:
        """Make one running copy."""
        admit = self._fit(schema, context).admit
        return OutboxWriter(self.name, schema, (), context, self._generations.of(context), admit)

    def committer(self, schema: pa.Schema, context: SinkContext) -> Committer:
        """Make the committer, which takes over from earlier starts.

        Raises:
            ExternalError: catalog or store are away.
            SchemaError: the table does not fit.
            JobError: there is no table, it is ahead of the store, or has rows of this job from another store.
        """
        publisher = Publisher(self.name, self.target.place.table, context)
        return IcebergCommitter(self.target, publisher, self._fit(schema, context), self._generations.of(context))

    def state_tables(self, schema: pa.Schema) -> tuple[StateTable, ...]:
        """Declare what is kept of epochs."""
        del schema
        return (outbox_table(),)

    def guarantee(self) -> str:
        """One sentence for the plan."""
        return (
            "exactly once: rows wait in the checkpoint and are written with the epoch's number in one commit, which "
            "readers see whole"
        )

    def _fit(self, schema: pa.Schema, context: SinkContext) -> Fit:
        """Return how rows go into the table; made if that was asked for."""

        def look() -> Fit:
            with blame_catalog(self.name, f"looking at table {self.target.place.table}"):
                return persistently(lambda: self._look(schema), self.name, self.target.patience)

        return self._fits.of(context, look)

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
        partitions = [fields.get(f.source_id, f.name) for f in table.spec().fields]
        if self.target.partition_by and list(self.target.partition_by) != partitions:
            raise SchemaError(
                f"{self.name}: the table is partitioned by {', '.join(partitions) or 'nothing'}, not by "
                f"{', '.join(self.target.partition_by)}: leave partition_by out, or write to another table"
            )
        return fit(self.name, rows, table.schema().as_arrow(), place.table)

    def _make(self, catalog: Catalog, rows: pa.Schema) -> None:
        with (
            catalog.create_table_transaction(self.target.place.table, rows) as transaction,
            transaction.update_spec() as spec,
        ):
            for column in self.target.partition_by:
                spec.add_identity(column)
