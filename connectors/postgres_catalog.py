"""What a PostgreSQL server says about a table: its columns, their types, and by what its rows are unique."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from millstream.connectors.postgres_connection import quoted_table
from millstream.engine.errors import JobError

if TYPE_CHECKING:
    import psycopg

_COLUMNS: Final = b"""
    SELECT a.attname, t.typname, t.typtype, a.atttypmod, format_type(a.atttypid, a.atttypmod), a.attnotnull,
           a.atthasdef OR a.attidentity <> '', a.attgenerated <> '' OR a.attidentity = 'a',
           (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid)
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""
_UNIQUE: Final = b"""
    SELECT array_agg(a.attname::text) FROM pg_index i, unnest(i.indkey[0:i.indnkeyatts - 1]) AS k(attnum)
    JOIN pg_attribute a ON a.attnum = k.attnum AND a.attrelid = %s
    WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indimmediate
      AND i.indpred IS NULL AND i.indexprs IS NULL
    GROUP BY i.indexrelid"""
_PLACE: Final = b"""
    SELECT c.oid::bigint, n.nspname, c.relname, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = to_regclass(%s)"""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        type: the server's short name of its type: ``int8``, ``varchar``, ``_text`` for an array of text.
        modifier: what stands in parentheses behind the type, as the server packs it; -1: nothing.
        declared: the type as it is written in SQL.
        optional: it may be left out of a row.
        computed: the server alone writes it.
        labels: of an enum.
    """

    name: str
    type: str
    modifier: int
    declared: str
    not_null: bool
    optional: bool
    computed: bool
    labels: tuple[str, ...]

    @property
    def digits(self) -> tuple[int, int] | None:
        """Precision and scale of a ``numeric``; None: any."""
        if self.modifier < 0:
            return None
        packed = self.modifier - 4
        scale = packed & 0x7FF
        return packed >> 16 & 0xFFFF, scale - 0x800 if scale >= 0x400 else scale

    @property
    def characters(self) -> int | None:
        """How long a ``varchar`` or ``char`` may be; None: any length."""
        return None if self.modifier < 0 else self.modifier - 4


@dataclass(frozen=True, slots=True)
class TableFacts:
    """A table as it is now.

    Attributes:
        place: its name with its schema, as the server has found it.
        unique: the sets of columns of which no two rows have the same values.
    """

    oid: int
    place: str
    columns: tuple[Column, ...]
    unique: tuple[frozenset[str], ...]
    view: bool

    def column(self, name: str) -> Column | None:
        """Return the column of a name, if there is one."""
        return next((column for column in self.columns if column.name == name), None)


def look_up(connection: psycopg.Connection[Any], table: str) -> TableFacts | None:
    """Return what a table is; None if there is none of that name.

    Raises:
        JobError: it is something other than a table or a view.
    """
    found = connection.execute(_PLACE, [quoted_table(table)]).fetchone()
    if found is None:
        return None
    oid, schema, name, kind = found
    if kind not in ("r", "p", "v", "m", "f"):
        raise JobError(f"{schema}.{name} is neither a table nor a view")
    columns = tuple(map(_column, connection.execute(_COLUMNS, [oid]).fetchall()))
    unique = tuple(frozenset(names) for (names,) in connection.execute(_UNIQUE, [oid, oid]).fetchall())
    return TableFacts(oid, f"{schema}.{name}", columns, unique, kind in ("v", "m", "f"))


def _column(row: Sequence[Any]) -> Column:
    name, type_, kind, modifier, declared, not_null, optional, computed, labels = row
    own = "enum" if kind == "e" else type_
    return Column(name, own, modifier, declared, not_null, optional, computed, tuple(labels or ()))


def check_encoding(connection: psycopg.Connection[Any], what: str) -> None:
    """Raise JobError unless the database can hold any text."""
    row = connection.execute(b"SHOW server_encoding").fetchone()
    assert row is not None
    if row[0] != "UTF8":
        raise JobError(
            f"{what}: its database is in {row[0]}, which cannot hold every text: use one made with ENCODING 'UTF8'"
        )


def named(columns: Sequence[Column]) -> str:
    """Columns as errors list them."""
    return ", ".join(f"{column.name} {column.declared}" for column in columns)
