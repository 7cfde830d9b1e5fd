"""The first row of each key, and the others set aside: "every order once, however often it was sent"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from millstream.engine.codes import form_of, plain_type
from millstream.engine.errors import JobError
from millstream.engine.expression import Expr
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, Operator, OperatorSpec
from millstream.engine.state import DELETED, StateTable
from millstream.engine.time import END_OF_TIME, show_duration
from millstream.operators.windowed import LATE, check_columns, check_time, distinct_names

DUPLICATES: Final = "duplicates"
"""The port of rows whose key was there before."""

STATE: Final = "seen"
"""The name of the state table: one row per key, or per key and time."""

MOST_KEYS: Final = 28
"""More columns than this cannot make a key: see ``engine.key_words``."""


@dataclass(frozen=True, eq=False)
class Deduplicate(OperatorSpec):
    """Passes on the first row of each key; the order of rows is the order in which they arrive.

    With ``within`` a row is a duplicate if a row of the same key was passed on before whose event time is less than
    ``within`` away from its own, earlier or later: of rows that are passed on no two of one key are closer. A row is
    remembered until the watermark has reached its time plus ``within``. A row that comes after that moment (its own
    time plus ``within``) is late, for nothing is known any more of what it may repeat: it goes to the port ``late`` and
    is counted, and so is a row without event time. So what becomes of rows that are not behind the watermark does not
    depend on where the watermark is; for one behind it, but not late, an older row of its key may be forgotten already.

    Without ``within`` a key is remembered for ever and event time plays no part.

    Duplicates go to the port ``duplicates`` as they are and are counted.

    Attributes:
        keys: the columns that make up the key, at least one. Nulls are a value like any other.
        within: microseconds of event time, at least 1; None: for ever.
        time: the event time of a row: a timestamp, or int64 microseconds; None if there is no ``within``.
        keep: the columns wanted of each port, since nobody wants the others; None: all.
    """

    keys: tuple[str, ...]
    within: int | None = None
    time: Expr | None = None
    keep: Mapping[str, frozenset[str]] | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.keys) <= MOST_KEYS:
            raise JobError(f"a key to deduplicate by has 1 to {MOST_KEYS} columns, got {len(self.keys)}")
        if (self.within is None) != (self.time is None):
            raise JobError("deduplication within a time needs event time, and without one has no use for it")
        if self.within is not None and not 1 <= self.within <= END_OF_TIME // 64:
            raise JobError(
                f"deduplication within {self.within} microseconds: it is at least '1us', and at most "
                f"{END_OF_TIME // 64 // 86_400_000_000} days; leave it out to remember keys for ever"
            )

    @property
    def kind(self) -> str:
        """One word for plans and errors."""
        return "deduplicate"

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        return f"deduplicate(keys={self.keys!r}, within={self.within}, time={self.time})"

    def describe(self) -> str:
        """One line for the plan."""
        keys = ", ".join(self.keys)
        if self.within is None:
            return f"first row of each {keys}, for ever"
        return f"first row of each {keys} within {show_duration(self.within)} of {self.time}"

    def exchange(self) -> Exchange:
        """By hash of the keys."""
        return Exchange(ExchangeKind.HASH, self.keys)

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The input's columns, on every port. Raises SchemaError when the input does not fit."""
        (schema,) = inputs
        check_columns(self.keys, schema, "key")
        for key in self.keys:
            form_of(schema.field(key).type, f"key column {key!r}")
        if self.time is not None:
            check_time(self.time, schema)
        return {port: self._kept(port, schema) for port in self._ports}

    @property
    def _ports(self) -> tuple[str, ...]:
        return (MAIN, DUPLICATES) if self.within is None else (MAIN, DUPLICATES, LATE)

    def _kept(self, port: str, schema: pa.Schema) -> pa.Schema:
        if self.keep is None:
            return schema
        return pa.schema([field for field in schema if field.name in self.keep[port]], schema.metadata)

    def wants(self, port: str) -> bool:
        """Whether somebody reads the port."""
        return self.keep is None or bool(self.keep.get(port))

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """One row per key remembered: the key, its time (with ``within``), and the epoch that wrote it last."""
        (schema,) = inputs
        timed = [] if self.within is None else ["time"]
        names = distinct_names([*self.keys, *timed, "written"], {DELETED})
        types = [plain_type(schema.field(key).type) for key in self.keys]
        types += [pa.int64()] * (len(names) - len(types))
        columns = pa.schema([pa.field(name, type) for name, type in zip(names, types, strict=True)])
        return (StateTable(STATE, columns, keys=tuple(names[:-1]), route_by=tuple(names[: len(self.keys)])),)

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """Keys, time, and what is wanted of any row."""
        del inputs
        time = frozenset() if self.time is None else self.time.columns()
        return [frozenset(self.keys).union(time, *wanted.values())]

    def pruned(self, wanted: Mapping[str, frozenset[str]]) -> OperatorSpec:
        """Return one that puts out no more than is wanted."""
        keep = {port: wanted.get(port, frozenset()) for port in self._ports}
        return Deduplicate(self.keys, self.within, self.time, keep)

    @property
    def uses_event_time(self) -> bool:
        """Keys are forgotten by watermark."""
        return self.within is not None

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        from millstream.operators.deduplicate_operator import DeduplicateOperator

        return DeduplicateOperator(self, inputs[0])
