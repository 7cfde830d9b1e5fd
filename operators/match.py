"""Patterns in the rows of each key: "a price that falls, then rises", "an order without a payment"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import pyarrow as pa
from millstream.engine.codes import form_of, plain_type
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr
from millstream.engine.expression_types import did_you_mean
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, Operator, OperatorSpec
from millstream.engine.state import DELETED, StateTable
from millstream.engine.store.columns import storage_type
from millstream.engine.time import END_OF_TIME, show_duration
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.event_time import TIME_TYPE
from millstream.operators.match_expressions import Condition, Result, read_condition, read_result
from millstream.operators.row_pattern import Absent, Chain, Node, Repeat, Take, names_in, show
from millstream.operators.windowed import LATE, check_columns, check_time, distinct_names
from millstream.operators.windows import Ints, Window, check_range

STATE: Final = "match"
"""The name of the state table: one row per row that waits, or may still be in a match."""

MATCH_START: Final = "match_start"
MATCH_END: Final = "match_end"
KNOWN_AT: Final = "known_at"
"""The columns that every match has beside its keys."""

MOST_CONDITIONS: Final = 12
"""More names with conditions are refused: the automaton's table has a column for each combination of them."""


@dataclass(frozen=True, eq=False)
class Match(OperatorSpec):
    """Finds matches of a pattern in the rows of each key, in event-time order; rows of one time in order of arrival.

    Semantics are those of SQL:2016's MATCH_RECOGNIZE with ONE ROW PER MATCH. From a row on, alternatives are tried in
    the order in which they are written, repetitions as long as possible first; the first way that succeeds is the
    match. If there is none, the next row is tried. All rows of a match lie within ``within`` of the first.

    A row is processed when the watermark has passed it; one that comes later is late. A match is put out as soon as no
    row to come can change it or put an earlier one in its place: at the latest when the watermark has passed the time
    of its first row, or of a row before it, by ``within``.

    Output: the keys, ``match_start`` and ``match_end`` (event times of the first and last row), ``known_at`` (the event
    time at which the match was certain), the results; for a key in the order of their first rows.

    Attributes:
        keys: the columns that name a group; none means that all rows are one.
        define: the condition of each name; a name without one takes any row.
        select: (output column, aggregate over the rows of a name or of the match).
        time: the event time of a row: a timestamp, or int64 microseconds.
        within: the longest a match may last, microseconds.
        relaxed: pass over rows that the pattern cannot take, instead of giving up.
        past_last: look for the next match behind the last row of one, not behind its first row.
        keep: put out only those columns that are in here, since nobody wants the others; None: all.
    """

    keys: tuple[str, ...]
    pattern: Node
    define: tuple[tuple[str, Expr], ...]
    select: tuple[tuple[str, AggregateSpec], ...]
    time: Expr
    within: int
    relaxed: bool = False
    past_last: bool = True
    keep: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.within <= END_OF_TIME // 4:
            raise JobError(f"match(within=...): a pattern needs a time, at least '1us', got {self.within} microseconds")
        for name, _ in self.define:
            if name not in self.names:
                raise JobError(
                    f"match(define=...) has a condition for {name!r}, which is not in the pattern "
                    f"{show(self.pattern)!r}{did_you_mean(name, self.names)}"
                )
        if len(self.bits) > MOST_CONDITIONS:
            raise JobError(f"a pattern has at most {MOST_CONDITIONS} names with conditions, got {len(self.bits)}")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the pattern; a name's number is its place in here."""
        return names_in(self.pattern)

    @cached_property
    def bits(self) -> dict[str, int]:
        """The bit that says that the condition of a name is true; a name that takes any row needs none."""
        defined = {name for name, _ in self.define}
        named = [name for name in self.names if name in defined or Absent(name) in _parts(self.pattern)]
        return {name: 1 << number for number, name in enumerate(named)}

    @property
    def begin(self) -> str | None:
        """The name of the one row with which every match begins; None: it may be one of several."""
        first = _parts(self.pattern)[0]
        if isinstance(first, Take) and _takes(self.pattern)[first.name] == 1:
            return first.name
        return None

    def conditions(self, schema: pa.Schema) -> list[Condition]:
        """What must be true for the names that have a bit. Raises SchemaError when a condition does not fit."""
        defined = dict(self.define)
        made = []
        for name in self.bits:
            if name not in defined:
                made.append(Condition(name, None, ()))
                continue
            condition = read_condition(name, defined[name], self.names, self.begin)
            condition.check(schema)
            made.append(condition)
        return made

    def results(self, schema: pa.Schema) -> list[Result]:
        """What is put out of each match. Raises SchemaError when a result does not fit."""
        wanted = [(c, a) for c, a in self.select if self.keep is None or c in self.keep]
        results = [read_result(column, aggregate, self.names, schema) for column, aggregate in wanted]
        for result in results:
            result.aggregate.check(schema)
        return results

    @property
    def kind(self) -> str:
        """One word for plans and errors."""
        return "match"

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        define = ", ".join(f"{name}={expr}" for name, expr in self.define)
        select = ", ".join(f"{column}={aggregate.identity()}" for column, aggregate in self.select)
        return (
            f"match(keys={self.keys!r}, pattern={show(self.pattern)!r}, define=({define}), select=({select}), "
            f"time={self.time}, within={self.within}, relaxed={self.relaxed}, past_last={self.past_last})"
        )

    def describe(self) -> str:
        """One line for the plan."""
        group = f" of each {', '.join(self.keys)}" if self.keys else ""
        gaps = ", passing over others" if self.relaxed else ""
        return f"{show(self.pattern)} in the rows{group} within {show_duration(self.within)}{gaps}"

    def exchange(self) -> Exchange:
        """By hash of the keys; without keys one subtask has it all."""
        return Exchange(ExchangeKind.HASH, self.keys) if self.keys else Exchange(ExchangeKind.SINGLE)

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The matches, and late rows as they came. Raises SchemaError when the input does not fit."""
        (schema,) = inputs
        check_columns(self.keys, schema, "key")
        for key in self.keys:
            form_of(schema.field(key).type, f"key column {key!r}")
        check_time(self.time, schema)
        self.conditions(schema)
        self._check_names()
        fields = [pa.field(key, plain_type(schema.field(key).type)) for key in self.keys]
        fields += [pa.field(name, TIME_TYPE) for name in (MATCH_START, MATCH_END, KNOWN_AT)]
        fields += [pa.field(result.column, result.aggregate.type_in(schema)) for result in self.results(schema)]
        for field in self.kept(schema):
            storage_type(field.type)
        return {MAIN: pa.schema([f for f in fields if self.keep is None or f.name in self.keep]), LATE: schema}

    def _check_names(self) -> None:
        names = Counter([*self.keys, MATCH_START, MATCH_END, KNOWN_AT, *(column for column, _ in self.select)])
        twice = sorted(name for name, times in names.items() if times > 1)
        if twice:
            raise SchemaError(
                f"match() would make two columns called {', '.join(twice)}: keys come by themselves, and results must "
                f"differ from them and from {MATCH_START}, {MATCH_END} and {KNOWN_AT}"
            )

    def kept(self, schema: pa.Schema) -> pa.Schema:
        """The columns of a row that must be kept until it cannot be in a match any more."""
        read = frozenset(self.keys).union(
            *(condition.columns() for condition in self.conditions(schema)),
            *(result.aggregate.columns() for result in self.results(schema)),
        )
        read = read or frozenset(sorted(self.time.columns())[:1])  # a batch without any column has no rows either
        return pa.schema([pa.field(f.name, plain_type(f.type)) for f in schema if f.name in read])

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """One row per row kept: its columns, its time, its place in arrival, and which conditions hold for it."""
        kept = self.kept(inputs[0])
        names = distinct_names([*kept.names, "row_time", "arrival", "conditions"], {DELETED})
        types = [*kept.types, TIME_TYPE, pa.int64(), pa.int64()]
        columns = pa.schema([pa.field(name, type) for name, type in zip(names, types, strict=True)])
        routed = tuple(names[kept.get_field_index(key)] for key in self.keys)
        return (StateTable(STATE, columns, keys=(*routed, names[-2]), route_by=routed),)

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """What is kept, the time, and what is wanted of late rows."""
        kept = self.pruned(wanted).kept(inputs[0])
        return [frozenset(kept.names) | frozenset(self.time.columns()) | wanted.get(LATE, frozenset())]

    def pruned(self, wanted: Mapping[str, frozenset[str]]) -> Match:
        """Return one that keeps and puts out no more than is wanted."""
        return replace(self, keep=wanted.get(MAIN, frozenset()))

    @property
    def uses_event_time(self) -> bool:
        """Rows are put in order by watermark."""
        return True

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        from millstream.operators.match_operator import MatchOperator

        return MatchOperator(self, inputs[0])


@dataclass(frozen=True, slots=True)
class Moment(Window):
    """No more than the time of a row itself: it has passed as soon as the watermark is later.

    Attributes:
        within: microseconds that must be there before and after each time.
    """

    within: int

    def identity(self) -> str:
        """Text that changes exactly when it is another one."""
        return f"moment(within={self.within})"

    def describe(self) -> str:
        """A few words for the plan."""
        return "by the moment"

    def assign(self, times: Ints) -> Ints:
        """As ``Window.assign``."""
        check_range(times, 2 * self.within, self.within)
        return times

    def last_closed(self, time: int) -> int:
        """As ``Window.last_closed``."""
        return time - 1


def _parts(pattern: Node) -> tuple[Node, ...]:
    return pattern.parts if isinstance(pattern, Chain) else (pattern,)


def _takes(node: Node) -> Counter[str]:
    """How often each name is written in a pattern."""
    match node:
        case Take(name) | Absent(name):
            return Counter([name])
        case Repeat(part):
            return _takes(part)
        case _:
            parts = node.parts if isinstance(node, Chain) else node.options
            return sum((_takes(part) for part in parts), Counter())
