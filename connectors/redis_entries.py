"""Entries of a Redis stream to rows: each field a column, or one field with a JSON object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa
from millstream.connectors.json_decoder import JsonDecoder
from millstream.connectors.message_decoders import decode_scalars
from millstream.connectors.reading_plan import failing
from millstream.engine.errors import JobError

Entry: TypeAlias = tuple[bytes, Mapping[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class EntryDecoder:
    """Makes rows of entries.

    Attributes:
        schema: the columns that come out of the entries' fields.
        json: the field with a JSON object; None: each column is the field of its name.
        entry_id: a last column for the entries' ids, if wanted.
    """

    schema: pa.Schema
    json: str | None = None
    entry_id: str | None = None

    def check(self, where: str) -> None:
        """Raise JobError if a column's type cannot be read."""
        if self.json is not None:
            JsonDecoder(self.schema)
            return
        for column in self.schema:
            try:
                pa.array([], pa.string()).cast(column.type)
            except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
                raise JobError(
                    f"{where}: column {column.name!r} is {column.type}, which cannot be read from the text of a field"
                ) from None

    @property
    def columns(self) -> pa.Schema:
        """The columns of the rows."""
        return self.schema if self.entry_id is None else self.schema.append(pa.field(self.entry_id, pa.string()))

    def decode(self, entries: Sequence[Entry]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """Return the rows of the good entries, and per bad one (its place among them) what is wrong with it.

        >>> decoder = EntryDecoder(pa.schema({"n": pa.int64()}), entry_id="id")
        >>> rows, bad = decoder.decode([(b"1-0", {b"n": b"7"}), (b"2-0", {b"n": b"x"}), (b"3-0", {})])
        >>> rows.to_pylist()
        [{'n': 7, 'id': '1-0'}, {'n': None, 'id': '3-0'}]
        >>> bad
        {1: "field 'n': Failed to parse string: 'x' as a scalar of type int64"}
        """
        arrays, bad = self._from_json(entries) if self.json is not None else self._from_fields(entries)
        if self.entry_id is not None:
            ids = [entry[0] for place, entry in enumerate(entries) if place not in bad]
            arrays = [*arrays, pa.array(ids, pa.binary()).cast(pa.string())]
        return pa.RecordBatch.from_arrays(arrays, schema=self.columns), bad

    def _from_fields(self, entries: Sequence[Entry]) -> tuple[list[pa.Array], dict[int, str]]:
        bad: dict[int, str] = {}
        arrays: list[pa.Array] = []
        for column in self.schema:
            values = [fields.get(column.name.encode()) for _, fields in entries]
            array, problems = _parsed(values, column.type)
            arrays.append(array)
            bad |= {place: f"field {column.name!r}: {problem}" for place, problem in problems.items()}
        if not bad:
            return arrays, bad
        return self._from_fields([entry for place, entry in enumerate(entries) if place not in bad])[0], bad

    def _from_json(self, entries: Sequence[Entry]) -> tuple[list[pa.Array], dict[int, str]]:
        assert self.json is not None
        name = self.json.encode()
        bad = {i: f"there is no field {self.json!r}" for i, (_, fields) in enumerate(entries) if name not in fields}
        present = [i for i in range(len(entries)) if i not in bad]
        rows, unfit = JsonDecoder(self.schema).decode_messages([entries[i][1][name] for i in present])
        return list(rows.columns), bad | {present[place]: problem for place, problem in unfit.items()}


def _parsed(values: Sequence[bytes | None], type_: pa.DataType) -> tuple[pa.Array, dict[int, str]]:
    if pa.types.is_binary(type_) or pa.types.is_string(type_):
        return decode_scalars(values, type_)

    def attempt(start: int, end: int) -> pa.Array:
        return pa.array(values[start:end], pa.binary()).cast(pa.string()).cast(type_)

    parts, bad = failing(len(values), attempt)
    return (pa.concat_arrays(parts) if parts else pa.nulls(0, type_)), bad
