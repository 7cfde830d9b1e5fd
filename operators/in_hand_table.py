"""The state table of rows in hand: those that have come and have not gone on."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
from millstream.engine.codes import plain_type
from millstream.engine.errors import SchemaError
from millstream.engine.state import DELETED, StateTable
from millstream.engine.store.columns import storage_type
from millstream.operators.windowed import distinct_names

NAMING: Final = ("epoch", "subtask", "number")
"""What names a row in hand: the epoch and subtask that first wrote it down, and a number among those."""


def in_hand_table(schema: pa.Schema) -> StateTable:
    """One row per row in hand: what names it, the watermark before it, the how manyeth attempt it is, its columns."""
    names = distinct_names([*NAMING, "after", "attempt", *schema.names], {DELETED})
    types = [pa.int64()] * 5 + [plain_type(field.type) for field in schema]
    # By the subtask that wrote them down: rows that were in order stay with one subtask, and so in order.
    return StateTable("in_hand", pa.schema(list(zip(names, types, strict=True))), NAMING, route_by=("subtask",))


def check_can_be_in_hand(schema: pa.Schema, where: str) -> None:
    """Raise SchemaError when state cannot hold a column."""
    for field in schema:
        try:
            storage_type(plain_type(field.type))
        except SchemaError as error:
            raise SchemaError(
                f"{where} keeps the rows that are on their way through it in state, and column {field.name!r} cannot "
                f"be: {error}; leave it out before, with drop({field.name!r})"
            ) from None
