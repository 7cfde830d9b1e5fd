"""The state tables of operators with aggregates: one of groups, and one for each aggregate that keeps items."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa
from millstream.engine.state import DELETED, StateTable
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.windowed import distinct_names


def aggregate_tables(
    name: str,
    group: Sequence[pa.Field],
    routed: int,
    aggregates: Sequence[tuple[str, AggregateSpec]],
    schema: pa.Schema,
    more: Sequence[pa.Field] = (),
) -> tuple[StateTable, ...]:
    """Return the state tables of an operator.

    Args:
        name: of the table of groups: a row per group, with what each aggregate keeps of it.
        group: the columns that name a group.
        routed: how many of them are the exchange's keys; they come first.
        aggregates: (output column, aggregate).
        schema: the input's.
        more: further columns of the table of groups, the last ones.
    """
    kept = [
        pa.field(f"{column}_{field.name}", field.type)
        for column, aggregate in aggregates
        for field in aggregate.state_fields(schema)
    ]
    tables = [_table(name, group, routed, [*kept, *more], named_by=0)]
    items = [(column, aggregate) for column, aggregate in aggregates if aggregate.item_fields(schema)]
    names = distinct_names([re.sub("[^a-z]", "_", column.lower()) or "items" for column, _ in items], {name})
    for table, (_, aggregate) in zip(names, items, strict=True):
        tables.append(_table(table, group, routed, aggregate.item_fields(schema), aggregate.item_names))
    return tuple(tables)


def _table(name: str, group: Sequence[pa.Field], routed: int, kept: Sequence[pa.Field], named_by: int) -> StateTable:
    """Return a table of rows that are named by their group and so many of the columns kept."""
    fields = [*group, *kept]
    names = distinct_names([field.name for field in fields], {DELETED})
    columns = pa.schema([pa.field(name, field.type) for name, field in zip(names, fields, strict=True)])
    return StateTable(name, columns, keys=tuple(names[: len(group) + named_by]), route_by=tuple(names[:routed]))
