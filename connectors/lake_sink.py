"""What sinks of data lakes have in common: rows are held back, then written with the epoch's number in one commit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from millstream.connectors.holding_writer import Holding, HoldingWriter, HoldRule, held_table
from millstream.connectors.lake_fits import Fits
from millstream.connectors.lake_types import Fit, Format, stored_schema
from millstream.connectors.outbox import Generations, check_keys, outbox_table
from millstream.connectors.roll_agreement import Agreements
from millstream.engine.changelog import is_changelog, weighted
from millstream.engine.errors import SchemaError
from millstream.engine.sink import Sink, SinkContext, SinkKind, SinkWriter
from millstream.engine.state import StateTable


@dataclass(frozen=True, repr=False)
class LakeSink(Sink):
    """A table of a data lake.

    Attributes:
        hold: how long rows are held back, so that commits are of decent size.
        keys: the columns that tell rows apart, of upserts; empty: appends.
        partition_by: the columns the table is partitioned by if it is made.
    """

    given_name: str
    hold: HoldRule
    keys: tuple[str, ...]
    partition_by: tuple[str, ...]
    _generations: Generations = field(default_factory=Generations, compare=False, kw_only=True)
    _agreements: Agreements = field(default_factory=Agreements, compare=False, kw_only=True)
    _fits: Fits = field(default_factory=Fits, compare=False, kw_only=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.given_name

    @property
    def kind(self) -> SinkKind:
        """How it has its effect once."""
        return SinkKind.OUTBOX

    @property
    def takes_changelog(self) -> bool:
        """Upserts do: a row that is taken back goes from the table."""
        return bool(self.keys)

    @property
    @abstractmethod
    def table_format(self) -> Format:
        """The table's format."""

    @abstractmethod
    def look(self, schema: pa.Schema) -> Fit:
        """Return how rows go into the table as it is now; it is made if that was asked for."""

    def check(self, schema: pa.Schema) -> None:
        """Raise SchemaError when rows of this schema cannot be written to any table."""
        check_keys(self.name, schema, self.keys)
        rows = stored_schema(self.name, schema, self.table_format)
        for column in self.partition_by:
            if column not in rows.names:
                raise SchemaError(
                    f"{self.name}: there is no column {column!r} to partition by, but: {', '.join(rows.names)}"
                )

    def check_partitions(self, found: Sequence[str]) -> None:
        """Raise SchemaError if the table is partitioned otherwise than was asked for."""
        if self.partition_by and self.partition_by != tuple(found):
            raise SchemaError(
                f"{self.name}: the table is partitioned by {', '.join(found) or 'nothing'}, not by "
                f"{', '.join(self.partition_by)}: leave partition_by out, or write to another table"
            )

    def fit(self, schema: pa.Schema, context: SinkContext) -> Fit:
        """Return how rows go into the table, as it was at the start of this generation."""
        return self._fits.of(context, lambda: self.look(schema))

    def writer(self, schema: pa.Schema, context: SinkContext) -> SinkWriter:
        """Make one running copy."""
        rows, table = self._held(schema), self.fit(schema, context)
        stored = Fit(self.name, stored_schema(self.name, schema, self.table_format))

        def admit(plain: pa.Table) -> pa.Table:
            held = stored.cast(plain)
            table.admit(held)
            return held

        holding = Holding(self.hold, self._agreements.of(context), rows, admit, table.admit)
        return HoldingWriter(self.name, schema, self.keys, context, self._generations.of(context), holding)

    def state_tables(self, schema: pa.Schema) -> tuple[StateTable, ...]:
        """Declare what is kept of epochs, and the rows that are held back."""
        return (outbox_table(), held_table(self._held(schema)))

    def guarantee(self) -> str:
        """One sentence for the plan."""
        return (
            "exactly once: rows wait in the checkpoint and are written with the epoch's number in one commit, which "
            "readers see whole"
        )

    def _held(self, schema: pa.Schema) -> pa.Schema:
        """The schema in which rows are held back: what any table of the format would have."""
        rows = stored_schema(self.name, schema, self.table_format)
        return weighted(rows) if is_changelog(schema) else rows
